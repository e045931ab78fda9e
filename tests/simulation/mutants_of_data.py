"""Mutants of what a durable Global begins with, and of what it leaves on the disk at its end."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import Mutant

DURABLE = "server.durable"
LIVES = "tests/unit/server/test_durable_lives.py::"
DISK = "the simulated disk is sound, and its lives begin by the rules"


def _mutant(name: str, old: str, new: str, test: str, module: str = DURABLE) -> Mutant:
    return Mutant(name, ((module, old, new),), LIVES + test, DISK)


OF_DATA = (
    _mutant(
        "quiet period counted from before the folder is locked",
        "        self._data = data = open_data(path, self._keep)\n        try:\n            now = clock.now()  # after the folder was locked\n",
        "        now = clock.now()\n        self._data = data = open_data(path, self._keep)\n        try:\n",
        "test_the_next_is_quiet_for_the_lease_of_the_former_from_when_it_has_the_folder",
    ),
    _mutant(
        "quiet period lost over two restarts",
        "        longest = max(self._data.lease, self._lease)\n",
        "        longest = self._lease\n",
        "test_what_one_life_has_not_waited_for_the_next_one_waits_for",
    ),
    _mutant(
        "quiet period that is waited for in every life",
        "            self._data.journal.set_lease(self._lease)\n            self._data.settle()\n",
        "            self._data.settle()\n",
        "test_once_waited_for_a_lease_is_not_waited_for_again",
    ),
    _mutant(
        "clean end recorded while a lease is out",
        "            if not lease_out and clock.now() >= self.quiet_until:\n",
        "            if clock.now() >= self.quiet_until:\n",
        "test_the_end_of_a_global_is_clean_only_if_no_node_has_a_lease",
    ),
    _mutant(
        "clean end recorded in the quiet period",
        "            if not lease_out and clock.now() >= self.quiet_until:\n",
        "            if not lease_out:\n",
        "test_an_end_in_the_quiet_period_is_not_clean",
    ),
    _mutant(
        "copied folder that answers at once",
        "            self.silent_until = self.quiet_until if data.moved else 0.0\n",
        "            self.silent_until = 0.0\n",
        "test_a_copied_folder_is_silent_for_the_longest_lease",
    ),
    _mutant(
        "damaged row taken for missing",
        "                stored = Stored(token, DAMAGED, b\"\")\n                damaged += 1\n",
        "                damaged += 1\n                continue\n",
        "test_a_damaged_value_is_bound_and_large_files_without_a_key_stay",
    ),
    _mutant(
        "files without a key removed while a row is damaged",
        "        self._files.remove_orphans(sizes, keep_all=bool(damaged))\n",
        "        self._files.remove_orphans(sizes, keep_all=False)\n",
        "test_a_damaged_value_is_bound_and_large_files_without_a_key_stay",
    ),
)  # fmt: skip
