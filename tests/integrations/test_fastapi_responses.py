"""Cached responses of FastAPI endpoints and of any ASGI app: what is spared, and what is never shared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import httpx2
import pytest
from cacheaside_fastapi import ResponseCacheMiddleware, cache_response, lifespan, rate_limit
from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    Response,
    Security,
    WebSocket,
)
from fastapi.responses import StreamingResponse
from fastapi.security import APIKeyHeader
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cacheaside import Cache, ConfigError
from cacheaside.http import ResponsePolicy
from cacheaside.testing import FakeClock
from cacheaside.toolkit import RateLimiter


class Post(BaseModel):
    id: int
    title: str = "Engines"
    secret: str = "s"


class Shown(BaseModel):
    id: int
    title: str


class Both(BaseModel):
    x_one: str = ""
    x_two: str = ""


class Site:
    """An app, its cache and clock, and the calls that reached its endpoints."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cache = Cache("embedded://", clock=self.clock)
        self.cache.driver._sleep = self.clock.tick
        self.app = FastAPI(lifespan=lifespan(self.cache))
        self.calls: list[Any] = []

    def get(self, path: str, **options: Any) -> Callable[[Any], Any]:
        """Put a cached endpoint under a path."""
        more = {k: options.pop(k) for k in ("response_model", "status_code", "dependencies") if k in options}

        def decorate(endpoint: Any) -> Any:
            self.app.get(path, **more)(cache_response(**{"ttl": 60, **options})(endpoint))
            return endpoint

        return decorate


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    with TestClient(site.app, raise_server_exceptions=False) as made:
        yield made


def status(response: httpx2.Response) -> str:
    return response.headers["cache-status"].removeprefix("cacheaside; ")


# ---------------------------------------------------------------------------- hits


def test_a_hit_spares_the_endpoint(site: Site, client: TestClient) -> None:
    """The same body, type and ETag; its age; and the model that FastAPI would have applied."""

    @site.get("/posts/{id}", response_model=Shown)
    async def read(id: int) -> Any:
        site.calls.append(id)
        return Post(id=id)

    first = client.get("/posts/1")
    site.clock.tick(5)
    second = client.get("/posts/1")
    assert first.json() == second.json() == {"id": 1, "title": "Engines"}
    assert site.calls == [1]
    assert status(first) == "fwd=miss; stored"
    assert status(second) == "hit; ttl=55"
    assert second.headers["age"] == "5"
    assert first.headers["etag"] == second.headers["etag"]
    assert second.headers["content-type"] == "application/json"
    assert client.get("/posts/2").json()["id"] == 2


def test_sync_endpoints_status_codes_and_raw_responses(site: Site, client: TestClient) -> None:
    @site.get("/sync", status_code=203, statuses=[203])
    def sync() -> dict[str, int]:
        site.calls.append("sync")
        return {"a": 1}

    @site.get("/raw")
    async def raw() -> Response:
        site.calls.append("raw")
        return PlainTextResponse("text", headers={"X-Own": "1"})

    @site.get("/injected")
    async def injected(response: Response) -> int:
        response.headers["X-Own"] = "2"
        return 1

    for _ in range(2):
        assert (client.get("/sync").status_code, client.get("/sync").json()) == (203, {"a": 1})
        assert (client.get("/raw").text, client.get("/raw").headers["x-own"]) == ("text", "1")
        assert client.get("/injected").headers["x-own"] == "2"
    assert site.calls == ["sync", "raw"]


def test_an_invalidation_means_the_same_for_a_response(site: Site, client: TestClient) -> None:
    titles = {1: "old"}

    @site.get("/posts/{id}", tags=lambda request: [f"post:{request.path_params['id']}"])
    async def read(id: int) -> str:
        return titles[id]

    assert client.get("/posts/1").json() == "old"
    titles[1] = "new"
    assert client.get("/posts/1").json() == "old"
    assert site.cache.invalidate(tags=["post:1"])
    assert client.get("/posts/1").json() == "new"


def test_dependencies_run_at_every_request(site: Site, client: TestClient) -> None:
    """A hit is not for whoever the dependency turns away."""

    def guard(x_key: Annotated[str, Header()]) -> None:
        site.calls.append("guard")
        if x_key != "right":
            raise HTTPException(401)

    @site.get("/guarded", dependencies=[Depends(guard)])
    async def read() -> int:
        site.calls.append("read")
        return 1

    assert client.get("/guarded", headers={"X-Key": "right"}).status_code == 200
    assert client.get("/guarded", headers={"X-Key": "wrong"}).status_code == 401
    assert client.get("/guarded", headers={"X-Key": "right"}).status_code == 200
    assert site.calls == ["guard", "read", "guard", "guard"]


