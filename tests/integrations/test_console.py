"""The console: closed by default, safe to leave open, and a page that works in a browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cacheaside_fastapi import console, lifespan
from cacheaside_fastapi.console import events as fastapi_events
from cacheaside_flask import CacheAside
from cacheaside_flask import console as blueprint
from cacheaside_flask.console import events as flask_events
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask, request

from cacheaside import Cache, ConfigError
from cacheaside.console import page

Ask = Callable[..., tuple[int, Any, Any]]
JSON = {"content-type": "application/json", "x-cacheaside": "1", "x-key": "right"}


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache("embedded://") as made:

        @made.cached(ns="posts", key="{a}", tags=["all", "post:{a}"])
        def post(a: int) -> int:
            return a

        for a in (1, 2, 2):
            post(a)
        yield made


@pytest.fixture(params=["fastapi", "flask"])
def ask(request: pytest.FixtureRequest, cache: Cache) -> Iterator[Ask]:
    """Ask either console: (status, what it says, headers)."""
    client: Any
    if request.param == "fastapi":
        app = FastAPI(lifespan=lifespan(cache))

        async def guard(asked: Any) -> bool:
            return asked.headers.get("x-key") == "right"

        app.mount("/cache", console(guard=guard))
        app.mount("/closed", console())
        with TestClient(app) as client:
            yield lambda *a, **k: read(client.request(*a, **k))
    else:
        yield flask_client(cache)


def flask_client(cache: Cache) -> Ask:
    app = Flask("site")
    app.config["CACHEASIDE_URL"] = "embedded://"
    CacheAside(app)
    app.extensions["cacheaside"] = cache
    app.register_blueprint(
        blueprint(guard=lambda: request.headers.get("x-key") == "right"), url_prefix="/cache"
    )
    app.register_blueprint(blueprint(), url_prefix="/closed", name="closed")
    client = app.test_client()

    def asked(method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
        if "content" in more:
            more["data"] = more.pop("content")
        response = client.open(path, method=method, **more)
        return response.status_code, told(response.get_data()), response.headers

    return asked


def read(response: Any) -> tuple[int, Any, Any]:
    return response.status_code, told(response.content), response.headers


def told(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


RIGHT = {"x-key": "right"}


@pytest.mark.parametrize(
    "path", ["/cache/", "/cache/stats", "/cache/explain?key=n:k", "/cache/events", "/cache/tags"]
)
def test_nobody_sees_it_whom_the_guard_does_not_know(ask: Ask, path: str) -> None:
    assert ask("GET", path)[0] == 403
    assert ask("GET", path.replace("cache", "closed", 1), headers=RIGHT)[0] == 403, "no guard: nobody"
    assert ask("POST", "/cache/invalidate", headers=JSON | {"x-key": "wrong"}, content="{}")[0] == 403


def test_the_page_loads_nothing_from_elsewhere(ask: Ask) -> None:
    status, body, headers = ask("GET", "/cache/", headers=RIGHT)
    assert status == 200
    assert "<title>cacheaside</title>" in body
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", body)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["cache-control"] == "no-store"


def test_what_it_shows(ask: Ask) -> None:
    shown = ask("GET", "/cache/stats", headers=RIGHT)[1]
    assert shown["namespaces"]["posts"]["hits_l1"] == 1
    assert shown["namespaces"]["posts"]["misses"] == 2
    assert shown["l1"]["entries"] == 2
    assert ask("GET", "/cache/tags", headers=RIGHT)[1]["tags"] == [["all", 2], ["post:1", 1], ["post:2", 1]]
    assert "L1 holds it" in ask("GET", "/cache/explain?key=posts%3A1", headers=RIGHT)[1]["explain"]


def test_it_invalidates(ask: Ask, cache: Cache) -> None:
    status, said, _ = ask("POST", "/cache/invalidate", headers=JSON, content='{"tags": ["post:1"]}')
    assert (status, said) == (200, {"acknowledged": True})
    assert (cache.exists("posts:1"), cache.exists("posts:2")) == (False, True)
    ask("POST", "/cache/invalidate", headers=JSON, content='{"keys": ["posts:2"]}')
    assert not cache.exists("posts:2")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain", "x-cacheaside": "1"},
        {"content-type": "application/json"},
        {"content-type": "application/json", "x-cacheaside": "1", "sec-fetch-site": "cross-site"},
        {"content-type": "application/json", "x-cacheaside": "1", "sec-fetch-site": "same-site"},
        {"content-type": "application/x-www-form-urlencoded"},
    ],
)
def test_another_sites_page_changes_nothing(ask: Ask, cache: Cache, headers: dict[str, str]) -> None:
    status, _, _ = ask("POST", "/cache/invalidate", headers=headers | RIGHT, content='{"tags": ["all"]}')
    assert status == 403
    assert cache.exists("posts:1")


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/cache/nothing", None, 404),
        ("POST", "/cache/nothing", "{}", 404),
        ("GET", "/cache/explain?key=nokey", None, 400),
        ("GET", "/cache/explain", None, 400),
        ("POST", "/cache/invalidate", "[]", 400),
        ("POST", "/cache/invalidate", "{", 400),
        ("POST", "/cache/invalidate", '{"tags": "all"}', 400),
        ("POST", "/cache/invalidate", '{"keys": ["nokey"]}', 400),
        ("POST", "/cache/invalidate", '{"keys": [1]}', 400),
        ("POST", "/cache/invalidate", "x" * 20_000, 413),
    ],
)
def test_bad_questions_are_answered_in_words(
    ask: Ask, method: str, path: str, content: Any, status: int
) -> None:
    more = {} if content is None else {"content": content}
    got, said, _ = ask(method, path, headers=JSON, **more)
    assert got == status
    assert said["error"]


def test_a_body_that_does_not_say_how_long_it_is_is_not_read_to_its_end(cache: Cache) -> None:
    """In chunks, under a WSGI server that passes them on: what is read is little more than may be."""
    app = Flask("site")
    app.config["CACHEASIDE_URL"] = "embedded://"
    CacheAside(app)
    app.extensions["cacheaside"] = cache
    app.register_blueprint(blueprint(guard=lambda: True), url_prefix="/cache")
    body = io.BytesIO(b"x" * 1_000_000)
    chunked: Any = {"wsgi.input": body, "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = app.test_client().post("/cache/invalidate", headers=JSON, environ_overrides=chunked)
    assert answer.status_code == 413
    assert body.tell() < 200_000


async def test_events_flow(cache: Cache) -> None:
    """A snapshot at once."""
    for first in (next(flask_events(cache)), await anext(fastapi_events(cache))):
        assert first.startswith(b"data: {")
        assert first.endswith(b"\n\n")
        assert json.loads(first[6:])["namespaces"]["posts"]["misses"] == 2


def test_what_is_no_guard_is_refused() -> None:
    with pytest.raises(ConfigError, match="guard"):
        console(guard="admin")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="guard"):
        blueprint(guard="admin")  # type: ignore[arg-type]


def test_the_page_is_whole() -> None:
    """Every id that the script asks for is in the page."""
    body = page().body.decode()
    script = body.partition("<script>")[2]
    ids = set(re.findall(r'\$\("(\w+)"\)', script))
    assert ids
    assert all(f'id="{one}"' in body for one in ids)
