"""What a Node does, command by command, for any host: threads, event loops, greenlets.

A command is a pair of functions. ``start`` begins an operation of the core, with the LocalState
that the host has locked; ``finish`` turns the operation's result into what the caller gets. The
arguments are checked and encoded before that, when the command is made. There is no socket, lock
or thread here. Large values and files are written by :mod:`dstore.client.writing`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from dstore import checks, config
from dstore.client import files, translate
from dstore.client.files import Fetched, Progress
from dstore.client.hits import RAISE
from dstore.client.large import LargeValues, check_whole, random16
from dstore.client.translate import Deletion
from dstore.client.writing import Outcomes, Start, Writing, check_size, check_written, digest
from dstore.codecs import Codecs, Encoded, check_has_bytes
from dstore.core.local import operations
from dstore.core.local.membership import Entry
from dstore.core.local.operations import (
    Answer,
    Delete,
    Direct,
    GetMany,
    GetOne,
    One,
    Reading,
    ReadOptions,
    SetOutcome,
    Store,
)
from dstore.core.local.state import LocalState
from dstore.core.local.steps import Operation, Work
from dstore.errors import (
    InvalidKey,
    KeyMissing,
    KeyOccupied,
    RequestRefused,
    StoreFull,
    WaitTimedOut,
)
from dstore.protocol.content import PLAIN, Addresses
from dstore.protocol.keys import public
from dstore.protocol.messages import (
    DelResult,
    ExpireStatus,
    Key,
    Large,
    SetItem,
    SetStatus,
    Stored,
    TtlReply,
)

T = TypeVar("T")


class Lookup(NamedTuple):
    """A value, whether this Local answered, and whether it holds the value now."""

    value: Any
    from_local: bool
    cached: bool


@dataclass(eq=False)
class Command(Generic[T]):
    """What a host carries out: ``start`` begins the operation, ``finish`` takes its result.

    ``abort`` undoes what the command has begun outside of the core, such as a file that is half
    written. The host calls it with the error after the command has failed or was cancelled, without
    its lock, when nothing works for the command any more.
    """

    start: Start[Any]
    finish: Callable[[Any], T] = lambda result: result
    abort: Callable[[BaseException], None] | None = None


class DirectCommand(Command[T]):
    """A command that begins on the direct path, within ``timeout`` seconds.

    ``begin`` makes the operation, given its deadline.
    """

    def __init__(
        self,
        begin: Callable[[LocalState, float], Direct[Any]],
        timeout: float,
        finish: Callable[[Any], T],
    ) -> None:
        self.begin = begin
        self.timeout = timeout
        # Not a method, which would make the command refer to itself.
        self.start = lambda state, _, now: begin(state, now + timeout).run(now)
        self.finish = finish
        self.abort = None


class Commands:
    """The commands of one Node. ``timeout`` is in seconds; see :class:`dstore.Node`.

    ``addresses`` are its content addresses.
    """

    def __init__(
        self, codecs: Codecs, timeout: float, stale_ok: bool, addresses: Addresses = PLAIN
    ) -> None:
        self.codecs = codecs
        self.addresses = addresses
        self.timeout = timeout
        self.options = ReadOptions(stale_ok)
        self.hits = 0
        self.misses = 0

    # ---- reading --------------------------------------------------------------------------

    def opened(self, entry: Entry) -> Any:
        """Return the value of an entry."""
        value = entry.value
        if type(value) is not Stored:
            return value
        if entry.shared is not None:
            check_whole(entry, value)
        opened = self.codecs.decode(value, sound=entry.sound)
        entry.sound = True
        return opened

    def _opened(self, answer: Answer) -> Any:
        return self.codecs.decode(answer) if isinstance(answer, Stored) else self.opened(answer)

    def _count(self, hits: int, asked: int) -> None:
        self.hits += hits
        self.misses += asked - hits

    def get(self, key: str | bytes, default: Any) -> Command[Any]:
        return self._one(key, lambda one: self.got(key, default, *one), self.options)

    def got(self, key: str | bytes, default: Any, answer: Answer | None, local: bool) -> Any:
        """Return what ``get`` returns, given the answer and whether it was cached here."""
        self._count(local, 1)
        if answer is not None:
            return self._opened(answer)
        if default is RAISE:
            raise KeyMissing(key)
        return default

    def _one(
        self, key: str | bytes, finish: Callable[[One], T], options: ReadOptions
    ) -> Command[T]:
        name = translate.key_name(key)
        return DirectCommand(
            lambda state, deadline: GetOne(state, name, deadline, options), self.timeout, finish
        )

    def _read(self, key: str | bytes, finish: Callable[[Answer, bool], T]) -> Command[T]:
        """Read a key, and call ``finish`` with the answer and whether it was cached here."""

        def finish_found(one: One) -> T:
            answer, local = one
            self._count(local, 1)
            if answer is None:
                raise KeyMissing(key)
            return finish(answer, local)

        return self._one(key, finish_found, self.options)

    def lookup(self, key: str | bytes) -> Command[Lookup]:
        return self._read(
            key,
            lambda answer, local: Lookup(self._opened(answer), local, type(answer) is not Stored),
        )

    def get_buffer(self, key: str | bytes) -> Command[memoryview]:
        def finish(answer: Answer, _: bool) -> memoryview:
            stored = self._stored(answer)
            assert not isinstance(stored.body, Large)
            return memoryview(stored.body)

        return self._read(key, finish)

    def contains(self, key: str | bytes) -> Command[bool]:
        def finish(one: One) -> bool:
            answer, local = one
            self._count(local, 1)
            return answer is not None

        return self._one(key, finish, self.options._replace(bodies=False))

    def _stored(self, answer: Answer) -> Stored:
        """Return an answer as bytes, whatever their codec. Raises what check_has_bytes does."""
        if isinstance(answer, Stored):
            check_has_bytes(answer)
            return answer
        value = answer.value
        if type(value) is Stored:
            check_has_bytes(value)
            check_whole(answer, value)
            return value
        encoded = self.codecs.encode(value)  # a small value, which was kept as it was decoded
        return Stored(b"", encoded.codec, encoded.joined())

    def get_many(self, keys: Iterable[str | bytes]) -> Command[dict[Any, Any]]:
        names = translate.key_names(checks.several("keys", keys))
        wanted = dict.fromkeys(names.values())

        def finish(reading: Reading) -> dict[Any, Any]:
            self._count(len(reading.local), len(wanted))
            found = {**reading.local, **reading.fetched}
            opened = self._opened
            return {key: opened(found[name]) for key, name in names.items() if name in found}

        timeout, options = self.timeout, self.options
        return DirectCommand(
            lambda state, deadline: GetMany(state, Reading(wanted, options, timeout), deadline),
            timeout,
            finish,
        )

    def get_file(
        self, key: str | bytes, path: files.Path, *, progress: Progress | None = None
    ) -> Command[Fetched]:
        path = checks.path("path", path)
        checks.optional(checks.function, "progress", progress)
        name = translate.key_name(key)
        timeout = self.timeout
        stack = contextlib.ExitStack()

        def start(state: LocalState, _: LargeValues, now: float) -> Operation[Fetched]:
            opened = yield Work(lambda: stack.enter_context(files.writing(path, progress)))
            file: files.Destination = opened.value
            options = self.options._replace(into=file.write, report=progress)
            until = opened.now + timeout
            answer, local = yield from operations.get_one(state, name, opened.now, until, options)
            self._count(local, 1)
            if answer is None:
                raise KeyMissing(key)
            stored = self._stored(answer)

            def complete() -> None:
                if not isinstance(stored.body, Large):
                    file.write_all(memoryview(stored.body))
                file.end_at(stored.size)

            yield Work(complete)
            yield Work(stack.close)  # a step of its own: if it is cancelled before, no file appears
            return Fetched(stored.codec, stored.size)

        def abort(error: BaseException) -> None:
            stack.__exit__(type(error), error, error.__traceback__)

        return Command(start, abort=abort)

    def wait(self, key: str | bytes, timeout: float | None = None) -> Command[Any]:
        name = translate.key_name(key)
        span, stall_timeout = float("inf"), self.timeout
        if timeout is not None:
            span = checks.seconds("timeout", timeout, 0, config.WAIT_MAX)

        def finish(one: One) -> Any:
            answer, local = one
            if answer is None:
                raise WaitTimedOut(f"{key!r} was not set within {span:g} seconds")
            self._count(local, 1)
            return self._opened(answer)

        return Command(
            lambda state, _, now: operations.wait(state, name, now, now + span, stall_timeout),
            finish,
        )

    def page(self, prefix: str, after: str) -> Command[Any]:
        timeout, limit = self.timeout, config.KEYS_PAGE_DEFAULT
        return Command(
            lambda state, _, now: operations.scan(state, prefix, after, limit, now, now + timeout),
        )

    # ---- writing --------------------------------------------------------------------------

    def set(
        self, key: str | bytes, value: Any, *, replace: bool = False, ttl: float | None = None
    ) -> Command[None]:
        checks.flag("replace", replace)
        ttl = _checked_ttl(ttl)
        name = translate.settable(key, self.addresses)
        values = {name: self.codecs.encode(value)}
        return self._write(values, replace, ttl, lambda outcomes: _check_free(key, outcomes[name]))

    def set_many(
        self, mapping: Mapping[Any, Any], *, replace: bool = False, ttl: float | None = None
    ) -> Command[list[Any]]:
        checks.flag("replace", replace)
        ttl = _checked_ttl(ttl)
        mapping = checks.mapping("mapping", mapping)
        names = translate.key_names(mapping, translate.settable)
        values = {names[key]: self.codecs.encode(value) for key, value in mapping.items()}
        if len(values) < len(names):
            twice = next(name for name, count in Counter(names.values()).items() if count > 1)
            raise InvalidKey(
                f"the key {public(twice)!r} is there twice, by objects that are not equal, such as "
                "text and bytes; give it once"
            )

        def finish(outcomes: Outcomes) -> list[Any]:
            return [key for key in mapping if outcomes[names[key]].status is SetStatus.OCCUPIED]

        return self._write(values, replace, ttl, finish)

    def put(self, value: Any, *, ttl: float | None = None) -> Command[str]:
        ttl = _checked_ttl(ttl)
        encoded = self.codecs.encode(value)
        if encoded.size >= config.LARGE_FROM_DEFAULT:
            writing = self._writing(False, ttl, None)
            return Command(partial(writing.put, encoded), abort=writing.abort)
        key = self.addresses.of(digest(encoded))
        return self._write({key: encoded}, False, ttl, lambda _: key)

    def _writing(self, replace: bool, ttl: float | None, progress: Progress | None) -> Writing:
        return Writing(self.timeout, replace, ttl, progress, self._count, self.addresses)

    def _write(
        self,
        values: Mapping[Key, Encoded],
        replace: bool,
        ttl: float | None,
        finish: Callable[[Outcomes], T],
    ) -> Command[T]:
        if max((value.size for value in values.values()), default=0) >= config.LARGE_FROM_MIN:
            writing = self._writing(replace, ttl, None)
            return Command(partial(writing.values, values), finish, writing.abort)
        items = [
            SetItem(key, Stored(random16(), value.codec, value.joined()))
            for key, value in values.items()
        ]
        limit = config.VALUE_LIMIT_DEFAULT

        def begin(state: LocalState, deadline: float) -> Store:
            nonlocal limit
            limit = state.value_limit
            for item in items:
                check_size(limit, item.stored.size)
            return Store(state, items, replace, deadline, ttl)

        def finish_written(outcomes: Outcomes) -> T:
            check_written(limit, items, outcomes)
            return finish(outcomes)

        return DirectCommand(begin, self.timeout, finish_written)

    def delete(self, key: str | bytes, *, wait: bool = True) -> Command[Deletion]:
        checks.flag("wait", wait)
        name = translate.key_name(key)

        def finish(results: dict[Key, DelResult]) -> Deletion:
            deletion = translate.deletion(results[name])
            if deletion is None:
                raise KeyMissing(key)
            return deletion

        return self._delete([name], wait, finish)

    def delete_many(
        self, keys: Iterable[str | bytes], *, wait: bool = True
    ) -> Command[dict[Any, Deletion]]:
        checks.flag("wait", wait)
        names = translate.key_names(checks.several("keys", keys))

        def finish(results: dict[Key, DelResult]) -> dict[Any, Deletion]:
            deletions = {key: translate.deletion(results[name]) for key, name in names.items()}
            return {key: deletion for key, deletion in deletions.items() if deletion is not None}

        return self._delete(list(names.values()), wait, finish)

    def _delete(
        self, keys: list[Key], wait: bool, finish: Callable[[dict[Key, DelResult]], T]
    ) -> Command[T]:
        return DirectCommand(
            lambda state, deadline: Delete(state, keys, wait, deadline), self.timeout, finish
        )

    # ---- expiring -------------------------------------------------------------------------

    def expire(self, key: str | bytes, seconds: float) -> Command[None]:
        return self._expire(key, checks.lifetime("seconds", seconds, config.TTL_MAX))

    def persist(self, key: str | bytes) -> Command[None]:
        return self._expire(key, None)

    def _expire(self, key: str | bytes, ttl: float | None) -> Command[None]:
        name = translate.key_name(key)
        timeout = self.timeout

        def finish(status: ExpireStatus) -> None:
            if status is ExpireStatus.MISSING:
                raise KeyMissing(key)
            if status is ExpireStatus.FULL:
                raise StoreFull(
                    f"Global has no room for the deadline of {key!r}; delete something, or start "
                    "it with a higher --memory-limit"
                )
            if status is ExpireStatus.FAILED:
                raise RequestRefused(f"Global's storage failed; {key!r} expires as it did before")

        return Command(
            lambda state, _, now: operations.expire(state, name, ttl, now, now + timeout), finish
        )

    def ttl(self, key: str | bytes) -> Command[float | None]:
        name = translate.key_name(key)
        timeout = self.timeout

        def finish(reply: TtlReply) -> float | None:
            if not reply.bound:
                raise KeyMissing(key)
            return reply.left

        return Command(
            lambda state, _, now: operations.ttl(state, name, now, now + timeout), finish
        )

    # ---- files ----------------------------------------------------------------------------

    def put_file(
        self, path: files.Path, *, ttl: float | None = None, progress: Progress | None = None
    ) -> Command[str]:
        path = checks.path("path", path)
        ttl = _checked_ttl(ttl)
        checks.optional(checks.function, "progress", progress)
        writing = self._writing(False, ttl, progress)
        return Command(partial(writing.put_file, path), abort=writing.abort)

    def set_file(
        self,
        key: str | bytes,
        path: files.Path,
        *,
        replace: bool = False,
        ttl: float | None = None,
        progress: Progress | None = None,
    ) -> Command[None]:
        path = checks.path("path", path)
        checks.flag("replace", replace)
        ttl = _checked_ttl(ttl)
        checks.optional(checks.function, "progress", progress)
        name = translate.settable(key, self.addresses)
        writing = self._writing(replace, ttl, progress)

        return Command(
            partial(writing.set_file, name, path, key),
            lambda outcome: _check_free(key, outcome),
            writing.abort,
        )

    # ---- the rest -------------------------------------------------------------------------

    def join(self, timeout: float | None = None) -> Command[None]:
        span = self.timeout
        if timeout is not None:
            span = checks.seconds("timeout", timeout, 0, config.TIMEOUT_MAX)

        return Command(
            lambda state, _, now: operations.join(state, now, now + span), lambda _: None
        )

    def global_stats(self) -> Command[dict[str, Any]]:
        timeout = self.timeout
        return Command(lambda state, _, now: operations.stats(state, now, now + timeout))


def _checked_ttl(ttl: Any) -> float | None:
    checked: float | None = checks.optional(checks.lifetime, "ttl", ttl, config.TTL_MAX)
    return checked


def _check_free(key: str | bytes, outcome: SetOutcome) -> None:
    if outcome.status is SetStatus.OCCUPIED:
        raise KeyOccupied(key, local=outcome.local, updated=outcome.updated)
