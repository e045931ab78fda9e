"""Mutants of what a client does that Global does not let in."""

from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

DENIED = CORE + "test_denied.py::"
EXCHANGE = "core.local.operations.exchange"
NO_KEYS = "the connections of the simulation have no keys"

OF_DENIALS = (
    Mutant(
        "write under way that counts as not executed when its client is shut out",
        (
            (
                EXCHANGE,
                "        elif state.denied is not None:\n"
                "            raise Denied(now, unknown, state.denied)\n",
                "        elif state.denied is not None:\n"
                "            raise Denied(now, 0, state.denied)\n",
            ),
        ),
        DENIED
        + "test_a_write_that_is_under_way_when_its_client_is_shut_out_has_an_unknown_outcome",
        NO_KEYS,
    ),
    Mutant(
        "write that counts as not executed because one copy of it was denied",
        (
            (
                EXCHANGE,
                "        raise Denied(now, unknown, AccessDenied(reply.text))\n",
                "        raise Denied(now, 0, AccessDenied(reply.text))\n",
            ),
        ),
        DENIED + "test_a_write_that_is_denied_when_a_copy_is_under_way_has_an_unknown_outcome",
        NO_KEYS,
    ),
)  # fmt: skip
