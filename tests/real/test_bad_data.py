"""What is wrong under our keys, and servers that fail: answers stay right, and something says so."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec import Struct

from cacheaside import Cache
from cacheaside.entry import CLAIM, PLACEHOLDER, SLOT_HELD, Marker, Value, pack_holds, pack_value, parse
from cacheaside.testing import Server
from cacheaside.testing.servers import free_port, wait_until

PATIENCE = 10.0
KEY = "posts:post:1"


class Post(Struct, frozen=True):
    id: int
    text: str
    likes: int


class Reader:
    """A cached function whose source is always right, and what its cache counted."""

    def __init__(self, cache: Cache, **options: Any) -> None:
        self.cache = cache
        self.loads = 0
        self.likes = 3

        @cache.cached(**{"ns": "posts", "key": "post:{id}", "ttl": 60, "tags": ["post:{id}"]} | options)
        def post(id: int) -> Post:
            self.loads += 1
            return Post(id, "hello", self.likes)

        self.post = post

    def right(self) -> bool:
        """Whether a call is answered with what the source has."""
        return bool(self.post(1) == Post(1, "hello", self.likes))

    def hits(self) -> bool:
        """Whether a call is answered with what the source has, without asking it."""
        loads = self.loads
        return self.right() and self.loads == loads

    def count(self, name: str) -> float:
        return float(self.cache.stats()["namespaces"]["posts"][name])

    @property
    def slot(self) -> str:
        return self.cache.world.keys.value(KEY)

    @property
    def token(self) -> str:
        return self.cache.world.keys.token("post:1")


Spoil = Callable[[Any, str], Any]
FOREIGN: dict[str, Spoil] = {
    "text": lambda client, key: client.set(key, "somebody else's"),
    "bytes": lambda client, key: client.set(key, random.Random(1).randbytes(200)),
    "nothing": lambda client, key: client.set(key, b""),
    "number": lambda client, key: client.set(key, 1),
    "list": lambda client, key: client.rpush(key, "a", "b"),
    "hash": lambda client, key: client.hset(key, "a", "b"),
    "set": lambda client, key: client.sadd(key, "a"),
    "sorted set": lambda client, key: client.zadd(key, {"a": 1}),
    "stream": lambda client, key: client.xadd(key, {"a": "b"}),
}
foreign = pytest.mark.parametrize("spoil", FOREIGN.values(), ids=FOREIGN)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "cacheaside" and r.levelno >= logging.WARNING]


@foreign
def test_what_is_foreign_under_the_key_of_a_value_is_left_alone(redis_url, server, caplog, spoil):
    """Calls load for themselves, and the other owner's data stays as it is."""
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        spoil(client, reader.slot)
        before = client.dump(reader.slot)
        assert [reader.right() for _ in range(3)] == [True] * 3
        assert reader.loads == 3
        assert client.dump(reader.slot) == before
        assert client.pttl(reader.slot) == -1
        assert reader.count("foreign") >= 3
        assert reader.count("stored") == 0
        assert len(warnings(caplog)) == 1
        assert cache.get(KEY, "nothing") == "nothing"
        client.delete(reader.slot)
        assert reader.right()
        assert reader.hits()


@foreign
def test_what_is_foreign_under_the_key_of_a_tag_is_left_alone(redis_url, server, caplog, spoil):
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        spoil(client, reader.token)
        before = client.dump(reader.token)
        assert [reader.right() for _ in range(3)] == [True] * 3
        assert client.dump(reader.token) == before
        assert reader.count("foreign") >= 3
        assert reader.count("stored") == 0
        assert len(warnings(caplog)) == 1
        assert client.exists(reader.slot) == 0  # no placeholder that others would wait for
        client.delete(reader.token)
        assert reader.right()
        assert reader.hits()


