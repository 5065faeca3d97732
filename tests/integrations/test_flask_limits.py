"""Rate limits and sessions in Flask."""

from __future__ import annotations

from typing import Any

import pytest
from cacheaside_flask import CacheAside, StoreSessions, cache_response, limited
from flask import Flask, request, session

from cacheaside import Cache, ConfigError
from cacheaside.testing import FakeClock
from cacheaside.toolkit import RateLimiter, SessionStore

COOKIE = "__Host-session"
BASE = "https://localhost"


def site(url: str = "embedded://", **store: Any) -> tuple[Flask, SessionStore[dict[str, Any]]]:
    app = Flask("site")
    app.config.update(CACHEASIDE_URL=url, CACHEASIDE_TIMEOUT=0.5)
    CacheAside(app)
    sessions = SessionStore(app.extensions["cacheaside"], **store)
    app.session_interface = StoreSessions(sessions)

    @app.post("/login/<name>")
    def login(name: str) -> str:
        session["user_id"] = name
        return "in"

    @app.post("/set/<key>/<value>")
    def put(key: str, value: str) -> str:
        session[key] = value
        return "set"

    @app.get("/me")
    def me() -> dict[str, Any]:
        return dict(session.items()) if session.get("user_id") else {}

    @app.post("/logout")
    def logout() -> str:
        session.clear()
        return "out"

    @app.get("/plain")
    def plain() -> str:
        return "plain"

    @app.get("/cached")
    @cache_response(ttl=60)
    def cached() -> str:
        return f"hello {session.get('user_id')}"

    return app, sessions


def test_a_refused_view_is_a_429_that_says_when_to_come_back() -> None:
    """By address, or by whatever key says; the view is not called."""
    clock = FakeClock()
    cache = Cache("embedded://", clock=clock)
    app, calls = Flask("site"), []

    @app.post("/login")
    @limited(RateLimiter(cache, 1, 60, name="login"), key=lambda: request.form["name"])
    def login() -> str:
        calls.append(request.form["name"])
        return "in"

    client = app.test_client()
    first, second, other = (client.post("/login", data={"name": name}) for name in ("ann", "ann", "bob"))
    assert [answer.status_code for answer in (first, second, other)] == [200, 429, 200]
    assert calls == ["ann", "bob"]
    assert first.headers["RateLimit-Policy"] == '"login";q=1;w=60'
    assert first.headers["RateLimit"] == '"login";r=0;t=60'
    assert second.headers["Retry-After"] == "60"
    clock.tick(60)
    assert client.post("/login", data={"name": "ann"}).status_code == 200


def test_views_are_limited_by_address_when_nothing_else_is_said() -> None:
    """Two addresses, a hit each."""
    app = Flask("site")

    @app.get("/")
    @limited(RateLimiter(Cache("embedded://"), 1, 60, name="all"))
    def view() -> str:
        return "x"

    client = app.test_client()
    codes = [client.get("/", environ_base={"REMOTE_ADDR": who}).status_code for who in ("::1", "::2", "::1")]
    assert codes == [200, 200, 429]


