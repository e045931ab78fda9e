"""Mutants of operations: the direct path, and what is left to its steps."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import DIRECT, VALIDITY, Mutant

DIRECT_PATH = "core.local.operations.direct"
FETCHING = "core.local.operations.fetching"
WRITING = "core.local.operations.writing"
THREADS = "client.hosts.threads"
LATE = "caught by the simulation too, but not within the bound: few replies are that late"
IN_STEPS = "the simulated threads run the direct path step by step"

OF_OPERATIONS = (
    Mutant(
        "waiting thread handed a reply older than its call",
        (
            (
                "core.local.entries",
                "        seq, (token, codec, content) = found.seq, found.stored\n",
                "        if body is None:\n"
                '            self.__dict__.setdefault("handed", {})[key] = found.stored\n'
                "        seq, (token, codec, content) = found.seq, found.stored\n",
            ),
            (
                "core.local.operations.reading",
                "            waited.update(joined)\n",
                "            waited.update(joined)\n"
                '            state.__dict__["handed"] = {}\n',
            ),
            (
                "core.local.operations.reading",
                "            now = (yield WaitUntil(_all_ended(state, joined), until)).now\n",
                "            now = (yield WaitUntil(_all_ended(state, joined), until)).now\n"
                '            for key, stored in state.__dict__["handed"].items():\n'
                "                if key in joined and key in wanted:\n"
                "                    reading.take(key, stored)\n",
            ),
        ),
    ),
    Mutant(
        "value of a reply of one key filled that must not be cached",
        (
            (
                THREADS,
                "                    if cacheable:\n",
                "                    if True:\n",
            ),
        ),
        DIRECT + "test_a_plain_get_stores_no_value_that_must_not_be_cached",
        IN_STEPS,
    ),
    Mutant(
        "plain GET that fills the present membership",
        (
            (
                THREADS,
                "state.fill_small(membership, key",
                "state.fill_small(state.membership, key",
            ),
        ),
        DIRECT + "test_the_reply_to_a_plain_get_of_a_former_session_is_returned_and_not_stored",
        IN_STEPS,
    ),
    Mutant(
        "plain GET that others wait for when it is over",
        (
            (
                THREADS,
                "                        del state.in_flight[key]\n",
                "                        pass\n",
            ),
        ),
        DIRECT + "test_a_plain_get_is_answered_and_leaves_nothing",
        IN_STEPS,
    ),
    Mutant(
        "plain GET that others wait for when it has failed",
        (
            (
                THREADS,
                "                    state.end_asking_after(key, former)\n",
                "",
            ),
        ),
        DIRECT + "test_a_plain_get_that_fails_between_its_halves_leaves_nothing",
        IN_STEPS,
    ),
    Mutant(
        "plain GET that takes the reply to another request",
        (
            (
                "protocol.wire",
                "        or answered != request\n",
                "",
            ),
        ),
        DIRECT + "test_a_plain_get_takes_no_reply_of_another_request",
        IN_STEPS,
    ),
    Mutant(
        "GET of an ended session answered",
        (
            (
                "core.authority.state",
                "        if session is None or message.epoch != self.epoch:\n            return None\n        if identity",
                "        if session is None:\n            return None\n        if identity",
            ),
        ),
        "tests/unit/core/test_reads.py::test_the_short_way_answers_as_the_long_one_and_refuses_nothing_by_itself",
        "the simulated Global takes the long way",
    ),
    Mutant(
        "direct GET that fills the present membership",
        (
            (
                DIRECT_PATH,
                "self.state.fill(self.membership, self.key",
                "self.state.fill(self.state.membership, self.key",
            ),
        ),
        VALIDITY + "test_a_reply_to_a_request_of_a_former_membership_is_not_stored",
        LATE,
    ),
    Mutant(
        "direct GET of many keys that fills the present membership",
        (
            (
                DIRECT_PATH,
                "self.state.fill_many(self.membership, ",
                "self.state.fill_many(self.state.membership, ",
            ),
        ),
        VALIDITY + "test_a_reply_to_a_request_of_a_former_membership_is_not_stored",
        LATE,
    ),
    Mutant(
        "GET that goes on with the present membership",
        (
            (
                DIRECT_PATH,
                "Begun(direct.message, direct.membership, result)",
                "Begun(direct.message, direct.state.membership, result)",
            ),
        ),
        VALIDITY + "test_a_reply_to_a_request_of_a_former_membership_is_not_stored",
        LATE,
    ),
    Mutant(
        "SET that fills the present membership",
        (
            (
                WRITING,
                "            outcome = fill(state, membership, item",
                "            outcome = fill(state, state.membership, item",
            ),
        ),
    ),
    Mutant(
        "direct SET that fills the present membership",
        (
            (
                DIRECT_PATH,
                "fill(self.state, self.membership, item",
                "fill(self.state, self.state.membership, item",
            ),
        ),
    ),
    Mutant(
        "direct GET that does not end asking",
        (
            (
                DIRECT_PATH,
                "            self.state.end_asking([self.key], self.message.request)\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "direct GET of many keys that does not end asking",
        (
            (
                DIRECT_PATH,
                "            self.state.end_asking(self.message.keys, self.message.request)\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "GET, step by step, that does not end asking",
        (
            (
                FETCHING,
                "            state.unwait(message)\n"
                "        state.end_asking(keys, request)\n",
                "            state.unwait(message)\n",
            ),
        ),
    ),
    Mutant(
        "direct write that does not end",
        (
            (
                DIRECT_PATH,
                "            self.writer.writing.discard(self.message.write)\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "write, step by step, that does not end",
        (
            (WRITING, "            writer.writing.discard(write)\n", "            pass\n"),
        ),
    ),
    Mutant(
        "direct write that is repeated as another",
        (
            (
                DIRECT_PATH,
                "BegunWrite(self.message, self.writer, self.membership, result)",
                "BegunWrite(self.message._replace(write=self.writer.reserve()), self.writer, self.membership, result)",
            ),
        ),
    ),
    Mutant(
        "SET that is repeated as another write",
        (
            (
                "core.local.operations.exchange",
                "        pause = min(2 * pause, RESEND_MAX)\n",
                '        if hasattr(message, "items"):\n'
                "            message = message._replace(write=state.writer.reserve())\n"
                "        pause = min(2 * pause, RESEND_MAX)\n",
            ),
        ),
    ),
    Mutant(
        "thread that does not end a direct call after its reply",
        (
            (
                THREADS,
                "                        direct.end()\n                        host.notify()\n",
                "                        host.notify()\n",
            ),
        ),
        DIRECT + "test_a_call_that_was_answered_leaves_nothing",
        IN_STEPS,
    ),
    Mutant(
        "thread that ends a direct call before its repeats",
        (
            (
                THREADS,
                "                    if value is not UNUSUAL:  # else",
                "                    if True:  # else",
            ),
        ),
        DIRECT + "test_a_request_that_is_repeated_is_not_over",
        IN_STEPS,
    ),
    Mutant(
        "thread that does not end a direct call that fails",
        (
            (
                THREADS,
                "            if not done and direct is not None:\n                self._end(direct)\n",
                "",
            ),
        ),
        DIRECT + "test_a_call_that_fails_between_its_halves_leaves_nothing",
        IN_STEPS,
    ),
    Mutant(
        "thread that takes a reply after the Node was closed",
        (
            (
                THREADS,
                "                    if host.stopping:\n"
                "                        raise closed()\n"
                "                    value = direct.take",
                "                    value = direct.take",
            ),
        ),
        DIRECT + "test_a_reply_that_comes_when_the_node_is_closed_is_not_taken",
        IN_STEPS,
    ),
)  # fmt: skip
