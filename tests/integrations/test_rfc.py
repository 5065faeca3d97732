"""What RFC 9110, 9111, 9211 and 9875 say, of each way to cache a response: decorator, middleware, Flask.

Fields are read by a parser that is not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import http_sf
import pytest
from cacheaside_fastapi import ResponseCacheMiddleware, lifespan
from cacheaside_fastapi import cache_response as cache_endpoint
from cacheaside_flask import CacheAside
from cacheaside_flask import cache_response as cache_view
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from cacheaside import Cache
from cacheaside.testing import FakeClock

METHODS = ("GET", "HEAD", "POST")
MORNING, NOON, EVENING = (f"Fri, 02 Jan 2026 {hour:02}:00:00 GMT" for hour in (8, 12, 20))


class Answer:
    """What a client got; header names in lower case."""

    def __init__(self, status: int, headers: dict[str, str], body: str) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def said(self) -> dict[str, Any]:
        """The parameters of the only member of Cache-Status."""
        ((name, words),) = fields(self.headers["cache-status"])
        assert str(name) == "cacheaside"
        return {word: value if isinstance(value, int) else str(value) for word, value in words.items()}


class Site:
    """One endpoint, /page, cached for a minute; how it answers may be changed while it is served."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cache = Cache("embedded://", clock=self.clock)
        self.cache.driver._sleep = self.clock.tick
        self.calls = 0
        self.status = 200
        self.headers: dict[str, str] = {}
        self.before: Callable[[], object] = lambda: None
        self.ask: Callable[..., Answer] = lambda *_, **__: pytest.fail("nothing is served")

    def answer(self) -> tuple[str, int, dict[str, str]]:
        self.calls += 1
        number = self.calls
        self.before()
        return str(number), self.status, self.headers

    def get(self, **headers: Any) -> Answer:
        return self.ask("GET", **headers)


def fields(header: str) -> Any:
    return http_sf.parse(header.encode(), tltype="list")


def by_decorator(site: Site, options: Any) -> Any:
    app = FastAPI(lifespan=lifespan(site.cache))

    @app.api_route("/page", methods=list(METHODS))
    @cache_endpoint(**options)
    def page() -> Response:
        return Response(*site.answer(), "text/plain")

    return app


def by_middleware(site: Site, options: Any) -> Any:
    def page(_: Request) -> Response:
        return Response(*site.answer(), "text/plain")

    app = Starlette(routes=[Route("/page", page, methods=list(METHODS))])
    return ResponseCacheMiddleware(app, [("/page", options)], cache=site.cache)


def by_flask(site: Site, options: Any) -> Flask:
    app = Flask("site")
    app.config["CACHEASIDE_URL"] = "embedded://"
    CacheAside(app)
    app.extensions["cacheaside"] = site.cache

    @app.route("/page", methods=METHODS)
    @cache_view(**options)
    def page() -> Any:
        return site.answer()

    return app


Open = Callable[..., Site]


