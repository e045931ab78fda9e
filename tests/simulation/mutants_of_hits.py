"""Mutants of the hit that takes no lock."""

from __future__ import annotations

from tests.simulation.mutant import CORE, VALIDITY, Mutant

HITS = "client.hits"
LIFECYCLE = "client.lifecycle"
CACHE = "core.local.cache"
IN_INDEX = CORE + "test_interleavings.py::test_a_private_hit_returns_what_was_bound_during_the_call"
INDEX_TEST = "tests/unit/test_index.py::"
INTERRUPTED = CORE + "test_interrupted.py::"
LOCK_FREE = "the lock-free hit is outside of the simulated core"
NO_INTERRUPTS = "nothing comes between the steps of a simulated cache"

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
                "                lease_end = membership.lease[0]\n"
                "                entry = membership.entries[key]\n",
                "                entry = membership.entries[key]\n"
                "                lease_end = membership.lease[0]\n",
            ),
            (
                HITS,
                "        lease_end = membership.lease[0]\n"
                "        entry = membership.entries.get(name)\n",
                "        entry = membership.entries.get(name)\n"
                "        lease_end = membership.lease[0]\n",
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
                "        index = self._index\n",
                "        index = self._index\n"
                "        now = clock.now_ns()\n",
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
                "    if index is None:\n"
                "        membership = state.membership\n",
                "    now = clock.now_ns()\n"
                "    if index is None:\n"
                "        membership = state.membership\n",
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
                "                lease_end = membership.lease[0]\n"
                "                entry = membership.entries[key]\n",
                "                lease_end = self._state.membership.lease[0]\n"
                "                entry = membership.entries[key]\n",
            ),
            (
                HITS,
                "        lease_end = membership.lease[0]\n"
                "        entry = membership.entries.get(name)\n",
                "        lease_end = state.membership.lease[0]\n"
                "        entry = membership.entries.get(name)\n",
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
                "                entry = membership.entries[key]\n",
                "                entry = self._state.membership.entries[key]\n",
            ),
            (
                HITS,
                "        entry = membership.entries.get(name)\n",
                "        entry = state.membership.entries.get(name)\n",
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
    Mutant(
        "hit in an index that does not look at the home again",
        (
            (
                HITS,
                "                if membership is None or entry.home is not membership:\n",
                "                if membership is None:\n",
            ),
            (
                HITS,
                "        if entry.home is not membership:\n"
                "            return None\n",
                "",
            ),
        ),
        IN_INDEX,
        LOCK_FREE,
    ),
    Mutant(
        "hit in an index that notes the lease end after it has looked at the home again",
        (
            (
                HITS,
                "                if membership is not None:\n"
                "                    lease_end = membership.lease[0]\n"
                "                if membership is None or entry.home is not membership:\n"
                "                    entry = None\n",
                "                if membership is None or entry.home is not membership:\n"
                "                    entry = None\n"
                "                else:\n"
                "                    lease_end = membership.lease[0]\n",
            ),
            (
                HITS,
                "        lease_end = membership.lease[0]\n"
                "        if entry.home is not membership:\n"
                "            return None\n",
                "        if entry.home is not membership:\n"
                "            return None\n"
                "        lease_end = membership.lease[0]\n",
            ),
        ),
        IN_INDEX,
        LOCK_FREE,
    ),
    Mutant(
        "entry that is dropped keeps its home",
        ((CACHE, "        entry.home = None\n", ""),),
        INDEX_TEST + "test_two_caches_change_the_index_at_the_same_time",
        NO_INTERRUPTS,
    ),
    Mutant(
        "entry that is no longer stored before it loses its home",
        (
            (
                CACHE,
                "            self._leave(entry)\n"
                "            del self.entries[key]\n",
                "            del self.entries[key]\n"
                "            self._leave(entry)\n",
            ),
        ),
        INDEX_TEST + "test_what_was_interrupted_drops_the_entry_when_it_is_repeated",
        NO_INTERRUPTS,
    ),
    Mutant(
        "cache that is emptied before its entries lose their homes",
        (
            (
                CACHE,
                "        for entry in self.entries.values():\n"
                "            self._leave(entry)\n",
                "        entries = list(self.entries.values())\n"
                "        self.entries.clear()\n"
                "        for entry in entries:\n"
                "            self._leave(entry)\n",
            ),
        ),
        INDEX_TEST + "test_ctrl_c_leaves_no_entry_that_hits_find_and_the_cache_does_not",
        NO_INTERRUPTS,
    ),
    Mutant(
        "entry that is in the index before it is stored",
        (
            (
                CACHE,
                "        entries[key] = entry\n"
                "        if self._index is not None:\n"
                "            self._index[key] = entry\n",
                "        if self._index is not None:\n"
                "            self._index[key] = entry\n"
                "        entries[key] = entry\n",
            ),
        ),
        INDEX_TEST + "test_ctrl_c_leaves_no_entry_that_hits_find_and_the_cache_does_not",
        NO_INTERRUPTS,
    ),
    Mutant(
        "entry that is dropped while it is put into the index stays there",
        (
            (
                LIFECYCLE,
                "                if entry.home is None:",
                "                if False:",
            ),
        ),
        INDEX_TEST + "test_a_look_at_all_caches_puts_back_nothing_that_is_dropped_meanwhile",
        NO_INTERRUPTS,
    ),
    Mutant(
        "forked child whose index keeps what its Local has not taken over",
        (
            (
                LIFECYCLE,
                "                    self._leave_inherited(address, local)\n",
                "                    self._inherited.pop(address, None)\n",
            ),
        ),
        INDEX_TEST + "test_what_a_child_has_inherited_and_does_not_take_over_is_no_hit",
        "no simulated process forks with an index",
    ),
    Mutant(
        "forked child with the index of a parent that was becoming one of several",
        (
            (
                LIFECYCLE,
                "            self._index = None\n        self._show()\n",
                "            pass\n        self._show()\n",
            ),
        ),
        INDEX_TEST + "test_a_child_has_no_index_of_a_parent_that_was_becoming_one_of_several",
        "no simulated process forks with an index",
    ),
    Mutant(
        "new dictionary of a cache whose entries have the former home",
        ((CACHE, "        self.home = None  # Ctrl-C may come before there is another one\n", ""),),
        INTERRUPTED + "test_what_is_stored_in_the_middle_is_no_hit_of_the_former_membership",
        NO_INTERRUPTS,
    ),
    Mutant(
        "page that is half given up when Ctrl-C comes stays so",
        (
            (
                "core.local.state",
                "            elif self.joined is not self.membership:",
                "            elif False:",
            ),
        ),
        INTERRUPTED + "test_a_page_that_was_half_given_up_is_given_up",
        NO_INTERRUPTS,
    ),
    Mutant(
        "cluster that is changed before the sessions of the former one have ended",
        (
            (
                "core.local.state",
                "        if self.page is not None:\n"
                "            self.detach(now)\n"
                "        elif self.joined.session or self.session:\n",
                "        self.cluster = cluster\n"
                "        if self.page is not None:\n"
                "            self.detach(now)\n"
                "        elif self.joined.session or self.session:\n",
            ),
        ),
        INTERRUPTED + "test_a_change_of_the_cluster_is_made_to_its_end_before_the_next_call",
        NO_INTERRUPTS,
    ),
    Mutant(
        "cache that is emptied and leaves its entries in the index",
        (
            (
                CACHE,
                "            self._leave(entry)\n"
                "            entry.older",
                "            entry.older",
            ),
        ),
        cluster=True,
    ),
)  # fmt: skip
