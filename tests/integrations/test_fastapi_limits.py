"""Rate limits and sessions in FastAPI, and what an attacker would try with them.

Annotations are values here, for they name what each app has made for itself.
"""

from typing import Annotated, Any

import http_sf
import httpx2 as httpx
import pytest
from cacheaside_fastapi import ClientSession, SessionCookie, lifespan, rate_limit
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cacheaside import Cache, ConfigError
from cacheaside.testing import FakeClock
from cacheaside.toolkit import RateLimiter, SessionStore
from cacheaside.web import limit_headers

COOKIE = "__Host-session"


def limited_app(cache: Cache, limiter: RateLimiter, **options: Any) -> TestClient:
    app = FastAPI(lifespan=lifespan(cache))

    @app.post("/login", dependencies=[Depends(rate_limit(limiter, **options))])
    async def login() -> str:
        return "in"

    return TestClient(app)


def test_a_refused_request_is_a_429_that_says_when_to_come_back() -> None:
    """Whoever waits as long as Retry-After says is let in."""
    clock = FakeClock()
    cache = Cache("embedded://", clock=clock)
    with limited_app(cache, RateLimiter(cache, 2, 60, name="login")) as client:
        first, second, third = (client.post("/login") for _ in range(3))
        assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
        assert first.headers["ratelimit-policy"] == '"login";q=2;w=60'
        assert first.headers["ratelimit"] == '"login";r=1;t=60'
        assert third.headers["ratelimit"] == '"login";r=0;t=60'
        assert third.headers["ratelimit-policy"] == '"login";q=2;w=60'
        assert third.headers["retry-after"] == "60"
        assert "retry-after" not in first.headers
        clock.tick(int(third.headers["retry-after"]))
        assert client.post("/login").status_code == 200


def test_a_key_tells_apart_who_is_limited() -> None:
    """It may be async, and look at the body."""
    cache = Cache("embedded://")

    async def name(request: Request) -> str:
        return str((await request.json())["name"])

    with limited_app(cache, RateLimiter(cache, 1, 60), key=name) as client:
        codes = [client.post("/login", json={"name": who}).status_code for who in ("ann", "ann", "bob")]
    assert codes == [200, 429, 200]


def fields(header: str) -> Any:
    """A list of items with their parameters, by a parser that is not ours."""
    return http_sf.parse(header.encode(), tltype="list")


def test_several_limits_are_several_policies() -> None:
    """What is left is told of the one that was decisive."""
    limiter = RateLimiter(Cache("embedded://"), limits=[(10, 1), (100, 60)], name="api")
    headers = limit_headers(limiter, limiter.hit("ann", 4))
    policies = [("api-1s", {"q": 10, "w": 1}), ("api-60s", {"q": 100, "w": 60})]
    assert fields(headers["RateLimit-Policy"]) == policies
    assert fields(headers["RateLimit"]) == [("api-1s", {"r": 6, "t": 1})]


@pytest.mark.parametrize("algorithm", ["sliding-log", "sliding-counter", "gcra"])
def test_who_is_refused_is_told_of_one_time_only(algorithm: Any) -> None:
    """A Retry-After before the end of the effective window would contradict it (section 6 of the draft)."""
    clock = FakeClock()
    limiter = RateLimiter(Cache("embedded://", clock=clock), 2, 60, algorithm, name="login")
    for _ in range(2):
        limiter.hit("ann")
        clock.tick(10)
    refused = limit_headers(limiter, limiter.hit("ann"))
    ((name, left),) = fields(refused["RateLimit"])
    assert (name, left["r"]) == ("login", 0)
    assert left["t"] == int(refused["Retry-After"]) > 0
    clock.tick(left["t"] - 1)
    assert not limiter.hit("ann")
    clock.tick(1 + 1e-5)  # times are told in whole seconds, counted in microseconds
    assert limiter.hit("ann")


