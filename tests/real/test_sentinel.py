"""Sentinel: primaries that die while their replica lags, are frozen, or are handed over and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import RedisError

from cacheaside import Cache
from cacheaside.testing import ReplicaSet, Server
from cacheaside.testing.servers import wait_until
from tests.conftest import SERVERS

NOWHERE = 1
"""A port where nobody listens: who follows that lags."""


@pytest.fixture(params=list(SERVERS) or ["none"])
def group(request: pytest.FixtureRequest) -> Iterator[ReplicaSet]:
    with ReplicaSet(request.param) as group:
        with group.sentinel.client() as sentinel:
            # Or it would look at roles only every ten seconds.
            sentinel.execute_command("SENTINEL", "DEBUG", "publish-period", 100, "info-period", 100)
        yield group


class Row:
    """A row, and what a cached function says of it."""

    def __init__(self) -> None:
        self.version = 0
        self.loads = 0

    def reader(self, cache: Cache) -> Callable[[], int]:
        @cache.cached(ns="rows", key="row", ttl=60, tags=["row"])
        def row() -> int:
            self.loads += 1
            return self.version

        return row


def replication(server: Server) -> dict[str, Any]:
    """What a server says of its part; nothing while the sentinel sends its clients away."""
    try:
        with server.client() as client:
            return dict(client.info("replication"))
    except RedisError:
        return {}


def role(server: Server) -> str:
    return str(replication(server).get("role", ""))


def in_step(primary: Server, replica: Server) -> bool:
    mine, theirs = replication(primary), replication(replica)
    return theirs.get("master_link_status") == "up" and bool(
        mine.get("master_repl_offset") == theirs["slave_repl_offset"]
    )


def hand_over(group: ReplicaSet, to: Server) -> None:
    """Have the sentinel promote ``to``, and wait until the other follows it."""
    (other,) = (node for node in group.nodes if node is not to)

    def asked() -> bool:
        with suppress(RedisError), group.sentinel.client() as sentinel:
            return bool(sentinel.execute_command("SENTINEL", "FAILOVER", "main"))
        return False

    assert wait_until(asked, 20)
    assert wait_until(lambda: role(to) == "master" and in_step(to, other), 20)


def served(row: Callable[[], int], rows: Row) -> bool:
    """Whether a second call loads nothing."""
    row()
    loads = rows.loads
    row()
    return rows.loads == loads


@pytest.mark.parametrize("what", [{"tags": ["row"]}, {"keys": ["rows:row"]}], ids=["tag", "key"])
def test_what_the_replica_has_not_heard_does_not_come_back(group: ReplicaSet, what: dict[str, Any]) -> None:
    """Confirmed by the primary, which dies; the replica that is promoted still has the old value."""
    with Cache(group.url, l1_window=None) as cache:
        rows = Row()
        row = rows.reader(cache)
        assert row() == row() == 0
        assert wait_until(lambda: in_step(group.primary, group.replica))
        with group.replica.client() as replica:
            replica.execute_command("REPLICAOF", "127.0.0.1", NOWHERE)
        rows.version = 1
        assert cache.invalidate(**what)
        group.primary.kill()
        assert wait_until(lambda: role(group.replica) == "master", 20)
        assert wait_until(lambda: served(row, rows), 10)
        assert row() == 1
        with Cache(group.url, l1_window=None) as fresh:
            assert rows.reader(fresh)() == 1


def test_a_primary_that_was_handed_over_and_back_is_another_one(group: ReplicaSet) -> None:
    """It still has its run id; what the other one was told in between, and it not, is lost."""
    first, second = group.nodes
    with Cache(group.url, l1_window=None) as cache:
        rows = Row()
        row = rows.reader(cache)
        assert row() == 0
        incarnations = [cache.world.incarnation("rows:row")]
        for to in (second, first):
            hand_over(group, to)
            assert wait_until(lambda: served(row, rows), 10)
            incarnations.append(cache.world.incarnation("rows:row"))
        assert len(set(incarnations)) == 3


def test_l1_is_off_at_a_primary_that_is_one_no_more(group: ReplicaSet) -> None:
    """Frozen, replaced, and back as a replica: within the window L1 is off, and then hears the new one."""
    with Cache(group.url, l1_window=0.4) as cache, Cache(group.url, l1_window=None) as other:
        rows = Row()
        row, theirs = rows.reader(cache), rows.reader(other)
        row(), theirs()
        assert wait_until(lambda: bool(cache.stats()["l1"]["coherent"]))
        group.primary.pause()
        began = time.monotonic()
        assert wait_until(lambda: not cache.stats()["l1"]["coherent"], 2)
        assert time.monotonic() - began < 0.6
        assert wait_until(lambda: role(group.replica) == "master", 20)
        group.primary.resume()
        assert wait_until(lambda: role(group.primary) == "slave", 20)
        assert wait_until(lambda: served(theirs, rows), 10)
        assert wait_until(lambda: bool(cache.stats()["l1"]["coherent"]), 10)
        assert row() == theirs() == 0
        rows.version = 1
        assert other.invalidate(tags=["row"])
        assert wait_until(lambda: row() == 1, 0.5)


def successor(group: ReplicaSet) -> Server:
    """Hand over to the replica; what the sentinel calls the primary now, and its predecessor answers on."""
    to = group.replica
    with group.sentinel.client() as sentinel:
        # It would demote the predecessor soon, to look at it every ten seconds is more like life.
        sentinel.execute_command("SENTINEL", "DEBUG", "publish-period", 5000)

        def asked() -> bool:
            with suppress(RedisError):
                return bool(sentinel.execute_command("SENTINEL", "FAILOVER", "main"))
            return False

        assert wait_until(asked, 20)
        assert wait_until(lambda: sentinel.sentinel_master("main")["port"] == to.port, 20)
    return to


@pytest.mark.parametrize("failover", ["auto", "strict"])
def test_who_has_open_connections_hears_that_another_server_took_over(
    group: ReplicaSet, failover: Any
) -> None:
    """The one before still answers as a primary, and nothing breaks: only the sentinels know."""
    with (
        Cache(group.url, failover=failover) as reader,
        Cache(group.url, failover=failover, l1_window=None) as plain,
        Cache(group.url, failover=failover) as writer,
    ):
        rows = Row()
        calls = [rows.reader(reader), rows.reader(plain)]
        for call in calls:
            assert call() == call() == 0
        assert wait_until(lambda: in_step(group.primary, group.replica))
        assert wait_until(lambda: bool(reader.stats()["l1"]["coherent"]))
        before = group.primary
        successor(group)
        rows.version = 1
        assert wait_until(lambda: writer.invalidate(tags=["row"]), 5)
        assert wait_until(lambda: [call() for call in calls] == [1, 1], 0.5)
        assert role(before) == "master"  # or the test shows nothing
        assert [call() for call in calls for _ in range(20)] == [1] * 40


async def test_a_loop_and_threads_leave_a_server_together(group: ReplicaSet) -> None:
    """What a thread has invalidated on the new server, no connection of a loop reads from the old one."""
    async with Cache(group.url, l1_window=None) as cache:
        version = 0

        @cache.cached(ns="rows", key="row", ttl=60, tags=["row"])
        async def row() -> int:
            return version

        assert await row() == await row() == 0
        assert cache.link.watch is not None  # type: ignore[union-attr]
        cache.link.watch.close()  # type: ignore[union-attr]  # nobody tells; the thread itself meets the successor
        assert wait_until(lambda: in_step(group.primary, group.replica))
        before = group.primary
        successor(group)
        version = 1
        assert cache.set("n:k", 1)  # its connection is new, and asks the sentinels
        assert cache.invalidate(tags=["row"])
        assert wait_until(lambda: not cache.world.journal.owing, 5)  # or it would be doubted anyway
        assert await row() == 1
        assert role(before) == "master"


async def test_a_loop_finds_the_new_primary(group: ReplicaSet) -> None:
    async with Cache(group.url, l1_window=None) as cache:
        loads: list[int] = []

        @cache.cached(ns="rows", key="row", ttl=60, tags=["row"])
        async def row() -> int:
            loads.append(1)
            return len(loads)

        assert await row() == await row() == 1
        group.primary.kill()
        assert wait_until(lambda: role(group.replica) == "master", 20)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            before = len(loads)
            if await row() == await row() and len(loads) - before <= 1:
                break
        else:
            raise AssertionError("not served again")
        assert await cache.ainvalidate(tags=["row"])
        assert await row() == len(loads)


def test_a_sentinel_that_may_not_be_listened_to_is_asked(group: ReplicaSet) -> None:
    """Its account may not subscribe: the switch is seen all the same, for it is asked again and again."""
    with group.sentinel.client() as sentinel:
        sentinel.execute_command("ACL", "SETUSER", "default", "-subscribe")
    with (
        Cache(group.url, l1_window=None) as reader,
        Cache(group.url, l1_window=None) as writer,
    ):
        rows = Row()
        row = rows.reader(reader)
        assert row() == row() == 0
        assert wait_until(lambda: in_step(group.primary, group.replica))
        before = group.primary
        successor(group)
        rows.version = 1
        assert wait_until(lambda: writer.invalidate(tags=["row"]), 5)
        assert wait_until(lambda: row() == 1, 2)
        assert role(before) == "master"
