"""Mutants: deliberately broken variants of the real core, each without one rule of the protocol.

A mutant is a change of source text, so that it breaks the code that really runs. Each has to be
caught by the simulation within a bounded number of seeds or, if the simulation cannot reach it, by
a named test. A text that is no longer in the source is an error, so that the mutants keep up with
the code.
"""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant
from tests.simulation.mutants_of_access import OF_ACCESS
from tests.simulation.mutants_of_cluster import OF_CLUSTER
from tests.simulation.mutants_of_data import OF_DATA
from tests.simulation.mutants_of_denials import OF_DENIALS
from tests.simulation.mutants_of_durability import OF_DURABILITY
from tests.simulation.mutants_of_expiry import OF_EXPIRY
from tests.simulation.mutants_of_hits import OF_HITS
from tests.simulation.mutants_of_hosts import OF_HOSTS
from tests.simulation.mutants_of_hosts_simulated import OF_HOSTS_SIMULATED
from tests.simulation.mutants_of_loads import OF_LOADS
from tests.simulation.mutants_of_members import OF_MEMBERS
from tests.simulation.mutants_of_operations import OF_OPERATIONS
from tests.simulation.mutants_of_partitions import OF_PARTITIONS
from tests.simulation.mutants_of_revalidation import OF_REVALIDATION
from tests.simulation.mutants_of_sessions import OF_SESSIONS
from tests.simulation.mutants_of_sharing import OF_SHARING
from tests.simulation.mutants_of_validity import OF_VALIDITY

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = (
    Mutant(
        "removal before acknowledgement",
        (
            (
                "core.authority.reads",
                "            stored = read(key)\n",
                "            stored = None if key in pending else read(key)\n",
            ),
        ),
    ),
    Mutant(
        "confirmation without waiting",
        (("core.authority.acknowledgements", "        if session.lease_end <= now:\n", "        if True:\n"),),
    ),
    Mutant(
        "no lease check",
        (
            (
                "core.local.entries",
                "if entry is None or not (now < membership.lease_end or stale_ok):",
                "if entry is None:",
            ),
        ),
    ),
    Mutant(
        "lease counted from receipt at the Local",
        (("core.local.state", "self._trust(sent_at)\n", "self._trust(now)\n"),),
    ),
    Mutant(
        "value of a pending key cached",
        (
            (
                "core.authority.reads",
                "            if key in pending or bit == NO_BIT or not hold(key, bit):\n",
                "            if bit == NO_BIT or not hold(key, bit):\n",
            ),
        ),
    ),
    Mutant(
        "reader not recorded as a holder",
        (
            (
                "core.authority.reads",
                "            if key in pending or bit == NO_BIT or not hold(key, bit):\n",
                "            if key in pending or bit == NO_BIT:\n",
            ),
        ),
    ),
    Mutant(
        "writer not recorded as a holder",
        (
            (
                "core.authority.writes",
                "        return self._holders.add(key, session.bit)\n",
                "        return True\n",
            ),
        ),
    ),
    Mutant(
        "acknowledgement that skips a gap",
        (
            (
                "core.local.state",
                "        if message.first > self.applied + 1:\n            self.counters",
                "        if message.first > self.applied + 1:\n"
                "            self.membership.applied = message.first - 1\n"
                "        if False:\n            self.counters",
            ),
        ),
    ),
    Mutant(
        "repeated HELLO that acknowledges",
        (
            (
                "core.authority.memberships",
                "        session.route = route\n        assert",
                "        session.route = route\n"
                "        recipient = self._invalidations.recipient(session)\n"
                "        acknowledged, seq = recipient.acknowledged, self._invalidations.log.seq\n"
                "        completed = self._invalidations.acknowledge(session, seq, now)\n"
                "        recipient.acknowledged = acknowledged\n"
                "        self._writes.complete(completed, now)\n        assert",
            ),
        ),
        CORE + "test_membership.py::test_a_hello_that_arrives_again_does_not_count_as_an_acknowledgement",
        "caught by the simulation too, but not within the bound: such a HELLO seldom meets a deletion",
    ),
    Mutant(
        "repeated HELLO that renews",
        (
            (
                "core.local.state",
                "self._hello_first = min(self._hello_first, now)",
                "self._hello_first = now",
            ),
        ),
    ),
    Mutant(
        "acknowledgement and SYNC of a former epoch accepted",
        (("core.authority.state", "        if epoch != self.epoch:\n", "        if False:\n"),),
        CORE + "test_strangers.py::test_what_does_not_match_changes_nothing",
        "sessions of two epochs of a Global do not have the same id",
    ),
    Mutant(
        "session ids that can be guessed",
        (("core.authority.sessions", "            number = self._random63()\n", "            number = self._number\n"),),
    ),
    Mutant(
        "session ids that come twice",
        (("core.authority.sessions", "while number == NO_SESSION or number in used:", "while number == NO_SESSION:"),),
        CORE + "test_membership.py::test_session_ids_and_secrets_are_what_the_host_draws_and_none_is_zero_or_in_use",
        "63 random bits do not repeat in a simulated run",
    ),
    Mutant(
        "GOODBYE of a former epoch accepted",
        (
            (
                "core.authority.memberships",
                "if session is not None and message.epoch == self._welcome.epoch:\n",
                "if session is not None:\n",
            ),
        ),
        CORE + "test_strangers.py::test_what_does_not_match_changes_nothing",
        "63 random bits do not repeat in a simulated run",
    ),
    Mutant(
        "deletions acknowledged that it has not heard of",
        (("core.authority.memberships", "        if applied > notified:\n", "        if False:\n"),),
        CORE + "test_strangers.py::test_an_acknowledgement_of_what_was_never_sent_is_refused",
        "no simulated Local says what is not so",
    ),
    Mutant(
        "upload of another session bound",
        (("core.authority.stages", "upload is None or upload.session != session.id or upload", "upload is None or upload"),),
        CORE + "test_strangers.py::test_an_upload_belongs_to_the_session_that_began_it",
        "no simulated Local knows the tokens of others before their values are bound",
    ),
    Mutant(
        "broadcast of a former epoch accepted",
        (
            (
                "core.local.state",
                "if not joined.session or self.closing or message.epoch != joined.epoch:",
                "if not joined.session or self.closing:",
            ),
        ),
    ),
    Mutant(
        "Global's expiry too early",
        (
            (
                "core.authority.sessions",
                "        session.renewed = True\n        session.lease_end = now + self.lease\n",
                "        session.renewed = True\n        session.lease_end = now + 0.5 * self.lease\n",
            ),
        ),
    ),
    Mutant(
        "DEL that waits for renewed leases for ever",
        (
            (
                "core.authority.acknowledgements",
                "while awaited and awaited[0][1] <= now:",
                "while awaited and recipient.session.lease_end <= now:",
            ),
        ),
        CORE + "test_deletion.py::test_the_lease_counts_as_it_stood_in_the_first_phase",
        "every simulated Local that renews also gets its targeted invalidations",
    ),
    Mutant(
        "cacheable answer to a repeated SET",
        (
            (
                "core.authority.sessions",
                "        SetResult(SetStatus(status), seq, False, None, confirmed, expired)\n",
                "        SetResult(SetStatus(status), seq, True, None, confirmed, expired)\n",
            ),
        ),
        CORE + "test_writes.py::test_a_repeated_set_gets_the_recorded_outcome_marked_do_not_cache",
        "the fill rule covers it: a session that is a holder no more has applied the invalidation",
    ),
    Mutant(
        "repeated SET executed again after a DEL",
        (("core.authority.writes", "        if known is not None:\n", "        if known is not None and isinstance(message, Del):\n"),),
    ),
    Mutant(
        "repeated DEL that removes a newer value",
        (("core.authority.writes", "        if known is not None:\n", "        if known is not None and isinstance(message, Set):\n"),),
    ),
    Mutant(
        "replace that joins another's wait",
        (
            (
                "core.authority.writes",
                "            queue.append(partial(self._set, write, index, item, replace))\n",
                "            def run(now: float) -> None:\n"
                "                old = self._engine.read(item.key)\n"
                "                if replace and old is not None:\n"
                "                    self._engine.replace(item.key, old.token, item.stored)\n"
                "                    result = SetResult(SetStatus.REPLACED, self._invalidations.log.seq)\n"
                "                    self._finish(write, index, result)\n"
                "                else:\n"
                "                    self._set(write, index, item, replace, now)\n\n"
                "            queue.append(run)\n",
            ),
        ),
    ),
    Mutant(
        "commit that removes a newer token",
        (
            (
                "server.engines.memory",
                "        if old is None or old.token != token:\n            return False\n        del",
                "        if old is None:\n            return False\n        del",
            ),
        ),
        CORE + "test_deletion.py::test_a_commit_removes_the_token_that_was_found_and_no_newer_one",
        "writes of a pending key wait, so that there is no newer token unless the engine has other writers",
    ),
    Mutant(
        "forked child that uses its parent's lease",
        (("client.lifecycle", "        node._forked()\n", "        pass\n"),),
        "tests/integration/test_node_ends.py::test_after_a_fork_nothing_of_the_parent_is_used",
        "the simulated processes do not fork",
    ),
    Mutant(
        "margin between the clocks dropped",
        (("core.local.state", "MARGIN = 0.05", "MARGIN = 0.0"),),
    ),
    Mutant(
        "DEL joins a replacement and says that the key is missing",
        (("core.authority.writes", "        elif pending.replacement is not None:\n", "        elif False:\n"),),
    ),
    Mutant(
        "outcome forgotten before it was seen",
        (("core.local.writer", "return min(self.writing, default=self.next)", "return self.next"),),
    ),
    Mutant(
        "large value bound before all of it is here",
        (
            (
                "core.authority.stages",
                "        if upload is None or not upload.complete:\n",
                "        if upload is None:\n",
            ),
        ),
        CORE + "test_large_uploads.py::test_an_upload_that_is_not_complete_cannot_be_bound",
        "a Local sends the SET when its upload is complete, and not before",
    ),
    Mutant(
        "bytes of a deleted value kept",
        (
            (
                "core.authority.writes",
                "        if removed and pending.large:\n            self._bulk.drop(pending.token)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "late chunk of a bound value begins a new upload",
        (
            (
                "core.authority.stages",
                "            if self._is_bound(token):\n",
                "            if False:\n",
            ),
        ),
        CORE + "test_large_uploads.py::test_a_late_chunk_of_a_value_that_is_bound_starts_no_upload",
        "messages on a simulated connection that is cut are lost, and never late",
    ),
    Mutant(
        "digest of an upload not compared",
        (
            (
                "core.authority.stages",
                "            if upload.hasher.digest() != upload.stored.body.digest:\n",
                "            if False:\n",
            ),
        ),
        CORE + "test_large_uploads.py::test_a_damaged_upload_is_refused_and_forgotten",
        "the simulated network loses and delays messages, but does not damage them",
    ),
    Mutant(
        "digest of a download not compared",
        (("core.local.transfer", "    if hasher.digest() != stored.body.digest:\n", "    if False:\n"),),
        CORE + "test_large_transfers.py::test_a_download_that_does_not_have_its_digest_is_damaged",
        "the simulated network loses and delays messages, but does not damage them",
    ),
    Mutant(
        "chunk written where another belongs",
        (
            (
                "core.local.transfer",
                "(reply.token, reply.offset) == (stored.token, received):",
                "reply.token == stored.token:",
            ),
        ),
        CORE + "test_large_transfers.py::test_a_download_goes_on_from_what_has_arrived",
        "the digest covers it: the transfer fails instead",
    ),
    Mutant(
        "deletion announced before it is complete",
        (
            (
                "core.authority.invalidations",
                "        return next(iter(self.pending.values())).seq - 1 if self.pending else self.log.seq\n",
                "        return self.log.seq\n",
            ),
        ),
        CORE + "test_watching.py::test_it_is_announced_when_a_get_no_longer_finds_the_old_value",
        "the simulation compares announcements with the number that is wrong here",
    ),
    Mutant(
        "invalidations kept for a pause are not broadcast with the next",
        (
            (
                "core.authority.broadcasts",
                "        first, keys, tokens = self.seq + 1, self._keys, self._tokens\n",
                "        first, keys, tokens = self.seq + len(self._keys), self._keys[-1:], self._tokens\n",
            ),
        ),
    ),
    Mutant(
        "first look of a watcher not delayed by what is pending",
        (
            (
                "core.local.watching",
                "            self.uncommitted.append(Removal(applied, None, watcher))\n",
                "            self.uncommitted.append(Removal(0, None, watcher))\n",
            ),
        ),
        CORE + "test_watching.py::test_what_was_dying_when_the_watch_began_delays_the_first_look",
        "simulated watchers read nothing; their announcements are compared with Global's number",
    ),
    Mutant(
        "flush not announced",
        (
            (
                "core.local.entries",
                "        self.watching.missed(seq)\n",
                "        pass\n",
            ),
        ),
    ),
    Mutant(
        "reminder scheduled without an earlier tick",
        (
            (
                "core.authority.acknowledgements",
                "        self._alarm.at(moment)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "WAIT of a former session answered",
        (("core.authority.memberships", "        self._waits.end(session)  # its bit", "        # its bit"),),
        CORE + "test_waits.py::test_a_session_that_has_ended_is_not_answered",
        "the bit of a session is used again only after a sweep of all keys",
    ),
    *OF_HITS,
    *OF_VALIDITY,
    *OF_OPERATIONS,
    *OF_SESSIONS,
    *OF_DURABILITY,
    *OF_DENIALS,
    *OF_HOSTS,
    *OF_SHARING,
    *OF_HOSTS_SIMULATED,
    *OF_EXPIRY,
    *OF_REVALIDATION,
    *OF_DATA,
    *OF_LOADS,
    *OF_PARTITIONS,
    *OF_ACCESS,
    *OF_CLUSTER,
    *OF_MEMBERS,
)  # fmt: skip
