"""Names and addresses of both families: where Global listens, and how Nodes find it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dstore
from tests.integration.namespaces import run

DUAL = ("127.0.0.1 localhost", "::1 dual.test", "127.0.0.1 dual.test")


# ---- where Global listens ---------------------------------------------------------------------


def test_any_host_is_both_families(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
with dstore.Global("tcp://*:0", insecure=True) as server:
    assert server.address.startswith("tcp://*:"), server.address
    port = server.address.rpartition(":")[2]
    for host in ("127.0.0.1", "[::1]", "localhost", "dual.test"):
        address = f"tcp://{host}:{port}"
        with dstore.Node(address) as node, dstore.Node(address) as other:
            assert works(other, host)
            assert node.get(host) == 1
            other.delete(host)
            assert host not in node
            print(host)
""",
        *DUAL,
    )
    assert said.split() == ["127.0.0.1", "[::1]", "localhost", "dual.test"]


def test_any_host_without_ipv6_is_ipv4(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
for which in ("all", "lo"):
    with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "w") as file:
        file.write("1")
with dstore.Global("tcp://*:0", insecure=True) as server:
    with dstore.Node("tcp://dual.test:" + server.address.rpartition(":")[2]) as node:
        print(works(node))
with dstore.Global("tcp://dual.test:0") as server, dstore.Node(server.address) as node:
    print(works(node))
""",
        *DUAL,
    )
    assert said.split() == ["True", "True"]


def test_a_name_is_all_its_addresses(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
with dstore.Global("tcp://dual.test:0") as server:
    assert server.address.startswith("tcp://dual.test:")
    port = server.address.rpartition(":")[2]
    for host in ("127.0.0.1", "[::1]", "dual.test"):
        with dstore.Node(f"tcp://{host}:{port}") as node:
            print(works(node))
try:
    dstore.Global("tcp://no.test:0").bind()
except dstore.AddressError as error:
    print(error)
""",
        *DUAL,
    )
    assert said.splitlines()[:3] == ["True"] * 3
    assert "the name 'no.test' does not resolve" in said.splitlines()[3]


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("host", ["*", "dual.test"])
def test_a_port_that_is_taken_in_one_family_is_taken(tmp_path: Path, taken: str, host: str) -> None:
    said = run(
        tmp_path,
        f"""
family = socket.AF_INET6 if ":" in {taken!r} else socket.AF_INET
with socket.socket(family) as other:
    if family == socket.AF_INET6:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    other.bind(({taken!r}, 0))
    other.listen()
    port = other.getsockname()[1]
    server = dstore.Global(f"tcp://{host}:{{port}}", insecure=True)
    try:
        server.bind()
    except dstore.AddressError as error:
        print(error)
    server.close()
with dstore.Global(f"tcp://{host}:{{port}}", insecure=True):
    print("free")
""",
        *DUAL,
    )
    told, free = said.splitlines()
    assert f"tcp://{host}:" in told and "is in use already; stop what listens there" in told
    assert free == "free"


def test_an_interface_is_its_address(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
with dstore.Global("tcp://lo:0") as server, dstore.Node(server.address) as node:
    print(server.address.rpartition(":")[0], works(node))
""",
    )
    assert said.split() == ["tcp://127.0.0.1", "True"]


def test_an_address_with_a_scope(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
import subprocess
for line in ("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up",
             "-6 addr add fe80::77/64 dev v0 nodad"):
    if subprocess.run(["ip", *line.split()]).returncode:
        sys.exit(77)
server = dstore.Global("tcp://[fe80::77%v0]:0", insecure=True)
with server, dstore.Node(server.address) as node:
    with dstore.Node(server.address) as other:
        node.set("a", 1); other.get("a"); node.delete("a")
        print(server.address.rpartition(":")[0], "a" in other)
""",
    )
    assert said.split() == ["tcp://[fe80::77%v0]", "False"]


