"""An asynchronous web service whose workers cache what is expensive, and never serve it outdated.

uvicorn starts several workers, each a process with an event loop and an AsyncNode of its own. A
page that one of them has rendered is found by all; from then on each answers from its own memory,
without a switch to another task. Whoever deletes a page gets the answer when no worker can serve it
any more.

    dstore global &
    uvicorn --workers 4 --app-dir examples starlette_cache:app &
    curl localhost:8000/pages/hello
    curl --request DELETE localhost:8000/pages/hello
    curl localhost:8000/events           # which pages are deleted, as it happens

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
"""The Node of this worker, as long as it serves."""


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Around all that a worker serves; in the end the Node says goodbye."""
    global node
    async with dstore.AsyncNode() as node:
        yield


async def render(name: str) -> str:
    """Stands for a database, a template, a model."""
    await asyncio.sleep(RENDERING_SECONDS)
    return f"page {name}, rendered by worker {os.getpid()}"


async def page(request: Request) -> Response:
    """From this worker's memory, from Global, or rendered."""
    name = request.path_params["name"]
    key = f"pages/{name}"
    text = await node.get(key, None)
    while text is None:
        text = await render(name)
        try:
            await node.set(key, text)
        except dstore.KeyOccupied:  # another worker was quicker: all serve the same page
            text = await node.get(key, None)
    return plain(text)


async def delete(request: Request) -> Response:
    """The answer comes when no worker serves the page any more."""
    deletion = await node.delete(f"pages/{request.path_params['name']}")
    return plain(f"deleted; Locals that confirmed it: {deletion.confirmed}")


async def events(request: Request) -> Response:
    """The names of pages as they are deleted, one on each line, for as long as somebody listens."""

    async def lines() -> AsyncIterator[str]:
        async with node.watch("pages/") as watch:
            async for event in watch:
                yield "(look at everything)\n" if event.resync else f"{event.key!s}\n"

    return StreamingResponse(lines(), media_type="text/plain")


async def index(request: Request) -> Response:
    """Which worker this is, and how often its own memory had what was asked for."""
    await node.join()
    figures = await node.stats()
    told = {name: figures[name] for name in ("session", "hits", "misses")}
    return JSONResponse({"pid": os.getpid(), **told})


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
