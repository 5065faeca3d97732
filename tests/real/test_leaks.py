"""Nothing is left open, neither threads nor tasks nor connections nor files: closed, forked, or dropped."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from cacheaside import Cache, StoreUnavailable
from cacheaside.testing import Server
from cacheaside.testing.chaos import ChaosProxy
from cacheaside.testing.servers import wait_until

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the files in /proc")


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def ours() -> list[str]:
    """Threads of caches."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cacheaside")]


def clients(server: Server) -> int:
    with server.client() as client:
        return len(client.client_list(_type="normal")) + len(client.client_list(_type="pubsub"))


class Still:
    """Files, threads of caches and connections that there were before."""

    def __init__(self, server: Server) -> None:
        gc.collect()
        self.server = server
        self.before = self.now()

    def now(self) -> tuple[int, list[str], int]:
        return files(), ours(), clients(self.server)

    def held(self) -> bool:
        return wait_until(lambda: self.now() == self.before, 5)


def use(cache: Cache, number: int) -> None:
    @cache.cached(ns="rows", key="{n}", ttl=60, tags=["rows"])
    def row(n: int) -> int:
        return n

    assert row(number) == row(number) == number
    assert cache.invalidate(tags=["rows"])


def test_a_thousand_rounds_leave_nothing(one_server: Server, one_redis_url: str) -> None:
    """With all that a cache may start: connections, the channel, leases, reclaiming."""
    still = Still(one_server)
    for number in range(1000):
        with Cache(one_redis_url, l1_window=1 if number % 50 == 0 else None) as cache:
            if number % 50 == 0:
                use(cache, number)
            assert cache.get_or_load("rows:row", lambda n=number: n, tags=["rows"]) == number  # type: ignore[misc]
            assert cache.invalidate(tags=["rows"])
    assert ours() == still.before[1], "closing waits for them"
    assert still.held(), (still.before, still.now())


async def test_rounds_on_an_event_loop_leave_nothing(one_server: Server, one_redis_url: str) -> None:
    still = Still(one_server)
    tasks = len(asyncio.all_tasks())
    for number in range(50):
        async with Cache(one_redis_url, l1_window=1 if number % 10 == 0 else None) as cache:

            @cache.cached(ns="rows", key="{n}", ttl=60, tags=["rows"])
            async def row(n: int) -> int:
                return n

            assert await asyncio.gather(*map(row, range(5))) == list(range(5))
            assert await cache.ainvalidate(tags=["rows"])
    assert len(asyncio.all_tasks()) == tasks
    assert await asyncio.to_thread(still.held), (still.before, still.now())


@pytest.mark.parametrize("away", ["black hole", "refused"])
async def test_closed_in_an_outage_nothing_is_left(one_server: Server, one_redis_url: str, away: str) -> None:
    """With invalidations owed, and recovery under way."""
    with ChaosProxy("127.0.0.1", one_server.port) as proxy:
        still = Still(one_server)
        began = 0.0
        async with Cache(proxy.url, timeout=0.2, invalidation_timeout=0.05, l1_window=1) as cache:
            use(cache, 1)
            await cache.aset("rows:set", 1)
            if away == "black hole":
                proxy.black_hole()
            else:
                proxy.refuse()
                proxy.drop()
            for _ in range(4):
                assert not cache.invalidate(tags=["rows"])
                assert not await cache.ainvalidate(tags=["rows"])
            assert not cache.health().ok
            assert "cacheaside-recovery" in ours()
            began = time.monotonic()
        assert time.monotonic() - began < 3
        assert ours() == still.before[1]
        proxy.heal()
        proxy.drop()
        assert await asyncio.to_thread(still.held), (still.before, still.now())


def test_what_is_owed_when_it_is_closed_is_said(one_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with ChaosProxy("127.0.0.1", one_server.port) as proxy:
        cache = Cache(proxy.url, timeout=0.2, invalidation_timeout=0.05, l1_window=None)
        proxy.refuse()
        assert not cache.invalidate(tags=["rows"], keys=["rows:1"])
        cache.close()
    assert "closed while 2 invalidations are not acknowledged" in caplog.text


def in_child(work: Callable[[], object]) -> None:
    """Run it in a forked child; fails if it does."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_forked_child_closes_what_it_has_opened_and_no_more(one_server: Server, one_redis_url: str) -> None:
    still = Still(one_server)
    with Cache(one_redis_url, l1_window=1) as cache:
        use(cache, 1)
        assert wait_until(lambda: cache.health().coherent)

        def work() -> None:
            there, inherited = files(), clients(one_server)
            use(cache, 2)
            assert wait_until(lambda: cache.health().coherent)
            assert clients(one_server) > inherited
            cache.close()
            assert ours() == []
            assert wait_until(lambda: clients(one_server) == inherited)
            # redis-py's pool lets go of the sockets that it had from its parent.
            assert files() <= there

        for _ in range(3):
            in_child(work)
        use(cache, 3)
        assert cache.health().ok
    assert still.held(), (still.before, still.now())


def test_a_child_forked_in_an_outage_recovers_by_itself(one_server: Server, one_redis_url: str) -> None:
    """It owes what its parent owed, and has no thread of its parent's that would send it."""
    with (
        ChaosProxy("127.0.0.1", one_server.port) as proxy,
        Cache(proxy.url, timeout=0.2, invalidation_timeout=0.05, l1_window=None) as cache,
        Cache(one_redis_url, l1_window=None) as other,
    ):
        assert other.set("rows:set", 0)
        proxy.refuse()
        assert not cache.invalidate(keys=["rows:set"])
        for _ in range(3):
            cache.get("rows:set")
        assert not cache.health().ok
        # The proxy is a thread, which the child does not have: it goes straight to the server.
        straight = one_server.port

        def work() -> None:
            cache.link.endpoint = type(cache.link.endpoint)(  # type: ignore[union-attr]
                "redis", (("127.0.0.1", straight),), timeout=0.5
            )
            assert cache.get("rows:set", "gone") == "gone"
            assert wait_until(lambda: cache.get("rows:set", "gone") == "gone" and not cache.health().owed, 5)

        in_child(work)
        with pytest.raises(StoreUnavailable):
            cache.ping()


@pytest.mark.parametrize("l1_window", [None, 0.5])
def test_a_cache_that_nobody_closes_is_not_kept_alive_by_its_threads(
    one_server: Server, one_redis_url: str, l1_window: Any
) -> None:
    still = Still(one_server)

    def dropped() -> weakref.ref[Cache]:
        cache = Cache(one_redis_url, l1_window=l1_window, reclaim_every=0.1)
        use(cache, 1)
        if l1_window is not None:
            assert wait_until(lambda: cache.health().coherent)
        return weakref.ref(cache)

    there = dropped()

    def gone() -> bool:
        gc.collect()
        return there() is None

    assert wait_until(gone, 3)
    # The thread of leases ends by itself when it has been idle for a while.
    assert wait_until(lambda: set(ours()) - set(still.before[1]) <= {"cacheaside-lease"}, 3), ours()
    assert wait_until(lambda: bool(gc.collect() >= 0 and clients(one_server) == still.before[2]), 3)
