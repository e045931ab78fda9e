"""Mutants of keys that expire."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

WRITES = "core.authority.writes"
DEADLINES = "core.authority.deadlines"
EXPIRY = CORE + "test_expiry.py::"
WRITE_TESTS = CORE + "test_expiry_writes.py::"
PACE_TESTS = CORE + "test_expiry_pace.py::"
UNIQUE = "simulated values are unique, and the values of an address are not"

OF_EXPIRY = (
    Mutant(
        "expiry by a stale deadline",
        (
            (
                WRITES,
                "        if not self._deadlines.holds(record):\n",
                "        if False:\n",
            ),
        ),
    ),
    Mutant(
        "expiry that does not wait for holders",
        (
            (
                WRITES,
                "        self._deadlines.pending += 1\n        self._invalidations.start(pending, now)\n",
                "        self._deadlines.drop(pending.key)\n"
                "        self._engine.remove(key, token)\n"
                "        self._bulk.drop(token)\n",
            ),
        ),
    ),
    Mutant(
        "expiry before its time",
        (
            (
                DEADLINES,
                "        return NO_DEADLINE if ttl is None else self.clock() + ttl\n",
                "        return NO_DEADLINE if ttl is None else self.clock() + 0.9 * ttl\n",
            ),
        ),
    ),
    Mutant(
        "expiry that is not tried again when its removal has failed",
        (
            (
                WRITES,
                "        else:\n            self._deadlines.failed(pending.key, now)\n        status",
                "        status",
            ),
        ),
    ),
    Mutant(
        "deadline of a replacement forgotten",
        (
            (
                WRITES,
                "        self._deadlines.set(pending.key, new.token, pending.deadline, now)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "deadline that is not recovered",
        (
            (
                "core.authority.state",
                "        self._deadlines.load(deadlines, now)\n",
                "        self._deadlines.load([each for each in deadlines if not each[2]], now)\n",
            ),
        ),
    ),
    Mutant(
        "EXPIRE answered before it is durable",
        (
            (
                WRITES,
                "        self._changes.submit(change, changed, now, busy=True)\n",
                "        changed(Outcome.DONE, now)\n"
                "        self._changes.submit(change, lambda outcome, now: None, now, busy=True)\n",
            ),
        ),
        CORE
        + "test_expiry_durable.py::test_expire_is_answered_when_it_is_durable_and_shows_in_no_answer_before",
        "it shows only after a crash right after an EXPIRE, which few simulated runs have",
    ),
    Mutant(
        "PUT of an address that is about to expire answered by a cache",
        (
            (
                "core.local.operations.writing",
                "        if item.key not in state.addresses and state.is_known(",
                "        if state.is_known(",
            ),
        ),
        WRITE_TESTS + "test_a_put_of_an_address_that_is_bound_commits_the_later_deadline",
        UNIQUE,
    ),
    Mutant(
        "PUT of an address that leaves it the earlier deadline",
        (
            (
                WRITES,
                "            if self._prolongs(write, item.key):\n",
                "            if False:\n",
            ),
        ),
        WRITE_TESTS + "test_a_put_of_an_address_that_is_bound_commits_the_later_deadline",
        UNIQUE,
    ),
    Mutant(
        "PUT of an address answered before its later deadline is durable",
        (
            (
                WRITES,
                "        self._changes.submit(change, prolonged, now, busy=True)\n",
                "        prolonged(Outcome.DONE, now)\n"
                "        self._changes.submit(change, lambda outcome, now: None, now, busy=True)\n",
            ),
        ),
        WRITE_TESTS + "test_a_put_is_answered_when_the_later_deadline_is_durable",
        UNIQUE,
    ),
    Mutant(
        "SET refused by a value whose time has passed",
        (
            (
                WRITES,
                "        queue = self._queue(item.key) if replace else self._queue_of_living(item.key, now)\n",
                "        queue = self._queue(item.key)\n",
            ),
        ),
        WRITE_TESTS + "test_a_set_of_a_key_whose_deadline_has_passed_is_not_refused_as_occupied",
        "the value is bound until its removal, so that the answer is linearizable",
    ),
    Mutant(
        "any number of expiries at one time",
        (
            (
                DEADLINES,
                "        return min(STEP_KEYS, left, max(0, self.pending_max - self.pending))\n",
                "        return 1_000_000_000\n",
            ),
        ),
        PACE_TESTS + "test_a_holder_that_has_died_slows_expiry_down_and_does_not_stop_it",
        "a simulated run has a few keys",
    ),
    Mutant(
        "clock of the deadlines that goes back",
        (
            (
                DEADLINES,
                "        self._clock = max(self._clock, self._wall())\n",
                "        self._clock = self._wall()\n",
            ),
        ),
        EXPIRY + "test_a_wall_clock_that_is_set_back_lets_keys_live_longer_and_revives_none",
        "the simulated wall clock is not set",
    ),
)
