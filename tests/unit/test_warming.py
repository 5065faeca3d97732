"""Warming: what is reported is what happened, and of all processes one does a round."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from cacheaside import Cache, ConfigError, KeyTemplateError
from cacheaside.engine.commands import Sleep
from cacheaside.errors import StoreUnavailable
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import StoreWrapper
from cacheaside.toolkit import Warmer, WarmReport

Painter = Callable[[Callable[..., Any]], Callable[..., Any]]


class Posts:
    """A repository that counts what it is asked for."""

    def __init__(self, cache: Cache, paint: Painter = lambda fn: fn, **options: Any) -> None:
        self.asked: list[list[int]] = []
        self.bad: set[int] = set()

        def find(ids: list[int]) -> dict[int, str]:
            self.asked.append(list(ids))
            if self.bad & {*ids}:
                raise OSError("the database is away")
            return {n: f"post {n}" for n in ids if n >= 0}

        def get(post_id: int) -> str | None:
            return find([post_id]).get(post_id)

        def trending() -> list[int]:
            return [*range(100)]

        self.find = cache.cached_many(ns="posts", key="post:{id}", ttl=1800, jitter=0, **options)(paint(find))
        self.get = cache.cached(ns="posts", key="one:{post_id}", ttl=1800, jitter=0, **options)(paint(get))
        self.trending = paint(trending)


@pytest.fixture
def posts(any_cache: Cache, paint: Painter) -> Posts:
    return Posts(any_cache, paint)


async def run(warmer: Warmer, f: Any, **kwargs: Any) -> WarmReport:
    """``run`` or ``arun``, by the colour of what is warmed."""
    return await warmer.arun(**kwargs) if asyncio.iscoroutinefunction(f) else warmer.run(**kwargs)


def numbers(report: WarmReport) -> tuple[int, int, int, int]:
    return report.warmed, report.already_warm, report.failed, report.not_stored


# ---------------------------------------------------------------------------- once


async def test_popular_content_is_asked_for_once_and_in_bulk(any_cache: Cache, posts: Posts) -> None:
    """The seed fetches 100 trending posts, and then each of them again by its id."""
    warmer = Warmer(any_cache)
    warmer.add(posts.find, posts.trending)
    report = await run(warmer, posts.find)
    assert posts.asked == [[*range(100)]]
    assert numbers(report) == (100, 0, 0, 0)
    assert report
    assert any_cache.get("posts:post:99") == "post 99"


async def test_what_is_warm_is_not_loaded_again(any_cache: Cache, posts: Posts) -> None:
    warmer = Warmer(any_cache)
    warmer.add(posts.find, [1, 2, 3])
    any_cache.get_or_load("posts:post:2", lambda: "never mind")  # of no type: it does not count
    assert numbers(await run(warmer, posts.find)) == (3, 0, 0, 0)
    any_cache.invalidate(keys=["posts:post:2"])
    assert numbers(await run(warmer, posts.find)) == (1, 2, 0, 0)
    assert posts.asked == [[1, 2, 3], [2]]


async def test_single_calls_are_warmed_with_bounded_concurrency(any_cache: Cache) -> None:
    going, most = 0, 0
    lock = threading.Lock()
    together = threading.Barrier(3, timeout=10)

    @any_cache.cached(ns="n", key="{a}:{b}")
    def slow(a: int, b: int = 0) -> int:
        nonlocal going, most
        with lock:
            going += 1
            most = max(most, going)
        together.wait()
        with lock:
            going -= 1
        return a

    warmer = Warmer(any_cache, concurrency=3)
    warmer.add(slow, [1, (2, 1), {"a": 3, "b": 2}, 4, 5, 6, 7, 8, 9])
    assert numbers(warmer.run()) == (9, 0, 0, 0)
    assert most == 3
    assert any_cache.get_many(["n:1:0", "n:2:1", "n:3:2"]) == {"n:1:0": 1, "n:2:1": 2, "n:3:2": 3}


async def test_async_calls_are_warmed_with_bounded_concurrency(any_cache: Cache) -> None:
    going, most = 0, 0

    @any_cache.cached(ns="n", key="{a}")
    async def slow(a: int) -> int:
        nonlocal going, most
        going += 1
        most = max(most, going)
        await asyncio.sleep(0)
        going -= 1
        return a

    warmer = Warmer(any_cache, concurrency=3)
    warmer.add(slow, range(9))
    assert numbers(await warmer.arun()) == (9, 0, 0, 0)
    assert most == 3


async def test_with_a_concurrency_of_one_calls_stay_in_the_callers_thread(cache: Cache) -> None:
    threads: set[int] = set()

    @cache.cached(ns="n", key="{a}")
    def f(a: int) -> int:
        threads.add(threading.get_ident())
        return a

    warmer = Warmer(cache, concurrency=1)
    warmer.add(f, range(5))
    warmer.run()
    assert threads == {threading.get_ident()}


async def test_large_sources_are_loaded_batch_by_batch_and_read_as_they_come(
    any_cache: Cache, posts: Posts
) -> None:
    pulled: list[int] = []

    def ids() -> Iterator[int]:
        for n in range(7):
            pulled.append(n)
            assert len(posts.asked) == n // 3
            yield n

    warmer = Warmer(any_cache, batch=3)
    warmer.add(posts.find, ids())
    assert numbers(await run(warmer, posts.find)) == (7, 0, 0, 0)
    assert posts.asked == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(pulled) == 7


async def test_what_fails_is_counted_and_the_rest_is_warmed(any_cache: Cache, posts: Posts) -> None:
    posts.bad = {4}
    warmer = Warmer(any_cache, batch=3)
    warmer.add(posts.find, [1, 2, 3, 4, 5, 6, 7])
    warmer.add(posts.get, [3, 4, object(), (1, 2, 3), 5])
    report = await run(warmer, posts.find)
    many, one = report.jobs
    assert (numbers(many), numbers(one)) == ((4, 0, 3, 0), (2, 0, 3, 0))
    assert numbers(report) == (6, 0, 6, 0)
    assert not report
    assert str(report.error) == "the database is away"
    assert "test_warming.Posts.__init__.<locals>.find: 4 warmed, 0 already warm, 3 failed in" in str(many)


async def test_a_source_that_fails_ends_its_job_and_no_other(any_cache: Cache, posts: Posts) -> None:
    def broken() -> list[int]:
        raise OSError("no such view")

    warmer = Warmer(any_cache)
    warmer.add(posts.find, broken)
    warmer.add(posts.get, [1])
    report = await run(warmer, posts.find)
    assert [numbers(r) for r in report.jobs] == [(0, 0, 0, 0), (1, 0, 0, 0)]
    assert str(report.jobs[0].error) == "no such view"
    assert not report


async def test_what_must_not_be_stored_is_not_called_warm(any_cache: Cache, paint: Painter) -> None:
    posts = Posts(any_cache, paint, cache_if=lambda result: result != "post 2")
    warmer = Warmer(any_cache)
    warmer.add(posts.find, [1, 2, -1])
    warmer.add(posts.get, [1, 2])
    report = await run(warmer, posts.find)
    assert [numbers(r) for r in report.jobs] == [(2, 0, 0, 1), (1, 0, 0, 1)]
    assert report, "that nothing was to be stored is no failure"


async def test_what_is_held_is_left_alone(any_cache: Cache, posts: Posts) -> None:
    warmer = Warmer(any_cache)
    warmer.add(posts.find, [1, 2])
    with any_cache.mutating(keys=["posts:post:1"]):
        assert numbers(await run(warmer, posts.find)) == (1, 0, 0, 1)
    assert posts.asked == [[2]]


class Away(StoreWrapper):
    """A store that ends after so many commands."""

    left = 0

    def around(self, command: Any) -> Any:
        if self.left == 0:
            raise StoreUnavailable("gone")
        self.left -= 1
        return (yield command)


@pytest.mark.parametrize("left", [0, 1, 2, 5])
async def test_a_store_that_goes_away_ends_the_round_with_what_failed(
    any_cache: Cache, posts: Posts, left: int
) -> None:
    away = any_cache.store = Away(any_cache.store)
    away.left = left
    warmer = Warmer(any_cache, batch=2)
    warmer.add(posts.find, range(6))
    report = await run(warmer, posts.find)
    assert isinstance(report.error, StoreUnavailable)
    assert report.failed == 2
    assert report.warmed == (2 if left == 5 else 0)


async def test_an_id_that_makes_no_key_fails_alone(any_cache: Cache, posts: Posts) -> None:
    warmer = Warmer(any_cache)
    warmer.add(posts.find, [1, frozenset(), 2])
    report = await run(warmer, posts.find)
    assert numbers(report) == (2, 0, 1, 0)
    assert isinstance(report.error, KeyTemplateError)
    assert posts.asked == [[1, 2]]


async def test_a_methods_rounds_have_its_object(any_cache: Cache) -> None:
    class Repository:
        def __init__(self, name: str) -> None:
            self.name = name

        @any_cache.cached(ns="r", key="{self.name}:{n}")
        def get(self, n: int) -> str:
            return f"{self.name} {n}"

        @any_cache.cached_many(ns="r", key="many:{self.name}:{n}")
        def find(self, ids: list[int]) -> dict[int, str]:
            return {n: f"{self.name} {n}" for n in ids}

    one = Repository("one")
    warmer = Warmer(any_cache)
    warmer.add(one.get, [1])
    warmer.add(one.find, [1, 2])
    assert numbers(warmer.run()) == (3, 0, 0, 0)
    assert any_cache.get_many(["r:one:1", "r:many:one:2"]) == {"r:one:1": "one 1", "r:many:one:2": "one 2"}
    with pytest.raises(ConfigError, match=r"Repository.find is a method: give an object's"):
        warmer.add(Repository.find, [1])


async def test_arun_takes_sync_functions_too_and_keeps_the_loop_free(any_cache: Cache) -> None:
    loop_thread = threading.get_ident()
    threads: set[int] = set()

    @any_cache.cached(ns="n", key="{a}")
    def f(a: int) -> int:
        threads.add(threading.get_ident())
        return a

    warmer = Warmer(any_cache)
    warmer.add(f, range(3))
    assert numbers(await warmer.arun()) == (3, 0, 0, 0)
    assert loop_thread not in threads


def test_misuse_is_refused(cache: Cache) -> None:
    posts = Posts(cache)
    late = Posts(Cache("embedded://"), lambda fn: _asynchronous(fn))
    warmer = Warmer(cache)
    for wrong, message in [
        (lambda: warmer.add(print, [1]), "must be a function decorated with cached"),
        (lambda: warmer.add(posts.get, "12"), "source must be a list"),
        (lambda: warmer.add(posts.get, 5), "source must be a list"),  # type: ignore[arg-type]
        (lambda: warmer.add(posts.get, [1], every=0), "every must be more than 0"),
        (lambda: warmer.add(posts.get, iter([1]), every=5), "used up after one round"),
        (lambda: Warmer(cache, batch=0), "batch must be a whole number"),
        (lambda: Warmer(cache, concurrency=True), "concurrency must be a whole number"),
        (lambda: Warmer(cache, jitter=2), "jitter must be a number from 0 to 1"),
        (lambda: warmer.start(), "nothing was added with every="),
    ]:
        with pytest.raises(ConfigError, match=message):
            wrong()
    warmer.add(posts.get, [1])
    with pytest.raises(ConfigError, match="give the second source a name="):
        warmer.add(posts.get, [2])
    warmer.add(posts.get, [2], name="again")
    warmer.add(posts.find, lambda: 7, name="number")  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="the source of number must return ids, not 7"):
        warmer.run()
    with cache.transaction(), pytest.raises(ConfigError, match="outside of a transaction"):
        warmer.run()
    other = Warmer(cache)
    other.add(late.get, [1], every=60)
    for colour in (other.run, other.start):
        with pytest.raises(ConfigError, match="is async: await a"):
            colour()
    stranger = Warmer(cache)
    stranger.add(Posts(Cache("embedded://", prefix="else")).get, [1])
    with pytest.raises(
        ConfigError, match="belongs to <Cache EmbeddedStore prefix='else'>, and this warmer to"
    ):
        stranger.run()


def _asynchronous(fn: Callable[..., Any]) -> Callable[..., Any]:
    async def painted(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    painted.__annotations__ = fn.__annotations__
    painted.__wrapped__ = fn  # type: ignore[attr-defined]
    return painted


async def test_a_progress_bar_counts_calls(any_cache: Cache, posts: Posts, capsys: Any) -> None:
    warmer = Warmer(any_cache, batch=3)
    warmer.add(posts.find, range(7), name="posts")
    assert await run(warmer, posts.find, progress=True)
    shown = capsys.readouterr().out
    assert "posts" in shown
    assert "7/7" in shown


def test_without_rich_the_bar_names_the_extra(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    warmer = Warmer(cache)
    warmer.add(Posts(cache).get, [1])
    with pytest.raises(ConfigError, match=r"pip install 'cacheaside\[cli\]'"):
        warmer.run(progress=True)
    assert warmer.run()


# ---------------------------------------------------------------------------- on schedule


class Process:
    """A process with a warmer, one of several that share a store; driven by hand, its sleeps cost no time."""

    def __init__(self, store: Any, clock: FakeClock, number: int, **settings: Any) -> None:
        self.cache = Cache(store=store, clock=clock)
        self.posts = Posts(self.cache)
        self.warmer = Warmer(self.cache, **settings)
        self.clock = clock
        self.rounds: list[float] = []
        self.number = number
        self.takes = 0.0
        self.warmer.add(self.posts.find, self.source, every=100, name="posts")
        self.stopped: Future[None] = Future()
        self.flow = self.warmer._schedule(self.warmer._scheduled(), self.stopped)
        self.wakes = clock() + 7 * number
        self.over = False

    def source(self) -> list[int]:
        self.rounds.append(self.clock())
        self.clock.tick(self.takes)
        return [1, 2, 3]

    def step(self) -> None:
        """Go on until it sleeps again."""
        driver, store = self.cache.driver, self.cache.store
        try:
            command = next(self.flow)
            while not isinstance(command, Sleep):
                try:
                    reply = driver._do(command, store)
                except Exception as error:
                    command = self.flow.throw(error)
                else:
                    command = self.flow.send(reply)
            self.wakes = self.clock() + command.seconds
        except StopIteration:
            self.over = True


def live(processes: list[Process], clock: FakeClock, seconds: float) -> None:
    """Let that time pass for all of them."""
    until = clock() + seconds
    while alive := [p for p in processes if not p.over]:
        first = min(alive, key=lambda p: p.wakes)
        if first.wakes > until:
            break
        clock.now = max(clock.now, first.wakes)
        first.step()
    clock.now = max(clock.now, until)


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(sorted(times))]


def test_of_all_processes_one_does_a_round_each_time(clock: FakeClock, cache: Cache) -> None:
    """In the seed every process warms, all at once."""
    processes = [Process(cache.store, clock, n) for n in range(4)]
    live(processes, clock, 2000)
    rounds = [t for p in processes for t in p.rounds]
    assert 17 <= len(rounds) <= 21
    assert min(gaps(rounds)) >= 95
    assert max(gaps(rounds)) <= 115
    assert processes[0].posts.asked, "what ends before the next round is loaded anew"


def test_a_round_loads_what_would_end_before_the_next_and_leaves_the_rest(
    clock: FakeClock, cache: Cache
) -> None:
    process = Process(cache.store, clock, 0)
    live([process], clock, 1900)
    assert len(process.rounds) > 15
    assert process.posts.asked == [[1, 2, 3], [1, 2, 3]], "at the beginning, and before their 1800 s are over"
    assert process.posts.find.peek(1) == "post 1"


def test_when_the_leader_dies_another_takes_over(clock: FakeClock, cache: Cache) -> None:
    processes = [Process(cache.store, clock, n) for n in range(3)]
    live(processes, clock, 250)
    leader = max(processes, key=lambda p: max(p.rounds, default=0))
    leader.over = True
    since = clock()
    live(processes, clock, 1000)
    rounds = [t for p in processes for t in p.rounds if t > since]
    assert len(rounds) >= 8
    assert max(gaps([since, *rounds])) <= 215


def test_rounds_that_take_longer_than_their_interval_do_not_overlap(clock: FakeClock, cache: Cache) -> None:
    """In the seed a timer starts the next round whatever the last one is doing."""
    process = Process(cache.store, clock, 0)
    process.takes = 250.0
    live([process], clock, 2000)
    assert 5 <= len(process.rounds) <= 6
    assert min(gaps(process.rounds)) >= 350


def test_a_failed_round_is_logged_and_the_next_one_run(clock: FakeClock, cache: Cache, caplog: Any) -> None:
    process = Process(cache.store, clock, 0)
    process.posts.bad = {2}
    with caplog.at_level(logging.WARNING, "cacheaside"):
        live([process], clock, 50)
    assert "posts: 0 warmed, 0 already warm, 3 failed in 0.0 s (OSError: the database is away)" in caplog.text
    assert process.warmer.last["posts"].failed == 3
    process.posts.bad = set()
    live([process], clock, 100)
    assert numbers(process.warmer.last["posts"]) == (3, 0, 0, 0)


def test_a_store_that_is_away_costs_a_round_and_no_more(clock: FakeClock, cache: Cache, caplog: Any) -> None:
    process = Process(Away(cache.store), clock, 0)
    with caplog.at_level(logging.WARNING, "cacheaside"):
        live([process], clock, 50)
    assert "no round of warming posts: gone" in caplog.text
    process.cache.store.left = -1  # type: ignore[attr-defined]
    live([process], clock, 100)
    assert len(process.rounds) == 1


def test_a_function_that_breaks_its_contract_costs_a_round_and_no_more(
    clock: FakeClock, cache: Cache, caplog: Any
) -> None:
    process = Process(cache.store, clock, 0)
    process.source = lambda: 5  # type: ignore[assignment, method-assign, return-value]
    process.warmer._jobs["posts"].source = lambda: 5
    with caplog.at_level(logging.ERROR, "cacheaside"):
        live([process], clock, 150)
    assert caplog.text.count("a round of warming posts failed; the next one comes") == 2


def test_whoever_stops_in_a_round_leaves_it_to_another(clock: FakeClock, cache: Cache) -> None:
    first, second = (Process(cache.store, clock, n, batch=1) for n in range(2))
    first.source = lambda: [first.stopped.set_result(None), 1, 2][1:]  # type: ignore[method-assign, func-returns-value]
    first.warmer._jobs["posts"].source = first.source
    first.step()
    first.step()
    assert first.over
    assert first.posts.asked == []
    live([second], clock, 10)
    assert second.posts.asked == [[1], [2], [3]]


def test_two_jobs_have_their_own_intervals(clock: FakeClock, cache: Cache) -> None:
    process = Process(cache.store, clock, 0)
    seen: list[float] = []
    process.warmer.add(process.posts.get, lambda: seen.append(clock()) or [1], every=30)
    process.flow = process.warmer._schedule(process.warmer._scheduled(), process.stopped)
    live([process], clock, 1000)
    assert 9 <= len(process.rounds) <= 11
    assert 29 <= len(seen) <= 34


def test_start_and_stop(any_cache: Cache) -> None:
    posts = Posts(any_cache)
    began, go = threading.Event(), threading.Event()

    def source() -> list[int]:
        began.set()
        go.wait(10)
        return [1, 2]

    warmer = Warmer(any_cache)
    warmer.add(posts.find, source, every=3600)
    with warmer:
        assert began.wait(10)
        with pytest.raises(ConfigError, match="started already"):
            warmer.start()
        assert warmer.stop(timeout=0.01) is False, "the round is not through"
        go.set()
    assert warmer.stop() is True
    assert posts.asked == [], "nothing is begun after stop"
    assert numbers(warmer.run()) == (2, 0, 0, 0)
    warmer.start()
    assert warmer.stop() is True


async def test_closing_the_cache_ends_its_warmers() -> None:
    for close in ("sync", "async"):
        cache = Cache("embedded://")
        warmer = Warmer(cache)
        warmer.add(Posts(cache).find, [1], every=3600)

        @cache.cached(ns="n", key="{x}")
        async def f(x: int) -> int:
            return x

        warmer.add(f, [1], every=3600)
        await warmer.astart()
        if close == "sync":
            await asyncio.to_thread(cache.close)
        else:
            await cache.aclose()
        assert await warmer.astop() is True
        assert [t for t in threading.enumerate() if t.name == "cacheaside-warm"] == []


async def test_astart_and_astop(any_cache: Cache, paint: Painter) -> None:
    posts, began = Posts(any_cache, paint), threading.Event()
    warmer = Warmer(any_cache)
    warmer.add(posts.find, paint(lambda: began.set() or [1, 2]), every=3600)
    async with warmer:
        with pytest.raises(ConfigError, match="started already"):
            await warmer.astart()
        assert await asyncio.to_thread(began.wait, 10)
        while not warmer.last:
            await asyncio.sleep(0.001)
    assert posts.asked == [[1, 2]]
    assert numbers(next(iter(warmer.last.values()))) == (2, 0, 0, 0)
    assert [t for t in threading.enumerate() if t.name == "cacheaside-warm"] == []


async def test_a_cancelled_round_gives_its_claim_back(any_cache: Cache) -> None:
    """A worker that is shut down in the middle of its round must not keep the others from theirs."""
    posts = Posts(any_cache, _asynchronous)
    began = asyncio.Event()

    async def forever() -> list[int]:
        began.set()
        await asyncio.sleep(3600)
        return []

    warmer = Warmer(any_cache)
    warmer.add(posts.find, forever, every=3600, name="one")
    await warmer.astart()
    await began.wait()
    task = warmer._task
    assert task is not None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    other = Warmer(any_cache)
    other.add(posts.find, [1], every=3600, name="one")
    async with other:
        while not other.last:
            await asyncio.sleep(0.001)
    assert posts.asked == [[1]]
