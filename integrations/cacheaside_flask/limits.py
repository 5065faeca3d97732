"""``@limited``: a view that is answered only so often."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from flask import Response, after_this_request, current_app, request

from cacheaside import ConfigError
from cacheaside.toolkit import RateLimiter
from cacheaside.web import limit_headers, refusal

F = TypeVar("F", bound=Callable[..., Any])


def address() -> str:
    """Who connected. Behind a proxy that is the proxy, unless werkzeug's ProxyFix is told to believe it."""
    return request.remote_addr or ""


def limited(limiter: RateLimiter, *, key: Callable[[], Any] = address, cost: int = 1) -> Callable[[F], F]:
    """Count a request as a hit before the view: 429 with ``Retry-After`` when it is refused, 503 when it is
    because the limiter could not be asked.

    ``RateLimit`` and ``RateLimit-Policy`` say what is left, also when it is let in. Goes below the route
    decorator.

    Args:
        limiter: counts the hits.
        key: who hits, a function that looks at ``flask.request``: an identifier as ``RateLimiter.hit``
            takes; by default the address of the connection.
        cost: how many hits a request counts for.

    Raises ConfigError for what is no limiter, no function, or a cost that cannot be.
    """
    if not isinstance(limiter, RateLimiter):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"limiter must be a RateLimiter, not {limiter!r}")
    if not callable(key):
        raise ConfigError(f"key must be a function that looks at flask.request, not {key!r}")
    limiter.check_cost(cost)

    def decorate(view: F) -> F:
        @functools.wraps(view)
        def counted(*args: Any, **kwargs: Any) -> Any:
            decision = limiter.hit(key(), cost)
            headers = limit_headers(limiter, decision)
            if not decision:
                status, words = refusal(decision)
                return Response(f"{words}\n", status, headers, mimetype="text/plain")

            @after_this_request
            def tell(response: Response) -> Response:
                for name, value in headers.items():
                    response.headers.add(name, value)
                return response

            del tell
            return current_app.ensure_sync(view)(*args, **kwargs)

        return cast(F, counted)

    return decorate
