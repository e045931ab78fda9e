"""Mutants of the hit that takes no lock."""

from __future__ import annotations

from tests.simulation.mutant import VALIDITY, Mutant

HITS = "client.hits"
LOCK_FREE = "the lock-free hit is outside of the simulated core"

OF_HITS = (
    Mutant(
        "hit that does not compare the word",
        (
            (
                HITS,
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
                "",
            ),
            (
                HITS,
                "\n"
                "    words = membership.words\n"
                "    if words is not None and words[entry.bucket] > entry.seq:\n"
                "        return None\n",
                "\n",
            ),
        ),
        VALIDITY + "test_a_hit_compares_the_word_and_an_equal_one_is_not_newer",
        LOCK_FREE,
    ),
    Mutant(
        "hit that takes an equal word for a newer one",
        (
            (
                HITS,
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] >= entry.seq:\n"
                "            return self._get_missed(key, default)\n",
            ),
            (
                HITS,
                "\n"
                "    words = membership.words\n"
                "    if words is not None and words[entry.bucket] > entry.seq:\n"
                "        return None\n",
                "\n"
                "    words = membership.words\n"
                "    if words is not None and words[entry.bucket] >= entry.seq:\n"
                "        return None\n",
            ),
        ),
        VALIDITY + "test_a_hit_compares_the_word_and_an_equal_one_is_not_newer",
        LOCK_FREE,
    ),
    Mutant(
        "hit that does not compare the clock",
        (
            (
                HITS,
                "        if clock.now_ns() >= lease_end:\n"
                "            return self._get_missed(key, default)\n",
                "",
            ),
            (HITS, "    if clock.now_ns() >= lease_end:\n        return None\n", ""),
        ),
        VALIDITY + "test_a_hit_ends_with_the_lease",
        LOCK_FREE,
    ),
    Mutant(
        "hit that compares with the present lease end and not with the noted one",
        (
            (
                HITS,
                "        if clock.now_ns() >= lease_end:\n"
                "            return self._get_missed(key, default)\n",
                "        if clock.now_ns() >= membership.lease[0]:\n"
                "            return self._get_missed(key, default)\n",
            ),
            (
                HITS,
                "    if clock.now_ns() >= lease_end:\n"
                "        return None\n",
                "    if clock.now_ns() >= membership.lease[0]:\n"
                "        return None\n",
            ),
        ),
        VALIDITY + "test_a_hit_compares_the_clock_with_the_end_it_noted_before_the_look_up",
        LOCK_FREE,
    ),
    Mutant(
        "hit that notes the lease end after the look-up",
        (
            (
                HITS,
                "            lease_end = membership.lease[0]\n",
                "",
            ),
            (
                HITS,
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
                "        lease_end = membership.lease[0]\n"
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
            ),
            (
                HITS,
                "    membership = state.membership\n"
                "    lease_end = membership.lease[0]\n"
                "    entry = membership.entries.get(name)\n",
                "    membership = state.membership\n"
                "    entry = membership.entries.get(name)\n"
                "    lease_end = membership.lease[0]\n",
            ),
        ),
        VALIDITY + "test_a_hit_notes_the_lease_end_before_the_look_up",
        LOCK_FREE,
    ),
    Mutant(
        "hit that notes the lease end after the word",
        (
            (
                HITS,
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n"
                "        lease_end = membership.lease[0]\n",
            ),
            (
                HITS,
                "    if clock.now_ns() >= lease_end:\n"
                "        return None\n",
                "    lease_end = membership.lease[0]\n"
                "    if clock.now_ns() >= lease_end:\n"
                "        return None\n",
            ),
        ),
        VALIDITY + "test_a_hit_notes_the_lease_end_before_it_reads_the_word",
        LOCK_FREE,
    ),
    Mutant(
        "hit that reads the clock before the look-up",
        (
            (
                HITS,
                "            lease_end = membership.lease[0]\n",
                "            lease_end = membership.lease[0]\n"
                "            now = clock.now_ns()\n",
            ),
            (
                HITS,
                "        if clock.now_ns() >= lease_end:\n"
                "            return self._get_missed(key, default)\n",
                "        if now >= lease_end:\n"
                "            return self._get_missed(key, default)\n",
            ),
            (
                HITS,
                "    membership = state.membership\n"
                "    lease_end = membership.lease[0]\n"
                "    entry = membership.entries.get(name)\n",
                "    now = clock.now_ns()\n"
                "    membership = state.membership\n"
                "    lease_end = membership.lease[0]\n"
                "    entry = membership.entries.get(name)\n",
            ),
            (
                HITS,
                "    if clock.now_ns() >= lease_end:\n"
                "        return None\n",
                "    if now >= lease_end:\n"
                "        return None\n",
            ),
        ),
        VALIDITY + "test_a_hit_reads_the_clock_after_the_look_up",
        LOCK_FREE,
    ),
    Mutant(
        "hit that reads the clock before the word",
        (
            (
                HITS,
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
                "        now = clock.now_ns()\n"
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
            ),
            (
                HITS,
                "        if clock.now_ns() >= lease_end:\n"
                "            return self._get_missed(key, default)\n",
                "        if now >= lease_end:\n"
                "            return self._get_missed(key, default)\n",
            ),
            (
                HITS,
                "\n"
                "    words = membership.words\n"
                "    if words is not None and words[entry.bucket] > entry.seq:\n"
                "        return None\n",
                "\n"
                "    now = clock.now_ns()\n"
                "    words = membership.words\n"
                "    if words is not None and words[entry.bucket] > entry.seq:\n"
                "        return None\n",
            ),
            (
                HITS,
                "    if clock.now_ns() >= lease_end:\n"
                "        return None\n",
                "    if now >= lease_end:\n"
                "        return None\n",
            ),
        ),
        VALIDITY + "test_a_hit_reads_the_clock_after_the_word",
        LOCK_FREE,
    ),
    Mutant(
        "hit with the entries of one membership and the lease of another",
        (
            (
                HITS,
                "            lease_end = membership.lease[0]\n",
                "            lease_end = self._state.membership.lease[0]\n",
            ),
            (
                HITS,
                "    membership = state.membership\n"
                "    lease_end = membership.lease[0]\n"
                "    entry = membership.entries.get(name)\n",
                "    membership = state.membership\n"
                "    lease_end = state.membership.lease[0]\n"
                "    entry = membership.entries.get(name)\n",
            ),
        ),
        VALIDITY + "test_a_hit_takes_entries_lease_and_word_of_one_membership",
        LOCK_FREE,
    ),
    Mutant(
        "hit with the entries of another membership",
        (
            (
                HITS,
                "            entry = membership.entries[key]\n",
                "            entry = self._state.membership.entries[key]\n",
            ),
            (
                HITS,
                "    membership = state.membership\n"
                "    lease_end = membership.lease[0]\n"
                "    entry = membership.entries.get(name)\n",
                "    membership = state.membership\n"
                "    lease_end = membership.lease[0]\n"
                "    entry = state.membership.entries.get(name)\n",
            ),
        ),
        VALIDITY + "test_a_hit_takes_entries_lease_and_word_of_one_membership",
        LOCK_FREE,
    ),
    Mutant(
        "hit with the words of another membership",
        (
            (
                HITS,
                "        words = membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
                "        words = self._state.membership.words\n"
                "        if words is not None and words[entry.bucket] > entry.seq:\n"
                "            return self._get_missed(key, default)\n",
            ),
            (
                HITS,
                "\n"
                "    words = membership.words\n"
                "    if words is not None and words[entry.bucket] > entry.seq:\n"
                "        return None\n",
                "\n"
                "    words = state.membership.words\n"
                "    if words is not None and words[entry.bucket] > entry.seq:\n"
                "        return None\n",
            ),
        ),
        VALIDITY + "test_a_hit_takes_entries_lease_and_word_of_one_membership",
        LOCK_FREE,
    ),
)  # fmt: skip
