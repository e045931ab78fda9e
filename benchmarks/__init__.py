"""How fast dstore is: against the physical limit, and against what one would otherwise take.

``scripts/bench`` runs it all; ``python -m benchmarks --help`` says how to run less.
:mod:`benchmarks.peer_coherence` is apart: it compares what caches promise, not how fast they are.
"""
