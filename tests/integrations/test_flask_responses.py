"""Cached responses of Flask views: what is spared, and what is never shared."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest
from cacheaside_flask import CacheAside, cache_response, invalidated, response_hit, response_missed
from flask import Flask, abort, make_response, request, session
from flask.testing import FlaskClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server
from werkzeug.test import Client

from cacheaside import Cache, ConfigError
from cacheaside.testing import FakeClock


class Site:
    """An app, its cache and clock, and the calls that reached its views."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.app = Flask("site")
        self.app.secret_key = "test"
        self.app.config.update(CACHEASIDE_URL="embedded://", CACHEASIDE_CLOCK=self.clock)
        self.cache: Cache = CacheAside().init_app(self.app)
        self.cache.driver._sleep = self.clock.tick
        self.calls: list[Any] = []

    def get(self, path: str, methods: Any = ("GET",), **options: Any) -> Any:
        def decorate(view: Any) -> Any:
            cached = cache_response(**{"ttl": 60, **options})(view)
            self.app.add_url_rule(path, view.__name__, cached, methods=methods)
            return view

        return decorate


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def client(site: Site) -> FlaskClient:
    return site.app.test_client(use_cookies=False)


def status(response: Any) -> str:
    return str(response.headers["Cache-Status"].removeprefix("cacheaside; "))


def test_a_hit_spares_the_view(site: Site, client: FlaskClient) -> None:
    @site.get("/posts/<int:id>", tags=lambda request: [f"post:{request.view_args['id']}"])
    def post(id: int) -> Any:
        site.calls.append(id)
        return {"id": id}, {"X-Own": "1"}

    first = client.get("/posts/1")
    site.clock.tick(5)
    second = client.get("/posts/1")
    assert first.json == second.json == {"id": 1}
    assert (second.headers["X-Own"], second.content_type, second.headers["Age"]) == (
        "1",
        "application/json",
        "5",
    )
    assert (status(first), status(second)) == ("fwd=miss; stored", "hit; ttl=55")
    assert client.get("/posts/1", headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    assert client.get("/posts/2").json == {"id": 2}
    site.cache.invalidate(tags=["post:1"])
    client.get("/posts/1")
    assert site.calls == [1, 2, 1]


def test_async_views_and_head(site: Site, client: FlaskClient) -> None:
    @site.get("/page")
    async def page() -> str:
        site.calls.append(1)
        return "page"

    assert client.get("/page").text == client.get("/page").text == "page"
    assert (client.head("/page").text, client.head("/page").headers["Content-Length"]) == ("", "4")
    assert site.calls == [1]


def test_what_runs_before_a_view_runs_before_a_hit(site: Site, client: FlaskClient) -> None:
    @site.app.before_request
    def guard() -> None:
        if request.args.get("key") == "wrong" or request.headers.get("X-Key") == "wrong":
            abort(401)

    @site.get("/page")
    def page() -> str:
        return "page"

    assert client.get("/page").status_code == 200
    assert client.get("/page", headers={"X-Key": "wrong"}).status_code == 401


@pytest.mark.parametrize("use", ["read", "write"])
def test_a_view_that_uses_the_session_is_for_one_user(site: Site, client: FlaskClient, use: str) -> None:
    """A page with a token from the session must not reach the next visitor."""

    @site.get("/login")
    def login() -> str:
        site.calls.append(1)
        if use == "write":
            session["token"] = str(len(site.calls))
        return str(session.get("token", len(site.calls)))

    assert [client.get("/login").text for _ in range(2)] == ["1", "2"]


def test_with_an_identity_each_has_his_own(site: Site, client: FlaskClient) -> None:
    @site.get("/me", identity=lambda request: request.headers.get("Authorization"))
    def me() -> str:
        site.calls.append(1)
        return request.headers.get("Authorization", "nobody")

    for user in ("ada", "bob", "ada"):
        response = client.get("/me", headers={"Authorization": user})
        assert response.text == user
        assert response.headers["Cache-Control"].startswith("private")
    assert len(site.calls) == 2


@pytest.mark.parametrize("header", [{"Cookie": "session=ada"}, {"Authorization": "ada"}])
def test_without_one_nobody_who_says_who_he_is_is_served(
    site: Site, client: FlaskClient, header: Any
) -> None:
    @site.get("/me")
    def me() -> str:
        return request.headers.get("Cookie", "") + request.headers.get("Authorization", "")

    assert "ada" in client.get("/me", headers=header).text
    assert client.get("/me").text == ""
    assert "ada" in client.get("/me", headers=header).text


def test_a_cookie_reaches_only_him_it_was_made_for(site: Site) -> None:
    """Eight threads ask at once, and each gets a cookie of his own."""
    go_on, lock = threading.Event(), threading.Lock()

    @site.get("/page")
    def page() -> Any:
        with lock:
            site.calls.append(1)
            number = len(site.calls)
        assert go_on.wait(10)
        response = make_response("page")
        response.set_cookie("own", str(number))
        return response

    def ask(_: int) -> str:
        return str(site.app.test_client(use_cookies=False).get("/page").headers["Set-Cookie"])

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, i) for i in range(8)]
        go_on.set()
        assert len({one.result(20) for one in asked}) == 8


