"""From import to close: late binding, the default cache, threads and loops, and what stays of a function."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import logging
import pickle
import threading
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import cacheaside
from cacheaside import Cache, ConfigError, configure, default
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.stores.redis import RedisStore


@pytest.fixture(autouse=True)
def no_default_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins as a fresh process does, and leaves no default cache behind."""
    monkeypatch.setattr(default, "_cache", None)
    monkeypatch.delenv("CACHEASIDE_URL", raising=False)
    yield
    if default._cache is not None:
        default._cache.close()
        for plan in list(default._cache.bound_here):
            plan.unbind()


loads: list[int] = []


@cacheaside.cached(ns="module", key="{a}", tags=["module:{a}"])
def at_module_level(a: int, b: int = 1) -> list[int]:
    """A function that can be found by its name."""
    loads.append(a)
    return [a]


@cacheaside.cached(ns="module", key="async:{a}")
async def async_at_module_level(a: int) -> list[int]:
    """As above, awaited."""
    return [a]


@cacheaside.cached_many(ns="module", key="many:{id}")
def many_at_module_level(ids: list[int]) -> dict[int, int]:
    """Several of them."""
    return {i: i for i in ids}


@cacheaside.invalidates(tags=["module:{a}"])
def write_at_module_level(a: int) -> None:
    """A function that writes."""


class Repo:
    """A class that can be found by its name, with a cached method of each kind."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Repo)

    __hash__ = object.__hash__

    @cacheaside.cached(ns="repo", key="{a}")
    def get(self, a: int) -> "Row":  # noqa: UP037
        """Get it."""
        return Row(a)

    @cacheaside.cached(ns="repo", key="class:{a}")
    @classmethod
    def klass(cls, a: int) -> int:
        """Of the class."""
        return a

    @cacheaside.cached_many(ns="repo", key="many:{id}")
    def find(self, ids: list[int]) -> dict[int, int]:
        """Find them."""
        return {i: i for i in ids}

    @cacheaside.updates(ns="repo", key="saved:{a}")
    def save(self, a: int) -> int:
        """Save it."""
        return a


class Row(typing.NamedTuple):
    """Defined after the method that returns it."""

    id: int


# ---------------------------------------------------------------------------- the default cache


def test_without_configure_the_default_cache_is_embedded() -> None:
    assert at_module_level(1) == [1]
    cache = cacheaside.default_cache()
    assert type(cache.store) is EmbeddedStore
    assert at_module_level.cache is cache
    assert cacheaside.default_cache() is cache


def test_cacheaside_url_says_where_the_default_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read when the cache is made, not when modules are imported; nothing connects before a call."""
    monkeypatch.setenv("CACHEASIDE_URL", "redis://user:s3cret@nowhere.invalid:1/0")
    cache = cacheaside.default_cache()
    assert type(cache.store) is RedisStore
    assert "nowhere.invalid:1" in repr(cache)
    assert "s3cret" not in repr(cache)
    assert type(Cache("embedded://").store) is EmbeddedStore, "a URL given overrules it"
    monkeypatch.setenv("CACHEASIDE_URL", "")
    assert type(Cache().store) is EmbeddedStore
    monkeypatch.setenv("CACHEASIDE_URL", "nonsense")
    with pytest.raises(ConfigError):
        Cache()


def test_configure_may_come_after_the_decorators() -> None:
    cache = configure("embedded://", prefix="mini", ttl=42)
    at_module_level(1)
    assert at_module_level.cache is cacheaside.default_cache() is cache
    assert cache.exists("module:1")
    assert 30 < (cache.ttl("module:1") or 0) <= 42


def test_configure_again_moves_functions_that_were_called_before() -> None:
    loads.clear()
    before = configure("embedded://")
    at_module_level(1), many_at_module_level([1])
    after = configure("embedded://")
    at_module_level(1), at_module_level(1), many_at_module_level([1])
    assert loads == [1, 1]
    assert at_module_level.cache is many_at_module_level.cache is after
    assert before.exists("module:1"), "the old one is its owner's to close"
    assert after.exists("module:1")
    before.close()
    assert at_module_level(1) == [1]


def test_configure_moves_functions_of_which_only_a_handle_was_used() -> None:
    configure("embedded://")
    at_module_level.peek(1)
    after = configure("embedded://")
    at_module_level(1)
    assert at_module_level.cache is after
    assert after.exists("module:1")


