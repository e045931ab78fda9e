"""The power fails while values are written: what was acknowledged is on the disk.

A process that is killed leaves to the system what it has written. Here the file system loses all
that was not synced, as it does when the power fails.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import dstore
from dstore.testing import start_global
from tests.disks import PoweredDisk, powered_disk
from tests.integration.processes import PATIENCE

LEASE = "0.1"
DISK_BYTES = 160 << 20
LOSSES = 3
FAILED = 1
LOST = (dstore.OutcomeUnknown, dstore.GlobalUnavailable)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PoweredDisk]:
    with powered_disk(tmp_path, DISK_BYTES) as disk:
        yield disk


class Writer:
    """Sets, replaces and deletes keys until Global is lost; in a thread of its own.

    ``bound`` is what Global has acknowledged, ``unsure`` the keys of the write that was lost.
    """

    def __init__(self, address: str, seed: int) -> None:
        self.bound: dict[str, bytes] = {}
        self.unsure: set[str] = set()
        self.acknowledged = threading.Semaphore(0)
        self._address = address
        self._chance = random.Random(seed)
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        with dstore.Node(self._address, timeout=0.5) as node:
            number = 0
            while not self.unsure:
                number += 1
                key = f"k{self._chance.randrange(12)}"
                try:
                    self._step(node, key, number.to_bytes(8, "big"))
                except LOST:
                    self.unsure.add(key)
                self.acknowledged.release()

    def _step(self, node: dstore.Node, key: str, value: bytes) -> None:
        if self._chance.random() < 0.3 and key in self.bound:
            node.delete(key)
            del self.bound[key]
            return
        value *= self._chance.choice((1, 100, 20_000))
        node.set(key, value, replace=True)
        self.bound[key] = value

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def test_what_was_acknowledged_survives_a_loss_of_power(disk: PoweredDisk) -> None:
    chance = random.Random(os.urandom(8))
    for seed in range(LOSSES):
        place = disk.path / f"data{seed}"
        options = ["--data", str(place), "--lease", LEASE]
        address, process = start_global(*options, stderr=subprocess.PIPE)
        writer = Writer(address, seed)
        for _ in range(chance.randrange(10, 60)):
            assert writer.acknowledged.acquire(timeout=PATIENCE)
        disk.lose_power()
        writer.join()
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == FAILED
        assert "cannot be written" in said and "Traceback" not in said
        disk.restart()
        server = dstore.Global("tcp://127.0.0.1:0", data=place, lease=0.1)
        with server, dstore.Node(server.address) as node:
            found = node.get_many(list(node.keys()))
        for key in writer.unsure:
            found.pop(key, None)
            writer.bound.pop(key, None)
        assert found == writer.bound