@pytest.mark.parametrize("name", ['a"b', "Füße", "x" * 200, "a;b,c"])
@pytest.mark.parametrize("window", [0.5, 1, 86400 * 365])
def test_limits_are_told_in_structured_fields_whatever_their_name(name: str, window: float) -> None:
    """The name is a string, the window whole seconds and never 0."""
    limiter = RateLimiter(Cache("embedded://"), 5, window, name=name)
    headers = limit_headers(limiter, limiter.hit("ann"))
    ((policy, told),) = fields(headers["RateLimit-Policy"])
    ((same, left),) = fields(headers["RateLimit"])
    assert isinstance(policy, str)
    assert policy == same
    assert told == {"q": 5, "w": max(1, window)}
    assert left == {"r": 4, "t": max(1, window)}


def test_an_unknown_decision_tells_of_nothing_left() -> None:
    """Redis is away: a refusal still says when to try again."""
    cache = Cache("redis://127.0.0.1:1", timeout=0.2)
    limiter = RateLimiter(cache, 5, 60, name="login", on_unavailable="deny")
    with limited_app(cache, limiter) as client:
        refused = client.post("/login")
    assert refused.status_code == 503, "the client has done nothing wrong"
    assert refused.headers["retry-after"] == "1"
    assert "ratelimit" not in refused.headers


def session_app(cache: Cache, **store: Any) -> tuple[TestClient, SessionStore[dict[str, Any]]]:
    sessions = SessionStore(cache, **store)
    cookie = SessionCookie(sessions)
    Maybe = Annotated[ClientSession[dict[str, Any]], Depends(cookie)]
    User = Annotated[ClientSession[dict[str, Any]], Depends(cookie.required)]
    app = FastAPI(lifespan=lifespan(cache))

    @app.post("/login/{name}")
    async def login(name: str, session: Maybe) -> None:
        await session.login(name, {"role": "user"})

    @app.post("/enter/{name}")
    async def enter(name: str, session: Maybe) -> Response:
        away = RedirectResponse("/me", 303)
        await session.login(name, {}, response=away)
        return away

    @app.get("/me")
    async def me(session: User) -> dict[str, Any]:
        return {"user": session.user_id, **session.data}

    @app.get("/hello")
    async def hello(session: Maybe) -> str:
        return f"hello {session.user_id}" if session else "hello"

    @app.post("/promote")
    async def promote(session: User) -> None:
        await session.update({"role": "admin"})
        await session.rotate()

    @app.post("/logout")
    async def logout(session: Maybe, everywhere: bool = False) -> None:
        await session.logout(everywhere=everywhere)

    return TestClient(app, base_url="https://testserver"), sessions


def token_of(response: httpx.Response) -> str:
    """The token that a response sets, whose cookie has every attribute that it must have."""
    name, _, rest = response.headers["set-cookie"].partition("=")
    token, *attributes = rest.split("; ")
    assert name == COOKIE
    assert {word.lower() for word in attributes} == {"httponly", "path=/", "samesite=lax", "secure"}
    assert response.headers["cache-control"] == "no-store"
    return token


def test_a_login_sets_a_host_cookie_and_a_logout_takes_it_back() -> None:
    """Secure, HttpOnly, SameSite, path /, no domain; before and after, 401."""
    client, _ = session_app(Cache("embedded://"))
    with client:
        assert client.get("/me").status_code == 401
        assert client.get("/hello").json() == "hello"
        token = token_of(client.post("/login/ann"))
        assert client.get("/me").json() == {"user": "ann", "role": "user"}
        assert client.get("/hello").json() == "hello ann"
        gone = client.post("/logout")
        assert "Max-Age=0" in gone.headers["set-cookie"]
        assert client.get("/me", headers={"cookie": f"{COOKIE}={token}"}).status_code == 401


def test_a_response_of_ones_own_carries_the_cookie_when_it_is_named() -> None:
    """A redirect after a login."""
    client, _ = session_app(Cache("embedded://"))
    with client:
        token_of(client.post("/enter/ann", follow_redirects=False))
        assert client.get("/me").json() == {"user": "ann"}


def test_logout_everywhere_ends_the_other_devices() -> None:
    """And nobody else's."""
    client, sessions = session_app(Cache("embedded://"))
    with client:
        other, bob = sessions.create("ann", {}), sessions.create("bob", {})
        client.post("/login/ann")
        client.post("/logout?everywhere=true")
        assert sessions.get(other.token) is None
        assert sessions.get(bob.token) is not None