def test_configure_takes_a_ready_cache_as_well() -> None:
    with Cache("embedded://") as cache:
        assert configure(cache) is cache
        at_module_level(1)
        assert cache.exists("module:1")
        with pytest.raises(TypeError, match="prefix"):
            configure(cache, prefix="a")


def test_a_bad_configuration_leaves_the_old_one() -> None:
    cache = configure("embedded://")
    with pytest.raises(ConfigError):
        configure("nonsense")
    assert cacheaside.default_cache() is cache


def test_a_function_of_one_cache_does_not_follow_the_default() -> None:
    with Cache("embedded://") as mine:

        @mine.cached(ns="n", key="k")
        def f() -> int:
            return 1

        f()
        configure("embedded://")
        f()
        assert f.cache is mine


def test_writers_at_module_level_find_the_default_cache_at_each_call() -> None:
    @cacheaside.invalidates(tags=["module:{a}"])
    def save(a: int) -> None: ...

    @cacheaside.updates(ns="module", key="{a}", tags=["module:{a}"])
    def update(a: int) -> list[int]:
        return [a * 10]

    for _ in range(2):
        cache = configure("embedded://")
        at_module_level(1)
        save(1)
        assert not cache.exists("module:1")
        update(1)
        assert at_module_level(1) == [10]


def test_threads_that_call_first_at_once_make_one_default_cache() -> None:
    started = threading.Barrier(8)

    def first(_: int) -> Any:
        started.wait()
        at_module_level(1)
        return at_module_level.cache

    with ThreadPoolExecutor(8) as pool:
        assert len({id(cache) for cache in pool.map(first, range(8))}) == 1


# ---------------------------------------------------------------------------- close


def test_a_cache_closes_with_its_block() -> None:
    closed: list[str] = []

    class Store(EmbeddedStore):
        def close(self) -> None:
            closed.append("close")
            super().close()

    with Cache(store=Store(10**6, lambda: 0.0)) as cache:
        cache.set("n:k", 1)
        assert not closed
    assert closed == ["close"]


async def test_an_async_block_closes_it_too() -> None:
    async with Cache("embedded://") as cache:

        @cache.cached(ns="n", key="k")
        async def f() -> int:
            return 1

        await f()
        assert cache.stats()["l1"]["entries"] == 1
    assert cache.stats()["l1"]["entries"] == 0
    assert not await cache.aexists("n:k")


async def test_closing_twice_is_fine_and_a_closed_cache_starts_again() -> None:
    cache = Cache("embedded://")

    @cache.cached(ns="n", key="k")
    def f() -> int:
        return 1

    f()
    cache.close(), cache.close()
    await cache.aclose()
    await cache.aclose()
    assert f() == 1
    cache.close()


def test_close_waits_for_background_refreshes(clock: Any) -> None:
    cache = Cache("embedded://", clock=clock)
    go, renewed = threading.Event(), threading.Event()
    calls: list[int] = []

    @cache.cached(ns="n", key="k", ttl=10, stale_while_revalidate=60, refresh="background")
    def f() -> int:
        calls.append(1)
        if len(calls) == 2:
            go.wait(10)
            renewed.set()
        return 1

    f()
    clock.tick(11)
    f()
    threading.Timer(0.01, go.set).start()
    cache.close()
    assert renewed.is_set()


async def test_aclose_ends_background_tasks_of_its_loop(clock: Any) -> None:
    cancelled: list[int] = []
    begun = asyncio.Event()
    async with Cache("embedded://", clock=clock) as cache:
        calls: list[int] = []

        @cache.cached(ns="n", key="k", ttl=10, stale_while_revalidate=60, refresh="background")
        async def f() -> int:
            calls.append(1)
            if len(calls) == 2:
                begun.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(1)
                    raise
            return 1

        await f()
        clock.tick(11)
        await f()
        await begun.wait()
    assert cancelled == [1]


async def test_background_refreshes_of_a_loop_are_bounded(cache: Cache, clock: Any, monkeypatch: Any) -> None:
    """What comes when too many run is left to a later call; its caller has the stale value."""
    monkeypatch.setattr("cacheaside.engine.drive.WAITING", 3)
    running, go_on = [0], asyncio.Event()

    @cache.cached(ns="n", key="{a}", ttl=10, stale_while_revalidate=60, refresh="background", l1=False)
    async def f(a: int) -> int:
        if clock() > began:
            running[0] += 1
            await go_on.wait()
        return a

    began = clock()
    for a in range(6):
        await f(a)
    clock.tick(15)
    assert [await f(a) for a in range(6)] == [0, 1, 2, 3, 4, 5]
    await asyncio.sleep(0)
    assert running == [3]
    go_on.set()


