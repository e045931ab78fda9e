"""What a Node does, command by command, for any host: threads, event loops, greenlets.

A command is a pair of functions. ``start`` begins an operation of the core, with the LocalState
that the host has locked; ``finish`` turns the operation's result into what the caller gets. The
arguments are checked and encoded before that, when the command is made. There is no socket, lock
or thread here. Large values and files are written by :mod:`dstore.client.writing`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from dstore import checks, config
from dstore.client import files, translate
from dstore.client.cluster.routing import Map, map_of
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
from dstore.protocol.partitions import PARTITIONS, to_bitmap

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

    The rest is for several Globals. ``keys`` are those that the command is about, or ``locate``
    finds the one, which takes some time. It may be carried out again, at another Global, if it was
    not at the first. Only if it reads, ``within`` returns
    the same command with another timeout: then it may be carried out any number of times.
    ``lasting``: it may take any time. A command that may be divided has ``part``, which returns the
    command for some of the keys; ``merge`` makes the result, for ``finish``, of those of all parts.
    ``chunk`` returns the first keys that go into one message of a write, which is executed as a
    whole or not at all.
    """

    start: Start[Any]
    finish: Callable[[Any], T] = lambda result: result
    abort: Callable[[BaseException], None] | None = None
    keys: Collection[Key] = ()
    locate: Callable[[], Key] | None = None
    within: Callable[[float], Command[T]] | None = None
    lasting: bool = False
    part: Callable[[Sequence[Key]], Command[Any]] | None = None
    chunk: Callable[[Sequence[Key]], Sequence[Key]] | None = None
    merge: Callable[[list[Any]], Any] | None = None


class DirectCommand(Command[T]):
    """A command that begins on the direct path, within ``timeout`` seconds.

    ``begin`` makes the operation, given its deadline. ``reads`` says whether it only reads.
    """

    def __init__(
        self,
        begin: Callable[[LocalState, float], Direct[Any]],
        timeout: float,
        finish: Callable[[Any], T],
        keys: Collection[Key],
        reads: bool = False,
    ) -> None:
        self.begin = begin
        self.timeout = timeout
        # Not methods, which would make the command refer to itself.
        self.start = lambda state, _, now: begin(state, now + timeout).run(now)
        self.finish = finish
        self.abort = None
        self.keys = keys
        if reads:
            self.within = lambda seconds: DirectCommand(begin, seconds, finish, keys, reads)


def _reading(
    begin: Callable[[LocalState, float, float], Operation[Any]],
    timeout: float,
    finish: Callable[[Any], T],
    keys: Collection[Key] = (),
) -> Command[T]:
    """Return a command that reads: ``begin`` takes the state, the time and the deadline."""
    return Command(
        lambda state, _, now: begin(state, now, now + timeout),
        finish,
        keys=keys,
        within=lambda seconds: _reading(begin, seconds, finish, keys),
    )


def _first_message(keys: Sequence[Key], values: Mapping[Key, Encoded]) -> Sequence[Key]:
    """Return the first keys that one SET can bind; one that has a large value is alone."""
    size = 0
    for count, key in enumerate(keys[: config.KEYS_PER_MESSAGE_MAX]):
        size += values[key].size + config.ITEM_BYTES_MAX
        large = values[key].size >= config.LARGE_FROM_DEFAULT
        if count and (large or size > config.BATCH_BYTES_MAX):
            return keys[:count]
        if large:
            return keys[:1]
    return keys[: config.KEYS_PER_MESSAGE_MAX]


def _read_together(readings: list[Reading]) -> Reading:
    """Return one reading for several, which are of different keys."""
    together = readings[0]
    for each in readings[1:]:
        together.local.update(each.local)
        together.fetched.update(each.fetched)
    return together


