"""The pure part of routing: moves of a call, and a listing of keys, without any socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstore.client.cluster import routing
from dstore.client.cluster.listing import Listing
from dstore.client.cluster.routing import Ask, Call, Map, Move, Pause, Reply, Routes, Tried, Try
from dstore.core.local.operations import Misdirected
from dstore.errors import AccessDenied, GlobalUnavailable, OutcomeUnknown, WrongServer
from dstore.protocol.keys import in_order
from dstore.protocol.messages import Key
from dstore.protocol.partitions import NOBODY, PARTITIONS, partition_of

A, B, C = "tcp://a:1", "tcp://b:1", "tcp://c:1"
SILENT = GlobalUnavailable("Global did not answer in time; it is away")


def a_map(version: int, owner: Callable[[int], int]) -> Map:
    return Map(version, (A, B, C), bytes(map(owner, range(PARTITIONS))))


def thirds(version: int) -> Map:
    return a_map(version, lambda number: number % 3)


def key_of(member: int, name: str = "k") -> Key:
    return next(key for n in range(1000) if partition_of(key := f"{name}{n}") % 3 == member)


KA, KB, KC = map(key_of, range(3))


class Script:
    """Carries out a call by hand. The clock goes on only when the script says so."""

    def __init__(self, call: Call[Any]) -> None:
        self.moves = call.begin(0.0)
        self.now = 0.0
        self.move: Move | None = next(self.moves)
        self.done: list[Tried] = []

    def reply(self, value: Any = None, seconds: float = 0.0) -> Move | None:
        self.now += seconds
        try:
            self.move = self.moves.send(Reply(self.now, value))
        except StopIteration as stop:
            self.move, self.done = None, stop.value
        return self.move

    def tried(self, seconds: float = 0.0, **results: Any) -> Move | None:
        assert isinstance(self.move, Try)
        names = {"a": A, "b": B, "c": C}
        value = {
            names[name]: Tried(self.move.parts[names[name]], result)
            for name, result in results.items()
        }
        assert set(value) == set(self.move.parts)
        return self.reply(value, seconds)

    def until(self, kind: type[Move]) -> Any:
        """Go on, and get the same answer to each question, until such a move."""
        while not isinstance(self.move, kind):
            self.reply(thirds(1), self.move.seconds if isinstance(self.move, Pause) else 0.0)
        return self.move


def failure_after(steps: Callable[[], object]) -> str:
    """Repeat some steps until the call fails. Returns the text of its error."""
    try:
        while True:
            steps()
    except GlobalUnavailable as error:
        return str(error)


def known(version: int = 1) -> Routes:
    routes = Routes([A])
    assert routes.learn(thirds(version))
    return routes


def reading(*keys: Key, routes: Routes | None = None) -> Call[Key]:
    return routing.call(routes or known(), keys, 5.0, reads=True)


def writing(*keys: Key, fresh: Iterable[str] = (A, B, C)) -> Call[Key]:
    return routing.call(known(), keys, 5.0, reads=False, fresh=set(fresh).__contains__)


def test_a_map_is_replaced_by_newer_ones_only() -> None:
    routes = Routes([B])
    assert not routes.known
    assert routes.owner_of(KA) is None
    assert not routes.learn(Map(9, (), b""))
    assert routes.learn(thirds(3))
    assert not routes.learn(a_map(3, lambda _: 0))
    assert not routes.learn(a_map(2, lambda _: 0))
    assert routes.owner_of(KB) == B
    assert routes.learn(a_map(4, lambda number: NOBODY if number else 0))
    assert routes.owner_of(KB) is None
    assert (routes.owned(A), routes.owned(B), routes.owned("tcp://x:1")) == (1, 0, 0)


def test_all_owners_are_asked_at_the_same_time() -> None:
    script = Script(reading(KA, KB, KC))
    assert script.move == Try({A: [KA], B: [KB], C: [KC]}, routing.ATTEMPT_FIRST)
    assert script.tried(a=1, b=2, c=3) is None
    assert [each.result for each in script.done] == [1, 2, 3]


def test_without_a_map_the_seeds_are_asked_for_one() -> None:
    script = Script(reading(KA, routes=Routes([B, C])))
    assert isinstance(script.move, Ask)
    first = script.move.address
    assert isinstance(script.reply(SILENT, 0.5), Ask)
    assert {first, script.move.address} == {B, C}
    assert isinstance(script.reply(thirds(1)), Try)
    with pytest.raises(WrongServer, match="by itself"):
        Script(reading(KA, routes=Routes([B, C]))).reply(Map(0, (), b""))


def test_nothing_is_written_to_a_global_by_itself_where_a_member_was() -> None:
    script = Script(writing(KA, fresh=()))
    assert script.move == Ask(A, routing.CONTACT_TIMEOUT)
    script.reply(Map(0, (), b""))
    assert isinstance(script.move, Ask), "a newer map is asked for"
    assert script.move.address != A
    script.reply(a_map(2, lambda _: 1))
    assert script.move == Ask(B, routing.CONTACT_TIMEOUT)
    script.reply(a_map(2, lambda _: 1))
    assert isinstance(script.move, Try)
    assert script.move.parts == {B: [KA]}

    def answer() -> None:
        script.reply(Map(0, (), b""), 1.0)

    script = Script(writing(KA, fresh=()))
    assert "is a Global by itself" in failure_after(answer)


OURS, OTHER = b"o" * 16, b"x" * 16


def test_the_first_map_says_which_cluster_it_is() -> None:
    routes = Routes([A])
    assert routes.cluster == b""
    assert routes.learn(thirds(3)._replace(cluster=OURS))
    assert routes.cluster == OURS
    for cluster in (OTHER, b""):
        assert not routes.learn(thirds(9)._replace(cluster=cluster))
        assert not routes.learn(thirds(1)._replace(cluster=cluster), lower=True)
    assert routes.map.version == 3
    assert routes.learn(thirds(4)._replace(cluster=OURS))


def test_a_member_of_another_cluster_counts_as_silent() -> None:
    """It is not written to, and its map is not taken, however high its version is."""
    routes = Routes([A])
    routes.learn(thirds(1)._replace(cluster=OURS))
    script = Script(routing.call(routes, [KA], 5.0, reads=False, fresh=lambda _: False))
    assert script.move == Ask(A, routing.CONTACT_TIMEOUT)
    assert isinstance(script.reply(thirds(9)._replace(cluster=OTHER)), Ask)
    assert routes.map.version == 1
    text = failure_after(lambda: script.reply(thirds(9)._replace(cluster=OTHER), 1.0))
    assert "a member of another cluster (78787878)" in text
    assert "this program uses the cluster 6f6f6f6f" in text


def test_a_read_that_was_tried_before_asks_for_the_map_first() -> None:
    call = reading(KA)
    call.silent[A] = SILENT
    script = Script(call)
    assert isinstance(script.move, Ask)
    assert script.reply(a_map(2, lambda _: 2)) == Try({C: [KA]}, 2 * routing.ATTEMPT_FIRST)


def test_a_local_that_has_found_another_global_counts_as_silent() -> None:
    script = Script(reading(KA, KB))
    wrong = WrongServer("what answers there is a Global by itself")
    assert isinstance(script.tried(a=wrong, b=1), Ask)
    assert script.reply(a_map(2, lambda _: 2)) == Try({C: [KA]}, 2 * routing.ATTEMPT_FIRST)
    assert script.tried(c=2) is None
    script = Script(reading(KA))
    text = failure_after(
        lambda: script.tried(a=wrong) if isinstance(script.move, Try) else script.reply(SILENT, 1.0)
    )
    assert f"{A}, which has the key '{KA}' (what answers there is a Global by itself)" in text


def test_a_lower_map_is_taken_when_all_members_have_one() -> None:
    """The database was restored: its versions are lower than those that this client knows."""
    routes = known(9)
    script = Script(reading(KA, routes=routes))
    script.tried(a=Misdirected([KA]))
    for version in (3, 5):
        assert isinstance(script.reply(a_map(version, lambda _: 1)), Ask)
        assert routes.map.version == 9, "not all have been asked"
    assert script.reply(a_map(4, lambda _: 2)) == Try({B: [KA]}, 2 * routing.ATTEMPT_FIRST)
    assert routes.map.version == 5, "it is the highest one"
    assert routes.learn(thirds(9)), "a higher one takes its place again"


def test_another_map_of_the_same_version_is_taken_when_all_members_have_it() -> None:
    """A restored database may have come to the version that this client knows, and stay there."""
    routes = known(9)
    script = Script(reading(KA, routes=routes))
    script.tried(a=Misdirected([KA]))
    for _ in range(2):
        assert isinstance(script.reply(a_map(9, lambda _: 1)), Ask)
        assert routes.owner_of(KA) == A
    assert script.reply(a_map(9, lambda _: 1)) == Try({B: [KA]}, 2 * routing.ATTEMPT_FIRST)


def test_a_lower_map_does_not_take_the_place_of_one_that_another_call_has_learned() -> None:
    names = tuple(f"tcp://m{n}:1" for n in range(7))
    routes = Routes(names[:1])
    routes.learn(Map(9, names, bytes(PARTITIONS)))
    script = Script(reading("k", routes=routes))
    script.reply({names[0]: Tried(["k"], Misdirected(["k"]))})
    while isinstance(script.move, Ask):
        script.reply(Map(3, names, bytes([1]) * PARTITIONS))
    assert isinstance(script.move, Pause), "some have not been asked yet"
    routes.learn(Map(10, names, bytes([2]) * PARTITIONS))
    script.reply()

    def silence() -> None:
        """Those that have been asked say no more, and the others nothing."""
        owner = routes.owner_of("k")
        assert owner == names[2]
        tried = isinstance(script.move, Try)
        script.reply({owner: Tried(["k"], SILENT)} if tried else SILENT, 0.1)

    failure_after(silence)


def test_a_lower_map_is_taken_from_those_that_answer() -> None:
    routes = known(9)
    script = Script(reading(KA, routes=routes))
    script.tried(1.0, a=SILENT)
    assert isinstance(script.move, Ask)
    assert script.move.address != A
    script.reply(SILENT, 0.5)
    assert isinstance(script.reply(a_map(3, lambda _: 2)), (Pause, Try))
    assert script.until(Try).parts == {C: [KA]}


@pytest.mark.parametrize("heard", [9, 10])
def test_a_lower_map_is_not_taken_while_a_member_has_the_known_one(heard: int) -> None:
    routes = known(9)
    script = Script(reading(KA, routes=routes))
    script.tried(a=Misdirected([KA]))
    script.reply(a_map(3, lambda _: 1))
    script.reply(thirds(heard))
    if heard == 9:
        assert isinstance(script.reply(a_map(3, lambda _: 1)), Pause)
    assert routes.map.version == heard


def test_no_lower_map_is_taken_before_many_members_have_all_been_asked() -> None:
    names = tuple(f"tcp://m{n}:1" for n in range(7))
    routes = Routes(names[:1])
    routes.learn(Map(9, names, bytes(PARTITIONS)))
    lower = Map(3, names, bytes([1]) * PARTITIONS)
    script = Script(reading("k", routes=routes))
    asked = set()
    while routes.map.version == 9:
        if isinstance(script.move, Try):
            script.reply({names[0]: Tried(["k"], Misdirected(["k"]))})
        elif isinstance(script.move, Ask):
            asked.add(script.move.address)
            script.reply(lower)
        else:
            script.reply()
    assert asked == set(names)
    assert isinstance(script.move, Try)
    assert script.move.parts == {names[1]: ["k"]}


def test_what_is_not_mine_is_tried_at_the_new_owner() -> None:
    script = Script(reading(KA, KB))
    assert isinstance(script.tried(a=Misdirected([KA]), b=1), Ask)
    assert script.reply(a_map(2, lambda _: 2)) == Try({C: [KA]}, 2 * routing.ATTEMPT_FIRST)
    assert script.tried(c=2) is None
    assert [each.result for each in script.done] == [1, 2]


def test_while_there_is_no_newer_map_a_call_pauses_longer_and_longer_until_its_time_is_up() -> None:
    script = Script(reading(KA))
    pauses = []

    def once() -> None:
        script.tried(a=Misdirected([KA]))
        pauses.append(script.until(Pause).seconds)
        script.reply(None, pauses[-1])

    assert f"the member {A} does not serve the key '{KA}' yet" in failure_after(once)
    assert pauses[:3] == [0.01, 0.02, 0.04]
    assert max(pauses) == routing.PAUSE_MAX
    assert sum(pauses) == pytest.approx(5.0)


def test_a_partition_that_nobody_has_is_named() -> None:
    routes = Routes([A])
    routes.learn(a_map(1, lambda _: NOBODY))
    script = Script(reading(KA, routes=routes))
    text = failure_after(lambda: script.reply(a_map(1, lambda _: NOBODY), 0.5))
    assert text == f"no member of the cluster has the key '{KA}' at present"


def test_attempts_to_read_from_a_silent_member_become_longer() -> None:
    script = Script(reading(KA))
    timeouts = []

    def once() -> None:
        timeouts.append(script.until(Try).timeout)
        script.tried(timeouts[-1], a=SILENT)

    text = failure_after(once)
    assert text == f"the member {A}, which has the key '{KA}', did not answer in time; it is away"
    assert timeouts[:2] == [1.0, 2.0]
    assert sum(timeouts) == pytest.approx(5.0, abs=0.1)


def test_all_members_that_did_not_answer_are_named_with_their_reasons() -> None:
    gone = GlobalUnavailable("Global did not answer in time; it is gone")

    def none_answers(script: Script, reasons: dict[str, GlobalUnavailable]) -> str:
        def once() -> None:
            move = script.move
            if isinstance(move, Ask):
                script.reply(reasons[move.address], move.timeout)
            elif isinstance(move, Try):
                failures = {each: Tried((), reasons[each]) for each in move.parts}
                script.reply(failures, move.timeout)
            else:
                assert move is not None
                script.reply(None, move.seconds)

        return failure_after(once)

    both = {A: SILENT, B: SILENT, C: gone}
    text = none_answers(Script(reading(KA, routes=Routes([A, B]))), both)
    assert text == f"2 members did not answer in time (it is away): {A}; {B}"
    text = none_answers(Script(reading(KA, routes=Routes([B, C]))), both)
    assert text == f"2 members did not answer in time: {B} (it is away); {C} (it is gone)"
    text = none_answers(Script(reading(KA, routes=Routes([C]))), both)
    assert text == f"the member {C} did not answer in time; it is gone"
    text = none_answers(Script(reading(KA, KC)), both)
    assert text == (
        f"3 members did not answer in time: {A}, which has the key '{KA}' (it is away); "
        f"{C}, which has the key '{KC}' (it is gone); {B} (it is away)"
    )
    many = [f"tcp://h:{number}" for number in range(1, 31)]
    text = none_answers(Script(reading(KA, routes=Routes(many))), dict.fromkeys(many, SILENT))
    assert text.startswith("10 members"), "there was no time for more"
    assert text.endswith("; and 2 more")


def test_a_write_goes_to_a_silent_member_only_after_it_has_answered() -> None:
    script = Script(writing(KA, KB, fresh=[B]))
    assert script.move == Ask(A, routing.CONTACT_TIMEOUT)
    assert script.reply(thirds(1)) == Try({A: [KA], B: [KB]}, routing.ATTEMPT_FIRST)
    script = Script(writing(KA, KB, fresh=[B]))
    script.reply(SILENT, 1.0)
    assert script.move == Try({B: [KB]}, routing.ATTEMPT_FIRST)
    assert isinstance(script.tried(b=1), Ask)
    assert script.reply(a_map(2, lambda _: 1)) == Try({B: [KA]}, routing.ATTEMPT_FIRST)


def test_a_write_is_not_tried_once_more_when_its_time_was_over_before() -> None:
    """Each attempt of a write has all of the time, and its first one may have been made already."""
    call = writing(KA)
    call.silent[A] = SILENT
    with pytest.raises(GlobalUnavailable, match="it is away"):
        next(call.begin(5.5, since=0.0))
    moves = writing(KA).begin(5.5, since=5.0)
    assert next(moves) == Try({A: [KA]}, routing.ATTEMPT_FIRST)


def test_what_a_write_has_done_is_not_done_again() -> None:
    script = Script(writing(KA, "k3" if partition_of("k3") % 3 == 0 else key_of(0, "x"), KB))
    assert isinstance(script.move, Try)
    one, other = script.move.parts[A]
    script.tried(a=Misdirected([other], {one: "done"}), b={KB: "b"})
    assert script.reply(a_map(2, lambda _: 2)) == Try({C: [other]}, 2 * routing.ATTEMPT_FIRST)
    script.tried(c={other: "c"})
    assert [each.result for each in script.done] == [{one: "done"}, {KB: "b"}, {other: "c"}]


def test_a_write_in_several_messages_goes_on_with_time_for_each() -> None:
    keys = [key for n in range(100) if partition_of(key := f"n{n}") % 3 == 0][:4]
    script = Script(writing(*keys))
    for count in range(4):
        assert isinstance(script.move, Try)
        assert list(script.move.parts[A]) == keys[count:]
        script.reply({A: Tried(keys[count : count + 1], count)}, 4.0)
    assert [each.result for each in script.done] == [0, 1, 2, 3]


def test_unknown_outcomes_count_most_and_name_all_keys() -> None:
    script = Script(writing(KA, KB, KC))
    with pytest.raises(OutcomeUnknown) as caught:
        script.tried(
            a=AccessDenied("no"), b=OutcomeUnknown([KB], "lost"), c=OutcomeUnknown([KC], "lost")
        )
    assert caught.value.keys == [KB, KC]
    with pytest.raises(AccessDenied):
        Script(reading(KA, KB)).tried(a=AccessDenied("no"), b=1)


def test_a_wait_has_time_again_after_each_sign_of_a_member() -> None:
    call = routing.call(known(), [KA], 5.0, reads=True, lasting=True)
    script = Script(call)
    for _ in range(10):
        script.tried(100.0, a=Misdirected([KA]))
        script.until(Try)
    script.tried(a="value")
    assert script.done == [Tried([KA], "value")]


# ---- listings -----------------------------------------------------------------------------------

KEYS = st.text(st.sampled_from("abé\udcff漢"), min_size=1, max_size=4)


@settings(max_examples=50)
@given(st.sets(KEYS), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_listing_has_each_key_once_and_in_order(keys: set[Key], limit: int, random: Any) -> None:
    ordered = sorted(keys, key=in_order)
    listing, found = Listing(), []
    while not listing.over:
        for cursor in listing.empty:
            numbers = list(cursor.numbers)
            random.shuffle(numbers)
            cuts = sorted(random.randrange(len(numbers) + 1) for _ in range(random.randrange(3)))
            pages = []
            for start, end in zip([0, *cuts], [*cuts, len(numbers)]):
                part = numbers[start:end]
                if not part:
                    continue
                after = in_order(cursor.after)
                looked = [key for key in ordered if in_order(key) > after][:limit]
                page = [key for key in looked if partition_of(key) in part]
                pages.append((part, page, looked[-1] if len(looked) == limit else ""))
            listing.read(cursor, pages)
        found += listing.take()
    assert found == ordered
