"""The machine, the versions and the revision of a run, without names of people or paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import zmq

import dstore

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "pyzmq", "msgpack", "redis", "cachetools", "proxystore", "nats-py", "diskcache", "ray", "numpy",
)  # fmt: skip
PROGRAMS = {"redis-server": r"v=([\d.]+)", "nats-server": r"v([\d.]+)"}


def about() -> dict[str, Any]:
    """Return the machine, the versions and the revision, as they are now."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": revision(),
        "hit": "compiled" if compiled() else f"pure Python, since {why_pure()}",
        "machine": {
            "cpu": _cpu(),
            "cores": cores(),
            "memory_gib": round(_memory() / (1 << 30), 1),
            "kernel": f"{platform.system()} {platform.release()}",
            "architecture": platform.machine(),
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": versions(),
    }


def compiled() -> bool:
    """Return whether this process runs the compiled part of dstore."""
    return not why_pure()


def why_pure() -> str:
    """Return why this process runs without the compiled part, or an empty text."""
    try:
        from dstore.compiled import missing
    except ImportError:  # an older source tree, for a comparison
        return "this version has no compiled part"
    return missing


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    found = {
        "dstore": dstore.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libzmq": zmq.zmq_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, pattern in PROGRAMS.items():
        said = re.search(pattern, _said(name, "--version"))
        if said:
            found[name] = said[1]
    return found


def revision() -> str:
    """Return the commit of dstore, marked if files differ; an empty text outside a repository."""
    git = ("git", "-C", str(Path(dstore.__file__).resolve().parents[1]))
    commit = _said(*git, "rev-parse", "--short=12", "HEAD").strip()
    changed = _said(*git, "status", "--porcelain", "--", "dstore", "benchmarks")
    return f"{commit}+changes" if commit and changed.strip() else commit


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = re.findall(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return str(names[0]).strip() if names else platform.processor()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
