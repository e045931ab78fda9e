"""The key folder of a Global: its own key, and which clients it admits, with their roles.

The folder belongs to one user (mode 0700, its files 0600) and has these files:

====================  =========================================================================
``server.key``        the key pair of Global; a secret
``server-next.key``   the next one, while the key is being changed
``clients/NAME.json`` a client: its public key, its role, its prefixes. Its secret is not here
``generation``        a number that grows with each change of the folder
``running/``          what the Globals that use the folder say; see :mod:`dstore.access.running`
====================  =========================================================================

Each change is one rename or one removal, under the lock of the folder, so that no half of it is
ever there. The generation grows *before* it. A Global that sees a new generation takes the lock to
read the folder, and so waits for the change. If it grew afterwards, a command that is killed in
between would leave a revoked client admitted, and nothing would tell a Global to look.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from dstore import checks, config
from dstore.access import files
from dstore.access.connect import Connect
from dstore.access.files import PrivateFolder, cannot, damaged
from dstore.core.authority.identity import Identity, Role
from dstore.errors import KeyFolderError
from dstore.protocol.keys import from_bytes, key_bytes
from dstore.protocol.messages import Key
from dstore.quoting import quoted
from dstore.runtime import native
from dstore.shm.directory import Unusable, walk
from dstore.transport import keypair

NAME_MAX = 64
"""Characters of the name of a client."""
CLIENTS_MAX = 1_000
"""Clients of one key folder. Many processes may use the connect file of one client."""
PREFIXES_MAX = 32
"""Prefixes of one client."""
PREFIX_BYTES_MAX = 444
"""Bytes of a prefix: with a content address of 67 bytes after it, it is as long as a key may be."""
FILE_BYTES_MAX = 128 << 10
"""Bytes of a file in the key folder. In JSON each byte of a prefix may take six."""

SERVER, NEXT, CLIENTS, GENERATION = "server.key", "server-next.key", "clients", "generation"
RUNNING = "running"
_CLIENT = ".json"
_IGNORED = {"lost+found"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_GENERATION = re.compile(rb"dstore-generation 1 (\d{20})\n")
_GENERATION_BYTES = 41
_VERSION = 1
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Client(NamedTuple):
    """A client as the folder has it. ``created`` is in UTC, such as ``2030-01-31T12:00:00Z``."""

    name: str
    public_key: str
    role: Role
    prefixes: tuple[Key, ...]
    created: str


@dataclass(frozen=True, eq=False)
class KeyRing:
    """What a key folder had at one moment: whom a Global admits, and its own key. Immutable.

    ``server_secret`` is in Z85, and neither shown nor pickled. ``concealed`` is whether a client
    has prefixes, so that broadcasts may name no keys.
    """

    server_secret: bytes = field(repr=False)
    server_public: str
    generation: int
    identities: tuple[Identity, ...]
    concealed: bool
    _by_key: Mapping[str, Identity] = field(repr=False)

    def identity_of(self, public_key: str) -> Identity | None:
        """Return whose public key this is, in Z85; None if it is nobody's."""
        return self._by_key.get(public_key)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyRing has the secret key of a Global, and cannot be pickled or copied")


class Changes(NamedTuple):
    """What differs between two key rings. ``server`` is whether Global has another key."""

    revoked: list[Identity]
    added: list[Identity]
    server: bool


def changes(old: KeyRing, new: KeyRing) -> Changes:
    """Return what has changed from one key ring of a KeyFolder to a later one of the same."""
    before, after = ({id(each) for each in ring.identities} for ring in (old, new))
    return Changes(
        revoked=[each for each in old.identities if id(each) not in after],
        added=[each for each in new.identities if id(each) not in before],
        server=old.server_public != new.server_public,
    )


