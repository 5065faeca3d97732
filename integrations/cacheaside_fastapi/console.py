"""The console as an ASGI app, to be mounted: ``app.mount("/cache", console(guard=is_admin))``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cacheaside import Cache, ConfigError
from cacheaside.console import EVERY, MOST_BODY, Reply, change, event, look, refused
from cacheaside_fastapi.responses import cache_of

Guard = Callable[[Request], bool | Awaitable[bool]]


def console(cache: Cache | None = None, *, guard: Guard | None = None) -> ASGIApp:
    """A page that shows what the cache does, and can invalidate.

    Args:
        cache: None is the cache of the app's lifespan.
        guard: says whether the sender of a request may see it, sync or async. Without one nobody may.
    """
    if guard is not None and not callable(guard):
        raise ConfigError(f"guard must be a function of the request, not {guard!r}")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ConfigError("the console speaks HTTP only: mount it, and keep your own lifespan")
        request = Request(scope, receive)
        await (await answer(request))(scope, receive, send)

    async def answer(request: Request) -> Response:
        if guard is None:
            return sent(refused(403, "the console is closed: give it guard=, which says who may see it"))
        allowed = guard(request)
        if not (await allowed if inspect.isawaitable(allowed) else allowed):
            return sent(refused(403, "not for you"))
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        shown = cache or cache_of(request)
        if request.method == "GET" and path.strip("/") == "events":
            return StreamingResponse(events(shown), media_type="text/event-stream")
        if request.method in ("GET", "HEAD"):
            return sent(await run_in_threadpool(look, shown, path, request.url.query))
        if request.method != "POST":
            return sent(refused(405, "GET or POST"))
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BODY:
                return sent(refused(413, "too much"))
        return sent(await run_in_threadpool(change, shown, path, request.headers, bytes(body)))

    return app


def sent(reply: Reply) -> Response:
    return Response(reply.body, reply.status, headers=reply.headers)


async def events(cache: Cache) -> AsyncIterator[Any]:
    while True:
        yield event(cache)
        await asyncio.sleep(EVERY)
