"""Mutants of reads whose values the engine has to load."""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import CORE, Mutant

LOADS = "core.authority.loads"
FETCHES = "core.authority.fetches"
READS = "core.authority.reads"
STATE = "core.authority.state"
OF_ITS_OWN = CORE + "test_loads.py::"
OF_PARTS = CORE + "test_fetches.py::"
NO_PARTS = "simulated large values are in Global's memory"
ENGINES = "tests/integration/test_engines.py::"

OF_LOADS = (
    Mutant(
        "reader of a loaded value not recorded as a holder",
        (
            (
                READS,
                "            if key in pending or bit == NO_BIT or not hold(key, bit):\n",
                "            if key in pending or bit == NO_BIT or not ((key, token) in loaded or hold(key, bit)):\n",
            ),
        ),
    ),
    Mutant(
        "holders of a loaded value decided when its load begins",
        (
            (
                READS,
                "                if (key, token) not in loaded:\n                    break\n",
                "                if (key, token) not in loaded:\n                    hold(key, bit)\n                    break\n",
            ),
            (
                READS,
                "            if key in pending or bit == NO_BIT or not hold(key, bit):\n",
                "            if key in pending or bit == NO_BIT or not ((key, token) in loaded or hold(key, bit)):\n",
            ),
        ),
        OF_ITS_OWN + "test_nobody_is_a_holder_while_a_value_is_being_loaded",
        "the bit stays until the value is removed, so that it is stale only if that fails in between",
    ),
    Mutant(
        "loaded value cacheable though its deletion is pending",
        (
            (
                READS,
                "            if key in pending or bit == NO_BIT or not hold(key, bit):\n",
                "            if (key in pending and (key, token) not in loaded) or bit == NO_BIT or not hold(key, bit):\n",
            ),
        ),
    ),
    Mutant(
        "bytes of another token laid over a value",
        (
            (
                READS,
                "                if (key, token) not in loaded:\n                    break\n                found = loaded[key, token]\n",
                "                if not loaded:\n                    break\n                found = loaded.get((key, token), next(iter(loaded.values())))\n",
            ),
        ),
    ),
    Mutant(
        "value of before the load answered with the number of after it",
        (
            (
                READS,
                "            token, codec, body = stored\n            if type(body) is bytes:\n",
                '            if loaded and len(keys) == 1:\n                stored = type(stored)(next(iter(loaded))[1], *stored[1:-1], next(iter(loaded.values())) or b"")\n            token, codec, body = stored\n            if type(body) is bytes:\n',
            ),
        ),
    ),
    Mutant(
        "number of an answer from before the load",
        (
            (
                READS,
                "        self._out.send(parked.route, reply)\n",
                "        self._out.send(parked.route, reply._replace(seq=0))\n",
            ),
        ),
        OF_ITS_OWN + "test_the_number_of_an_answer_is_that_of_the_step_in_which_it_is_made",
        "a number that is too low costs a miss, and no stale read",
    ),
    Mutant(
        "parked request answered after its session has ended",
        ((READS, "        if session is not None and not session.open:", "        if False:"),),
        OF_ITS_OWN + "test_a_reader_whose_session_has_ended_is_refused_and_is_no_holder",
        "the bit of a session is used again only after a sweep of all keys",
    ),
    Mutant(
        "failed load taken for missing",
        (
            (
                READS,
                '                    codecs.append(UNREADABLE)\n                    tokens.append(token)\n                    bodies.append(b"")\n',
                '                    codecs.append("")\n                    tokens.append(NO_TOKEN)\n                    bodies.append(None)\n',
            ),
        ),
    ),
    Mutant(
        "failed load cached",
        (
            (
                READS,
                "                if found is None:\n                    uncacheable.append(len(bodies))\n",
                "                if found is None:\n                    hold(key, bit)\n",
            ),
        ),
    ),
    Mutant(
        "loaded value of another size accepted",
        (
            (
                LOADS,
                "            if body is not None and len(body) != away.size:\n",
                "            if False:\n",
            ),
        ),
    ),
    Mutant(
        "request that joins a load under way forgotten",
        (
            (
                LOADS,
                "                asked.append((key, away))\n            self._waiting[place][parked] = None\n",
                "                asked.append((key, away))\n                self._waiting[place][parked] = None\n",
            ),
        ),
        OF_ITS_OWN + "test_a_value_is_loaded_once_for_all_who_wait_for_it",
        "such a request is refused in the end, and its repeat finds no load under way",
    ),
    Mutant(
        "repeat of a parked request parked once more",
        ((LOADS, "        if known is not None:\n", "        if False:\n"),),
        OF_ITS_OWN + "test_a_repeat_is_not_parked_twice_and_is_answered_where_it_came_from_last",
        "it costs memory, and no wrong answer",
    ),
    Mutant(
        "value that is replaced again and again loaded without end",
        ((LOADS, "        if parked.rounds >= LOAD_ROUNDS:\n", "        if False:\n"),),
        OF_ITS_OWN + "test_a_value_that_is_replaced_again_and_again_is_refused_in_the_end",
        "no simulated key is replaced without end",
    ),
    Mutant(
        "request parked for ever",
        ((LOADS, "            if parked.missing:  # else", "            if False:  # else"),),
        OF_ITS_OWN + "test_a_request_is_not_parked_for_ever",
        "each simulated load ends",
    ),
    Mutant(
        "requests whose values are here answered without a tick of their own",
        (
            (
                LOADS,
                "        self._ready.append(parked)\n        self._alarm.at(0.0)\n",
                "        self._ready.append(parked)\n",
            ),
        ),
    ),
    Mutant(
        "WAIT ended by the deletion of its key while the value is loaded",
        (
            (
                READS,
                "        if type(message) is Wait and self._engine.read(message.key) is None:\n",
                "        if False:\n",
            ),
        ),
        OF_ITS_OWN + "test_a_wait_goes_on_if_the_key_is_deleted_while_its_value_is_being_loaded",
        "a Local that is told that the key is missing asks again",
    ),
    Mutant(
        "Global that ends without its parked requests",
        (
            (
                STATE,
                "        begun = self._changes or self._loads or ",
                "        begun = self._changes or ",
            ),
        ),
        OF_ITS_OWN + "test_global_is_not_idle_while_a_request_is_parked",
        "the simulated Global crashes, and does not end in order",
    ),
    Mutant(
        "part of a value answered that its key has no more",
        (
            (
                READS,
                "                data = self._part(parked.message, parked.identity)\n",
                "                data = data or self._part(parked.message, parked.identity)\n",
            ),
        ),
        OF_PARTS + "test_a_key_that_has_another_value_by_then_has_nothing_to_fetch",
        NO_PARTS,
    ),
    Mutant(
        "part that cannot be read at present said to be gone",
        (
            (
                READS,
                "                if data is None and not isinstance(result, LookupError):\n",
                "                if False:\n",
            ),
        ),
        OF_PARTS + "test_what_cannot_be_read_at_present_is_not_said_to_be_gone",
        NO_PARTS,
    ),
    Mutant(
        "parked FETCH answered after its session has ended",
        (
            (
                READS,
                "            if parked.session is not None and not parked.session.open:\n",
                "            if False:\n",
            ),
        ),
        OF_PARTS + "test_a_session_that_has_ended_is_refused_and_pays_until_the_load_has_ended",
        NO_PARTS,
    ),
    Mutant(
        "parts loaded without a bound",
        (
            (
                FETCHES,
                "        while self._queues and len(self._loading) < PARTS_LOADING_MAX:\n",
                "        while self._queues:\n",
            ),
        ),
        OF_PARTS + "test_few_parts_are_loaded_at_a_time_in_their_order_and_sessions_take_turns",
        NO_PARTS,
    ),
    Mutant(
        "all parts of one session loaded before those of others",
        (
            (
                FETCHES,
                "            del self._queues[turn]\n            if queue:\n                self._queues[turn] = queue\n",
                "            if not queue:\n                del self._queues[turn]\n",
            ),
        ),
        OF_PARTS + "test_few_parts_are_loaded_at_a_time_in_their_order_and_sessions_take_turns",
        NO_PARTS,
    ),
    Mutant(
        "FETCH parked without room on the account",
        ((FETCHES, "        if not account.admits(cost):\n", "        if False:\n"),),
        OF_PARTS + "test_a_request_that_finds_no_room_is_not_answered",
        NO_PARTS,
    ),
    Mutant(
        "keys that an engine has at the start removed at once",
        (
            (
                "server.loop",
                "        return clock.now() + self.settings.lease if len(self._engine) else 0.0\n",
                "        return 0.0\n",
            ),
        ),
        ENGINES + "test_what_an_engine_has_at_the_start_is_kept_for_a_lease",
        "the simulated Global has a journal, and is told how long it has to be quiet",
    ),
    Mutant(
        "copies of a host kept when the bulk is a program's own",
        (
            (
                "shm.bulk",
                "        if self._memory is not None:\n            self._memory.drop(token)\n",
                "",
            ),
        ),
        ENGINES + "test_with_a_bulk_of_its_own_the_host_of_global_shares_copies_as_any_other",
        "the files of a host are not simulated",
    ),
)
