"""Key folders: what they admit and refuse, and that no half of a change is ever there."""

from __future__ import annotations

import copy
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

from dstore.access import files, keys
from dstore.access.connect import Connect
from dstore.access.keys import Changes, KeyFolder, KeyRing, changes, checked_name, checked_prefixes
from dstore.core.authority.identity import Role
from dstore.errors import KeyFolderError
from dstore.protocol import content
from tests.disks import fill, mounted_disk
from tests.unit.access.steps import FAILED, ended, in_child, killed_at, started

FOREIGN = 12_345
"""A user that is not the one that runs the tests."""
ADDRESS = "tcp://127.0.0.1:50051"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def folder(place: Path) -> KeyFolder:
    """A key folder with two clients."""
    made = KeyFolder(place)
    made.create()
    made.add("alice", Role.WRITE, ["app1/"], ADDRESS)
    made.add("bob", Role.ADMIN, [], ADDRESS)
    return made


def names(folder: KeyFolder) -> list[str]:
    return [each.name for each in folder.clients()]


def unfinished(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if files.is_unfinished(path.name)]


def edited(path: Path, **fields: object) -> None:
    there = json.loads(path.read_text())
    path.write_text(json.dumps({**there, **fields}))


# ---- the folder -------------------------------------------------------------------------------


def test_all_files_are_for_their_user_alone(folder: KeyFolder, place: Path) -> None:
    assert place.stat().st_mode & 0o777 == 0o700
    for path in place.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_modes_do_not_depend_on_the_umask(place: Path) -> None:
    def wide() -> None:
        os.umask(0)
        KeyFolder(place).create()

    assert in_child(wide) == 0
    test_all_files_are_for_their_user_alone(KeyFolder(place), place)


def test_the_server_key_is_a_pair_of_curve(folder: KeyFolder) -> None:
    ring = folder.load()
    assert zmq.curve_public(ring.server_secret).decode() == ring.server_public
    assert folder.server_keys == [ring.server_public]


def test_a_key_folder_is_never_made_over_another(folder: KeyFolder, place: Path) -> None:
    before = (place / keys.SERVER).read_bytes()
    with pytest.raises(KeyFolderError, match="is a key folder already"):
        KeyFolder(place).create()
    assert (place / keys.SERVER).read_bytes() == before


def test_an_empty_folder_is_used_and_another_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(0o700)
    KeyFolder(tmp_path / "empty").create()
    full = tmp_path / "full"
    full.mkdir(0o700)
    (full / "letter").touch()
    with pytest.raises(KeyFolderError, match="not empty and is no key folder"):
        KeyFolder(full).create()
    assert os.listdir(full) == ["letter"]


def test_the_folder_above_must_exist(tmp_path: Path) -> None:
    with pytest.raises(KeyFolderError, match=r"there is no folder .*/above; create it first"):
        KeyFolder(tmp_path / "above" / "keys").create()


def test_a_folder_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(KeyFolderError, match=r"others may write in .*chmod"):
        KeyFolder(tmp_path / "open" / "keys").create()
    assert not os.listdir(tmp_path / "open")


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_what_is_no_key_folder_is_refused(kind: str, place: Path) -> None:
    if kind == "file":
        place.touch()
    elif kind == "empty":
        place.mkdir(0o700)
    for use in (KeyFolder(place).load, KeyFolder(place).rotate, KeyFolder(place).clients):
        with pytest.raises(KeyFolderError, match=r"dstore access init|not a folder") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not place.is_dir() or not os.listdir(place)


