"""What failed handshakes mean, and when they are tried again."""

from __future__ import annotations

import pytest
import zmq

from dstore.errors import AccessDenied, WrongServer
from dstore.transport.admission import (
    HANDSHAKE_PAUSE,
    HANDSHAKE_PAUSE_FIRST,
    HANDSHAKE_PAUSE_MAX,
    NEVER,
    Admission,
    Event,
)
from dstore.transport.curve import ClientKeys

MISMATCH = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
FOREIGN_KEY = zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
OLD, NEW, NEWER = "o" * 40, "n" * 40, "e" * 40


def keys(*server_keys: str) -> ClientKeys:
    return ClientKeys("p" * 40, "s" * 40, server_keys or (OLD,), "worker")


def tried(admission: Admission) -> str:
    """The server key that the control connection uses next."""
    return admission.options(trying=True)[zmq.CURVE_SERVERKEY]


def test_nothing_is_denied_before_the_first_handshake() -> None:
    admission = Admission("tcp://db:1", keys())
    assert admission.denied is None
    assert admission.retry_at == NEVER
    assert "s" * 40 not in repr(admission)


def test_a_key_that_is_not_admitted_is_denied_at_once() -> None:
    admission = Admission("tcp://db:1", keys())
    admission.failed(Event.AUTH, 400, 10.0)
    assert isinstance(admission.denied, AccessDenied)
    assert "'worker'" in str(admission.denied)
    assert admission.retry_at == 10.0 + HANDSHAKE_PAUSE


def test_a_handler_that_fails_denies_nothing() -> None:
    admission = Admission("tcp://db:1", keys())
    admission.failed(Event.AUTH, 500, 10.0)
    assert admission.denied is None


@pytest.mark.parametrize(("given", "text"), [(None, "asks for keys"), (keys(), "not use keys")])
def test_another_mechanism_is_another_server_at_once(given: ClientKeys | None, text: str) -> None:
    admission = Admission("tcp://db:1", given)
    admission.failed(Event.PROTOCOL, MISMATCH, 10.0)
    assert isinstance(admission.denied, WrongServer)
    assert text in str(admission.denied)


@pytest.mark.parametrize(
    ("given", "mechanism", "text"),
    [
        (keys(), "CURVE", "does not have the server key"),
        (keys(), "any", "does not have the server key"),
        (keys(), "NULL", "does not use keys"),
        (keys(), "", None),
        (None, "CURVE", "asks for keys"),
        (None, "NULL", None),
        (None, "any", None),
        (None, "", None),
    ],
)
def test_a_second_end_without_detail_is_judged_by_what_listens(
    given: ClientKeys | None, mechanism: str, text: str | None
) -> None:
    admission = Admission("tcp://db:1", given)
    admission.failed(Event.NO_DETAIL, 104, 10.0)
    assert admission.denied is None
    assert not admission.doubted
    assert admission.retry_at == 10.0 + HANDSHAKE_PAUSE_FIRST
    admission.failed(Event.NO_DETAIL, 104, 11.0)
    assert admission.denied is None
    assert admission.doubted
    admission.judge(mechanism, 12.0)
    assert not admission.doubted
    if text is not None and "server key" in text:
        assert admission.denied is None
        assert admission.retry_at == 12.0 + HANDSHAKE_PAUSE_FIRST
        admission.failed(Event.NO_DETAIL, 104, 13.0)
    if text is None:
        assert admission.denied is None
    else:
        assert isinstance(admission.denied, WrongServer)
        assert text in str(admission.denied)


def test_a_global_that_ended_in_a_handshake_is_no_other_one() -> None:
    admission = Admission("tcp://db:1", keys())
    admission.failed(Event.NO_DETAIL, 104, 10.0)
    admission.lost()  # nothing listens there for a moment
    admission.failed(Event.NO_DETAIL, 104, 11.0)
    assert not admission.doubted
    admission.succeeded()
    admission.failed(Event.NO_DETAIL, 104, 12.0)
    assert not admission.doubted


def test_a_global_that_was_started_behind_a_proxy_meanwhile_is_no_other_one() -> None:
    admission = Admission("tcp://proxy:1", keys())
    for moment in (10.0, 11.0):
        admission.failed(Event.NO_DETAIL, 104, moment)  # the proxy finds no Global
    admission.judge("CURVE", 12.0)  # now it does
    assert admission.denied is None
    admission.succeeded()
    assert admission.denied is None
    admission.failed(Event.NO_DETAIL, 104, 20.0)  # Global was killed
    assert admission.denied is None
    assert not admission.doubted


