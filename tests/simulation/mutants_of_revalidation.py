"""Mutants of what is taken back into the cache after a session has ended, and of the quiet period."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

FORMER = "core.local.former"
OWNER = "core.local.owner"
READS = "core.authority.reads"
STATE = "core.local.state"
HERE = CORE + "test_revalidation.py::"
NAMED = "a test spells out the order of these steps"

OF_REVALIDATION = (
    Mutant(
        "value taken back without a holder bit",
        (
            (
                READS,
                "            if offered == bound and self._holders.add(key, bit):\n",
                "            if offered == bound:\n",
            ),
        ),
    ),
    Mutant(
        "value taken back while its deletion is pending",
        ((READS, "isinstance(stored, Away) or key in self._pending:", "isinstance(stored, Away):"),),
        HERE + "test_a_value_that_is_being_deleted_is_not_taken_back",
        "no deletion is confirmed meanwhile, and its invalidation follows in most runs",
    ),
    Mutant(
        "value taken back because its key is bound",
        (
            (
                READS,
                "            if offered == bound and self._holders.add(key, bit):\n",
                "            if self._holders.add(key, bit):\n",
            ),
        ),
    ),
    Mutant(
        "value taken back over an invalidation that was applied meanwhile",
        (
            (
                STATE,
                "            if self._take_back(key, Found(message.seq, True, stored)):\n",
                "            if self._take_back(key, Found(max(message.seq, joined.applied), True, stored)):\n",
            ),
        ),
        HERE + "test_the_answer_that_comes_after_an_invalidation_is_not_stored",
        "few simulated answers to offers are that late",
    ),
    Mutant(
        "answer to an offer of a former session taken",
        (
            (
                STATE,
                "        if (message.epoch, message.session) != (joined.epoch, joined.session):\n            return\n        for key, stored",
                "        for key, stored",
            ),
            (
                FORMER,
                "        self._values, self._offered, self.due = iter(values), [], NEVER\n",
                "        self._values, self.due = iter(values), NEVER\n",
            ),
        ),
        HERE + "test_the_answer_to_an_offer_of_a_former_session_is_not_stored",
        "few simulated sessions end while an offer is under way",
    ),
    Mutant(
        "answer to another offer taken",
        ((FORMER, "        if not offered or reply.request != self._request:\n", "        if not offered:\n"),),
        HERE + "test_an_answer_that_names_what_was_not_offered_changes_nothing",
        NAMED,
    ),
    Mutant(
        "page kept whose host cache cannot be read",
        (
            (
                OWNER,
                "        try:\n            page.void()\n",
                "        self._left = page.values()\n        try:\n            page.void()\n",
            ),
        ),
    ),
    Mutant(
        "offers without a bound of time",
        (
            (
                FORMER,
                "        offered = [] if self._offered else self._next()\n",
                "        offered = self._offered or self._next()\n",
            ),
        ),
        HERE + "test_an_offer_that_is_not_answered_is_the_last_one",
        NAMED,
    ),
    Mutant(
        "offers without pauses",
        ((FORMER, "        self.due = now + PAUSE * (now - self._sent_at)\n", "        self.due = now\n"),),
        HERE + "test_offers_are_bounded_and_come_one_by_one_with_pauses",
        "it is no stale read",
    ),
    Mutant(
        "SET whose session was lost taken for done since its key is bound",
        (
            (
                "core.local.operations.writing",
                "                if found is not None and found.stored.token == wanted[key].stored.token:\n",
                "                if found is not None:\n",
            ),
        ),
        CORE + "test_writes.py::test_a_set_whose_session_was_lost_is_known_by_its_tokens",
        NAMED,
    ),
    Mutant(
        "write that does not wait for the end of the quiet period",
        (
            (
                "core.local.operations.exchange",
                "            if not (patient and state.is_quiet(now)):\n",
                "            if True:\n",
            ),
        ),
        HERE + "test_welcome_tells_what_is_left_of_the_quiet_period_and_writes_wait_for_it",
        "its outcome is unknown, which no simulated history forbids",
    ),
    Mutant(
        "WELCOME without the quiet period",
        (
            (
                "core.authority.memberships",
                "            quiet=max(0.0, self._writes.quiet_until - now),\n",
                "",
            ),
        ),
        HERE + "test_welcome_tells_what_is_left_of_the_quiet_period_and_writes_wait_for_it",
        "its outcome is unknown, which no simulated history forbids",
    ),
)  # fmt: skip