def test_openapi_is_unharmed(site: Site) -> None:
    plain = FastAPI()

    async def read(id: int, lang: Annotated[str, Header()] = "en") -> Post:
        """Read a post."""
        return Post(id=id)

    site.get("/posts/{id}")(read)
    plain.get("/posts/{id}")(read)
    assert site.app.openapi()["paths"] == plain.openapi()["paths"]
    assert site.app.openapi()["components"] == plain.openapi()["components"]


def test_an_endpoint_may_have_the_request_itself(site: Site, client: TestClient) -> None:
    @site.get("/mine/{id}")
    async def read(request: Request, id: int) -> str:
        return request.url.path

    assert client.get("/mine/1").json() == client.get("/mine/1").json() == "/mine/1"


def test_background_tasks_run_when_the_endpoint_does(site: Site, client: TestClient) -> None:
    @site.get("/tasks")
    async def read(tasks: BackgroundTasks) -> int:
        tasks.add_task(site.calls.append, "task")
        return 1

    client.get("/tasks"), client.get("/tasks")
    assert site.calls == ["task"]


async def test_nobody_waits_for_background_tasks(site: Site) -> None:
    """The response is sent, and stored, before they are done."""
    go_on, sent = asyncio.Event(), []

    @site.get("/tasks")
    async def read(tasks: BackgroundTasks) -> int:
        tasks.add_task(go_on.wait)
        return 1

    async def ask() -> None:
        async def send(message: Any) -> None:
            sent.append(message["type"])

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/tasks", "query_string": b"", "headers": []}
        await WithState(site.app, site.cache)(scope, receive, send)

    first = asyncio.create_task(ask())
    for _ in range(100):
        await asyncio.sleep(0)
    await ask()
    assert sent == ["http.response.start", "http.response.body"] * 2
    assert not first.done()
    go_on.set()
    await first


# ---------------------------------------------------------------------------- dependencies


def test_what_a_dependency_sets_is_for_its_request_alone(site: Site, client: TestClient) -> None:
    """It is on every answer, 304 included, as on one that is not cached, and stored with none."""

    def count(response: Response) -> None:
        site.calls.append("dependency")
        response.headers["X-Count"] = str(site.calls.count("dependency"))
        response.headers["X-Both"] = "dependency"

    @site.get("/page", dependencies=[Depends(count)])
    async def read(response: Response) -> int:
        site.calls.append("read")
        assert "x-count" not in response.headers
        response.headers["X-Own"] = "1"
        response.headers["X-Both"] = "endpoint"
        return 1

    answers = [client.get("/page") for _ in range(3)]
    assert [answer.headers["x-count"] for answer in answers] == ["1", "2", "3"]
    assert [answer.headers["x-own"] for answer in answers] == ["1", "1", "1"]
    assert [answer.headers["x-both"] for answer in answers] == ["endpoint"] * 3
    assert site.calls.count("read") == 1
    known = client.get("/page", headers={"If-None-Match": answers[0].headers["etag"]})
    assert (known.status_code, known.headers["x-count"]) == (304, "4")


def test_limits_are_told_of_on_a_hit_too(site: Site, client: TestClient) -> None:
    """A hit is a hit of the limiter as well."""
    limiter = RateLimiter(site.cache, 3, 60, name="page")

    @site.get("/page", dependencies=[Depends(rate_limit(limiter))])
    async def read() -> int:
        return 1

    answers = [client.get("/page") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["ratelimit"] for answer in answers[:3]] == [
        f'"page";r={left};t=60' for left in (2, 1, 0)
    ]


