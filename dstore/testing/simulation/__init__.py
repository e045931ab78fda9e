"""One seeded simulation of Global, Locals, network and clocks, over the real core.

``run(Scenario.draw(seed))`` plays one seed: the same seed gives the same trace, byte for byte.
Nothing here waits, reads a clock or opens a socket.
"""

from __future__ import annotations

from dstore.testing.simulation.run import Outcome, run, shrink
from dstore.testing.simulation.scenario import Scenario

__all__ = ["Outcome", "Scenario", "run", "shrink"]