def test_session_fixation_does_not_work() -> None:
    """A token planted before a login, known to a thief, is neither taken over nor good afterwards."""
    client, _ = session_app(Cache("embedded://"))
    with client:
        planted = token_of(client.post("/login/thief"))
        client.cookies.clear()
        mine = {"cookie": f"{COOKIE}={planted}"}
        given = token_of(client.post("/login/ann", headers=mine))
        client.cookies.clear()
        assert given != planted
        assert client.get("/me", headers=mine).status_code == 401
        made_up = "A" * 75
        assert token_of(client.post("/login/ann", headers={"cookie": f"{COOKIE}={made_up}"})) != made_up


def test_new_rights_come_with_a_new_token() -> None:
    """Who had learnt the old one does not become an admin, not even in a moment of grace."""
    client, _ = session_app(Cache("embedded://"), grace=60)
    with client:
        old = token_of(client.post("/login/ann"))
        new = token_of(client.post("/promote"))
        client.cookies.clear()
        assert client.get("/me", headers={"cookie": f"{COOKIE}={old}"}).status_code == 401
        assert client.get("/me", headers={"cookie": f"{COOKIE}={new}"}).json()["role"] == "admin"


@pytest.mark.parametrize(
    "value", ["x" * 60_000, "%00" * 25, "a=b", '"quoted"', "../../auth:session:1", ";;;;", "é" * 75]
)
def test_cookies_that_are_no_tokens_are_strangers(value: str) -> None:
    """However long or odd; Redis is not asked about them."""
    client, sessions = session_app(Cache("embedded://"))
    with client:
        answer = client.get("/me", headers={"cookie": f"{COOKIE}={value}".encode()})
        assert answer.status_code == 401
        assert sessions.stats()["bad_data"] == 0
    away, _ = session_app(Cache("redis://127.0.0.1:1", timeout=0.2), on_unavailable="raise")
    with away:
        answer = away.get("/me", headers={"cookie": f"{COOKIE}={value}".encode()})
    assert answer.status_code == 401, "a Redis that is asked and does not answer is a 503"


def test_many_cookies_of_one_name_open_nothing_that_none_of_them_opens() -> None:
    """A thousand wrong ones, then none that is right."""
    client, _ = session_app(Cache("embedded://"))
    with client:
        many = "; ".join(f"{COOKIE}={n:075d}" for n in range(1000))
        assert client.get("/me", headers={"cookie": many}).status_code == 401


def test_a_redis_that_is_away_logs_nobody_in_or_out() -> None:
    """503 for what may not have happened; a look is 401, or 503 for a store that raises."""
    client, _ = session_app(Cache("redis://127.0.0.1:1", timeout=0.2))
    cookie = {"cookie": f"{COOKIE}={'A' * 75}"}
    with client:
        assert client.post("/login/ann").status_code == 503
        assert client.get("/me", headers=cookie).status_code == 401
    client, _ = session_app(Cache("redis://127.0.0.1:1", timeout=0.2), on_unavailable="raise")
    with client:
        refused = client.get("/me", headers=cookie)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_openapi_shows_nothing_of_the_dependencies() -> None:
    """Neither a parameter nor a body."""
    client, _ = session_app(Cache("embedded://"))
    with client:
        paths = client.get("/openapi.json").json()["paths"]
    assert "parameters" not in paths["/me"]["get"]
    assert "requestBody" not in paths["/promote"]["post"]


@pytest.mark.parametrize("options", [{"name": "session"}, {"name": "__Host-a b"}, {"same_site": "none"}])
def test_a_cookie_that_would_be_open_is_refused(options: dict[str, Any]) -> None:
    """The message names what is wrong."""
    with pytest.raises(ConfigError, match=r"name must|same_site must"):
        SessionCookie(SessionStore(Cache("embedded://")), **options)


def test_wrong_arguments_are_refused_where_they_stand() -> None:
    """Each by its name."""
    limiter = RateLimiter(Cache("embedded://"), 5, 60)
    with pytest.raises(ConfigError, match="limiter must"):
        rate_limit("login")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="key must"):
        rate_limit(limiter, key="ip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cost"):
        rate_limit(limiter, cost=6)
    with pytest.raises(ConfigError, match="store must"):
        SessionCookie("auth")  # type: ignore[arg-type]