# ---- how Nodes find it ------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "*"])
@pytest.mark.parametrize(
    "lines",
    [
        ("::1 name.test", "127.0.0.1 name.test"),
        ("127.0.0.1 name.test", "::1 name.test"),
        ("127.0.0.9 name.test", "::9 name.test", "127.0.0.1 name.test", "::1 name.test"),
    ],
)
def test_a_name_of_both_families_reaches_either(
    tmp_path: Path, host: str, lines: tuple[str, ...]
) -> None:
    said = run(
        tmp_path,
        f"""
import asyncio
with dstore.Global("tcp://{host}:0", insecure=True) as server:
    address = "tcp://name.test:" + server.address.rpartition(":")[2]
    with dstore.Node(address) as node, dstore.Node(address) as other:
        assert works(node)
        assert other.get("k") == 1
        heard = other.watch()
        assert next(heard).key is None
        node.delete("k")
        assert next(heard).key == "k"
        node.set("large", bytes(300_000))
        assert len(other.get("large")) == 300_000

    async def tasks():
        async with dstore.AsyncNode(address) as node:
            await node.set("b", 1)
            print(await node.get("b"))
    asyncio.run(tasks())
""",
        *lines,
    )
    assert said == "1\n"


def test_a_name_of_ipv6_alone(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
with dstore.Global("tcp://[::1]:0") as server:
    with dstore.Node("tcp://only6.test:" + server.address.rpartition(":")[2]) as node:
        print(works(node))
""",
        "::1 only6.test",
    )
    assert said == "True\n"


def test_something_else_listens_in_the_first_family(tmp_path: Path) -> None:
    """A proxy that closes what it cannot pass on, and a server that speaks first."""
    said = run(
        tmp_path,
        """
import threading
for says in (b"", b"SSH-2.0-x\\r\\n"):
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::1", 0))
        other.listen()
        port = other.getsockname()[1]

        def serve():
            with other.accept()[0] as peer:
                peer.sendall(says)
        threading.Thread(target=serve, daemon=True).start()
        with dstore.Global(f"tcp://127.0.0.1:{port}"):
            with dstore.Node(f"tcp://dual.test:{port}") as node:
                print(works(node))
""",
        *DUAL,
    )
    assert said.split() == ["True", "True"]


def test_the_first_family_does_not_answer_at_all(tmp_path: Path) -> None:
    """Its backlog is full, so that the system drops requests for connections."""
    said = run(
        tmp_path,
        """
from contextlib import ExitStack
with ExitStack() as waiting:
    other = waiting.enter_context(socket.socket(socket.AF_INET6))
    other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    other.bind(("::1", 0))
    other.listen(0)
    port = other.getsockname()[1]
    for _ in range(4):
        sock = waiting.enter_context(socket.socket(socket.AF_INET6))
        sock.setblocking(False)
        sock.connect_ex(("::1", port))
    with dstore.Node(f"tcp://dual.test:{port}", timeout=20) as node:
        with dstore.Global(f"tcp://127.0.0.1:{port}"):
            node.join()
            print(works(node))
""",
        *DUAL,
    )
    assert said == "True\n"


@pytest.mark.long
def test_the_address_of_a_living_global_vanishes(tmp_path: Path) -> None:
    """Packets to it are lost without an error. Heartbeats notice, and the same session continues
    over the other family, with its channels and broadcasts.
    """
    said = run(
        tmp_path,
        """
import subprocess
with dstore.Global("tcp://*:0", insecure=True) as server:
    address = "tcp://dual.test:" + server.address.rpartition(":")[2]
    with dstore.Node(address, timeout=60) as node, dstore.Node(address, timeout=60) as other:
        assert works(node) and works(other)
        subprocess.run(["ip", "-6", "addr", "del", "::1/128", "dev", "lo"], check=True)
        subprocess.run(["ip", "-6", "route", "add", "blackhole", "::1"], check=True)
        node.set("later", 1)
        assert other.get("later") == 1
        node.delete("later")
        assert "later" not in other
        print(node._local.host.link.control.resolver.endpoint.rpartition(":")[0])
""",
        *DUAL,
    )
    assert said == "tcp://127.0.0.1\n"


@pytest.mark.long
def test_global_moves_to_another_address(tmp_path: Path) -> None:
    """The Node reaches it at ::1; it starts again on 127.0.0.1 alone, on 127.0.0.2 with another
    name, and on ::1 again. Channels of threads and of event loops follow, and broadcasts too.
    """
    said = run(
        tmp_path,
        """
import asyncio
from contextlib import ExitStack
with dstore.Global("tcp://[::1]:0") as server:
    port = server.address.rpartition(":")[2]
    address = f"tcp://dual.test:{port}"
    node, other = dstore.Node(address, timeout=20), dstore.Node(address, timeout=20)
    shared = dstore.AsyncNode.sharing(other)
    assert works(node) and works(other)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(shared.set("async", 1))
with node, other:
    for host in ("127.0.0.1", "127.0.0.2", "[::1]"):
        if host == "127.0.0.2":
            hosts("127.0.0.2 dual.test")
        if host == "[::1]":
            hosts("::1 dual.test", "127.0.0.1 dual.test")
        with dstore.Global(f"tcp://{host}:{port}"):
            for each in (node, other):
                each.join()
            assert works(node)
            assert other.get("k") == 1
            node.delete("k")
            assert "k" not in other
            loop.run_until_complete(shared.set("async", 1))
            print(host)
loop.close()
""",
        *DUAL,
    )
    assert said.split() == ["127.0.0.1", "127.0.0.2", "[::1]"]


@pytest.mark.long
def test_a_name_that_appears_later(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
with dstore.Global("tcp://[::1]:0") as server:
    address = "tcp://late.test:" + server.address.rpartition(":")[2]
    with dstore.Node(address, timeout=1) as node:
        try:
            node.get("k")
        except dstore.GlobalUnavailable as error:
            print(error)
        hosts("::1 late.test")
        node.join(20)
        print(works(node))
""",
    )
    told, works = said.splitlines()
    assert "Global did not answer in time; the name 'late.test' does not resolve (" in told
    assert works == "True"