def test_a_cookie_of_a_dependency_reaches_only_him_it_was_made_for(site: Site, client: TestClient) -> None:
    """What was made along with it, such as a form with its token, is not stored; nor may a proxy keep it."""

    def token(response: Response) -> int:
        site.calls.append(1)
        response.set_cookie("csrf", str(len(site.calls)))
        return len(site.calls)

    given = Depends(token)

    @site.get("/form", max_age=60)
    async def form(number: int = given) -> str:
        return f"token {number}"

    for number in (1, 2):
        client.cookies.clear()
        answer = client.get("/form")
        assert (answer.json(), answer.cookies["csrf"]) == (f"token {number}", str(number))
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("header", [("Vary", "X-Lang"), ("Cache-Control", "no-store")])
def test_what_a_dependency_says_about_caching_holds(
    site: Site, client: TestClient, header: tuple[str, str]
) -> None:
    """A response that depends on a header which is no part of the key is not stored."""

    def language(request: Request, response: Response) -> str:
        response.headers[header[0]] = header[1]
        return request.headers["x-lang"]

    chosen = Depends(language)

    @site.get("/page")
    async def read(words: str = chosen) -> str:
        return words

    for words in ("en", "de"):
        answer = client.get("/page", headers={"X-Lang": words})
        assert answer.json() == words
        assert header[1] in answer.headers[header[0]]


def test_cached_functions_and_methods_are_endpoints_below_it(site: Site, client: TestClient) -> None:
    """Two decorators: the value is cached, and the response made of it."""

    class Posts:
        @site.cache.cached(ns="posts", key="async:{id}", tags=["post:{id}"])
        async def later(self, id: int) -> Post:
            site.calls.append("later")
            return Post(id=id)

        @site.cache.cached(ns="posts", key="sync:{id}", tags=["post:{id}"])
        def now(self, id: int) -> Post:
            site.calls.append("now")
            return Post(id=id)

    posts = Posts()
    site.get("/later/{id}", tags=["responses"])(posts.later)
    site.get("/now/{id}", tags=["responses"])(posts.now)
    for path in ("/later/1", "/now/1"):
        for _ in range(2):
            assert client.get(path).json() == {"id": 1, "title": "Engines", "secret": "s"}
    site.cache.invalidate(tags=["responses"])
    assert status(client.get("/now/1")) == "fwd=miss; stored"
    assert site.calls == ["later", "now"], "the value was still there"
    assert client.get("/now/x").status_code == 422


def test_a_response_without_a_body_has_none(site: Site, client: TestClient) -> None:
    """As FastAPI sends it."""

    @site.get("/nothing", status_code=204, statuses=[204])
    async def nothing() -> None: ...

    for _ in range(2):
        answer = client.get("/nothing")
        assert (answer.status_code, answer.content) == (204, b"")


def test_two_mounts_of_one_app_do_not_answer_for_each_other() -> None:
    """The place is part of the key; so it is for the middleware, whose paths are those of the routes."""
    cache = Cache("embedded://")

    def tenant(name: str) -> FastAPI:
        app = FastAPI()

        @app.get("/page")
        @cache_response(ttl=60)
        async def page() -> str:
            return name

        @app.get("/plain")
        async def plain() -> str:
            return name

        app.add_middleware(ResponseCacheMiddleware, rules=[("/plain", {"ttl": 60})], cache=cache)
        return app

    app = FastAPI(lifespan=lifespan(cache))
    for name in ("ann", "bob"):
        app.mount(f"/{name}", tenant(name))
    with TestClient(app) as client:
        for path in ("page", "plain"):
            for name in ("ann", "bob", "ann"):
                answer = client.get(f"/{name}/{path}")
                assert answer.json() == name
            assert status(answer) == "hit; ttl=59"


# ---------------------------------------------------------------------------- validators


def test_who_has_it_is_told_so_after_routing_and_only_when_he_asks(site: Site, client: TestClient) -> None:
    @site.get("/page")
    async def read() -> int:
        return 1

    @site.app.post("/page")
    async def write() -> int:
        site.calls.append("write")
        return 2

    etag = client.get("/page").headers["etag"]
    asked = {"If-None-Match": etag}
    assert client.get("/page", headers=asked).status_code == 304
    assert client.get("/page", headers=asked).content == b""
    assert client.post("/page", headers=asked).status_code == 200
    assert site.calls == ["write"]
    assert client.get("/nowhere", headers={"If-None-Match": "*"}).status_code == 404


def test_head_is_answered_from_what_get_has_stored(site: Site, client: TestClient) -> None:
    async def read() -> int:
        site.calls.append("read")
        return 1

    site.app.api_route("/page", methods=["GET", "HEAD"])(cache_response(ttl=60)(read))
    assert status(client.head("/page")) == "fwd=miss"
    assert site.cache.stats()["l1"]["entries"] == 0, "a response without a body is nobody else's"
    client.get("/page")
    head = client.head("/page")
    assert (status(head), head.content, head.headers["content-length"]) == ("hit; ttl=60", b"", "1")
    assert len(site.calls) == 2


