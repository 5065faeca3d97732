"""The console as a blueprint: ``app.register_blueprint(console(guard=is_admin), url_prefix="/cache")``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from flask import Blueprint, Response, request

from cacheaside import Cache, ConfigError
from cacheaside.console import EVERY, MOST_BODY, Reply, change, event, look, refused
from cacheaside_flask.responses import app_cache

ROUND = 30
"""Events of one connection: a thread serves it, and the page asks again."""


def console(*, guard: Callable[[], bool] | None = None) -> Blueprint:
    """A page that shows what the app's cache does, and can invalidate.

    Args:
        guard: says whether the sender of the current request may see it. Without one nobody may.
    """
    if guard is not None and not callable(guard):
        raise ConfigError(f"guard must be a function that looks at flask.request, not {guard!r}")
    blueprint = Blueprint("cacheaside_console", __name__)

    @blueprint.before_request
    def allowed() -> Response | None:
        if guard is None:
            return sent(refused(403, "the console is closed: give it guard=, which says who may see it"))
        return None if guard() else sent(refused(403, "not for you"))

    @blueprint.get("/events")
    def live() -> Response:
        return Response(events(app_cache()), mimetype="text/event-stream")

    @blueprint.get("/", defaults={"path": ""})
    @blueprint.get("/<path:path>")
    def shown(path: str) -> Response:
        return sent(look(app_cache(), path, request.query_string.decode("latin-1")))

    @blueprint.post("/<path:path>")
    def changed(path: str) -> Response:
        body = request.stream.read(MOST_BODY + 1)  # one that comes in chunks does not say how long it is
        if len(body) > MOST_BODY:
            return sent(refused(413, "too much"))
        headers = {name.lower(): value for name, value in request.headers.items()}
        return sent(change(app_cache(), path, headers, body))

    # Flask finds them by their routes.
    del allowed, live, shown, changed
    return blueprint


def sent(reply: Reply) -> Response:
    return Response(reply.body, reply.status, headers=reply.headers)


def events(cache: Cache) -> Iterator[bytes]:
    for _ in range(ROUND):
        yield event(cache)
        time.sleep(EVERY)