def test_a_session_lives_in_the_store_and_its_cookie_is_a_token() -> None:
    """``__Host-``, Secure, HttpOnly, SameSite, path /; a logout ends it and takes the cookie back."""
    app, sessions = site()
    client = app.test_client()
    answer = client.post("/login/ann", base_url=BASE)
    name, _, rest = answer.headers["Set-Cookie"].partition("=")
    token, *attributes = rest.split("; ")
    assert name == COOKIE
    assert set(attributes) == {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"}
    assert answer.headers["Cache-Control"] == "no-store"
    found = sessions.get(token)
    assert found is not None
    assert (found.user_id, found.data) == ("ann", {"user_id": "ann"})
    seen = client.get("/me", base_url=BASE)
    assert seen.json == {"user_id": "ann"}
    assert "Cookie" in seen.headers["Vary"]
    assert "Max-Age=0" in client.post("/logout", base_url=BASE).headers["Set-Cookie"]
    assert sessions.get(token) is None


def test_a_login_gives_a_new_token_and_ends_the_old() -> None:
    """Session fixation: a token from before is worth nothing; data of before is kept for the user."""
    app, sessions = site()
    client = app.test_client()
    client.post("/set/basket/tea", base_url=BASE)
    before = client.get_cookie(COOKIE)
    client.post("/login/ann", base_url=BASE)
    after = client.get_cookie(COOKIE)
    assert before is not None
    assert after is not None
    assert before.value != after.value
    assert sessions.get(before.value) is None
    assert client.get("/me", base_url=BASE).json == {"basket": "tea", "user_id": "ann"}
    client.post("/login/bob", base_url=BASE)
    assert sessions.get(after.value) is None


def test_what_two_requests_change_at_once_is_merged() -> None:
    """Neither is lost; what one has removed stays away."""
    app, sessions = site()
    client = app.test_client()
    client.post("/login/ann", base_url=BASE)
    cookie = client.get_cookie(COOKIE)
    assert cookie is not None
    with app.test_request_context(base_url=BASE, headers={"Cookie": f"{COOKIE}={cookie.value}"}) as slow:
        session["slow"] = 1
        client.post("/set/quick/2", base_url=BASE)
        app.session_interface.save_session(app, slow.session, app.response_class())
    found = sessions.get(cookie.value)
    assert found is not None
    assert found.data == {"user_id": "ann", "slow": 1, "quick": "2"}


def test_a_view_without_a_session_sets_nothing() -> None:
    """Nor does one that only looks; a made-up token is a stranger's."""
    app, sessions = site()
    client = app.test_client()
    assert "Set-Cookie" not in client.get("/plain", base_url=BASE).headers
    answer = client.get("/me", base_url=BASE, headers={"Cookie": f"{COOKIE}={'A' * 75}"})
    assert answer.json == {}
    assert "Set-Cookie" not in answer.headers
    assert sessions.stats()["created"] == 0


def test_a_view_that_looks_into_the_session_is_not_cached_for_all() -> None:
    """Each user gets the own one."""
    client = site()[0].test_client()
    client.post("/login/ann", base_url=BASE)
    assert client.get("/cached", base_url=BASE).text == "hello ann"
    client.post("/logout", base_url=BASE)
    assert client.get("/cached", base_url=BASE).text == "hello None"


def test_a_redis_that_is_away_logs_nobody_in() -> None:
    """503, not a login that nobody remembers."""
    client = site("redis://127.0.0.1:1")[0].test_client()
    assert client.get("/plain", base_url=BASE).status_code == 200
    refused = client.post("/login/ann", base_url=BASE)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "Set-Cookie" not in refused.headers


def test_a_limit_that_cannot_be_looked_up_is_no_fault_of_the_client() -> None:
    """503 where it is to refuse then; where it is to let in, in."""
    for unavailable, status in (("deny", 503), ("allow", 200)):
        app = Flask("site")
        with Cache("redis://127.0.0.1:1", timeout=0.2) as cache:
            limiter = RateLimiter(cache, 5, 60, name="login", on_unavailable=unavailable)  # type: ignore[arg-type]

            @app.get("/")
            @limited(limiter)
            def view() -> str:
                return "in"

            answer = app.test_client().get("/")
        assert answer.status_code == status
        assert answer.headers.get("Retry-After") == ("1" if status == 503 else None)


def test_wrong_arguments_are_refused_where_they_stand() -> None:
    """Each by its name."""
    limiter = RateLimiter(Cache("embedded://"), 5, 60)
    with pytest.raises(ConfigError, match="limiter must"):
        limited("login")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="key must"):
        limited(limiter, key="ip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="store must"):
        StoreSessions("auth")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name must"):
        StoreSessions(SessionStore(Cache("embedded://")), name="session")