@foreign
def test_what_is_foreign_under_the_list_of_a_tag_harms_nobody(redis_url, server, spoil):
    """The list is for people: values are stored, found and invalidated without it."""
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        index = cache.world.keys.tag_index("post:1")
        spoil(client, index)
        client.persist(index)
        assert reader.right()
        assert reader.hits()
        reader.likes += 1
        assert cache.invalidate(tags=["post:1"])
        assert reader.right()
        assert reader.hits()


@foreign
def test_what_is_foreign_under_the_companions_of_a_value_harms_nobody(redis_url, server, spoil):
    """The refresh lock and the staging place."""
    with Cache(redis_url, compress_above=None, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache, stale_while_revalidate=60, early_refresh=100.0)
        keys = cache.world.keys
        for companion in (keys.refresh_lock(KEY), keys.staging(KEY)):
            spoil(client, companion)
        assert [reader.right() for _ in range(4)] == [True] * 4
        assert reader.post.refresh(1) == Post(1, "hello", 3)
        assert reader.post.invalidate(1)
        assert reader.right()


def entry(client: Any, reader: Reader) -> bytes:
    raw: bytes = client.get(reader.slot)
    assert isinstance(parse(raw), Value)
    return raw


def replace(client: Any, reader: Reader, raw: bytes) -> None:
    client.set(reader.slot, raw, px=60_000)


def test_a_truncated_entry_is_a_miss_and_replaced(redis_url, server, caplog):
    """Every length, uncompressed and compressed; below three bytes nothing says that it was ours."""
    with (
        Cache(redis_url, compress_above=None, l1_window=None) as plain,
        Cache(redis_url, compress_above=0, l1_window=None) as packed,
    ):
        for cache in (plain, packed):
            reader = Reader(cache)
            reader.post.refresh(1)
            with server.client() as client:
                raw = entry(client, reader)
                for length in range(1, len(raw)):
                    replace(client, reader, raw[:length])
                    assert reader.right(), length
                    assert reader.hits() is (length >= 3), length
                    client.delete(reader.slot)
                replace(client, reader, raw + b"\0")
                assert reader.right()
                assert reader.hits()
            assert reader.count("bad_data") >= len(raw) - 3
    assert 2 <= len(warnings(caplog)) <= 4  # of each cache: damaged, and what is left of the magic


def test_an_entry_with_a_flipped_bit_is_never_answered(redis_url, server, caplog):
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        reader.right()
        raw = entry(client, reader)
        for bit in range(len(raw) * 8):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            replace(client, reader, bytes(damaged))
            assert reader.right(), bit
            assert reader.hits() is (bit >= 24), bit  # without its magic, nothing says that it was ours
        assert reader.count("bad_data") > 0
        assert 1 <= len(warnings(caplog)) <= 2


MARKERS = [Marker(kind, b"n" * 12, b"i" * 8, time.time(), b"d" * 8).pack() for kind in (PLACEHOLDER, CLAIM)]
MARKERS.append(SLOT_HELD + pack_holds([(b"n" * 12, 2_000_000_000_000)]))


@pytest.mark.parametrize("marker", MARKERS, ids=["placeholder", "claim", "hold"])
def test_a_truncated_marker_is_replaced_at_once(redis_url, server, marker):
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        for length in range(3, len(marker)):
            replace(client, reader, marker[:length])
            assert reader.right()
            assert reader.hits()


def test_a_damaged_entry_hides_no_neighbour_that_came_in_its_place(redis_url, server):
    """What a truncated entry is replaced by compare-and-set for must be the very same bytes."""
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        claim = Marker(CLAIM, b"n" * 12, b"i" * 8, time.time(), b"d" * 8).pack()
        replace(client, reader, claim[:10])
        store: Any = cache.store
        perform = store.perform

        def between(command: Any) -> Any:
            if type(command).__name__ == "Begin":
                replace(client, reader, claim)
            return perform(command)

        store.perform = between
        assert reader.right()
        assert client.get(reader.slot) == claim


