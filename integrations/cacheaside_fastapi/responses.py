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
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from cacheaside import MISSING, Cache, ConfigError
from cacheaside.http import (
    Asked,
    Headers,
    NotStored,
    Own,
    ResponseOptions,
    ResponsePolicy,
    Stored,
    answer,
    passed,
    plan,
    responses,
)

F = TypeVar("F", bound=Callable[..., Any])

HIDDEN: Final = "cacheaside_request"
"""The parameter that an endpoint without a request gets; FastAPI shows it nowhere."""


def cache_response(**options: Unpack[ResponseOptions]) -> Callable[[F], F]:
    """Cache the response of an endpoint, in the cache of the app's lifespan; goes below the route decorator.

    Dependencies run at every request, so whoever may not see the response is stopped as ever; a hit spares
    the endpoint and the serialisation. Options: see ``cacheaside.http.ResponsePolicy``.

    Raises ConfigError where the decorator stands.
    """
    policy = ResponsePolicy.of(options)

    def decorate(endpoint: F) -> F:
        if inspect.isgeneratorfunction(endpoint) or inspect.isasyncgenfunction(endpoint):
            raise ConfigError(
                f"@cache_response on {endpoint.__qualname__}: it streams, and what streams is not stored"
            )
        signature, name, hidden = with_request(endpoint)

        @functools.wraps(endpoint)
        async def cached(*args: Any, **kwargs: Any) -> Response:
            request: Request = kwargs.pop(name) if hidden else kwargs[name]
            run = functools.partial(run_endpoint, endpoint, request, args, kwargs)
            return await respond(policy, request, route_of(request, endpoint), run)

        cached.__signature__ = signature  # type: ignore[attr-defined]
        del cached.__wrapped__  # FastAPI reads the signature of what is wrapped
        return cast(F, cached)

    return decorate


def with_request(endpoint: Callable[..., Any]) -> tuple[inspect.Signature, str, bool]:
    """The signature with a request in it, the name of that parameter, and whether it was added."""
    signature = inspect.signature(endpoint)
    hints = typing.get_type_hints(endpoint, include_extras=True)
    parameters = [
        p.replace(annotation=hints.get(p.name, p.annotation)) for p in signature.parameters.values()
    ]
    for parameter in parameters:
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Request):
            return signature.replace(parameters=parameters), parameter.name, False
    own = inspect.Parameter(HIDDEN, inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    at = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))
    parameters.insert(at, own)
    returns = hints.get("return", signature.return_annotation)
    return signature.replace(parameters=parameters, return_annotation=returns), HIDDEN, True


def route_of(request: Request, endpoint: Callable[..., Any]) -> str:
    """What names the endpoint in keys: its path template and its name, for a path may have several."""
    path = getattr(request.scope.get("route"), "path", request.scope["path"])
    return f"{path} {endpoint.__module__}.{endpoint.__qualname__}"


async def run_endpoint(
    endpoint: Callable[..., Any], request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Response:
    """Call the endpoint and make a response of its result, as FastAPI would have."""
    is_async = inspect.iscoroutinefunction(endpoint)
    if is_async:
        result = await endpoint(*args, **kwargs)
    else:
        result = await run_in_threadpool(endpoint, *args, **kwargs)
    if isinstance(result, Response):
        return result
    response = await serialised(request.scope.get("route"), result, is_async=is_async)
    for injected in kwargs.values():  # a parameter that the endpoint sets headers and status on
        if type(injected) is Response:
            response.raw_headers.extend(injected.raw_headers)
            status: int | None = injected.status_code
            if status is not None:  # pyright: ignore[reportUnnecessaryComparison]
                response.status_code = status
    return response


async def serialised(route: Any, result: Any, *, is_async: bool) -> Response:
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
    response: Response = (
        made(content) if route.status_code is None else made(content, status_code=route.status_code)
    )
    return response


async def respond(
    policy: ResponsePolicy, request: Request, route: str, run: Callable[[], Awaitable[Response]]
) -> Response:
    """Answer a request from the cache, or by running the endpoint."""
    cache = cache_of(request)
    asked = asked_of(request, route)
    way = plan(policy, asked, cache.world.tick())
    if not way.key:
        return marked(await run(), way.why)
    through, own, found = responses(cache, policy), Own(), None

    async def load() -> Stored:
        try:
            response = own.response = await run()
        except Exception as error:
            status = error.status_code if isinstance(error, HTTPException) else 500
            raise through.broke(own, error, status) from error
        body: bytes | None = getattr(response, "body", None)
        if hasattr(response, "body_iterator") or hasattr(response, "path"):  # a stream, a file
            body = None
        return through.keep(own, way.private, response.status_code, pairs(response), body)

    if asked.method == "HEAD":
        seen = await through.arespond.peek(way.key, way.tags, load)
        if seen is MISSING:
            return marked(await run(), "miss")
        found = seen
    else:
        ask = through.arespond.refresh if way.anew else through.arespond
        try:
            found = await ask(way.key, way.tags, load)
        except NotStored:
            pass
        found = through.resolve(own, way, found)
    if found is None:
        if own.error is not None:
            raise own.error
        return marked(own.response if own.ran else await run(), "request" if way.anew else "miss")
    told = answer(policy, asked, way, found, cache.world.clock(), made=own.kept)
    response = Response(told.body, told.status)
    response.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.headers]
    if own.response is not None:
        response.background = own.response.background
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
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Asked(
        request.method, route, request.path_params, request.query_params.multi_items(), headers, request
    )


def pairs(response: Response) -> Headers:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)


def marked(response: Response, why: str) -> Response:
    """A response that was passed on, with the word why."""
    name, value = passed(why)
    response.headers.append(name, value)
    return response
