"""Mutants of validity by number: filling, applying invalidations, and the change of memberships."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, VALIDITY, Mutant

ENTRIES = "core.local.entries"
STATE = "core.local.state"
FETCHING = "core.local.operations.fetching"
VECTOR = "core.local.vector"
CACHE = "core.local.cache"
LOCK_FREE = "the lock-free hit is outside of the simulated core"
ONE_STEP = "in the simulation this is one step"
NOT_STALE = "it costs the writer of a replacement its own value, and is no stale read"
LATE = "caught by the simulation too, but not within the bound: few replies are that late"

OF_VALIDITY = (
    Mutant(
        "look-up of an operation that does not compare the word",
        (
            (
                ENTRIES,
                "        if words is not None and words[entry.bucket] > entry.seq:\n",
                "        if False:\n",
            ),
        ),
    ),
    Mutant(
        "look-up of an operation that takes an equal word for a newer one",
        (
            (
                ENTRIES,
                "        if words is not None and words[entry.bucket] > entry.seq:\n",
                "        if words is not None and words[entry.bucket] >= entry.seq:\n",
            ),
        ),
        VALIDITY + "test_a_look_up_compares_the_word_and_an_equal_one_is_not_newer",
        NOT_STALE,
    ),
    Mutant(
        "fill that does not consult the vector",
        (
            (
                ENTRIES,
                "        elif seq < applied and self.vector.after(key, seq):  # no word is above ``applied``\n            return None\n",
                "",
            ),
        ),
    ),
    Mutant(
        "fill of many keys that does not consult the vector",
        (
            (ENTRIES, "            and reply.seq >= membership.applied\n", ""),
            (ENTRIES, "            and membership.words is None\n", ""),
        ),
    ),
    Mutant(
        "fill that takes an equal word for a newer one",
        (
            (
                VECTOR,
                "return self.words[self.bucket(key)] > seq",
                "return self.words[self.bucket(key)] >= seq",
            ),
        ),
        VALIDITY + "test_a_reply_with_the_number_of_the_word_is_stored",
        NOT_STALE,
    ),
    Mutant(
        "entry with the number that was applied when its reply came",
        (
            (
                ENTRIES,
                "        bucket = 0 if membership.words is None else self.vector.bucket(key)\n        return self.cache.insert(key, seq,",
                "        bucket = 0 if membership.words is None else self.vector.bucket(key)\n        return self.cache.insert(key, membership.applied,",
            ),
        ),
        VALIDITY + "test_the_seq_of_an_entry_is_that_of_the_reply_and_not_what_was_applied_when_it_came",
        "the fill and its look at the vector are one step of the simulation",
    ),
    Mutant(
        "entry without its bucket",
        (
            (
                ENTRIES,
                "        bucket = 0 if membership.words is None else self.vector.bucket(key)\n        return self.cache.insert(",
                "        bucket = 0\n        return self.cache.insert(",
            ),
        ),
    ),
    Mutant(
        "reply of a former membership filled",
        (
            (
                ENTRIES,
                "        present = membership is self.membership and not self.closing\n"
                "        shared =",
                "        membership = self.membership\n"
                "        present = not self.closing\n"
                "        shared =",
            ),
            (
                ENTRIES,
                "        if membership is not self.membership or self.closing:\n",
                "        membership = self.membership\n"
                "        if self.closing:\n",
            ),
        ),
    ),
    Mutant(
        "reply of many keys of a former membership filled",
        (
            (
                ENTRIES,
                "        present = membership is self.membership and not self.closing\n"
                "        if present",
                "        present = not self.closing\n"
                "        if present",
            ),
            (
                ENTRIES,
                "            self.cache.insert_many(keys, reply, answers)\n"
                "            return\n",
                "            self.cache.insert_many(keys, reply, answers)\n"
                "            return\n"
                "        membership = self.membership\n",
            ),
        ),
        VALIDITY + "test_a_reply_to_a_request_of_a_former_membership_is_not_stored",
        LATE,
    ),
    Mutant(
        "value filled that must not be cached",
        (
            (ENTRIES, "            if not found.cacheable:\n", "            if False:\n"),
        ),
    ),
    Mutant(
        "values of a reply of many keys filled that must not be cached",
        (
            (ENTRIES, "            and not reply.uncacheable\n", ""),
        ),
    ),
    Mutant(
        "deletion not noticed while a large value travels",
        (
            (
                FETCHING,
                "    return state.fill(membership, key, found, body) or",
                "    found = found._replace(seq=state.applied)\n"
                "    return state.fill(membership, key, found, body) or",
            ),
        ),
    ),
    Mutant(
        "Global reads the value before it notes the number",
        (
            (
                "core.authority.reads",
                "            stored = read(key)\n            if stored is None:\n",
                "            stored = read(key)\n            seq = self._log.seq\n            if stored is None:\n",
            ),
        ),
        VALIDITY + "test_global_notes_the_number_before_it_reads_the_engine",
        "the simulated engine answers at once",
    ),
    Mutant(
        "applied counts an invalidation before its word is written",
        (
            (
                ENTRIES,
                "            if self.page is None:  # else its owner notes it\n",
                "            joined.applied = seq\n"
                "            if self.page is None:  # else its owner notes it\n",
            ),
        ),
        VALIDITY + "test_word_and_entry_are_done_before_applied_counts_them_and_before_the_acknowledgement",
        ONE_STEP,
    ),
    Mutant(
        "applied counts an invalidation before its entry is dropped",
        (
            (
                ENTRIES,
                "            self._invalidate(key, seq)\n",
                "            joined.applied = seq\n"
                "            self._invalidate(key, seq)\n",
            ),
        ),
        VALIDITY + "test_word_and_entry_are_done_before_applied_counts_them_and_before_the_acknowledgement",
        ONE_STEP,
    ),
    Mutant(
        "acknowledgement of what waits in the reorder buffer",
        (
            (
                STATE,
                "                yield Tell(Ack(joined.epoch, self._secret, joined.applied))\n",
                "                last = [each.first + len(each.keys) - 1 for each in self._reorder_buffer]\n"
                "                last.append(self.applied)\n"
                "                yield Tell(Ack(joined.epoch, self._secret, max(last)))\n",
            ),
            (
                STATE,
                '            self.counters["gaps"] += 1\n',
                '            self.counters["gaps"] += 1\n'
                "            self._ack_due = message.acknowledge\n",
            ),
        ),
    ),
    Mutant(
        "invalidation that writes no word",
        (
            (ENTRIES, "                self.vector.note(key, seq)\n", "                pass\n"),
        ),
    ),
    Mutant(
        "invalidation that leaves an entry from before it",
        (
            (ENTRIES, "        if entry.seq < seq:\n", "        if False:\n"),
        ),
    ),
    Mutant(
        "invalidation that drops an entry with its own number",
        (
            (ENTRIES, "        if entry.seq < seq:\n", "        if entry.seq <= seq:\n"),
        ),
        VALIDITY + "test_an_invalidation_drops_an_entry_of_a_lower_seq_only",
        NOT_STALE,
    ),
    Mutant(
        "invalidation that writes no word if an entry is newer",
        (
            (
                ENTRIES,
                "            self.vector.note(key, seq)\n",
                "            entry = membership.entries.get(key)\n"
                "            if entry is None or entry.seq < seq:\n"
                "                self.vector.note(key, seq)\n",
            ),
        ),
        VALIDITY + "test_an_invalidation_writes_its_word_also_if_the_entry_is_newer",
        "caught by the simulation too, but not within the bound: the newer entry must be evicted first",
    ),
    Mutant(
        "invalidations that come twice lower the words",
        (
            (
                ENTRIES,
                "        for key in keys[max(0, joined.applied + 1 - first) :]:\n",
                "        for seq, key in enumerate(keys, first):\n"
                "            self.vector.words[self.vector.bucket(key)] = seq\n"
                "        for key in keys[max(0, joined.applied + 1 - first) :]:\n",
            ),
        ),
    ),
    Mutant(
        "whole-cache drop that raises no word",
        (
            (ENTRIES, "        self.vector.flush(seq)\n", ""),
        ),
    ),
    Mutant(
        "whole-cache drop that raises one word only",
        (
            (VECTOR, "        for bucket in range(self.buckets):\n", "        for bucket in range(1):\n"),
        ),
    ),
    Mutant(
        "new lease end before the words of its answer",
        (
            (
                STATE,
                "        if message.keys is None:\n"
                "            self._flush",
                "        if message.serial in self._sent_at and message.after <= self.applied:\n"
                "            self._trust(self._sent_at[message.serial])\n"
                "        if message.keys is None:\n"
                "            self._flush",
            ),
        ),
        VALIDITY + "test_the_words_of_a_renewal_are_written_before_the_new_lease_end",
        ONE_STEP,
    ),
    Mutant(
        "older reply that takes the place of a newer entry",
        (
            (CACHE, "or (former is not None and former.seq > entry.seq):", "or False:"),
        ),
        VALIDITY + "test_an_older_reply_does_not_take_the_place_of_a_newer_entry",
        "it costs a miss: the older value comes second only while there is no lease, and the renewal drops it",
    ),
    Mutant(
        "replaced entry forgotten",
        (
            (CACHE, "            entry.since = former.since\n", "            pass\n"),
        ),
        CORE + "test_invalidations.py::test_the_host_learns_of_the_former_entry_when_its_invalidation_comes",
        "simulated programs do not use on_deletion",
    ),
    Mutant(
        "bucket by a hash without a key",
        (
            ("core.local.key_hash", "blake2b(digest_size=HASH_BYTES, key=hash_key)", "blake2b(digest_size=HASH_BYTES)"),
        ),
        VALIDITY + "test_the_bucket_of_a_key_is_a_keyed_hash_of_its_bytes",
        "simulated programs choose no keys that share a bucket",
    ),
    Mutant(
        "entries kept for the next membership",
        (
            (
                ENTRIES,
                "        self.membership = self.joined = Membership(self.cache.renew(), self._words_of_hits())\n",
                "        self.membership = Membership(self.cache.entries, self._words_of_hits())\n",
            ),
        ),
    ),
    Mutant(
        "membership used again for the next session",
        (
            (
                ENTRIES,
                "        self.membership = self.joined = Membership(self.cache.renew(), self._words_of_hits())\n",
                "        self.membership.__init__(self.cache.renew(), self._words_of_hits())\n",
            ),
        ),
    ),
    Mutant(
        "lease that survives a change of session",
        (
            (
                ENTRIES,
                "        self.membership = self.joined = Membership(self.cache.renew(), self._words_of_hits())\n",
                "        lease_end, entries = self.membership.lease_end, self.cache.entries\n"
                "        self.membership = Membership(entries, self._words_of_hits())\n"
                "        self.membership.lease_end = lease_end\n",
            ),
            (
                ENTRIES,
                "            # First: a hit on another thread looks at it last. A shared one is not ours to end.\n"
                "            self.membership.lease_end = LAPSED\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "membership that has ended keeps its lease",
        (
            (
                ENTRIES,
                "            # First: a hit on another thread looks at it last. A shared one is not ours to end.\n"
                "            self.membership.lease_end = LAPSED\n",
                "            pass\n",
            ),
        ),
        VALIDITY + "test_a_new_session_is_a_new_membership_and_the_old_one_is_empty_and_lapsed",
        LOCK_FREE,
    ),
    Mutant(
        "membership that has ended keeps its entries",
        (
            (
                CACHE,
                "        self.clear()\n"
                "        self.home = None  # Ctrl-C may come before there is another one\n"
                "        self.entries = {}\n",
                "        self.shared.clear()\n"
                "        self._newest = self._oldest = self._hand = None\n"
                "        self.size = 0\n"
                "        self.entries = {}\n",
            ),
        ),
        VALIDITY + "test_a_new_session_is_a_new_membership_and_the_old_one_is_empty_and_lapsed",
        LOCK_FREE,
    ),
    Mutant(
        "words kept for the next membership",
        (
            (
                ENTRIES,
                "        self.vector = Vector(hash_key, self.buckets)\n",
                '        self.__dict__.setdefault("vector", Vector(hash_key, self.buckets))\n',
            ),
        ),
        VALIDITY + "test_a_new_session_is_a_new_membership_and_the_old_one_is_empty_and_lapsed",
        "it costs fills: the words of a former epoch are too high",
    ),
)  # fmt: skip
