"""Rate limits on real servers: crowds of processes, and the servers' own clocks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from cacheaside import Cache
from cacheaside.testing import FakeClock, Server
from cacheaside.toolkit import RateLimiter

every = pytest.mark.parametrize("algorithm", ["sliding-log", "sliding-counter", "gcra"])


@every
def test_a_burst_of_two_thousand_from_four_processes_gets_exactly_the_limit_in(
    redis_url: str, algorithm: str
) -> None:
    # However busy the machine is, every hit is to be answered.
    command = [sys.executable, "-m", "tests.real.hitting", f"{redis_url}?timeout=30", algorithm, "5", "100"]
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(4)
        ]
        for one in crowd:
            stack.callback(one.kill)
        for one in crowd:
            assert one.stdout
            assert one.stdout.readline() == "ready\n"
        for one in crowd:
            assert one.stdin
            one.stdin.write("go\n")
            one.stdin.flush()
        let_in = [int(one.communicate(timeout=60)[0]) for one in crowd]
    assert sum(let_in) == 100


def test_a_hundred_and_fifty_a_second_get_a_hundred_a_second_in(redis_url: str) -> None:
    """In fifths of a second, for a second; the original lets in the first fifth's and nobody after."""
    with Cache(redis_url, l1_window=None) as cache:
        for attempt in range(5):
            limiter = RateLimiter(cache, 20, 0.2, remember=0)
            let_in, latest = 0, 0.0
            begin = time.monotonic()
            for n in range(150):
                due = begin + n / 150
                time.sleep(max(0.0, due - time.monotonic()))
                let_in += limiter.hit(attempt).allowed
                latest = max(latest, time.monotonic() - due)
            if latest < 0.01:  # else this machine was busy with something else
                assert 95 <= let_in <= 100
                break
        assert 50 <= let_in <= 120


def test_no_window_of_a_real_clock_holds_more_than_the_limit(redis_url: str) -> None:
    """A client that pushes as hard as it can, and is refused for it only while it has to be."""
    limit, window = 20, 0.1
    let_in: list[tuple[float, float]] = []
    with Cache(redis_url, l1_window=None) as cache:
        limiter = RateLimiter(cache, limit, window, remember=0)
        until = time.monotonic() + 30
        while len(let_in) < 4 * limit:
            before = time.monotonic()
            assert before < until
            if limiter.hit("ann"):
                let_in.append((before, time.monotonic()))
    for first, last in zip(let_in, let_in[limit:], strict=False):
        # The server saw the one after `first` was sent, the other before `last` was answered.
        assert last[1] - first[0] >= window


@every
async def test_who_sleeps_for_retry_after_is_let_in(redis_url: str, algorithm: Any) -> None:
    async with Cache(redis_url, l1_window=None) as cache:
        limiter = RateLimiter(cache, limits=[(2, 0.05), (5, 0.3)], algorithm=algorithm)
        slept = 0
        while slept < 4:
            decision = await limiter.ahit("ann")
            if decision:
                continue
            slept += 1
            # Half as long is too short, remembered or asked.
            await asyncio.sleep(decision.retry_after / 2)
            half = await limiter.apeek("ann")
            if half:  # this machine was busy with something else
                continue
            await asyncio.sleep(half.retry_after)
            assert limiter.hit("ann")


@every
def test_the_clocks_of_clients_do_not_matter(redis_url: str, algorithm: Any) -> None:
    """In the original each client drops and counts by its own."""
    late, early = FakeClock(time.time() - 7200), FakeClock(time.time() + 7200)
    with (
        Cache(redis_url, clock=late, l1_window=None) as one,
        Cache(redis_url, clock=early, l1_window=None) as other,
    ):
        limiters = [RateLimiter(cache, 4, 3600, algorithm, remember=0) for cache in (one, other)]
        told = [limiter.hit("ann") for _ in range(4) for limiter in limiters]
        assert [decision.allowed for decision in told] == [True] * 4 + [False] * 4
        assert all(0 < decision.retry_after <= 3600 + 3600 for decision in told[4:])


def test_what_is_kept_is_bounded_and_ends(redis_url: str, server: Server) -> None:
    with Cache(redis_url, prefix="p", l1_window=None) as cache, server.client() as client:
        for algorithm in ("sliding-log", "sliding-counter", "gcra"):
            limiter = RateLimiter(cache, 50, 3600, algorithm, name="api", remember=0)  # type: ignore[arg-type]
            for _ in range(200):
                limiter.hit("ann")
        keys = {
            b"p:global:rate_limit:api:ann",
            b"{p:global:rate_limit:api:ann}:sliding-counter",
            b"{p:global:rate_limit:api:ann}:gcra",
        }
        assert set(client.keys()) == keys
        assert client.zcard("p:global:rate_limit:api:ann") == 50
        assert all(3_590_000 < client.pttl(key) <= 7_200_000 for key in keys)


def test_a_server_that_is_away_decides_nothing_and_is_asked_again() -> None:
    with Server() as server, Cache(server.url, l1_window=None) as cache:
        lenient = RateLimiter(cache, 1, 60, name="lenient")
        strict = RateLimiter(cache, 1, 60, name="strict", on_unavailable="deny")
        assert lenient.hit("ann")
        assert strict.hit("ann")
        server.kill()
        assert [lenient.hit("ann").allowed, strict.hit("bob").allowed] == [True, False]
        server.start()
        assert strict.hit("carl")
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 1