class KeyFolder:
    """The key folder at a path. Safe from any thread, and beside other processes.

    All methods raise KeyFolderError, whose message is one line that says what to do, and ValueError
    for a name, a prefix or a role that is none. Those that change something return when that is
    durable.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(checks.path("keys", path))
        self._lock = native.RLock()
        self._known: dict[str, tuple[Client, Identity]] = {}
        self._loaded = -1

    def __repr__(self) -> str:
        return f"<KeyFolder {self.path!r}>"

    def __fspath__(self) -> str:
        return self.path

    # ---- changes --------------------------------------------------------------------------

    def create(self) -> None:
        """Make the folder and a server key. The folder above it must exist.

        An empty folder is used, and what a killed ``create`` has left; a key is never replaced.
        """
        made = self._make()
        try:
            folder = files.opened(self.path)
        except KeyFolderError:
            if made:  # the folder above it is not safe
                with contextlib.suppress(OSError):
                    os.rmdir(self.path)
            raise
        with folder, folder.locked():
            names = set(folder.names()) - _IGNORED
            if SERVER in names:
                raise KeyFolderError(
                    f"{quoted(self.path)} is a key folder already, and stays as it is; use it, or "
                    "choose another path"
                )
            if names - {CLIENTS, RUNNING, GENERATION}:
                raise KeyFolderError(
                    f"the folder {quoted(self.path)} is not empty and is no key folder; choose an "
                    "empty folder, or one that does not exist"
                )
            folder.sub(CLIENTS, create=True).close()
            folder.sub(RUNNING, create=True).close()
            _grow(folder)
            _put_server_key(folder, SERVER)  # last: with it, it is a key folder

    def _make(self) -> bool:
        """Create the folder durably. Returns False if there is one."""
        above = os.path.dirname(self.path)
        try:
            walk(above).close()
            os.mkdir(self.path, files.FOLDER_MODE)
            return True
        except FileExistsError:
            return False
        except Unusable as error:
            raise KeyFolderError(f"{quoted(above)} is not safe: {error}") from None
        except FileNotFoundError:
            raise KeyFolderError(
                f"there is no folder {quoted(above)}; create it first, or choose another path"
            ) from None
        except OSError as error:
            raise cannot(self.path, error) from None

    def add(
        self,
        name: str,
        role: Role,
        prefixes: Iterable[str | bytes] = (),
        address: str = config.ADDRESS_DEFAULT,
        hand_out: Callable[[Connect], object] | None = None,
    ) -> Connect:
        """Add a client. Returns what it connects with, which has its secret and is kept nowhere.

        ``hand_out`` is called with that before the client is admitted: if it raises, nothing has
        been added. ``prefixes``: the client sees and writes only keys that begin with one of these;
        none for all keys.
        """
        name, role, below = checked_name(name), Role(role), checked_prefixes(prefixes)
        public, secret = keypair.new_pair()
        client = Client(name, public, role, below, time.strftime(_TIME, time.gmtime()))
        with self._changing() as folder, folder.sub(CLIENTS) as clients:
            names = _client_names(clients)
            if name in names or clients.has(name + _CLIENT):
                raise KeyFolderError(
                    f"there is a client {name} already, and its key stays as it is; choose another "
                    "name, or revoke it first"
                )
            if len(names) >= CLIENTS_MAX:
                raise KeyFolderError(
                    f"the key folder has {len(names):,} clients, and may have {CLIENTS_MAX:,}; "
                    "revoke one, or let processes share a connect file"
                )
            connect = Connect(
                address=address,
                server_keys=_server_keys(folder),
                name=name,
                prefixes=list(below),
                public_key=public,
                secret_key=secret,
            )
            if hand_out is not None:
                hand_out(connect)
            _grow(folder)
            clients.put(name + _CLIENT, _text_of(client))
        return connect

    def revoke(self, name: str) -> int:
        """Remove a client. Returns the generation with which a Global has applied that.

        Its file need not be readable.
        """
        name = checked_name(name)
        with self._changing() as folder, folder.sub(CLIENTS) as clients:
            if not clients.has(name + _CLIENT):
                raise KeyFolderError(
                    f"there is no client {name} in {quoted(self.path)}; `dstore access list` names "
                    "all"
                )
            generation = _grow(folder)
            clients.remove(name + _CLIENT)
            return generation

    def rotate(self) -> None:
        """Make the next server key, which Global does not use before :meth:`finish_rotation`."""
        with self._changing() as folder:
            if folder.has(NEXT):
                raise KeyFolderError(
                    "the next server key has been made already; update the connect files, then "
                    "run `dstore access rotate --finish`"
                )
            _grow(folder)
            _put_server_key(folder, NEXT)

    def finish_rotation(self) -> int:
        """Let the next server key take the place of the present one, which is gone then.

        Returns the generation with which a Global uses it.
        """
        with self._changing() as folder:
            if not folder.has(NEXT):
                raise KeyFolderError(
                    "there is no next server key; make one with `dstore access rotate`"
                )
            _read_server_key(folder, NEXT)
            generation = _grow(folder)
            folder.rename(NEXT, SERVER)
            return generation

    # ---- looks ----------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """The number of the newest change, which grows with each one."""
        with files.opened(self.path) as folder:
            return _generation(folder)

    @property
    def server_keys(self) -> list[str]:
        """The public keys of Global, in Z85: the present one and, during a rotation, the next."""
        with self._looking() as folder:
            return _server_keys(folder)

    def clients(self) -> list[Client]:
        """Return all clients, by name."""
        with self._looking() as folder:
            return _clients(folder)

    def changed(self) -> bool:
        """Whether :meth:`load` would return anything new now. It takes some microseconds.

        False while a change is under way. True if the folder cannot be read, so that ``load`` says
        why.
        """
        try:
            if _peek(os.path.join(self.path, GENERATION)) == self._loaded:
                return False
            with files.opened(self.path) as folder:
                return _is_free(folder)
        except (KeyFolderError, OSError):
            return True

    def load(self, wait: float = files.LOCK_TIMEOUT) -> KeyRing:
        """Read the folder; it waits at most ``wait`` seconds for a change that is under way.

        The Identity of a client is the same object in all key rings that this object has returned,
        as long as its name, key, role and prefixes stay. A client that was revoked and added again
        is another Identity.
        """
        with self._lock:
            with self._looking(wait) as folder:
                generation = _generation(folder)
                public, secret = _read_server_key(folder, SERVER)
                clients = _clients(folder)
            known = {each.name: (each, self._identity(each)) for each in clients}
            ring = KeyRing(
                server_secret=secret.encode("ascii"),
                server_public=public,
                generation=generation,
                identities=tuple(identity for _, identity in known.values()),
                concealed=any(each.prefixes for each in clients),
                _by_key={each.public_key: identity for each, identity in known.values()},
            )
            self._known, self._loaded = known, generation
            return ring

    def _identity(self, client: Client) -> Identity:
        before, identity = self._known.get(client.name, (None, None))
        if identity is not None and before == client:
            return identity
        return Identity(client.name, client.role, client.prefixes)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[PrivateFolder]:
        with self._opened() as folder, folder.locked():
            folder.tidy()
            with folder.sub(CLIENTS) as clients:
                clients.tidy()
            yield folder

    @contextlib.contextmanager
    def _looking(self, wait: float = files.LOCK_TIMEOUT) -> Iterator[PrivateFolder]:
        with self._opened() as folder, folder.locked(shared=True, wait=wait):
            yield folder

    def _opened(self) -> PrivateFolder:
        folder = files.opened(self.path)
        if not folder.has(SERVER):
            folder.close()
            raise KeyFolderError(
                f"{quoted(self.path)} is no key folder, since it has no {SERVER}; make one with "
                "`dstore access init`"
            )
        return folder


# ---- names, prefixes and roles ----------------------------------------------------------------


def checked_name(name: str) -> str:
    """Return the name of a client if it can be one. Raises TypeError and ValueError."""
    name = checks.text("name", name)
    if not _NAME.fullmatch(name) or len(name) > NAME_MAX:
        raise ValueError(
            f"{checks.shown(name)} is no name of a client: it has 1 to {NAME_MAX} letters (a to z, "
            "A to Z), digits, dots, underscores and hyphens, and begins with a letter or a digit"
        )
    return name


def checked_prefixes(prefixes: Iterable[str | bytes]) -> tuple[Key, ...]:
    """Return the texts of prefixes of keys, each once. Raises TypeError and ValueError."""
    found = tuple(
        dict.fromkeys(_prefix(each) for each in checks.several("prefixes", prefixes, "prefix"))
    )
    if len(found) > PREFIXES_MAX:
        raise ValueError(f"a client has at most {PREFIXES_MAX} prefixes, not {len(found):,}")
    return found


def _prefix(prefix: object) -> Key:
    if isinstance(prefix, str):
        try:
            raw = prefix.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(
                f"the prefix {checks.shown(prefix)} has half of a character; give it as bytes"
            ) from None
    elif isinstance(prefix, bytes):
        raw = prefix
    else:
        raise TypeError(f"a prefix is a str or bytes, not {checks.shown(prefix)}")
    key = from_bytes(raw)
    if not 0 < key_bytes(key) <= PREFIX_BYTES_MAX:
        raise ValueError(
            f"a prefix has 1 to {PREFIX_BYTES_MAX} bytes, not {len(raw):,}; without a prefix a "
            "client sees all keys"
        )
    content = config.CONTENT_PREFIX
    if key.startswith(content) or content.startswith(key):
        raise ValueError(
            f"the prefix {checks.shown(prefix)} would include keys that begin with {content}, the "
            "content addresses of clients without prefixes; choose another one"
        )
    return key


def role_named(name: str) -> Role:
    """Return the role with this name, in small letters. Raises ValueError."""
    for role in Role:
        if role.name.lower() == name:
            return role
    raise ValueError(f"{checks.shown(name)} is no role: read, write or admin")


# ---- the files --------------------------------------------------------------------------------


def _put_server_key(folder: PrivateFolder, name: str) -> None:
    public, secret = keypair.new_pair()
    fields = {"dstore_server_key": _VERSION, "public_key": public, "secret_key": secret}
    folder.put(name, _encoded(fields))


def _read_server_key(folder: PrivateFolder, name: str) -> tuple[str, str]:
    """Return the public and the secret key of a file."""
    fields = _fields(folder, name, "dstore_server_key")
    public, secret = fields.get("public_key"), fields.get("secret_key")
    path = folder.path_of(name)
    if not isinstance(public, str) or not isinstance(secret, str) or not keypair.is_key(secret):
        raise damaged(path, "it has no key pair")
    try:
        fits = keypair.public_of(secret) == public
    except OSError as error:
        raise cannot(path, error) from None
    if not fits:
        raise damaged(path, "its public and its secret key do not belong together")
    return public, secret


def _server_keys(folder: PrivateFolder) -> list[str]:
    names = [SERVER, NEXT] if folder.has(NEXT) else [SERVER]
    return [_read_server_key(folder, name)[0] for name in names]


def _client_names(clients: PrivateFolder) -> list[str]:
    """Return the names of all clients. A file that is no client's is refused, or not seen.

    A hidden file, or one that does not end as the files of clients do, admits nobody.
    """
    found = []
    for each in clients.names():
        name = each.removesuffix(_CLIENT)
        if name == each or each.startswith("."):
            continue
        if not _NAME.fullmatch(name) or len(name) > NAME_MAX:
            raise KeyFolderError(
                f"{quoted(clients.path_of(each))} is not the file of a client; remove it"
            )
        found.append(name)
    return found


def _clients(folder: PrivateFolder) -> list[Client]:
    with folder.sub(CLIENTS) as clients:
        names = _client_names(clients)
        if len(names) > CLIENTS_MAX:
            raise KeyFolderError(
                f"{quoted(clients.path)} has {len(names):,} clients, and may have {CLIENTS_MAX:,}; "
                "revoke some"
            )
        found = [_client(clients, name) for name in names]
    owners: dict[str, str] = {}
    for each in found:
        other = owners.setdefault(each.public_key, each.name)
        if other != each.name:
            raise KeyFolderError(
                f"the clients {other} and {each.name} have the same key; revoke one of them"
            )
    return found


def _client(clients: PrivateFolder, name: str) -> Client:
    file = name + _CLIENT
    fields = _fields(clients, file, "dstore_client")
    try:
        if fields["name"] != name:
            raise ValueError(f"it is that of {checks.shown(fields['name'])}")
        if not keypair.is_key(fields["public_key"]):
            raise ValueError("it has no public key")
        prefixes = checked_prefixes(fields["prefixes"])
        created = checks.text("created", fields["created"], len("2030-01-31T12:00:00Z"))
        return Client(name, fields["public_key"], role_named(fields["role"]), prefixes, created)
    except KeyError as error:
        raise damaged(clients.path_of(file), f"it has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise damaged(clients.path_of(file), str(error)) from None


def _text_of(client: Client) -> bytes:
    fields = client._asdict()
    fields.update(role=client.role.name.lower(), prefixes=list(client.prefixes))
    return _encoded({"dstore_client": _VERSION, **fields})


def _encoded(fields: Mapping[str, object]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode("ascii")


def _fields(folder: PrivateFolder, name: str, kind: str) -> dict[str, Any]:
    """Return what a file has. ``kind`` is the field that has the version of its form."""
    path = folder.path_of(name)
    try:
        fields = json.loads(folder.read(name, FILE_BYTES_MAX).decode("ascii"))
    except (ValueError, RecursionError):
        raise damaged(path, "it is not JSON in ASCII") from None
    version = fields.get(kind) if isinstance(fields, dict) else None
    if type(version) is not int:
        raise damaged(path, f"it has no field {kind}")
    if version != _VERSION:
        raise KeyFolderError(
            f"{quoted(path)} has version {version}, and this dstore reads version {_VERSION}; use "
            "the dstore that wrote it"
        )
    return dict(fields)


def _peek(path: str) -> int:
    """Return the generation without the lock; -1 if it is damaged. Raises OSError."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return 0
    try:
        return _parsed(os.read(file, _GENERATION_BYTES + 1))
    finally:
        os.close(file)