def test_what_the_client_says(site: Site, client: TestClient) -> None:
    @site.get("/page")
    async def read() -> int:
        site.calls.append(1)
        return len(site.calls)

    assert client.get("/page").json() == 1
    assert client.get("/page", headers={"Cache-Control": "no-store"}).json() == 2
    assert client.get("/page").json() == 1
    anew = client.get("/page", headers={"Cache-Control": "no-cache"})
    assert (anew.json(), status(anew)) == (3, "fwd=request; stored")
    assert client.get("/page").json() == 3


# ---------------------------------------------------------------------------- nobody gets another one's


@pytest.mark.parametrize("header", [{"Cookie": "session=ada"}, {"Authorization": "Bearer ada"}])
def test_without_an_identity_nobody_who_says_who_he_is_is_served(
    site: Site, client: TestClient, header: dict[str, str]
) -> None:
    @site.get("/me")
    async def me(request: Request) -> str:
        return request.headers.get("cookie", "") + request.headers.get("authorization", "")

    assert "ada" in client.get("/me", headers=header).json()
    assert client.get("/me").json() == "", "and what he was told was not stored"
    assert "ada" in client.get("/me", headers=header).json()
    assert status(client.get("/me", headers=header)) == "fwd=bypass"


def test_with_an_identity_each_has_his_own(site: Site, client: TestClient) -> None:
    @site.get("/me", identity=lambda request: request.headers.get("authorization"))
    async def me(request: Request) -> str:
        site.calls.append(1)
        return request.headers.get("authorization", "nobody")

    for user in ("ada", "bob", "ada", "bob"):
        response = client.get("/me", headers={"Authorization": user})
        assert response.json() == user
        assert response.headers["cache-control"].startswith("private")
    assert client.get("/me").json() == "nobody"
    assert len(site.calls) == 3


def test_a_response_that_sets_a_cookie_is_not_stored(site: Site, client: TestClient) -> None:
    @site.get("/page")
    async def read(response: Response) -> int:
        site.calls.append(1)
        response.set_cookie("session", str(len(site.calls)))
        return 1

    first, second = client.get("/page"), TestClient(site.app)
    assert first.cookies["session"] == "1"
    client.cookies.clear()
    assert client.get("/page").cookies["session"] == "2"
    assert status(client.get("/page", headers={"Cookie": ""})) in ("fwd=bypass", "fwd=miss")
    second.close()


async def together(app: Any, path: str, count: int, go_on: asyncio.Event) -> list[httpx2.Response]:
    """Ask at once, and let the endpoint go on when all are waiting."""
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        tasks = [asyncio.create_task(client.get(path)) for _ in range(count)]
        for _ in range(50):
            await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*tasks)


class WithState:
    """What the lifespan would have done for an app that is called without a server."""

    def __init__(self, app: Any, cache: Cache) -> None:
        self.app = app
        self.cache = cache

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope, "state": {"cache": self.cache}}, receive, send)


@pytest.mark.parametrize("kind", ["decorator", "middleware"])
async def test_a_cookie_reaches_only_him_it_was_made_for(kind: str) -> None:
    """Ten ask at once; each gets a session of his own, though they waited for one response."""
    site, go_on = Site(), asyncio.Event()

    async def read(request: Request) -> Response:
        site.calls.append(1)
        number = len(site.calls)
        await go_on.wait()
        response = PlainTextResponse("page")
        response.set_cookie("session", str(number))
        return response

    if kind == "decorator":
        site.get("/page")(read)
        app: Any = WithState(site.app, site.cache)
    else:
        inner = Starlette(routes=[Route("/page", read)])
        app = ResponseCacheMiddleware(inner, [("/page", {"ttl": 60})], cache=site.cache)
    answers = await together(app, "/page", 10, go_on)
    assert len({response.headers["set-cookie"] for response in answers}) == 10
    assert sorted(map(status, answers)) == ["fwd=miss", *["fwd=miss; collapsed=?0"] * 9]


