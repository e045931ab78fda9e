"""Mutants of large values in the database of several Globals, and of the pages of their hosts.

A page that is not voided at the end of an epoch harms nobody at once: its lease is counted into the
quiet time of all partitions. It would slow down what is written, and the simulation notices that it
is there. That nobody gives such a page another lease is what counts.
"""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

JOURNAL = "tests.simulation.cluster.journal"
MEMBER = "tests.simulation.cluster.member"
LARGE = "server.postgres.large"
CLUSTER = "tests/simulation/test_cluster.py::"
STORE = "tests/integration/test_postgres_store.py::"


def _mutant(name: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, ((module, old, new),), cluster=True)


OF_PIECES = (
    # ---- what is written of large values
    Mutant(
        "pieces written without the fence",
        (
            (
                JOURNAL,
                "    if _transaction(writing, rows) is FENCED:\n        return FENCED\n    for number, body",
                "    for number, body",
            ),
        ),
        CLUSTER + "test_pieces_under_a_fence_that_has_risen_are_not_written",
        "few simulated members stand still just before they write pieces, until the next owner has looked for such",
    ),
    _mutant(
        "key of a large value written before its pieces",
        JOURNAL,
        "        refused = yield from self._keep_large(group)\n        changes = [[each for each in batch.changes if each not in refused] for batch in group]\n        outcomes = yield from self._settled(_transaction, changes)\n",
        "        refused: list[Change] = []\n        changes = [batch.changes for batch in group]\n        outcomes = yield from self._settled(_transaction, changes)\n        yield from self._keep_large(group)\n",
    ),
    _mutant(
        "pieces in doubt taken for written",
        JOURNAL,
        "            if result is not None:\n                return\n",
        "            return\n",
    ),
    Mutant(
        "pieces in doubt found, and trusted without a barrier",
        ((JOURNAL, "            yield from self._settled(None, [], {partition})\n", ""),),
        CLUSTER + "test_pieces_in_doubt_that_a_failover_may_lose_are_not_trusted",
        "a failover has to come between the pieces and their key",
    ),
    _mutant(
        "large value that counts as kept though its last piece is not written",
        LARGE,
        "        for start in range(0, size, step):\n            bodies = self._pieces(token, start, min(size, start + step))\n            for body in bodies:\n",
        "        for start in range(0, size - step, step):\n            bodies = self._pieces(token, start, min(size, start + step))\n            for body in [*bodies, *self._pieces(token, start + step, size)]:\n",
    ),
    # ---- what is removed of them
    _mutant(
        "pieces of a removed value that stay",
        LARGE,
        "            self._dropper.drop_pieces(partition, token)\n",
        "            pass\n",
    ),
    _mutant(
        "pieces removed before the removal of their key is durable",
        "core.authority.writes",
        "                pending.submitted = True\n",
        "                pending.submitted = True\n                self._bulk.drop(pending.token)\n",
    ),
    _mutant(
        "next owner that leaves the pieces that no key names",
        MEMBER,
        "                self.journal.drop_pieces(number, token)\n",
        "                pass\n",
    ),
    _mutant(
        "next owner that removes pieces of a value whose key the former owner has written",
        MEMBER,
        "        named = {row.token for row in rows if is_large(row.stored)}\n",
        "        named: set[bytes] = set()\n",
    ),
    Mutant(
        "removal of pieces that comes late, to a value of a later time of ownership",
        (
            (
                "server.postgres.journal",
                "            if each.times == life.gained.get(each.partition):\n",
                "            if True:\n",
            ),
        ),
        STORE
        + "test_a_removal_of_pieces_that_comes_late_harms_neither_this_member_nor_the_next_owner",
        "a partition has to move away and back while one removal waits, and the value with it",
    ),
    # ---- pages
    Mutant(
        "page with a lease that outlives the quiet time of the next owner",
        (
            (
                "core.authority.host",
                "            self._lease_end = now + self._lease\n",
                "            self._lease_end = now + 4 * self._lease\n",
            ),
        ),
        CORE + "test_host_membership.py::test_its_lease_is_renewed_by_ticks_and_ends_without_them",
        "a member has to die, and the next owner to change a value that its host still reads, which is rare",
    ),
    _mutant(
        "page that is not voided at the end of its epoch",
        MEMBER,
        "            own.close()\n",
        "            pass\n",
    ),
)
