"""Mutants of a Local that shares the membership of its host."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

CACHE = "core.local.cache"
DIRECT_PATH = "core.local.operations.direct"
ENTRIES = "core.local.entries"
EXCHANGE = "core.local.operations.exchange"
MEMBERSHIPS = "core.authority.memberships"
READER = "client.host_reader"
STATE = "core.local.state"
WRITER = "core.local.writer"
WRITING = "core.local.operations.writing"
PAGE_TESTS = CORE + "test_sharing_pages.py::"
FORK_TESTS = CORE + "test_sharing_forks.py::"
READ_TESTS = CORE + "test_sharing_reads.py::"
OBSERVER_TESTS = CORE + "test_sharing_observers.py::"
WRITE_TESTS = CORE + "test_sharing_writes.py::"
NAMED = "a test spells out the order of these steps"


def _mutant(name: str, module: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(name, ((module, old, new),), test, NAMED)


OF_SHARING = (
    # ---- which page may be used -------------------------------------------------------------
    _mutant(
        "page with a lapsed lease attached",
        STATE,
        "        if self.closing or other or refused or lease_word(page.now()) >= page.lease_word[0]:\n",
        "        if self.closing or other or refused:\n",
        PAGE_TESTS + "test_a_page_whose_lease_has_lapsed_is_not_used",
    ),
    _mutant(
        "page of another epoch than the session attached",
        STATE,
        "        other = joined.session and joined.epoch != page.epoch\n",
        "        other = False\n",
        PAGE_TESTS + "test_a_page_of_another_epoch_than_the_session_is_not_used",
    ),
    _mutant(
        "page attached again that Global has refused",
        STATE,
        "        refused = (page.epoch, page.session) in self._refused\n",
        "        refused = False\n",
        PAGE_TESTS + "test_a_page_that_global_has_refused_is_never_used_again",
    ),
    _mutant(
        "page kept whose session Global has refused",
        STATE,
        "            self._refused.append((self.epoch, self.session))  # whatever its lease says\n"
        "            self.detach(now)\n",
        "            pass\n",
        PAGE_TESTS + "test_a_page_that_global_has_refused_is_never_used_again",
    ),
    _mutant(
        "page kept although Global refuses its epoch to a writer",
        STATE,
        "        ended = {message.session, *(other_epoch * [self.session, joined.session])}\n",
        "        ended = {message.session}\n",
        PAGE_TESTS + "test_a_refusal_of_the_epoch_ends_the_page_whatever_was_refused",
    ),
    _mutant(
        "page of another epoch than Global's kept",
        STATE,
        "        if self.page is None or self.page.epoch == epoch:\n",
        "        if True:\n",
        PAGE_TESTS + "test_a_session_of_another_epoch_ends_the_page",
    ),
    _mutant(
        "page attached after closing",
        STATE,
        "        if self.closing or other or refused or lease_word",
        "        if other or refused or lease_word",
        WRITE_TESTS + "test_closing_ends_in_every_state",
    ),
    _mutant(
        "HELLO before it is known whether there is a page",
        STATE,
        "            elif self._wants_session and not looking:",
        "            elif self._wants_session:",
        PAGE_TESTS + "test_what_is_asked_for_first_is_a_page",
    ),
    _mutant(
        "session left that a late WELCOME has begun",
        STATE,
        "        if message.nonce == self._abandoned:\n",
        "        if False:\n",
        PAGE_TESTS
        + "test_an_answer_to_a_hello_that_is_not_needed_any_more_is_answered_with_goodbye",
    ),
    _mutant(
        "private session kept while the page is used",
        STATE,
        "        self._leave_joined(now)\n        self.former.keep((), (), self.former.epoch)",
        "        self.former.keep((), (), self.former.epoch)",
        PAGE_TESTS + "test_a_private_membership_is_given_back_when_there_is_a_page",
    ),
    # ---- detaching ----------------------------------------------------------------------------
    _mutant(
        "void page waited for",
        STATE,
        "        if not page.lease_word[0]:\n",
        "        if False:\n",
        PAGE_TESTS + "test_a_void_page_is_given_up_at_once_and_reads_go_on_without_a_session",
    ),
    _mutant(
        "page left at its first lapse",
        STATE,
        "        elif now >= self._lapsed_at + PRIVATE_AFTER:\n",
        "        elif True:\n",
        PAGE_TESTS + "test_a_short_lapse_is_no_reason_to_leave",
    ),
    _mutant(
        "page kept however long it has lapsed",
        STATE,
        "        elif now >= self._lapsed_at + PRIVATE_AFTER:\n",
        "        elif False:\n",
        PAGE_TESTS + "test_a_long_lapse_ends_in_a_private_membership",
    ),
    _mutant(
        "lapse noticed by reads of one key only",
        ENTRIES,
        "        if now >= lease_end:\n            self._note_lapse(page)\n",
        "",
        PAGE_TESTS + "test_a_long_lapse_ends_in_a_private_membership",
    ),
    _mutant(
        "lapse that is over not forgotten",
        STATE,
        "            self._lapsed_at = NEVER\n        elif now >=",
        "            pass\n        elif now >=",
        PAGE_TESTS + "test_a_short_lapse_is_no_reason_to_leave",
    ),
    _mutant(
        "reads that wait for a session when the page has ended",
        STATE,
        "        self.bridging = self.joining\n",
        "        self.bridging = False\n",
        PAGE_TESTS + "test_a_void_page_is_given_up_at_once_and_reads_go_on_without_a_session",
    ),
    _mutant(
        "reads without a session where the page is required",
        STATE,
        "        self.bridging = self.joining\n",
        "        self.bridging = True\n",
        PAGE_TESTS + "test_a_local_that_must_share_never_joins_by_itself",
    ),
    _mutant(
        "private session at once when the page has ended",
        STATE,
        "        self.bridging = self.joining\n        self._hello_at = now + PRIVATE_AFTER\n",
        "        self.bridging = self.joining\n",
        PAGE_TESTS + "test_it_joins_by_itself_after_a_while_without_a_page",
    ),
    _mutant(
        "new connection that hastens the private session",
        STATE,
        "        if not self.bridging or self._hello_first < NEVER:",
        "        if True:",
        PAGE_TESTS + "test_a_new_connection_is_no_reason_to_join_earlier",
    ),
    _mutant(
        "page not looked for after it has ended",
        STATE,
        "        self._look_at = now if self.looking else NEVER\n",
        "        self._look_at = NEVER\n",
        PAGE_TESTS + "test_it_shares_again_when_there_is_a_new_page",
    ),
    _mutant(
        "page not looked for from a private membership",
        STATE,
        "            if self.looking:\n                self._look_at = now\n",
        "            self._look_at = NEVER\n",
        PAGE_TESTS + "test_it_shares_again_from_a_private_membership",
    ),
    _mutant(
        "page looked for all the time",
        STATE,
        "                self._look_at = now + (LOOK_SOON if soon else LOOK_LATER)\n",
        "                self._look_at = now\n",
        PAGE_TESTS + "test_it_looks_often_while_bridging_and_never_spins",
    ),
    _mutant(
        "page looked for often for ever",
        STATE,
        "                soon = now < self._hello_at and self._hello_first == NEVER",
        "                soon = self.bridging",
        PAGE_TESTS + "test_it_looks_often_while_bridging_and_never_spins",
    ),
    # ---- forked children ----------------------------------------------------------------------
    _mutant(
        "entries of another membership inherited",
        STATE,
        "        same = (membership.epoch, membership.session) == (page.epoch, page.session)\n",
        "        same = True\n",
        FORK_TESTS + "test_a_child_inherits_nothing_of_another_membership",
    ),
    _mutant(
        "entries inherited without a list of their own",
        STATE,
        "            self.cache.adopt(membership.entries, digests)\n",
        "            self.cache.entries = membership.entries\n",
        FORK_TESTS + "test_a_child_of_a_thread_in_the_middle_of_an_insertion_has_a_whole_cache",
    ),
    _mutant(
        "entries inherited beyond the limit",
        CACHE,
        "        self._newest = older\n        self.shrink()\n",
        "        self._newest = older\n",
        FORK_TESTS + "test_a_child_of_a_thread_in_the_middle_of_an_insertion_has_a_whole_cache",
    ),
    _mutant(
        "entries inherited whose deletion cannot be reported",
        STATE,
        "        if self.page is page and same and not self.observing:\n",
        "        if self.page is page and same:\n",
        FORK_TESTS + "test_a_child_that_has_to_report_deletions_inherits_no_entries",
    ),
    _mutant(
        "child with the words of its parent's page",
        STATE,
        "            self._share_entries(page, membership.entries)\n",
        "            self.membership = membership\n",
        READ_TESTS + "test_a_child_looks_at_the_host_cache_like_its_parent",
    ),
    # ---- hits ---------------------------------------------------------------------------------
    _mutant(
        "shared hit that does not compare the word",
        ENTRIES,
        "        if entry is None or page.vector.words[entry.bucket] > entry.seq:\n",
        "        if entry is None:\n",
        READ_TESTS + "test_a_value_is_valid_if_no_word_is_above_its_number",
    ),
    _mutant(
        "shared hit that takes an equal word for a newer one",
        ENTRIES,
        "        if entry is None or page.vector.words[entry.bucket] > entry.seq:\n",
        "        if entry is None or page.vector.words[entry.bucket] >= entry.seq:\n",
        READ_TESTS + "test_a_value_is_valid_if_no_word_is_above_its_number",
    ),
    _mutant(
        "value of the host cache used whatever its word says",
        ENTRIES,
        "        if record is None or page.vector.words[bucket] > record.seq:\n",
        "        if record is None:\n",
        READ_TESTS + "test_a_value_is_valid_if_no_word_is_above_its_number",
    ),
    _mutant(
        "shared hit that reads the clock first",
        ENTRIES,
        "        lease_end = membership.lease_end\n"
        "        entry = membership.entries.get(key)\n"
        "        if entry is None or page.vector.words[entry.bucket] > entry.seq:\n"
        "            entry = self._read_host(page, key)\n"
        "        # The clock is read last: another process changes the page.\n"
        "        now = page.now()\n",
        "        lease_end = membership.lease_end\n"
        "        now = page.now()\n"
        "        entry = membership.entries.get(key)\n"
        "        if entry is None or page.vector.words[entry.bucket] > entry.seq:\n"
        "            entry = self._read_host(page, key)\n",
        READ_TESTS + "test_the_words_are_read_before_the_clock",
    ),
    _mutant(
        "shared hit that notes the lease after the words",
        ENTRIES,
        "        now = page.now()\n        if now >= lease_end:\n            self._note_lapse(page)\n        if entry",
        "        now, lease_end = page.now(), membership.lease_end\n        if entry",
        READ_TESTS + "test_the_lease_is_noted_before_the_words_are_read",
    ),
    _mutant(
        "value kept by the process at its first read",
        ENTRIES,
        "        return self.observing or self.seen.again(hashed)\n",
        "        return True\n",
        READ_TESTS + "test_a_value_is_kept_by_the_process_from_the_second_read_on",
    ),
    _mutant(
        "value never kept by the process",
        ENTRIES,
        "        return self.observing or self.seen.again(hashed)\n",
        "        return self.observing\n",
        READ_TESTS + "test_a_value_is_kept_by_the_process_from_the_second_read_on",
    ),
    _mutant(
        "host cache not looked at by an operation",
        DIRECT_PATH,
        "        if state.page is not None:  # the host cache may have what the cache has not\n",
        "        if False:\n",
        PAGE_TESTS + "test_what_one_process_has_read_the_others_have",
    ),
    _mutant(
        "value promoted for a page that has ended",
        ENTRIES,
        "        if page is not self.page or self.closing:\n            return None\n        return self._store",
        "        return self._store",
        WRITE_TESTS + "test_what_was_looked_up_is_not_kept_for_a_page_that_has_ended",
    ),
    _mutant(
        "look at the host cache without the word",
        READER,
        "        if words is None or record is None or words[hashed % len(words)] > record.seq:\n",
        "        if words is None or record is None:\n",
        READ_TESTS + "test_a_look_at_the_host_cache_compares_the_word",
    ),
    _mutant(
        "look at the host cache that reads the clock first",
        READER,
        "        hashed = self._hashed(key)\n",
        '        lease_end = float("inf") if clock.now_ns() < lease_end else 0\n'
        "        hashed = self._hashed(key)\n",
        READ_TESTS + "test_a_look_at_the_host_cache_notes_the_lease_first_and_reads_the_clock_last",
    ),
    _mutant(
        "look at the host cache that notes the lease last",
        READER,
        "        return None if clock.now_ns() >= lease_end else (hashed, record)\n",
        "        return None if clock.now_ns() >= membership.lease[0] else (hashed, record)\n",
        READ_TESTS + "test_a_look_at_the_host_cache_notes_the_lease_first_and_reads_the_clock_last",
    ),
    Mutant(
        "host cache of one session with the lease of another",
        (
            (
                "client.node",
                "        page, membership = state.page, state.membership\n"
                "        if type(page) is not HostPage or page.reader is None:\n"
                "            return NOTHING\n"
                "        if membership.words is not page.vector.words:\n",
                "        page, membership = state.page, state.membership\n"
                "        if type(page) is not HostPage or page.reader is None:\n"
                "            return NOTHING\n"
                "        if False:\n",
            ),
        ),
        "tests/integration/test_host_hits.py::test_a_read_in_the_middle_of_a_switch_does_not_use_the_host_cache",
        NAMED,
    ),
    # ---- filling ------------------------------------------------------------------------------
    _mutant(
        "value put into the host cache that is dead on arrival",
        ENTRIES,
        "        if page.vector.words[bucket] > seq:\n            return None  # it would be of no use\n",
        "",
        READ_TESTS + "test_a_reply_is_dead_on_arrival_if_its_word_was_raised_meanwhile",
    ),
    _mutant(
        "values put into the host cache that are dead on arrival",
        ENTRIES,
        "            if found.cacheable and words[hashed % buckets] <= reply.seq:",
        "            if found.cacheable:",
        READ_TESTS + "test_a_reply_is_dead_on_arrival_if_its_word_was_raised_meanwhile",
    ),
    Mutant(
        "reply filled under the present page and not the one that asked",
        (
            (
                ENTRIES,
                "        if membership is not self.membership or self.closing:\n",
                "        if self.closing:\n",
            ),
        ),
        READ_TESTS + "test_a_value_is_kept_under_the_membership_that_asked_only",
        NAMED,
    ),
    _mutant(
        "replies of many keys filled under the present page",
        ENTRIES,
        "        present = membership is self.membership and not self.closing\n        if present",
        "        present = not self.closing\n        if present",
        READ_TESTS + "test_a_value_is_kept_under_the_membership_that_asked_only",
    ),
    _mutant(
        "value lost that the host cache does not take",
        ENTRIES,
        "        if is_there and not self.observing and key not in self.membership.entries:\n",
        "        if not self.observing and key not in self.membership.entries:\n",
        READ_TESTS + "test_a_value_that_the_host_cache_does_not_take_is_kept_by_the_process",
    ),
    _mutant(
        "large value of a shared membership without its bucket",
        ENTRIES,
        "        bucket = 0 if membership.words is None else self.vector.bucket(key)\n        return self.cache.insert_mapped",
        "        bucket = 0\n        return self.cache.insert_mapped",
        READ_TESTS + "test_a_large_value_follows_the_words_too",
    ),
    _mutant(
        "large value filled without a look at the words",
        ENTRIES,
        "        stale = present and (shared or seq < membership.applied) and",
        "        stale = present and seq < membership.applied and",
        READ_TESTS + "test_a_large_value_follows_the_words_too",
    ),
    _mutant(
        "dead large value kept",
        ENTRIES,
        "        if page is None or page.vector.words[entry.bucket] <= entry.seq:\n",
        "        if True:\n",
        READ_TESTS + "test_a_large_value_follows_the_words_too",
    ),
    # ---- observers ----------------------------------------------------------------------------
    _mutant(
        "observer that goes on when the last watch has ended",
        STATE,
        "        if self._kind is Kind.OBSERVER and not self._wants_session:\n",
        "        if False:\n",
        OBSERVER_TESTS + "test_a_watch_has_a_session_that_observes_while_it_lasts",
    ),
    _mutant(
        "observer whose end is not due",
        STATE,
        "            if self.joined.session:  # an observer leaves\n                return LAPSED\n            return at\n",
        "            return min(at, self._sync_at) if self.joined.session else at\n",
        OBSERVER_TESTS + "test_a_watch_has_a_session_that_observes_while_it_lasts",
    ),
    _mutant(
        "observer that joins as a membership",
        STATE,
        "        return Kind.MEMBER if self.page is None else Kind.OBSERVER\n",
        "        return Kind.MEMBER\n",
        OBSERVER_TESTS + "test_a_watch_has_a_session_that_observes_while_it_lasts",
    ),
    _mutant(
        "observer that acknowledges",
        STATE,
        "            if self._kind is Kind.MEMBER:  # no deletion waits for an observer\n",
        "            if True:\n",
        OBSERVER_TESTS + "test_an_observer_acknowledges_nothing_at_once",
    ),
    _mutant(
        "numbers of a former observer kept",
        ENTRIES,
        "        self.joined = Membership({})\n        self.watching.void()\n",
        "        self.joined = Membership({})\n",
        OBSERVER_TESTS + "test_what_was_committed_is_forgotten_with_the_session_that_observed",
    ),
    _mutant(
        "deletion of a value of the host cache not reported",
        ENTRIES,
        "        return self.observing or self.seen.again(hashed)\n",
        "        return self.seen.again(hashed)\n",
        OBSERVER_TESTS + "test_what_was_cached_and_is_deleted_is_reported",
    ),
    _mutant(
        "value kept that is there for the others and not reported",
        ENTRIES,
        "        if is_there and not self.observing and key",
        "        if is_there and key",
        OBSERVER_TESTS + "test_what_was_cached_and_is_deleted_is_reported",
    ),
    _mutant(
        "value kept before anything could report its deletion",
        ENTRIES,
        "        return heard is None or (bool(self.joined.session) and not heard.after(key, seq))\n",
        "        return heard is None or not heard.after(key, seq)\n",
        OBSERVER_TESTS + "test_what_cannot_be_reported_is_not_kept",
    ),
    _mutant(
        "key refused for a value of the host cache whose deletion is not reported",
        ENTRIES,
        "        return known and not (self.observing and key not in self.membership.entries)\n",
        "        return known\n",
        OBSERVER_TESTS + "test_who_is_refused_a_key_here_hears_of_its_deletion",
    ),
    _mutant(
        "observer that joins with the newest number, while a deletion is pending",
        MEMBERSHIPS,
        "            seq = self._invalidations.committed\n",
        "            pass\n",
        OBSERVER_TESTS + "test_an_observer_reports_the_deletion_that_was_pending_when_it_joined",
    ),
    _mutant(
        "observer that does not ask for what is pending",
        STATE,
        "        if self._kind is Kind.OBSERVER:  # of what is pending it has yet to hear\n",
        "        if self.watching.watchers:\n",
        OBSERVER_TESTS + "test_an_observer_reports_the_deletion_that_was_pending_when_it_joined",
    ),
    _mutant(
        "value kept whose deletion the observer has heard of",
        ENTRIES,
        "        return heard is None or (bool(self.joined.session) and not heard.after(key, seq))\n",
        "        return heard is None or bool(self.joined.session)\n",
        OBSERVER_TESTS + "test_what_cannot_be_reported_is_not_kept",
    ),
    _mutant(
        "entries kept over a gap of the observer",
        ENTRIES,
        "            self._heard = Vector(bytes(16), self.buckets)\n            self.cache.clear()\n",
        "            self._heard = Vector(bytes(16), self.buckets)\n",
        OBSERVER_TESTS + "test_an_observer_that_begins_again_keeps_nothing",
    ),
    # ---- writers ------------------------------------------------------------------------------
    _mutant(
        "writes in the name of the shared session",
        STATE,
        "        self.bridging = False\n        self._look_at = self._lapsed_at = NEVER\n",
        "        self.bridging = False\n        self._look_at = self._lapsed_at = NEVER\n"
        "        self.writer = Writer(page.epoch, page.session)\n",
        WRITE_TESTS + "test_a_session_to_write_is_opened_by_the_first_write",
    ),
    _mutant(
        "session to write opened before it is needed",
        STATE,
        "        self.bridging = False\n        self._look_at = self._lapsed_at = NEVER\n",
        "        self.bridging = False\n        self._look_at = self._lapsed_at = NEVER\n"
        "        self.want_writer(now)\n",
        WRITE_TESTS + "test_a_session_to_write_is_opened_by_the_first_write",
    ),
    _mutant(
        "written value held by the writer's session",
        WRITING,
        "    holder = state.session if state.epoch == writer.epoch else NO_SESSION\n",
        "    holder = writer.session\n",
        WRITE_TESTS + "test_a_session_to_write_is_opened_by_the_first_write",
    ),
    _mutant(
        "refused session to write used again",
        STATE,
        "        if writer.secret and (message.epoch",
        "        if False and (message.epoch",
        WRITE_TESTS + "test_a_write_after_global_has_restarted_opens_another_session",
    ),
    _mutant(
        "session to write left open",
        STATE,
        "        if self.writer.secret:\n            self._leaving.append((self.writer.epoch, self.writer.secret, None))\n",
        "",
        WRITE_TESTS + "test_closing_never_ends_the_session_of_the_host",
    ),
    _mutant(
        "large value bound in another session than the one that has uploaded it",
        "core.local.operations.writing",
        "            writer, membership = uploader or state.writer, state.membership\n",
        "            writer, membership = state.writer, state.membership\n",
        WRITE_TESTS + "test_a_large_value_is_bound_in_the_session_that_has_uploaded_it",
    ),
    _mutant(
        "membership that ends before the uploads that it serves",
        "core.local.writer",
        "        return not self.writing and not self.uploads\n",
        "        return not self.writing\n",
        WRITE_TESTS + "test_a_large_value_is_bound_in_the_session_that_has_uploaded_it",
    ),
    _mutant(
        "membership that ends before the writes that it serves",
        STATE,
        "            if writer is None or writer.idle:\n",
        "            if True:\n",
        WRITE_TESTS + "test_a_membership_ends_after_the_writes_that_it_serves",
    ),
    _mutant(
        "goodbye after the last write not due",
        STATE,
        "        if self._withdrawn or any(not each or each.idle for _, _, each in self._leaving):\n",
        "        if self._withdrawn:\n",
        WRITE_TESTS + "test_a_membership_ends_after_the_writes_that_it_serves",
    ),
    # ---- closing ------------------------------------------------------------------------------
    _mutant(
        "observer left when a Node is closed",
        ENTRIES,
        "        else:  # the page is not ours to change\n            self.membership = Membership(self.cache.renew())\n",
        "        else:\n            self._new_membership(bytes(16))\n",
        WRITE_TESTS + "test_closing_never_ends_the_session_of_the_host",
    ),
    _mutant(
        "page voided by a process that is closed",
        ENTRIES,
        "        if self.page is None:\n            self.membership.lease_end = LAPSED\n        else:",
        "        if True:\n            self.membership.lease_end = LAPSED\n        else:",
        WRITE_TESTS + "test_closing_never_ends_the_session_of_the_host",
    ),
    _mutant(
        "page voided by a process that leaves it",
        ENTRIES,
        "        if self.page is None:\n            # First:",
        "        if True:\n            # First:",
        PAGE_TESTS + "test_a_page_that_global_has_refused_is_never_used_again",
    ),
    # ---- numbers ------------------------------------------------------------------------------
    _mutant(
        "requests of all processes with the same numbers",
        STATE,
        '        self.request = int.from_bytes(random16()[:6], "big") << 8\n',
        "",
        WRITE_TESTS + "test_requests_of_two_processes_of_a_session_have_different_numbers",
    ),
)