@pytest.mark.parametrize("kind", ["decorator", "middleware"])
async def test_one_load_for_all_who_may_share_it(kind: str) -> None:
    site, go_on = Site(), asyncio.Event()

    async def read(request: Request) -> Response:
        site.calls.append(1)
        await go_on.wait()
        site.clock.tick(1)
        return PlainTextResponse("page")

    if kind == "decorator":
        site.get("/page")(read)
        app: Any = WithState(site.app, site.cache)
    else:
        inner = Starlette(routes=[Route("/page", read)])
        app = ResponseCacheMiddleware(inner, [("/page", {"ttl": 60})], cache=site.cache)
    answers = await together(app, "/page", 10, go_on)
    assert {response.text for response in answers} == {"page"}
    assert len(site.calls) == 1
    assert sorted(map(status, answers)) == [*["fwd=miss; collapsed"] * 9, "fwd=miss; stored"]


def test_headers_that_an_endpoint_takes_are_part_of_the_key(site: Site, client: TestClient) -> None:
    """As a parameter, a model, or by what is injected: what one client sends is told to no other."""

    def inner(x_inner: Annotated[str, Header()] = "") -> str:
        return x_inner

    def outer(found: str = Depends(inner), lang: str = Header("", alias="Accept-Language")) -> list[str]:
        return [found, lang]

    def read(both: Both = Header(), more: list[str] = Depends(outer), x_own: str = Header("")) -> Any:  # noqa: B008
        return [both.x_one, both.x_two, *more, x_own]

    site.get("/page")(read)
    for name in ("X-One", "X-Two", "X-Inner", "Accept-Language", "X-Own"):
        for value in ("evil", "good"):
            assert client.get("/page", headers={name: value}).json().count(value) == 1
    assert "evil" not in client.get("/page", headers={"X-Own": "good"}).text
    vary = client.get("/page").headers["vary"]
    assert vary == "accept-language, authorization, cookie, x-inner, x-one, x-own, x-two"


def test_who_has_another_api_key_gets_another_response(site: Site, client: TestClient) -> None:
    """A credential like any other, in a header that no proxy knows; with an identity that counts instead."""
    scheme = Security(APIKeyHeader(name="X-Key"))

    def me(key: str = scheme) -> str:
        site.calls.append(key)
        return key

    def team(key: str = scheme) -> str:
        site.calls.append(key)
        return key[0]

    site.get("/me")(me)
    site.get("/team", identity=lambda request: request.headers.get("x-key", "")[:1] or None)(team)
    for _ in range(2):
        for key in ("a1", "a2"):
            assert client.get("/me", headers={"X-Key": key}).json() == key
            assert client.get("/team", headers={"X-Key": key}).json() == "a"
    assert client.get("/me").status_code in (401, 403)
    assert site.calls == ["a1", "a1", "a2"]


def test_a_guard_of_the_route_is_no_part_of_the_response(site: Site, client: TestClient) -> None:
    """It lets in or not; what it reads is not in the key."""

    def guard(x_key: Annotated[str, Header()]) -> None: ...

    @site.get("/page", dependencies=[Depends(guard)])
    async def read() -> int:
        site.calls.append(1)
        return 1

    for key in ("a", "b"):
        assert client.get("/page", headers={"X-Key": key}).status_code == 200
    assert site.calls == [1]


def test_headers_that_are_read_by_hand_are_to_be_named(site: Site, client: TestClient) -> None:
    @site.get("/search", vary=["Accept-Language"])
    async def search(request: Request, q: str = "") -> Any:
        return [q, request.headers.get("accept-language")]

    for language in ("en", "de"):
        for q in ("a", "b"):
            answer = client.get(f"/search?q={q}", headers={"Accept-Language": language})
            assert answer.json() == [q, language]


# ---------------------------------------------------------------------------- errors, streams, sizes


def test_errors_are_not_stored_and_an_old_response_may_be_better(site: Site, client: TestClient) -> None:
    @site.get("/page", stale_if_error=600)
    async def read() -> int:
        site.calls.append(1)
        if len(site.calls) in (2, 3):
            raise HTTPException(503) if len(site.calls) == 2 else ZeroDivisionError
        return len(site.calls)

    assert client.get("/page").json() == 1
    site.clock.tick(61)
    old = client.get("/page")
    assert (old.status_code, old.json()) == (200, 1)
    assert status(old) == "fwd=stale; fwd-status=503; ttl=-1"
    site.cache.clear()
    assert client.get("/page").status_code == 500
    assert client.get("/page").json() == 4


