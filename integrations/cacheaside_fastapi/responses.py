"""``@cache_response``: what an endpoint answers, cached after its dependencies have run."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, Unpack, cast

from fastapi import HTTPException
from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import APIRoute, serialize_response
from fastapi.utils import is_body_allowed_for_status_code
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from cacheaside import MISSING, Cache, ConfigError
from cacheaside.answers import UNSATISFIED, Answer, forwarded, passed
from cacheaside.http import (
    Asked,
    Headers,
    ResponseOptions,
    ResponsePolicy,
    Stored,
    plan,
    together,
)
from cacheaside.responses import NotStored, responses
from cacheaside_fastapi.headers import headers_read

F = TypeVar("F", bound=Callable[..., Any])

RawHeaders = list[tuple[bytes, bytes]]

HIDDEN: Final = {Request: "cacheaside_request", Response: "cacheaside_response"}
"""The parameters that an endpoint without them gets; FastAPI shows them nowhere."""
LISTED: Final = frozenset({b"set-cookie", b"vary"})
"""Headers that add up: one of the response takes away none that a dependency has set."""


def cache_response(**options: Unpack[ResponseOptions]) -> Callable[[F], F]:
    """Cache the response of an endpoint, in the cache of the app's lifespan; goes below the route decorator.

    Dependencies run at every request, so whoever may not see the response is stopped as ever; a hit spares
    the endpoint and the serialisation. Options: see ``cacheaside.http.ResponsePolicy``. A header that the
    endpoint, or what is injected into it, takes as a parameter need not be named in ``vary``.

    Raises ConfigError where the decorator stands.
    """
    given_policy = ResponsePolicy.of(options)

    def decorate(endpoint: F) -> F:
        if inspect.isgeneratorfunction(endpoint) or inspect.isasyncgenfunction(endpoint):
            raise ConfigError(
                f"@cache_response on {endpoint.__qualname__}: it streams, and what streams is not stored"
            )
        policy = given_policy.varied(headers_read(endpoint, credentials=given_policy.identity is None))
        signature, names, hidden = with_parameters(endpoint)

        @functools.wraps(endpoint)
        async def cached(*args: Any, **kwargs: Any) -> Response:
            request: Request = kwargs[names[Request]]
            response: Response = kwargs[names[Response]]
            for name in hidden:
                del kwargs[name]
            given, response.raw_headers[:] = list(response.raw_headers), []
            run = functools.partial(run_endpoint, endpoint, request, response, args, kwargs)
            answered = await respond(policy, request, route_of(request, endpoint), run, given)
            add(answered, given)
            return answered

        cached.__signature__ = signature  # type: ignore[attr-defined]
        del cached.__wrapped__  # FastAPI reads the signature of what is wrapped
        return cast(F, cached)

    return decorate


def with_parameters(endpoint: Callable[..., Any]) -> tuple[inspect.Signature, dict[type, str], list[str]]:
    """The signature with a request and a response in it, their names, and which of these were added.

    The response is the one that FastAPI gives to dependencies, too: what they set on it is for this request.
    """
    signature = inspect.signature(endpoint)
    hints = typing.get_type_hints(endpoint, include_extras=True)
    parameters = [
        p.replace(annotation=hints.get(p.name, p.annotation)) for p in signature.parameters.values()
    ]
    names: dict[type, str] = {}
    for parameter in parameters:
        annotation: Any = parameter.annotation
        for kind in HIDDEN:
            if isinstance(annotation, type) and issubclass(annotation, kind):
                names.setdefault(kind, parameter.name)
    hidden = [name for kind, name in HIDDEN.items() if kind not in names]
    at = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))
    parameters[at:at] = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        for kind, name in HIDDEN.items()
        if name in hidden
    ]
    returns = hints.get("return", signature.return_annotation)
    returns = None if returns is type(None) else returns  # which is no model, as FastAPI sees it
    changed = signature.replace(parameters=parameters, return_annotation=returns)
    return changed, HIDDEN | names, hidden


def add(response: Response, given: RawHeaders) -> None:
    """Add what dependencies have set for this request, as FastAPI does where an endpoint is not cached."""
    names = {name for name, _ in given}
    if b"set-cookie" in names and b"cache-control" not in names:
        given = [*given, (b"cache-control", b"no-store")]
    if b"set-cookie" in names or b"cache-control" in names:
        del response.headers["cache-control"]
    there = {name for name, _ in response.raw_headers}
    response.raw_headers.extend(pair for pair in given if pair[0] in LISTED or pair[0] not in there)


def route_of(request: Request, endpoint: Callable[..., Any]) -> str:
    """What names the endpoint in keys: where it is mounted, its path template and its name.

    An app may be mounted twice, and a path may have several endpoints.
    """
    mounted = request.scope.get("root_path", "")
    path = getattr(request.scope.get("route"), "path", request.scope["path"])
    return f"{mounted}{path} {endpoint.__module__}.{endpoint.__qualname__}"


async def run_endpoint(
    endpoint: Callable[..., Any],
    request: Request,
    injected: Response,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Response:
    """Call the endpoint and make a response of its result, as FastAPI would have."""
    is_async = inspect.iscoroutinefunction(endpoint)
    if is_async:
        result = await endpoint(*args, **kwargs)
    else:
        result = await run_in_threadpool(endpoint, *args, **kwargs)
    if isinstance(result, Response):
        return result
    response = await serialised(request.scope.get("route"), result, injected.status_code, is_async=is_async)
    response.raw_headers.extend(injected.raw_headers)
    return response


async def serialised(route: Any, result: Any, status: int | None, *, is_async: bool) -> Response:
    if not isinstance(route, APIRoute):
        raise ConfigError("@cache_response on a route that is not FastAPI's: return a Response from it")
    content: Any = await serialize_response(
        field=route.response_field,
        response_content=result,
        include=route.response_model_include,
        exclude=route.response_model_exclude,
        by_alias=route.response_model_by_alias,
        exclude_unset=route.response_model_exclude_unset,
        exclude_defaults=route.response_model_exclude_defaults,
        exclude_none=route.response_model_exclude_none,
        is_coroutine=is_async,
    )
    chosen: Any = route.response_class
    made = chosen.value if isinstance(chosen, DefaultPlaceholder) else chosen
    chosen_status = status or route.status_code
    response: Response = made(content) if chosen_status is None else made(content, status_code=chosen_status)
    if not is_body_allowed_for_status_code(response.status_code):
        response.body = b""
    return response


async def respond(
    policy: ResponsePolicy,
    request: Request,
    route: str,
    run: Callable[[], Awaitable[Response]],
    given: RawHeaders,
) -> Response:
    """Answer a request from the cache, or by running the endpoint."""
    cache = cache_of(request)
    asked = asked_of(request, route)
    way = plan(policy, asked, cache.world.tick())
    if not way.key:
        return marked(await run(), policy, forwarded(way.why))
    through = responses(cache, policy)
    own, found = through.own(), None

    async def load() -> Stored:
        own.begins()
        try:
            response = own.response = await run()
        except Exception as error:
            status = error.status_code if isinstance(error, HTTPException) else 500
            raise through.broke(own, error, status) from error
        body: bytes | None = getattr(response, "body", None)
        if hasattr(response, "body_iterator") or hasattr(response, "path"):  # a stream, a file
            body = None
        return through.keep(
            own, way.private, response.status_code, pairs(response.raw_headers), body, pairs(given)
        )

    if way.looks:
        seen = await through.arespond.peek(way.key, way.tags, load)
        found = through.usable(way, seen)
        if found is None and way.only:
            return sent(UNSATISFIED)
        if found is None and way.head:
            return marked(await run(), policy, forwarded("miss" if seen is MISSING else "request"))
    if found is None:
        ask = through.arespond.refresh if way.anew else through.arespond
        try:
            found = await ask(way.key, way.tags, load)
        except NotStored:
            pass
        found = through.resolve(own, way, found)
    if found is None:
        if own.error is not None:
            raise own.error
        return marked(own.response if own.ran else await run(), policy, own.passed(way))
    response = sent(through.answer(own, way, asked, found))
    if own.response is not None:
        response.background = own.response.background
    return response


def sent(told: Answer) -> Response:
    response = Response(told.body, told.status)
    response.raw_headers = raw(told.headers)
    return response


def cache_of(request: HTTPConnection) -> Cache:
    """The cache of the app that serves this request or websocket."""
    cache = getattr(request.state, "cache", None)
    if not isinstance(cache, Cache):
        raise ConfigError(
            "there is no cache in the lifespan's state: make the app with "
            'lifespan=cacheaside_fastapi.lifespan("redis://..."), and in tests enter the client: '
            "`with TestClient(app) as client`"
        )
    return cache


def asked_of(request: Request, route: str) -> Asked:
    query, headers = request.query_params.multi_items(), together(request.headers.items())
    url = request.url
    return Asked(
        request.method, route, request.path_params, query, headers, request, f"{url.scheme}://{url.netloc}"
    )


def pairs(headers: RawHeaders) -> Headers:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def raw(headers: Headers) -> RawHeaders:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def marked(response: Response, policy: ResponsePolicy, status: str) -> Response:
    """A response that was passed on, with its Cache-Status."""
    response.raw_headers.extend(raw(passed(policy, status)))
    return response
