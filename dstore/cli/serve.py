"""``dstore global``: run Global until a signal says stop."""

from __future__ import annotations

import logging
import signal
import sys
from argparse import Namespace
from types import FrameType

from dstore import console
from dstore.console import plain
from dstore.global_server import Global
from dstore.transport.addresses import is_private


def serve(options: Namespace) -> int:
    """Run Global in this thread until SIGINT or SIGTERM; returns the exit code."""
    _log_to_stderr(options)
    server = Global(
        options.address,
        publisher=options.publisher,
        lease=options.lease,
        log_length=options.log_length,
        memory_limit=options.memory_limit,
    )
    _stop_on_signals(server)
    server.bind()
    _warn_if_exposed(server)
    _greet(server)
    server.run()
    return console.EXIT_OK


def _greet(server: Global) -> None:
    try:
        print(f"Dstore server listening on {plain(server.address)}", flush=True)
    except BrokenPipeError:
        console.drop_stdout()  # nobody reads it, which is no reason not to serve


def _warn_if_exposed(server: Global) -> None:
    endpoints = (server.address, server.publisher)
    exposed = [plain(endpoint) for endpoint in endpoints if not is_private(endpoint)]
    if exposed:
        console.complain(
            f"warning: {' and '.join(exposed)} can be reached from other "
            "machines; there is no authentication and no encryption, so whoever reaches it can "
            "read and write everything"
        )


def _stop_on_signals(server: Global) -> None:
    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)  # a second signal ends a Global that is stuck
        server.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _log_to_stderr(options: Namespace) -> None:
    level = logging.ERROR if options.quiet else logging.WARNING
    if options.verbose:
        level = logging.INFO if options.verbose == 1 else logging.DEBUG
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
