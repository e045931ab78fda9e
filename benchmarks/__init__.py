"""How fast dstore is: against the physical limit, and against what one would otherwise take.

``scripts/bench`` runs it all; ``python -m benchmarks --help`` says how to run less. While dstore is
made faster, three commands answer in a few minutes:

- ``scripts/bench --goals`` measures the goals of small values: hits (compiled, and in the same run
  in pure Python), misses, eight clients, ``get_many``, DEL, the memory of a cache entry; and what
  the processes of one host share: first reads, DEL, Zipf reads with deletions, first answers, the
  first hit of a forked child, memory; and what a Global with a data folder does. ``--only
  host_first mixed`` measures some of them. Data are on the disk of the folder for temporary files,
  or in ``$DSTORE_BENCH_DATA``; no folder in memory is taken for a disk.
- ``python -m benchmarks.compare BEFORE AFTER`` runs that in turns for two source trees.
- ``python -m benchmarks.costs`` counts the CPU time of a request in each process.

How long a message takes between two processes depends on the cores on which the system has put
them, by a factor of two to five, and that may differ between the contenders of one run. ``taskset
-c 0`` in front of a command puts all of them on one core. Ratios of messages are then nearly those
of CPU time, and repeat well: better for seeing what a change has gained, but not what the goals
mean.

:mod:`benchmarks.peer_coherence` is apart: it compares what caches promise, not how fast they are.
"""
