"""PostgreSQL servers for tests: a primary, a synchronous standby, and what can happen to them.

The servers run in a temporary folder, at a loopback address of their own, so that no port has to be
looked for. They are ended, and the folder is removed, in any case: by a process that notices when
this one ends (:mod:`tests.postgres_watch`). Where there is no PostgreSQL, the tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ending import Closing
from tests.postgres_watch import PID_FILE, children, kill_server

if TYPE_CHECKING:
    import psycopg

USER = "dstore"
"""The superuser of the servers, and the application name of a standby."""
PORT = 15432
PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""
PAUSE = 0.02
"""Seconds between two looks."""
MEMORY_FOLDER = Path("/dev/shm")
"""Where the data are if there is room: there fsync, which stays on, costs nothing."""
ROOM = 1 << 30
"""Bytes that must be free there."""
WATCH = Path(__file__).with_name("postgres_watch.py")
SETTINGS = {
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",  # files in the folder, which go with it
    "hot_standby_feedback": "on",
    "jit": "off",
    "log_min_messages": "warning",
    "max_wal_size": "64MB",
    "shared_buffers": "16MB",
    "unix_socket_directories": "",
    "wal_keep_size": "64MB",  # so that a standby that comes back finds what it lacks
    "wal_retrieve_retry_interval": "100ms",
}


def programs() -> Path | None:
    """Return the folder with the programs of the newest PostgreSQL here, or None."""
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(installed, key=lambda found: float(found.parts[-3]), default=None)
    if newest is not None:
        return newest.parent
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


@cache
def missing() -> str:
    """Say what these tests lack on this machine; empty if they can run."""
    if sys.platform != "linux":
        return "PostgreSQL is only started on Linux, at loopback addresses that others lack"
    if programs() is None:
        return "no PostgreSQL on this machine (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and _account() is None:
        return "PostgreSQL does not run as root, and there is no user postgres"
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        return f"psycopg cannot be used (pip install 'psycopg[binary]'): {error}"
    return ""


def _account() -> pwd.struct_passwd | None:
    """The user that the servers run as, if this process is root."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


def _as_user() -> dict[str, Any]:
    """Options of a subprocess that runs as the servers do, and that Ctrl-C does not reach."""
    options: dict[str, Any] = {"start_new_session": True, "stdin": subprocess.DEVNULL}
    if os.geteuid() == 0:
        account = _account()
        assert account is not None
        options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return options


