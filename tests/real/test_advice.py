"""Advice about settings that hurt: one line in the log for each kind, once in a process."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from cacheaside import Cache, advice
from cacheaside.advice import KINDS, MANY, SOME, app_of
from cacheaside.engine.commands import Lock
from cacheaside.testing import Server
from cacheaside.toolkit import SessionStore

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "advice.md"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What this process has been advised, which has heard nothing before."""
    monkeypatch.setattr(advice, "_said", set())
    monkeypatch.setattr(advice, "_asked", WeakSet())
    caplog.set_level(logging.WARNING, "cacheaside")
    return lambda: [r.getMessage() for r in caplog.records if r.module == "advice"]


@pytest.fixture
def cache(one_redis_url: str) -> Iterator[Cache]:
    with Cache(one_redis_url, prefix="shop") as made:
        yield made


def until(told: Callable[[], list[str]], count: int = 1) -> list[str]:
    deadline = time.monotonic() + 10
    while len(told()) < count:
        assert time.monotonic() < deadline, told()
        time.sleep(0.01)
    return told()


def function(cache: Cache, **options: Any) -> Any:
    @cache.cached(ns="posts", key="{id}", **options)
    def find(id: int) -> int:
        return id

    return find


def test_every_kind_is_in_the_reference() -> None:
    text = PAGE.read_text("utf-8")
    assert [kind for kind in KINDS if f"| `{kind}` |" not in text] == []


# ---------------------------------------------------------------------------- L1


def test_l1_beside_redis_without_a_window_is_advised_once(one_redis_url: str, told: Any) -> None:
    with Cache(one_redis_url, l1_window=None) as cache:
        for _ in range(3):
            function(cache, l1=30)(1)
    (line,) = told()
    assert "test_advice" in line
    assert "asks for l1=30" in line
    assert "l1_window=" in line


def test_l1_that_is_there_or_was_not_asked_for_is_not_advised(one_redis_url: str, told: Any) -> None:
    with Cache(one_redis_url, l1_window=None) as without, Cache(one_redis_url) as window:
        function(without)(1)
        function(without, l1=False)(1)
        function(window, l1=True)(1)
    with Cache("embedded://") as here:
        function(here, l1=30, load_timeout=60)(1)
    assert told() == []


# ---------------------------------------------------------------------------- timeouts, jitter


def test_a_load_timeout_above_the_lease_is_advised_once(cache: Cache, told: Any) -> None:
    function(cache, load_timeout=3, lease_ttl=3)(1)
    assert told() == []
    for _ in range(2):
        function(cache, load_timeout=(0.5, 5))(1)
    (line,) = told()
    assert "may load for 5 s (load_timeout) on a lease of 3 s (lease_ttl)" in line


async def test_a_big_namespace_without_jitter_is_advised(cache: Cache, told: Any) -> None:
    """The count is brought near; the last results are stored in truth."""
    without, jittered = function(cache, jitter=0), function(cache, jitter=0.05)
    for find, counted in ((jittered, 0), (without, 1)):
        find(-1 - counted)
        cache.counts["posts"].stored = MANY - 1
        find(-11 - counted)
        assert len(told()) == counted
    assert "stored with jitter=0" in told()[0]


def test_direct_operations_have_no_jitter_to_be_advised_of(cache: Cache, told: Any) -> None:
    cache.set("misc:1", 1)
    cache.counts["(direct)"].stored = MANY - 1
    cache.set("misc:2", 1)
    assert told() == []


# ---------------------------------------------------------------------------- prefixes


def application(name: str, cache: Cache, ns: str = "posts") -> Any:
    """A function of another application's package."""

    def find(id: int) -> int:
        return id

    find.__module__ = f"{name}.repositories"
    return cache.cached(ns=ns, key=f"{name}:{{id}}")(find)


def test_two_applications_with_one_prefix_are_advised(one_redis_url: str, told: Any) -> None:
    with Cache(one_redis_url, prefix="p") as mine, Cache(one_redis_url, prefix="p") as theirs:
        for id in range(SOME):
            application("shop", mine)(id)
        wait_for_record(mine, "posts", b"shop")
        for id in range(SOME - 1):
            application("blog", theirs)(id)
        assert told() == []
        application("blog", theirs)(SOME)
        (line,) = until(told)
    assert "functions of 'blog' store in the namespace 'posts'" in line
    assert "of 'shop' do in another process with the prefix 'p'" in line


async def test_processes_of_one_application_are_not_and_async_ones_ask_too(
    one_redis_url: str, told: Any
) -> None:
    async with Cache(one_redis_url, prefix="p") as one:

        @one.cached(ns="posts", key="{id}")
        async def find(id: int) -> int:
            return id

        for id in range(SOME):
            await find(id)
        await asyncio.to_thread(wait_for_record, one, "posts", app_of(find).encode())
    with Cache(one_redis_url, prefix="p") as two, Cache(one_redis_url, prefix="q") as elsewhere:
        for id in range(SOME):
            application(app_of(find), two)(100 + id)
            application("blog", elsewhere)(id)
            application("blog", two, ns="others")(id)
        wait_for_record(elsewhere, "posts", b"blog")
        wait_for_record(two, "others", b"blog")
    assert told() == []


def wait_for_record(cache: Cache, ns: str, app: bytes) -> None:
    """Wait until it is known who stores in a namespace."""
    client = cache.store.lines.client  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while client.get(cache.world.keys.companion(ns, "app")) != app:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_few_results_ask_nobody(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question costs a command, once; who stores little does not pay it."""
    asked: list[Any] = []
    perform = cache.store.perform
    monkeypatch.setattr(cache.store, "perform", lambda c: (asked.append(c), perform(c))[1])
    find = function(cache)
    for id in range(SOME - 1):
        find(id)
    cache.driver.close()
    assert [command for command in asked if isinstance(command, Lock)] == []


def test_a_script_is_its_file_and_a_module_its_package() -> None:
    script = "from cacheaside.advice import app_of\ndef f(): ...\nprint(app_of(f))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "\n"  # nobody knows whose it is
    assert app_of(Cache.get) == "cacheaside"


# ---------------------------------------------------------------------------- eviction


@pytest.fixture
def evicting() -> Iterator[Server]:
    with Server(args=["--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru"]) as server:
        yield server


def test_sessions_on_a_server_that_evicts_are_advised_at_their_first_use(evicting: Server, told: Any) -> None:
    with Cache(evicting.url) as cache:
        sessions = SessionStore(cache)
        function(cache)(1)
        assert told() == []
        sessions.create(1, {})
        (line,) = until(told)
        sessions.create(1, {})
    assert "keeps sessions on a server that evicts when it is full (maxmemory-policy volatile-lru)" in line
    assert len(told()) == 1


async def test_locks_are_advised_likewise_and_on_an_event_loop(evicting: Server, told: Any) -> None:
    async with Cache(evicting.url) as cache:
        async with cache.lock("reports"):
            pass
        (line,) = await asyncio.to_thread(until, told)
    assert "keeps locks" in line


@pytest.mark.parametrize(("limit", "policy"), [("0", "allkeys-lru"), ("50mb", "noeviction")])
def test_a_server_that_evicts_nothing_is_not_advised(
    evicting: Server, told: Any, limit: str, policy: str
) -> None:
    with evicting.client() as client:
        client.config_set("maxmemory", limit)
        client.config_set("maxmemory-policy", policy)
    with Cache(evicting.url) as cache:
        sessions = SessionStore(cache)
        session = sessions.create(1, {})
        assert sessions.get(session.token) is not None
    # Closing has waited for what was asked beside.
    assert told() == []
