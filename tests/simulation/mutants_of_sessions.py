"""Mutants of sessions: their kinds and secrets, and Global's own membership."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

HOST = "core.authority.host"
INVALIDATIONS = "core.authority.invalidations"
MEMBERSHIPS = "core.authority.memberships"
READS = "core.authority.reads"
SESSIONS = "core.authority.sessions"
STATE = "core.authority.state"
WRITES = "core.authority.writes"
OWN = CORE + "test_host_membership.py::"
WRITERS = CORE + "test_writers.py::"
STRANGERS = CORE + "test_strangers.py::"
NO_PAGE = "the simulated Global has no page that fails"
NO_WRITER = "simulated Locals write in the name of their memberships"
NO_FORGER = "no simulated peer says what only the owner of a session may say"
KNOWS_ID = (
    STRANGERS
    + "test_who_knows_only_the_id_asks_and_writes_but_neither_renews_nor_acknowledges_nor_ends"
)

OF_SESSIONS = (
    Mutant(
        "renewal or acknowledgement by the public id",
        (
            (
                STATE,
                "        return self._open(message.epoch, self._sessions.by_secret(message.secret, identity))\n",
                "        session = self._sessions.by_secret(message.secret, identity)\n"
                "        return self._open(message.epoch, session or self._sessions.get(message.secret))\n",
            ),
        ),
        KNOWS_ID,
        NO_FORGER,
    ),
    Mutant(
        "GOODBYE by the public id",
        (
            (
                MEMBERSHIPS,
                "        session = self._sessions.by_secret(message.secret, identity)\n",
                "        session = self._sessions.by_secret(message.secret, identity) or self._sessions.get(message.secret)\n",
            ),
        ),
        KNOWS_ID,
        NO_FORGER,
    ),
    Mutant(
        "HELLO that replaces the session with this public id",
        (
            (
                MEMBERSHIPS,
                "                replaced = self._sessions.by_secret(message.replaces_secret, identity)\n",
                "                replaced = self._sessions.get(message.replaces_secret)\n",
            ),
        ),
        STRANGERS + "test_a_hello_replaces_only_a_session_whose_secret_it_knows",
        NO_FORGER,
    ),
    Mutant(
        "WRITER that is a holder",
        ((SESSIONS, "self.holders.claim() if hello.kind is Kind.MEMBER else", "self.holders.claim() if hello.kind is not Kind.OBSERVER else"),),
        WRITERS + "test_a_writer_is_no_holder_and_not_notified",
        NO_WRITER,
    ),
    Mutant(
        "OBSERVER that is a holder",
        ((SESSIONS, "self.holders.claim() if hello.kind is Kind.MEMBER else", "self.holders.claim() if hello.kind is not Kind.WRITER else"),),
        WRITERS + "test_an_observer_is_notified_and_no_deletion_waits_for_it",
        "a simulated program that watches is a membership too",
    ),
    Mutant(
        "WRITER that has a lease",
        (
            (
                MEMBERSHIPS,
                '            raise Refuse(Refusal.BAD_MESSAGE, "a session of the kind WRITER has no lease")\n',
                "            self._sessions.renew(session, now)\n",
            ),
        ),
        WRITERS + "test_a_writer_neither_renews_nor_acknowledges",
        NO_WRITER,
    ),
    Mutant(
        "writes numbered by membership and not by writer",
        (
            (
                WRITES,
                "        session.forget_outcomes(message.seen)\n        known",
                "        session = self._holder(session, message) or session\n"
                "        session.forget_outcomes(message.seen)\n        known",
            ),
        ),
        WRITERS + "test_two_processes_of_a_host_use_the_same_write_numbers",
        NO_WRITER,
    ),
    Mutant(
        "value of a SET held by the writer and not by the holder that it names",
        (
            (
                WRITES,
                "        return session if message.holder == session.id else self._sessions.get(message.holder)\n",
                "        return session\n",
            ),
        ),
        WRITERS + "test_the_holder_that_a_set_names_may_cache_and_is_awaited",
        NO_WRITER,
    ),
    Mutant(
        "holder bit for a session that has ended",
        (
            (
                SESSIONS,
                "        known = self.open and self.bit != NO_BIT\n",
                "        known = self.bit != NO_BIT\n",
            ),
        ),
        WRITERS + "test_a_holder_that_ends_while_its_set_is_queued_gets_no_bit",
        "the bit is given to another session only after a sweep",
    ),
    Mutant(
        "WRITER that repeats a write counts as silent",
        (
            (
                STATE,
                "        self._sessions.heard(session, now)\n",
                '        if getattr(message, "write", 0) not in session.outcomes:\n'
                "            self._sessions.heard(session, now)\n",
            ),
        ),
        WRITERS + "test_a_writer_that_repeats_what_is_pending_is_not_silent",
        NO_WRITER,
    ),
    Mutant(
        "WRITER that uploads counts as silent",
        ((STATE, "        self._sessions.heard(session, now)\n", "        if not isinstance(message, m.Stage):\n            self._sessions.heard(session, now)\n"),),
        WRITERS + "test_a_writer_that_uploads_is_not_silent",
        NO_WRITER,
    ),
    Mutant(
        "WRITER that has written nothing keeps its place",
        ((SESSIONS, "        if not session.renewed:\n            return", "        if not session.renewed and session.kind is not Kind.WRITER:\n            return"),),
        WRITERS + "test_a_flood_of_writers_that_write_nothing_does_not_keep_its_places",
        NO_WRITER,
    ),
    Mutant(
        "busy WRITER gives up its place",
        ((SESSIONS, "            session.lease_end = now + WRITER_IDLE\n", "            session.lease_end = now\n"),),
        WRITERS + "test_where_places_are_scarce_an_idle_writer_gives_way_and_a_busy_one_does_not",
        NO_WRITER,
    ),
    Mutant(
        "value cacheable without a session",
        (
            (
                READS,
                "            if key in pending or bit == NO_BIT or not hold(key, bit):\n",
                "            if key in pending or bit != NO_BIT and not hold(key, bit):\n",
            ),
        ),
        WRITERS + "test_without_a_session_a_peer_reads_and_nothing_is_cacheable",
        "simulated Locals always name their session",
    ),
    Mutant(
        "no word in the page of Global's host",
        ((HOST, "                self._page.note(key, seq)\n", "                pass\n"),),
        OWN + "test_a_word_is_written_before_the_engine_changes_and_counts_as_confirmed",
        NO_PAGE,
    ),
    Mutant(
        "word in the page of Global's host only if that is a holder",
        (
            (
                WRITES,
                "                if not self._invalidations.own.invalidated(pending.key, pending.seq, now):\n",
                "                if pending.confirmed and not self._invalidations.own.invalidated(pending.key, pending.seq, now):\n",
            ),
        ),
        OWN + "test_a_word_is_written_though_no_process_of_the_host_is_a_holder",
        NO_PAGE,
    ),
    Mutant(
        "word written after the engine has changed",
        (
            (
                WRITES,
                "                self._completed.popleft()\n"
                "                pending.submitted = True\n"
                "                self._changes.submit(self._change(pending), partial(self._commit, pending), now)\n",
                "",
            ),
            (
                WRITES,
                "                pending = self._completed[0]\n",
                "                pending = self._completed.popleft()\n"
                "                self._changes.submit(self._change(pending), partial(self._commit, pending), now)\n",
            ),
        ),
        OWN + "test_a_word_is_written_before_the_engine_changes_and_counts_as_confirmed",
        NO_PAGE,
    ),
    Mutant(
        "own membership awaited",
        ((INVALIDATIONS, "            if session is self.own.session:\n", "            if False:\n"),),
        OWN + "test_it_is_neither_awaited_nor_sent_anything_nor_a_reason_to_broadcast",
        NO_PAGE,
    ),
    Mutant(
        "own membership not counted as confirmed",
        ((INVALIDATIONS, "                pending.confirmed += 1  # see", "                pass  # see"),),
        OWN + "test_it_waits_with_all_holders_for_the_commit_and_each_is_counted_once",
        NO_PAGE,
    ),
    Mutant(
        "page that cannot be written is not voided",
        ((HOST, "            page.void()\n", "            pass\n"),),
        OWN + "test_a_page_that_cannot_be_written_is_voided_and_the_deletion_goes_on",
        NO_PAGE,
    ),
    Mutant(
        "page that cannot be voided is not waited for",
        ((HOST, "        return now >= self._trusted_until\n", "        return True\n"),),
        OWN + "test_if_it_cannot_be_voided_either_the_deletion_waits_for_the_lease_that_it_had",
        NO_PAGE,
    ),
    Mutant(
        "page that cannot be voided is forgotten by the next tick",
        (
            (
                HOST,
                "        self.wake_at = min(renewal, self._trusted_until) if now < self._trusted_until else renewal\n",
                "        self.wake_at = renewal\n",
            ),
        ),
        OWN + "test_if_it_cannot_be_voided_either_the_deletion_waits_for_the_lease_that_it_had",
        NO_PAGE,
    ),
    Mutant(
        "new page that makes the former one forgotten",
        ((HOST, "        self._page = page\n", "        self._page, self._trusted_until = page, 0.0\n"),),
        OWN + "test_a_new_page_does_not_make_up_for_the_former_one_that_is_still_trusted",
        NO_PAGE,
    ),
    Mutant(
        "renewal that fails has written nothing",
        (
            (
                HOST,
                "            self._lease_end = now + self._lease\n            try:\n                self._page.renew(self._lease_end)\n",
                "            try:\n                self._page.renew(now + self._lease)\n"
                "                self._lease_end = now + self._lease\n",
            ),
        ),
        OWN + "test_a_failing_renewal_ends_the_page_at_the_later_of_both_leases",
        NO_PAGE,
    ),
    Mutant(
        "lease of the page not renewed",
        ((STATE, "            self._own.tick(now)\n", "            pass\n"),),
        OWN + "test_its_lease_is_renewed_by_ticks_and_ends_without_them",
        NO_PAGE,
    ),
    Mutant(
        "former page not voided before that of the next session",
        ((STATE, "        self.close_host(now)\n        host", "        host"),),
        OWN + "test_a_page_of_a_new_session_takes_the_place_of_the_former",
        NO_PAGE,
    ),
    Mutant(
        "writes in the name of Global's host",
        ((STATE, "        if session is self._host:\n", "        if False:\n"),),
        OWN + "test_no_process_writes_or_uploads_in_the_name_of_the_host",
        NO_PAGE,
    ),
    Mutant(
        "session of Global's host that a message can end",
        (
            (
                SESSIONS,
                '        return self._add(Hello(b"", 0, NO_SESSION, label), b"", float("inf"), None, ANYONE)\n',
                '        own = self._add(Hello(b"", 0, NO_SESSION, label), b"", float("inf"), None, ANYONE)\n'
                "        self._by_secret[own.secret] = own\n"
                "        return own\n",
            ),
        ),
        OWN + "test_no_message_renews_acknowledges_ends_or_replaces_it",
        NO_PAGE,
    ),
)  # fmt: skip