def test_a_publisher_with_a_name_of_its_own(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
with dstore.Global("tcp://127.0.0.1:0", publisher="tcp://only6.test:0") as server:
    with dstore.Node(server.address) as node, dstore.Node(server.address) as other:
        from dstore.transport.addresses import split_tcp
        assert split_tcp(server.publisher)[0] == "only6.test"
        heard = other.watch()
        assert next(heard).key is None
        for _ in range(10):
            works(node); works(other); node.delete("k")
            assert next(heard).key == "k"
        sub = other._local.host.link.control._sub
        print(sub.source.endpoint.startswith("tcp://[::1]:"))
""",
        "::1 only6.test",
    )
    assert said == "True\n"


# ---- error messages ---------------------------------------------------------------------------


def _refusal(address: str) -> str:
    with dstore.Node(address, timeout=1.0) as node:
        with pytest.raises(dstore.GlobalUnavailable) as caught:
            node.get("k")
        return str(caught.value)


@pytest.mark.long
def test_nothing_listens_is_said(tmp_path: Path) -> None:
    assert _refusal("tcp://127.0.0.1:9").endswith("; connection refused at 127.0.0.1:9")
    missing = f"ipc://{tmp_path}/no"
    assert _refusal(missing).endswith(f"; no such file or directory at {missing}")


def test_a_name_without_an_address_is_said() -> None:
    assert "the name 'no.such.host.invalid' does not resolve (" in _refusal(
        "tcp://no.such.host.invalid:9"
    )


@pytest.mark.long
def test_what_was_said_is_forgotten_when_it_is_there(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/g"
    with dstore.Node(address, timeout=1.0) as node:
        with pytest.raises(dstore.GlobalUnavailable, match="no such file"):
            node.get("k")
        with dstore.Global(address):
            node.join(20)
            assert node._local is not None
            assert node._local.state.last_error == ""
        with pytest.raises(dstore.GlobalUnavailable, match="no such file"):
            node.get("k")


def test_making_a_node_waits_for_no_look_up() -> None:
    """The look-up blocks until the Node has been made, used without success, and closed."""
    script = """
import threading
import dstore
from dstore.runtime.native import sockets as socket
closed, asked = threading.Event(), threading.Event()
look_up = socket.getaddrinfo
def slow(*arguments, **keywords):
    asked.set()
    closed.wait()
    return look_up(*arguments, **keywords)
socket.getaddrinfo = slow
with dstore.Node("tcp://localhost:9", timeout=0.3) as node:
    assert asked.wait(20)
    try:
        node.get("k")
    except dstore.GlobalUnavailable as error:
        print(error)
print("closed")
closed.set()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "closed"


def test_the_banner_and_the_warning_of_the_command(tmp_path: Path) -> None:
    for address, exposed in (("tcp://localhost:0", False), ("tcp://*:0", True)):
        server = subprocess.Popen(
            [sys.executable, "-m", "dstore", "global", "--address", address, "--insecure"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with server:
            assert server.stdout is not None and server.stderr is not None
            banner = server.stdout.readline()
            server.terminate()
            warned = server.stderr.read()
        host, port = banner.split()[-1].rsplit(":", 1)
        assert banner.startswith("Dstore server listening on ")
        assert host == address.removeprefix("tcp://").removesuffix(":0") and int(port) > 0
        assert ("can be reached from other machines" in warned) == exposed
