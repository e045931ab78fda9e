"""Mutants of several Globals: ownership, fences, doubt, quiet times, hand-overs, and routing.

What SQL does and what a host of a member does has stand-ins in the simulation, and mutants there.
There is none in which the clock of the database steps: no time of the database is in any rule, and
none in its tables. A member counts by its own clock alone.
"""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import Mutant

OWNERSHIP = "core.cluster.ownership"
SIGHTINGS = "core.cluster.sightings"
PARTITIONS = "core.authority.partitions"
STATE = "core.authority.state"
WRITES = "core.authority.writes"
READS = "core.authority.reads"
EXCHANGE = "core.local.operations.exchange"
LOCAL = "core.local.state"
ROUTING = "client.cluster.routing"
TABLES = "tests.simulation.cluster.tables"
SERVERS = "tests.simulation.cluster.servers"
JOURNAL = "tests.simulation.cluster.journal"
MEMBER = "tests.simulation.cluster.member"
CLUSTER = "tests/simulation/test_cluster.py::"
OWNED = "tests/unit/core/test_ownership.py::"
CLUSTERS = "tests/unit/core/test_clusters.py::"
ROUTES = "tests/unit/test_cluster_routing.py::"
STRANGE = "no other Global is there before all simulated clients know the cluster"
NO_PAGES = "the simulated strangers share no page with a host"
RARE = "two changes of an owner within one quiet time, and a value that is held all the while, are rare"


def _mutant(name: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, ((module, old, new),), cluster=True)


