"""The workers of gunicorn share one cache, one session and one acknowledgement."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import dstore
from dstore import config
from tests.integration.gunicorn_service import LIMIT, MISSING, OK, Gunicorn, own_figures
from tests.integration.owners import HostProcess, until
from tests.integration.processes import GlobalProcess, other_sessions, others_left
from tests.integration.sharing import LONG_LEASE, gets, host_folder

pytest.importorskip("gunicorn", minversion="25.1", reason="needs gunicorn 25.1 or newer")

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("host_mode")]
WORKERS = 8
KINDS = ["sync", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("gthread", "gevent"))]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host of its own for this process and those that it starts; its Nodes have to share."""
    with host_folder() as folder:
        monkeypatch.setenv("DSTORE_SHM", folder)
        monkeypatch.setenv(config.HOST_VARIABLE, "require")
        yield folder


@pytest.fixture
def served(here: str) -> Iterator[GlobalProcess]:
    with GlobalProcess(lease=LONG_LEASE) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def node(served: GlobalProcess) -> Iterator[dstore.Node]:
    with dstore.Node(served.address) as node:
        yield node


def figures(node: dstore.Node) -> dict[str, int]:
    """What Global counts of requests that only memberships of other processes would cause."""
    counts = node.global_stats()
    return {name: counts[name] for name in ("targeted_invalidations", "reminders", "syncs")}


def needs(kind: str) -> None:
    if kind == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("needs gevent")


@pytest.mark.parametrize("kind", KINDS)
def test_eight_workers_have_one_cache_and_acknowledge_once(
    node: dstore.Node, served: GlobalProcess, tmp_path: Path, kind: str
) -> None:
    needs(kind)
    with Gunicorn(served.address, tmp_path, kind, preload=False, workers=WORKERS) as service:
        service.ask_all("POST", "/")  # all have begun; refused without a look into the Node
        quiet = figures(node)
        for turn in range(5):
            value = f"version {turn}"
            node.set("k", value)
            before = gets(node)
            found = service.ask_all("GET", "/k")
            assert {(each.status, each.text) for each in found} == {(OK, value)}
            assert len({each.pid for each in found}) == WORKERS
            assert gets(node) == before, "the writer has put it where all find it"

            assert node.delete("k") == dstore.Deletion(confirmed=1, expired=0, pending=0)
            assert {each.status for each in service.ask_all("GET", "/k")} == {MISSING}
        assert figures(node) == quiet
        assert node.global_stats()["sessions"] == 1
        mine = own_figures(service)
        assert {each["session"] for each in mine.values()} == {node.stats()["session"]}
        assert {each["membership"] for each in mine.values()} == {"shared"}
        assert sum(each["host_hits"] for each in mine.values()) >= 5 * WORKERS
        assert service.stop() == 0
        assert "Traceback" not in service.said()
    until(lambda: other_sessions(node) == 0, "the end of all writers")


def test_what_one_worker_fetches_the_others_have(
    node: dstore.Node, served: GlobalProcess, tmp_path: Path
) -> None:
    with (
        dstore.Node(served.address, host="off", shm="") as outside,
        Gunicorn(served.address, tmp_path, "sync", preload=False, workers=WORKERS) as service,
    ):
        service.ask_all("POST", "/")
        for turn in range(5):
            outside.set("k", f"version {turn}")
            before = gets(node)
            found = service.ask_all("GET", "/k")
            assert {(each.status, each.text) for each in found} == {(OK, f"version {turn}")}
            assert gets(node) == before + 1, "one worker has asked for it"
            assert outside.delete("k").confirmed == 2, "of this host, and of the one outside"
            assert {each.status for each in service.ask_all("GET", "/k")} == {MISSING}
        assert service.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_reads_of_workers_with_preload(
    node: dstore.Node, served: GlobalProcess, tmp_path: Path, kind: str
) -> None:
    needs(kind)
    node.set(LIMIT, 1000)
    before = gets(node)
    with Gunicorn(served.address, tmp_path, kind, workers=WORKERS) as service:
        found = service.ask_all("GET", f"/{LIMIT}")
        assert {(each.status, each.text) for each in found} == {(OK, "1000")}
        assert gets(node) == before, "neither the master nor a worker has asked Global"
        assert others_left(node) == 0
        mine = own_figures(service)
        assert all(each["misses"] == 0 for each in mine.values())
        assert node.delete(LIMIT).confirmed == 1
        assert {each.status for each in service.ask_all("GET", f"/{LIMIT}")} == {MISSING}
        assert service.ask("PUT", "/written", "here").status == 201
        found = service.ask_all("GET", "/written")
        assert {(each.status, each.text) for each in found} == {(OK, "here")}
        assert service.stop() == 0
        assert "Traceback" not in service.said()


@pytest.mark.long
def test_workers_on_another_host(here: str, tmp_path: Path) -> None:
    """They share the membership of ``dstore host``, and go on when another one takes its place."""
    with (
        host_folder() as there,
        GlobalProcess(lease=1.0, options=("--shm", there)) as served,
        dstore.Node(served.address, host="off", shm="") as outside,
    ):
        outside.set("k", "one")
        with (
            HostProcess(served.address, here) as owner,
            Gunicorn(served.address, tmp_path, "sync", workers=WORKERS) as service,
        ):
            service.ask_all("POST", "/")
            before = gets(outside)
            assert {each.text for each in service.ask_all("GET", "/k")} == {"one"}
            assert gets(outside) == before + 1
            assert outside.delete("k").confirmed == 2
            assert {each.status for each in service.ask_all("GET", "/k")} == {MISSING}
            owner.process.kill()
            outside.set("k", "two")
            with HostProcess(served.address, here) as next_owner:
                assert {each.text for each in service.ask_all("GET", "/k")} == {"two"}
                outside.set("k", "three", replace=True)
                assert {each.text for each in service.ask_all("GET", "/k")} == {"three"}
                name = f"process {next_owner.process.pid}"
                until(
                    lambda: (
                        {each["membership"] for each in own_figures(service).values()} == {"shared"}
                    ),
                    name,
                )
            assert service.stop() == 0
            assert "Traceback" not in service.said()
