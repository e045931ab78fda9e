"""Tools for testing programs that use dstore, and engines that are written for it.

A test that needs a Global runs one in a thread of its own process, or as a process::

    from dstore.testing import global_process, running_global

    with running_global() as server, dstore.Node(server.address) as node:
        node.set("key", "value")

    with global_process("--lease", "1") as server, dstore.Node(server.address) as node:
        server.process.kill()

:mod:`dstore.testing.fixtures` has a fixture for pytest. :mod:`dstore.testing.engine_contract` and
:mod:`dstore.testing.bulk_contract` are the tests that every engine has to pass.
"""

from __future__ import annotations

from dstore.testing.running import (
    StartedGlobal,
    global_process,
    private_shared_memory,
    running_global,
    start_global,
)

__all__ = [
    "StartedGlobal",
    "global_process",
    "private_shared_memory",
    "running_global",
    "start_global",
]