def test_a_failed_background_refresh_is_logged_and_the_value_stays(clock: Any, caplog: Any) -> None:
    cache = Cache("embedded://", clock=clock)
    calls: list[int] = []

    @cache.cached(ns="n", key="k", ttl=10, stale_while_revalidate=60, refresh="background")
    def f() -> int:
        calls.append(1)
        if len(calls) > 1:
            raise OSError("away")
        return 1

    f()
    clock.tick(11)
    with caplog.at_level(logging.ERROR, "cacheaside"):
        assert f() == 1
        cache.driver.close()
    assert "a background refresh failed" in caplog.text
    assert f() == 1
    cache.close()


# ---------------------------------------------------------------------------- threads and loops


def waiting(cache: Cache) -> int:
    """How many callers wait for another one's load."""
    return sum(flight.waiters for flight in list(cache.world.flights._flying.values()))


def wait_for(condition: Callable[[], bool]) -> None:
    """Come back as soon as other threads have brought this about, or soon after if they never do."""
    for _ in range(1500):
        if condition():
            return
        threading.Event().wait(0.001)


def test_threads_share_one_load(cache: Cache) -> None:
    started, calls = threading.Barrier(8), []

    @cache.cached(ns="n", key="k")
    def f() -> list[int]:
        calls.append(1)
        wait_for(lambda: waiting(cache) == 7)
        return [1]

    def call(_: int) -> list[int]:
        started.wait()
        return f()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(8)))
    assert calls == [1]
    assert results == [[1]] * 8
    assert len({id(result) for result in results}) == 8


@pytest.mark.parametrize("of", ["cache", "redis_cache"])
def test_several_event_loops_share_a_cache(request: pytest.FixtureRequest, of: str) -> None:
    cache: Cache = request.getfixturevalue(of)
    calls: list[int] = []

    @cache.cached(ns="n", key="{a}", l1=False)
    async def f(a: int) -> int:
        calls.append(a)
        return a

    async def work() -> list[int]:
        try:
            return await asyncio.gather(*(f(a) for a in range(5)))
        finally:
            if of == "redis_cache":
                await cache.store.aclose()

    for _ in range(3):
        assert asyncio.run(work()) == [0, 1, 2, 3, 4]
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda _: asyncio.run(work()), range(3)):
            assert result == [0, 1, 2, 3, 4]
    assert sorted(calls) == [0, 1, 2, 3, 4]


def test_loops_at_the_same_time_share_one_load(cache: Cache) -> None:
    calls: list[int] = []

    @cache.cached(ns="n", key="k")
    async def f() -> int:
        calls.append(1)
        await asyncio.to_thread(wait_for, lambda: waiting(cache) == 3)
        return len(calls)

    started = threading.Barrier(4)

    def loop(_: int) -> int:
        started.wait()
        return asyncio.run(f())  # type: ignore[arg-type]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(loop, range(4))) == [1] * 4
    assert calls == [1]


def test_a_sync_loader_runs_in_its_callers_own_thread(cache: Cache) -> None:
    here = threading.local()
    here.session = "mine"

    @cache.cached(ns="n", key="k")
    def f() -> str:
        return str(here.session)

    assert f() == "mine"


async def test_an_async_loader_runs_in_its_callers_own_task(cache: Cache) -> None:
    @cache.cached(ns="n", key="k")
    async def f() -> bool:
        return asyncio.current_task() is mine

    mine = asyncio.current_task()
    assert await f()


# ---------------------------------------------------------------------------- what stays of a function


@pytest.mark.parametrize(
    "function", [at_module_level, async_at_module_level, many_at_module_level, write_at_module_level]
)
def test_a_cached_function_is_copied_and_pickled_by_name(function: Any) -> None:
    assert copy.copy(function) is function
    assert copy.deepcopy(function) is function
    assert copy.deepcopy({"f": function})["f"] is function
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(function, protocol)) is function


def test_a_bound_cached_method_is_pickled_with_its_object() -> None:
    repo = Repo()
    for again in (lambda given: pickle.loads(pickle.dumps(given)), copy.copy, copy.deepcopy):
        assert again(repo.get)(1) == Row(1)
        assert again(repo.get).key(1) == "repo:1"
        assert again(Repo.klass)(2) == 2
        assert again(repo.find)([1]) == {1: 1}
        assert again(repo.save)(3) == 3
    assert copy.deepcopy(repo.get).__self__ is not repo