def test_a_link_to_the_folder_is_followed_and_one_in_it_is_not(
    folder: KeyFolder, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(place)
    assert names(KeyFolder(tmp_path / "link")) == ["alice", "bob"]
    (place / "clients" / "bob.json").rename(tmp_path / "bob.json")
    (place / "clients" / "bob.json").symlink_to(tmp_path / "bob.json")
    with pytest.raises(KeyFolderError, match=r"bob\.json.*no symbolic link"):
        folder.load()


@pytest.mark.parametrize("name", ["", ".", "clients", "server.key", "clients/bob.json"])
def test_what_is_open_to_others_is_refused(folder: KeyFolder, place: Path, name: str) -> None:
    (place / name).chmod(0o755 if (place / name).is_dir() else 0o640)
    with pytest.raises(KeyFolderError, match=r"open to other users \(mode .*run `chmod [67]00 /"):
        folder.load()


@as_root
@pytest.mark.parametrize("name", ["", "clients", "server.key", "clients/bob.json"])
def test_what_belongs_to_another_user_is_refused(folder: KeyFolder, place: Path, name: str) -> None:
    os.chown(place / name, FOREIGN, -1)
    with pytest.raises(KeyFolderError, match=f"belongs to user {FOREIGN}; run this as that user"):
        folder.load()


@pytest.mark.parametrize("name", ["server.key", "clients/bob.json", "generation"])
def test_what_is_no_regular_file_is_refused(folder: KeyFolder, place: Path, name: str) -> None:
    (place / name).unlink()
    os.mkfifo(place / name, 0o600)  # which must not block
    with pytest.raises(KeyFolderError, match="not a regular file; remove it"):
        folder.load()


@pytest.mark.parametrize("name", ["server.key", "clients/bob.json", "generation"])
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 10_000, b"x" * 100_000, b"\0" * 41]
)
def test_a_damaged_file_is_refused_and_named(
    folder: KeyFolder, place: Path, name: str, data: bytes
) -> None:
    (place / name).write_bytes(data)
    with pytest.raises(KeyFolderError, match=f"{name} is damaged .*restore it") as caught:
        folder.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("server.key", {"secret_key": "x"}),
        ("server.key", {"secret_key": None}),
        ("server.key", {"public_key": zmq.curve_keypair()[0].decode()}),
        ("clients/bob.json", {"name": "carol"}),
        ("clients/bob.json", {"public_key": 3}),
        ("clients/bob.json", {"role": "owner"}),
        ("clients/bob.json", {"role": ["admin"]}),
        ("clients/bob.json", {"prefixes": "all"}),
        ("clients/bob.json", {"prefixes": [""]}),
        ("clients/bob.json", {"prefixes": [1]}),
        ("clients/bob.json", {"created": "\x1b[2J"}),
    ],
)
def test_a_file_with_a_wrong_field_is_refused(
    folder: KeyFolder, place: Path, name: str, fields: dict[str, object]
) -> None:
    edited(place / name, **fields)
    with pytest.raises(KeyFolderError, match="is damaged"):
        folder.load()


@pytest.mark.parametrize(
    ("name", "kind"), [("server.key", "server_key"), ("clients/bob.json", "client")]
)
def test_a_file_of_a_later_version_is_refused(
    folder: KeyFolder, place: Path, name: str, kind: str
) -> None:
    edited(place / name, **{f"dstore_{kind}": 2})
    with pytest.raises(KeyFolderError, match="has version 2, and this dstore reads version 1"):
        folder.load()


def test_other_files_beside_the_clients_admit_nobody(folder: KeyFolder, place: Path) -> None:
    there = (place / "clients" / "bob.json").read_bytes()
    for name in ("carol.json~", ".dave.json", "README", "eve.json.bak"):
        (place / "clients" / name).write_bytes(there)
    assert [each.name for each in folder.load().identities] == ["alice", "bob"]
    (place / "clients" / "no name.json").write_bytes(there)
    with pytest.raises(KeyFolderError, match="is not the file of a client; remove it"):
        folder.load()


def test_one_key_for_two_names_is_refused(folder: KeyFolder, place: Path) -> None:
    public = json.loads((place / "clients" / "alice.json").read_text())["public_key"]
    edited(place / "clients" / "bob.json", public_key=public)
    with pytest.raises(KeyFolderError, match="alice and bob have the same key"):
        folder.load()


# ---- clients ----------------------------------------------------------------------------------


def test_a_client_has_a_pair_whose_secret_is_not_in_the_folder(
    folder: KeyFolder, place: Path
) -> None:
    connect = folder.add("carol", Role.READ, ["a/", b"\xff"], ADDRESS)
    assert zmq.curve_public(connect.secret_key.encode()).decode() == connect.public_key
    assert connect.server_keys == folder.server_keys
    assert (connect.name, connect.address) == ("carol", ADDRESS)
    for path in place.rglob("*"):
        assert path.is_dir() or connect.secret_key not in path.read_text()
    identity = folder.load().identity_of(connect.public_key)
    assert identity is not None
    assert (identity.name, identity.role) == ("carol", Role.READ)
    assert identity.prefixes == ("a/", "\udcff")
    assert folder.load().identity_of(zmq.curve_keypair()[0].decode()) is None


def test_a_name_is_taken_once(folder: KeyFolder) -> None:
    before = folder.clients()
    with pytest.raises(KeyFolderError, match="a client bob already"):
        folder.add("bob", Role.READ, [], ADDRESS)
    assert folder.clients() == before


