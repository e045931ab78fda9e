"""Mutants of what a Node and a Global of several rest on: each is caught by a named test.

They are about threads, sockets and SQL, which the simulation does not have.
"""

# ruff: noqa: E501
from __future__ import annotations

from tests.simulation.mutant import Mutant

SEVERAL = "tests/integration/test_several_globals.py::"
MEMBERS = "client.cluster.members"
HOST = "the simulated clients have a host of their own"

OF_NODES = (
    # ---- clients
    Mutant(
        "Local that is closed while a call pauses there",
        (
            (
                MEMBERS,
                "        with self._using(next(fresh, self.routes.seeds[0])) as local:\n            return await way.run(local, command)\n",
                "        return await way.run(self.local(next(fresh, self.routes.seeds[0])), command)\n",
            ),
        ),
        SEVERAL + "test_a_local_is_not_closed_while_a_call_pauses_there",
        HOST,
    ),
    Mutant(
        "read that ends as closed when its Global leaves the cluster",
        (
            (
                "client.node",
                "        except (GlobalUnavailable, NodeClosed, WrongServer) as error:",
                "        except (GlobalUnavailable, WrongServer) as error:",
            ),
        ),
        SEVERAL + "test_a_read_goes_on_if_its_global_leaves_the_cluster_just_now",
        HOST,
    ),
    Mutant(
        "wait whose timeout begins again with each refusal",
        (
            (
                "client.commands",
                "                elif now >= end:  # Globals have refused it until now\n",
                "                elif False:\n",
            ),
        ),
        SEVERAL + "test_a_wait_ends_in_time_while_its_partition_is_refused",
        HOST,
    ),
    Mutant(
        "read of many keys that goes on with what the first Global has answered",
        (
            (
                MEMBERS,
                "        if moved is not None and moved.done and not call.reads:",
                "        if moved is not None and moved.done:",
            ),
        ),
        SEVERAL + "test_a_read_of_many_keys_of_which_a_node_that_knows_one_address_has_some",
        HOST,
    ),
    Mutant(
        "settings of one of several addresses without the connect file that was read",
        (
            (
                "client.settings",
                "        made = Settings.__new__(Settings)  # no copy: that would leave out the connect file\n        vars(made).update(vars(self), address=address)\n",
                "        made = pickle.loads(pickle.dumps(self))\n        made.address = address\n",
            ),
            ("client.settings", "import os\n", "import os\nimport pickle\n"),
        ),
        "tests/integration/test_access_client.py::test_settings_of_one_of_several_addresses_keep_the_file_that_was_read",
        HOST,
    ),
    # ---- members
    Mutant(
        "partitions whose fences a late barrier has raised, loaded for ever",
        (
            (
                "server.cluster.member",
                "            if self._overtaken(load.numbers):\n",
                "            if False:\n",
            ),
        ),
        "tests/integration/test_cluster_host.py::test_partitions_whose_fences_were_raised_by_a_late_barrier_are_claimed_again",
        "the simulated members have a host of their own",
    ),
    Mutant(
        "wake-up of a Global that is lost while another thread sends one",
        (
            (
                "transport.router",
                "        while self._wake_wanted and self._waking.acquire(blocking=False):\n",
                "        if self._waking.acquire(blocking=False):\n",
            ),
        ),
        "tests/integration/test_guard.py::test_no_wake_up_is_lost_while_another_thread_sends_one",
        "it takes two threads",
    ),
    Mutant(
        "warning of a commit that the user of the database does not want to see",
        (
            (
                "server.postgres.connections",
                "    set_config('client_min_messages', 'warning', false),\n",
                "",
            ),
        ),
        "tests/integration/test_postgres_standby.py::test_a_warning_comes_also_to_a_user_who_wants_to_see_errors_alone",
        "SQL has a stand-in in the simulation, which warns always",
    ),
)
