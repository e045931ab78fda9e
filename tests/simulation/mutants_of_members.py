"""Mutants of the host of a Global that is a member of a cluster: its epochs, and its hand-overs."""

from __future__ import annotations

from tests.simulation.mutant import Mutant

TESTS = "tests/integration/test_cluster_host.py::"
MEMBER, LOOP = "server.cluster.member", "server.loop"
NO_HOST = "the simulated members have a host of their own"

OF_MEMBERS = (
    Mutant(
        "hand-over that waits for no write",
        ((MEMBER, "        if service.state.writing:\n", "        if False:\n"),),
        TESTS + "test_a_hand_over_waits_for_writes_that_have_begun",
        NO_HOST,
    ),
    Mutant(
        "hand-over that takes writes",
        (
            (
                MEMBER,
                "                service.state.hold_writes()\n            elif",
                "            elif",
            ),
        ),
        TESTS + "test_a_hand_over_waits_for_writes_that_have_begun",
        NO_HOST,
    ),
    Mutant(
        "hand-over that forgets when keys expire",
        (
            (
                MEMBER,
                "        records = service.state.deadlines()\n",
                "        records: Iterable[Deadline] = ()\n",
            ),
        ),
        TESTS + "test_deadlines_go_on_over_a_hand_over",
        NO_HOST,
    ),
    Mutant(
        "page of the host that outlives its epoch",
        ((LOOP, "        self._host = None\n        epoch.void(now)\n", ""),),
        TESTS + "test_the_page_of_the_host_is_void_before_the_next_epoch_begins",
        NO_HOST,
    ),
    Mutant(
        "member that keeps what it had after a loss",
        ((MEMBER, "            self._storage.reset()\n", ""),),
        TESTS + "test_without_the_database_nothing_is_answered_until_it_is_back",
        NO_HOST,
    ),
    Mutant(
        "loads of a former epoch taken for those of this one",
        (
            (
                LOOP,
                "            if number < first:\n"
                "                continue  # for readers of a former epoch\n",
                "",
            ),
        ),
        TESTS + "test_what_was_loaded_for_a_former_epoch_is_dropped",
        NO_HOST,
    ),
    Mutant(
        "revocation reported while a lease of a former epoch may run",
        (
            (
                "server.access",
                "        if now < self._report_from:\n            return\n",
                "",
            ),
        ),
        "tests/unit/access/test_report.py::"
        "test_nothing_is_reported_while_leases_of_a_former_epoch_may_run",
        NO_HOST,
    ),
    Mutant(
        "wake-up lost while another thread sends one",
        (
            (
                "transport.router",
                "        while self._wake_wanted and self._waking.acquire(blocking=False):\n",
                "        if self._waking.acquire(blocking=False):\n",
            ),
        ),
        "tests/integration/test_guard.py::"
        "test_no_wake_up_is_lost_while_another_thread_sends_one",
        NO_HOST,
    ),
)  # fmt: skip
