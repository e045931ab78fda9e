"""``dstore global``: run Global until a signal stops it."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from argparse import Namespace

from dstore.cli import console
from dstore.cli.console import plain
from dstore.server.server import Global
from dstore.transport.addresses import is_private


def serve(options: Namespace) -> int:
    """Run Global in this thread until SIGINT or SIGTERM. Returns the exit code."""
    level = logging.ERROR if options.quiet else logging.WARNING
    if options.verbose:
        level = logging.INFO if options.verbose == 1 else logging.DEBUG
    console.log_to_stderr(console.SERVER_LINE, level)
    console.in_utf8(sys.stdout, "surrogateescape")
    take_all_descriptors()
    server = Global(
        options.address,
        publisher=options.publisher,
        lease=options.lease,
        log_length=options.log_length,
        memory_limit=options.memory_limit,
        value_limit=options.value_limit,
        large_from=options.large_from,
        max_clients=options.max_clients,
        shm=options.shm,
        host_cache=options.host_cache,
    )
    server.bind()
    _stop_on_signals(server)
    _warn_if_exposed(server)
    _greet(server)
    server.run()
    return console.EXIT_OK


def take_all_descriptors() -> None:
    """Raise this process's limit of open files as far as the system permits.

    Each Local has three connections here, or more. Without a descriptor for the next one ZeroMQ
    accepts no more Locals, reports nothing, and its I/O thread spins from then on.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where "unlimited" is not accepted
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _greet(server: Global) -> None:
    try:
        print(f"Dstore server listening on {plain(server.address)}", flush=True)
    except OSError as error:  # Global serves even if the line cannot be printed
        console.drop_stdout()
        if not isinstance(error, BrokenPipeError):
            why = f"standard output cannot be written: {console.said(error)}"
            console.complain(f"listening on {plain(server.address)}; {why}")


def _warn_if_exposed(server: Global) -> None:
    endpoints = (server.address, server.publisher)
    exposed = [plain(endpoint) for endpoint in endpoints if not is_private(endpoint)]
    if exposed:
        console.complain(
            f"warning: {' and '.join(exposed)} can be reached from other "
            "machines; there is no authentication and no encryption, so every program that "
            "reaches it can read and write everything"
        )


def _stop_on_signals(server: Global) -> None:
    """Start a thread that waits for the signals.

    A handler would run in the thread that serves, and only when that wakes up: a signal that comes
    just before it sleeps would have to wait for the next message.
    """
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def watch() -> None:
        signal.sigwait(signals)
        server.stop()
        os._exit(128 + signal.sigwait(signals))  # a second signal ends a Global that hangs

    try:
        threading.Thread(target=watch, name="dstore-signals", daemon=True).start()
    except RuntimeError as error:
        server.close()
        raise OSError(f"cannot wait for signals: {error}") from None