async def test_an_old_response_is_sent_while_one_request_renews_it() -> None:
    """stale-while-revalidate: nobody waits but who renews it; later ones get the new one."""
    site, go_on = Site(), asyncio.Event()
    go_on.set()

    @site.get("/page", stale_while_revalidate=30, max_age=10)
    async def read() -> int:
        site.calls.append(1)
        number = len(site.calls)
        await go_on.wait()
        return number

    transport = httpx2.ASGITransport(WithState(site.app, site.cache))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        first = await client.get("/page")
        assert first.headers["cache-control"] == "public, max-age=10, stale-while-revalidate=30"
        site.clock.tick(65)
        go_on.clear()
        renewing = asyncio.create_task(client.get("/page"))
        while len(site.calls) < 2:
            await asyncio.sleep(0)
        old = await client.get("/page")
        assert (old.json(), status(old), old.headers["age"]) == (1, "hit; ttl=-5", "65")
        go_on.set()
        assert (await renewing).json() == 2
        assert (await client.get("/page")).json() == 2
    assert len(site.calls) == 2


def test_an_error_of_the_client_is_his_own(site: Site, client: TestClient) -> None:
    @site.get("/posts/{id}")
    async def read(id: int) -> int:
        site.calls.append(id)
        raise HTTPException(404, headers={"X-Why": "gone"})

    for _ in range(2):
        response = client.get("/posts/1")
        assert (response.status_code, response.headers["x-why"]) == (404, "gone")
    assert site.calls == [1, 1]


@pytest.mark.parametrize("kind", ["decorator", "middleware"])
def test_streams_and_large_bodies_pass_through(kind: str) -> None:
    site = Site()

    async def stream(request: Request) -> Response:
        return StreamingResponse(iter([b"a", b"b"]))

    async def large(request: Request) -> Response:
        return PlainTextResponse("x" * 101)

    options: Any = {"ttl": 60, "max_body": 100}
    if kind == "decorator":
        site.get("/stream", **options)(stream)
        site.get("/large", **options)(large)
        app: Any = site.app
    else:
        app = Starlette(routes=[Route("/stream", stream), Route("/large", large)])
        app = ResponseCacheMiddleware(app, [("/stream", options), ("/large", options)], cache=site.cache)
    with TestClient(app) as client:
        for path, body in (("/stream", "ab"), ("/large", "x" * 101)) * 2:
            assert client.get(path).text == body
            assert "hit" not in status(client.get(path))
    assert site.cache.stats()["l1"]["entries"] == 0


# ---------------------------------------------------------------------------- middleware


def page(site: Site) -> Any:
    async def read(request: Request) -> Response:
        site.calls.append(request.path_params["id"])
        return PlainTextResponse(f"page {request.path_params['id']}")

    async def write(request: Request) -> Response:
        await site.cache.ainvalidate(tags=["pages"])
        return PlainTextResponse("written", headers={"Cache-Group-Invalidation": '"others", "pages"'})

    return Starlette(routes=[Route("/p/{id:int}", read), Route("/p/{id:int}", write, methods=["POST"])])


