"""FastAPI and Starlette: the cache lives as long as the app; decorated functions stay what FastAPI reads."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from cacheaside_fastapi import CacheDep, lifespan
from fastapi import Depends, FastAPI, Query, Request, WebSocket
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import cacheaside
from cacheaside import Cache, ConfigError, default
from cacheaside.testing import Server


class Post(BaseModel):
    id: int
    title: str = "Engines"


def cached_app(cache: Cache) -> tuple[FastAPI, list[Any]]:
    """An app whose endpoints and dependencies are cached, and the calls that reached them."""
    calls: list[Any] = []
    app = FastAPI(lifespan=lifespan(cache))

    @app.get("/async/{post_id}")
    @cache.cached(ns="posts", key="async:{post_id}")
    async def read_async(post_id: int, lang: Annotated[str, Query(max_length=2)] = "en") -> Post:
        """Read a post."""
        calls.append(("async", post_id))
        return Post(id=post_id)

    @app.get("/sync/{post_id}")
    @cache.cached(ns="posts", key="sync:{post_id}")
    def read_sync(post_id: int) -> Post:
        calls.append(("sync", post_id))
        return Post(id=post_id)

    class Posts:
        @cache.cached(ns="posts", key="post:{post_id}", tags=["post:{post_id}"])
        async def get(self, post_id: int) -> Post:
            """Find a post."""
            calls.append(("get", post_id))
            return Post(id=post_id)

        @cache.cached(ns="posts", key="title:{post_id}", tags=["post:{post_id}"])
        def title(self, post_id: int) -> str:
            calls.append(("title", post_id))
            return f"title {post_id}"

        @cache.invalidates(tags=["post:{post_id}"])
        async def edit(self, post_id: int) -> None:
            calls.append(("edit", post_id))

    posts = Posts()
    app.get("/method/{post_id}")(posts.get)
    app.put("/edited/{post_id}")(posts.edit)

    # Called, for the annotations of a function inside a function are looked up among the module's names.
    post, title = Depends(posts.get), Depends(posts.title)

    @app.get("/injected/{post_id}")
    async def injected(found: Post = post, words: str = title) -> list[Any]:
        return [found, words]

    return app, calls


@pytest.mark.parametrize("path", ["/async/7", "/sync/7", "/method/7"])
def test_a_cached_endpoint_answers_twice_and_runs_once(path: str) -> None:
    app, calls = cached_app(Cache("embedded://"))
    with TestClient(app) as client:
        answers = [client.get(path) for _ in range(2)]
    assert [a.json() for a in answers] == [{"id": 7, "title": "Engines"}] * 2
    assert len(calls) == 1


def test_cached_methods_are_dependencies_and_invalidations_reach_them() -> None:
    app, calls = cached_app(Cache("embedded://"))
    with TestClient(app) as client:
        for _ in range(2):
            assert client.get("/injected/7").json() == [{"id": 7, "title": "Engines"}, "title 7"]
        assert sorted(calls) == [("get", 7), ("title", 7)]
        assert client.put("/edited/7").status_code == 200
        client.get("/injected/7")
    assert sorted(calls) == [("edit", 7), ("get", 7), ("get", 7), ("title", 7), ("title", 7)]


@pytest.mark.parametrize("path", ["/async/x", "/async/1?lang=eng", "/injected/x"])
def test_parameters_of_cached_functions_are_validated(path: str) -> None:
    app, calls = cached_app(Cache("embedded://"))
    with TestClient(app) as client:
        assert client.get(path).status_code == 422
    assert calls == []


def test_openapi_is_that_of_the_undecorated_functions() -> None:
    plain = FastAPI()

    @plain.get("/async/{post_id}")
    async def read_async(post_id: int, lang: Annotated[str, Query(max_length=2)] = "en") -> Post:
        """Read a post."""
        raise NotImplementedError

    @plain.get("/sync/{post_id}")
    def read_sync(post_id: int) -> Post:
        raise NotImplementedError

    @plain.get("/method/{post_id}")
    async def get(post_id: int) -> Post:
        """Find a post."""
        raise NotImplementedError

    mine, theirs = cached_app(Cache("embedded://"))[0].openapi(), plain.openapi()
    assert {path: mine["paths"][path] for path in theirs["paths"]} == theirs["paths"]
    assert mine["components"] == theirs["components"]


async def take(cache: CacheDep) -> dict[str, Any]:
    await cache.aset("notes:a", 1)
    return {"value": await cache.aget("notes:a"), "prefix": cache.prefix}


def test_a_url_makes_a_cache_for_each_run_of_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHEASIDE_URL", raising=False)
    made: list[Cache] = []
    app = FastAPI(lifespan=lifespan(prefix="mini"))
    app.get("/")(take)

    @app.get("/state")
    def state(request: Request) -> None:
        made.append(request.state.cache)

    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").json() == {"value": 1, "prefix": "mini"}
            client.get("/state")
    assert made[0] is not made[1]


def test_a_ready_cache_is_closed_with_the_app_and_opens_again() -> None:
    class Closes(Cache):
        closed = 0

        async def aclose(self) -> None:
            await super().aclose()
            self.closed += 1

    cache = Closes("embedded://")
    app = FastAPI(lifespan=lifespan(cache))
    app.get("/")(take)
    for closed in (0, 1):
        with TestClient(app) as client:
            assert cache.closed == closed
            assert client.get("/").json()["value"] == 1
    assert cache.closed == 2


def test_no_connection_is_left_behind(one_server: Server, one_redis_url: str) -> None:
    def connected() -> int:
        with one_server.client() as client:
            return sum(c["name"] == "the-app" for c in client.client_list())

    app = FastAPI(lifespan=lifespan(f"{one_redis_url}?client_name=the-app"))
    app.get("/")(take)
    with TestClient(app) as client:
        assert client.get("/").json()["value"] == 1
        assert connected() > 0
    assert connected() == 0


def test_a_lifespan_of_ones_own_enters_it_and_adds_to_its_state() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def mine(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with lifespan("embedded://")(app) as state:
            order.append(f"begins with {type(state['cache']).__name__}")
            yield {**state, "name": "mine"}
            order.append("ends")

    app = FastAPI(lifespan=mine)

    @app.get("/")
    def read(request: Request, cache: CacheDep) -> str:
        order.append(f"serves with {type(cache).__name__}")
        return str(request.state.name)

    with TestClient(app) as client:
        assert client.get("/").json() == "mine"
    assert order == ["begins with Cache", "serves with Cache", "ends"]


def test_websockets_have_it_too() -> None:
    app = FastAPI(lifespan=lifespan("embedded://"))

    @app.websocket("/ws")
    async def talk(websocket: WebSocket, cache: CacheDep) -> None:
        await websocket.accept()
        await websocket.send_text(cache.prefix)
        await websocket.close()

    with TestClient(app) as client, client.websocket_connect("/ws") as websocket:
        assert websocket.receive_text() == "cacheaside"


def test_starlette_alone() -> None:
    def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.cache.prefix)

    app = Starlette(routes=[Route("/", read)], lifespan=lifespan("embedded://", prefix="mini"))
    with TestClient(app) as client:
        assert client.get("/").text == "mini"


def test_the_default_cache_is_replaced_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Cache("embedded://")
    monkeypatch.setattr(default, "_cache", other)
    mine = Cache("embedded://")
    with TestClient(FastAPI(lifespan=lifespan(mine))):
        assert cacheaside.default_cache() is other
    with TestClient(FastAPI(lifespan=lifespan(mine, default=True))):
        assert cacheaside.default_cache() is mine


def test_an_app_without_the_lifespan_is_told_what_to_do() -> None:
    app = FastAPI()
    app.get("/")(take)
    with TestClient(app) as client, pytest.raises(ConfigError, match=r"lifespan=cacheaside_fastapi.lifespan"):
        client.get("/")


def test_settings_beside_a_ready_cache_are_refused() -> None:
    with pytest.raises(TypeError, match="takes no settings: prefix"):
        lifespan(Cache("embedded://"), prefix="mini")


def test_without_fastapi_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "cacheaside_fastapi")
    with pytest.raises(ImportError, match=r"pip install 'cacheaside\[fastapi\]'"):
        importlib.import_module("cacheaside_fastapi")
