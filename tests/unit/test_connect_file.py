"""Connect files: what is in them, who may read them, and that their secret is shown nowhere."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import zmq

from dstore.access.connect import CONNECT_BYTES_MAX, SERVER_KEYS_MAX, Connect, load
from dstore.errors import BadConnectFile


def new_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


@pytest.fixture
def connect() -> Connect:
    server, _ = new_pair()
    public, secret = new_pair()
    return Connect("tcp://db.example:50051", [server], "worker", ["app1/"], public, secret)


@pytest.fixture
def path(connect: Connect, tmp_path: Path) -> Path:
    path = tmp_path / "worker.json"
    connect.save(path)
    return path


def changed(path: Path, **fields: Any) -> Path:
    """Change fields of the file in place, and keep its mode."""
    text = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: each for name, each in text.items() if each is not ...}))
    return path


def test_what_is_saved_is_loaded(path: Path, connect: Connect) -> None:
    assert load(path) == Connect.load(str(path)) == connect
    assert json.loads(path.read_text())["dstore_connect"] == 1


def test_a_file_is_for_its_user_alone_and_is_replaced_as_a_whole(
    path: Path, connect: Connect
) -> None:
    former = os.open(path, os.O_RDONLY)
    umask = os.umask(0)
    try:
        dataclasses.replace(connect, name="other").save(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert json.loads(os.read(former, CONNECT_BYTES_MAX))["name"] == "worker"
    finally:
        os.umask(umask)
        os.close(former)
    assert load(path).name == "other"
    assert os.listdir(path.parent) == [path.name]


def test_the_secret_is_in_no_repr_and_in_no_pickle(connect: Connect) -> None:
    for shown in (repr(connect), str(connect), repr(connect.keys), f"{connect.keys}"):
        assert connect.secret_key not in shown
        assert "worker" in shown
    with pytest.raises(TypeError, match="name the file"):
        pickle.dumps(connect)


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o644])
def test_a_file_that_others_can_read_or_write_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(BadConnectFile, match=f"chmod 600 {path}"):
        load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(path: Path) -> None:
    os.chown(path, 12_345, -1)
    with pytest.raises(BadConnectFile, match="belongs to another user"):
        load(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path):
        with pytest.raises(BadConnectFile, match="not even a file"):
            load(path)
    with pytest.raises(BadConnectFile, match=r"cannot be read: No such file"):
        load(tmp_path / "missing")
    with pytest.raises(BadConnectFile, match="cannot be read"):
        load("a\0b")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "more than|not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b"[]", "dstore access add"),
        (b"{}", "dstore access add"),
        (b'{"dstore_connect": 2}', "another version"),
        (b'{"dstore_connect": true}', "another version"),
        (b'{"dstore_connect": 1}', "damaged: its 'address'"),
        (b" " * (CONNECT_BYTES_MAX + 1), "more than 65,536 bytes"),
    ],
)
def test_what_is_no_connect_file_is_refused(path: Path, text: bytes, why: str) -> None:
    path.write_bytes(text)
    with pytest.raises(BadConnectFile, match=why) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("address", "db:1", "is not an address"),
        ("address", 5, "'address' is no text"),
        ("name", ..., "'name' is no text"),
        ("prefixes", "app1/", "no list of texts"),
        ("prefixes", [1], "no list of texts"),
        ("server_keys", [], "1 to 4 keys"),
        ("server_keys", ["x" * 40] * (SERVER_KEYS_MAX + 1), "1 to 4 keys"),
        ("server_keys", ["x" * 39], "1 to 4 keys"),
        ("server_keys", ["x" * 39 + '"'], "1 to 4 keys"),
        ("server_keys", ["#" * 40], "1 to 4 keys"),
        ("public_key", "x" * 39, "not a pair"),
        ("secret_key", "", "not a pair"),
        ("secret_key", "x" * 40, "not a pair"),
        ("secret_key", "é" * 40, "not a pair"),
    ],
)
def test_a_damaged_file_is_refused(path: Path, name: str, value: Any, why: str) -> None:
    secret = load(path).secret_key
    with pytest.raises(BadConnectFile, match=why) as caught:
        load(changed(path, **{name: value}))
    assert secret not in str(caught.value)


def test_keys_of_two_pairs_are_refused(path: Path) -> None:
    with pytest.raises(BadConnectFile, match="not a pair"):
        load(changed(path, public_key=new_pair()[0]))


def test_fields_of_later_versions_are_passed_over(path: Path, connect: Connect) -> None:
    assert load(changed(path, colour="blue")) == connect
