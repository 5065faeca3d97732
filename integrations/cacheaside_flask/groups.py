"""``Cache-Group-Invalidation`` (RFC 9875): what a request has invalidated, told to clients, and obeyed."""

from __future__ import annotations

from typing import Final

from flask import Flask, Response, g, request

from cacheaside.answers import groups, invalidated
from cacheaside.transactions import recording
from cacheaside_flask.responses import app_cache

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
HEADER: Final = "Cache-Group-Invalidation"
PLACE: Final = "_cacheaside_recording"


def follow(app: Flask, *, tell: bool) -> None:
    """Obey the header where a view sets it; with ``tell``, set it for what a request has invalidated."""

    def begin() -> None:
        if request.method not in SAFE:
            g.setdefault(PLACE, recording.set([]))

    def told(response: Response) -> Response:
        if request.method in SAFE or response.status_code >= 400:
            return response
        tags = [tag for header in response.headers.getlist(HEADER) for tag in invalidated(header)]
        if tags:
            app_cache().invalidate(tags=tags)
        names = groups(dict.fromkeys(recording.get() or ())) if tell else ""
        if names:
            response.headers.add(HEADER, names)
        return response

    def end(_: BaseException | None) -> None:
        token = g.pop(PLACE, None)
        if token is not None:
            recording.reset(token)

    app.before_request(begin)
    app.after_request(told)
    app.teardown_request(end)