def test_errors_streams_and_old_responses(site: Site, client: FlaskClient) -> None:
    @site.get("/gone")
    def gone() -> str:
        site.calls.append("gone")
        abort(404)

    @site.get("/stream")
    def stream() -> Any:
        return (part for part in ("a", "b"))

    @site.get("/shaky", stale_if_error=600)
    def shaky() -> str:
        site.calls.append("shaky")
        if site.calls.count("shaky") > 1:
            abort(503)
        return "old"

    assert [client.get("/gone").status_code for _ in range(2)] == [404, 404]
    assert [client.get("/stream").text for _ in range(2)] == ["ab", "ab"]
    assert client.get("/shaky").text == "old"
    site.clock.tick(61)
    assert client.get("/shaky").text == "old"
    site.cache.clear()
    assert client.get("/shaky").status_code == 503
    assert site.calls == ["gone", "gone", "shaky", "shaky", "shaky"]


def test_a_post_reaches_the_view(site: Site, client: FlaskClient) -> None:
    @site.get("/page", methods=("GET", "POST"))
    def page() -> str:
        site.calls.append(request.method)
        return "page"

    etag = client.get("/page").headers["ETag"]
    assert client.post("/page", headers={"If-None-Match": etag}).status_code == 200
    assert site.calls == ["GET", "POST"]


def test_signals_tell_of_hits_misses_and_invalidations(site: Site, client: FlaskClient) -> None:
    """Sent by the app, in the request; another app's are not heard."""
    told: list[tuple[Any, ...]] = []

    def note_hit(app: Flask, status: str) -> None:
        told.append(("hit", app, request.path, status))

    def note_miss(app: Flask, status: str) -> None:
        told.append(("miss", app, request.path, status))

    def note_dropped(app: Flask, **what: Any) -> None:
        told.append(("dropped", app, what))

    @site.get("/page", tags=["pages"], methods=("GET", "POST"))
    def page() -> str:
        return "page"

    other = Site()
    other.get("/page")(page)
    with (
        response_hit.connected_to(note_hit, site.app),
        response_missed.connected_to(note_miss, site.app),
        invalidated.connected_to(note_dropped, site.app),
    ):
        client.get("/page"), client.get("/page"), client.post("/page")
        site.cache.invalidate(tags=["pages"], keys=["posts:1"])
        other.app.test_client().get("/page"), other.cache.invalidate(tags=["pages"])
    assert told == [
        ("miss", site.app, "/page", "cacheaside; fwd=miss; stored"),
        ("hit", site.app, "/page", "cacheaside; hit; ttl=60"),
        ("miss", site.app, "/page", "cacheaside; fwd=method"),
        ("dropped", site.app, {"tags": ("pages",), "keys": ("posts:1",), "acknowledged": True}),
    ]


def test_a_signal_of_what_was_not_acknowledged_says_so() -> None:
    app, told = Flask("away"), []
    app.config.update(
        CACHEASIDE_URL="redis://127.0.0.1:1", CACHEASIDE_TIMEOUT=0.1, CACHEASIDE_INVALIDATION_TIMEOUT=0.1
    )
    cache = CacheAside().init_app(app)

    def note(_: Flask, acknowledged: bool, **what: Any) -> None:
        told.append(acknowledged)

    with invalidated.connected_to(note, app):
        assert not cache.invalidate(tags=["pages"]).acknowledged
    assert told == [False]
    cache.close()


