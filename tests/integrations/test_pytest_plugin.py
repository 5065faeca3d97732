"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import cacheaside_pytest
import pytest
import redis

from cacheaside import ConfigError, decorators, default
from cacheaside.testing import Server
from cacheaside.testing.scratch import MARK, Scratch
from tests.docs.pages import ROOT, blocks_of

pytest_plugins = "pytester"

INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
addopts = -p no:hypothesispytest -p no:xdist -p no:cacheprovider
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    """Nothing of this run, and of its settings, is in the runs."""
    monkeypatch.delenv("TEST_REDIS_URL", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(decorators, "_claims", WeakValueDictionary())
    monkeypatch.setattr(default, "_cache", None)
    pytester.makeini(INI)


@pytest.fixture
def other_url(one_redis_url: str) -> Iterator[str]:
    """Another database of the server, empty."""
    url = one_redis_url.removesuffix("/0") + "/5"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    return {k: v for k, v in result.parseoutcomes().items() if k in ("passed", "failed", "errors", "skipped")}


# ---------------------------------------------------------------------------- how it is loaded


def test_pytest_finds_the_plugin_in_the_distribution() -> None:
    (entry,) = [one for one in entry_points(group="pytest11") if one.name == "cacheaside"]
    assert entry.value == "cacheaside_pytest"
    assert entry.load() is cacheaside_pytest


def test_it_imports_pytest_and_nothing_else() -> None:
    """It is loaded in the runs of everybody, whether or not they test a cache."""
    tree = ast.parse(Path(cacheaside_pytest.__file__).read_text("utf-8"))
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imports == ["from __future__ import annotations", "import pytest"]
    loaded = "import cacheaside_pytest, sys; print({'cacheaside', 'redis', 'msgspec'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------------------- caches and time


def test_a_cache_of_its_own_is_the_default_of_each_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import cacheaside

        before = cacheaside.configure("embedded://")

        @cacheaside.cached(ns="n", key="{x}", ttl=60)
        def f(x):
            calls.append(x)
            return x

        @cacheaside.cached(ns="n", key="a{x}")
        async def af(x):
            calls.append(x)
            return x

        calls = []

        def test_one(cacheaside_cache, cacheaside_clock):
            assert cacheaside.default_cache() is cacheaside_cache
            f(1), f(1)
            assert calls == [1]
            cacheaside_clock.tick(61)
            f(1)
            assert calls == [1, 1]

        async def test_another_is_empty(cacheaside_cache):
            assert f.peek(1) is cacheaside.MISSING
            await af(2), await af(2)
            assert calls == [1, 1, 2]

        def test_afterwards_all_is_as_before():
            assert cacheaside.default_cache() is before
            assert f.cache is before
    """)
    assert outcomes(pytester.runpytest()) == {"passed": 3}


def test_without_a_default_cache_before_there_is_none_afterwards(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from cacheaside import default

        def test_one(cacheaside_cache):
            assert default._cache is cacheaside_cache

        def test_two():
            assert default._cache is None
    """)
    assert outcomes(pytester.runpytest()) == {"passed": 2}


def test_a_server_of_its_own_is_started_when_it_is_first_needed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import cacheaside

        @cacheaside.cached(ns="n", key="{x}")
        def f(x):
            return x

        def test_one(cacheaside_redis):
            assert type(cacheaside_redis.store).__name__ == "RedisStore"
            f(1)
            assert cacheaside_redis.get("n:1") == 1

        def test_another_is_empty(cacheaside_redis):
            assert f.peek(1) is cacheaside.MISSING
            assert cacheaside_redis.clear() == 0

        async def test_async(cacheaside_redis):
            await cacheaside_redis.aset("n:1", 1)
            assert await cacheaside_redis.aget("n:1") == 1

        def test_nothing_of_the_event_loop_is_left_open():
            import gc
            gc.collect()
    """)
    assert outcomes(pytester.runpytest()) == {"passed": 4}


def test_without_a_server_a_pipeline_fails_and_others_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_one(cacheaside_redis): ...")
    monkeypatch.setattr("cacheaside.testing.available", dict)
    monkeypatch.delenv("CI", raising=False)
    assert outcomes(pytester.runpytest_inprocess()) == {"skipped": 1}
    monkeypatch.setenv("CI", "true")
    assert outcomes(pytester.runpytest_inprocess()) == {"errors": 1}


# ---------------------------------------------------------------------------- somebody's database


USES = """
    def test_one(cacheaside_redis):
        cacheaside_redis.set("n:1", 1)

    def test_two(cacheaside_redis):
        assert not cacheaside_redis.exists("n:1")
        cacheaside_redis.set("n:2", 2)
        cacheaside_redis.clear()
        cacheaside_redis.set("n:3", 3)

    def test_three(cacheaside_redis):
        assert not cacheaside_redis.exists("n:3")
