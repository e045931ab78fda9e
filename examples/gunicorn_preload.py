"""A web service with one Node that is made once, and at home in each of gunicorn's workers.

With ``--preload`` gunicorn imports this module in its master and forks the workers afterwards, so
the Node that is made here is in all of them. A worker takes over its settings and nothing else: on
first use it joins as a Local of its own, with an empty cache. However gunicorn stops a worker
(unless it has to kill it), the exit handlers of Python run, and the Node says goodbye: no hook of
gunicorn is needed.

    dstore global &
    gunicorn --preload --workers 4 --chdir examples gunicorn_preload:application &
    curl --request PUT --data "good morning" localhost:8000/greeting
    curl localhost:8000/greeting
    curl --request DELETE localhost:8000/greeting

``$DSTORE_GLOBAL`` names another Global. It has to be up when this starts, since the master reads
from it. If it is away later, a request waits for ``timeout`` of the Node, 5 seconds, before it is
answered with 503; a write may take one lease more. ``--timeout`` and ``--graceful-timeout`` of
gunicorn (30 seconds each) have to be above that. A worker that is killed says no goodbye, so that
deletions of what it held wait for its lease.
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
"""The key of how many bytes a value may have. It may be bound anew at any time."""
LIMIT_DEFAULT = 1 << 20


def limit() -> int:
    """Asked for each time: where it is bound, that is a look-up in the memory of this process."""
    return int(node.get(LIMIT, LIMIT_DEFAULT))


def index() -> Answer:
    """Which worker this is, and how often its own memory had what was asked for."""
    node.join()
    figures = node.stats()
    told = {name: figures[name] for name in ("session", "hits", "misses")}
    return HTTPStatus.OK, json.dumps({"pid": os.getpid(), **told})


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
    return HTTPStatus.OK, f"{key!r} is deleted; Locals that confirmed it: {deletion.confirmed}"


def answer(environ: dict[str, Any]) -> Answer:
    """Do what the request asks for. What may go wrong has a status of its own."""
    method = environ["REQUEST_METHOD"]
    try:
        key = environ["PATH_INFO"][1:].encode("latin-1").decode()  # WSGI hands bytes over like this
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
    except ValueError as error:  # a key that dstore does not take, or text that is not UTF-8
        return HTTPStatus.BAD_REQUEST, str(error)


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """What gunicorn calls for each request."""
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