class Server:
    """One PostgreSQL server: its data folder, its address, and its process if it runs."""

    def __init__(self, data: Path, password: str, synchronous: bool) -> None:
        self.data = data
        self.host = ".".join(str(random.SystemRandom().randrange(1, 255)) for _ in range(3))
        self.host = f"127.{self.host}"
        self.port = PORT
        self._password = password
        self._synchronous = synchronous
        self._log = data.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Server {self.data.name} at {self.host}:{self.port}>"

    # ---- what can happen to it ------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait until it takes connections. Raises RuntimeError if it does not."""
        settings = {"listen_addresses": self.host, "port": str(self.port)}
        if self._synchronous:  # in the file, so that tests can change it while the server runs
            names = f"synchronous_standby_names = '{USER}'\n"  # and not one of pg_basebackup
            file = self.data / "postgresql.conf"
            if names not in file.read_text():
                with file.open("a") as written:
                    written.write(names)
        options = [f"--{name}={value}" for name, value in settings.items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", str(self.data), *options],
                stdout=log,
                stderr=log,
                cwd="/",
                **_as_user(),
            )
        self._wait(self._answers, "take connections")

    def kill(self) -> None:
        """Kill all its processes with SIGKILL, also those that are stopped."""
        process, self._process = self._process, None
        if process is not None:
            kill_server(self.data)
            process.kill()  # it may not have written its file yet
            process.wait()
            with contextlib.suppress(FileNotFoundError):
                (self.data / PID_FILE).unlink()

    def stop(self) -> None:
        """Stop it in order, as ``pg_ctl stop -m fast`` does: connections are ended."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)

    def pause(self) -> None:
        """Stop all its processes with SIGSTOP: connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        for pid in (self._process.pid, *children(self._process.pid)):
            while not _stands_still(pid):
                time.sleep(0.001)

    def resume(self) -> None:
        """Let all its processes go on."""
        self._signal(signal.SIGCONT)

    def promote(self) -> None:
        """Make a primary of a standby; returns when it takes writes."""
        self.query("SELECT pg_promote(true, 30)")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        for pid in (self._process.pid, *children(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has logged: warnings and errors."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    # ---- use ------------------------------------------------------------------------------

    def url(self, database: str = "postgres") -> str:
        """The URL of a database of this server, with the password."""
        return _url(f"{self.host}:{self.port}", self._password, database)

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """Open a connection. The caller closes it."""
        import psycopg

        options = {"connect_timeout": 5, **options}
        return psycopg.connect(self.url(database), **options)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Execute one statement in a connection of its own. Returns the rows that it gives."""
        with contextlib.closing(self.connect(autocommit=True)) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    # ---- being a standby ------------------------------------------------------------------

    def follow(self, primary: Server) -> None:
        """Make this server, which is not running, a standby of ``primary``."""
        source = f"host={primary.host} port={primary.port} user={USER} password={primary._password}"
        settings = self.data / "postgresql.auto.conf"
        settings.write_text(f"primary_conninfo = '{source} application_name={USER}'\n")
        (self.data / "standby.signal").touch()
        for path in (settings, self.data / "standby.signal"):
            _give(path)

    def copy(self, primary: Server) -> None:
        """Replace the data of this server, which is not running, by those of a primary."""
        shutil.rmtree(self.data, ignore_errors=True)
        _run("pg_basebackup", "-d", primary.url(), "-D", str(self.data), "-c", "fast", "-N")

    def rewind(self, primary: Server) -> None:
        """Take back what this former primary, which is not running, has beyond ``primary``."""
        primary.query("CHECKPOINT")  # it notes its timeline, which pg_rewind looks for
        _run("pg_rewind", "-D", str(self.data), "--source-server", primary.url(), "--no-sync")

    def has_synchronous_standby(self) -> bool:
        """Whether a standby is streaming, and commits wait for it."""
        found = self.query(
            "SELECT 1 FROM pg_stat_replication"
            " WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')"
        )
        return bool(found)

    # ---- waiting --------------------------------------------------------------------------

    def _answers(self) -> bool:
        import psycopg

        try:
            self.query("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not done():
            if not self.alive or time.monotonic() > until:
                raise RuntimeError(f"{self} does not {what}: {self.log[-2000:]}")
            time.sleep(PAUSE)

    def wait_for_standby(self) -> None:
        """Wait until a synchronous standby is streaming."""
        self._wait(self.has_synchronous_standby, "have a synchronous standby")


class Postgres(Closing):
    """A primary, with ``standby`` also a synchronous standby, in a temporary folder.

    Commits of a primary that should have a standby wait while it has none. Not safe for use by
    several threads at once. It is closed when this process ends, too, however that ends; then the
    folders ``others`` are removed as well.
    """

    def __init__(self, *, standby: bool = False, others: Sequence[Path] = ()) -> None:
        if why := missing():
            raise RuntimeError(why)
        self._folder = _folder()
        self._watch = subprocess.Popen(
            [sys.executable, "-I", str(WATCH), str(self._folder), *map(str, others)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._password = secrets.token_urlsafe(12)
        names = ("one", "two") if standby else ("one",)
        self._places = [Server(self._folder / name, self._password, standby) for name in names]
        self.primary = self._places[0]
        self.standby: Server | None = None
        self._databases = 0
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        _init(self.primary.data, self._password)
        for other in self._places[1:]:
            # Both begin with the same data: a base backup is needed only later.
            shutil.copytree(self.primary.data, other.data)
            _give(other.data, *other.data.rglob("*"))
            other.data.chmod(0o700)
            other.follow(self.primary)
            self.standby = other
        self.primary.start()
        if self.standby is not None:
            self.standby.start()
            self.primary.wait_for_standby()

    # ---- use ------------------------------------------------------------------------------

    def url(
        self,
        database: str = "postgres",
        *,
        at: Sequence[str] | None = None,
        read_write: bool = True,
    ) -> str:
        """The URL of a database for all places where its primary may be.

        ``at`` are other addresses ("host:port") of the same places, those of a relay. With
        ``read_write`` only the primary is connected to.
        """
        hosts = at or [f"{server.host}:{server.port}" for server in self._places]
        wish = "?target_session_attrs=read-write" if read_write and len(hosts) > 1 else ""
        return _url(",".join(hosts), self._password, database) + wish

    @property
    def servers(self) -> Sequence[Server]:
        """The servers at all places, in the order of the URL: the primary may be any of them."""
        return self._places

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Create an empty database and return its name; drop it at the end."""
        self._databases += 1
        name = f"test{self._databases}"
        self.primary.query(f'CREATE DATABASE "{name}"')
        try:
            yield name
        finally:
            self.primary.query(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    # ---- failover -------------------------------------------------------------------------

    def fail_over(self, *, kill: bool = True) -> Server:
        """Kill the primary and promote the standby. Returns the former primary.

        Without ``kill`` it is left as it is. The new primary takes connections on return, and its
        commits wait until :meth:`replace_standby` or :meth:`rejoin` has given it a standby.
        """
        assert self.standby is not None
        former, promoted = self.primary, self.standby
        if kill:
            former.kill()
        promoted.promote()
        self.primary, self.standby = promoted, None
        return former

    def replace_standby(self) -> Server:
        """Make a standby with a new base backup, in the place where no primary is."""
        return self._join(lambda server: server.copy(self.primary))

    def rejoin(self) -> Server:
        """Make a standby of the former primary with ``pg_rewind``."""
        return self._join(lambda server: server.rewind(self.primary))

    def _join(self, prepare: Callable[[Server], None]) -> Server:
        (server,) = (each for each in self._places if each is not self.primary)
        server.kill()
        prepare(server)
        server.follow(self.primary)
        server.start()
        self.primary.wait_for_standby()
        self.standby = server
        return server

    # ---- end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill the servers and remove the folder."""
        for server in self._places:
            server.kill()
        self._watch.communicate(timeout=PATIENCE)


# ---- files and programs -----------------------------------------------------------------------


def _url(hosts: str, password: str, database: str) -> str:
    return f"postgresql://{USER}:{password}@{hosts}/{database}"


def _folder() -> Path:
    place: str | None = None
    if MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > ROOM:
        place = str(MEMORY_FOLDER)
    folder = Path(tempfile.mkdtemp(prefix="dstore-postgres-", dir=place))
    _give(folder)
    return folder


def _give(*paths: Path) -> None:
    """Make files those of the user that the servers run as."""
    if os.geteuid() == 0:
        account = _account()
        assert account is not None
        for path in paths:
            os.chown(path, account.pw_uid, account.pw_gid)


def _program(name: str) -> str:
    folder = programs()
    assert folder is not None
    return str(folder / name)


def _run(name: str, *arguments: str) -> None:
    """Run a program of PostgreSQL. Raises RuntimeError with what it said if it fails."""
    done = subprocess.run(
        [_program(name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd="/",
        **_as_user(),
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stdout}")


def _init(data: Path, password: str) -> None:
    secret = data.with_name("password")
    secret.touch(0o600)
    _give(secret)
    secret.write_text(password)
    _run(
        "initdb",
        *("-D", str(data), "-U", USER, f"--pwfile={secret}", "--auth=scram-sha-256"),
        *("--locale=C", "--encoding=UTF8", "--no-sync", "--wal-segsize=4", "--no-instructions"),
        "--data-checksums",  # for pg_rewind
    )
    with (data / "postgresql.conf").open("a") as settings:
        settings.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())


# ---- fixtures ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One primary without a standby, for all tests of this process. Leave it as it is."""
    _skip_without_postgres()
    with Postgres() as servers:
        yield servers


@pytest.fixture(scope="session")
def postgres_pair() -> Iterator[Postgres]:
    """A primary and a synchronous standby, for all tests of this process. Leave them so."""
    _skip_without_postgres()
    with Postgres(standby=True) as servers:
        yield servers


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database without a standby."""
    with postgres.database() as name:
        yield postgres.url(name)


@pytest.fixture
def postgres_pair_url(postgres_pair: Postgres) -> Iterator[str]:
    """The URL of an empty database with a synchronous standby: two addresses."""
    with postgres_pair.database() as name:
        yield postgres_pair.url(name)


@pytest.fixture
def new_postgres() -> Iterator[Callable[..., Postgres]]:
    """A function that starts servers for a test that harms them; takes what Postgres takes."""
    _skip_without_postgres()
    with ExitStack() as stack:

        def start(**options: Any) -> Postgres:
            return stack.enter_context(Postgres(**options))

        yield start


def _skip_without_postgres() -> None:
    if why := missing():
        pytest.skip(why)


def _stands_still(pid: int) -> bool:
    """Whether a process was stopped, which may take a moment after the signal, or has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "TZ"
