"""Mutants of what is taken back into the cache after a session has ended, and of the quiet period."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

FORMER = "core.local.former"
OWNER = "core.local.owner"
READS = "core.authority.reads"
STATE = "core.local.state"
HERE = CORE + "test_revalidation.py::"
VALUES = CORE + "test_revalidation_values.py::"
FILES, MEMORY = "shm.files", "shm.memory"
TAKING = "tests/unit/shm/test_taking.py::"
NO_FILES = "the simulation has no files"
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
                "            elif self._take_back(key, Found(message.seq, True, Stored(token, codec, body))):\n",
                "            elif self._take_back(key, Found(max(message.seq, membership.applied), True, Stored(token, codec, body))):\n",
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
                "        if (message.epoch, message.session) != (membership.epoch, membership.session):\n            return\n        large",
                "        large",
            ),
            (
                FORMER,
                "        self._small, self._offered, self._again = iter(small), [], False\n",
                "        self._small, self._again = iter(small), False\n",
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
        "digest of a large value that a small one can have",
        (
            (
                "protocol.offers",
                '    person = LARGE_VALUES if isinstance(body, Large) else b""\n',
                '    person = b""\n',
            ),
        ),
        VALUES + "test_a_small_value_is_never_taken_for_a_large_one",
        "no simulated value has the bytes of a digest",
    ),
    Mutant(
        "large value compared by its size alone",
        (("protocol.offers", "        hashed.update(body.digest)\n", ""),),
        VALUES + "test_another_large_value_is_not_taken_back",
        "that a value is replaced by one of the same size while a session ends is rare",
    ),
    Mutant(
        "large value stored with the token of its former write",
        (
            (
                STATE,
                "found = Found(message.seq, True, Stored(token, codec, body.large))",
                "found = Found(message.seq, True, Stored(body.token, codec, body.large))",
            ),
        ),
        VALUES + "test_a_large_value_has_the_token_of_the_write_that_has_bound_it",
        NAMED,
    ),
    Mutant(
        "large value taken back over an invalidation that was applied while it was found",
        (
            (
                STATE,
                "        if self.fill(membership, key, found, body) is not None:\n",
                "        if self.fill(membership, key, found._replace(seq=self.applied), body) is not None:\n",
            ),
        ),
        VALUES + "test_a_large_value_that_is_deleted_while_its_file_is_found_is_not_stored",
        NAMED,
    ),
    Mutant(
        "large value taken back into the session after that of its offer",
        (
            (
                STATE,
                "        if self.fill(membership, key, found, body) is not None:\n",
                "        if self.fill(self.membership, key, found, body) is not None:\n",
            ),
        ),
        VALUES + "test_a_large_value_that_is_found_when_its_session_has_ended_is_not_stored",
        NAMED,
    ),
    Mutant(
        "small values offered by each process of a host",
        (
            (
                STATE,
                "        self.former.keep((), self.cache.large_values(), self.epoch)\n        self._leave_joined(now)\n        self._void",
                "        self.former.keep(self.cache.values(), self.cache.large_values(), self.epoch)\n        self._leave_joined(now)\n        self._void",
            ),
            (STATE, "        self.former.keep((), (), self.former.epoch)  #", "        #"),
        ),
        VALUES + "test_the_processes_of_a_host_offer_their_large_values_in_the_next_page",
        "it is no stale read",
    ),
    Mutant(
        "large value compared with the bytes that Global would have to load",
        (("protocol.offers", "    return len(body.digest) if isinstance(body, Large) else len(body)\n", "    return body.size if isinstance(body, Large) else len(body)\n"),),
        VALUES + "test_a_large_value_counts_with_its_digest_in_an_offer",
        "it is no stale read",
    ),
    Mutant(
        "file taken whose size is another",
        (
            (
                FILES,
                "            if os.fstat(file.fileno()).st_size != size:\n                return None\n            view = mapping.read_only(file.fileno(), size)\n            copy",
                "            view = mapping.read_only(file.fileno(), size)\n            copy",
            ),
        ),
        TAKING + "test_a_file_that_is_gone_or_was_cut_short_is_not_taken",
        NO_FILES,
    ),
    Mutant(
        "file taken that was put in the place of the one that was looked at",
        ((FILES, "            if is_linked(file, here, copy):\n                return view\n", "            return view\n"),),
        TAKING + "test_a_file_that_takes_the_place_of_the_one_that_was_looked_at_is_not_taken",
        NO_FILES,
    ),
    Mutant(
        "file taken whose value another process is writing",
        ((MEMORY, "        return self.progress(token) is None\n", "        return True\n"),),
        TAKING + "test_a_value_that_another_process_is_writing_is_left_to_it",
        NO_FILES,
    ),
    Mutant(
        "file taken beyond the limit",
        ((MEMORY, "            self._room.keep_limit(here, copy, size)\n", "            pass\n"),),
        TAKING + "test_what_is_taken_counts_against_the_limit",
        NO_FILES,
    ),
    Mutant(
        "file left in the former folder, where it cannot be evicted",
        (
            (
                MEMORY,
                "        files.remove(there.directory, files.sealed_name(old, for_global=False))\n        return view\n",
                "        return view\n",
            ),
        ),
        TAKING + "test_a_copy_is_taken_without_copying_it",
        NO_FILES,
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
                "            self._offered = [] if self._offered else self._next()\n",
                "            self._offered = self._offered or self._next()\n",
            ),
        ),
        HERE + "test_an_offer_that_is_not_answered_is_the_last_one",
        NAMED,
    ),
    Mutant(
        "offer lost with its connection",
        ((STATE, "        self.former.again(now)\n", ""),),
        HERE + "test_an_offer_is_made_once_more_on_a_new_connection",
        "it is no stale read",
    ),
    Mutant(
        "large values forgotten that were not offered when the next session ended",
        ((FORMER, "chain(large, left)", "large"),),
        VALUES + "test_what_was_not_offered_when_a_session_ended_is_offered_in_the_next_one",
        "it is no stale read",
    ),
    Mutant(
        "large values left without a bound",
        ((FORMER, "islice(chain(large, left), LARGE_MAX)", "chain(large, left)"),),
        VALUES + "test_no_more_large_values_are_left_than_a_bound",
        "it is no stale read",
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
                "            quiet=self._writes.quiet_left(now),\n",
                "",
            ),
        ),
        HERE + "test_welcome_tells_what_is_left_of_the_quiet_period_and_writes_wait_for_it",
        "its outcome is unknown, which no simulated history forbids",
    ),
)  # fmt: skip
