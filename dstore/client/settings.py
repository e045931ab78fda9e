"""The settings of a Node: their names, types, defaults, checks and documentation.

They stand here once. :class:`dstore.Node`, :class:`dstore.AsyncNode` and :func:`dstore.connect`
take them as keyword arguments by means of :func:`initializer_with` and :func:`function_with`, so
that type checkers, editors, ``inspect.signature`` and ``help`` show the signature of
:class:`Settings` for each of them.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from dstore import checks, config
from dstore.access.connect import Connect, load
from dstore.client.files import Path
from dstore.codecs import Codec
from dstore.errors import AddressError, BadConnectFile
from dstore.protocol.content import Addresses
from dstore.transport import addresses
from dstore.transport.curve import ClientKeys

P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self")


class Settings:
    """The settings of a Node, checked. ``Node``, ``AsyncNode`` and ``connect`` take the same ones.

    Parameters
    ----------
    address
        Address of Global: ``tcp://HOST:PORT`` or ``ipc://PATH``. Default: ``$DSTORE_GLOBAL``, else
        ``tcp://127.0.0.1:50051``. A host name is resolved in the background, again whenever the
        connection is lost; all its addresses are tried, IPv6 and IPv4. Several Globals of one
        cluster may be given, with commas between them: the first one that answers says which
        others there are. One of them is enough while it runs.
    connect
        Path of a connect file, which ``dstore access add`` has written for this client: the address
        of a Global that asks for keys, its public key, and the key pair of the client. An
        ``address`` that is given as well takes the place of the one in the file, as for a tunnel.
        The file belongs to this user or to root, with mode 0600; it is read again when Global does
        not let the client in. Default: ``$DSTORE_CONNECT``, if no ``address`` is given.
    timeout
        Seconds until a call gives up, 0.001 to 86,400. A call with many keys sends several
        messages, and each has this time. A transfer of a large value gives up when it has made no
        progress for this time. A write may take one lease longer, because it may have to wait for
        the lease of a Local that died.
    host
        Whether the processes of this host and user share one membership and one cache, which
        Global has on its own host, and ``dstore host`` elsewhere. ``"auto"``: if there is one, and
        a cache of this process alone while there is none. ``"require"``: calls fail while there is
        none. ``"off"``: never. Default: ``$DSTORE_HOST``, else ``"auto"``.
    cache_bytes
        Bytes of memory that the cache of this process may take, for all Globals together. Beyond
        it, entries that have not been read recently are evicted (SIEVE). Default: 256 MiB, or
        beside a host cache a tenth of what that holds, but 3 MiB in any case. After a restart of
        Global it may take as much once more, until Global has said which of the former values are
        unchanged.
    stale_ok
        Whether reads may be answered from the cache after the lease has ended, that is, while
        Global cannot be reached. The value of such an answer may have been deleted meanwhile. What
        the processes of a host share ends with its owner; so with ``host="auto"`` such a Node has a
        cache of its own.
    label
        Name of this Node in Global's statistics, at most 256 printable characters. Default: host
        name and process id.
    on_deletion
        Function that is called with each key that was cached and has been deleted. It is called in
        the background thread and must return quickly. It is not called for the keys of a cache
        that is dropped as a whole, after too many missed deletions or a restart of Global.
    pickle
        Whether values that no other codec takes are pickled, and pickled values are read.
        Unpickling runs code that the writer of the value chose: use it only among programs that
        trust each other.
    codecs
        A :class:`dstore.Codec` for each further type of values.
    shm
        Folder in memory (a tmpfs) for large values, which the processes of this host and user
        share. Default: ``$DSTORE_SHM``, else ``/dev/shm`` if it exists. ``""``: every process keeps
        copies of its own.
    shm_limit
        Bytes that copies in that folder may take on this host. Beyond it, the copies that were
        read least recently are evicted. Default: half of the file system.

    Raises
    ------
    AddressError
        ``address``, or ``$DSTORE_GLOBAL``, is malformed.
    BadConnectFile
        The file ``connect``, or ``$DSTORE_CONNECT``, is missing or damaged, or other users may read
        or write it.
    TypeError
        A setting has a wrong type, or there is no setting of that name.
    ValueError
        A setting is out of its range, ``codecs`` contradict each other, or the folder ``shm`` or
        ``$DSTORE_SHM`` does not exist or is not safe.
    GlobalUnavailable
        The system has too few file descriptors or threads left.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        connect: Path | None = None,
        timeout: float = config.TIMEOUT_DEFAULT,
        host: str | None = None,
        cache_bytes: int | None = None,
        stale_ok: bool = False,
        label: str = "",
        on_deletion: Callable[[str | bytes], None] | None = None,
        pickle: bool = False,
        codecs: Iterable[Codec] = (),
        shm: Path | None = None,
        shm_limit: int | None = None,
    ) -> None:
        self.connect = _connect(connect, address)
        self._file = _file(self.connect, connect is None)
        self._tunnel = address is not None
        if address is None and self._file is not None:
            self.address = self._file.address
        else:
            self.address = _address(address)
        self.timeout = timeout_checked(timeout)
        self.host = _host(host)
        self.cache_bytes: int | None = checks.optional(
            checks.count, "cache_bytes", cache_bytes, 0, config.SIZE_MAX
        )
        self.stale_ok = checks.flag("stale_ok", stale_ok)
        self.label = checks.text("label", label, config.LABEL_MAX)
        self.on_deletion = on_deletion
        checks.optional(checks.function, "on_deletion", on_deletion)
        self.pickle = checks.flag("pickle", pickle)
        self.codecs: tuple[Codec, ...] = tuple(checks.several("codecs", codecs, "Codec"))
        self.shm: str | None = checks.optional(checks.path, "shm", shm)
        self.shm_limit: int | None = checks.optional(
            checks.count, "shm_limit", shm_limit, 0, config.SIZE_MAX
        )

    def at(self, address: str) -> Settings:
        """Return these settings with one address."""
        made = Settings.__new__(Settings)  # no copy: that would leave out the connect file
        vars(made).update(vars(self), address=address)
        return made

    @property
    def each_address(self) -> list[str]:
        """The addresses, of which there are several with several Globals."""
        return addresses.check_several(self.address)

    @property
    def looking(self) -> bool:
        """Whether the Node uses the membership of its host if there is one."""
        return self.host == "require" or (self.host == "auto" and not self.stale_ok)

    @property
    def _loaded(self) -> Connect | None:
        if self._file is None and self.connect is not None:  # these settings were unpickled
            self._file = load(self.connect)
        return self._file

    @property
    def keys(self) -> ClientKeys | None:
        """The keys of the connect file, None without one. Raises BadConnectFile."""
        connect = self._loaded
        return None if connect is None else connect.keys

    def read_keys(self) -> ClientKeys:
        """Read the keys of the connect file as it is now. Raises BadConnectFile."""
        if self.connect is None:
            raise BadConnectFile("these settings name no connect file")
        self._file = load(self.connect)
        return self._file.keys

    @property
    def prefixes(self) -> list[str]:
        """The prefixes in the connect file; none: all keys are seen. Raises BadConnectFile."""
        connect = self._loaded
        return [] if connect is None else connect.prefixes

    @property
    def addresses(self) -> Addresses:
        """Which keys are content addresses, also below prefixes. Raises BadConnectFile."""
        return Addresses(self.prefixes)

    def _compared(self) -> dict[str, Any]:
        """Return what makes settings equal: of a connect file its path alone."""
        left_out = {"_file"}
        if self.connect is None:
            left_out.add("_tunnel")
        elif not self._tunnel:
            left_out.add("address")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self._compared() == other._compared()

    __hash__ = None  # type: ignore[assignment]  # a callback or a codec may have no hash

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}  # where they are unpickled, the file is read

    def __repr__(self) -> str:
        shown = (
            f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_")
        )
        return f"Settings({', '.join(shown)})"


