"""Connections to the database of a cluster: made when needed, checked, and given up after failures.

A connection is checked before anything else is done with it. What a cluster rests on is refused if
it is not there: a primary, a version that is known, a disk that is written to (``fsync``), a
session of one's own (a pooler would give the next statement to another one), and a synchronous
standby that is streaming, unless the cluster was made without.

A database may stop in the middle of an answer, and its machine may go on to acknowledge what it is
sent: then no timeout of TCP ends the wait. So a thread (:class:`Watch`) shuts a connection down
whose statement takes too long. For the statement that is a lost connection: it may have been
carried out or not, or may be carried out later.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dstore.errors import DataError
from dstore.protocol.clusters import NO_CLUSTER
from dstore.quoting import visible
from dstore.runtime import clock, native
from dstore.runtime.logs import Log
from dstore.server.postgres import schema
from dstore.server.postgres.schema import Connection

log = Log("dstore.global")

VERSION_MIN = 130_000
"""The oldest server: version 13, as ``server_version_num`` has it."""
CONNECT_TIMEOUT, CONNECT_TIMEOUT_MAX = 3, 10
"""Seconds for a connection to each of the hosts, by default and at most. A URL may say for ever."""
WATCH_EVERY = 0.25
"""Seconds between two looks at statements that may have taken too long."""
END_TIMEOUT = 15.0
"""Seconds to wait at the end for a thread that is connecting."""
ID_SHOWN = 8
"""Characters of the id of a cluster that a person sees."""
NEVER = float("inf")
PASSING = ("starting up", "shutting down", "recovery", "too many clients", "connection slots")
"""Parts of the errors with which a server refuses a connection that it will take later."""

_SETTINGS = """
SELECT set_config('search_path', CASE WHEN source = 'client' THEN setting ELSE %s END, false),
    set_config('synchronous_commit',
        CASE WHEN current_setting('synchronous_commit') = 'remote_apply' THEN 'remote_apply'
            ELSE 'on' END, false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('default_transaction_read_only', 'off', false),
    set_config('client_min_messages', 'warning', false),
    set_config('statement_timeout', %s, false),
    set_config('idle_in_transaction_session_timeout', %s, false)
FROM pg_settings WHERE name = 'search_path'
"""
_FACTS = """
SELECT current_setting('server_version_num')::int, pg_backend_pid(), pg_is_in_recovery(),
    current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on',
    current_setting('synchronous_standby_names') <> '',
    (SELECT count(*) FROM pg_stat_replication
        WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')),
    (SELECT count(*) FROM pg_stat_replication WHERE sync_state IS NULL)
"""


class Unavailable(DataError):
    """The database cannot be used at present, as while it starts or fails over; later it may be."""


class Target:
    """The database that a URL names. Safe from any thread.

    ``cluster`` is the id of the cluster that the database has, once that was seen; none of another
    one is taken from then on.

    Raises DataError if the URL cannot be understood. No text of this class has a password in it.
    """

    def __init__(self, url: str, patience: float) -> None:
        try:
            given = conninfo_to_dict(url)
        except (psycopg.Error, ValueError):  # their texts may quote the password
            raise DataError(
                "the URL of the database cannot be understood; it has to look like "
                "postgresql://USER@HOST1,HOST2/NAME, with %-escapes for characters such as "
                "@ : / % in a password (which may also be in ~/.pgpass)"
            ) from None
        self.patience = patience
        self.cluster = NO_CLUSTER
        self._lock = native.Lock()
        self.where = visible(f"{given.get('host') or 'localhost'}/{given.get('dbname') or ''}")
        self._secrets = [str(given[name]) for name in ("password", "sslpassword") if name in given]
        milliseconds = int(patience * 1000)
        wanted: dict[str, Any] = {
            "target_session_attrs": "read-write",
            "keepalives_idle": 1,
            "keepalives_interval": 1,
            "keepalives_count": 3,
            "tcp_user_timeout": milliseconds,
            "application_name": "dstore",
        }
        bounded = {"connect_timeout": self._connect_timeout(given.get("connect_timeout"))}
        self._conninfo = make_conninfo(**{**wanted, **given, **bounded})
        self._session = (schema.SCHEMA, str(milliseconds), str(milliseconds))

    def __repr__(self) -> str:
        return f"<Target {self.where}>"

    def _connect_timeout(self, given: str | int | None) -> int:
        """Return the seconds for a connection. With 0 or less libpq would wait for ever."""
        try:
            seconds = CONNECT_TIMEOUT if given is None else int(given)
        except ValueError:
            raise DataError(
                f"connect_timeout in the URL of the database {self.where} is a whole number of "
                f"seconds, not {visible(repr(given))}"
            ) from None
        return seconds if 0 < seconds < CONNECT_TIMEOUT_MAX else CONNECT_TIMEOUT_MAX

    def error(self, what: str, error: object) -> DataError:
        """Return the error for something that has failed, without a secret in its text."""
        text = " ".join(str(error).split())
        for secret in self._secrets:
            if secret:
                text = text.replace(secret, "***")
        return DataError(f"the database {self.where} {what}: {visible(text)}")

    def refused(self, what: str) -> DataError:
        return DataError(f"the database {self.where} cannot be used: {what}")

    def take(self, cluster: bytes) -> None:
        """Take note of the id that a connection has found. Raises DataError if it is another one.

        What is in memory is of the cluster that was found first.
        """
        with self._lock:
            self.cluster = self.cluster or cluster
            if cluster != self.cluster:
                raise self.refused(
                    f"it is that of another cluster ({cluster.hex()[:ID_SHOWN]}) than before "
                    f"({self.cluster.hex()[:ID_SHOWN]}); start this Global again if that is right"
                )

    def unavailable(self, reason: DataError) -> Unavailable:
        """Return the error for something that may pass."""
        return Unavailable(str(reason))

    def connect(self) -> Connection:
        """Open a connection in autocommit mode, and set it up. Raises DataError."""
        try:
            return psycopg.connect(self._conninfo, autocommit=True)
        except psycopg.Error as error:
            reason = self.error("cannot be reached", error)
            raise self.unavailable(reason) if _passes(str(error)) else reason from None

    def prepare(self, connection: Connection) -> None:
        """Set up a session of our own. Raises DataError and psycopg.Error."""
        (version,) = connection.execute(
            "SELECT current_setting('server_version_num')::int"
        ).fetchall()[0]
        if version < VERSION_MIN:
            raise self.refused(f"it is older than PostgreSQL {VERSION_MIN // 10_000}")
        connection.execute(_SETTINGS, self._session)

    def check(self, connection: Connection, *, standby: bool) -> None:
        """Raise DataError unless a cluster can rest on this server. Raises psycopg.Error."""
        facts = connection.execute(_FACTS).fetchone()
        assert facts is not None
        _, process, recovers, written, names, standbys, hidden = facts
        if process != connection.info.backend_pid:
            raise self.refused(
                "a pooler is between, which gives the statements of a session to several ones; "
                "connect to PostgreSQL itself"
            )
        if recovers:
            what = "it is a standby; give the addresses of all servers, HOST1,HOST2"
            raise self.unavailable(self.refused(what))
        if not written:
            raise self.refused("fsync or full_page_writes is off, so a crash would lose data")
        if standby and not names:
            raise self.refused(
                "it has no synchronous standby: synchronous_standby_names is empty. Set up one, or "
                "create the cluster with `dstore cluster init --no-standby` if the storage of the "
                "database is replicated by other means"
            )
        if standby and not standbys and hidden:
            raise self.refused(
                "its synchronous standby is missing; this user may not see whether there is one: "
                "GRANT pg_read_all_stats TO it"
            )
        if standby and not standbys:
            raise self.unavailable(
                self.refused(
                    "its synchronous standby is missing; none is streaming at present, so that "
                    "writes would wait for it"
                )
            )


def _passes(error: str) -> bool:
    """Whether an error of a connection may pass: no server has refused it for good."""
    return "FATAL" not in error or any(each in error for each in PASSING)


class Link:
    """One connection of a member, made when it is needed, and again after a failure.

    One thread uses it; :meth:`cut` is safe from any. ``name`` is for people who look at the
    sessions of the server.
    """

    def __init__(self, target: Target, name: str) -> None:
        self.target = target
        self.standby = True  # whether the cluster needs one; known from the first connection on
        self.connections = 0
        self._name = name
        self._connection: Connection | None = None
        self._warnings: list[str] = []
        self._due = NEVER  # when the statement under way has taken too long
        self._lock = native.Lock()  # guards the next one
        self._socket: native.sockets.socket | None = None  # a duplicate, to shut it down by
        self._closed = False
        self.in_use = native.Lock()  # for threads that somebody else ends

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else "open"
        return f"<Link {self._name} to {self.target.where} {state}>"

    def open(self) -> Connection:
        """Return a connection that was checked. Raises DataError."""
        if self._connection is not None and not self._is_lost(self._connection):
            return self._connection
        self.drop()
        self._check_open()
        connection = self.target.connect()
        try:
            self._take(connection)
            with self.limited():
                self.target.prepare(connection)
                settings = schema.check(connection, self.target.where)
                self.standby = settings.standby
                self.target.check(connection, standby=self.standby)
                self.target.take(settings.cluster)
                connection.execute(
                    "SELECT set_config('application_name', %s, false)", [f"dstore {self._name}"]
                )
        except psycopg.Error as error:
            self.drop()
            raise self.target.unavailable(self.target.error("cannot be used", error)) from None
        except BaseException:
            self.drop()
            raise
        self.connections += 1
        return connection

    def _is_lost(self, connection: Connection) -> bool:
        """Whether the server has ended a connection, as far as can be seen at once.

        It sends nothing to a session that is idle, except why it ends it.
        """
        if connection.closed or self._socket is None:
            return True
        try:
            self._socket.recv(1, native.sockets.MSG_PEEK | native.sockets.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _take(self, connection: Connection) -> None:
        self._connection = connection
        connection.add_notice_handler(self._note)
        with self._lock:
            self._socket = native.sockets.socket(fileno=os.dup(connection.fileno()))
        self._check_open()  # it may have been closed while there was nothing to cut

    def _check_open(self) -> None:
        if self._closed:
            raise DataError(f"the connection to the database {self.target.where} is closed")

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(f"{notice.message_primary} ({notice.message_detail or ''})")

    @contextlib.contextmanager
    def limited(self, seconds: float | None = None) -> Iterator[None]:
        """In this block the server has some seconds to answer, or the connection is cut."""
        self._due = clock.now() + (self.target.patience if seconds is None else seconds)
        try:
            yield
        finally:
            self._due = NEVER

    def warning(self) -> str:
        """Return what the server has warned of since the last call, or an empty text."""
        found, self._warnings = self._warnings, []
        return "; ".join(found)

    @property
    def warns(self) -> bool:
        """Whether the server has warned since the last call of :meth:`warning`."""
        return bool(self._warnings)

    def drop(self) -> None:
        """Close the connection, if there is one: the next use makes another."""
        connection, self._connection = self._connection, None
        self._warnings = []
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def cut(self) -> None:
        """Shut the connection down: a statement under way ends at once, with an error."""
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(native.sockets.SHUT_RDWR)

    def look(self, now: float) -> None:
        """Cut the connection if its statement has taken too long."""
        if now >= self._due:
            self.cut()

    def close(self) -> None:
        """Cut the connection, and make no other. Idempotent. The thread that uses it drops it."""
        self._closed = True
        self.cut()

    def end(self) -> None:
        """Drop the connection after :meth:`close`, when no thread is within :attr:`in_use`."""
        if self.in_use.acquire(timeout=END_TIMEOUT):
            try:
                self.drop()
            finally:
                self.in_use.release()


class Watch:
    """The thread that ends statements that take too long, on all connections of a member."""

    def __init__(self, links: list[Link]) -> None:
        self._links = links
        self._stopped = native.ThreadEvent()
        self._thread: native.Thread | None = None

    def begin(self) -> None:
        """Start the thread. Raises RuntimeError if there can be no more threads."""
        thread = native.Thread(self._run, "dstore-watch")
        thread.start()
        self._thread = thread

    def _run(self) -> None:
        while not self._stopped.wait(WATCH_EVERY):
            now = clock.now()
            for link in self._links:
                link.look(now)

    def close(self) -> None:
        """End the thread, if this is not a forked child. Idempotent."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def forked(self) -> None:
        self._thread = None
