"""What the command line says about each of its options."""

from __future__ import annotations

from dstore import config
from dstore.shm.root import ROOT_DEFAULT, ROOT_VARIABLE

HELP = {
    "--advertise": "the address that a member of a cluster gives to clients (default: the one at "
    "which it listens)",
    "--address": "the address at which Global listens, or those of several Globals of a cluster, "
    "with commas between them (default: that of the connect file, or "
    f"${config.ADDRESS_VARIABLE}, or {config.ADDRESS_DEFAULT})",
    "--bind": "the address at which to take requests (default: %(default)s)",
    "--connect": "the connect file of this client, for a Global that asks for keys (default: "
    f"${config.CONNECT_VARIABLE})",
    "--data": "keep keys and values in this folder as well, so that they survive a restart "
    "(default: in memory alone)",
    "--engine": "be a member of the cluster whose PostgreSQL database has this URL, postgresql://"
    "HOST/NAME, and serve a part of its keys; without a password in the URL libpq takes that of "
    "$PGPASSWORD, of ~/.pgpass, or of a service file",
    "--file": "store the bytes of this file instead",
    "--finish": "use the next server key from now on (without it: make the next server key)",
    "--host-cache": "how much memory this host may take for small values that its processes "
    "share, 0 for none (default: 256M, and at most a quarter of the file system in memory)",
    "--insecure": "permit an address that other machines can reach without keys: every program "
    "there can then read and write everything",
    "--json": "print them as one JSON object",
    "--keys": "admit only clients whose keys are in this folder, which `dstore access init` makes, "
    "and encrypt (default: every program that reaches Global may use it)",
    "--large-from": "the size from which on a value travels in chunks, and the processes of a "
    "host share one copy of it (default: 64K)",
    "--lease": "how long a Local may answer from its cache before it must renew its lease "
    "(default: %(default)g)",
    "--log-length": "how many recent invalidations to keep for Locals that catch up "
    "(default: %(default)s)",
    "--max-clients": "how many Locals may be connected at the same time (default: %(default)s)",
    "--memory-limit": "how much memory all keys and values may take, for example 512M or 4G "
    "(default: 4G)",
    "--no-standby": "let members commit without a synchronous standby: what is lost with the "
    "database's machine is lost",
    "--no-wait": "return without waiting until no Local can read the values any more",
    "--null": "end each key with NUL, for xargs -0",
    "--output": "write to this file, which appears when it is complete",
    "--ownership-lease": "how long a member of a cluster may answer after its last beat in the "
    f"database (default: {config.OWNERSHIP_LEASE_DEFAULT:g})",
    "--prefix": "let it see and write only keys that begin with this; may be repeated (default: "
    "all keys)",
    "--publisher": "the address at which to broadcast invalidations (default: the next port)",
    "--quiet": "show no progress bar",
    "--replace": "replace the value of a key that is occupied",
    "--role": "what the client may do",
    "--shm": "the folder in memory (a tmpfs) where the processes of this host read large values; "
    f'"" for none, so that each process has its own copy (default: ${ROOT_VARIABLE}, or '
    f"{ROOT_DEFAULT} without it)",
    "--timeout": "how long to wait for an answer of Global (default: %(default)g)",
    "--ttl": "after how many seconds the key expires (default: it stays until it is deleted)",
    "--value-limit": "how large one value may be (default: 4G)",
    "--verbose": "log more; give it twice to log all",
    "--wait": "how long to wait until the member has handed over all (default: %(default)g)",
    "--workers": "how many processes read the files (default: %(default)s)",
    "backup": "the folder that `dstore backup` has made",
    "data": "the data folder, as given to `dstore global --data`",
    "connect_file": "the connect file, which is replaced in one step",
    "folder": "the folder whose files are shared (default: the sources of Python's library)",
    "key": "the key of the value",
    "keys": "the keys to be deleted",
    "member": "the address of the member, or the beginning of its id, as `dstore cluster status` "
    "shows them",
    "name": "the name of the client",
    "prefix": "list only the keys that begin with this (default: all keys)",
    "seconds": "in how many seconds from now the key expires",
    "target": "the folder to be made, which must not exist",
    "url": "the URL of the database, postgresql://USER@HOST/NAME",
    "value": "the value, stored as text; if it is missing or -, standard input is stored as bytes",
}
"""The help of each option, under its last name."""