_NAMES = tuple(inspect.signature(Settings).parameters)


def timeout_checked(seconds: float) -> float:
    """Check the timeout of a Node, in seconds. Raises TypeError and ValueError."""
    return checks.seconds("timeout", seconds, config.TIMEOUT_MIN, config.TIMEOUT_MAX)


def _connect(given: Path | None, address: str | None) -> str | None:
    """Return the absolute path of the connect file, None for none."""
    path: str | None = checks.optional(checks.path, "connect", given)
    if path is None and address is None:
        path = config.connect_default()
    if path == "":
        raise ValueError("connect is empty; name a connect file, or leave it out")
    return None if path is None else os.path.abspath(path)


def _file(path: str | None, from_variable: bool) -> Connect | None:
    try:
        return None if path is None else load(path)
    except BadConnectFile as error:
        if from_variable:
            raise BadConnectFile(f"${config.CONNECT_VARIABLE}: {error}") from None
        raise


def _address(given: str | None) -> str:
    if given is not None:
        return ",".join(addresses.check_several(checks.text("address", given)))
    try:
        return ",".join(addresses.check_several(config.address_default()))
    except AddressError as error:
        raise AddressError(f"${config.ADDRESS_VARIABLE}: {error}") from None


def _host(given: str | None) -> str:
    chosen = config.host_default() if given is None else checks.text("host", given)
    if chosen not in config.HOST_CHOICES:
        name = "host" if given is not None else f"${config.HOST_VARIABLE}"
        raise ValueError(f"{name} is {' or '.join(map(repr, config.HOST_CHOICES))}, not {chosen!r}")
    return chosen