def test_the_number_of_clients_is_bounded(
    folder: KeyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CLIENTS_MAX", 3)
    folder.add("carol", Role.READ, [], ADDRESS)
    with pytest.raises(KeyFolderError, match="3 clients, and may have 3"):
        folder.add("dave", Role.READ, [], ADDRESS)
    assert len(folder.load().identities) == 3
    monkeypatch.setattr(keys, "CLIENTS_MAX", 2)
    with pytest.raises(KeyFolderError, match="revoke some"):
        folder.load()


def test_the_longest_prefixes_fit_in_all_files(folder: KeyFolder, tmp_path: Path) -> None:
    long = [bytes([number]) + b"\xff" * 443 for number in range(keys.PREFIXES_MAX)]
    connect = folder.add("carol", Role.READ, long, ADDRESS)
    files.create_secret(str(tmp_path / "carol"), connect.text().encode())
    assert Connect.load(str(tmp_path / "carol")).prefixes == list(folder.clients()[2].prefixes)


def test_nothing_is_added_if_the_secret_cannot_be_handed_out(folder: KeyFolder) -> None:
    before = folder.generation

    def fail(connect: Connect) -> None:
        assert names(KeyFolderView(folder)) == ["alice", "bob"]
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        folder.add("carol", Role.READ, [], ADDRESS, fail)
    assert (names(folder), folder.generation) == (["alice", "bob"], before)


class KeyFolderView(KeyFolder):
    """Looks at a key folder without its lock."""

    def clients(self) -> list[keys.Client]:
        with files.opened(self.path) as folder:
            return keys._clients(folder)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "x" * 64])
def test_a_name_is_accepted(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", ".x", "a/b", "a b", "é", "a\n", "a\0", "x" * 65, "\x1b[2J"]
)
def test_a_name_is_refused(name: str, folder: KeyFolder) -> None:
    for use in (checked_name, folder.revoke, lambda each: folder.add(each, Role.READ)):
        with pytest.raises(ValueError, match="is no name of a client") as caught:
            use(name)
        assert str(caught.value).isprintable()


def test_prefixes_are_keys_in_one_form() -> None:
    assert checked_prefixes(["a/", b"a/", "é", b"\xc3\xa9", b"\xc3"]) == ("a/", "é", "\udcc3")
    assert checked_prefixes([]) == ()
    assert checked_prefixes(["x" * 444]) == ("x" * 444,)
    assert keys.PREFIX_BYTES_MAX + len(content.address(bytes(32))) == 511


@pytest.mark.parametrize(
    "prefix", ["", b"", "x" * 445, "é" * 223, "b3:", "b3:ab", "b3", "b", b"b", "\ud800"]
)
def test_a_prefix_is_refused(prefix: str | bytes) -> None:
    with pytest.raises(ValueError, match="prefix") as caught:
        checked_prefixes([prefix])
    assert str(caught.value).isprintable()


def test_prefixes_are_several_and_few() -> None:
    for wrong in ("app1/", b"app1/", [1], None):
        with pytest.raises(TypeError):
            checked_prefixes(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 16 prefixes"):
        checked_prefixes([f"{number}/" for number in range(17)])


def test_revoking_needs_only_the_name(folder: KeyFolder, place: Path) -> None:
    (place / "clients" / "bob.json").write_bytes(b"damaged")
    folder.revoke("bob")
    assert names(folder) == ["alice"]
    with pytest.raises(KeyFolderError, match="there is no client bob"):
        folder.revoke("bob")


# ---- key rings --------------------------------------------------------------------------------


def test_identities_stay_the_same_objects(folder: KeyFolder) -> None:
    first = folder.load()
    folder.add("carol", Role.READ, [], ADDRESS)
    folder.revoke("bob")
    second = folder.load()
    alice, bob = first.identities
    same, carol = second.identities
    assert same is alice
    assert changes(first, second) == Changes(revoked=[bob], added=[carol], server=False)
    assert changes(second, folder.load()) == Changes([], [], server=False)


def test_a_client_that_was_revoked_and_added_again_is_another(folder: KeyFolder) -> None:
    first = folder.load()
    folder.revoke("bob")
    folder.add("bob", Role.ADMIN, [], ADDRESS)
    second = folder.load()
    assert second.identities[1].name == "bob"
    assert changes(first, second).revoked == [first.identities[1]]
    assert changes(first, second).added == [second.identities[1]]


@pytest.mark.parametrize("fields", [{"role": "read"}, {"prefixes": ["other/"]}])
def test_another_role_or_prefix_makes_another_identity(
    folder: KeyFolder, place: Path, fields: dict[str, object]
) -> None:
    first = folder.load()
    edited(place / "clients" / "alice.json", **fields)
    assert changes(first, folder.load()).revoked == [first.identities[0]]


def test_key_names_are_concealed_if_a_client_has_prefixes(folder: KeyFolder) -> None:
    assert folder.load().concealed
    folder.revoke("alice")
    assert not folder.load().concealed


def test_no_secret_is_shown_or_pickled(folder: KeyFolder) -> None:
    ring = folder.load()
    connect = folder.add("carol", Role.READ, [], ADDRESS)
    secret = ring.server_secret.decode()
    for each in (ring, folder, *ring.identities, connect):
        assert secret not in repr(each)
        assert connect.secret_key not in repr(each)
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            use(ring)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: folder.add("carol", Role.READ, [], ADDRESS),
        lambda folder: folder.revoke("bob"),
        lambda folder: folder.rotate(),
        lambda folder: (folder.rotate(), folder.finish_rotation()),
    ],
)
def test_each_change_is_noticed_once(
    folder: KeyFolder, change: Callable[[KeyFolder], object]
) -> None:
    user = KeyFolder(folder.path)
    assert user.changed()
    before = user.load()
    assert not user.changed()
    change(folder)
    assert user.changed()
    after = user.load()
    assert before.generation < after.generation == folder.generation
    assert not user.changed()


