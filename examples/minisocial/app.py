"""The FastAPI app: ``uvicorn --factory examples.minisocial.app:create_app``."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from cacheaside_fastapi import console, lifespan
from fastapi import FastAPI, HTTPException, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cacheaside import Cache

from . import telemetry
from .api import auth, media, messages, posts, users
from .services import Services
from .settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """The app; settings come from the environment when none are given."""
    services = Services(settings or Settings.read())
    database, cache = services.database, services.cache

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        database.create()
        # The default cache, so that repositories need not know of it.
        async with lifespan(cache, default=True)(app) as state:
            try:
                async with services.warmer if services.warms else nullcontext():
                    yield state
            finally:
                database.close()
                end_telemetry()

    app = FastAPI(title="minisocial", lifespan=running)
    app.state.services = services
    end_telemetry = telemetry.set_up(app)
    for service in (auth, users, posts, messages, media):
        app.include_router(service.routes(services))
    if services.settings.mode == "off":
        app.add_middleware(Bypass, cache=cache)
    app.mount("/cache", console(cache, guard=services.is_admin))

    @app.get("/stats", include_in_schema=False)
    async def stats(request: Request) -> dict[str, int]:
        """What this process has counted; ``cpu`` in microseconds."""
        if not await services.is_admin(request):
            raise HTTPException(403, "not for you")
        spaces = cache.stats()["namespaces"].values()
        names = ("hits_l1", "hits_l2", "loads")
        counts = {name: sum(space[name] for space in spaces) for name in names}
        return {**counts, "queries": database.queries, "cpu": round(time.process_time() * 1e6)}

    return app


class Bypass:
    """Every read of every request goes to the database, as if nothing were decorated."""

    def __init__(self, app: ASGIApp, cache: Cache) -> None:
        self.app = app
        self.cache = cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.cache.bypass():
            await self.app(scope, receive, send)
