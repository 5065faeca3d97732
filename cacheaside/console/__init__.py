"""The console: one page that shows what a cache does, for people who are allowed to see it.

No framework is known here: ``cacheaside_fastapi`` and ``cacheaside_flask`` mount it. It is closed until a
guard is given, and changes nothing for a request that could come from another site.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from msgspec import Struct

from cacheaside.errors import CacheasideError

if TYPE_CHECKING:
    from cacheaside.cache import Cache

EVERY: Final = 1.0
"""Seconds between two snapshots that a page is sent."""
MOST_TAGS: Final = 10
MOST_BODY: Final = 16_384

# Nothing is loaded from anywhere, and the page can be framed by nobody.
_SAFE: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Reply(Struct, frozen=True):
    """What to send."""

    status: int
    body: bytes
    type: str = "application/json"

    @property
    def headers(self) -> dict[str, str]:
        return {"content-type": f"{self.type}; charset=utf-8", **_SAFE}


def page() -> Reply:
    return Reply(200, (files("cacheaside.console") / "page.html").read_bytes(), "text/html")


def refused(status: int, why: str) -> Reply:
    return Reply(status, json.dumps({"error": why}).encode())


def event(cache: Cache) -> bytes:
    """A snapshot as a server-sent event."""
    return b"data: " + json.dumps(snapshot(cache)).encode() + b"\n\n"


def snapshot(cache: Cache) -> dict[str, Any]:
    """What the page draws: counters, and how things stand."""
    return {"at": cache.world.clock(), "cache": repr(cache), **cache.stats()}


def foreign(headers: Mapping[str, str]) -> bool:
    """Whether a request that would change something may come from another site's page."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return True
    # A form of another site can send neither of these without the browser asking first.
    return headers.get("x-cacheaside") != "1" or not headers.get("content-type", "").startswith(
        "application/json"
    )


def look(cache: Cache, path: str, query: str) -> Reply:
    """Answer a GET below the console's path."""
    asked = parse_qs(query)
    match path.strip("/"):
        case "":
            return page()
        case "stats":
            return Reply(200, json.dumps(snapshot(cache)).encode())
        case "tags":
            return told(lambda: {"tags": cache.biggest_tags(MOST_TAGS)})
        case "explain":
            key = asked.get("key", [""])[0]
            return told(lambda: {"explain": cache.explain(key)})
        case _:
            return refused(404, "there is nothing here")


def change(cache: Cache, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
    """Answer a POST below the console's path."""
    if path.strip("/") != "invalidate":
        return refused(404, "there is nothing here")
    if foreign(headers):
        return refused(403, "this request may come from another site")
    try:
        asked = json.loads(body)
        keys, tags = asked.get("keys", []), asked.get("tags", [])
        if not all(isinstance(one, list) for one in (keys, tags)):
            raise ValueError
    except (ValueError, AttributeError):
        return refused(400, 'the body must be {"keys": [...], "tags": [...]}')
    return told(lambda: {"acknowledged": bool(cache.invalidate(keys=keys, tags=tags))})


def told(ask: Any) -> Reply:
    """What ``ask`` returns as JSON, or what is wrong with the question."""
    try:
        return Reply(200, json.dumps(ask()).encode())
    except CacheasideError as error:
        return refused(400, str(error))
