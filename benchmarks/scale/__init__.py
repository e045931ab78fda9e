"""How one Global carries 100, 1,000 and 10,000 Locals, by its real core and measured costs.

``python -m benchmarks.scale [--quick] [--out docs/scale]`` prints tables and writes what is in them
to ``docs/scale.json``; ``docs/scale.md`` says what follows from them.

No 10,000 processes are started. Three things are measured for themselves and then put together:
what the core does with a message (``core_costs``), what the socket around it costs
(``socket_costs``), and how many messages there are, when that many real ``LocalState`` objects talk
to a real ``GlobalState`` in virtual time (``cluster``, ``experiments``). ``memory`` measures
Global's objects, ``conclusions`` derives where one Global is saturated, ``reality`` compares some
of it with real processes. All times are CPU time, which other work on the machine disturbs least.
"""