@pytest.fixture(params=[by_decorator, by_middleware, by_flask])
def site(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Serve the endpoint with these options."""
    clients: list[TestClient] = []

    def opened(**options: Any) -> Site:
        made = Site()
        app = request.param(made, {"ttl": 60, "tags": ["pages"], **options})
        client: Any = app.test_client(use_cookies=False) if isinstance(app, Flask) else TestClient(app)
        if isinstance(client, TestClient):
            clients.append(client.__enter__())

        def ask(method: str, query: str = "", content: bytes = b"", **headers: str) -> Answer:
            named: Any = {name.replace("_", "-"): value for name, value in headers.items()}
            if clients:  # which would send text as ASCII
                named = {name: value.encode("latin-1") for name, value in named.items()}
                got: Any = client.request(method, f"/page{query}", headers=named, content=content)
            else:
                got = client.open(f"/page{query}", method=method, headers=named, data=content)
            told: dict[str, str] = {}
            for name, value in got.headers.items():
                told[name.lower()] = f"{told[name.lower()]}, {value}" if name.lower() in told else value
            return Answer(got.status_code, told, got.text)

        made.ask = ask
        return made

    yield opened
    for client in clients:
        client.__exit__()


# ---------------------------------------------------------------------------- Cache-Status (RFC 9211)


def test_a_miss_was_stored_and_a_hit_says_how_long_it_is_fresh(site: Open) -> None:
    one = site()
    assert one.get().said == {"fwd": "miss", "stored": True}
    one.clock.tick(10)
    assert one.get().said == {"hit": True, "ttl": 50}


def test_who_renews_an_old_response_went_forward_because_it_was_stale(site: Open) -> None:
    one = site(stale_while_revalidate=30)
    one.get()
    one.clock.tick(65)
    renewed = one.get()
    assert (renewed.body, renewed.said) == ("2", {"fwd": "stale", "stored": True})
    assert one.get().said == {"hit": True, "ttl": 60}


def test_an_old_response_instead_of_an_error_says_what_the_error_was(site: Open) -> None:
    one = site(stale_if_error=600)
    one.get()
    one.clock.tick(65)
    one.status = 503
    old = one.get()
    assert (old.status, old.body, old.headers["age"]) == (200, "1", "65")
    assert old.said == {"fwd": "stale", "fwd-status": 503, "ttl": -5}


def test_a_new_response_that_is_not_stored_was_asked_for_because_the_old_one_was_stale(site: Open) -> None:
    one = site(stale_if_error=600)
    one.get()
    one.clock.tick(65)
    one.headers = {"Cache-Control": "no-store"}
    new = one.get()
    assert (new.body, new.said) == ("2", {"fwd": "stale"})


def test_what_came_too_late_is_not_said_to_be_stored(site: Open) -> None:
    """It was invalidated while it was made: whoever asked gets it, and the next one makes another."""
    one = site()
    one.before = lambda: one.cache.delete_matching("http:*")
    late = one.get()
    assert (late.status, late.body, late.said) == (200, "1", {"fwd": "miss"})
    one.before = lambda: None
    assert one.get().said == {"fwd": "miss", "stored": True}


def test_a_renewal_that_came_too_late_is_not_said_to_be_stored(site: Open) -> None:
    one = site(stale_while_revalidate=30)
    one.get()
    one.clock.tick(65)
    one.before = lambda: one.cache.delete_matching("http:*")
    assert one.get().said == {"fwd": "stale"}


def test_what_is_not_looked_for_says_why(site: Open) -> None:
    one = site()
    one.get()
    told = one.ask("POST").headers  # to the middleware it is no business of the cache
    assert told.get("cache-status") in ("cacheaside; fwd=method", None)
    assert "vary" not in told
    assert one.get(Cookie="a=b").said == {"fwd": "bypass"}
    assert one.get(Cache_Control="no-store").said == {"fwd": "bypass"}


def test_a_status_of_the_endpoints_own_stays_in_front(site: Open) -> None:
    """The first member is the cache next to the origin; it is not told of again by a hit."""
    one = site()
    one.headers = {"Cache-Status": '"upstream"; hit'}
    passed = one.get(Cookie="a=b")
    assert [str(name) for name, _ in fields(passed.headers["cache-status"])] == ["upstream", "cacheaside"]
    one.get()
    assert one.get().said["hit"]


# ---------------------------------------------------------------------------- requests (RFC 9111, 5.2.1)


def test_no_cache_is_a_request_that_a_fresh_response_did_not_do_for(site: Open) -> None:
    """Where there is none it is a miss as any other."""
    one = site()
    assert one.get(Cache_Control="no-cache").said == {"fwd": "miss", "stored": True}
    assert one.get(Cache_Control="no-cache").said == {"fwd": "request", "stored": True}
    assert one.get().body == "2"


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ("max-age=20", "1"),
        ("max-age=9", "2"),
        ("max-age=0", "2"),
        ("min-fresh=50", "1"),
        ("min-fresh=51", "2"),
        ("max-age=20, min-fresh=51", "2"),
        ("max-age=²", "1"),
        ("max-age=-1", "1"),
        ("max-age", "1"),
        ("max-stale=100", "1"),
    ],
)
def test_a_client_may_ask_for_younger_or_longer_lived_responses(site: Open, words: str, body: str) -> None:
    """The stored one is 10 seconds old, and fresh for 50; what is no number is nothing."""
    one = site()
    one.get()
    one.clock.tick(10)
    got = one.get(Cache_Control=words)
    assert got.body == body
    assert got.said == ({"hit": True, "ttl": 50} if body == "1" else {"fwd": "request", "stored": True})


def test_only_if_cached_runs_nothing(site: Open) -> None:
    """504 where nothing is stored, or nothing that the request allows."""
    one = site()
    refused = one.get(Cache_Control="only-if-cached")
    assert (refused.status, refused.body, "cache-status" in refused.headers) == (504, "", False)
    one.get()
    assert one.get(Cache_Control="only-if-cached").said == {"hit": True, "ttl": 60}
    one.clock.tick(10)
    assert one.get(Cache_Control="only-if-cached, max-age=5").status == 504
    assert one.get(Cache_Control="only-if-cached, no-cache").status == 504
    assert one.calls == 1


def test_head_is_answered_from_what_get_has_stored_if_the_request_allows_it(site: Open) -> None:
    one = site()
    assert one.ask("HEAD").said == {"fwd": "miss"}
    one.get()
    head = one.ask("HEAD")
    assert (head.said, head.body, head.headers["content-length"]) == ({"hit": True, "ttl": 60}, "", "1")
    assert one.ask("HEAD", Cache_Control="no-cache").said == {"fwd": "request"}
    assert one.get().body == "2", "a HEAD stores nothing"


# ---------------------------------------------------------------------------- responses (RFC 9111, 3, 5.2.2)


@pytest.mark.parametrize(
    "headers",
    [
        {"Vary": "*"},
        {"Vary": "Accept, *"},
        {"Expires": "0"},
        {"Expires": MORNING},
        {"Cache-Control": "max-age=soon"},
        {"Cache-Control": "public, max-age=0"},
    ],
)
def test_what_is_for_nobody_else_or_over_already_is_not_stored(site: Open, headers: dict[str, str]) -> None:
    one = site()
    one.headers = headers
    assert [one.get().body for _ in range(2)] == ["1", "2"]


def test_an_expiry_date_shortens_the_life(site: Open) -> None:
    """``max-age`` counts for more than it."""
    one = site()
    one.headers = {"Expires": "Thu, 01 Jan 2099 00:00:00 GMT"}
    one.get()
    assert one.get().said == {"hit": True, "ttl": 60}
    two = site()
    two.headers = {"Expires": "0", "Cache-Control": "max-age=30"}
    two.get()
    assert two.get().said == {"hit": True, "ttl": 30}


def test_what_must_be_fresh_is_not_kept_to_be_sent_stale(site: Open) -> None:
    one = site(stale_if_error=600)
    one.headers = {"Cache-Control": "max-age=30, must-revalidate"}
    assert [one.get().body for _ in range(2)] == ["1", "2"]
    two = site()
    two.headers = {"Cache-Control": "max-age=30, must-revalidate"}
    assert [two.get().body for _ in range(2)] == ["1", "1"]


def test_part_of_a_response_is_stored_for_nobody(site: Open) -> None:
    """An endpoint may serve ranges; what is stored is sent whole, which RFC 9110 allows."""
    one = site()
    one.status, one.headers = 206, {"Content-Range": "bytes 0-0/1"}
    assert one.get(Range="bytes=0-0").status == 206
    one.status, one.headers = 200, {}
    whole = one.get()
    assert (whole.status, whole.body, whole.said) == (200, "2", {"fwd": "miss", "stored": True})
    again = one.get(Range="bytes=0-0")
    assert (again.status, again.body, again.said["hit"]) == (200, "2", True)


# ---------------------------------------------------------------------------- conditions (RFC 9110, 13)


def test_any_etag_is_the_one_that_is_there(site: Open) -> None:
    """``If-None-Match: *``, before and after it is stored; it is weak, and compared so."""
    one = site()
    first = one.get(If_None_Match="*")
    assert (first.status, first.body, first.said) == (304, "", {"fwd": "miss", "stored": True})
    assert first.headers["etag"].startswith('W/"')
    assert one.get(If_None_Match="*").status == 304
    assert one.get(If_None_Match=first.headers["etag"].removeprefix("W/")).status == 304
    assert one.ask("HEAD", If_None_Match="*").status == 304
    assert one.ask("POST", If_None_Match="*").status == 200
    assert one.get(If_None_Match='"other"').status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_Modified_Since": NOON}, 304),
        ({"If_Modified_Since": EVENING}, 304),
        ({"If_Modified_Since": MORNING}, 200),
        ({"If_Modified_Since": "yesterday"}, 200),
        ({"If_Modified_Since": EVENING, "If_None_Match": '"other"'}, 200),
        ({"If_Modified_Since": MORNING, "If_None_Match": "*"}, 304),
    ],
)
def test_a_date_does_where_there_is_no_etag_to_compare(site: Open, headers: Any, status: int) -> None:
    one = site()
    one.headers = {"Last-Modified": NOON}
    one.get()
    assert one.get(**headers).status == status


def test_without_a_date_of_its_own_a_response_is_no_older_than_another(site: Open) -> None:
    one = site()
    one.get()
    assert one.get(If_Modified_Since=EVENING).status == 200


# ---------------------------------------------------------------------------- the key (RFC 9111, 2)


@pytest.mark.parametrize("who", ["Cookie", "Authorization"])
def test_whoever_says_who_he_is_gets_nothing_stored_and_leaves_nothing(site: Open, who: str) -> None:
    one = site()
    assert [one.get(**{who: name}).body for name in ("ada", "bob", "ada")] == ["1", "2", "3"]
    assert [one.get().body, one.get().body] == ["4", "4"]
    assert one.get(**{who: "ada"}).body == "5"


def test_users_who_are_told_apart_have_responses_of_their_own(site: Open) -> None:
    """And strangers one of theirs; a proxy may keep none but that, and HEAD tells nobody of another's."""
    one = site(identity=lambda request: request.headers.get("X-User"), max_age=60)
    assert [one.get(X_User=name).body for name in ("ada", "bob", "ada", "bob")] == ["1", "2", "1", "2"]
    assert one.get(Cookie="a=b").body == one.get().body == "3"
    assert one.get(X_User="ada").headers["cache-control"] == "private, max-age=60"
    assert one.get().headers["cache-control"] == "public, max-age=60"
    assert one.ask("HEAD", X_User="eve").said == {"fwd": "miss"}
    etag = one.get(X_User="ada").headers["etag"]
    assert one.get(X_User="bob", If_None_Match=etag).status == 200
    assert one.get(X_User="ada", If_None_Match=etag).status == 304


def test_another_host_has_responses_of_its_own(site: Open) -> None:
    """Links in a page come from what the client calls the host, and tenants may be told apart by it."""
    one = site()
    hosts = ("evil.example", "shop.example", "shop.example:8080", "Shop.Example", "evil.example")
    assert [one.get(Host=host).body for host in hosts] == ["1", "2", "3", "2", "1"]


def test_the_order_of_a_query_matters_only_within_a_name(site: Open) -> None:
    one = site()
    asked = ("?a=1&b=2", "?b=2&a=1", "?a=1&a=2", "?a=2&a=1", "?a=1", "?a", "?a=", "")
    assert [one.ask("GET", asking).body for asking in asked] == ["1", "1", "2", "3", "4", "5", "5", "6"]


def test_what_a_request_has_in_its_body_is_told_to_nobody_else(site: Open) -> None:
    """A GET may have one, which is no part of the key."""
    one = site()
    assert one.get(content=b"q=evil").said == {"fwd": "bypass"}
    assert one.get().said == {"fwd": "miss", "stored": True}
    assert one.get(Content_Length="0").said["hit"]


def test_a_request_that_is_safe_invalidates_no_group(site: Open) -> None:
    """Whatever the response says (RFC 9875, 3)."""
    one = site()
    one.cache.set("n:k", 1, tags=["others"])
    one.headers = {"Cache-Group-Invalidation": '"others"'}
    one.get(), one.get(), one.get(Cookie="a=b"), one.ask("HEAD")
    assert one.cache.exists("n:k")


# ---------------------------------------------------------------------------- other caches


def test_other_caches_learn_that_it_depends_on_who_asks(site: Open) -> None:
    """Also from what was passed on, for a user, and from a 304."""
    one = site(vary=["Accept"])
    for got in (one.get(), one.get(), one.get(Cookie="a=b"), one.get(If_None_Match="*")):
        assert set(got.headers["vary"].lower().split(", ")) >= {"accept", "authorization", "cookie"}


def test_what_an_endpoint_says_in_two_headers_is_said_again_as_a_whole() -> None:
    """One of the two alone could make it public."""
    site = Site()

    def page(_: Request) -> Response:
        response = Response("page")
        response.headers.append("Cache-Control", "private")
        response.headers.append("Cache-Control", "max-age=30")
        return response

    app = Starlette(routes=[Route("/", page)])
    rules: Any = [("/", {"ttl": 60, "identity": lambda asked: asked.headers.get("authorization")})]
    with TestClient(ResponseCacheMiddleware(app, rules, cache=site.cache)) as client:
        for _ in range(2):
            got = client.get("/", headers={"Authorization": "ada"})
            assert got.headers["cache-control"] == "private, max-age=30"
    assert "hit" in got.headers["cache-status"]


@pytest.mark.parametrize("name", ["pages", 'a"quoted"\\one', "feed:7", "a,b;c=1"])
def test_groups_are_a_list_of_strings(site: Open, name: str) -> None:
    """RFC 9875; names that such a string cannot hold are left out."""
    one = site(groups=True, tags=[name, "Füße"])
    assert fields(one.get().headers["cache-groups"]) == [(name, {})]
