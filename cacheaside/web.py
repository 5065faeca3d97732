"""What limits and sessions say in HTTP, the same in every framework."""

from __future__ import annotations

import math
from typing import Final, Literal

from cacheaside.errors import ConfigError
from cacheaside.policy import Seconds, seconds
from cacheaside.toolkit.ratelimit import Decision, RateLimiter

COOKIE: Final = "__Host-session"
AWAY: Final = {"Retry-After": "1"}
"""With the 503 of a session that cannot be looked up now."""

SameSite = Literal["lax", "strict"]


def limit_headers(limiter: RateLimiter, decision: Decision) -> dict[str, str]:
    """``RateLimit-Policy`` and ``RateLimit``, and ``Retry-After`` for who is refused.

    After draft-ietf-httpapi-ratelimit-headers-11. Nothing of what is left where the store did not answer, for
    then nobody knows.
    """
    several = len(limiter.limits) > 1

    def policy(window: float) -> str:
        name = limiter.name.encode("ascii", "replace").decode()  # what a quoted string may hold
        name = name.replace('"', "?")
        return f'"{name}-{window:g}s"' if several else f'"{name}"'

    headers = {
        "RateLimit-Policy": ", ".join(
            f"{policy(window)};q={limit};w={math.ceil(window)}" for limit, window in limiter.limits
        )
    }
    after = whole(decision.reset_after)
    if not decision:  # as long as no more than this is let in, and not until the last hit has left the window
        after = max(1, whole(decision.retry_after))
        headers["Retry-After"] = str(after)
    if decision.known:
        headers["RateLimit"] = f"{policy(decision.window)};r={decision.remaining};t={after}"
    return headers


def refusal(decision: Decision) -> tuple[int, str]:
    """The status and the words for who is refused: nobody who did nothing wrong is told that he did."""
    if decision.known:
        return 429, "too many requests"
    return 503, "the limit of requests cannot be looked up now"


def whole(seconds: float) -> int:
    """Rounded up, so that nobody comes back too early; the microseconds that a decision adds are none."""
    return math.ceil(seconds - 1e-5)


class CookiePlan:
    """The attributes of a session's cookie, checked.

    Secure, HttpOnly and the path ``/`` are not for choice: a browser takes a cookie whose name begins with
    ``__Host-`` only so, and from no other host than this one, which keeps a neighbour from planting one.
    """

    def __init__(self, name: str, same_site: SameSite, max_age: Seconds | None) -> None:
        if not name.startswith("__Host-") or not name[7:].replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                f"name must be a cookie's, with __Host- before it, such as {COOKIE!r}, not {name!r}"
            )
        if same_site not in ("lax", "strict"):
            raise ConfigError(f'same_site must be "lax" or "strict", not {same_site!r}')
        self.name = name
        self.same_site: SameSite = same_site
        self.max_age = None if max_age is None else math.ceil(seconds("max_age", max_age))
