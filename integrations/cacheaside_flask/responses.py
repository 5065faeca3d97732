"""``@cache_response``: what a view answers, cached after what runs before it has run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Unpack, cast

from flask import Response, current_app, request
from flask.globals import request_ctx
from werkzeug.exceptions import HTTPException

from cacheaside import MISSING, Cache, ConfigError
from cacheaside.answers import UNSATISFIED, Answer, forwarded, passed
from cacheaside.http import Asked, ResponseOptions, ResponsePolicy, Stored, plan, together
from cacheaside.responses import NotStored, responses
from cacheaside_flask.signals import tell

F = TypeVar("F", bound=Callable[..., Any])


def app_cache() -> Cache:
    """The cache of the app in whose context this is called."""
    cache = current_app.extensions.get("cacheaside")
    if cache is None:
        raise ConfigError(f"the app {current_app.name!r} has no cache: call CacheAside().init_app(app)")
    return cast(Cache, cache)


def cache_response(**options: Unpack[ResponseOptions]) -> Callable[[F], F]:
    """Cache the response of a view, in the cache of its app; goes below the route decorator.

    What runs before a view (``before_request``, decorators above this one) runs at every request, so whoever
    may not see the response is stopped as ever. A view that looks into ``session`` answers for one user: it
    is cached only with ``identity``. Options: see ``cacheaside.http.ResponsePolicy``; their functions get the
    request.

    Raises ConfigError where the decorator stands.
    """
    policy = ResponsePolicy.of(options)

    def decorate(view: F) -> F:
        @functools.wraps(view)
        def cached(*args: Any, **kwargs: Any) -> Response:
            def run() -> Response:
                return current_app.make_response(current_app.ensure_sync(view)(*args, **kwargs))

            # Where the app is mounted, for it may be so twice, and the rule.
            route = f"{request.root_path}{request.url_rule} {view.__module__}.{view.__qualname__}"
            response = respond(policy, asked_of(route), run)
            for status in response.headers.getlist("Cache-Status")[-1:]:
                tell(status)
            return response

        return cast(F, cached)

    return decorate


def respond(policy: ResponsePolicy, asked: Asked, run: Callable[[], Response]) -> Response:
    """Answer the request from the cache, or by running the view."""
    cache = app_cache()
    way = plan(policy, asked, cache.world.tick())
    if not way.key:
        return marked(run(), policy, forwarded(way.why))
    through = responses(cache, policy)
    own, found = through.own(), None

    def load() -> Stored:
        own.begins()
        try:
            response = own.response = run()
        except Exception as error:
            status = error.code or 500 if isinstance(error, HTTPException) else 500
            raise through.broke(own, error, status) from error
        streams = response.is_streamed or response.direct_passthrough
        body = None if streams else response.get_data()
        headers, besides = tuple(response.headers.items()), tuple(said_by_the_session(way.private))
        return through.keep(own, way.private, response.status_code, headers, body, besides)

    if way.looks:
        seen: Any = through.respond.peek(way.key, way.tags, load)
        found = through.usable(way, seen)
        if found is None and way.only:
            return sent(UNSATISFIED)
        if found is None and way.head:
            return marked(run(), policy, forwarded("miss" if seen is MISSING else "request"))
    if found is None:
        ask = through.respond.refresh if way.anew else through.respond
        try:
            found = ask(way.key, way.tags, load)
        except NotStored:
            pass
        found = through.resolve(own, way, found)
    if found is None:
        if own.error is not None:
            raise own.error
        return marked(own.response if own.ran else run(), policy, own.passed(way))
    return sent(through.answer(own, way, asked, found))


def sent(told: Answer) -> Response:
    response = Response(told.body, told.status)
    response.headers.clear()
    response.headers.extend(told.headers)
    return response


def asked_of(route: str) -> Asked:
    query, headers = tuple(request.args.items(multi=True)), together(tuple(request.headers.items()))
    origin = f"{request.scheme}://{request.host}"
    return Asked(request.method, route, request.view_args or {}, query, headers, request, origin)


def said_by_the_session(private: bool) -> Iterable[tuple[str, str]]:
    """What Flask will add to the response because the view used the session: it does that only later."""
    context: Any = request_ctx
    session = getattr(context, "_session", None)  # the property would count as a look into it
    if session is None:
        return
    if session.modified:
        yield "Set-Cookie", "session"
    elif session.accessed and not private:
        yield "Vary", "Cookie"


def marked(response: Response, policy: ResponsePolicy, status: str) -> Response:
    """A response that was passed on, with its Cache-Status."""
    for name, value in passed(policy, status):
        if name == "vary":  # one header, for that is what Flask's session adds to
            response.vary.update(value.split(", "))
        else:
            response.headers.add(name, value)
    return response
