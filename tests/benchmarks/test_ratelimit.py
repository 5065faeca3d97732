"""A hit of a rate limiter, beside ``limits`` on the same Redis: for the table only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import pytest

from cacheaside import Cache
from cacheaside.toolkit import RateLimiter

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]

MANY = 1_000_000


@pytest.fixture
async def limiters(one_redis_url: str) -> AsyncIterator[dict[str, Any]]:
    """Both libraries' exact and counting windows: one that lets all of this in, one that is full."""
    limits = pytest.importorskip("limits")
    aio = pytest.importorskip("limits.aio")
    storage = limits.storage.RedisStorage(one_redis_url)
    astorage = aio.storage.RedisStorage("async+" + one_redis_url, implementation="redispy")
    cache = Cache(one_redis_url)
    log = limits.strategies.MovingWindowRateLimiter(storage)
    alog = aio.strategies.MovingWindowRateLimiter(astorage)
    counter = limits.strategies.SlidingWindowCounterRateLimiter(storage)
    much, little = limits.RateLimitItemPerSecond(MANY), limits.RateLimitItemPerHour(1)
    ours = {
        name: RateLimiter(cache, MANY, 1, algorithm)  # type: ignore[arg-type]
        for name, algorithm in (("log", "sliding-log"), ("counter", "sliding-counter"), ("gcra", "gcra"))
    }
    full = RateLimiter(cache, 1, 3600, remember=0)
    known = RateLimiter(cache, 1, 3600, name="known")
    names = locals() | {f"our_{name}": limiter for name, limiter in ours.items()}
    assert full.hit("ann")
    assert known.hit("ann")
    assert log.hit(little, "ann")
    for refused in (full.hit("ann"), known.hit("ann"), log.hit(little, "ann")):
        assert not refused
    yield names
    await astorage.bridge.storage.aclose()
    storage.storage.close()
    await cache.aclose()


async def test_hits(race: Any, limiters: dict[str, Any]) -> None:
    theirs = f"limits {version('limits')}"
    await race(
        "Hit let in, exact window",
        {"cacheaside": "our_log.hit('ann')", theirs: "log.hit(much, 'ann')"},
        limiters,
    )
    await race(
        "The same, and what is left",
        {
            "cacheaside": "our_log.hit('ann')",
            theirs: "(log.hit(much, 'ann'), log.get_window_stats(much, 'ann'))",
        },
        limiters,
    )
    await race(
        "Hit let in, counters",
        {
            "cacheaside": "our_counter.hit('ann')",
            "cacheaside, gcra": "our_gcra.hit('ann')",
            theirs: "counter.hit(much, 'ann')",
        },
        limiters,
    )
    await race(
        "Hit let in, exact window, asyncio",
        {"cacheaside": "await our_log.ahit('ann')", theirs: "await alog.hit(much, 'ann')"},
        limiters,
    )
    await race(
        "Hit refused, exact window",
        {
            "cacheaside": "known.hit('ann')",
            "cacheaside, remember=0": "full.hit('ann')",
            theirs: "log.hit(little, 'ann')",
        },
        limiters,
    )