def test_a_folder_that_was_made_again_is_a_change(folder: KeyFolder, place: Path) -> None:
    user = KeyFolder(place)
    before = user.load()
    place.rename(place.with_name("old"))
    assert user.changed()
    with pytest.raises(KeyFolderError, match="dstore access init"):
        user.load()
    folder.create()
    assert user.changed()
    assert changes(before, user.load()) == Changes(list(before.identities), [], server=True)


def test_a_generation_that_is_lost_comes_back_with_the_next_change(
    folder: KeyFolder, place: Path
) -> None:
    before = folder.generation
    (place / keys.GENERATION).unlink()
    assert folder.load().generation == 0
    assert not folder.changed()
    folder.revoke("bob")
    assert folder.changed() and folder.generation > before


def test_a_change_under_way_is_not_read(folder: KeyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    user = KeyFolder(folder.path)
    user.load()
    remove = files.PrivateFolder.remove
    looks: list[bool] = []

    def removing(self: files.PrivateFolder, name: str) -> None:
        looks.append(user.changed())
        with pytest.raises(KeyFolderError, match="another process has locked the key folder"):
            user.load(wait=0.01)
        remove(self, name)

    monkeypatch.setattr(files.PrivateFolder, "remove", removing)
    folder.revoke("bob")
    assert looks == [False]
    assert user.changed()


def test_the_generation_grows_before_a_client_is_removed(
    folder: KeyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If it grew afterwards, a command killed in between would leave a Global that never looks.
    user = KeyFolder(folder.path)
    before = user.load().generation
    remove = files.PrivateFolder.remove
    seen: list[int] = []

    def removing(self: files.PrivateFolder, name: str) -> None:
        seen.append(folder.generation)
        remove(self, name)

    monkeypatch.setattr(files.PrivateFolder, "remove", removing)
    folder.revoke("bob")
    assert len(seen) == 1 and seen[0] > before


# ---- the server key ---------------------------------------------------------------------------


def test_the_next_server_key_takes_the_place_of_the_present_one(folder: KeyFolder) -> None:
    before = folder.load()
    folder.rotate()
    present, coming = folder.server_keys
    assert folder.load().server_public == present == before.server_public
    assert folder.add("carol", Role.READ, [], ADDRESS).server_keys == [present, coming]
    with pytest.raises(KeyFolderError, match="made already; update the connect files"):
        folder.rotate()
    folder.finish_rotation()
    after = folder.load()
    assert folder.server_keys == [after.server_public] == [coming]
    assert zmq.curve_public(after.server_secret).decode() == coming
    assert changes(before, after).server
    with pytest.raises(KeyFolderError, match="no next server key"):
        folder.finish_rotation()


def test_a_damaged_next_key_does_not_become_the_key(folder: KeyFolder, place: Path) -> None:
    folder.rotate()
    (place / keys.NEXT).write_bytes(b"damaged")
    with pytest.raises(KeyFolderError, match=r"server-next\.key is damaged"):
        folder.finish_rotation()
    assert len(folder.load().identities) == 2


# ---- kills, races, full disks -----------------------------------------------------------------


def test_create_can_be_killed_at_any_step(tmp_path: Path) -> None:
    steps, killed = 0, True
    while killed:
        folder = KeyFolder(tmp_path / str(steps))
        killed = killed_at(steps, folder.create)
        if killed:
            try:
                folder.load()
            except KeyFolderError:  # it is no key folder yet
                folder.create()
        assert folder.load().identities == ()
        folder.add("alice", Role.READ, [], ADDRESS)
        steps += 1
    assert steps > 10


Change = Callable[[KeyFolder], object]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda folder: folder.add("carol", Role.READ, [], ADDRESS), names),
        (lambda folder: folder.revoke("bob"), names),
        (KeyFolder.rotate, lambda folder: len(folder.server_keys)),
        (KeyFolder.finish_rotation, lambda folder: folder.server_keys[0]),
    ],
    ids=["add", "revoke", "rotate", "finish"],
)
def test_a_change_can_be_killed_at_any_step(
    tmp_path: Path, change: Change, state: Callable[[KeyFolder], Any]
) -> None:
    steps, killed = 0, True
    while killed:
        place = tmp_path / str(steps)
        folder, user = KeyFolder(place), KeyFolder(place)
        folder.create()
        folder.add("bob", Role.READ, [], ADDRESS)
        if change is KeyFolder.finish_rotation:
            folder.rotate()
        before, ring = state(folder), user.load()
        killed = killed_at(steps, partial(change, folder))
        after = state(folder)
        if after != before:
            assert user.changed(), "a Global looks at what a killed command has changed"
        elif killed:
            change(folder)
            assert state(folder) != before
        assert user.changed()
        assert user.load().generation > ring.generation
        if killed:
            folder.add("dave", Role.READ, [], ADDRESS)
        assert unfinished(place) == []
        steps += 1
    assert steps > 3


