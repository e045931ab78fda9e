"""Mutants of what a Global does that owns some partitions, and of operations that it refuses."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

OWNED = CORE + "test_partitions.py::"
MISDIRECTED = CORE + "test_misdirected.py::"
STATE = "core.authority.state"
WRITES = "core.authority.writes"
READS = "core.authority.reads"
PARTITIONS = "core.authority.partitions"
DEADLINES = "core.authority.deadlines"
WRITING = "core.local.operations.writing"
EXCHANGE = "core.local.operations.exchange"
TAKEN_OVER = MISDIRECTED + "test_a_write_to_a_silent_global_ends_when_another_one_has_taken_over"
ONE_GLOBAL = "its Global is no member of a cluster"
LAPSED = "        if self._lapsed(now):\n            return []\n"

OF_PARTITIONS = (
    Mutant(
        "read of a key that is not owned",
        ((STATE, "                    partitions.check(keys_of(message))\n", "                    pass\n"),),
        OWNED + "test_a_read_of_a_key_that_is_not_owned_is_refused_as_a_whole",
        ONE_GLOBAL,
    ),
    Mutant(
        "read of a key that is not owned, on the fast path",
        (
            (
                STATE,
                "            partitions.lapsed(now) or not all(map(partitions.owns, message.keys))\n",
                "            partitions.lapsed(now)\n",
            ),
        ),
        OWNED + "test_a_read_of_a_key_that_is_not_owned_is_refused_as_a_whole",
        ONE_GLOBAL,
    ),
    Mutant(
        "bytes of a large value whose key is not owned",
        ((READS, "            self._partitions.check((message.key,))\n", "            pass\n"),),
        OWNED + "test_a_read_of_a_key_that_is_not_owned_is_refused_as_a_whole",
        ONE_GLOBAL,
    ),
    Mutant(
        "write of a key that is not owned",
        (
            (
                WRITES,
                "                self._partitions.check(keys_of(message))\n",
                "                self._partitions.check(keys_of(message)[:1])\n",
            ),
        ),
        OWNED + "test_a_write_that_names_a_key_that_is_not_owned_changes_nothing",
        ONE_GLOBAL,
    ),
    Mutant(
        "copy of a refused write that is executed once its key is owned",
        ((WRITES, "                session.record_not_executed(message.write)\n", ""),),
        OWNED + "test_no_copy_of_a_write_that_was_refused_is_executed_when_the_key_is_owned_later",
        ONE_GLOBAL,
    ),
    Mutant(
        "offered key that is not owned found to be the same",
        (
            (
                READS,
                "            if self._partitions is not None and not self._partitions.owns(key):\n",
                "            if False:\n",
            ),
        ),
        OWNED + "test_an_offered_key_that_is_not_owned_is_not_the_same",
        ONE_GLOBAL,
    ),
    Mutant(
        "scan that shows keys that are not served yet",
        (
            (
                READS,
                "            keys = list(filter(self._partitions.owns, keys))\n",
                "            pass\n",
            ),
        ),
        OWNED + "test_a_scan_does_not_show_keys_that_are_loaded_and_not_served_yet",
        ONE_GLOBAL,
    ),
    Mutant(
        "message that is answered after the end of the ownership lease",
        (
            (
                STATE,
                "        if partitions is not None and partitions.lapsed(now):\n            return []\n",
                "",
            ),
        ),
        OWNED + "test_nothing_is_answered_or_granted_from_the_end_of_the_ownership_lease_on",
        ONE_GLOBAL,
    ),
    Mutant(
        "read on the fast path after the end of the ownership lease",
        (
            (
                STATE,
                "            partitions.lapsed(now) or not all(map(partitions.owns, message.keys))\n",
                "            not all(map(partitions.owns, message.keys))\n",
            ),
        ),
        OWNED + "test_nothing_is_answered_or_granted_from_the_end_of_the_ownership_lease_on",
        ONE_GLOBAL,
    ),
    Mutant(
        "batch that is applied after the end of the ownership lease",
        (
            (
                STATE,
                LAPSED + "        self._changes.committed(number, outcomes, now)\n",
                "        self._changes.committed(number, outcomes, now)\n",
            ),
        ),
        OWNED + "test_what_has_become_durable_is_not_answered_after_the_end_of_the_ownership_lease",
        ONE_GLOBAL,
    ),
    Mutant(
        "value that was loaded answered after the end of the ownership lease",
        (
            (
                STATE,
                LAPSED + "        if not self._reads.part_loaded(number, results):\n",
                "        if not self._reads.part_loaded(number, results):\n",
            ),
        ),
        OWNED + "test_what_was_loaded_is_not_answered_after_the_end_of_the_ownership_lease",
        ONE_GLOBAL,
    ),
    Mutant(
        "tick after the end of the ownership lease",
        (
            (
                STATE,
                "        if self._lapsed(now):\n            self.alarm.moment = NEVER\n            return []\n",
                "",
            ),
        ),
        OWNED + "test_the_page_of_its_own_host_gets_no_lease_after_the_end_of_the_ownership_lease",
        ONE_GLOBAL,
    ),
    Mutant(
        "page that gets its first lease after the end of the ownership lease",
        (
            (
                STATE,
                "        if self._lapsed(now):\n            with contextlib.suppress(Exception):",
                "        if False:\n            with contextlib.suppress(Exception):",
            ),
        ),
        OWNED + "test_the_page_of_its_own_host_gets_no_lease_after_the_end_of_the_ownership_lease",
        ONE_GLOBAL,
    ),
    Mutant(
        "lapsed Global that goes on when its ownership lease is moved on",
        (
            (
                PARTITIONS,
                "            self._lapsed = self._lapsed or self.ends > 0.0  # else nothing was missed\n",
                "",
            ),
        ),
        OWNED + "test_what_has_lapsed_stays_so_though_the_ownership_lease_is_moved_on",
        ONE_GLOBAL,
    ),
    Mutant(
        "removal in a quiet partition",
        ((WRITES, "            if now < until:\n", "            if False:\n"),),
        OWNED + "test_nothing_is_removed_or_replaced_in_a_quiet_partition",
        ONE_GLOBAL,
    ),
    Mutant(
        "quiet partition that holds up expiries of others",
        ((DEADLINES, "        if until <= now:\n", "        if True:\n"),),
        OWNED + "test_keys_that_have_expired_in_a_quiet_partition_hold_up_no_other_expiry",
        ONE_GLOBAL,
    ),
    Mutant(
        "expiries of a quiet partition that never begin",
        ((DEADLINES, "            self._take_back(now)\n", "            pass\n"),),
        OWNED + "test_a_gain_brings_deadlines_and_what_has_passed_expires_after_the_quiet_time",
        ONE_GLOBAL,
    ),
    Mutant(
        "WELCOME without the quiet time of partitions",
        (
            (
                WRITES,
                "        until = 0.0 if partitions is None else partitions.all_quiet_until\n",
                "        until = 0.0\n",
            ),
        ),
        OWNED + "test_welcome_has_the_longest_time_for_which_a_partition_is_quiet",
        ONE_GLOBAL,
    ),
    Mutant(
        "reads that wait for an epoch that has ended",
        (
            (
                STATE,
                "        for route, message in parked:\n",
                "        for route, message in self._waits.waiting():\n",
            ),
        ),
        OWNED + "test_the_end_of_an_epoch_refuses_the_reads_that_wait_and_no_write",
        ONE_GLOBAL,
    ),
    Mutant(
        "keys of earlier messages that are written once more elsewhere",
        (
            (
                WRITING,
                "        left = list(setting.left.values())\n",
                "        left = [item.key for item in asked]\n",
            ),
        ),
        MISDIRECTED + "test_of_many_keys_set_the_outcomes_of_earlier_messages_are_kept",
        ONE_GLOBAL,
    ),
    Mutant(
        "keys of earlier messages that are deleted once more elsewhere",
        (
            (
                WRITING,
                "            raise Misdirected([*batch, *left], results) from None\n",
                "            raise Misdirected(keys) from None\n",
            ),
        ),
        MISDIRECTED + "test_of_many_keys_deleted_the_outcomes_of_earlier_messages_are_kept",
        ONE_GLOBAL,
    ),
    Mutant(
        "upload that is left at a Global that does not own its key",
        (
            (
                WRITING,
                "            state.unstage(writer, stored.token)\n            raise\n",
                "            raise\n",
            ),
        ),
        MISDIRECTED + "test_a_set_that_is_refused_after_its_upload_withdraws_the_upload",
        ONE_GLOBAL,
    ),
    Mutant(
        "copy of a write that a hand-over has refused, executed when that is given up",
        ((WRITES, "                if self.closing:\n", "                if False:\n"),),
        OWNED + "test_no_copy_of_a_write_that_a_hand_over_has_refused_is_executed",
        ONE_GLOBAL,
    ),
    Mutant(
        "write that is given up though its Global may still answer",
        (
            (
                EXCHANGE,
                "    if state.others is None or not state.is_silent(now):\n",
                "    if state.others is None:\n",
            ),
        ),
        TAKEN_OVER,
        ONE_GLOBAL,
    ),
    Mutant(
        "write that waits for a silent Global from which another one has taken over",
        ((EXCHANGE, "        elif writes and _taken_over(state, writes, now):\n", "        elif False:\n"),),
        TAKEN_OVER,
        ONE_GLOBAL,
    ),
    Mutant(
        "write to a silent Global, without a question to the others",
        ((EXCHANGE, "    state.others.ask()\n", ""),),
        TAKEN_OVER,
        ONE_GLOBAL,
    ),
)  # fmt: skip