"""


@pytest.mark.parametrize("place", ["option", "ini", "variable"])
def test_a_database_that_was_empty_is_emptied_before_each_test_and_at_the_end(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, other_url: str, place: str
) -> None:
    pytester.makepyfile(USES)
    arguments = []
    if place == "option":
        arguments = ["--cacheaside-url", other_url]
        monkeypatch.setenv("TEST_REDIS_URL", "redis://127.0.0.1:1/0")
    elif place == "ini":
        pytester.makeini(f"{INI}cacheaside_url = {other_url}")
    else:
        monkeypatch.setenv("TEST_REDIS_URL", other_url)
    assert outcomes(pytester.runpytest(*arguments)) == {"passed": 3}
    with redis.Redis.from_url(other_url) as client:
        assert client.keys("*") == []


def test_a_database_with_somebodys_data_is_not_touched(pytester: pytest.Pytester, other_url: str) -> None:
    """The seed flushes whatever TEST_REDIS_URL leads to."""
    pytester.makepyfile(USES)
    with redis.Redis.from_url(other_url) as client:
        client.set("customers", "all of them")
        result = pytester.runpytest("--cacheaside-url", other_url)
        assert outcomes(result) == {"errors": 3}
        result.stdout.fnmatch_lines(["*holds keys that tests have not put there, and is not emptied*"])
        assert client.keys("*") == [b"customers"]


def test_what_a_run_that_was_killed_has_left_is_emptied_by_the_next(
    pytester: pytest.Pytester, other_url: str
) -> None:
    pytester.makepyfile("""
        import os

        def test_dies(cacheaside_redis):
            cacheaside_redis.set("n:1", 1)
            os._exit(1)
    """)
    pytester.runpytest_subprocess("--cacheaside-url", other_url)
    with redis.Redis.from_url(other_url) as client:
        assert len(client.keys("*")) > 1
        assert 0 < client.ttl(MARK) <= 86400
    pytester.makepyfile(USES)
    assert outcomes(pytester.runpytest("--cacheaside-url", other_url)) == {"passed": 3}


def test_what_comes_into_the_database_during_a_run_is_not_emptied(one_redis_url: str) -> None:
    with Scratch(one_redis_url) as scratch, redis.Redis.from_url(one_redis_url) as client:
        scratch.empty()
        client.delete(MARK)
        client.set("customers", "all of them")
        with pytest.raises(ConfigError, match="not emptied"):
            scratch.empty()
    with redis.Redis.from_url(one_redis_url) as client:
        assert client.get("customers") == b"all of them"


def test_only_one_server_without_a_secret_in_messages() -> None:
    with pytest.raises(ConfigError, match="tests need one server") as raised:
        Scratch("redis+cluster://:geheim@127.0.0.1:1,127.0.0.1:2")
    assert "geheim" not in str(raised.value)
    with Scratch("redis://:geheim@127.0.0.1:1/3") as scratch:
        with pytest.raises(ConfigError, match="cannot be used for tests") as raised:
            scratch.empty()
        assert "geheim" not in f"{raised.value} {scratch!r}"


def test_workers_do_not_share_a_database(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, other_url: str
) -> None:
    pytester.makepyfile(USES)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    result = pytester.runpytest("--cacheaside-url", other_url)
    assert outcomes(result) == {"errors": 3}
    result.stdout.fnmatch_lines(["*parallel workers would empty each other's database*"])


# ---------------------------------------------------------------------------- counting


def test_operations_are_counted_in_both_colours_and_on_both_stores(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import cacheaside
        import pytest

        @cacheaside.cached(ns="n", key="{x}", tags=["t:{x}"], l1=False)
        def f(x):
            return x

        @cacheaside.cached(ns="n", key="a{x}", l1=False)
        async def af(x):
            return x

        @pytest.fixture(params=["cacheaside_cache", "cacheaside_redis"])
        def cache(request):
            return request.getfixturevalue(request.param)

        def test_sync(cache, assert_cache_ops):
            with assert_cache_ops(3) as ops:
                f(1)
            assert [words.split()[0] for words in ops.asked] == ["Fetch", "Begin", "Commit"]
            with assert_cache_ops(1):
                f(1)
            with assert_cache_ops(0):
                f.key(1)
            with assert_cache_ops(2, cache=cache) as ops:
                f(1), f(1)
            assert ops.asked == ["Fetch n:1"] * 2

        async def test_async(cache, assert_cache_ops):
            await af(1)
            with assert_cache_ops(1):
                await af(1)

        def test_another_cache(assert_cache_ops):
            with cacheaside.Cache("embedded://") as own, assert_cache_ops(1, cache=own):
                own.get("n:1")
    """)
    assert outcomes(pytester.runpytest()) == {"passed": 5}


def test_a_wrong_number_fails_with_what_there_was(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import cacheaside

        @cacheaside.cached(ns="n", key="{x}", tags=["t"])
        def f(x):
            return x

        def test_too_many(cacheaside_cache, assert_cache_ops):
            with assert_cache_ops(1):
                f(1)

        def test_too_few(cacheaside_cache, assert_cache_ops):
            with assert_cache_ops(1):
                pass

        def test_an_error_of_the_block_is_its_own(cacheaside_cache, assert_cache_ops):
            store = cacheaside_cache.store
            try:
                with assert_cache_ops(1):
                    1 / 0
            except ZeroDivisionError:
                assert cacheaside_cache.store is store
    """)
    result = pytester.runpytest()
    assert outcomes(result) == {"passed": 1, "failed": 2}
    result.stdout.fnmatch_lines(
        [
            "1 cache operations were expected; there were 3:",
            "*1. Fetch n:1",
            "*2. Begin n:1",
            "*3. Commit n:1",
            "1 cache operations were expected; there were 0",
        ]
    )


def test_the_example_of_the_page_about_testing_passes(pytester: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "how-to" / "testing.md").read_text("utf-8")
    pytester.makepyfile(next(block.text for block in blocks_of(page) if block.language == "python"))
    assert outcomes(pytester.runpytest()) == {"passed": 1}


def test_own_servers_end_with_the_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Server] = []
    start = Server.start

    def noted(self: Server) -> Any:
        started.append(self)
        return start(self)

    monkeypatch.setattr(Server, "start", noted)
    pytester.makepyfile("def test_one(cacheaside_redis): cacheaside_redis.set('n:1', 1)")
    assert outcomes(pytester.runpytest_inprocess()) == {"passed": 1}
    assert [server.running for server in started] == [False]