def test_a_global_that_is_away_again_after_it_has_greeted_is_no_other_one() -> None:
    admission = Admission("tcp://proxy:1", keys())
    for moment in (10.0, 11.0):
        admission.failed(Event.NO_DETAIL, 104, moment)
    admission.judge("CURVE", 12.0)
    admission.lost()
    admission.failed(Event.NO_DETAIL, 104, 13.0)
    assert admission.denied is None


def test_the_pause_grows_to_a_bound_and_begins_anew_after_a_success() -> None:
    admission = Admission("tcp://db:1", keys())
    pauses = []
    for _ in range(5):
        admission.failed(Event.AUTH, 400, 0.0)
        pauses.append(admission.retry_at)
    assert pauses == [HANDSHAKE_PAUSE, 2.0, 4.0, HANDSHAKE_PAUSE_MAX, HANDSHAKE_PAUSE_MAX]
    admission.succeeded()
    assert admission.denied is None
    assert admission.retry_at == NEVER
    admission.failed(Event.AUTH, 400, 0.0)
    assert admission.retry_at == HANDSHAKE_PAUSE


def test_a_wrong_server_is_tried_once_for_each_pause() -> None:
    admission = Admission("tcp://db:1", keys(OLD, NEW))
    for moment in range(4):
        admission.failed(Event.NO_DETAIL, 104, float(moment))
    admission.judge("CURVE", 4.0)
    for moment in (5, 6):
        assert admission.denied is None
        admission.failed(Event.NO_DETAIL, 104, float(moment))
    denied = admission.denied
    assert denied is not None
    for later, pause in ((10.0, 2.0), (20.0, 4.0), (30.0, HANDSHAKE_PAUSE_MAX)):
        admission.failed(Event.NO_DETAIL, 104, later)
        assert admission.denied is denied
        assert not admission.doubted  # what listens is not asked again
        assert admission.retry_at == later + pause


def test_a_global_that_is_gone_denies_nothing() -> None:
    admission = Admission("tcp://db:1", keys())
    admission.failed(Event.AUTH, 400, 0.0)
    admission.lost()
    assert admission.denied is None
    assert admission.retry_at == NEVER


def test_each_server_key_is_tried_twice_before_giving_up() -> None:
    admission = Admission("tcp://db:1", keys(OLD, NEW))
    used = [tried(admission)]
    for moment in range(3):
        admission.failed(Event.NO_DETAIL, 104, float(moment))
        assert not admission.doubted
        used.append(tried(admission))
    assert used == [OLD, NEW, OLD, NEW]
    admission.failed(Event.NO_DETAIL, 104, 3.0)
    assert admission.doubted


def test_a_server_key_of_the_changed_file_is_tried_without_an_error() -> None:
    present = [keys(OLD)]
    admission = Admission("tcp://db:1", present[0], lambda: present[0])
    admission.succeeded()
    present[0] = keys(OLD, NEW)
    admission.failed(Event.NO_DETAIL, 104, 10.0)
    assert tried(admission) == NEW
    assert admission.options(trying=False)[zmq.CURVE_SERVERKEY] == OLD
    generation = admission.generation
    assert admission.succeeded()
    assert admission.options(trying=False)[zmq.CURVE_SERVERKEY] == NEW
    assert admission.generation > generation
    assert admission.denied is None


def test_keys_that_cannot_be_read_again_stay() -> None:
    def fails() -> ClientKeys:
        raise OSError("the file is being replaced")

    admission = Admission("tcp://db:1", keys(OLD), fails)
    admission.failed(Event.NO_DETAIL, 104, 10.0)
    assert tried(admission) == OLD


def test_the_file_of_a_client_that_is_denied_is_read_again() -> None:
    present = [keys(OLD, NEW)]
    admission = Admission("tcp://db:1", present[0], lambda: present[0])
    admission.failed(Event.AUTH, 400, 10.0)
    present[0] = keys(OLD, NEW)._replace(public_key="q" * 40)
    admission.try_again()
    assert admission.retry_at == NEVER
    assert admission.options(trying=True)[zmq.CURVE_PUBLICKEY] == "q" * 40
    assert tried(admission) == OLD  # the server was the right one
    admission.failed(Event.NO_DETAIL, 104, 11.0)
    present[0] = keys(NEWER)
    admission.try_again()
    assert tried(admission) == NEWER


def test_a_server_that_cannot_prove_its_key_is_another_one() -> None:
    admission = Admission("tcp://db:1", keys())
    admission.failed(Event.PROTOCOL, FOREIGN_KEY, 10.0)
    assert admission.denied is None
    admission.failed(Event.PROTOCOL, FOREIGN_KEY, 11.0)
    assert isinstance(admission.denied, WrongServer)


def test_connections_that_were_not_in_doubt_are_left_alone() -> None:
    admission = Admission("tcp://db:1", keys())
    assert not admission.succeeded()
    admission.lost()
    assert not admission.succeeded()
    assert admission.generation == 0