def test_metadata_is_the_functions_own() -> None:
    f = at_module_level
    assert (f.__name__, f.__qualname__, f.__module__) == ("at_module_level", "at_module_level", __name__)
    assert f.__doc__ == "A function that can be found by its name."
    assert list(inspect.signature(f).parameters) == ["a", "b"]
    assert inspect.signature(f).parameters["b"].default == 1
    assert typing.get_type_hints(f) == {"a": int, "b": int, "return": list[int]}
    assert inspect.unwrap(f) is f.__wrapped__
    assert f.__wrapped__(5) == [5]
    assert f.__defaults__ == (1,)
    assert inspect.getsource(f).startswith("@cacheaside.cached")
    assert isinstance(f, type(f.__wrapped__)), "a function to whoever asks"


def test_colours_are_told_apart() -> None:
    assert inspect.iscoroutinefunction(async_at_module_level)
    assert not inspect.iscoroutinefunction(at_module_level)
    assert not inspect.isgeneratorfunction(at_module_level)


def test_a_bound_method_keeps_its_metadata() -> None:
    repo = Repo()
    for method, name, doc in ((repo.get, "get", "Get it."), (Repo.klass, "klass", "Of the class.")):
        assert (method.__name__, method.__doc__) == (name, doc)
        assert list(inspect.signature(method).parameters) == ["a"]
    assert typing.get_type_hints(Repo.get) == {"a": int, "return": Row}
    assert "Repo.get" in repr(repo.get)
    assert "cached" in repr(at_module_level)


def test_attributes_may_be_set_as_on_any_function(cache: Cache) -> None:
    @cache.cached(ns="n", key="k")
    def f() -> int:
        return 1

    f.marker = "mine"
    assert f.marker == f.__wrapped__.marker == "mine"  # type: ignore[attr-defined]


def test_a_return_type_may_be_defined_after_the_method() -> None:
    repo = Repo()
    assert repo.get(1) == repo.get(1) == Row(1)
    assert type(repo.get(1)) is Row


def test_a_decorator_in_between_may_hide_the_colour(cache: Cache) -> None:
    """What is awaited is decided by what the call returns, as far as it can be seen."""

    async def original(a: int) -> int:
        return a

    @functools.wraps(original)
    def passing_on(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    def plain(a: int) -> int:
        return a

    @functools.wraps(plain)
    async def in_a_thread(*args: Any, **kwargs: Any) -> int:
        return plain(*args, **kwargs)

    for number, fn in enumerate((passing_on, in_a_thread)):
        f = cache.cached(ns="n", key=f"{number}:{{a}}")(fn)
        assert asyncio.run(f(1)) == asyncio.run(f(1)) == 1
        assert cache.get(f"n:{number}:1") == 1


def test_lambdas_and_partials_work_with_a_key(cache: Cache) -> None:
    double = cache.cached(ns="n", key="double:{a}")(lambda a: a * 2)
    assert [double(2), double(2)] == [4, 4]
    with pytest.raises(ConfigError, match="no name to make a key of"):
        cache.cached(ns="n")(lambda a: a)


def test_a_function_that_is_gone_is_forgotten(cache: Cache) -> None:
    def define() -> None:
        @cache.cached(ns="n", key="k")
        def f() -> int:
            return 1

        f()

    define()
    import gc

    gc.collect()
    assert len(cache.bound_here) == 0


# ---------------------------------------------------------------------------- namespaces


async def test_a_namespace_fills_in_ns_and_ttl(cache: Cache) -> None:
    posts = cache.namespace("posts", ttl=60)

    @posts.cached(key="{a}", jitter=0)
    def get(a: int) -> int:
        return a

    @posts.cached(key="short:{a}", ttl=5, jitter=0)
    def short(a: int) -> int:
        return a

    @posts.cached_many(key="many:{id}")
    def find(ids: list[int]) -> dict[int, int]:
        return {i: i for i in ids}

    @posts.updates(key="{a}")
    def save(a: int, value: int) -> int:
        return value

    @posts.invalidates(keys=["{a}"])
    def drop(a: int) -> None: ...

    get(1), short(1), find([1])
    assert cache.ttl("posts:1") == 60
    assert cache.ttl("posts:short:1") == 5
    assert cache.exists("posts:many:1")
    save(1, 9)
    assert get(1) == 9
    drop(1)
    assert not cache.exists("posts:1")
    cache.set("users:1", 1)
    assert posts.clear() == 2
    get(1)
    assert await posts.aclear() == 1
    assert cache.exists("users:1")
