"""Attempts to make the core lose an invalidation, keep others waiting, or hang, on real servers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest

from cacheaside import Cache
from cacheaside.entry import MAGIC, VALUE
from cacheaside.testing import Server

TICKS = 40
"""More turns of the loop than any of these calls takes."""


def leftovers(server: Server) -> list[bytes]:
    """Placeholders, holds and refresh locks that stand in the server."""
    with server.client() as client:
        keys = [key for key in client.keys("*") if client.type(key) == b"string"]
        return [
            key
            for key, raw in zip(keys, client.mget(keys) if keys else (), strict=True)
            if raw and (key.endswith(b":r") or (raw[:3] == MAGIC and raw[3] != VALUE))
        ]


async def cancelled_after(ticks: int, call: Any) -> None:
    """Cancel a call when the loop has turned so many times; it may have ended by then."""
    task = asyncio.ensure_future(call)
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def at_rest(cache: Cache) -> None:
    """Wait for what goes on behind; on 3.11 that may be a call whose cancellation redis-py has swallowed."""
    async with asyncio.timeout(2):  # less than a lease
        while cache.driver._tasks or len(cache.world.flights):
            await asyncio.sleep(0)


@pytest.mark.parametrize("by", ["key", "tag", "transaction", "update"])
async def test_what_a_cancelled_request_has_written_is_seen(redis_url: str, server: Server, by: str) -> None:
    """Cancelled after any number of turns of the loop: once the row is written, nobody gets the old one."""
    written = 0
    async with Cache(redis_url, l1_window=None) as cache:
        row = [0]

        @cache.cached(ns="n", key="k", tags=["t"])
        async def f() -> int:
            return row[0]

        @cache.invalidates(ns="n", keys=["k"])
        async def key() -> None:
            row[0] += 1

        @cache.invalidates(tags=["t"])
        async def tag() -> None:
            row[0] += 1

        async def transaction() -> None:
            async with cache.transaction():
                await cache.ainvalidate(tags=["t"])
                row[0] += 1

        @cache.updates(ns="n", key="k", tags=["t"])
        async def update() -> int:
            row[0] += 1
            return row[0]

        write: Any = {"key": key, "tag": tag, "transaction": transaction, "update": update}[by]
        for ticks in range(TICKS):
            assert await f() == row[0]
            before = row[0]
            await cancelled_after(ticks, write())
            written += row[0] > before
            assert await f() == row[0], f"after {ticks} turns"
            await at_rest(cache)
            assert leftovers(server) == [], f"after {ticks} turns"
    assert written > TICKS // 4


@pytest.mark.parametrize("what", ["one", "crowd", "batch", "stale"])
async def test_cancelled_reads_leave_nothing_to_wait_for(redis_url: str, server: Server, what: str) -> None:
    now = [time.time()]
    async with Cache(redis_url, clock=lambda: now[0], l1_window=None) as cache:
        loads = 0

        @cache.cached(ns="n", key="{a}", tags=["t:{a}"], ttl=10, stale_while_revalidate=60)
        async def f(a: int) -> int:
            nonlocal loads
            loads += 1
            for _ in range(5):
                await asyncio.sleep(0)
            return a

        @cache.cached_many(ns="m", key="{id}", tags=["t:{id}"])
        async def find(ids: list[int]) -> dict[int, int]:
            for _ in range(5):
                await asyncio.sleep(0)
            return {one: one for one in ids}

        async def crowd(a: int) -> None:
            await asyncio.gather(*(f(a) for _ in range(4)))

        async def batch(a: int) -> None:
            await find([a, a + 1000, a + 2000])

        calls: dict[str, Any] = {"one": f, "stale": f, "crowd": crowd, "batch": batch}
        for ticks in range(TICKS):
            if what == "stale":
                await f(ticks)
                now[0] += 11
            await cancelled_after(ticks, calls[what](ticks))
            # CPython 3.11 may lose a cancellation inside the client: then the call runs to its end.
            for _ in range(20_000):
                if not len(cache.world.flights):
                    break
                await asyncio.sleep(0)
            assert len(cache.world.flights) == 0
            await at_rest(cache)
            assert leftovers(server) == [], f"after {ticks} turns"
            assert await f(ticks) == ticks
            assert await find([ticks]) == {ticks: ticks}


def test_bytes_that_are_no_key_in_the_list_of_a_tag_are_passed_over(redis_url: str, server: Server) -> None:
    with Cache(redis_url, l1_window=None) as cache:
        cache.cached(ns="n", key="k", tags=["t"])(lambda: 1)()
        index = cache.world.keys.tag_index("t")
        with server.client() as client:
            client.zadd(index, {b"\xff\xfe%d" % n: 9e9 for n in range(600)})
        cache.invalidate(tags=["t"])
        done = threading.Event()
        freed: list[int] = []

        def sweep() -> None:
            freed.append(cache.reclaim("t"))
            done.set()

        threading.Thread(target=sweep, daemon=True).start()
        assert done.wait(10)
        assert cache.tag_keys("t", count=1000) in ([], ["n:k"])


ENDING = """
    import threading, sys, time
    from cacheaside import Cache

    now = [time.time()]
    cache = Cache(sys.argv[1], clock=lambda: now[0], **({"l1_window": 1} if "redis" in sys.argv[1] else {}))
    stuck = threading.Event()
    calls = []

    @cache.cached(ns="n", key="k", tags=["t"], ttl=10, stale_while_revalidate=60, refresh="background")
    def f():
        calls.append(1)
        if len(calls) > 1:
            stuck.set()
            threading.Event().wait()
        return 1

    @cache.cached(ns="n", key="slow", tags=["t"], load_timeout=0.01)
    def slow():
        threading.Event().wait()

    f()
    cache.invalidate(tags=["other"])
    now[0] += 11
    assert f() == 1
    assert stuck.wait(10)
    try:
        slow()
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "left open"])
def test_a_process_ends_though_its_loads_never_do(one_redis_url: str, closed: bool) -> None:
    """No hang, no traceback: neither of a refresh behind, nor of a load over its limit."""
    program = textwrap.dedent(ENDING)
    if closed:
        program += "\nfrom cacheaside.engine import drive\ndrive.CLOSE_WITHIN = 0.1\ncache.close()\n"
    for url in ("embedded://", one_redis_url):
        done = subprocess.run(
            [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "LoadTimeout\n"
        lines = done.stderr.splitlines()
        # The jump of the clock may be seen by L1's, which says that it pauses.
        assert [line for line in lines if "goes on" not in line and "incoherent: " not in line] == []


def test_a_child_forked_while_others_load_is_on_its_own(one_redis_url: str) -> None:
    """Flights, leases and workers of the parent are the parent's: the child neither waits nor hangs."""
    with Cache(one_redis_url, l1_window=1, prefix="fork") as cache:
        go, begun = threading.Event(), threading.Event()
        parent = os.getpid()

        @cache.cached(ns="n", key="k", wait_timeout=0.1)
        def f() -> int:
            if os.getpid() == parent:
                begun.set()
                go.wait(30)
            return 1

        thread = threading.Thread(target=f)
        thread.start()
        assert begun.wait(10)
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if f() == 1 and len(cache.world.flights) == 0 else 2
            finally:
                os._exit(code)
        deadline = time.monotonic() + 20
        status = None
        while time.monotonic() < deadline:
            pid, found = os.waitpid(child, os.WNOHANG)
            if pid:
                status = found
                break
            time.sleep(0.01)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
        go.set()
        thread.join(10)
        assert status == 0
