"""``dstore access``: who may use a Global, by the files of its key folder.

Like ``dstore backup`` these commands work on files, on Global's machine and as Global's user. They
tell running Globals nothing: these look at the folder, and say in it what they have applied.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dstore.access import files, running
from dstore.access.connect import Connect, load_open
from dstore.access.keys import Client, KeyFolder, role_named
from dstore.access.running import Seen, Status, wait_applied
from dstore.cli import console
from dstore.cli.show import shown
from dstore.errors import KeyFolderError
from dstore.protocol.keys import public
from dstore.quoting import quoted
from dstore.transport import addresses

HEADINGS = ("NAME", "ROLE", "PREFIXES", "CREATED", "LAST SEEN", "SESSIONS")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def access(options: Namespace) -> int:
    """Carry out one of the commands. Returns the exit code."""
    return ACTIONS[options.action](options)


def init(options: Namespace) -> int:
    KeyFolder(options.folder).create()
    keys = quoted(options.folder)
    console.complain(
        f"{keys} is the key folder now; add clients with `dstore access add`, and run "
        f"`dstore global --keys {keys}`"
    )
    return console.EXIT_OK


def add(options: Namespace) -> int:
    """Add a client. Its connect file is written first: without it nothing is added."""
    addresses.check_several(options.address)
    to_file = options.output not in (None, "-")
    folder = KeyFolder(options.keys)
    written = False

    def hand_out(connect: Connect) -> None:
        nonlocal written
        if to_file:
            files.create_secret(options.output, connect.text().encode())
            written = True
            return
        if sys.stdout.isatty():
            console.complain(
                "warning: what follows is a secret, and this terminal may keep it; -o FILE writes "
                "it to a file that only you can read"
            )
        print(connect.text(), end="", flush=True)

    try:
        role = role_named(options.role)
        folder.add(options.name, role, options.prefix, options.address, hand_out)
    except BaseException:
        if written:
            with contextlib.suppress(OSError):
                os.unlink(options.output)
        raise
    if to_file:
        console.complain(
            f"{options.name} is added; {quoted(options.output)} has its secret: who can read "
            f"that file is {options.name}"
        )
    _confirm(options, folder.generation, f"{options.name} is added")
    return console.EXIT_OK


def list_(options: Namespace) -> int:
    """List the clients, with what the running Globals know of them."""
    folder = KeyFolder(options.keys)
    clients, globals_ = folder.clients(), running.statuses(folder)
    seen = {each.name: _seen(each.name, globals_) for each in clients}
    if options.json:
        found = [_as_json(each, seen[each.name]) for each in clients]
        there = [{"process": each.process, "generation": each.generation} for each in globals_]
        print(json.dumps({"clients": found, "globals": there, "server_keys": folder.server_keys}))
        return console.EXIT_OK
    if clients:
        for line in _table([HEADINGS, *(_row(each, seen[each.name]) for each in clients)]):
            print(line)
    else:
        console.complain("there are no clients; add one with `dstore access add`")
    return console.EXIT_OK


def revoke(options: Namespace) -> int:
    """Revoke a client, and wait until each running Global has confirmed that."""
    generation = KeyFolder(options.keys).revoke(options.name)
    done = f"{options.name} is revoked"
    if _confirm(options, generation, done, "may still answer it until it does, or is stopped"):
        return console.EXIT_OK
    return console.EXIT_REFUSED


def rotate(options: Namespace) -> int:
    """Make the next server key, or let it take the place of the present one."""
    folder, keys = KeyFolder(options.keys), quoted(options.keys)
    if not options.finish:
        folder.rotate()
        console.complain(
            "the next server key is made, and not used yet. Now run `dstore access update FILE "
            f"--keys {keys}` for each connect file, and let the programs read it again; then "
            f"`dstore access rotate --finish --keys {keys}`"
        )
        return console.EXIT_OK
    generation = folder.finish_rotation()
    done = "the next server key is the server key now"
    if _confirm(options, generation, done, "may use the former key until it does"):
        return console.EXIT_OK
    return console.EXIT_REFUSED


def update(options: Namespace) -> int:
    """Put the present and the next server key into a connect file.

    Also in a folder of another user: the file that was read is the one that is replaced.
    """
    folder, path = KeyFolder(options.keys), options.connect_file
    with files.opened_secret(path) as file:
        connect = load_open(file.fd, path)
        names = {each.public_key: each.name for each in folder.clients()}
        name = names.get(connect.public_key)
        if name is None:
            raise KeyFolderError(
                f"{quoted(path)} is the connect file of no client in {quoted(options.keys)}; it "
                "was revoked, or belongs to another key folder"
            )
        keys = folder.server_keys
        counted = "the server key" if len(keys) == 1 else "the present and the next server key"
        if list(connect.server_keys) == keys:
            console.complain(f"{quoted(path)} of {name} has {counted} already")
            return console.EXIT_OK
        file.replace(replace(connect, server_keys=keys).text().encode())
    console.complain(f"{quoted(path)} of {name} has {counted} now")
    return console.EXIT_OK


ACTIONS = {
    "init": init,
    "add": add,
    "list": list_,
    "revoke": revoke,
    "rotate": rotate,
    "update": update,
}


def _confirm(options: Namespace, generation: int, done: str, otherwise: str = "") -> bool:
    """Wait for the running Globals, and say what is done. Returns whether all have confirmed.

    ``otherwise`` is what a Global may do that has not; without it nobody needs to know.
    """
    applied = wait_applied(options.keys, generation, options.timeout)
    if applied.missing:
        console.complain(_not_confirmed(options, applied.missing, done, otherwise))
        return False
    if otherwise:
        count = len(applied.confirmed)
        counted = "the running Global has" if count == 1 else f"all {count} running Globals have"
        who = f"{counted} confirmed it" if count else "no running Global uses this key folder"
        console.complain(f"{done}; {who}")
    return True


def _not_confirmed(options: Namespace, missing: Sequence[Status], done: str, otherwise: str) -> str:
    which = ", ".join(str(each.process) for each in missing)
    counted = f"Global (process {which}) has" if len(missing) == 1 else (
        f"{len(missing)} Globals (processes {which}) have"
    )  # fmt: skip
    line = f"{done} in the folder, but {counted} not confirmed it in {options.timeout:g} seconds"
    if otherwise:
        line += f", and {otherwise}"
    try:
        KeyFolder(options.keys).load()
    except KeyFolderError as error:
        return f"{line}. No Global can read the folder: {error}"
    return f"{line}; see its log"


def _seen(name: str, globals_: Iterable[Status]) -> Seen:
    """Return what all running Globals together know about a client."""
    found = [each.clients[name] for each in globals_ if name in each.clients]
    times = [each.last_seen for each in found if each.last_seen is not None]
    return Seen(max(times, default=None), sum(each.sessions for each in found))


def _row(client: Client, seen: Seen) -> tuple[str, ...]:
    prefixes = ", ".join(shown(public(each)) for each in client.prefixes) or "(all keys)"
    role = client.role.name.lower()
    return (
        client.name, role, prefixes, client.created, _time(seen.last_seen) or "-",
        str(seen.sessions),
    )  # fmt: skip


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(each.ljust(width) for each, width in zip(row, widths)).rstrip()


def _as_json(client: Client, seen: Seen) -> dict[str, object]:
    """A prefix that is no text is written as Base64."""
    prefixes: list[object] = []
    for each in client.prefixes:
        key = public(each)
        text = key if isinstance(key, str) else {"base64": base64.b64encode(key).decode()}
        prefixes.append(text)
    return {
        "name": client.name,
        "role": client.role.name.lower(),
        "prefixes": prefixes,
        "public_key": client.public_key,
        "created": client.created,
        "last_seen": _time(seen.last_seen),
        "sessions": seen.sessions,
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime(_TIME, time.gmtime(seconds))
