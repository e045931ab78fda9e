"""The settings of a Node: their names, types, defaults, checks and documentation.

They stand here once. :class:`dstore.Node`, :class:`dstore.AsyncNode` and :func:`dstore.connect`
take them as keyword arguments by means of :func:`initializer_with` and :func:`function_with`, so
that type checkers, editors, ``inspect.signature`` and ``help`` show the signature of
:class:`Settings` for each of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from dstore import checks, config
from dstore.client.files import Path
from dstore.codecs import Codec
from dstore.errors import AddressError
from dstore.transport import addresses

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
        connection is lost; all its addresses are tried, IPv6 and IPv4.
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
        Bytes of memory that the cache of this process may take. Beyond it, entries that have not
        been read recently are evicted (SIEVE). Default: 256 MiB, or beside a host cache a tenth of
        what that holds, but 3 MiB in any case. After a restart of Global it may take as much once
        more, until Global has said which of the former values are unchanged.
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

    @property
    def looking(self) -> bool:
        """Whether the Node uses the membership of its host if there is one."""
        return self.host == "require" or (self.host == "auto" and not self.stale_ok)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # a callback or a codec may have no hash

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


_NAMES = tuple(inspect.signature(Settings).parameters)


def timeout_checked(seconds: float) -> float:
    """Check the timeout of a Node, in seconds. Raises TypeError and ValueError."""
    return checks.seconds("timeout", seconds, config.TIMEOUT_MIN, config.TIMEOUT_MAX)


def _address(given: str | None) -> str:
    if given is not None:
        return addresses.check(checks.text("address", given))
    try:
        return addresses.check(config.address_default())
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