@pytest.mark.parametrize("tells", [True, False])
def test_groups_are_told_and_obeyed(tells: bool) -> None:
    """RFC 9875: what a request has invalidated goes out, what a view names is dropped; not after an error."""
    app = Flask("site")
    app.config["CACHEASIDE_URL"] = "embedded://"
    cache = CacheAside(groups=tells).init_app(app)

    @app.get("/page")
    @cache_response(ttl=60, tags=["pages"], groups=True)
    def page() -> str:
        return "page"

    @app.post("/<int:code>")
    def write(code: int) -> Any:
        cache.invalidate(tags=["pages"])
        return "written", code, {"Cache-Group-Invalidation": '"others"'}

    client = app.test_client()
    assert client.get("/page").headers["Cache-Groups"] == '"pages"'
    cache.set("n:k", 1, tags=["others"])
    assert client.post("/500").headers.getlist("Cache-Group-Invalidation") == ['"others"']
    assert cache.exists("n:k")
    told = client.post("/200").headers.getlist("Cache-Group-Invalidation")
    assert told == (['"others"', '"pages", "others"'] if tells else ['"others"'])
    assert not cache.exists("n:k")
    assert status(client.get("/page")) == "fwd=miss; stored"
    assert "Cache-Group-Invalidation" not in client.get("/page").headers


def test_two_apps_side_by_side_do_not_answer_for_each_other(one_redis_url: str) -> None:
    """One process, one Redis, one prefix, one function: where an app is mounted tells them apart."""

    def tenant(name: str) -> Flask:
        app = Flask(name)
        app.config.update(CACHEASIDE_URL=one_redis_url, CACHEASIDE_PREFIX="side")
        CacheAside(app)

        @app.get("/page")
        @cache_response(ttl=60)
        def page() -> str:
            return name

        return app

    apps = {f"/{name}": tenant(name) for name in ("ann", "bob")}
    client = Client(DispatcherMiddleware(Flask("root"), apps))
    for name in ("ann", "bob", "ann"):
        answer = client.get(f"/{name}/page")
        assert answer.text == name
    assert status(answer).startswith("hit")
    for app in apps.values():
        app.extensions["cacheaside"].close()


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_servers_of_threads_and_of_forked_processes(kind: str, one_redis_url: str) -> None:
    """The app has used its cache before the server forks; answers are whole, invalidations hold."""
    app = Flask("site")
    app.config.update(CACHEASIDE_URL=one_redis_url, CACHEASIDE_PREFIX=kind, CACHEASIDE_L1_WINDOW=None)
    cache = CacheAside().init_app(app)

    @app.get("/posts/<int:id>")
    @cache_response(ttl=60, tags=lambda request: [f"post:{request.view_args['id']}"])
    def post(id: int) -> Any:
        return {"id": id, "version": cache.get("versions:all", 0), "process": os.getpid()}

    @app.post("/posts/<int:id>")
    def edit(id: int) -> Any:
        cache.set("versions:all", cache.get("versions:all", 0) + 1)
        cache.invalidate(tags=[f"post:{id}"])
        return {}

    many = {"threaded": True} if kind == "threads" else {"processes": 4}
    cache.ping()
    server = make_server("127.0.0.1", 0, app, **many)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()

    def ask(method: str, id: int) -> Any:
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        connection.request(method, f"/posts/{id}")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: ask("GET", n % 4), range(40)))
        assert [answer["id"] for answer in answers] == [n % 4 for n in range(40)]
        for version in range(1, 4):
            ask("POST", 1)
            assert ask("GET", 1)["version"] == version
        assert ask("GET", 2)["version"] == 0
        assert any(answer["process"] != os.getpid() for answer in answers) is (kind == "processes")
    finally:
        server.shutdown()
        serving.join(10)
        server.server_close()
        cache.close()


def test_several_apps_have_caches_of_their_own() -> None:
    def page() -> str:
        calls.append(1)
        return "page"

    calls: list[int] = []
    shared = cache_response(ttl=60)(page)
    for _ in range(2):
        site = Site()
        site.app.add_url_rule("/page", view_func=shared)
        client = site.app.test_client()
        assert client.get("/page").text == client.get("/page").text == "page"
    assert len(calls) == 2


def test_an_app_without_a_cache_says_so() -> None:
    app = Flask("bare")
    app.testing = True
    app.add_url_rule("/", view_func=cache_response(ttl=1)(lambda: "x"))
    with pytest.raises(ConfigError, match="init_app"):
        app.test_client().get("/")