def test_an_entry_of_another_schema_is_a_miss(redis_url, server):
    """A deploy that changes the type or the version reads the old entries as misses."""

    class Wider(Struct, frozen=True):
        id: int
        text: str = "t"
        likes: int = 0
        seen: int = 0

    with (
        Cache(redis_url, l1_window=None) as old,
        Cache(redis_url, l1_window=None) as new,
        Cache(redis_url, l1_window=None) as newest,
    ):
        reader, versioned = Reader(old), Reader(newest, version=2)

        @new.cached(ns="posts", key="post:{id}", ttl=60, tags=["post:{id}"])
        def wider(id: int) -> Wider:
            return Wider(id, seen=1)

        assert reader.right()
        assert wider(1) == Wider(1, seen=1)
        assert wider(1) == Wider(1, seen=1)
        assert versioned.right()
        assert versioned.hits()
        assert reader.right()
        assert reader.hits()
        assert reader.count("bad_data") == new.stats()["namespaces"]["posts"]["bad_data"] == 0


def test_an_entry_with_unknown_codec_flags_is_a_miss_and_replaced(redis_url, server, caplog):
    """Another version of the library may compress or encrypt in ways that this one does not know."""
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        reader.right()
        value: Any = parse(entry(client, reader))
        for flags in range(1, 0x80):
            raw = pack_value(
                value.nonce, value.incarnation, start=value.start, cost=value.cost, soft=value.soft,
                hard=value.hard, schema=value.schema, flags=flags, known=value.known, late=b"",
                payload=value.payload,
            )  # fmt: skip
            replace(client, reader, raw)
            assert reader.right(), flags
            assert reader.hits(), flags
        assert reader.count("bad_data") == 0x7F
        assert len(warnings(caplog)) == 1


def test_an_entry_whose_payload_is_of_another_type_is_a_miss_and_replaced(redis_url, server, caplog):
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        reader.right()
        value: Any = parse(entry(client, reader))
        for payload in (b"", b"\xc1", b"\x01", b"\x80", b"\xc0"):
            raw = pack_value(
                value.nonce, value.incarnation, start=value.start, cost=value.cost, soft=value.soft,
                hard=value.hard, schema=value.schema, flags=0, known=value.known, late=b"",
                payload=payload,
            )  # fmt: skip
            replace(client, reader, raw)
            assert reader.right(), payload
            assert reader.hits(), payload
        assert reader.count("bad_data") == 5
        assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_noise_behind_our_magic_is_a_miss_and_replaced(redis_url, server, seed):
    noise = random.Random(seed)
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        reader = Reader(cache)
        for _ in range(100):
            raw = b"\xcaC\x01" + noise.choice((b"", b"V", b"P", b"H")) + noise.randbytes(noise.randrange(120))
            if isinstance(parse(raw), Marker):
                continue
            replace(client, reader, raw)
            assert reader.right(), raw
            assert reader.hits(), raw


def test_damage_in_a_batch_costs_its_own_entries_only(redis_url, server):
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        asked: list[list[int]] = []

        @cache.cached_many(ns="posts", key="post:{id}", ttl=60, tags=["post:{id}"])
        def posts(ids: list[int]) -> dict[int, str]:
            asked.append(ids)
            return {id: f"post {id}" for id in ids}

        right = {id: f"post {id}" for id in range(6)}
        assert posts(range(6)) == right
        slots = [cache.world.keys.value(f"posts:post:{id}") for id in range(6)]
        client.set(slots[0], client.get(slots[0])[:-1])
        client.set(slots[1], "foreign")
        client.delete(slots[2])
        client.rpush(slots[2], "foreign")
        client.set(cache.world.keys.token("post:3"), "foreign")
        assert posts(range(6)) == right
        assert asked[1] == [0, 1, 2, 3]
        assert posts(range(6)) == right
        assert asked[2] == [1, 2, 3]
        assert client.get(slots[1]) == b"foreign"


