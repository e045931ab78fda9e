"""``dstore global`` and ``dstore host``: run until a signal stops them."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator

from dstore.cli import console
from dstore.cli.cluster import warn_of_password
from dstore.cli.console import plain
from dstore.cli.notify import notify
from dstore.client.owners import HostOwners
from dstore.errors import DataError, KeyFolderError
from dstore.server.server import Global
from dstore.transport.addresses import is_private

NEWS_OF = "dstore.global"
"""The logger whose news (INFO) people see by default. A program that embeds a Global has the usual
default of :mod:`logging`, which shows warnings alone.
"""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(options: Namespace) -> int:
    """Run Global in this thread until SIGINT or SIGTERM. Returns the exit code."""
    if options.keys is not None and options.insecure:
        options.parser.error("--insecure is for a Global without --keys; give one of them")
    _check_cluster(options)
    _log(options)
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
        data=options.data,
        engine=options.engine,
        advertise=options.advertise,
        ownership_lease=options.ownership_lease,
        keys=options.keys,
        insecure=options.insecure,
    )
    try:
        with _signals_held():
            server.bind()
            _stop_on_signals(server.stop, server.close)
    except (DataError, KeyFolderError) as error:  # it is the wrong folder; later, its disk failed
        console.complain(console.said(error))
        return console.EXIT_USAGE
    if options.insecure:
        _warn_if_exposed(server)
    address = plain(server.address)
    _greet(f"Dstore server listening on {address}", f"listening on {address}")
    notify("READY=1")
    server.run()
    return console.EXIT_OK


def _check_cluster(options: Namespace) -> None:
    """Refuse options that do not go together, in the words of the command line."""
    if options.engine is None:
        for name in ("advertise", "ownership_lease"):
            if getattr(options, name) is not None:
                option = name.replace("_", "-")
                options.parser.error(f"--{option} is for a member of a cluster; give --engine, too")
        return
    if options.data is not None:
        options.parser.error("--data is for a Global without --engine; give one of them")
    warn_of_password(options.engine)


def own(options: Namespace) -> int:
    """Own the membership of this host until SIGINT or SIGTERM. Returns the exit code."""
    _log(options)
    greeted = False

    def changed(there: bool) -> None:
        nonlocal greeted
        if there and not greeted:
            greeted = True
            line = f"the processes of this host share one cache of {plain(owner.address)}"
            _greet(f"Dstore host: {line}", line)
            notify("READY=1")

    with _signals_held():
        owner = HostOwners(
            options.address,
            connect=options.connect,
            shm=options.shm,
            host_cache=options.host_cache,
            changed=changed,
        )
        _stop_on_signals(owner.stop, owner.stop)
        owner.run()
    return console.EXIT_OK


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let the signals wait, from before there is anything that they would leave behind.

    If the block fails they come as before, to this process and to its children.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        raise


def _log(options: Namespace) -> None:
    level = logging.ERROR if options.quiet else logging.WARNING
    if options.verbose:
        level = logging.INFO if options.verbose == 1 else logging.DEBUG
    console.log_to_stderr(console.SERVER_LINE, level)
    if level == logging.WARNING:
        logging.getLogger(NEWS_OF).setLevel(logging.INFO)
    console.in_utf8(sys.stdout, "surrogateescape")


def take_all_descriptors() -> None:
    """Raise this process's limit of open files as far as the system permits.

    Each Local has three connections here, or more. Without a descriptor for the next one ZeroMQ
    accepts no more Locals, reports nothing, and its I/O thread spins from then on.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where "unlimited" is not accepted
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _greet(line: str, otherwise: str) -> None:
    """Print a line, or complain with another one. The service goes on without it."""
    try:
        print(line, flush=True)
    except OSError as error:
        console.drop_stdout()
        if not isinstance(error, BrokenPipeError):
            why = f"standard output cannot be written: {console.said(error)}"
            console.complain(f"{otherwise}; {why}")


def _warn_if_exposed(server: Global) -> None:
    endpoints = (server.address, server.publisher)
    exposed = [plain(endpoint) for endpoint in endpoints if not is_private(endpoint)]
    if exposed:
        console.complain(
            f"warning: {' and '.join(exposed)} can be reached from other "
            "machines; there is no authentication and no encryption, so every program that "
            "reaches it can read and write everything"
        )


def _stop_on_signals(stop: Callable[[], None], give_up: Callable[[], None]) -> None:
    """Start a thread that waits for the signals and calls ``stop``; if that fails, ``give_up``.

    A handler would run in the thread that serves, and only when that wakes up: a signal that comes
    just before it sleeps would have to wait for the next message.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def watch() -> None:
        signal.sigwait(STOP_SIGNALS)
        notify("STOPPING=1")
        stop()
        os._exit(128 + signal.sigwait(STOP_SIGNALS))  # a second signal ends what hangs

    try:
        threading.Thread(target=watch, name="dstore-signals", daemon=True).start()
    except RuntimeError as error:
        give_up()
        raise OSError(f"cannot wait for signals: {error}") from None
