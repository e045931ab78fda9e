"""A client that Global does not let in, or not to what it asks: what its calls raise, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dstore.core.local import operations
from dstore.core.local.effects import Tell
from dstore.core.local.steps import WaitUntil
from dstore.core.local.writer import Writer
from dstore.errors import AccessDenied, OutcomeUnknown, WrongServer
from dstore.protocol.messages import Hello, Kind, Refusal, Refused
from tests.unit.core.world import Call, Member, World

REVOKED = AccessDenied("its key was revoked")
Begin = Callable[[Member], Call]

READS: dict[str, Begin] = {
    "get": lambda a: a.begin_get("absent"),
    "get_many": lambda a: a.begin_get("absent", "other"),
    "wait": lambda a: a.begin_wait("absent", a.world.now + 100),
    "ttl": lambda a: a.begin(operations.ttl(a.state, "k", a.world.now, a.world.now + 100)),
    "stats": lambda a: a.begin(operations.stats(a.state, a.world.now, a.world.now + 100)),
    "keys": lambda a: a.begin(operations.scan(a.state, "", "", 10, a.world.now, a.world.now + 100)),
}
WRITES: dict[str, Begin] = {
    "set": lambda a: a.begin_set(("k", b"v"), timeout=100),
    "delete": lambda a: a.begin_delete("k", timeout=100),
    "expire": lambda a: a.begin_expire("k", 5.0, timeout=100),
}
CALLS = {**READS, **WRITES}


def denied(call: Call, text: str = "may not") -> Refused:
    message = call.message
    return Refused(message.epoch, message.session, message.request, Refusal.DENIED, text)


@pytest.mark.parametrize("begin", CALLS.values(), ids=CALLS)
def test_what_global_denies_raises_at_once_with_its_text(begin: Begin) -> None:
    (a,) = World().joined("a")
    call = begin(a)
    call.answer(denied(call, "may not do that"))
    assert type(call.error) is AccessDenied
    assert str(call.error) == "may not do that"
    assert a.state.denied is None  # it is said of this request alone


@pytest.mark.parametrize("begin", WRITES.values(), ids=WRITES)
def test_a_write_that_is_denied_when_a_copy_is_under_way_has_an_unknown_outcome(
    begin: Begin,
) -> None:
    (a,) = World().joined("a")
    call = begin(a)
    call.time_out()
    call.answer(denied(call))
    assert isinstance(call.error, OutcomeUnknown)
    assert call.error.reason == "may not"


@pytest.mark.parametrize("begin", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("error", [REVOKED, WrongServer("another one")])
def test_a_call_of_a_client_that_is_shut_out_sends_nothing(begin: Begin, error: Any) -> None:
    (a,) = World().joined("a")
    a.state.deny(error)
    call = begin(a)
    if not call.done:  # the direct path has made a request, which the host does not send
        call.time_out(sent=False)
    assert type(call.error) is type(error)
    assert str(call.error) == str(error)
    assert call.error is not error  # each call raises an error of its own
    assert not a.state.in_flight
    assert not a.state.writer.writing


@pytest.mark.parametrize("begin", WRITES.values(), ids=WRITES)
def test_a_write_that_is_under_way_when_its_client_is_shut_out_has_an_unknown_outcome(
    begin: Begin,
) -> None:
    (a,) = World().joined("a")
    call = begin(a)
    a.state.deny(REVOKED)
    call.time_out()
    assert isinstance(call.error, OutcomeUnknown)
    assert call.error.reason == "its key was revoked"


@pytest.mark.parametrize("begin", READS.values(), ids=READS)
def test_a_read_that_is_under_way_when_its_client_is_shut_out_is_denied(begin: Begin) -> None:
    (a,) = World().joined("a")
    call = begin(a)
    a.state.deny(REVOKED)
    call.time_out()
    assert isinstance(call.error, AccessDenied)


@pytest.mark.parametrize("begin", CALLS.values(), ids=CALLS)
def test_a_call_that_waits_for_a_session_ends_when_its_client_is_shut_out(begin: Begin) -> None:
    a = World().member("a")
    call = begin(a)
    assert isinstance(call.step, WaitUntil)
    a.state.deny(REVOKED)
    call.look()
    assert isinstance(call.error, AccessDenied)


def test_a_call_that_waits_for_a_busy_global_ends_when_its_client_is_shut_out() -> None:
    (a,) = World().joined("a")
    call = a.begin_get("k")
    message = call.message
    busy = Refused(message.epoch, message.session, message.request, Refusal.BUSY, "later")
    call.answer(busy)
    a.state.deny(REVOKED)
    call.look()
    assert isinstance(call.error, AccessDenied)


def test_a_client_that_is_shut_out_answers_from_its_cache_until_the_lease_ends() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    session = a.state.session
    a.state.deny(REVOKED)
    assert a.get("k") == b"v"
    assert a.state.session == session  # Global counts it as a holder: a deletion has to wait
    deletion = b.begin_delete("k")
    deletion.send()
    assert not deletion.replies
    world.now = a.state.lease_end
    call = a.begin_get("k", timeout=100)
    assert isinstance(call.error, AccessDenied)


def test_a_client_that_is_let_in_again_goes_on() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    a.state.deny(REVOKED)
    a.state.deny(None)
    assert a.get("absent") is None
    assert a.get("k") == b"v"


def test_a_hello_that_is_denied_ends_what_waits_for_the_session() -> None:
    world = World()
    a = world.member("a")
    call = a.begin_get("k")
    a.state.receive(Refused(0, 0, 0, Refusal.DENIED, "no session"), world.now)
    call.look()
    assert isinstance(call.error, AccessDenied)
    world.settle()  # it goes on to ask, and this time it gets one
    assert a.state.denied is None
    assert a.get("k") is None


def test_a_welcome_says_nothing_about_the_present_connection() -> None:
    """It may have been sent before the client was revoked."""
    world = World()
    a = world.member("a")
    a.state.deny(REVOKED)
    world.settle()
    assert a.state.session
    assert a.state.denied is REVOKED


def test_an_offer_that_is_denied_denies_nothing_else() -> None:
    (a,) = World().joined("a")
    session = a.state.session
    refused = Refused(a.state.epoch, session, 5, Refusal.DENIED, "no offers")
    assert a.state.receive(refused, a.world.now) == []
    assert a.state.denied is None
    assert a.state.session == session


def test_a_writer_that_is_denied_ends_writes_and_no_reads() -> None:
    world = World()
    (a,) = world.joined("a")
    a.state.bridging = True  # as in a Local that shares a membership, writes need a session
    a.state.writer = Writer()
    a.state.want_writer(world.now)
    call = a.begin_set(("k", b"v"))
    (tell,) = a.state.tick(world.now)
    assert isinstance(tell, Tell)
    assert isinstance(tell.message, Hello)
    assert tell.message.kind is Kind.WRITER
    a.state.receive(Refused(0, 0, 0, Refusal.DENIED, "may not write"), world.now)
    call.look()
    assert isinstance(call.error, AccessDenied)
    assert a.state.denied is None
    assert a.get("k") is None
    again = a.begin_set(("k", b"v"))  # asks again
    assert not again.done
