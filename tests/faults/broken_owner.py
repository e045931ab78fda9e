"""``dstore host`` for runs with several Globals, which may break a rule.

``python -m tests.faults.broken_owner PID SOURCE NAME ARGUMENTS`` runs ``dstore ARGUMENTS`` as a
child of the process PID, with its sockets bound to the address SOURCE. NAME is the rule that it
breaks (:mod:`tests.faults.broken_client`), or ``nothing``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dstore import cli
from tests.faults.broken_client import BROKEN_CLIENTS
from tests.faults.tether import tether_to
from tests.faults.workload import connect_from


def main(arguments: Sequence[str]) -> int:
    pid, source, broken, *command = arguments
    tether_to(int(pid))
    connect_from(source)
    BROKEN_CLIENTS[broken]()
    return cli.main(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
