"""An asynchronous web service whose workers cache expensive pages and never serve a deleted one.

uvicorn starts several workers, each a process with an event loop and an AsyncNode of its own. All
workers find a page that one of them has rendered, in the memory of their host or their own, without
a switch to another task. A DELETE of a page is answered when no worker can serve it any
more.

    dstore global &
    uvicorn --workers 4 --app-dir examples starlette_cache:app &
    curl localhost:8000/pages/hello
    curl --request DELETE localhost:8000/pages/hello
    curl localhost:8000/events           # the names of deleted pages, as it happens

The same works with FastAPI, which is built on Starlette. ``$DSTORE_GLOBAL`` names another Global.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import dstore

RENDERING_SECONDS = 0.05
node: dstore.AsyncNode
"""The Node of this worker, while it serves."""


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Keep a Node while the worker serves. At the end it says goodbye."""
    global node
    async with dstore.AsyncNode() as node:
        yield


async def render(name: str) -> str:
    """Stand for a database, a template, a model."""
    await asyncio.sleep(RENDERING_SECONDS)
    return f"page {name}, rendered by worker {os.getpid()}"


async def page(request: Request) -> Response:
    """Serve a page from the memory of this worker, from Global, or by rendering it."""
    name = request.path_params["name"]
    key = f"pages/{name}"
    text = await node.get(key, None)
    while text is None:
        text = await render(name)
        try:
            await node.set(key, text)
        except dstore.KeyOccupied:  # another worker was faster; all serve the same page
            text = await node.get(key, None)
    return plain(text)


async def delete(request: Request) -> Response:
    """Delete a page. The answer comes when no worker serves it any more."""
    deletion = await node.delete(f"pages/{request.path_params['name']}")
    return plain(f"deleted; memberships that confirmed it: {deletion.confirmed}")


async def events(request: Request) -> Response:
    """Stream the names of pages as they are deleted, one on each line."""

    async def lines() -> AsyncIterator[str]:
        async with node.watch("pages/") as watch:
            async for event in watch:
                yield "(read everything again)\n" if event.resync else f"{event.key!s}\n"

    return StreamingResponse(lines(), media_type="text/plain")


async def index(request: Request) -> Response:
    """Say which worker this is, and how often its own memory or the host cache had the value."""
    await node.join()
    metrics = await node.stats()
    shown = {name: metrics[name] for name in ("session", "hits", "host_hits", "misses")}
    return JSONResponse({"pid": os.getpid(), **shown})


def plain(text: str, status: int = 200) -> Response:
    return PlainTextResponse(f"{text}\n", status, {"X-Worker": str(os.getpid())})


async def missing(request: Request, error: Exception) -> Response:
    return plain(str(error), 404)


async def away(request: Request, error: Exception) -> Response:
    return plain(str(error), 503)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", index),
        Route("/pages/{name}", page),
        Route("/pages/{name}", delete, methods=["DELETE"]),
        Route("/events", events),
    ],
    exception_handlers={
        dstore.KeyMissing: missing,
        dstore.GlobalUnavailable: away,
        dstore.OutcomeUnknown: away,
    },
)
