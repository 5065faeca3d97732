"""Rate limits as a dependency: ``dependencies=[Depends(rate_limit(logins))]``."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cacheaside import ConfigError
from cacheaside.toolkit import Decision, RateLimiter
from cacheaside.web import limit_headers, refusal

Identify = Callable[[Request], Any]


def address(request: Request) -> str:
    """Who connected. Behind a proxy that is the proxy, unless the server is told to believe its headers."""
    return request.client.host if request.client else ""


def rate_limit(
    limiter: RateLimiter, *, key: Identify = address, cost: int = 1
) -> Callable[[Request, Response], Awaitable[Decision]]:
    """A dependency that counts a request as a hit: 429 with ``Retry-After`` when it is refused, 503 when that
    is because the limiter could not be asked.

    ``RateLimit`` and ``RateLimit-Policy`` say what is left, also when it is let in; not so on a Response
    that the endpoint has made itself, for FastAPI adds nothing to those. An endpoint that takes the
    dependency as a parameter gets the ``Decision``.

    Args:
        limiter: counts the hits.
        key: who hits, a function of the request, sync or async: an identifier as ``RateLimiter.hit`` takes;
            by default the address of the connection.
        cost: how many hits a request counts for.

    Raises ConfigError for what is no limiter, no function, or a cost that cannot be.
    """
    if not isinstance(limiter, RateLimiter):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"limiter must be a RateLimiter, not {limiter!r}")
    if not callable(key):
        raise ConfigError(f"key must be a function of the request, not {key!r}")
    limiter.check_cost(cost)

    async def limited(request: Request, response: Response) -> Decision:
        identifier: Any = key(request)
        if inspect.isawaitable(identifier):
            identifier = await identifier
        decision = await limiter.ahit(identifier, cost)
        headers = limit_headers(limiter, decision)
        if not decision:
            status, words = refusal(decision)
            raise HTTPException(status, words, headers)
        for name, value in headers.items():
            response.headers.append(name, value)
        return decision

    return limited
