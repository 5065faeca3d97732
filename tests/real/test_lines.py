"""Connections kept for reads: reused, dropped when half used, replaced when the server has closed them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from cacheaside import Cache
from cacheaside.stores.lines import AsyncLines, Lines, packed


@pytest.fixture
def client(one_redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(one_redis_url, retry=Retry(NoBackoff(), 0)) as client:
        client.mset({"a": b"1", "b:é": b"2"})
        yield client


@pytest.fixture
async def aclient(one_redis_url: str, client: Any) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(one_redis_url) as aclient:
        yield aclient


def connections(client: Any) -> int:
    return sum(1 for one in client.client_list() if one["cmd"].startswith("mget"))


def test_a_read_is_an_mget(client: Any) -> None:
    lines = Lines(client)
    assert lines.mget(("b:é", "none", "a")) == [b"2", None, b"1"]
    assert packed(("a", "é")) == b"*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$2\r\n\xc3\xa9\r\n"


def test_reads_one_after_the_other_share_a_connection(client: Any) -> None:
    lines = Lines(client)
    for _ in range(5):
        lines.mget(("a",))
    assert connections(client) == 1


def test_a_connection_that_the_server_has_closed_costs_no_error(client: Any) -> None:
    lines = Lines(client)
    lines.mget(("a",))
    client.client_kill_filter(_type="normal", skipme=True)
    assert lines.mget(("a",)) == [b"1"]


def test_a_reply_that_comes_too_late_answers_nobody_else(client: Any, one_redis_url: str) -> None:
    """The connection that it would arrive on is closed."""
    with redis.Redis.from_url(one_redis_url, socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as hasty:
        lines = Lines(hasty)
        lines.mget(("a",))
        client.client_pause(300)
        with pytest.raises(RedisTimeoutError):
            lines.mget(("late",))
        client.ping()  # answered when the pause is over
        assert lines.mget(("a",)) == [b"1"]


def test_a_kept_connection_serves_writes_too(one_redis_url: str) -> None:
    with redis.Redis.from_url(one_redis_url, max_connections=1) as client:
        lines = Lines(client)
        for _ in range(2):
            lines.mget(("a",))
            assert lines.pooled().set("a", b"1")


async def test_a_kept_connection_serves_writes_of_its_loop_too(one_redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(one_redis_url, max_connections=1) as client:
        lines = AsyncLines(client)
        for _ in range(2):
            await lines.mget(("a",))
            assert await (await lines.pooled()).set("a", b"1")


def test_a_child_does_not_read_on_its_parents_connection(client: Any) -> None:
    lines = Lines(client)
    lines.mget(("a",))
    (line,) = lines._kept
    lines._pid = os.getpid() + 1  # what a child sees
    assert lines.mget(("a",)) == [b"1"]
    assert line not in lines._kept


async def test_the_same_on_an_event_loop(aclient: Any, client: Any) -> None:
    lines = AsyncLines(aclient)
    assert await lines.mget(("a", "none")) == [b"1", None]
    assert await lines.mget(("a",)) == [b"1"]
    assert connections(client) == 1
    client.client_kill_filter(_type="normal", skipme=True)
    assert await lines.mget(("a",)) == [b"1"]


async def test_a_cancelled_read_leaves_no_reply_behind(aclient: Any, client: Any) -> None:
    lines = AsyncLines(aclient)
    await lines.mget(("a",))
    client.client_pause(60)
    reading = asyncio.create_task(lines.mget(("b",)))
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await lines.mget(("a",)) == [b"1"]


@pytest.mark.parametrize("most", [100, 4])
async def test_a_crowd_of_misses_waits_for_connections(one_redis_url: str, most: int) -> None:
    async with Cache(f"{one_redis_url}?max_connections={most}", timeout=20, l1_window=None) as cache:

        @cache.cached(ns="n", key="{n}", tags=["{n}"])
        async def same(n: int) -> int:
            return n

        assert await asyncio.gather(*map(same, range(300))) == list(range(300))
        counts = cache.stats()["namespaces"]["n"]
        assert (counts["stored"], counts["unavailable"]) == (300, 0)
