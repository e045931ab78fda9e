"""Mutants of what a durable Global answers, and of what it begins with after a crash."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

CHANGES = "core.authority.changes"
STATE = "core.authority.state"
WRITES = "core.authority.writes"
DURABLE = CORE + "test_changes.py::"
REFUSED = DURABLE + "test_what_the_disk_refuses_has_not_happened"
FEW = (
    "it shows only after a crash that follows a refusal of the disk, which few simulated runs have"
)

OF_DURABILITY = (
    Mutant(
        "SET answered before it is durable",
        (
            (
                CHANGES,
                "        if busy:\n            self.busy[change.key] = []\n        self.bytes += _cost(change)\n        self._gathered.append((change, then, busy))\n",
                "        self._gathered.append((change, lambda *_: None, False))\n        then(Outcome.DONE, now)\n",
            ),
            (
                CHANGES,
                "            self.bytes -= _cost(change)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "write of a key that is being bound executed at once",
        (
            (
                WRITES,
                "        return self._changes.busy.get(key) if pending is None else pending.queued\n",
                "        return None if pending is None else pending.queued\n",
            ),
        ),
    ),
    Mutant(
        "DEL of a key that is being bound executed at once",
        ((WRITES, "            if busy is not None:\n", "            if False:\n"),),
        DURABLE + "test_no_answer_shows_a_value_that_is_not_durable",
        "such a DEL may be ordered before the SET",
    ),
    Mutant(
        "writes that queue behind a key that is being bound forgotten",
        ((CHANGES, "            for execute in queued:\n                execute(now)\n", ""),),
    ),
    Mutant(
        "removal handed to the disk before the holders have acknowledged",
        (
            (
                WRITES,
                "            self._invalidations.start(pending, now)\n            if not wait:\n",
                "            self._invalidations.start(pending, now)\n            self._changes.submit(self._change(pending), lambda *_: None, now)\n            if not wait:\n",
            ),
        ),
    ),
    Mutant(
        "quiet period forgotten",
        ((WRITES, "                if now < self.quiet_until:\n", "                if False:\n"),),
        DURABLE
        + "test_in_the_quiet_period_values_are_read_and_bound_and_none_is_removed_or_replaced",
        "few simulated runs crash, remove a key at once, and read it within the lease of before",
    ),
    Mutant(
        "deletion that is not waited for answered before it survives a crash",
        (
            (
                WRITES,
                "        self._changes.submit(change, doomed, now)\n",
                "        doomed(Outcome.DONE, now)\n",
            ),
        ),
        DURABLE + "test_a_deletion_that_is_not_waited_for_is_answered_when_it_survives_a_crash",
        "in a simulated run with crashes such a deletion may take effect at any time",
    ),
    Mutant(
        "deletions of a former life forgotten",
        (
            (
                STATE,
                "        self._deadlines.load(deadlines, now)\n",
                "        self._deadlines.load([each for each in deadlines if each[2]], now)\n",
            ),
        ),
        DURABLE + "test_a_deletion_that_a_former_life_has_begun_goes_on_after_the_quiet_period",
        "in a simulated run with crashes such a deletion may take effect at any time",
    ),
    Mutant(
        "value bound though the disk has refused it",
        ((WRITES, "        status = _REFUSED.get(outcome)\n", "        status = None\n"),),
        REFUSED,
        FEW,
    ),
    Mutant(
        "value removed though the disk has refused that",
        (
            (
                WRITES,
                "            removed = not outcome and self._engine.remove(",
                "            removed = self._engine.remove(",
            ),
        ),
        REFUSED,
        FEW,
    ),
    Mutant(
        "value replaced though the disk has refused that",
        (
            (
                WRITES,
                "            replaced = not outcome and self._engine.replace(",
                "            replaced = self._engine.replace(",
            ),
        ),
        REFUSED,
        FEW,
    ),
)