def initializer_with(
    settings: Callable[P, Settings],
) -> Callable[[Callable[[Self, Settings], None]], Callable[Concatenate[Self, P], None]]:
    """Decorate an ``__init__`` that takes Settings so that it takes them as keyword arguments.

    Used as ``@initializer_with(Settings)``: the argument gives type checkers the signature.
    """

    def decorate(
        initialize: Callable[[Self, Settings], None],
    ) -> Callable[Concatenate[Self, P], None]:
        def __init__(self: Self, /, *given: P.args, **named: P.kwargs) -> None:  # noqa: N807
            _check_names(type(self).__name__, given, named)
            initialize(self, settings(*given, **named))

        # The signature has ``self``, as Settings' own initializer does.
        functools.update_wrapper(__init__, Settings.__init__, ("__annotations__",), ())
        __init__.__doc__ = Settings.__doc__
        __init__.__qualname__ = initialize.__qualname__
        __init__.__module__ = initialize.__module__
        return __init__

    return decorate


def function_with(
    settings: Callable[P, Settings],
) -> Callable[[Callable[[Settings], R]], Callable[P, R]]:
    """Decorate a function that takes Settings so that it takes them as keyword arguments.

    Used as ``@function_with(Settings)``. The documentation of the settings is added to its own.
    """

    def decorate(function: Callable[[Settings], R]) -> Callable[P, R]:
        def call(*given: P.args, **named: P.kwargs) -> R:
            _check_names(function.__name__, given, named)
            return function(settings(*given, **named))

        functools.update_wrapper(call, function)
        call.__annotations__ = {
            **get_type_hints(Settings.__init__),  # resolved here, where their names are known
            "return": function.__annotations__["return"],
        }
        call.__signature__ = inspect.signature(Settings).replace(  # type: ignore[attr-defined]
            return_annotation=function.__annotations__["return"]
        )
        if function.__doc__ and Settings.__doc__:  # python -OO has no docstrings
            call.__doc__ = "\n\n".join(map(inspect.cleandoc, (function.__doc__, Settings.__doc__)))
        return call

    return decorate


def _check_names(caller: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Raise a TypeError that names what the program called, rather than Settings."""
    unknown = named.keys() - set(_NAMES)
    if unknown:
        raise TypeError(
            f"{caller}() has no setting {min(unknown)!r}; there are {', '.join(_NAMES[1:])}"
        )
    if len(given) > 1:
        raise TypeError(f"{caller}() takes the address; all else is given by name, as timeout=5")
