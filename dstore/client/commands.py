"""What a Node does, command by command, whoever drives it: threads or an event loop.

Each command is a generator. It yields operations of the core to be run, and work that takes its time
(copying, hashing, files) to be done, and is resumed with their results; its return value is the
result. Here a program's keys and values are turned into the protocol's and back; there is no
socket, lock or thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

from dstore import checks, codecs, config
from dstore.client import files, translate
from dstore.client.files import Fetched, Progress
from dstore.client.large import LargeValues, Source, check_whole, random16
from dstore.client.translate import Deletion
from dstore.codecs import Codecs, Encoded
from dstore.core.local import operations
from dstore.core.local.cache import Entry
from dstore.core.local.operations import Answer, Operation
from dstore.core.local.state import LocalState
from dstore.core.local.transfer import Body, Write
from dstore.errors import InvalidKey, KeyMissing, KeyOccupied, ValueTooLarge, WaitTimedOut
from dstore.protocol import content
from dstore.protocol.keys import public
from dstore.protocol.messages import DelResult, Key, Large, SetItem, SetStatus, Stored

RAISE: Any = object()
"""Stands for no default."""
T = TypeVar("T")


class Lookup(NamedTuple):
    """A value, whether this Local answered, and whether it holds the value now."""

    value: Any
    from_local: bool
    cached: bool


class Run(NamedTuple):
    """Carry out an operation.

    ``bodies`` has the bytes, by token, of large values that it writes; ``progress`` is told how far
    their transfers have come.
    """

    start: Callable[[LocalState, float], Operation[Any]]
    bodies: Mapping[bytes, Body] = {}
    progress: Progress | None = None


class Work(NamedTuple):
    """Call a function with the Local's state and its large values.

    It may take a while, unless it is ``quick``: then an event loop does not mind.
    """

    do: Callable[[LocalState, LargeValues], Any]
    quick: bool = False


LARGE_FROM = Work(lambda state, large: state.large_from, quick=True)
"""Gives the size from which on Global takes values for large."""
Command: TypeAlias = Generator[Run | Work, Any, T]


class Commands:
    """The commands of one Node. ``timeout`` is in seconds; see :class:`dstore.Node`."""

    def __init__(
        self,
        codecs: Codecs,
        timeout: float,
        stale_ok: bool,
    ) -> None:
        self.codecs = codecs
        self.timeout = timeout
        self.stale_ok = stale_ok
        self.hits = 0
        self.misses = 0

    # ---- reading --------------------------------------------------------------------------

    def opened(self, entry: Entry) -> Any:
        """The value of an entry; a small immutable one is kept, so that it is decoded once."""
        value = entry.value
        if type(value) is not Stored:
            return value
        check_whole(entry, value)
        value, keep = self.codecs.decode(value, sound=entry.sound)
        if keep:
            entry.value = value
        entry.sound = True
        return value

    def _answered(self, answer: Answer) -> Any:
        if answer.entry is not None:
            return self.opened(answer.entry)
        assert answer.stored is not None
        return self.codecs.decode(answer.stored)[0]

    def read(
        self,
        keys: Iterable[Key],
        bodies: bool = True,
        into: Write | None = None,
        progress: Progress | None = None,
    ) -> Command[dict[Key, Answer]]:
        wanted = dict.fromkeys(keys)
        answers: dict[Key, Answer] = yield Run(
            lambda state, now: operations.get(
                state, wanted, now, now + self.timeout, self.stale_ok, bodies, into
            ),
            progress=progress,
        )
        hits = 0
        for answer in answers.values():
            hits += answer.from_local
        self.hits += hits
        self.misses += len(wanted) - hits
        return answers

    def _read_one(self, key: str | bytes) -> Command[Answer]:
        name = translate.key_name(key)
        answers = yield from self.read([name])
        if name not in answers:
            raise KeyMissing(key)
        return answers[name]

    def get(self, key: str | bytes, default: Any) -> Command[Any]:
        name = translate.key_name(key)
        answers = yield from self.read([name])
        if name in answers:
            return self._answered(answers[name])
        if default is RAISE:
            raise KeyMissing(key)
        return default

    def lookup(self, key: str | bytes) -> Command[Lookup]:
        answer = yield from self._read_one(key)
        return Lookup(self._answered(answer), answer.from_local, answer.entry is not None)

    def get_buffer(self, key: str | bytes) -> Command[memoryview]:
        stored = self._stored((yield from self._read_one(key)))
        assert not isinstance(stored.body, Large)
        return memoryview(stored.body)

    def _stored(self, answer: Answer) -> Stored:
        """The value as it is stored."""
        if answer.stored is not None:
            return answer.stored
        assert answer.entry is not None
        value = answer.entry.value
        if type(value) is Stored:
            check_whole(answer.entry, value)
            return value
        encoded = self.codecs.encode(value)  # a small one, which was kept as it was decoded
        return Stored(b"", encoded.codec, encoded.joined())

    def contains(self, key: str | bytes) -> Command[bool]:
        name = translate.key_name(key)
        answers = yield from self.read([name], bodies=False)
        return name in answers

    def get_many(self, keys: Iterable[str | bytes]) -> Command[dict[Any, Any]]:
        names = translate.key_names(checks.several("keys", keys))
        answers = yield from self.read(names.values())
        return {
            key: self._answered(answers[name]) for key, name in names.items() if name in answers
        }

    def wait(self, key: str | bytes, timeout: float | None) -> Command[Any]:
        name = translate.key_name(key)
        span = float("inf")
        if timeout is not None:
            span = checks.seconds("timeout", timeout, 0, config.WAIT_MAX)
        answer: Answer | None = yield Run(
            lambda state, now: operations.wait(state, name, now, now + span, self.timeout)
        )
        if answer is None:
            raise WaitTimedOut(f"{key!r} was not set within {span:g} seconds")
        self.hits += answer.from_local
        self.misses += not answer.from_local
        return self._answered(answer)

    def page(self, prefix: str, after: str) -> Command[Any]:
        page = yield Run(
            lambda state, now: operations.scan(
                state, prefix, after, config.KEYS_PAGE_DEFAULT, now, now + self.timeout
            )
        )
        return page

    # ---- writing --------------------------------------------------------------------------

    def set(self, key: str | bytes, value: Any, replace: bool) -> Command[None]:
        checks.flag("replace", replace)
        name = translate.settable(key)
        outcomes = yield from self._write({name: self.codecs.encode(value)}, replace)
        _check_free(key, outcomes[name])

    def set_many(self, mapping: Mapping[Any, Any], replace: bool) -> Command[list[Any]]:
        checks.flag("replace", replace)
        mapping = checks.mapping("mapping", mapping)
        names = translate.key_names(mapping, translate.settable)
        values = {names[key]: self.codecs.encode(value) for key, value in mapping.items()}
        if len(values) < len(names):
            twice = next(name for name, count in Counter(names.values()).items() if count > 1)
            raise InvalidKey(
                f"the key {public(twice)!r} is there twice, by objects that are not equal, such as "
                "text and bytes; give it once"
            )
        outcomes = yield from self._write(values, replace)
        return [key for key in mapping if outcomes[names[key]].status is SetStatus.OCCUPIED]

    def put(self, value: Any) -> Command[str]:
        encoded = self.codecs.encode(value)
        small = encoded.size < config.LARGE_FROM_DEFAULT
        key = content.address((yield Work(lambda state, large: _digest(encoded), quick=small)))
        if small or not (yield from self.contains(key)):  # a large one need not be laid down again
            yield from self._write({key: encoded}, False)
        return key

    def delete(self, key: str | bytes, wait: bool) -> Command[Deletion]:
        checks.flag("wait", wait)
        name = translate.key_name(key)
        results = yield from self._delete([name], wait)
        deletion = translate.deletion(results[name])
        if deletion is None:
            raise KeyMissing(key)
        return deletion

    def delete_many(self, keys: Iterable[str | bytes], wait: bool) -> Command[dict[Any, Deletion]]:
        checks.flag("wait", wait)
        names = translate.key_names(checks.several("keys", keys))
        results = yield from self._delete(list(names.values()), wait)
        deletions = {key: translate.deletion(results[name]) for key, name in names.items()}
        return {key: deletion for key, deletion in deletions.items() if deletion is not None}

    def _delete(self, keys: list[Key], wait: bool) -> Command[dict[Key, DelResult]]:
        results: dict[Key, DelResult] = yield Run(
            lambda state, now: operations.delete(state, keys, wait, now, now + self.timeout)
        )
        return results

    def _write(
        self, values: Mapping[Key, Encoded], replace: bool
    ) -> Command[dict[Key, operations.SetOutcome]]:
        """Write values; large ones are laid down first where they can be sent from."""
        largest = max((value.size for value in values.values()), default=0)
        if largest >= config.LARGE_FROM_MIN:
            yield from self.join()  # the host's memory has a folder per life of Global
        sources: list[Source] = []

        def lay_down(state: LocalState, large: LargeValues) -> list[SetItem]:
            items = []
            for key, encoded in values.items():
                if encoded.size > state.value_limit:
                    raise ValueTooLarge(encoded.size, state.value_limit)
                if encoded.size < state.large_from:
                    stored = Stored(random16(), encoded.codec, encoded.joined())
                else:
                    sources.append(large.keep(state.epoch, encoded))
                    stored = sources[-1].stored
                items.append(SetItem(key, stored))
            return items

        work = Work(lay_down, quick=largest < (yield LARGE_FROM))
        return (yield from self._bind(work, sources, replace, None))

    def _bind(
        self, lay_down: Work, sources: list[Source], replace: bool, progress: Progress | None
    ) -> Command[dict[Key, operations.SetOutcome]]:
        """Lay values down and bind them. What is not bound is dropped, whenever this is cut short.

        ``lay_down`` gives the items of the SET, and adds each that is large to ``sources`` at once.
        """
        bound: set[bytes] = set()
        try:
            items: list[SetItem] = yield lay_down
            bodies = {source.stored.token: source.body for source in sources}
            held = {source.stored.token: source.held for source in sources if source.held}
            outcomes: dict[Key, operations.SetOutcome] = yield Run(
                lambda state, now: operations.set_(
                    state, items, replace, now, now + self.timeout, held
                ),
                bodies,
                progress,
            )
            for item in items:
                if outcomes[item.key].status in (SetStatus.STORED, SetStatus.REPLACED):
                    bound.add(item.stored.token)
        finally:
            for source in sources:
                if source.stored.token not in bound:
                    source.drop()  # if the outcome is unknown, Global has its own
        for item in items:
            status = outcomes[item.key].status
            if status is SetStatus.TOO_LARGE:
                limit = yield Work(lambda state, large: state.value_limit, quick=True)
                raise ValueTooLarge(item.stored.size, limit)
            translate.check_written(item, status)
        return outcomes

    # ---- files ----------------------------------------------------------------------------

    def put_file(self, path: files.Path, progress: Progress | None) -> Command[str]:
        path = checks.path("path", path)
        checks.optional(checks.function, "progress", progress)
        with files.reading(path, progress) as file:
            if file.size >= config.LARGE_FROM_DEFAULT:  # before all of it is read for its hash
                yield from self.join(self.timeout)
                limit = yield Work(lambda state, large: state.value_limit, quick=True)
                if file.size > limit:
                    raise ValueTooLarge(file.size, limit)
            key = content.address((yield Work(lambda state, large: file.digest())))
            if not (yield from self.contains(key)):
                yield from self._write_file(key, file, False, progress)
            return key

    def set_file(
        self, key: str | bytes, path: files.Path, replace: bool, progress: Progress | None
    ) -> Command[None]:
        path = checks.path("path", path)
        checks.flag("replace", replace)
        checks.optional(checks.function, "progress", progress)
        name = translate.settable(key)
        with files.reading(path, progress) as file:
            large = file.size >= config.LARGE_FROM_DEFAULT
            if large and not replace and (yield from self.contains(name)):
                raise KeyOccupied(key)  # before all of it is read
            outcomes = yield from self._write_file(name, file, replace, progress)
            _check_free(key, outcomes[name])

    def _write_file(
        self, key: Key, file: files.FileToStore, replace: bool, progress: Progress | None
    ) -> Command[dict[Key, operations.SetOutcome]]:
        yield from self.join()
        if file.size < (yield LARGE_FROM):
            pieces = yield Work(lambda state, large: tuple(file.pieces()))
            return (
                yield from self._write({key: Encoded(codecs.BYTES, pieces, file.size)}, replace)
            )
        sources: list[Source] = []

        def lay_down(state: LocalState, large: LargeValues) -> list[SetItem]:
            if file.size > state.value_limit:
                raise ValueTooLarge(file.size, state.value_limit)
            sources.append(large.keep_file(state.epoch, file))
            return [SetItem(key, sources[0].stored)]

        return (yield from self._bind(Work(lay_down), sources, replace, progress))

    def get_file(
        self, key: str | bytes, path: files.Path, progress: Progress | None
    ) -> Command[Fetched]:
        path = checks.path("path", path)
        checks.optional(checks.function, "progress", progress)
        name = translate.key_name(key)
        with files.writing(path, progress) as file:
            answers = yield from self.read([name], into=file.write, progress=progress)
            if name not in answers:
                raise KeyMissing(key)
            stored = self._stored(answers[name])
            if not isinstance(stored.body, Large):
                body = memoryview(stored.body)
                yield Work(lambda state, large: file.write_all(body))
            file.end_at(stored.size)
            return Fetched(stored.codec, stored.size)

    # ---- the rest -------------------------------------------------------------------------

    def join(self, timeout: float | None = None) -> Command[None]:
        stall_timeout = self.timeout
        if timeout is not None:
            stall_timeout = checks.seconds("timeout", timeout, 0, config.TIMEOUT_MAX)
        yield Run(lambda state, now: operations.join(state, now, now + stall_timeout))

    def global_stats(self) -> Command[dict[str, Any]]:
        metrics: dict[str, Any] = yield Run(
            lambda state, now: operations.stats(state, now, now + self.timeout)
        )
        return metrics


def _check_free(key: str | bytes, outcome: operations.SetOutcome) -> None:
    if outcome.status is SetStatus.OCCUPIED:
        raise KeyOccupied(key, local=outcome.local, updated=outcome.updated)


def _digest(encoded: Encoded) -> bytes:
    hasher = content.Hasher(encoded.codec)
    for part in encoded.parts:
        hasher.update(part)
    return hasher.digest()