@pytest.mark.parametrize("size", [100, 5_000, 200_000])
def test_a_server_that_forgets_everything_is_filled_again(redis_url, server, size):
    """FLUSHALL and SCRIPT FLUSH, before a call and in the middle of a load; small and staged values."""
    with Cache(redis_url, compress_above=None, l1_window=None) as cache, server.client() as client:
        forget: Callable[[], Any] = bool

        @cache.cached(ns="posts", key="text:{id}", ttl=60, tags=["texts"])
        def text(id: int) -> str:
            forget()
            return "x" * size

        for forgets in (client.flushall, client.script_flush):
            assert text(1) == "x" * size
            forgets()
            assert text(1) == "x" * size
            assert cache.invalidate(tags=["texts"])
            assert text(1) == "x" * size
            text.invalidate(1)
            forget = forgets
            assert text(1) == "x" * size
            forget = bool
            assert text(1) == "x" * size
            assert cache.get("posts:text:1") is not None
        client.script_flush()
        assert text.put("y", 1)
        assert text(1) == "y"
        assert cache.stats()["namespaces"]["posts"]["unavailable"] == 0


def test_a_value_over_the_limit_is_answered_and_not_stored(redis_url, server, caplog):
    with Cache(redis_url, max_value=1000, l1_window=None) as cache, server.client() as client:

        @cache.cached(ns="posts", key="text:{size}", ttl=60)
        def text(size: int) -> str:
            return "x" * size

        for _ in range(3):
            assert text(2000) == "x" * 2000
        assert text(10) == "x" * 10
        counts = cache.stats()["namespaces"]["posts"]
        assert (counts["too_large"], counts["stored"]) == (3, 1)
        assert len(warnings(caplog)) == 1
        assert client.exists(cache.world.keys.value("posts:text:2000")) == 0


# ---------------------------------------------------------------------------- big values


