"""A cache behind a bad network: callers are answered, in time, and never with what was invalidated."""

from __future__ import annotations

import inspect
import threading
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from cacheaside import Cache
from cacheaside.testing import Server
from cacheaside.testing.chaos import ChaosProxy
from cacheaside.testing.servers import wait_until

FAST = "?timeout=0.2&connect_timeout=0.2"
BUDGET = 1.0
"""Seconds that a call may take in trouble: a few timeouts, and the patience of a busy machine."""
WINDOW = 0.4


@pytest.fixture
def proxy(server: Server, redis_url: str) -> Iterator[ChaosProxy]:
    with ChaosProxy("127.0.0.1", server.port) as made:
        yield made


class Table:
    """A row with a version, and cached functions of either colour that read it."""

    def __init__(self) -> None:
        self.version = 0
        self.padding = ""

    def read(self, cache: Cache, colour: str) -> Callable[[], Awaitable[str]]:
        def row() -> str:
            return f"{self.version}{self.padding}"

        async def arow() -> str:
            return f"{self.version}{self.padding}"

        cached: Any = cache.cached(ns="rows", key="row", ttl=60, tags=["rows"])(
            row if colour == "sync" else arow
        )

        async def call() -> str:
            answer = cached()
            return await answer if inspect.isawaitable(answer) else answer

        return call

    @property
    def now(self) -> str:
        return f"{self.version}{self.padding}"


async def invalidate(cache: Cache, colour: str) -> bool:
    if colour == "sync":
        return bool(cache.invalidate(tags=["rows"]))
    return bool(await cache.ainvalidate(tags=["rows"]))


both = pytest.mark.parametrize("colour", ["sync", "async"])


async def in_time(call: Callable[[], Awaitable[Any]]) -> Any:
    began = time.monotonic()
    answer = await call()
    assert time.monotonic() - began < BUDGET
    return answer


@both
@pytest.mark.parametrize("direction", [None, "requests", "replies"])
async def test_in_a_black_hole_calls_are_answered_by_their_function(
    proxy: ChaosProxy, colour: str, direction: Any
) -> None:
    """And an invalidation says that it was not heard; all is well when the network is back."""
    async with Cache(proxy.url + FAST, invalidation_timeout=0.3, l1_window=None) as cache:
        table = Table()
        row = table.read(cache, colour)
        assert await row() == await row() == "0"
        proxy.black_hole(direction=direction)
        for version in range(1, 4):
            table.version = version
            assert await in_time(row) == table.now
        assert not await in_time(lambda: invalidate(cache, colour))
        proxy.heal()
        assert wait_until(lambda: cache.health().ok, 2)
        table.version = 10
        assert await invalidate(cache, colour)
        assert await row() == await row() == "10"
        counts = cache.stats()["namespaces"]["rows"]
        assert counts["unavailable"] == 3
        assert counts["hits_l2"] == 2


@both
async def test_a_refused_connection_costs_no_time(proxy: ChaosProxy, colour: str) -> None:
    async with Cache(proxy.url + FAST, l1_window=None) as cache:
        table = Table()
        row = table.read(cache, colour)
        await row()
        proxy.refuse()
        proxy.drop()
        began = time.monotonic()
        for table.version in range(1, 11):
            assert await row() == table.now
        assert time.monotonic() - began < BUDGET
        proxy.heal()
        assert await invalidate(cache, colour)
        assert await row() == "10"


@both
@pytest.mark.parametrize("fault", ["reset", "close_after", "half_close"])
async def test_a_connection_that_ends_in_a_reply_is_no_error_of_the_caller(
    proxy: ChaosProxy, colour: str, fault: str
) -> None:
    """Wherever it ends: in a hit, a miss, an invalidation, or the handshake of the next connection."""
    async with Cache(proxy.url + FAST, l1_window=None) as cache:
        table = Table()
        row = table.read(cache, colour)
        await row()
        for after in range(0, 120, 3):
            getattr(proxy, fault)(after, times=1 + after % 2)
            for _ in range(2):
                assert await row() == table.now
            table.version += 1
            assert await invalidate(cache, colour)
            assert await row() == await row() == table.now
        assert cache.stats()["namespaces"]["rows"]["hits_l2"] > 20
        assert proxy.connections > 20


@both
@pytest.mark.parametrize("protocol", [2, 3])
async def test_replies_that_come_byte_by_byte_are_read_right(
    proxy: ChaosProxy, colour: str, protocol: int
) -> None:
    async with Cache(
        f"{proxy.url}?timeout=5&protocol={protocol}", compress_above=None, l1_window=None
    ) as cache:
        table = Table()
        table.padding = "é" * 3000
        row = table.read(cache, colour)
        proxy.chop(1)
        for table.version in range(3):
            assert await invalidate(cache, colour)
            assert await row() == await row() == table.now
        assert cache.stats()["namespaces"]["rows"]["hits_l2"] == 3


