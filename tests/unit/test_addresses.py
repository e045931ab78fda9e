"""Which addresses are well formed, and how another host sees them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq

from dstore.errors import AddressError
from dstore.transport import addresses, binding


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:1",
        "tcp://[::1]:65535",
        "tcp://[fe80::1%eth0]:1",
        "tcp://host_with-all.of.it:1",
        "tcp://bücher.test:1",
        "ipc:///tmp/x",
        "ipc://@abstract",
    ],
)
def test_good_addresses(address: str) -> None:
    assert addresses.check(address) == address


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "use tcp://HOST:PORT or ipc://PATH"),
        ("tcp://::1:1", "stands in brackets"),
        ("tcp://[nonsense]:1", "'nonsense' is not an IPv6 address"),
        ("tcp://[127.0.0.1]:1", "is not an IPv6 address"),
        ("tcp://a..b:1", "cannot be a host name"),
        ("tcp://" + 64 * "a" + ":1", "cannot be a host name"),
        ("tcp://a\0b:1", "cannot be a host name"),
        ("tcp://h:0", "between 1 and 65535"),
        ("tcp://h:65536", "between 1 and 65535"),
        ("tcp://h:\u0661", "is not an address"),
        ("tcp://*:1", "name the host"),
        ("tcp://0.0.0.0:1", "name the host"),
        ("tcp://[::]:1", "name the host"),
        ("tcp://[0:0::0]:1", "name the host"),
        ("ipc://", "1 to 100 bytes"),
        ("ipc://" + 101 * "x", "1 to 100 bytes"),
        ("ipc://*", "name a path"),
        ("ipc://@", "name a path"),
        ("ipc://a\0b", "name a path"),
        ("ipc://\udc80", "UTF-8"),
    ],
)
def test_bad_addresses(address: str, why: str) -> None:
    with pytest.raises(AddressError, match=why.replace("*", r"\*")):
        addresses.check(address)


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://[::ffff:127.0.0.1]:1", True),
        ("tcp://localhost:1", True),
        ("ipc:///x", True),
        ("tcp://*:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://[fe80::1%eth0]:1", False),
        ("tcp://127.invalid:1", False),
    ],
)
def test_what_only_this_machine_can_reach(address: str, private: bool) -> None:
    assert addresses.is_private(address) is private


@pytest.mark.parametrize(
    ("publisher", "address", "told", "reached_at", "seen"),
    [
        ("tcp://*:2", "tcp://*:1", "tcp://*:2", "tcp://[::1]:1", "tcp://[::1]:2"),
        ("tcp://*:2", "tcp://*:1", "tcp://*:2", "tcp://[fe80::1%3]:1", "tcp://[fe80::1%3]:2"),
        ("tcp://[::]:2", "tcp://[::]:1", "tcp://*:2", "tcp://10.0.0.1:1", "tcp://10.0.0.1:2"),
        ("tcp://h:2", "tcp://h:1", "tcp://*:2", "tcp://10.0.0.1:1", "tcp://10.0.0.1:2"),
        (
            "tcp://[::1]:2",
            "tcp://127.0.0.1:1",
            "tcp://[::1]:2",
            "tcp://127.0.0.1:1",
            "tcp://[::1]:2",
        ),
        ("tcp://[::]:2", "ipc:///x", "tcp://127.0.0.1:2", "ipc:///x", "tcp://127.0.0.1:2"),
        ("ipc:///x.pub", "ipc:///x", "ipc:///x.pub", "ipc:///x", "ipc:///x.pub"),
    ],
)
def test_the_publisher_as_it_is_told_and_seen(
    publisher: str, address: str, told: str, reached_at: str, seen: str
) -> None:
    assert addresses.advertised(publisher, address) == told
    assert addresses.resolved(told, reached_at) == seen


@pytest.mark.parametrize(
    ("sockaddr", "literal"),
    [
        (("10.0.0.1", 5), "tcp://10.0.0.1:5"),
        (("::1", 5, 0, 0), "tcp://[::1]:5"),
        (("fe80::1", 5, 0, 3), "tcp://[fe80::1%3]:5"),
        (("fe80::1%eth0", 5, 0, 3), "tcp://[fe80::1%3]:5"),
    ],
)
def test_what_a_look_up_finds_is_literal(sockaddr: tuple[str, int], literal: str) -> None:
    assert addresses.endpoint(sockaddr) == literal
    assert addresses.is_literal(literal)
    assert addresses.check(literal) == literal


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("tcp://127.0.0.1:50051", "tcp://127.0.0.1:50051"),
        ("tcp://localhost:050051", "tcp://127.0.0.1:50051"),
        ("tcp://LocalHost.:1", "tcp://127.0.0.1:1"),
        ("tcp://[::ffff:127.0.0.1]:1", "tcp://127.0.0.1:1"),
        ("tcp://[0:0::0:1]:1", "tcp://[::1]:1"),
        ("tcp://[FE80::1%eth0]:1", "tcp://[fe80::1%eth0]:1"),
        ("tcp://DB.example.:1", "tcp://db.example:1"),
        ("ipc://@Name", "ipc://@Name"),
        ("ipc:///run/x.sock", "ipc:///run/x.sock"),
    ],
)
def test_an_address_has_one_canonical_form(address: str, canonical: str) -> None:
    assert addresses.canonical(address) == canonical
    assert addresses.canonical(canonical) == canonical
    assert addresses.canonical_bound(address) == [canonical]


def test_a_canonical_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/inner")
    monkeypatch.chdir(tmp_path)
    here = f"ipc://{os.path.realpath(tmp_path)}"
    assert addresses.canonical("ipc://x.sock") == f"{here}/x.sock"
    assert addresses.canonical("ipc://link/x.sock") == f"{here}/real/inner/x.sock"
    assert addresses.canonical("ipc://link/../x.sock") == f"{here}/real/x.sock", "as the system"
    (tmp_path / "x.sock").symlink_to("real/y.sock")
    assert addresses.canonical("ipc://x.sock") == f"{here}/x.sock", "Global replaces that name"


@pytest.mark.parametrize(
    ("bound", "hosts"),
    [
        ("*", ["127.0.0.1", "[::1]"]),
        ("[::]", ["127.0.0.1", "[::1]"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"]),
    ],
)
def test_the_addresses_of_a_global_are_its_alone(bound: str, hosts: list[str]) -> None:
    """No other socket can be bound to one of them, so that it is this Global who answers there."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as first:
        address = binding.bind(first, f"tcp://{bound}:0")
        names = addresses.canonical_bound(address)
        split = [addresses.split_tcp(each) for each in names]
        assert [each[0] for each in split if each] == hosts
        for name in names:
            with context.socket(zmq.ROUTER) as second, pytest.raises(AddressError):
                binding.bind(second, name)


def test_several_addresses_have_commas_between_them() -> None:
    several = addresses.check_several
    assert several("tcp://a:1") == ["tcp://a:1"]
    assert several(" tcp://a:1, tcp://b:2,ipc:///p,tcp://a:1 ") == [
        "tcp://a:1",
        "tcp://b:2",
        "ipc:///p",
    ]
    assert several("ipc:///a,b") == ["ipc:///a,b"]
    for wrong in ("", ",", "tcp://a:1,", "tcp://a:1,b:2", "tcp://a:1,tcp://"):
        with pytest.raises(AddressError):
            several(wrong)
    with pytest.raises(AddressError, match="251 addresses, and a cluster has at most 250"):
        several(",".join(f"tcp://a:{port}" for port in range(1, 252)))