@pytest.mark.parametrize("size", [5_000, 150_000])
def test_big_values_under_concurrent_fills_and_invalidations_are_whole_and_new(redis_url, server, size):
    """Staged beside their slots where the server cannot compare and set: no mixture, nothing old."""
    version, acked, stale, broken = 1, 1, 0, 0
    until = time.monotonic() + 1.5
    lock = threading.Lock()
    options: Any = {"ns": "big", "key": "text", "ttl": 60, "tags": ["big"], "lease_ttl": 0.5}
    caches = [Cache(redis_url, compress_above=None, l1_window=None) for _ in range(2)]

    def load() -> str:
        now = version
        time.sleep(random.random() * 0.003)
        return f"{now:08}" * (size // 8)

    def read(cache: Cache) -> int:
        nonlocal stale, broken
        text: Any = readers[caches.index(cache)]
        done = 0
        while time.monotonic() < until:
            least = acked
            got = text()
            stale += int(got[:8]) < least
            broken += got != got[:8] * (size // 8)
            done += 1
        return done

    def write(cache: Cache) -> int:
        nonlocal version, acked
        text: Any = readers[caches.index(cache)]
        done = 0
        while time.monotonic() < until:
            time.sleep(random.random() * 0.004)
            with lock:
                version += 1
                now = version
                if random.random() < 0.5:
                    assert cache.invalidate(tags=["big"])
                elif random.random() < 0.5:
                    assert text.invalidate()
                else:
                    text.put(f"{now:08}" * (size // 8))
                acked = now
            done += 1
        return done

    try:
        readers = [cache.cached(**options)(load) for cache in caches]
        with ThreadPoolExecutor(6) as pool:
            reads = [pool.submit(read, cache) for cache in caches * 2]
            writes = [pool.submit(write, cache) for cache in caches]
            assert min(job.result(PATIENCE) for job in reads + writes) > 0
        counts = [cache.stats()["namespaces"]["big"] for cache in caches]
        assert (stale, broken) == (0, 0)
        for name in ("stored", "refused", "hits_l2"):
            assert sum(c[name] for c in counts) > 0, name
        assert readers[0]() == readers[1]()
        assert readers[0].invalidate()
        assert readers[0]() == f"{version:08}" * (size // 8)
    finally:
        for cache in caches:
            cache.close()
    with server.client() as client:
        assert client.exists(caches[0].world.keys.staging("big:text")) == 0


# ---------------------------------------------------------------------------- servers that fail


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_calls_are_answered_without_a_server(caplog, asynchronous):
    """Nobody listens: the functions answer, it is counted, and said once."""
    async with Cache(f"redis://127.0.0.1:{free_port()}", invalidation_timeout=0.1) as cache:

        def post(id: int) -> str:
            return f"post {id}"

        async def apost(id: int) -> str:
            return f"post {id}"

        cached: Any = cache.cached(ns="posts", key="post:{id}", ttl=60, tags=["posts"])(
            apost if asynchronous else post
        )
        began = time.monotonic()
        for _ in range(5):
            assert (await cached(1) if asynchronous else cached(1)) == "post 1"
        assert time.monotonic() - began < 2
        counts = cache.stats()["namespaces"]["posts"]
        assert (counts["unavailable"], counts["stored"]) == (5, 0)
        assert 1 <= len(warnings(caplog)) <= 2  # that it failed, and that Redis is away
        assert (await cache.aget("posts:post:1", 0) if asynchronous else cache.get("posts:post:1", 0)) == 0
        receipt = await cached.invalidate(1) if asynchronous else cached.invalidate(1)
        assert not receipt
        assert cache.stats()["unacknowledged"] == 1
        assert (await cached.put("x", 1) if asynchronous else cached.put("x", 1)) is False
        assert (await cached.peek(1) if asynchronous else cached.peek(1)) is not None  # MISSING


async def test_a_wrong_password_leaves_the_functions_and_says_what_is_wrong(server, caplog):
    with Server(server.kind, password="right") as locked:
        async with Cache(f"redis://:wrong@127.0.0.1:{locked.port}") as cache:
            reader = Reader(cache)
            assert reader.right()
            assert reader.right()
            assert reader.count("unavailable") == 2
        (said,) = warnings(caplog)
        assert "AuthenticationError" in said
        assert "wrong" not in said  # nor any other password
        async with Cache(locked.url, l1_window=None) as cache:
            reader = Reader(cache)
            assert reader.right()
            assert reader.hits()


def test_a_server_that_stops_and_comes_back_empty_is_used_again(server):
    with Server(server.kind) as own, Cache(own.url, invalidation_timeout=0.1, l1_window=None) as cache:
        reader = Reader(cache)
        assert reader.right()
        assert reader.hits()
        own.kill()
        for _ in range(3):
            assert reader.right()
        assert reader.loads == 4
        reader.likes += 1
        assert not cache.invalidate(tags=["post:1"])
        assert reader.right()
        own.start()
        assert wait_until(lambda: reader.right() and reader.hits())
        assert reader.count("unavailable") >= 1


async def test_a_server_that_stops_in_the_middle_of_a_load_costs_no_second_load(server):
    """Threads and tasks: what the function has returned is the answer."""
    with Server(server.kind) as own:
        async with Cache(own.url, l1_window=None) as cache:
            loads = 0

            def end() -> str:
                nonlocal loads
                loads += 1
                own.kill()
                return "post"

            async def aend() -> str:
                return end()

            for asynchronous, function in ((False, end), (True, aend)):
                own.start()
                name = f"post{asynchronous}"
                cached: Any = cache.cached(ns="posts", key=name, ttl=60, tags=["posts"])(function)
                assert (await cached() if asynchronous else cached()) == "post"
            assert loads == 2
            assert cache.stats()["namespaces"]["posts"]["unavailable"] >= 2


def test_a_server_that_does_not_answer_costs_one_timeout(server):
    """A black hole: frozen with its connections open."""
    with (
        Server(server.kind) as own,
        Cache(own.url + "?timeout=0.2&connect_timeout=0.2", l1_window=None) as cache,
    ):
        reader = Reader(cache)
        assert reader.right()
        own.pause()
        try:
            began = time.monotonic()
            assert reader.right()
            assert 0.15 <= time.monotonic() - began < 1
        finally:
            own.resume()
        assert reader.right()
        assert reader.hits()


def test_a_server_out_of_memory_is_no_error(server, caplog):
    """It reads and refuses to write: nothing is stored, and every call is answered."""
    with Server(server.kind) as own, Cache(own.url, l1_window=None) as cache, own.client() as client:
        reader = Reader(cache)
        assert reader.right()
        client.config_set("maxmemory", "1")
        assert reader.hits()
        reader.post.peek(1)
        client.delete(reader.slot)
        assert reader.right()
        assert reader.right()
        assert reader.count("unavailable") == 2
        assert any("OOM" in said or "OutOfMemory" in said for said in warnings(caplog))
        client.config_set("maxmemory", "0")
        assert reader.right()
        assert reader.hits()


# ---------------------------------------------------------------------------- forks and event loops


def run(script: str, url: str) -> str:
    """What a script prints in an interpreter of its own: forking this one is no business of a test."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), url]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def test_a_cache_survives_a_fork(redis_url):
    """The parent has used it, in threads and tasks; each goes on with connections of its own."""
    said = run(
        """
        import asyncio, os, sys
        from cacheaside import Cache

        cache = Cache(sys.argv[1], l1_window=None)
        loads = 0

        @cache.cached(ns="n", key="f:{x}", ttl=60, tags=["t"])
        def f(x: int) -> int:
            global loads
            loads += 1
            return x

        @cache.cached(ns="n", key="g:{x}", ttl=60, tags=["t"])
        async def g(x: int) -> int:
            return x

        def work(who: int) -> None:
            for x in range(200):
                assert f(x) == x
                assert f(1000 * who + x) == 1000 * who + x
            assert asyncio.run(g(5)) == 5
            assert cache.invalidate(tags=["t"])

        work(1)
        children = []
        for who in (2, 3):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    work(who)
                    status = 0
                finally:
                    os._exit(status)
            children.append(pid)
        work(4)
        print([os.waitpid(pid, 0)[1] for pid in children])
        """,
        redis_url,
    )
    assert said == "[0, 0]\n"


def test_a_child_does_not_wait_for_a_load_of_its_parents_memory(redis_url):
    """It was forked while a thread of the parent was loading, and has no such thread."""
    said = run(
        """
        import os, sys, threading, time
        from cacheaside import Cache

        cache = Cache(sys.argv[1], l1_window=None)
        parent = os.getpid()
        loading, go_on = threading.Event(), threading.Event()

        @cache.cached(ns="n", key="f:{x}", ttl=60, lease_ttl=20, wait_timeout=20)
        def f(x: int) -> int:
            assert os.getpid() == parent
            loading.set()
            go_on.wait(10)
            return x

        thread = threading.Thread(target=f, args=(1,))
        thread.start()
        loading.wait(10)
        pid = os.fork()
        if pid == 0:
            began, status = time.monotonic(), 1
            try:
                assert f(1) == 1
                status = 0 if time.monotonic() - began < 5 else 2
            finally:
                os._exit(status)
        time.sleep(0.1)
        go_on.set()
        thread.join()
        print(os.waitpid(pid, 0)[1])
        """,
        redis_url,
    )
    assert said == "0\n"


def test_one_cache_serves_one_event_loop_after_another(redis_url, server):
    """``asyncio.run`` again and again, with and without closing: the connections do not pile up."""
    said = run(
        """
        import asyncio, gc, sys
        from cacheaside import Cache

        cache = Cache(sys.argv[1] + "?client_name=loops", l1_window=None)

        @cache.cached(ns="n", key="f:{x}", ttl=60, tags=["t"])
        async def f(x: int) -> int:
            return x

        async def use() -> int:
            return sum(await asyncio.gather(*(f(x) for x in range(5))))

        async def use_and_close() -> int:
            try:
                return await use()
            finally:
                await cache.aclose()

        async def count() -> int:
            clients = await cache.store.batcher.lines.client.client_list()
            await cache.aclose()
            return sum(c["name"] == "loops" for c in clients)

        print([asyncio.run(use_and_close()) for _ in range(5)])
        print([asyncio.run(use()) for _ in range(20)])
        gc.collect()
        print(asyncio.run(count()) <= 10)
        """,
        redis_url,
    )
    assert said == f"{[10] * 5}\n{[10] * 20}\nTrue\n"


@pytest.mark.parametrize("read", [True, False], ids=["reading", "writing"])
def test_a_cache_that_is_closed_while_threads_call_it_answers_them(redis_url, read):
    """A command under way keeps its connection; whoever calls afterwards opens a new one."""
    with Cache(redis_url, l1_window=None) as cache, ThreadPoolExecutor(4) as pool:
        until = time.monotonic() + 0.5

        @cache.cached(ns="n", key="f:{x}", ttl=60, tags=["t"])
        def f(x: int) -> int:
            return x

        def call() -> int:
            calls = 0
            while time.monotonic() < until:
                assert f(calls if not read else 1) == (calls if not read else 1)
                calls += 1
            return calls

        jobs = [pool.submit(call) for _ in range(3)]
        closed = 0
        while time.monotonic() < until:
            cache.close()
            closed += 1
            time.sleep(0.002)
        assert min(job.result(PATIENCE) for job in jobs) > 0
        assert closed > 0
        assert cache.stats()["namespaces"]["n"]["unavailable"] == 0


def test_one_cache_serves_event_loops_side_by_side(redis_url):
    together = threading.Barrier(3)
    with Cache(redis_url, l1_window=None) as cache:

        @cache.cached(ns="n", key="f:{x}", ttl=60, tags=["t"])
        async def f(x: int) -> int:
            await asyncio.sleep(0)
            return x

        async def use() -> int:
            for _ in range(20):
                assert await asyncio.gather(*(f(x) for x in range(20))) == list(range(20))
                await cache.ainvalidate(tags=["t"])
            await asyncio.to_thread(together.wait, PATIENCE)  # nobody closes while another is calling
            await cache.aclose()
            return 1

        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(lambda: asyncio.run(use())) for _ in range(3)]
            assert [job.result(PATIENCE) for job in jobs] == [1, 1, 1]
        counts = cache.stats()["namespaces"]["n"]
        assert counts["stored"] > 0
        assert counts["unavailable"] == 0


async def test_a_waiter_that_has_gone_is_not_called_in_its_closed_loop(redis_url, caplog):
    """It waited for a thread's load, lost patience, and its event loop ended before the load did."""
    loading, go_on = threading.Event(), threading.Event()
    with Cache(redis_url, l1_window=None) as cache:

        def load() -> str:
            loading.set()
            assert go_on.wait(PATIENCE)
            return "page"

        async def impatient() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await cache.aget_or_load("hot:page", asyncio.Event().wait)
            await cache.store.batcher.lines.client.aclose()

        leader = asyncio.create_task(asyncio.to_thread(cache.get_or_load, "hot:page", load))
        assert await asyncio.to_thread(loading.wait, PATIENCE)
        await asyncio.to_thread(asyncio.run, impatient())
        go_on.set()
        assert await leader == "page"
    assert caplog.records == []


def test_the_checksum_covers_all_that_follows_the_head():
    """So that the test with flipped bits above holds for entries of any content."""
    raw = pack_value(
        b"n" * 12, b"i" * 8, start=1.0, cost=0.0, soft=2.0, hard=3.0, schema=b"s" * 8, flags=0,
        known=b"", late=b"", payload=struct.pack(">d", 1.5),
    )  # fmt: skip
    assert isinstance(parse(raw), Value)
    kinds = {type(parse(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])) for at in range(24, len(raw))}
    assert Value not in kinds