def _parsed(data: bytes) -> int:
    found = _GENERATION.fullmatch(data)
    return int(found[1]) if found else -1


def _generation(folder: PrivateFolder) -> int:
    """Return the generation. Without the file, which the next change makes, it is 0."""
    if not folder.has(GENERATION):
        return 0
    number = _parsed(folder.read(GENERATION, FILE_BYTES_MAX))
    if number < 0:
        raise damaged(folder.path_of(GENERATION), "it has no number")
    return number


def _grow(folder: PrivateFolder) -> int:
    """Raise the generation, before a change. Returns the new one.

    It is at least the time in milliseconds since 1970, so that it grows also when the folder was
    restored from a backup, or removed and made again. It is written in place, which needs no room:
    a client can be revoked when the disk is full.
    """
    there = folder.has(GENERATION)
    number = max(_generation(folder) + 1, time.time_ns() // 1_000_000)
    data = f"dstore-generation {_VERSION} {number:020}\n".encode("ascii")
    if there:
        folder.overwrite(GENERATION, data)
    else:
        folder.put(GENERATION, data)
    return number


def _is_free(folder: PrivateFolder) -> bool:
    """Whether no process is changing the folder just now."""
    try:
        with folder.locked(shared=True, wait=0.0):
            return True
    except KeyFolderError:
        return False
