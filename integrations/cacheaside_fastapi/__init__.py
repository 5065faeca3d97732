"""The cache in a FastAPI or Starlette app: opened with it, closed with it, and a dependency to ask for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

from cacheaside import Cache, configure

try:
    from fastapi import Depends
    from starlette.requests import HTTPConnection

    from cacheaside_fastapi.console import console
    from cacheaside_fastapi.limits import rate_limit
    from cacheaside_fastapi.memo import Memo, MemoDep, request_memo
    from cacheaside_fastapi.middleware import ResponseCacheMiddleware
    from cacheaside_fastapi.responses import cache_of, cache_response
    from cacheaside_fastapi.sessions import ClientSession, SessionCookie
except ModuleNotFoundError as error:
    raise ImportError("cacheaside_fastapi needs FastAPI: pip install 'cacheaside[fastapi]'") from error

__all__ = [
    "CacheDep",
    "ClientSession",
    "Memo",
    "MemoDep",
    "ResponseCacheMiddleware",
    "SessionCookie",
    "cache_response",
    "console",
    "lifespan",
    "rate_limit",
    "request_cache",
    "request_memo",
]

Lifespan = Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]


def lifespan(cache: Cache | str | None = None, *, default: bool = False, **settings: Any) -> Lifespan:
    """A lifespan with a cache in its state, as ``request.state.cache``: ``FastAPI(lifespan=lifespan(url))``.

    A lifespan of your own enters it and adds to its state:

        async with lifespan(url)(app) as state:
            yield {**state, "mine": mine}

    Args:
        cache: a URL, or None for ``CACHEASIDE_URL``, and ``settings`` as ``Cache`` takes them: made when
            the app starts. Or a ready ``Cache``. Either is closed when the app ends.
        default: make it the cache of ``cacheaside.cached`` and the other module-level decorators too.

    Raises TypeError for a ready ``Cache`` with settings; the app's start raises ConfigError for a wrong one.
    """
    if isinstance(cache, Cache) and settings:
        raise TypeError(f"a ready Cache takes no settings: {', '.join(settings)}")

    @asynccontextmanager
    async def running(app: Any) -> AsyncGenerator[dict[str, Any]]:
        async with cache if isinstance(cache, Cache) else Cache(cache, **settings) as opened:
            if default:
                configure(opened)
            yield {"cache": opened}

    return running


# Async, for FastAPI would send a plain function to a thread.
async def request_cache(connection: HTTPConnection) -> Cache:
    """The cache of the app that serves this request or websocket. ConfigError if its lifespan has none."""
    return cache_of(connection)


CacheDep = Annotated[Cache, Depends(request_cache)]
"""The type of an endpoint's parameter that takes the app's cache."""
