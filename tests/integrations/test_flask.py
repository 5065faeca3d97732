"""Flask: a cache for each app, from its configuration, in its context and on its command line."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
from cacheaside_flask import CacheAside, current_cache
from flask import Flask, g

import cacheaside
from cacheaside import Cache, ConfigError, default


def app_with(**config: Any) -> Flask:
    app = Flask("shop")
    app.config.update(CACHEASIDE_URL="embedded://", **config)
    CacheAside(app)
    return app


def test_the_configuration_holds_the_settings_of_the_cache() -> None:
    app = app_with(CACHEASIDE_PREFIX="mini", CACHEASIDE_TTL=60)
    cache = app.extensions["cacheaside"]
    cache.set("notes:a", 1)
    assert cache.prefix == "mini"
    assert 59 < cache.ttl("notes:a") <= 60


def test_without_configuration_the_environment_has_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEASIDE_URL", "redis://somewhere:1234/0")
    assert "somewhere:1234" in repr(CacheAside().init_app(Flask("shop")))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"CACHEASIDE_LT": 60}, "CACHEASIDE_LT is no setting of Cache; those are .*CACHEASIDE_TTL"),
        ({"CACHEASIDE_TTL": -1}, "ttl"),
    ],
)
def test_wrong_configuration_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        app_with(**config)


def test_one_extension_gives_each_app_its_own_cache() -> None:
    extension = CacheAside()
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        app.config["CACHEASIDE_URL"] = "embedded://"
        cache = extension.init_app(app)
        assert app.extensions["cacheaside"] is cache
    with apps[0].app_context():
        current_cache.set("notes:a", 1)
        assert current_cache.get("notes:a") == 1
        with apps[1].app_context():
            assert current_cache.get("notes:a", None) is None


def test_a_second_init_app_is_refused() -> None:
    app = app_with()
    with pytest.raises(ConfigError, match="'shop' has a cache already"):
        CacheAside(app)


def test_current_cache_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="outside of application context"):
        current_cache.get("notes:a")
    with Flask("shop").app_context(), pytest.raises(ConfigError, match=r"CacheAside\(\)\.init_app\(app\)"):
        current_cache.get("notes:a")


def test_the_default_cache_is_replaced_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Cache("embedded://")
    monkeypatch.setattr(default, "_cache", other)
    app_with()
    assert cacheaside.default_cache() is other
    mine = CacheAside(default=True).init_app(Flask("shop"))
    assert cacheaside.default_cache() is mine


def test_a_cached_view_runs_once_and_in_its_request() -> None:
    app = app_with()
    cache: Cache = app.extensions["cacheaside"]
    calls: list[str] = []

    @app.before_request
    def sign_in() -> None:
        g.user = "ada"

    @app.get("/posts/<int:post_id>")
    @cache.cached(ns="posts", key="view:{post_id}")
    def post(post_id: int) -> dict[str, Any]:
        calls.append(g.user)
        return {"id": post_id, "for": g.user}

    class Posts:
        @cache.cached(ns="posts", key="post:{post_id}")
        def get(self, post_id: int) -> dict[str, Any]:
            calls.append(g.user)
            return {"id": post_id}

    app.add_url_rule("/method/<int:post_id>", view_func=Posts().get)
    client = app.test_client()
    for _ in range(2):
        assert client.get("/posts/7").get_json() == {"id": 7, "for": "ada"}
        assert client.get("/method/7").get_json() == {"id": 7}
    assert calls == ["ada", "ada"]
    assert {"post", "get"} <= set(app.view_functions)


def test_clear_and_explain_from_the_command_line(one_redis_url: str) -> None:
    app = Flask("shop")
    app.config["CACHEASIDE_URL"] = one_redis_url
    cache = CacheAside().init_app(app)
    run = app.test_cli_runner().invoke
    for key in ("posts:a", "posts:b", "users:a"):
        cache.set(key, 1)

    explained = run(args=["cacheaside", "explain", "posts:a"])
    assert (explained.exit_code, explained.output) == (0, cache.explain("posts:a") + "\n")

    assert run(args=["cacheaside", "clear", "posts"]).output == "dropped: 2\n"
    assert not cache.exists("posts:a")
    assert cache.exists("users:a")
    assert run(args=["cacheaside", "clear"]).output == "dropped: 1\n"
    assert not cache.exists("users:a")
    cache.close()


def test_invalidate_from_the_command_line(one_redis_url: str) -> None:
    """Keys and tags, several at once; nothing at all is a mistake."""
    app = Flask("shop")
    app.config["CACHEASIDE_URL"] = one_redis_url
    cache = CacheAside().init_app(app)
    run = app.test_cli_runner().invoke
    for key, tag in (("posts:a", "one"), ("posts:b", "two"), ("posts:c", "three"), ("posts:d", "four")):
        cache.set(key, 1, tags=[tag])
    said = run(args=["cacheaside", "invalidate", "--tag", "one", "--tag", "two", "--key", "posts:c"])
    assert (said.exit_code, said.output) == (0, "acknowledged\n")
    assert [cache.exists(f"posts:{name}") for name in "abcd"] == [False, False, False, True]
    nothing = run(args=["cacheaside", "invalidate"])
    assert (nothing.exit_code, "--tag or --key" in nothing.output) == (2, True)
    cache.close()


def test_a_command_that_cannot_work_says_why_and_fails(one_redis_url: str) -> None:
    alone = app_with().test_cli_runner().invoke(args=["cacheaside", "clear"])
    assert (alone.exit_code, "set CACHEASIDE_URL to share one" in alone.output) == (1, True)

    app = Flask("shop")
    app.config["CACHEASIDE_URL"] = one_redis_url
    CacheAside(app)
    wrong = app.test_cli_runner().invoke(args=["cacheaside", "explain", "posts"])
    assert (wrong.exit_code, '"ns:rest"' in wrong.output) == (1, True)


def test_a_server_that_is_away_fails_the_command() -> None:
    app = Flask("shop")
    app.config["CACHEASIDE_URL"] = "redis://127.0.0.1:1/0"
    CacheAside(app)
    app.config["CACHEASIDE_INVALIDATION_TIMEOUT"] = 0.1
    for command in (["clear"], ["invalidate", "--tag", "t"]):
        away = app.test_cli_runner().invoke(args=["cacheaside", *command])
        assert (away.exit_code, away.output.startswith("Error: ")) == (1, True)


def test_without_flask_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flask", None)
    monkeypatch.delitem(sys.modules, "cacheaside_flask")
    with pytest.raises(ImportError, match=r"pip install 'cacheaside\[flask\]'"):
        importlib.import_module("cacheaside_flask")
