"""Peers that do not follow the protocol, against a real Global that honest Nodes use meanwhile.

    python -m tests.faults.hostile [--as WHO] [--scale 0.1] [--seed N] [--only NAME ...]

Each attack is bounded in what it sends and in time. While it runs, honest processes read, write and
delete (see :mod:`tests.faults.honest`), and Global's memory is measured. The table at the end has
for each attack its bound and what was measured. The exit code is 1 if a value was stale, an honest
call was refused or took longer than ``DELAY_MAX``, or Global took more memory than the bound, died,
or kept descriptors or sessions afterwards. The attacks are in ``attacks_on_sockets`` and
``attacks_on_state``.

Usually Global asks for no keys. With ``--as`` it does, and the attackers are strangers without a
key or with an unknown one, clients that may read only, or clients with another prefix than the
honest ones. Whatever they do, the bystanders, a small and a large value, stay as they are.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import IO

import zmq

import dstore
from dstore.access.keys import KeyFolder
from dstore.core.authority.identity import Role
from dstore.testing import private_shared_memory, start_global
from tests.ending import kill
from tests.faults import attacks_on_sockets, attacks_on_state
from tests.faults.attack import (
    ATTACKS,
    DELAY_MAX,
    MIB,
    Attack,
    Target,
)
from tests.faults.honest import NOTHING, Honest, Told
from tests.faults.meter import Meter, descriptors
from tests.faults.raw_curve import RawKeys
from tests.integration.processes import free_port, other_sessions

ANYONE, STRANGER, READER, NEIGHBOUR = "anyone", "stranger", "reader", "neighbour"
WHO = (ANYONE, STRANGER, READER, NEIGHBOUR)
BYSTANDERS = {"bystander/small": b"small", "bystander/large": bytes(range(256)) * 1024}
"""Values that no attacker may change, where Global asks for keys."""
ATTACK_MODULES = (attacks_on_sockets, attacks_on_state)
"""Importing them registers their attacks."""
LEASE = 0.5
MAX_CLIENTS = 300
MEMORY_LIMIT = 128 * MIB
SETTLE_SECONDS = 30.0
"""Within this time after an attack Global must have released all that the attack took."""


@dataclass
class AttackResult:
    """What an attack did, and what the honest processes saw meanwhile."""

    attack: Attack
    said: str
    grown: int
    seconds: float
    honest: Told
    left: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        seen, wrong = self.honest, list(self.left)
        if seen.stale:
            wrong.append(f"{seen.stale} stale reads")
        if seen.refused:
            wrong.append(f"{seen.refused} honest calls refused ({seen.complaint})")
        if seen.longest > DELAY_MAX:
            wrong.append(f"an honest call took {seen.longest:.1f} s")
        if self.grown > self.attack.bound:
            wrong.append(f"{self.grown / MIB:.0f} MiB of memory")
        return wrong

    def __str__(self) -> str:
        seen = self.honest
        return (
            f"{self.attack.name:32} {self.attack.bound / MIB:5.0f} {self.grown / MIB:6.0f} "
            f"{seen.longest:6.2f} {seen.calls:7,} {seen.stale:3} {seen.refused:3}  {self.said}"
            + "".join(f"\n    WRONG: {each}" for each in self.wrong)
        )


HEADING = (
    f"{'attack':32} {'MiB':>5} {'MiB':>6} {'s':>6} {'calls':>7}\n"
    f"{'':32} {'bound':>5} {'seen':>6} {'worst':>6} {'honest':>7} old ref  what it did"
)


class KeysOfAll:
    """The key folder of a Global that is attacked, and who has which keys.

    With ``who`` each attack has an identity of its own, as it has a source address of its own:
    Global bans both for a while.
    """

    def __init__(self, folder: Path, address: str, who: str) -> None:
        made = KeyFolder(str(folder / "keys"))
        made.create()
        self.folder = str(folder / "keys")
        self.honest, self.admin = str(folder / "honest"), str(folder / "admin")
        made.add("honest", Role.WRITE, ("honest",), address).save(self.honest)
        made.add("admin", Role.ADMIN, (), address).save(self.admin)
        self._hostile: dict[str, list[RawKeys | None]] = {}
        role = Role.READ if who == READER else Role.WRITE
        prefixes = () if who == READER else ("hostile/",)
        for number, each in enumerate(ATTACKS):
            if who == STRANGER:
                public, secret = zmq.curve_keypair()
                unknown = RawKeys.decoded(made.server_keys[0], public.decode(), secret.decode())
                self._hostile[each.name] = [None, unknown]
            else:
                given = made.add(f"hostile{number}", role, prefixes, address)
                keys = RawKeys.decoded(given.server_keys[0], given.public_key, given.secret_key)
                self._hostile[each.name] = [keys]

    def of(self, attack: Attack) -> Callable[[], RawKeys | None]:
        """Return what gives the keys of the next connection of an attack."""
        return cycle(self._hostile[attack.name]).__next__


class Run:
    """Runs the attacks one after the other against a Global that honest processes use.

    ``who`` says which keys the attackers have.
    """

    def __init__(self, seed: int, scale: float, names: list[str], who: str = ANYONE) -> None:
        self._who = who
        self._keys: KeysOfAll | None = None
        self._seed = seed
        self._scale = scale
        self._attacks = [each for each in ATTACKS if not names or each.name in names]

    def run(self, say: Callable[[object], None] = print) -> list[AttackResult]:
        results = []
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(private_shared_memory())
            log = stack.enter_context(open(Path(folder) / "log", "w+b"))
            self._address = f"tcp://127.0.0.1:{free_port()}"
            if self._who != ANYONE:
                self._keys = KeysOfAll(Path(folder), self._address, self._who)
            server = self._global(log)
            stack.callback(kill, server)
            connect = self._keys.honest if self._keys else None
            honest = stack.enter_context(Honest(self._address, self._seed, connect))
            if self._keys:
                with self._node() as node:
                    node.set_many(BYSTANDERS)
            say(HEADING)
            for each in self._attacks:
                results.append(self._attack(each, server, honest))
                say(results[-1])
                if server.poll() is not None:
                    log.seek(0)
                    say(log.read().decode(errors="replace")[-3000:])
                    break
        return results

    def _global(self, log: IO[bytes]) -> subprocess.Popen[str]:
        options = ["--lease", str(LEASE), "--memory-limit", str(MEMORY_LIMIT)]
        options += ["--max-clients", str(MAX_CLIENTS)]
        options += ["--keys", self._keys.folder] if self._keys else []
        return start_global(*options, address=self._address, stderr=log).process

    def _attack(self, each: Attack, server: subprocess.Popen[str], honest: Honest) -> AttackResult:
        honest.ask()
        calm = descriptors(server.pid)
        dice = random.Random(f"{self._seed} {each.name}")
        source = f"127.0.1.{1 + ATTACKS.index(each)}"
        keys = self._keys
        hostile, admin = (keys.of(each), keys.admin) if keys else (lambda: None, None)
        target = Target(self._address, server.pid, dice, self._scale, source, hostile, admin)
        begun = time.monotonic()
        with Meter(server.pid) as meter:
            try:
                said = each.run(target)
                left = []
            except Exception as error:
                refused = self._who == STRANGER and isinstance(error, OSError)
                said = "not let in" if refused else ""
                left = [] if refused else [f"{type(error).__name__}: {error}"]
            seen = honest.ask()
        result = AttackResult(each, said, meter.grown, time.monotonic() - begun, seen, left)
        if server.poll() is not None:
            result.left.append(f"Global has ended with {server.returncode}")
        else:
            result.left += self._settle(server.pid, calm, honest, result)
        return result

    def _settle(self, pid: int, calm: int, honest: Honest, result: AttackResult) -> list[str]:
        """Wait until Global has released what the attack took. Returns what it has not released."""
        until = time.monotonic() + SETTLE_SECONDS
        sessions = 0
        while time.monotonic() < until:
            with self._node() as node:
                sessions = other_sessions(node)
                changed = [
                    f"{key} is another value"
                    for key, value in (BYSTANDERS.items() if self._keys else ())
                    if node.get(key, None) != value
                ]
            result.honest += honest.ask()
            if changed or (descriptors(pid) <= calm + 6 and sessions <= 4):
                return changed
            time.sleep(0.2)
        return [f"{descriptors(pid) - calm} descriptors, {sessions} sessions left"]

    def _node(self) -> dstore.Node:
        connect = self._keys.admin if self._keys else None
        return dstore.Node(self._address, timeout=DELAY_MAX, connect=connect)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="the part of each attack that is run: 0.1 is a tenth (default: 1)",
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="repeats a run (default: a new one)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="run these attacks alone"
    )
    parser.add_argument(
        "--as", dest="who", choices=WHO, default=ANYONE,
        help="who attacks, if Global asks for keys (default: it does not)",
    )  # fmt: skip
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {options.seed}", flush=True)
    results = Run(options.seed, options.scale, options.only, options.who).run(
        lambda result: print(result, flush=True)
    )
    wrong = [result for result in results if result.wrong]
    total = sum((result.honest for result in results), NOTHING)
    print(
        f"{len(results)} attacks, {total.calls:,} honest calls, {total.reads:,} reads, "
        f"{total.stale} stale, {total.refused} refused; {len(wrong)} attacks beyond a bound"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
