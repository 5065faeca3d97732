"""What each operation costs: commands sent and round trips made, counted on the connections themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis.asyncio.connection as aioconnection
import redis.connection as connection
from msgspec import Struct

from cacheaside import Cache
from cacheaside.toolkit import Presence, RateLimiter


class Wire:
    """Every command that left this process, and in how many packets: redis-py sends a pipeline as one."""

    def __init__(self) -> None:
        self.commands: list[list[bytes]] = []
        self.round_trips = 0

    def sent(self, packed: Any) -> None:
        data = b"".join([packed] if isinstance(packed, bytes) else packed)
        self.round_trips += 1
        at = 0
        while at < len(data):
            count, at = number(data, at)
            words: list[bytes] = []
            for _ in range(count):
                length, at = number(data, at)
                words.append(data[at : at + length])
                at += length + 2
            self.commands.append(words)

    @property
    def names(self) -> list[str]:
        return [words[0].decode().upper() for words in self.commands]

    @contextmanager
    def counting(self) -> Iterator[Wire]:
        """Only what is sent in this block."""
        self.commands, self.round_trips = [], 0
        yield self


def number(data: bytes, at: int) -> tuple[int, int]:
    """The number of a RESP header (``*3`` or ``$5``) and where what follows it begins."""
    end = data.index(b"\r\n", at)
    return int(data[at + 1 : end]), end + 2


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    send, asend = (
        connection.AbstractConnection.send_packed_command,
        aioconnection.AbstractConnection.send_packed_command,
    )

    def counted(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        wire.sent(command)
        return send(self, command, *args, **kwargs)

    async def acounted(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        wire.sent(command)
        return await asend(self, command, *args, **kwargs)

    # Now and then a commit also trims the list of a tag, at random.
    monkeypatch.setattr("cacheaside.stores.encoding.TRIM_ONE_IN", 10**9)
    monkeypatch.setattr(connection.AbstractConnection, "send_packed_command", counted)
    monkeypatch.setattr(aioconnection.AbstractConnection, "send_packed_command", acounted)
    return wire


class Post(Struct, frozen=True):
    id: int
    text: str = "t"


def reader(cache: Cache, *, asynchronous: bool, **options: Any) -> Any:
    tagged: dict[str, Any] = {"ns": "posts", "key": "post:{id}", "ttl": 60, "tags": ["post:{id}", "posts"]}

    def post(id: int) -> Post:
        return Post(id)

    async def apost(id: int) -> Post:
        return Post(id)

    return cache.cached(**tagged | options)(apost if asynchronous else post)


async def do(result: Any) -> Any:
    """What ``f(...)`` answers, whatever the colour of ``f``."""
    return await result if asyncio.iscoroutine(result) else result


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
async def test_a_hit_is_one_command_in_one_round_trip(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=asynchronous)
        await do(post(1))
        with wire.counting():
            assert await do(post(1)) == Post(1)
        assert wire.names == ["MGET"]
        assert len(wire.commands[0]) == 1 + 3  # the value and the tokens of its two tags


@both
async def test_a_hit_of_an_untagged_function_is_one_command(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=asynchronous, tags=())
        await do(post(1))
        with wire.counting():
            await do(post(1))
        assert (wire.names, len(wire.commands[0])) == (["MGET"], 2)


@both
async def test_a_cold_miss_is_three_round_trips(redis_url, wire, asynchronous):
    """Look, begin, commit; on a server that has all scripts and a connection that is open."""
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=asynchronous)
        await do(post(1))
        await do(post.invalidate(1))
        await do(post(1))
        with wire.counting():
            await do(post(2))
        assert wire.round_trips == 3
        assert wire.names[0] == "MGET"
        assert "EVAL" not in wire.names  # a script goes by its hash


@both
async def test_a_miss_after_an_invalidation_is_three_round_trips(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=asynchronous)
        await do(post(1))
        invalidate = cache.ainvalidate if asynchronous else cache.invalidate
        for what in ({"tags": ["post:1"]}, {"keys": [post.key(1)]}):
            await do(invalidate(**what))
            await do(post(1))  # the server has the scripts from here on
            await do(invalidate(**what))
            with wire.counting():
                await do(post(1))
            assert wire.round_trips == 3


@both
async def test_the_whole_life_of_a_connection_costs_a_greeting_once(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=asynchronous)
        with wire.counting():
            await do(post(1))
        greeting = ("HELLO", "CLIENT", "INFO")
        rest = [name for name in wire.names if name not in greeting]
        assert wire.names.count("INFO") == 2
        assert rest[0] == "MGET"
        assert wire.names.count("MGET") == 1


@both
async def test_an_invalidation_by_tag_is_one_round_trip(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        invalidate = cache.ainvalidate if asynchronous else cache.invalidate
        await do(invalidate(tags=["warm"]))
        with wire.counting():
            assert await do(invalidate(tags=["post:1"]))
        assert (wire.names, wire.round_trips) == (["EVALSHA"], 1)
        with wire.counting():
            assert await do(invalidate(tags=["post:1", "post:2", "posts"], keys=["posts:post:1"]))
        assert wire.round_trips == 1


@both
async def test_an_invalidation_by_key_is_one_round_trip(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=asynchronous)
        await do(post.invalidate(1))  # the server has the script
        await do(post(1))
        with wire.counting():
            assert await do(post.invalidate(1))
        assert (wire.names, wire.round_trips) == (["EVALSHA", "UNLINK", "PUBLISH"], 1)


@both
async def test_a_put_is_two_round_trips(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=asynchronous)
        await do(post.put(Post(1), 1))
        with wire.counting():
            assert await do(post.put(Post(1, "new"), 1)) is True
        assert wire.round_trips == 2
        with wire.counting():
            assert await do(post(1)) == Post(1, "new")
        assert wire.round_trips == 1


@both
async def test_a_first_put_adds_one_greeting(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache, Cache(redis_url, l1_window=None) as other:
        warm, post = (reader(c, asynchronous=asynchronous) for c in (other, cache))
        await do(warm.put(Post(0), 0))  # the server has the scripts
        with wire.counting():
            await do(post.put(Post(1), 1))
        assert [n for n in wire.names if n not in ("HELLO", "CLIENT", "INFO")][:2] == ["MGET", "SET"]
        assert wire.names.count("MGET") == 1


@both
async def test_no_script_runs_on_the_read_path(redis_url, server, wire, asynchronous):
    """By the word of the server: hits run no script and no command but MGET."""
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=asynchronous)
        await do(post(1))
        with server.client() as client:
            client.config_resetstat()
            for _ in range(5):
                await do(post(1))
            calls = {name: stat["calls"] for name, stat in client.info("commandstats").items()}
    assert calls["cmdstat_mget"] == 5
    assert set(calls) <= {"cmdstat_mget", "cmdstat_config|resetstat", "cmdstat_info", "cmdstat_config"}


@both
async def test_a_batch_is_as_many_round_trips_as_one_key(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        if asynchronous:

            @cache.cached_many(ns="posts", key="post:{id}", ttl=60, tags=["post:{id}"])
            async def posts(ids: list[int]) -> dict[int, Post]:
                return {id: Post(id) for id in ids}
        else:

            @cache.cached_many(ns="posts", key="post:{id}", ttl=60, tags=["post:{id}"])
            def posts(ids: list[int]) -> dict[int, Post]:
                return {id: Post(id) for id in ids}

        await do(posts([0]))
        with wire.counting():
            assert len(await do(posts(list(range(20))))) == 20
        assert wire.round_trips == 3
        with wire.counting():
            assert len(await do(posts(list(range(20))))) == 20
        assert wire.names == ["MGET"]
        assert len(wire.commands[0]) == 1 + 20 + 20


async def test_a_hundred_calls_of_one_loop_tick_are_one_command(redis_url, wire):
    async with Cache(redis_url, l1_window=None) as cache:
        post = reader(cache, asynchronous=True)
        await asyncio.gather(*(post(id) for id in range(100)))
        with wire.counting():
            found = await asyncio.gather(*(post(id) for id in range(100)))
        assert [p.id for p in found] == list(range(100))
        assert wire.names == ["MGET"]
        assert len(wire.commands[0]) == 1 + 100 + 100 + 1  # values, tokens, and the tag that all share


@both
async def test_a_hit_in_l1_asks_no_store(asynchronous):
    asked: list[str] = []
    cache = Cache("embedded://")
    store: Any = cache.store
    answer = store.perform

    def perform(command: Any) -> Any:
        asked.append(type(command).__name__)
        return answer(command)

    store.perform = perform
    post = reader(cache, asynchronous=asynchronous)
    await do(post(1))
    assert asked == ["Fetch", "Begin", "Commit"]
    for _ in range(3):
        assert await do(post(1)) == Post(1)
    assert len(asked) == 3


# ---------------------------------------------------------------------------- the toolkit


@both
@pytest.mark.parametrize("algorithm", ["sliding-log", "sliding-counter", "gcra"])
async def test_a_hit_of_a_limiter_is_one_command_and_a_known_refusal_none(
    redis_url, wire, asynchronous, algorithm
):
    async with Cache(redis_url, l1_window=None) as cache:
        limiter = RateLimiter(cache, limits=[(2, 60), (5, 3600)], algorithm=algorithm)
        hit = limiter.ahit if asynchronous else limiter.hit
        await do(hit("somebody else"))
        for allowed in (True, True, False):
            with wire.counting():
                assert (await do(hit("ann"))).allowed is allowed
            assert wire.names == ["EVALSHA"]
            assert wire.round_trips == 1
        with wire.counting():
            for _ in range(100):
                assert not await do(hit("ann"))
        assert wire.names == []


@both
async def test_a_lock_is_one_command_to_take_and_one_to_give_back(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        async with cache.lock("warm"):
            pass
        with cache.lock("warm"):
            pass
        lock = cache.lock("reports")
        with wire.counting():
            await do(lock.aacquire() if asynchronous else lock.acquire())
            assert wire.names == ["EVALSHA"]
            await do(lock.arelease() if asynchronous else lock.release())
        assert wire.names == ["EVALSHA"] * 2
        assert wire.round_trips == 2


@both
async def test_presence_is_two_commands_to_write_and_one_to_read(redis_url, wire, asynchronous):
    async with Cache(redis_url, l1_window=None) as cache:
        presence = Presence(cache)

        async def call(name, *args):
            return await do(getattr(presence, f"a{name}" if asynchronous else name)(*args))

        for name in ("online", "heartbeat", "offline", "is_online", "connections"):
            await call(name, "somebody else")
        for name, args, commands in (
            ("online", ("ann", 1), 2),
            ("heartbeat", ("ann", 1), 2),
            ("heartbeat", ("nobody", 1), 1),
            ("is_online", ("ann",), 1),
            ("connections", ("ann",), 1),
            ("who", (), 1),
            ("count", (), 1),
            ("offline", ("ann", 1), 2),
        ):
            if name in ("who", "count"):
                await call(name)
            with wire.counting():
                await call(name, *args)
            assert wire.names == ["EVALSHA"] * commands, name