def _united(results: list[dict[Any, Any]]) -> dict[Any, Any]:
    """Return one result for several parts of a command, which are about different keys."""
    return {key: value for result in results for key, value in result.items()}


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
            lambda state, deadline: GetOne(state, name, deadline, options),
            self.timeout,
            finish,
            (name,),
            reads=True,
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
        options = self.options

        def finish(reading: Reading) -> dict[Any, Any]:
            self._count(len(reading.local), len(wanted))
            found = {**reading.local, **reading.fetched}
            opened = self._opened
            return {key: opened(found[name]) for key, name in names.items() if name in found}

        def part(keys: Collection[Key], finish: Callable[[Reading], T]) -> Command[T]:
            def within(timeout: float) -> Command[T]:
                command = DirectCommand(
                    lambda state, deadline: GetMany(
                        state, Reading(keys, options, timeout), deadline
                    ),
                    timeout,
                    finish,
                    keys,
                )
                command.within = within
                return command

            return within(self.timeout)

        command = part(wanted, finish)
        command.part = lambda keys: part(keys, lambda reading: reading)
        command.merge = _read_together
        return command

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

        return Command(start, abort=abort, keys=(name,))

    def wait(self, key: str | bytes, timeout: float | None = None) -> Command[Any]:
        name = translate.key_name(key)
        span, stall_timeout = float("inf"), self.timeout
        if timeout is not None:
            span = checks.seconds("timeout", timeout, 0, config.WAIT_MAX)

        end: float | None = None  # counted from when it first begins

        def timed_out() -> WaitTimedOut:
            return WaitTimedOut(f"{key!r} was not set within {span:g} seconds")

        def finish(one: One) -> Any:
            answer, local = one
            if answer is None:
                raise timed_out()
            self._count(local, 1)
            return self._opened(answer)

        def within(stall_timeout: float) -> Command[Any]:
            def start(state: LocalState, _: LargeValues, now: float) -> Operation[One]:
                nonlocal end
                if end is None:
                    end = now + span
                elif now >= end:  # Globals have refused it until now
                    raise timed_out()
                return operations.wait(state, name, now, end, stall_timeout)

            return Command(start, finish, keys=(name,), within=within, lasting=True)

        return within(stall_timeout)

    def page(
        self, prefix: str, after: str, numbers: Collection[int] = range(PARTITIONS)
    ) -> Command[Any]:
        """Read the next keys that begin with ``prefix``, in these partitions."""
        limit, wanted = config.KEYS_PAGE_DEFAULT, to_bitmap(numbers)
        return _reading(
            lambda state, now, deadline: operations.scan(
                state, prefix, after, limit, now, deadline, wanted
            ),
            self.timeout,
            lambda reply: reply,
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

        command = self._write(values, replace, ttl, finish)
        command.part = lambda keys: self._write(
            {key: values[key] for key in keys}, replace, ttl, lambda outcomes: outcomes
        )
        command.chunk = lambda keys: _first_message(keys, values)
        command.merge = _united
        return command

    def put(self, value: Any, *, ttl: float | None = None) -> Command[str]:
        ttl = _checked_ttl(ttl)
        encoded = self.codecs.encode(value)
        if encoded.size >= config.LARGE_FROM_DEFAULT:
            writing = self._writing(False, ttl, None)
            return Command(
                partial(writing.put, encoded),
                abort=writing.abort,
                locate=lambda: writing.address_of(encoded),
            )
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
            return Command(partial(writing.values, values), finish, writing.abort, values.keys())
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

        return DirectCommand(begin, self.timeout, finish_written, values.keys())

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

        command = self._delete(list(names.values()), wait, finish)
        command.part = lambda keys: self._delete(list(keys), wait, lambda results: results)
        command.chunk = lambda keys: keys[: config.KEYS_PER_MESSAGE_MAX]
        command.merge = _united
        return command

    def _delete(
        self, keys: list[Key], wait: bool, finish: Callable[[dict[Key, DelResult]], T]
    ) -> Command[T]:
        return DirectCommand(
            lambda state, deadline: Delete(state, keys, wait, deadline), self.timeout, finish, keys
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
            lambda state, _, now: operations.expire(state, name, ttl, now, now + timeout),
            finish,
            keys=(name,),
        )

    def ttl(self, key: str | bytes) -> Command[float | None]:
        name = translate.key_name(key)

        def finish(reply: TtlReply) -> float | None:
            if not reply.bound:
                raise KeyMissing(key)
            return reply.left

        return _reading(
            lambda state, now, deadline: operations.ttl(state, name, now, deadline),
            self.timeout,
            finish,
            (name,),
        )

    # ---- files ----------------------------------------------------------------------------

    def put_file(
        self, path: files.Path, *, ttl: float | None = None, progress: Progress | None = None
    ) -> Command[str]:
        path = checks.path("path", path)
        ttl = _checked_ttl(ttl)
        checks.optional(checks.function, "progress", progress)
        writing = self._writing(False, ttl, progress)
        return Command(
            partial(writing.put_file, path),
            abort=writing.abort,
            locate=lambda: writing.address_of_file(path),
        )

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
            (name,),
        )

    # ---- the rest -------------------------------------------------------------------------

    def join(self, timeout: float | None = None) -> Command[None]:
        span = self.timeout
        if timeout is not None:
            span = checks.seconds("timeout", timeout, 0, config.TIMEOUT_MAX)

        return _reading(operations.join, span, lambda _: None)

    def global_stats(self) -> Command[dict[str, Any]]:
        return _reading(operations.stats, self.timeout, lambda metrics: metrics)

    def map(self, timeout: float) -> Command[Map]:
        """Ask a Global for the map of its cluster, within ``timeout`` seconds."""
        return _reading(
            operations.ask_map,
            timeout,
            map_of,
        )


def _checked_ttl(ttl: Any) -> float | None:
    checked: float | None = checks.optional(checks.lifetime, "ttl", ttl, config.TTL_MAX)
    return checked


def _check_free(key: str | bytes, outcome: SetOutcome) -> None:
    if outcome.status is SetStatus.OCCUPIED:
        raise KeyOccupied(key, local=outcome.local, updated=outcome.updated)
