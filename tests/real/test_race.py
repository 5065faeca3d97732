"""The race that the library is about, on real servers: what was read before a write must not outlive it.

A reader misses and loads the old row slowly; a writer changes the row and invalidates; the reader's
load returns. From then on nobody may be answered with the old row.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from msgspec import Struct

from cacheaside import Cache
from cacheaside.testing.servers import wait_until

PATIENCE = 10.0
ID = 7


class Row(Struct, frozen=True):
    id: int
    version: int
    author_id: int = 3


class Table:
    """Rows with versions; the load that comes first reads its row and then takes its time."""

    def __init__(self) -> None:
        self.version = 1
        self.reading = threading.Event()
        self.go_on = threading.Event()

    def write(self) -> Row:
        self.version += 1
        return self.row(ID)

    def row(self, id: int) -> Row:
        return Row(id, self.version)

    def load(self, id: int) -> Row:
        row = self.row(id)
        if not self.reading.is_set():
            self.reading.set()
            assert self.go_on.wait(PATIENCE)
        return row

    async def aload(self, id: int) -> Row:
        row = self.row(id)
        if not self.reading.is_set():
            self.reading.set()
            assert await asyncio.to_thread(self.go_on.wait, PATIENCE)
        return row


class Process:
    """What one process has: a cache and the cached readers, all of them over the same table."""

    def __init__(self, cache: Cache, table: Table, *, asynchronous: bool, l1: bool) -> None:
        self.cache = cache
        self.table = table
        self.asynchronous = asynchronous
        common: Any = {"ns": "posts", "ttl": 60, "l1": l1}
        tagged: Any = {**common, "tags": ["post:{id}", "posts"]}
        if asynchronous:

            @cache.cached(key="function:{id}", **tagged)
            async def function(id: int) -> Row:
                return await table.aload(id)

            @cache.cached(key="late:{id}", **common, tags=["author:{result.author_id}"])
            async def late(id: int) -> Row:
                return await table.aload(id)

            @cache.cached_many(key="many:{id}", **tagged)
            async def many(ids: list[int]) -> dict[int, Row]:
                return {id: await table.aload(id) for id in ids}

            class Repository:
                @cache.cached(key="method:{id}", **tagged)
                async def get(self, id: int) -> Row:
                    return await table.aload(id)

            @cache.invalidates(
                ns="posts",
                keys=["function:{id}", "method:{id}", "many:{id}"],
                tags=["author:{result.author_id}"],
            )
            async def save(id: int) -> Row:
                return table.write()

        else:

            @cache.cached(key="function:{id}", **tagged)
            def function(id: int) -> Row:
                return table.load(id)

            @cache.cached(key="late:{id}", **common, tags=["author:{result.author_id}"])
            def late(id: int) -> Row:
                return table.load(id)

            @cache.cached_many(key="many:{id}", **tagged)
            def many(ids: list[int]) -> dict[int, Row]:
                return {id: table.load(id) for id in ids}

            class Repository:
                @cache.cached(key="method:{id}", **tagged)
                def get(self, id: int) -> Row:
                    return table.load(id)

            @cache.invalidates(
                ns="posts",
                keys=["function:{id}", "method:{id}", "many:{id}"],
                tags=["author:{result.author_id}"],
            )
            def save(id: int) -> Row:
                return table.write()

        self.readers: dict[str, Any] = {
            "function": function,
            "method": Repository().get,
            "many": many,
            "late": late,
        }
        self.save = save

    async def read(self, reader: str) -> Row:
        if reader == "many":
            return (await self.do(self.readers["many"], [ID]))[ID]
        return await self.do(self.readers[reader], ID)

    async def invalidate(self, reader: str) -> None:
        function = self.readers[reader]
        assert await self.do(function.invalidate, [ID] if reader == "many" else ID)

    async def do(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call here what is async, and what is not in a thread."""
        if self.asynchronous:
            return await function(*args, **kwargs)
        return await asyncio.to_thread(function, *args, **kwargs)

    async def direct(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        name = f"a{operation}" if self.asynchronous else operation
        return await self.do(getattr(self.cache, name), *args, **kwargs)


# Each way to write: changes the row of ``writer.table`` and says so to the cache.


async def by_key(writer: Process, reader: str) -> None:
    writer.table.write()
    await writer.invalidate(reader)


async def by_direct_key(writer: Process, reader: str) -> None:
    writer.table.write()
    assert await writer.direct("delete", f"posts:{reader}:{ID}")


async def by_tag(writer: Process, reader: str) -> None:
    writer.table.write()
    assert await writer.direct("invalidate", tags=[f"post:{ID}", "author:3"])


async def by_shared_tag(writer: Process, reader: str) -> None:
    writer.table.write()
    assert await writer.direct("invalidate", tags=["posts", "author:3"])


async def by_pattern(writer: Process, reader: str) -> None:
    writer.table.write()
    assert await writer.direct("delete_matching", f"posts:{reader}:*")


async def by_clearing(writer: Process, reader: str) -> None:
    writer.table.write()
    assert await writer.direct("clear")


async def by_clearing_the_namespace(writer: Process, reader: str) -> None:
    writer.table.write()
    assert await writer.direct("clear", "posts")


async def by_put(writer: Process, reader: str) -> None:
    await writer.do(writer.readers[reader].put, writer.table.write(), ID)


async def by_direct_set(writer: Process, reader: str) -> None:
    writer.table.write()
    await writer.direct("set", f"posts:{reader}:{ID}", "read by nobody: another schema")


async def by_invalidates(writer: Process, reader: str) -> None:
    if reader == "late":  # whose keys the decorated function does not name
        await by_key(writer, reader)
    else:
        await writer.do(writer.save, ID)


async def by_updates(writer: Process, reader: str) -> None:
    tags = ["author:{result.author_id}"] if reader == "late" else ["post:{id}", "posts"]
    updates = writer.cache.updates(ns="posts", key=reader + ":{id}", ttl=60, tags=tags)

    def save(id: int) -> Row:
        return writer.table.write()

    async def asave(id: int) -> Row:
        return writer.table.write()

    await writer.do(updates(asave if writer.asynchronous else save), ID)


async def by_mutating(writer: Process, reader: str) -> None:
    what = {"keys": [f"posts:{reader}:{ID}"], "tags": [f"post:{ID}"]}
    if writer.asynchronous:
        async with writer.cache.mutating(**what):
            writer.table.write()
            assert (await writer.read(reader)).version == writer.table.version
    else:
        with writer.cache.mutating(**what):
            writer.table.write()
            assert (await writer.read(reader)).version == writer.table.version


async def by_transaction(writer: Process, reader: str) -> None:
    if writer.asynchronous:
        async with writer.cache.transaction():
            await writer.do(writer.readers[reader].invalidate, [ID] if reader == "many" else ID)
            writer.table.write()
    else:
        with writer.cache.transaction():
            await writer.do(writer.readers[reader].invalidate, [ID] if reader == "many" else ID)
            writer.table.write()


WRITES = [
    by_key, by_direct_key, by_tag, by_shared_tag, by_pattern, by_clearing, by_clearing_the_namespace, by_put,
    by_direct_set, by_invalidates, by_updates, by_mutating, by_transaction,
]  # fmt: skip


@pytest.mark.parametrize("l1", [True, False], ids=["l1", "no-l1"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("reader", ["function", "method", "many", "late"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
async def test_what_was_loaded_before_a_write_is_never_answered_after_it(
    redis_url, write, reader, asynchronous, l1
):
    for same in (True, False):  # the writer in the reader's process, and in another
        table = Table()
        caches = [Cache(redis_url, prefix=f"race{same}", l1_window=None) for _ in range(3)]
        try:
            processes = [Process(c, table, asynchronous=asynchronous, l1=l1) for c in caches]
            writer = processes[0] if same else processes[1]
            slow = asyncio.create_task(processes[0].read(reader))
            assert await asyncio.to_thread(table.reading.wait, PATIENCE)
            await write(writer, reader)
            table.go_on.set()
            assert (await slow).version == 1  # it began before the write, so it may have the old row
            for _ in range(3):
                for process in processes:
                    assert (await process.read(reader)).version == 2
            if reader != "late":
                hits = sum(c.stats()["namespaces"]["posts"]["hits_l2"] for c in caches)
                assert hits >= 8  # the new row is cached, so the race was not won by caching nothing
        finally:
            table.go_on.set()
            for cache in caches:
                await cache.aclose()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_who_comes_after_an_invalidation_does_not_join_a_load_from_before_it(redis_url, asynchronous):
    """In one process: the second caller starts while the first is still loading the old row."""
    table = Table()
    async with Cache(redis_url, l1_window=None) as cache:
        process = Process(cache, table, asynchronous=asynchronous, l1=True)
        for write in (by_key, by_tag):
            table.reading.clear()
            table.go_on.clear()
            slow = asyncio.create_task(process.read("function"))
            assert await asyncio.to_thread(table.reading.wait, PATIENCE)
            old = table.version
            await write(process, "function")
            assert (await process.read("function")).version == old + 1
            table.go_on.set()
            assert (await slow).version == old
            assert (await process.read("function")).version == old + 1
            await process.invalidate("function")


async def test_a_transaction_that_fails_drops_its_invalidations(redis_url):
    table = Table()
    table.reading.set()
    async with Cache(redis_url, l1_window=None) as cache:
        process = Process(cache, table, asynchronous=True, l1=True)
        await process.read("function")

        async def fail() -> None:
            async with cache.transaction():
                await process.readers["function"].invalidate(ID)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await process.read("function")
        assert cache.stats()["namespaces"]["posts"]["hits_l2"] == 1


async def test_a_writer_that_dies_in_mutating_leaves_misses_and_no_old_row(redis_url):
    """Its hold stands until it expires: whoever reads meanwhile loads for himself and stores nothing."""
    table = Table()
    table.reading.set()
    async with Cache(redis_url, l1_window=None) as dying, Cache(redis_url, l1_window=None) as living:
        process = Process(living, table, asynchronous=True, l1=True)
        await process.read("function")
        await dying.mutating(tags=[f"post:{ID}"], hold=30).__aenter__()
        assert (await process.read("function")).version == 1
        table.write()
        for _ in range(3):
            assert (await process.read("function")).version == 2
        assert living.stats()["namespaces"]["posts"]["stored"] == 1


@pytest.mark.parametrize("by", ["key", "tag"])
async def test_nothing_takes_the_hold_of_a_writer_away(redis_url, by):
    """Puts, invalidations and other blocks come and go while it lives, and it dies after its commit."""
    table = Table()
    table.reading.set()
    async with Cache(redis_url, l1_window=None) as dying, Cache(redis_url, l1_window=None) as living:
        process = Process(living, table, asynchronous=True, l1=True)
        key, tag = f"posts:function:{ID}", f"post:{ID}"
        what = {"keys": [key]} if by == "key" else {"tags": [tag]}
        await dying.mutating(**what, hold=30).__aenter__()
        table.write()
        async with living.mutating(**what):
            pass
        assert await living.ainvalidate(keys=[key], tags=[tag])
        assert not await living.aset(key, "old", tags=[tag])
        for _ in range(2):
            assert (await process.read("function")).version == 2
        assert living.stats()["namespaces"]["posts"]["stored"] == 0


async def test_a_hold_ends_by_the_clock_of_the_server(redis_url, server):
    """One that is over does not keep the place of one that was released."""
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        cache.invalidate(keys=["n:k"], hold=0.05)
        block = cache.mutating(keys=["n:k"])
        block.__enter__()
        begun = client.time()
        assert wait_until(lambda: seconds_between(begun, client.time()) > 0.06)
        assert client.exists(cache.world.keys.value("n:k"))
        block.__exit__(None, None, None)
        assert not client.exists(cache.world.keys.value("n:k"))


def seconds_between(one: tuple[int, int], other: tuple[int, int]) -> float:
    return other[0] - one[0] + (other[1] - one[1]) / 1e6


# ---------------------------------------------------------------------------- torture


class Rows:
    """A source whose rows only ever get newer, and what of it has been acknowledged."""

    def __init__(self, count: int) -> None:
        self.versions = [1] * count
        self.acked = [1] * count
        self._lock = threading.Lock()

    def bump(self, id: int) -> Row:
        with self._lock:
            self.versions[id] += 1
            return Row(id, self.versions[id])

    def ack(self, row: Row) -> None:
        with self._lock:
            self.acked[row.id] = max(self.acked[row.id], row.version)


class Torture:
    """Readers and writers of one process, threads and tasks, until the deadline."""

    def __init__(self, cache: Cache, rows: Rows, seconds: float, seen: Counter[str]) -> None:
        self.cache = cache
        self.rows = rows
        self.until = time.monotonic() + seconds
        self.seen = seen
        common: Any = {"ns": "rows", "ttl": 30, "tags": ["row:{id}"], "jitter": 0}

        @cache.cached(key="one:{id}", **common, lease_ttl=0.5, wait_timeout=1)
        def one(id: int) -> Row:
            version = rows.versions[id]
            time.sleep(random.random() * 0.004)
            return Row(id, version)

        @cache.cached(key="aone:{id}", **common, lease_ttl=0.5, wait_timeout=1)
        async def aone(id: int) -> Row:
            version = rows.versions[id]
            await asyncio.sleep(random.random() * 0.004)
            return Row(id, version)

        @cache.cached_many(key="many:{id}", **common, lease_ttl=0.5, wait_timeout=1)
        def many(ids: list[int]) -> dict[int, Row]:
            versions = {id: rows.versions[id] for id in ids}
            time.sleep(random.random() * 0.004)
            return {id: Row(id, version) for id, version in versions.items()}

        @cache.updates(ns="rows", key="one:{id}", ttl=30, tags=["row:{id}"])
        def update(id: int) -> Row:
            return rows.bump(id)

        self.one, self.aone, self.many, self.update = one, aone, many, update

    def check(self, who: str, got: Row, least: int) -> None:
        self.seen[who] += 1
        if got.version < least:
            self.seen["stale"] += 1

    def read(self) -> None:
        ids = range(len(self.rows.versions))
        while time.monotonic() < self.until:
            if random.random() < 0.8:
                id = random.choice(ids)
                least = self.rows.acked[id]
                self.check("reads in threads", self.one(id), least)
            else:
                some = random.sample(ids, 3)
                least_of = {id: self.rows.acked[id] for id in some}
                for id, row in self.many(some).items():
                    self.check("reads of many", row, least_of[id])

    def write(self) -> None:
        while time.monotonic() < self.until:
            time.sleep(random.random() * 0.004)
            id = random.randrange(len(self.rows.versions))
            way = random.choice(("tag", "tag", "keys", "update", "mutating", "pattern"))
            if way == "tag":
                row = self.rows.bump(id)
                done = self.cache.invalidate(tags=[f"row:{id}"])
            elif way == "keys":
                row = self.rows.bump(id)
                done = self.cache.delete(f"rows:one:{id}", f"rows:aone:{id}", f"rows:many:{id}")
            elif way == "update":
                row = self.update(id)
                done = self.cache.delete(f"rows:aone:{id}", f"rows:many:{id}")
            elif way == "mutating":
                with self.cache.mutating(tags=[f"row:{id}"], hold=5) as mutation:
                    row = self.rows.bump(id)
                done = mutation.receipt
            else:
                row = self.rows.bump(id)
                self.cache.delete_matching(f"rows:*:{id}")
                done = True
            if done:
                self.rows.ack(row)
                self.seen[f"written by {way}"] += 1

    def tasks(self) -> None:
        async def read() -> None:
            while time.monotonic() < self.until:
                id = random.randrange(len(self.rows.versions))
                least = self.rows.acked[id]
                self.check("reads in tasks", await self.aone(id), least)
                if random.random() < 0.2:
                    await asyncio.sleep(0)

        async def run() -> None:
            await asyncio.gather(*(read() for _ in range(8)))
            await self.cache.aclose()

        asyncio.run(run())


def wreck(url: str, until: float, seen: Counter[str]) -> None:
    """Another client: evicts keys of every kind, and now and then everything, scripts as well."""
    with redis.Redis.from_url(url) as client:
        while time.monotonic() < until:
            time.sleep(random.random() * 0.01)
            chance = random.random()
            if chance < 0.02 or not seen["flushes"]:
                client.flushall()
                seen["flushes"] += 1
            elif chance < 0.06:
                client.script_flush()
                seen["script flushes"] += 1
            else:
                key = client.randomkey()
                if key is not None:
                    seen["evictions"] += client.unlink(key)


def test_torture_by_threads_tasks_writers_and_evictions(redis_url):
    """No answer is older than what had been acknowledged before the call began."""
    seconds = 2.5
    rows, seen = Rows(5), Counter[str]()
    caches = [Cache(redis_url, l1_window=None) for _ in range(2)]
    try:
        sides = [Torture(cache, rows, seconds, seen) for cache in caches]
        with ThreadPoolExecutor(12) as pool:
            jobs = [pool.submit(wreck, redis_url, sides[0].until, seen)]
            for side in sides:
                jobs += [pool.submit(work) for work in (side.read, side.read, side.write, side.tasks)]
            for job in jobs:
                job.result(PATIENCE + seconds)
        for side in sides:
            for name, count in side.cache.stats()["namespaces"]["rows"].items():
                seen[name] += int(count)
    finally:
        for cache in caches:
            cache.close()
    print(dict(seen))
    assert seen["stale"] == 0
    happened = (
        "reads in threads", "reads in tasks", "reads of many", "written by tag", "written by keys",
        "written by update", "written by mutating", "written by pattern", "evictions", "flushes",
        "hits_l2", "misses", "stored", "refused",
    )  # fmt: skip
    assert [name for name in happened if not seen[name]] == []
    assert len(caches[0].world.flights) == len(caches[1].world.flights) == 0
