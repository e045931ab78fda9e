"""A web service whose Node is made once, in gunicorn's master, and works in every worker.

With ``--preload`` gunicorn imports this module in its master and forks the workers afterwards, so
that all of them have the Node that is made here. If the processes of this host share one cache,
as on the host of Global, a worker goes on with what the master has read, and what one worker has
read the others have, too. Else a worker inherits the settings and nothing more: on first use it
joins as a Local of its own, with an empty cache. When gunicorn stops a worker (unless it has to
kill it), Python's exit handlers run and the Node says goodbye. No hook of gunicorn is needed.

    dstore global &
    gunicorn --preload --workers 4 --chdir examples gunicorn_preload:application &
    curl --request PUT --data "good morning" localhost:8000/greeting
    curl localhost:8000/greeting
    curl --request DELETE localhost:8000/greeting

``$DSTORE_GLOBAL`` names another Global. It has to run when this starts, since the master reads from
it. If it is away later, a request waits for the ``timeout`` of the Node, 5 seconds, before it is
answered with 503; a write may take one lease more. gunicorn's ``--timeout`` and
``--graceful-timeout`` (30 seconds each) have to be longer than that. Where nothing is shared, a
worker that is killed says no goodbye, so that deletions of what it held wait for its lease.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import dstore

Answer = tuple[HTTPStatus, str]

LIMIT = "config/limit"
"""This key has the number of bytes that a value may have. It may be replaced at any time."""
LIMIT_DEFAULT = 1 << 20


def limit() -> int:
    """Read the limit. If it is bound, this is a look-up in the memory of this process."""
    return int(node.get(LIMIT, LIMIT_DEFAULT))


def index() -> Answer:
    """Say which worker this is, and how often its own memory or the host cache had the value."""
    node.join()
    metrics = node.stats()
    shown = {
        name: metrics[name] for name in ("session", "membership", "hits", "host_hits", "misses")
    }
    return HTTPStatus.OK, json.dumps({"pid": os.getpid(), **shown})


def get(key: str) -> Answer:
    return HTTPStatus.OK, str(node.get(key))


def put(key: str, body: Any) -> Answer:
    most = limit()
    value = body.read(most + 1)
    if len(value) > most:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a value may have {most:,} bytes here"
    node.set(key, value.decode())
    return HTTPStatus.CREATED, f"{key!r} is bound"


def delete(key: str) -> Answer:
    deletion = node.delete(key)
    return HTTPStatus.OK, f"{key!r} is deleted; memberships that confirmed it: {deletion.confirmed}"


def answer(environ: dict[str, Any]) -> Answer:
    """Carry out a request. Each error that may occur has a status of its own."""
    method = environ["REQUEST_METHOD"]
    try:
        key = environ["PATH_INFO"][1:].encode("latin-1").decode()  # WSGI passes bytes like this
        if method == "GET":
            return get(key) if key else index()
        if method == "PUT":
            return put(key, environ["wsgi.input"])
        if method == "DELETE":
            return delete(key)
        return HTTPStatus.METHOD_NOT_ALLOWED, "there are GET, PUT and DELETE"
    except dstore.KeyMissing as error:
        return HTTPStatus.NOT_FOUND, str(error)
    except dstore.KeyOccupied as error:
        return HTTPStatus.CONFLICT, f"{error.key!r} is bound already; delete it first"
    except (dstore.GlobalUnavailable, dstore.OutcomeUnknown) as error:
        return HTTPStatus.SERVICE_UNAVAILABLE, str(error)
    except ValueError as error:  # a key that dstore refuses, or text that is not UTF-8
        return HTTPStatus.BAD_REQUEST, str(error)


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """Answer one request; gunicorn calls this."""
    status, text = answer(environ)
    body = f"{text}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("X-Worker", str(os.getpid())),
    ]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]


node = dstore.Node()
print(f"process {os.getpid()}: a value may have {limit():,} bytes", flush=True)