OF_CLUSTER = (
    # ---- the ownership lease
    _mutant(
        "paused owner that answers: reads outside the ownership lease",
        PARTITIONS,
        "        if now >= self.ends:\n",
        "        if False:\n",
    ),
    _mutant(
        "ownership lease counted from the receipt of the answer",
        OWNERSHIP,
        "        ends = self._asked_at + self._lease * (1 - MARGIN)\n",
        "        ends = now + self._lease * (1 - MARGIN)\n",
    ),
    Mutant(
        "ownership lease without a margin",
        (
            (
                OWNERSHIP,
                "        ends = self._asked_at + self._lease * (1 - MARGIN)\n",
                "        ends = self._asked_at + self._lease * (1 + 2 * MARGIN)\n",
            ),
        ),
        OWNED + "test_the_ownership_lease_counts_from_before_the_beat_was_asked_for",
        "it is the rates of clocks that need it, and few runs have two that differ as much",
    ),
    Mutant(
        "ownership lease renewed after a loss",
        (
            (
                OWNERSHIP,
                "        if row is None or row.beat != ask.beat:\n            return self._lose(",
                "        if row is not None and row.beat != ask.beat:\n            return self._lose(",
            ),
            (
                OWNERSHIP,
                '            if view.partitions[number].owner != self.me:\n                return self._lose(f"partition {number} has another owner")\n',
                "",
            ),
            (
                OWNERSHIP,
                "        if not self.ends or now < self.ends:\n            return []\n        return self._lose(",
                "        return []\n        return self._lose(",
            ),
            (
                PARTITIONS,
                "            self._lapsed = self._lapsed or self.ends > 0.0  # else nothing was missed\n",
                "",
            ),
            (
                OWNERSHIP,
                "        able = {name for name in (*others, self.me) if not rows[name].draining}\n",
                "        able = {name for name in (*others, self.me) if name in rows and not rows[name].draining}\n",
            ),
        ),
        cluster=True,
    ),
    _mutant(
        "partitions of before a loss served under the new lease",
        MEMBER,
        "            elif isinstance(effect, Lost):\n                self.partitions.ends = 0.0\n                self._drop_epoch()\n                self.journal.close()\n                self._begin_tenure()\n",
        "            elif isinstance(effect, Lost):\n                pass\n",
    ),
    # ---- candidates
    Mutant(
        "beat of another member counted from when it was asked for",
        (
            (
                OWNERSHIP,
                "        self._sightings.take(view, now)\n",
                "        self._sightings.take(view, self._asked_at)\n",
            ),
        ),
        OWNED + "test_a_beat_is_counted_from_when_it_was_seen",
        "the other one has to stop just after its beat, while the answer of the database is late",
    ),
    _mutant(
        "member that is declared dead before its lease has ended",
        SIGHTINGS,
        "    return sighting.at + sighting.lease * (1 + MARGIN)\n",
        "    return sighting.at + sighting.lease * 0.6\n",
    ),
    _mutant(
        "row of a dead member deleted whatever its beat is by now",
        TABLES,
        "            if row is not None and row.beat == beat:\n",
        "            if row is not None:\n",
    ),
    _mutant(
        "partition of a live member claimed",
        TABLES,
        "        if row.owner in (None, ask.me) or rows.get((MEMBER, row.owner)) is None:\n",
        "        if True:\n",
    ),
    Mutant(
        "claim that does not compare the fence",
        ((TABLES, "    return row if row.fence == fence else None\n", "    return row\n"),),
        OWNED + "test_a_partition_of_a_live_member_is_not_claimed",
        "the beat of the member that claims, and the owner in the row, decide nearly always before that",
    ),
    Mutant(
        "claim of what is one's own by its row that does not raise the fence",
        (
            (
                TABLES,
                "            rows.put((PARTITION, number), Partition(ask.me, fence + 1, quiet))\n",
                "            rows.put((PARTITION, number), Partition(ask.me, fence + (row.owner != ask.me), quiet))\n",
            ),
            (
                OWNERSHIP,
                "            if row.owner == self.me and row.fence == fence + 1:\n",
                "            if row.owner == self.me and row.fence >= fence:\n",
            ),
        ),
        OWNED + "test_partitions_that_are_ones_own_by_row_only_are_claimed_again_and_wait",
        "few writes of before a loss come after the rows were loaded again",
    ),
    Mutant(
        "transaction that comes late, and is carried out",
        ((TABLES, "    if row is not None and row.beat >= ask.beat:\n        return False\n", ""),),
        OWNED + "test_a_transaction_that_comes_late_does_nothing",
        "the fences and beats that it compares have risen since, as far as that matters",
    ),
    Mutant(
        "partition served since its row says so",
        (
            (
                OWNERSHIP,
                "            if row.owner == self.me and row.fence == fence + 1:\n",
                "            if row.owner == self.me:\n",
            ),
            (
                OWNERSHIP,
                "        for number, fence in ask.claim:\n",
                "        for number, fence in enumerate(each.fence for each in self._view.partitions):\n            if number in self._owned:\n                continue\n",
            ),
            (
                OWNERSHIP,
                "                quiet = before.partitions[number].quiet\n",
                "                quiet = row.quiet\n",
            ),
        ),
        cluster=True,
    ),
    # ---- fences and doubt
    _mutant(
        "paused owner that writes: no fence",
        JOURNAL,
        "        if not writing.is_mine(rows.get((PARTITION, number)), number, 0):\n            return FENCED\n",
        "",
    ),
    Mutant(
        "fence compared without a lock",
        ((JOURNAL, "        rows.share((PARTITION, number))\n", ""),),
        CLUSTER + "test_a_stalled_writer_keeps_others_from_its_partition",
        "few simulated writers stand still between the two for as long as a take-over takes",
    ),
    _mutant(
        "write in doubt that lands late: the fence is not raised",
        JOURNAL,
        "        fence = raised[number] = writing.fences[number] + writing.attempts + 1\n",
        "        fence = raised[number] = row.fence\n",
    ),
    Mutant(
        "write in doubt that lands late: all attempts raise the fence by one",
        (
            (
                JOURNAL,
                "        fence = raised[number] = writing.fences[number] + writing.attempts + 1\n",
                "        fence = raised[number] = row.fence + 1\n",
            ),
        ),
        CLUSTER + "test_an_attempt_that_lands_late_does_nothing",
        "it takes three attempts, of which the second one comes last: one of some hundred seeds",
    ),
    Mutant(
        "write in doubt taken for one that was carried out",
        (
            (
                JOURNAL,
                "    return _applied(writing, rows), raised\n",
                "    return [[Outcome.DONE for _ in batch] for batch in writing.batches], raised\n",
            ),
        ),
        cluster=True,
    ),
    Mutant(
        "write in doubt taken for one that was not carried out",
        (
            (
                JOURNAL,
                "    return _applied(writing, rows), raised\n",
                "    return [[Outcome.FAILED for _ in batch] for batch in writing.batches], raised\n",
            ),
        ),
        cluster=True,
    ),
    _mutant(
        "unreplicated rows trusted: a commit acknowledged before the standby has it",
        SERVERS,
        "        self.flushed.append(transaction)\n",
        "        self.flushed.append(transaction)\n        transaction.answer(transaction.result)\n",
    ),
    _mutant(
        "commit with a warning taken for a commit",
        SERVERS,
        "                self._show(transaction)\n                transaction.answer(None)\n",
        "                self._show(transaction)\n                transaction.answer(transaction.result)\n",
    ),
    Mutant(
        "rows of a former primary trusted after a failover",
        (
            (
                MEMBER,
                "                if row.owner != self.ownership.me or row.fence != fence:\n",
                "                if False:\n",
            ),
            (
                MEMBER,
                "                rows.put(name, row)  # a barrier: when it is replicated, so is all that is read\n",
                "",
            ),
        ),
        CLUSTER + "test_rows_of_a_former_primary_are_not_believed",
        "few simulated members claim at one primary and load from another, which lacks later rows",
    ),
    Mutant(
        "rows of a former primary trusted since it shows the claimed fence",
        (
            (
                MEMBER,
                "                rows.put(name, row)  # a barrier: when it is replicated, so is all that is read\n",
                "",
            ),
        ),
        CLUSTER + "test_rows_of_a_former_primary_are_not_believed",
        "a doubt has to raise the fence there alone, to what is claimed elsewhere: one of thousands of seeds",
    ),
    Mutant(
        "rows of a real server loaded without a barrier",
        (
            (
                "server.postgres.loading",
                "        self._ask(partial(self._confirm, me, fences))\n",
                "",
            ),
        ),
        "tests/integration/test_postgres_standby.py::test_rows_are_loaded_when_a_commit_has_shown_that_the_server_was_not_replaced",
        "SQL has a stand-in in the simulation, with a mutant of its own",
    ),
    # ---- quiet times
    _mutant(
        "no wait for the leases of the owner before",
        OWNERSHIP,
        "now + quiet if quiet else 0.0",
        "0.0",
    ),
    Mutant(
        "hand-over inside a quiet time: the longer one is forgotten",
        (
            (
                TABLES,
                "            quiet = max(row.quiet, cache_lease)\n",
                "            quiet = cache_lease\n",
            ),
        ),
        OWNED + "test_the_longest_cache_lease_that_may_be_out_is_waited_for",
        RARE,
    ),
    Mutant(
        "quiet time written down before it was waited out",
        (
            (
                OWNERSHIP,
                "                if row.quiet > self._cache_lease and now >= gain.quiet_until:\n",
                "                if row.quiet > self._cache_lease:\n",
            ),
        ),
        OWNED + "test_a_quiet_time_that_was_waited_out_is_written_down",
        RARE,
    ),
    _mutant(
        "no quiet time for what is kept when an epoch ends",
        OWNERSHIP,
        "        until = now + self._cache_lease\n",
        "        until = 0.0\n",
    ),
    _mutant(
        "quiet partition that waits for nothing",
        WRITES,
        "            if now < until:\n                heappush(",
        "            if False:\n                heappush(",
    ),
    # ---- hand-over
    _mutant(
        "hand-over without draining",
        MEMBER,
        "        if self.state is None or not self.state.writing:\n",
        "        if True:\n",
    ),
    _mutant(
        "hand-over with a deletion in flight",
        STATE,
        "        return bool(self._invalidations.pending or self._changes)\n",
        "        return bool(self._changes)\n",
    ),
    _mutant(
        "partition released while it is served",
        OWNERSHIP,
        "        self._giving_up = numbers\n        return [HandOver(numbers)]\n",
        "        self._giving_up = numbers\n        for number in numbers:\n            del self._owned[number]\n        return [HandOver(numbers)]\n",
    ),
    Mutant(
        "hand-over without a new epoch",
        (
            (
                MEMBER,
                "        self._drop_epoch()\n        effects = self.ownership.handed_over(self.clock())\n",
                "        for number in given:\n            self.partitions._quiet[number] = None\n        self.state.take_writes(self.clock())\n        effects = self.ownership.handed_over(self.clock())\n",
            ),
            (
                MEMBER,
                "        if self.ownership.ends:\n            self._begin_epoch(kept)\n",
                "",
            ),
        ),
        cluster=True,
    ),
    # ---- Globals of other clusters
    _mutant(
        "Global of another cluster joined at the address of a member",
        LOCAL,
        "        return cluster == self.cluster\n",
        "        return True\n",
    ),
    Mutant(
        "session at another Global kept when the cluster becomes known",
        (
            (
                LOCAL,
                "            self._leave_joined(now)\n            self._void(now)\n        writer, ",
                "            pass\n        writer, ",
            ),
        ),
        CLUSTERS + "test_a_session_at_another_global_ends_when_the_cluster_becomes_known",
        STRANGE,
    ),
    Mutant(
        "session for writes kept when the cluster becomes known",
        (
            (
                LOCAL,
                "        writer, self.writer = self.writer, Writer()\n        if writer.secret:",
                "        writer = self.writer\n        if writer.secret:",
            ),
        ),
        CLUSTERS + "test_a_page_and_a_session_for_writes_end_when_another_cluster_becomes_known",
        NO_PAGES,
    ),
    Mutant(
        "page of another cluster used",
        ((LOCAL, "        if not self._may_join(page.cluster, now):\n", "        if False:\n"),),
        CLUSTERS + "test_a_page_of_another_cluster_is_not_used",
        NO_PAGES,
    ),
    Mutant(
        "read without a session answered by another cluster",
        (
            (
                STATE,
                "        if message.epoch not in (0, self.epoch, mark(self.cluster)):\n",
                "        if False:\n",
            ),
        ),
        cluster=True,
    ),
    Mutant(
        "read without a session that names no cluster",
        (
            (
                LOCAL,
                "        return mark(self.cluster), NO_SESSION\n",
                "        return 0, NO_SESSION\n",
            ),
        ),
        cluster=True,
    ),
    Mutant(
        "map of another cluster learned",
        (
            (
                ROUTING,
                "        return bool(found.members) and (not self.known or found.cluster == self.cluster)\n",
                "        return bool(found.members)\n",
            ),
            (
                EXCHANGE,
                "    if state.cluster not in (NO_CLUSTER, reply.cluster):\n",
                "    if False:\n",
            ),
        ),
        cluster=True,
    ),
    Mutant(
        "lower map never taken",
        ((ROUTING, "        self._go_back()\n        return now\n", "        return now\n"),),
        ROUTES + "test_a_lower_map_is_taken_when_all_members_have_one",
        "no simulated database is restored from a backup",
    ),
    Mutant(
        "other map of the same version never taken",
        (
            (
                ROUTING,
                "        if answer != self._present:\n",
                "        if answer.version < self._present.version:\n",
            ),
        ),
        ROUTES + "test_another_map_of_the_same_version_is_taken_when_all_members_have_it",
        "no simulated database is restored from a backup",
    ),
    Mutant(
        "lower map that takes the place of one that another call has learned",
        (
            (
                ROUTING,
                "            return  # another call has learned it meanwhile\n",
                "            pass\n",
            ),
        ),
        ROUTES + "test_a_lower_map_does_not_take_the_place_of_one_that_another_call_has_learned",
        "no simulated database is restored from a backup",
    ),
    Mutant(
        "write that is made once more when its time is over",
        (
            (
                ROUTING,
                "            if parts and self.routes.map is known and now < self._deadline:\n",
                "            if parts and self.routes.map is known:\n",
            ),
        ),
        ROUTES + "test_a_write_is_not_tried_once_more_when_its_time_was_over_before",
        "simulated clients have no short way for writes",
    ),
    # ---- messages and clients
    Mutant(
        "write repeated to the new owner",
        (
            (
                ROUTING,
                "            elif isinstance(result, (GlobalUnavailable, WrongServer)):\n",
                "            elif isinstance(result, (GlobalUnavailable, WrongServer, OutcomeUnknown)):\n",
            ),
        ),
        cluster=True,
    ),
    Mutant(
        "map out of date in the middle of a call for many keys: only the first key is checked",
        (
            (
                STATE,
                "                    partitions.check(keys_of(message))\n",
                "                    partitions.check(list(keys_of(message))[:1])\n",
            ),
            (
                WRITES,
                "                self._partitions.check(keys_of(message))\n",
                "                self._partitions.check(list(keys_of(message))[:1])\n",
            ),
        ),
        cluster=True,
    ),
    _mutant(
        "keys() across a move: a page from a member that has given up a partition",
        READS,
        "            self._partitions.check_numbers(wanted)\n",
        "            pass\n",
    ),
    _mutant(
        "key of another partition read",
        PARTITIONS,
        "        return self._quiet[partition_of(key)] is not None\n",
        "        return True\n",
    ),
)
