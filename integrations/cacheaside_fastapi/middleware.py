"""Cached responses for any ASGI app, by path: before routing, so a hit runs nothing of the app.

No dependency runs on a hit, an authentication neither: list only paths whose responses are for everybody, or
tell users apart by ``identity``. Where that is not enough, ``cache_response`` on the endpoint is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from starlette.requests import Request
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cacheaside import MISSING, Cache
from cacheaside.answers import UNSATISFIED, Answer, forwarded, groups, invalidated, passed
from cacheaside.http import Plan, ResponseOptions, ResponsePolicy, Stored, plan
from cacheaside.responses import NotStored, Own, Responses, responses
from cacheaside.transactions import recording
from cacheaside_fastapi.responses import asked_of, cache_of, raw

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

Rule = tuple[str, ResponseOptions]


class PathTemplate:
    """A path as routes write it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._pattern, _, self._convertors = compile_path(text)

    def match(self, path: str) -> dict[str, Any] | None:
        """The parameters of a path that fits, else None."""
        found = self._pattern.match(path)
        if found is None:
            return None
        return {name: self._convertors[name].convert(text) for name, text in found.groupdict().items()}


class ResponseCacheMiddleware:
    """Pure ASGI middleware.

    Args:
        rules: path templates, such as ``"/posts/{id:int}"``, with the options of ``cache_response``; the
            first that matches counts.
        cache: None is the cache of the app's lifespan.
        groups: whether answers to requests that change something tell clients the tags that were
            invalidated, in ``Cache-Group-Invalidation``. Such a header from an endpoint is always obeyed.

    Raises ConfigError for a wrong option.
    """

    def __init__(
        self, app: ASGIApp, rules: Iterable[Rule] = (), *, cache: Cache | None = None, groups: bool = False
    ) -> None:
        self.app = app
        self.rules = [(PathTemplate(path), ResponsePolicy.of(options)) for path, options in rules]
        self.cache = cache
        self.groups = groups

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] not in SAFE:
            await self.changing(scope, receive, send)
            return
        for path, policy in self.rules:
            params = path.match(within(scope))
            if params is not None:
                route = f"{scope.get('root_path', '')}{path.text}"
                await self.asked(policy, route, params, scope, receive, send)
                return
        await self.app(scope, receive, send)

    # -- requests that ask

    async def asked(
        self,
        policy: ResponsePolicy,
        route: str,
        params: dict[str, Any],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        request = Request({**scope, "path_params": params}, receive)
        cache = self.cache or cache_of(request)
        asked = asked_of(request, route)
        way = plan(policy, asked, cache.world.tick())
        if not way.key:
            await self.app(scope, receive, marking(send, policy, forwarded(way.why)))
            return
        through = responses(cache, policy)
        own, found = through.own(), None
        catch = Catch(through, own, way, send)

        async def load() -> Stored:
            own.begins()
            try:
                await self.app(scope, receive, catch)
            except Exception as error:
                raise through.broke(own, error, 500) from error
            return catch.kept()

        if way.looks:
            seen = await through.arespond.peek(way.key, way.tags, load)
            found = through.usable(way, seen)
            if found is None and way.only:
                await answered(UNSATISFIED, send)
                return
            if found is None and way.head:
                status = forwarded("miss" if seen is MISSING else "request")
                await self.app(scope, receive, marking(send, policy, status))
                return
        if found is None:
            ask = through.arespond.refresh if way.anew else through.arespond
            try:
                found = await ask(way.key, way.tags, load)
            except NotStored:
                pass
            finally:
                if catch.streaming:
                    through.pass_by(way.key)
            if catch.streaming:
                if own.error is not None:
                    raise own.error
                return
            found = through.resolve(own, way, found)
        if found is not None:
            await answered(through.answer(own, way, asked, found), send)
            return
        if own.error is not None:
            raise own.error
        out = marking(send, policy, own.passed(way))
        if not own.ran:
            await self.app(scope, receive, out)
            return
        for message in own.response:
            await out(message)

    # -- requests that change

    async def changing(self, scope: Scope, receive: Receive, send: Send) -> None:
        noted: list[str] = []
        token = recording.set(noted)

        async def out(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                message = await self.told(scope, message, noted)
            await send(message)

        try:
            await self.app(scope, receive, out)
        finally:
            recording.reset(token)

    async def told(self, scope: Scope, message: Message, noted: list[str]) -> Message:
        headers = list(message["headers"])
        for name, value in headers:
            if name.lower() == b"cache-group-invalidation":
                tags = tuple(invalidated(value.decode("latin-1")))
                if tags:
                    await (self.cache or cache_of(Request(scope))).ainvalidate(tags=tags)
        told = groups(dict.fromkeys(noted)) if self.groups else ""
        if told:
            headers.append((b"cache-group-invalidation", told.encode("latin-1")))
        return {**message, "headers": headers}


class Catch:
    """Takes what an app sends, until it is whole; what comes in pieces or is too large goes on at once."""

    def __init__(self, through: Responses, own: Own, way: Plan, send: Send) -> None:
        self._through = through
        self._own = own
        self._way = way
        self._send = send
        self._messages: list[Message] = []
        self.streaming = False

    async def __call__(self, message: Message) -> None:
        if self.streaming or message["type"] == "http.response.debug":  # for a test's client alone
            await self._send(message)
            return
        self._messages.append(message)
        if not self._fits(message):
            self.streaming = True
            # For as long as it takes: nobody waits for the end of a stream, which may have none.
            self._through.pass_by(self._way.key, math.inf)
            self._send = marking(self._send, self._through.policy, self._own.passed(self._way))
            for one in self._messages:
                await self._send(one)
        elif message["type"] == "http.response.body":
            self._own.response = self._messages

    def _fits(self, message: Message) -> bool:
        """Whether it is a head, or the whole body; files, say, may come as a path."""
        if message["type"] != "http.response.body":
            return bool(message["type"] == "http.response.start")
        body = message.get("body", b"")
        return not message.get("more_body") and len(body) <= self._through.policy.max_body

    def kept(self) -> Stored:
        start, *rest = self._messages
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        body = None if self.streaming else rest[-1].get("body", b"")
        return self._through.keep(self._own, self._way.private, start["status"], headers, body)


def within(scope: Scope) -> str:
    """The path below where the app is mounted, which is what its routes know."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if path.startswith(f"{root}/") else path


async def answered(told: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": told.status, "headers": raw(told.headers)})
    await send({"type": "http.response.body", "body": told.body})


def marking(send: Send, policy: ResponsePolicy, status: str) -> Send:
    """``send`` that adds the Cache-Status of a response that was passed on."""
    words = raw(passed(policy, status))

    async def out(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *words]}
        await send(message)

    return out