@both
async def test_a_slow_network_slows_and_changes_nothing(proxy: ChaosProxy, colour: str) -> None:
    async with Cache(f"{proxy.url}?timeout=5", l1_window=None) as cache:
        table = Table()
        row = table.read(cache, colour)
        await row()
        proxy.latency(0.01, jitter=0.02)
        for table.version in range(1, 6):
            assert await invalidate(cache, colour)
            assert await row() == await row() == table.now


# ---------------------------------------------------------------------------- L1


def coherent(cache: Cache) -> bool:
    return bool(cache.stats()["l1"]["coherent"])


@pytest.fixture
def near(proxy: ChaosProxy) -> Iterator[Cache]:
    """A cache with L1 behind the proxy."""
    with Cache(proxy.url + FAST, l1_window=WINDOW) as made:
        yield made


@pytest.fixture
def elsewhere(redis_url: str) -> Iterator[Cache]:
    """A writer in another process, as far as the cache can tell; its network is fine."""
    with Cache(redis_url, l1_window=None) as made:
        yield made


@pytest.mark.parametrize(
    ("role", "direction"), [("channel", "replies"), ("channel", None), ("commands", None), (None, None)]
)
def test_a_black_hole_turns_l1_off_within_its_window(
    near: Cache, elsewhere: Cache, proxy: ChaosProxy, role: Any, direction: Any
) -> None:
    """Whichever connection it is that nothing comes through, and what L1 says is never older than that."""
    version = 0

    @near.cached(ns="rows", key="row", ttl=60, tags=["rows"])
    def row() -> int:
        return version

    row()
    assert wait_until(lambda: coherent(near))
    assert row() == row() == 0
    assert near.stats()["namespaces"]["rows"]["hits_l1"] > 0
    proxy.black_hole(role=role, direction=direction)
    version = 1
    assert elsewhere.invalidate(tags=["rows"])
    acknowledged = time.monotonic()
    served_old = 0
    while (began := time.monotonic()) < acknowledged + 2 * WINDOW:
        if row() == 0:
            served_old += 1
            assert began < acknowledged + WINDOW
    if role != "commands":  # else the channel has told of it at once
        assert served_old > 0, "L1 was on when the network went"
    assert not coherent(near)
    proxy.heal()
    assert wait_until(lambda: coherent(near))
    assert row() == row() == 1
    near.invalidate(tags=["rows"])
    version = 2
    elsewhere.invalidate(tags=["rows"])
    assert wait_until(lambda: row() == 2, WINDOW)


def test_a_channel_that_never_answers_never_turns_l1_on(proxy: ChaosProxy) -> None:
    proxy.black_hole(role="channel")
    with Cache(proxy.url + FAST, l1_window=WINDOW) as cache:
        calls = []

        @cache.cached(ns="rows", key="row", ttl=60)
        def row() -> int:
            calls.append(1)
            return 1

        row()
        assert wait_until(lambda: proxy.open("channel") == 1)
        for _ in range(9):
            assert row() == 1
        assert not coherent(cache)
        counts = cache.stats()["namespaces"]["rows"]
        assert (len(calls), counts["hits_l1"], counts["hits_l2"]) == (1, 0, 9)


@pytest.mark.parametrize("fault", ["late", "chopped", "cut", "late channel", "cut channel"])
def test_l1_behind_a_bad_network_is_never_older_than_its_window(
    near: Cache, elsewhere: Cache, proxy: ChaosProxy, fault: str
) -> None:
    """A reader beside a writer elsewhere."""
    version, known = 0, [(0.0, 0)]
    pause = threading.Event()

    @near.cached(ns="rows", key="row", ttl=60, tags=["rows"])
    def row() -> int:
        return version

    row()
    assert wait_until(lambda: coherent(near))
    faults: dict[str, Callable[[], object]] = {
        "late": lambda: proxy.latency(0.005, jitter=0.01),
        "chopped": lambda: proxy.chop(1),
        "cut": lambda: proxy.close_after(2500),
        "late channel": lambda: proxy.latency(0.15, jitter=0.1, role="channel", direction="replies"),
        "cut channel": lambda: proxy.reset(1500, role="channel"),
    }
    faults[fault]()
    end = time.monotonic() + 2.0

    def write() -> None:
        nonlocal version
        while time.monotonic() < end:
            version += 1
            wrote = version
            assert elsewhere.invalidate(tags=["rows"])
            known.append((time.monotonic(), wrote))
            pause.wait(0.1)  # a slow network has to be able to fill L1 in between

    writer = threading.Thread(target=write)
    writer.start()
    answers = []
    while (began := time.monotonic()) < end:
        answers.append((began, row()))
        pause.wait(0.001)  # the proxy is a thread of this process, and not to be starved
    writer.join()
    for began, answered in answers:
        assert answered >= known[bisect_right(known, (began - WINDOW, 0)) - 1][1]
    assert near.stats()["namespaces"]["rows"]["hits_l1"] > 10
    assert version > 10
