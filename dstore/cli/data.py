"""``dstore check``, ``backup`` and ``restore``: commands on the data folder of a durable Global.

They need no address: they work on the files, on the machine that has them.
"""

from __future__ import annotations

import base64
import json
import sys
from argparse import Namespace

from dstore.cli import console
from dstore.cli.progress import progress_bar
from dstore.cli.show import shown
from dstore.protocol.keys import public, to_bytes
from dstore.server.data.backup import back_up, restore
from dstore.server.data.check import Damaged, Report, check_folder


def check(options: Namespace) -> int:
    """Look for damage. Standard output gets the damaged keys, one on each line."""
    with progress_bar(quiet=options.quiet) as progress:
        report = check_folder(options.data, progress or _silent)
    if options.json:
        print(json.dumps(_as_json(report)))
        return _code(report)
    _name_damage(report)
    for fault in report.faults:
        console.complain(f"the database is damaged: {fault}")
    if report.is_sound:
        console.complain(f"{_counted(report)} are sound{_orphans(report)}")
    elif report.faults:
        console.complain("no Global can use this folder; restore a backup with `dstore restore`")
    else:
        console.complain(
            f"{len(report.damaged):,} of {_counted(report)} are damaged{_orphans(report)}; in a "
            "running Global these keys can be deleted or replaced"
        )
    return _code(report)


def make_backup(options: Namespace) -> int:
    with progress_bar(quiet=options.quiet) as progress:
        report = back_up(options.data, options.target, progress or _silent)
    return _copied(report, f"backup of {_counted(report)} in {options.target}")


def restore_backup(options: Namespace) -> int:
    with progress_bar(quiet=options.quiet) as progress:
        report = restore(options.backup, options.data, progress or _silent)
    line = f"restored {_counted(report)} to {options.data}; a Global that uses them is silent "
    return _copied(report, line + "at first, for the longest lease that was given")


def _copied(report: Report, line: str) -> int:
    """Say what was copied. Damaged values are named on standard error."""
    console.complain(line)
    for each in report.damaged:
        console.complain(f"the value of {shown(public(each.key))} is damaged: {each.what}")
    return _code(report)


def _name_damage(report: Report) -> None:
    if sys.stdout.isatty():
        for each in report.damaged:
            print(f"{shown(public(each.key))}: {each.what}")
    else:
        for each in report.damaged:
            sys.stdout.buffer.write(to_bytes(each.key) + b"\n")
    sys.stdout.flush()


def _as_json(report: Report) -> dict[str, object]:
    return {
        "sound": report.is_sound,
        "keys": report.keys,
        "bytes": report.size,
        "damaged": [_damaged_as_json(each) for each in report.damaged],
        "faults": report.faults,
        "orphans": report.orphans,
    }


def _damaged_as_json(each: Damaged) -> dict[str, str]:
    """A key that is no text is written as Base64."""
    key = public(each.key)
    if isinstance(key, bytes):
        return {"key_base64": base64.b64encode(key).decode(), "what": each.what}
    return {"key": key, "what": each.what}


def _counted(report: Report) -> str:
    keys = "1 key" if report.keys == 1 else f"{report.keys:,} keys"
    return f"{keys} ({report.size:,} bytes)"


def _orphans(report: Report) -> str:
    if not report.orphans:
        return ""
    files = "1 file" if report.orphans == 1 else f"{report.orphans:,} files"
    return f"; {files} without a key, which the next start of Global removes"


def _code(report: Report) -> int:
    return console.EXIT_OK if report.is_sound else console.EXIT_REFUSED


def _silent(what: str, done: int, total: int) -> None:
    """Show no progress."""