def test_processes_that_add_at_once_lose_nothing(folder: KeyFolder) -> None:
    ready, gate = os.pipe()

    def add(mine: str) -> None:
        os.close(gate)
        os.read(ready, 1)  # until the gate is closed
        for number in range(20):
            folder.add(f"{mine}{number}", Role.READ, [], ADDRESS)
        folder.add("same", Role.READ, [], ADDRESS)

    children = [started(partial(add, mine)) for mine in ("x", "y", "z")]
    os.close(gate)
    codes = [ended(each) for each in children]
    os.close(ready)
    assert sorted(codes) == [0, FAILED, FAILED], "one of them has the name"
    assert len(names(folder)) == 2 + 3 * 20 + 1


@pytest.fixture
def full(tmp_path: Path) -> Iterator[KeyFolder]:
    """A key folder with two clients and a next server key, on a disk without any room."""
    with mounted_disk(tmp_path, "1m") as disk:
        folder = KeyFolder(disk / "keys")
        folder.create()
        folder.add("alice", Role.WRITE, [], ADDRESS)
        folder.add("bob", Role.ADMIN, [], ADDRESS)
        folder.rotate()
        fill(disk)
        yield folder


def test_on_a_full_disk_nothing_is_added(full: KeyFolder) -> None:
    with pytest.raises(KeyFolderError, match="No space left on device; free some space"):
        full.add("carol", Role.READ, [], ADDRESS)
    assert names(full) == ["alice", "bob"]
    assert unfinished(Path(full.path)) == []


def test_on_a_full_disk_clients_can_be_revoked_and_a_rotation_finished(full: KeyFolder) -> None:
    before = full.load()
    full.revoke("bob")
    full.finish_rotation()
    assert full.changed()
    found = changes(before, full.load())
    assert ([each.name for each in found.revoked], found.server) == (["bob"], True)


def test_a_read_only_folder_can_be_loaded_and_not_changed(
    folder: KeyFolder, place: Path, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    read_only(place)
    user = KeyFolder(place)
    assert len(user.load().identities) == 2
    assert not user.changed()
    with pytest.raises(KeyFolderError, match="Read-only file system; mount"):
        user.revoke("bob")
    assert names(user) == ["alice", "bob"]


def test_a_ring_can_be_read_by_threads_at_once(folder: KeyFolder) -> None:
    user = KeyFolder(folder.path)
    rings: list[KeyRing] = []
    threads = [threading.Thread(target=lambda: rings.append(user.load())) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(rings) == 8
    assert all(each.identities == rings[0].identities for each in rings)


def test_what_killed_commands_have_left_is_removed(folder: KeyFolder, place: Path) -> None:
    for name in (".server-next.key.new", "clients/.carol.json.new"):
        (place / name).write_bytes(b"half")
    assert names(folder) == ["alice", "bob"]
    folder.revoke("bob")
    assert unfinished(place) == []
