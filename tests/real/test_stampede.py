"""Many callers of a cold key: one of them loads, whoever dies or fails meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cacheaside import Cache

PROCESSES, CALLERS = 4, 20
LOAD = 0.2
PATIENCE = 10.0


class Crowd:
    """Processes of callers, all waiting for the word."""

    def __init__(self, url: str, colour: str, lease: float) -> None:
        script = Path(__file__).with_name("stampede.py")
        command = [sys.executable, str(script), url, colour, str(CALLERS), str(lease), str(LOAD)]
        self.members = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]
        for member in self.members:
            assert member.stdout is not None
            assert member.stdout.readline() == "ready\n"

    def go(self) -> None:
        for member in self.members:
            assert member.stdin is not None
            member.stdin.write("go\n")
            member.stdin.flush()

    def reports(self) -> list[dict[str, Any]]:
        """What those who are still alive have seen."""
        said = [member.communicate(timeout=PATIENCE)[0] for member in self.members]
        return [json.loads(line) for line in said if line]

    def end(self) -> None:
        for member in self.members:
            member.kill()
            member.communicate()


@contextlib.contextmanager
def crowd(url: str, colour: str, lease: float = 3) -> Iterator[Crowd]:
    together = Crowd(url, colour, lease)
    try:
        yield together
    finally:
        together.end()


@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_eighty_callers_in_four_processes_are_one_load(redis_url, server, colour):
    with crowd(redis_url, colour) as callers, server.client() as client:
        callers.go()
        reports = callers.reports()
        loads = int(client.get("loads"))
    answers = [answer for report in reports for answer, _ in report["answers"]]
    assert answers == ["page 1"] * PROCESSES * CALLERS
    assert loads == 1
    assert sum(report["counts"]["stored"] for report in reports) >= 1


@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_a_leader_that_is_killed_costs_one_more_load_and_a_lease(redis_url, server, colour):
    lease = 1.0
    with crowd(redis_url, colour, lease) as callers, server.client() as client:
        callers.go()
        _, leader = client.blpop(["loaders"], timeout=PATIENCE)
        os.kill(int(leader), signal.SIGKILL)
        reports = callers.reports()
        loads = int(client.get("loads"))
    waits = [wait for report in reports for _, wait in report["answers"]]
    answers = [answer for report in reports for answer, _ in report["answers"]]
    assert answers == ["page 1"] * (PROCESSES - 1) * CALLERS
    assert loads == 2
    assert max(waits) <= lease + 1


# ---------------------------------------------------------------------------- in one process


def loader(cache: Cache, **options: Any) -> tuple[Any, list[threading.Event], threading.Event]:
    """A cached function that signals each load and lets the first go on when told to."""
    begun: list[threading.Event] = [threading.Event() for _ in range(4)]
    go_on = threading.Event()
    count = iter(range(4))

    @cache.cached(**{"ns": "hot", "key": "page:{n}", "ttl": 60} | options)
    def page(n: int) -> str:
        turn = next(count)
        begun[turn].set()
        if turn == 0:
            assert go_on.wait(PATIENCE)
        return f"load {turn}"

    return page, begun, go_on


async def waiting(cache: Cache, callers: int) -> None:
    """Come back when so many callers wait for a load of this process."""
    async with asyncio.timeout(PATIENCE):
        while not any(flight.waiters == callers for flight in cache.world.flights._flying.values()):
            await asyncio.sleep(0.002)


async def test_a_cancelled_leader_leaves_the_others_a_value(redis_url):
    loads = 0

    async with Cache(redis_url, l1_window=None) as cache:
        first = asyncio.Event()

        @cache.cached(ns="hot", key="page:{n}", ttl=60)
        async def page(n: int) -> str:
            nonlocal loads
            loads += 1
            if loads == 1:
                first.set()
                await asyncio.Event().wait()
            await asyncio.sleep(0.01)
            return "page"

        leader = asyncio.create_task(page(1))
        await first.wait()
        others = [asyncio.create_task(page(1)) for _ in range(10)]
        await waiting(cache, 10)
        leader.cancel()
        assert await asyncio.wait_for(asyncio.gather(*others), PATIENCE) == ["page"] * 10
        assert loads == 2
        assert leader.cancelled()
        assert await page(1) == "page"
        assert loads == 2
        assert cache.stats()["flights"] == 0


async def test_a_cancelled_leader_that_nobody_waits_for_leaves_no_placeholder(redis_url):
    """The next caller need not wait for a lease, whether in this process or in another."""
    async with Cache(redis_url, l1_window=None) as cache, Cache(redis_url, l1_window=None) as other:
        loading = asyncio.Event()
        slow = True

        def reader(cache: Cache) -> Any:
            @cache.cached(ns="hot", key="page:{n}", ttl=60, lease_ttl=30, wait_timeout=30)
            async def page(n: int) -> str:
                if slow:
                    loading.set()
                    await asyncio.Event().wait()
                return "page"

            return page

        page, elsewhere = reader(cache), reader(other)
        leader = asyncio.create_task(page(1))
        await loading.wait()
        waiting = asyncio.create_task(elsewhere(1))  # polls, for it cannot join
        await asyncio.sleep(0.01)
        slow = False
        leader.cancel()
        assert await asyncio.wait_for(waiting, PATIENCE) == "page"


async def test_a_cancelled_waiter_takes_only_itself_away(redis_url):
    async with Cache(redis_url, l1_window=None) as cache:
        loading, go_on = asyncio.Event(), asyncio.Event()

        @cache.cached(ns="hot", key="page:{n}", ttl=60)
        async def page(n: int) -> str:
            loading.set()
            await go_on.wait()
            return "page"

        leader = asyncio.create_task(page(1))
        await loading.wait()
        waiters = [asyncio.create_task(page(1)) for _ in range(3)]
        await waiting(cache, 3)
        waiters[0].cancel()
        await asyncio.wait(waiters[:1])
        go_on.set()
        assert await asyncio.gather(leader, *waiters[1:]) == ["page"] * 3
        assert cache.stats()["namespaces"]["hot"]["loads"] == 1


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_an_error_reaches_all_waiters_and_the_next_call_retries(redis_url, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        loads = 0
        go_on = threading.Event()

        def load() -> str:
            nonlocal loads
            loads += 1
            if loads == 1:
                assert go_on.wait(PATIENCE)
                raise LookupError("no such page")
            return "page"

        def page(n: int) -> str:
            return load()

        async def apage(n: int) -> str:
            return await asyncio.to_thread(load)

        cached = cache.cached(ns="hot", key="page:{n}", ttl=60)(apage if asynchronous else page)
        with ThreadPoolExecutor(8) as pool:
            loop = asyncio.get_running_loop()
            calls: list[Any] = [
                asyncio.ensure_future(cached(1)) if asynchronous else loop.run_in_executor(pool, cached, 1)
                for _ in range(8)
            ]
            await waiting(cache, 7)
            go_on.set()
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(r) for r in results] == [LookupError] * 8
        assert loads == 1
        assert (await cached(1) if asynchronous else cached(1)) == "page"
        assert loads == 2


def test_who_has_waited_long_enough_loads_and_leaves_the_leader_his_slot(redis_url):
    """In the leader's process as in another one; what the leader loads is stored all the same."""
    with (
        Cache(redis_url, l1_window=None) as cache,
        Cache(redis_url, l1_window=None) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        page, begun, go_on = loader(cache, wait_timeout=0.1)
        elsewhere, _, free = loader(other, wait_timeout=0.1)
        free.set()
        try:
            leader = pool.submit(page, 1)
            assert begun[0].wait(PATIENCE)
            for impatient, answer in ((page, "load 1"), (elsewhere, "load 0")):
                began = time.monotonic()
                assert impatient(1) == answer
                assert 0.1 <= time.monotonic() - began < 1
        finally:
            go_on.set()
        assert leader.result(PATIENCE) == "load 0"
        assert page(1) == elsewhere(1) == "load 0"
        assert cache.stats()["namespaces"]["hot"]["stored"] == 1


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_lease_is_renewed_while_its_load_runs(redis_url, asynchronous):
    """A load of twice the lease is still one load, for callers here and in another process."""
    loads: list[int] = []
    async with Cache(redis_url, l1_window=None) as cache, Cache(redis_url, l1_window=None) as other:

        def reader(cache: Cache) -> Any:
            def page(n: int) -> str:
                loads.append(n)
                time.sleep(0.8)
                return "page"

            async def apage(n: int) -> str:
                loads.append(n)
                await asyncio.sleep(0.8)
                return "page"

            cached = cache.cached(ns="hot", key="page:{n}", ttl=60, lease_ttl=0.4)
            return cached(apage if asynchronous else page)

        page, elsewhere = reader(cache), reader(other)
        if asynchronous:
            answers = await asyncio.gather(page(1), elsewhere(1), page(1), elsewhere(1))
        else:
            answers = await asyncio.gather(*(asyncio.to_thread(f, 1) for f in (page, elsewhere) * 2))
        assert answers == ["page"] * 4
        assert loads == [1]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_loader_that_calls_itself_with_its_own_arguments_ends(redis_url, asynchronous):
    depth = 0
    async with Cache(redis_url, l1_window=None) as cache:
        options: Any = {"ns": "hot", "key": "page:{n}", "ttl": 60, "wait_timeout": 30, "lease_ttl": 30}

        @cache.cached(**options)
        def page(n: int) -> int:
            nonlocal depth
            depth += 1
            return 0 if depth == 3 else 1 + page(n)

        if asynchronous:

            @cache.cached(**options)
            async def page(n: int) -> int:  # type: ignore[no-redef]
                nonlocal depth
                depth += 1
                return 0 if depth == 3 else 1 + await page(n)

            assert await asyncio.wait_for(page(1), PATIENCE) == 2
        else:
            assert await asyncio.wait_for(asyncio.to_thread(page, 1), PATIENCE) == 2
        assert cache.stats()["flights"] == 0


def test_a_batch_loader_that_asks_for_its_own_ids_ends(redis_url):
    with Cache(redis_url, l1_window=None) as cache, ThreadPoolExecutor(1) as pool:
        depth = 0

        @cache.cached_many(ns="hot", key="page:{n}", ttl=60, wait_timeout=30, lease_ttl=30)
        def pages(ns: list[int]) -> dict[int, str]:
            nonlocal depth
            depth += 1
            return pages(ns) if depth == 1 else {n: f"page {n}" for n in ns}

        assert pool.submit(pages, [1, 2]).result(PATIENCE) == {1: "page 1", 2: "page 2"}
        assert depth == 2


async def test_threads_and_event_loops_share_one_load(redis_url):
    """Callers of one cache in one process, wherever they run."""
    loads: list[str] = []
    began, go_on, threads_done = threading.Event(), threading.Event(), threading.Event()
    with Cache(redis_url, l1_window=None) as cache:

        def load() -> str:
            loads.append("thread")
            began.set()
            assert go_on.wait(PATIENCE)
            return "page"

        async def aload() -> str:
            loads.append("task")
            return "page"

        async def call() -> str:
            answer: str = await cache.aget_or_load("hot:page", aload)
            await asyncio.to_thread(threads_done.wait, PATIENCE)  # for aclose ends their connections too
            await cache.aclose()
            return answer

        threads = [asyncio.create_task(asyncio.to_thread(cache.get_or_load, "hot:page", load))]
        assert await asyncio.to_thread(began.wait, PATIENCE)
        threads.append(asyncio.create_task(asyncio.to_thread(cache.get_or_load, "hot:page", load)))
        loops = [asyncio.create_task(asyncio.to_thread(asyncio.run, call())) for _ in range(2)]
        await waiting(cache, 3)
        go_on.set()
        assert await asyncio.gather(*threads) == ["page"] * 2
        threads_done.set()
        assert await asyncio.gather(*loops) == ["page"] * 2
    assert loads == ["thread"]