def test_any_app_by_path() -> None:
    site = Site()
    rules: Any = [("/p/{id:int}", {"ttl": 60, "tags": ["pages"], "groups": True})]
    app = ResponseCacheMiddleware(page(site), rules, cache=site.cache, groups=True)
    with TestClient(app) as client:
        first, second = client.get("/p/1"), client.get("/p/1")
        assert first.text == second.text == "page 1"
        assert status(second) == "hit; ttl=60"
        assert second.headers["cache-groups"] == '"pages"'
        assert client.get("/p/2").text == "page 2"
        assert client.get("/p/1", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
        site.cache.set("n:k", 1, tags=["others"])
        written = client.post("/p/1")
        assert '"pages"' in written.headers["cache-group-invalidation"]
        assert not site.cache.exists("n:k"), "what the endpoint's header names is invalidated as well"
        assert client.get("/p/1").text == "page 1"
    assert site.calls == [1, 2, 1]


def test_the_middleware_lets_websockets_and_the_lifespan_pass() -> None:
    """What is no HTTP is none of its business."""
    site = Site()

    @site.app.websocket("/p/1")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(type(websocket.state.cache).__name__)
        await websocket.close()

    app = ResponseCacheMiddleware(site.app, [("/p/{id:int}", {"ttl": 60})])
    with TestClient(app) as client, client.websocket_connect("/p/1") as websocket:
        assert websocket.receive_text() == "Cache"


def test_an_error_in_the_app_is_the_apps() -> None:
    site = Site()

    async def fails(request: Request) -> Response:
        raise ZeroDivisionError

    app = ResponseCacheMiddleware(
        Starlette(routes=[Route("/x", fails)]), [("/x", {"ttl": 1})], cache=site.cache
    )
    with TestClient(app) as client, pytest.raises(ZeroDivisionError):
        client.get("/x")


async def test_nobody_waits_for_the_end_of_a_stream() -> None:
    """It may have none: others get streams of their own at once, however long the first one takes."""
    site, go_on = Site(), asyncio.Event()
    begun: list[str] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b""})

    app = ResponseCacheMiddleware(endless, [("/events", {"ttl": 60})], cache=site.cache)

    async def listen() -> None:
        async def send(message: Any) -> None:
            begun.extend(
                value.decode() for name, value in message.get("headers", ()) if name == b"cache-status"
            )

        scope = {"type": "http", "method": "GET", "path": "/events", "query_string": b"", "headers": []}
        await app(scope, None, send)  # type: ignore[arg-type]

    tasks = []
    for count in range(1, 4):
        tasks.append(asyncio.create_task(listen()))
        for _ in range(50):
            await asyncio.sleep(0)
        site.clock.tick(3600)
        assert len(begun) == count
    go_on.set()
    await asyncio.gather(*tasks)
    assert begun == ["cacheaside; fwd=miss", *["cacheaside; fwd=bypass"] * 2]


def test_an_app_that_breaks_off_is_heard_to_do_so() -> None:
    """A server that hears nothing would take half a response for a whole one."""
    site = Site()

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    app = ResponseCacheMiddleware(broken, [("/x", {"ttl": 1})], cache=site.cache)
    with pytest.raises(ZeroDivisionError):
        TestClient(app).get("/x")


async def test_what_is_sent_by_its_path_passes_through() -> None:
    """An extension of ASGI: the server sends a file, and no body is ever seen."""
    site, sent = Site(), []

    async def file(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/etc/hostname"})

    async def send(message: Any) -> None:
        sent.append(message["type"])

    app = ResponseCacheMiddleware(file, [("/file", {"ttl": 60})], cache=site.cache)
    scope = {"type": "http", "method": "GET", "path": "/file", "query_string": b"", "headers": []}
    for _ in range(2):
        await app(scope, None, send)  # type: ignore[arg-type]
    assert sent == ["http.response.start", "http.response.pathsend"] * 2


def test_what_a_template_tells_the_tests_client_is_no_part_of_the_response() -> None:
    """Starlette sends it first, to a client that asks for it."""
    site = Site()

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.debug", "info": {"template": "t", "context": {}}})
        await PlainTextResponse("page")(scope, receive, send)

    app = ResponseCacheMiddleware(page, [("/page", {"ttl": 60})], cache=site.cache)
    client = TestClient(app)
    assert [client.get("/page").text for _ in range(2)] == ["page", "page"]
    assert "hit" in status(client.get("/page"))


# ---------------------------------------------------------------------------- bad input


def test_wrong_use_is_refused_where_it_stands() -> None:
    with pytest.raises(ConfigError, match="ttl"):
        cache_response()
    with pytest.raises(ConfigError, match="tag is no option of a cached response; it has ttl, ns, tags, "):
        cache_response(ttl=1, tag=["posts"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match=r"no templates, so 'post:\{id\}' would never be invalidated"):
        cache_response(ttl=1, tags=["posts", "post:{id}"])
    assert ResponsePolicy.of({"ttl": 1, "tags": (name for name in ["a", "b"])}).tags == ("a", "b")
    with pytest.raises(ConfigError, match="streams"):

        @cache_response(ttl=1)
        async def stream() -> Any:
            yield b""

    with pytest.raises(ConfigError, match="ttl"):
        ResponseCacheMiddleware(Starlette(), [("/", {})])


def test_an_app_without_a_cache_says_so() -> None:
    app = FastAPI()

    @app.get("/")
    @cache_response(ttl=1)
    async def read() -> int:
        return 1

    with TestClient(app) as client, pytest.raises(ConfigError, match="lifespan"):
        client.get("/")
