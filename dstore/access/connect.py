"""Connect files: what one client needs to reach a Global that asks for keys.

A connect file is JSON with the address, the public keys of the server, and the name, the prefixes
and the key pair of one identity. The secret key in it lets everybody in who has the file. So the
file has to belong to its user, or to root, and nobody else may read or write it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from dstore.errors import AddressError, BadConnectFile
from dstore.transport import addresses, curve
from dstore.transport.curve import ClientKeys

VERSION = 1
"""The version of the file, which it has as ``dstore_connect``."""
CONNECT_BYTES_MAX = 64 << 10
"""Bytes of a connect file at most."""
SERVER_KEYS_MAX = 4
"""Public keys of a server in one connect file: the present one, and the next ones."""


@dataclass(frozen=True)
class Connect:
    """What a connect file has.

    ``server_keys`` are public keys, the present one first; a second one is there during a rotation.
    ``prefixes`` are those of the keys that the identity may see; none: it may see all. The repr
    does not show ``secret_key``, and an object cannot be pickled: name its file instead.
    """

    address: str
    server_keys: list[str]
    name: str
    prefixes: list[str]
    public_key: str
    secret_key: str = field(repr=False)

    @property
    def keys(self) -> ClientKeys:
        """The keys for the sockets of a client."""
        return ClientKeys(self.public_key, self.secret_key, tuple(self.server_keys), self.name)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Connect:
        """Read a file; see :func:`load`."""
        return load(path)

    def text(self) -> str:
        """Return the text of the file, with the secret key."""
        return json.dumps({"dstore_connect": VERSION, **asdict(self)}, indent=2) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, with mode 0600. It appears, or replaces an older one, when complete.

        Raises OSError.
        """
        path = os.fspath(path)
        temporary = f"{path}.{os.getpid()}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # of a process that had this number
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(self.text())
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def __reduce__(self) -> NoReturn:
        raise TypeError("what a connect file has is not pickled, since it is secret; name the file")


def load(path: str | os.PathLike[str]) -> Connect:
    """Read a connect file. Raises BadConnectFile, which says what is wrong and what to do."""
    path = os.fspath(path)
    return parse(_read(path), path)


def load_open(descriptor: int, path: str) -> Connect:
    """Read a connect file that is open; errors name ``path``. Raises BadConnectFile.

    What is checked is what is read, whatever the path leads to meanwhile.
    """
    return parse(_read_open(descriptor, path), path)


def parse(raw: bytes, path: str) -> Connect:
    """Return what the bytes of a connect file say; errors name ``path``. Raises BadConnectFile."""
    if not curve.available():
        raise BadConnectFile(
            f"{path!r} has keys, and ZeroMQ was built without CURVE here, which uses them; install "
            "pyzmq from a wheel"
        )
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadConnectFile(f"{path!r} is not a connect file: it is not JSON") from None
    if not isinstance(fields, dict) or "dstore_connect" not in fields:
        raise BadConnectFile(f"{path!r} is not a connect file; `dstore access add` writes one")
    version = fields["dstore_connect"]
    if type(version) is not int or version != VERSION:
        raise BadConnectFile(
            f"{path!r} is a connect file of another version of dstore, which this one does not "
            f"read; it reads version {VERSION}"
        )
    return _checked(fields, path)


def _read(path: str) -> bytes:
    try:
        # Without waiting for a writer, if it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadConnectFile(f"the connect file {path!r} cannot be read: {why}") from None
    try:
        return _read_open(descriptor, path)
    finally:
        os.close(descriptor)


def _read_open(descriptor: int, path: str) -> bytes:
    try:  # what is looked at is what is read
        _check_safe(os.fstat(descriptor), path)
        raw = b""
        while len(raw) <= CONNECT_BYTES_MAX and (more := os.read(descriptor, CONNECT_BYTES_MAX)):
            raw += more
    except OSError as error:
        raise BadConnectFile(
            f"the connect file {path!r} cannot be read: {error.strerror}"
        ) from None
    if len(raw) > CONNECT_BYTES_MAX:
        raise BadConnectFile(
            f"{path!r} is not a connect file: it has more than {CONNECT_BYTES_MAX:,} bytes"
        )
    return raw


def _check_safe(status: os.stat_result, path: str) -> None:
    """Raise BadConnectFile unless this is a file that no other user has a hand in."""
    if not stat.S_ISREG(status.st_mode):
        raise BadConnectFile(f"{path!r} is not a connect file: it is not even a file")
    if status.st_uid not in (0, os.geteuid()):
        raise BadConnectFile(
            f"the connect file {path!r} belongs to another user, who may change it; make a copy of "
            "your own"
        )
    if status.st_mode & (stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH):
        raise BadConnectFile(
            f"other users may read or write the connect file {path!r}, which has a secret key; "
            f"run: chmod 600 {path}"
        )


def _checked(fields: dict[str, Any], path: str) -> Connect:
    def damaged(what: str) -> BadConnectFile:
        return BadConnectFile(f"the connect file {path!r} is damaged: {what}; copy it again")

    for name in ("address", "name", "public_key", "secret_key"):
        if not isinstance(fields.get(name), str):
            raise damaged(f"its {name!r} is no text")
    for name in ("server_keys", "prefixes"):
        given = fields.get(name)
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise damaged(f"its {name!r} are no list of texts")
    try:
        addresses.check_several(fields["address"])
    except AddressError as error:
        raise damaged(str(error)) from None
    server_keys = fields["server_keys"]
    if not 1 <= len(server_keys) <= SERVER_KEYS_MAX or not all(map(curve.is_key, server_keys)):
        raise damaged(f"'server_keys' are 1 to {SERVER_KEYS_MAX} keys")
    if not curve.is_pair(fields["public_key"], fields["secret_key"]):
        raise damaged("'public_key' and 'secret_key' are not a pair of keys")
    names = ("address", "server_keys", "name", "prefixes", "public_key", "secret_key")
    return Connect(**{name: fields[name] for name in names})
