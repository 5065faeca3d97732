"""The places where sessions and tokens live, each with its own way to let time pass, and both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from cacheaside import Cache
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.redis import RedisStore
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import StoreWrapper
from tests.conftest import SERVERS


class Place:
    """A cache, and what a test may do behind its back.

    ``wait`` lets time pass without taking any. ``client`` is None for the embedded store.
    """

    def __init__(self, cache: Cache, wait: Callable[[float], None], client: Any = None) -> None:
        self.cache = cache
        self.wait = wait
        self.client = client

    def names(self) -> list[str]:
        if self.client is None:
            store: Any = self.cache.store
            return [key for key in list(store._rows) if store.get(key) is not None]
        return sorted(key.decode() for key in self.client.scan_iter())

    def lose(self, key: str) -> None:
        if self.client is None:
            del self.cache.store._rows[key]  # type: ignore[attr-defined]
        else:
            self.client.delete(key)


class Recorder(StoreWrapper):
    """Writes down what a store is asked for."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.asked: list[Any] = []

    def around(self, command: Any) -> Any:
        self.asked.append(command)
        return (yield command)


def aged(client: Any) -> Callable[[float], None]:
    """Move all ends in a real server nearer: those of its keys, and those in what we keep under them."""

    def wait(seconds: float) -> None:
        micros = int(seconds * 1_000_000)
        for key in client.scan_iter():
            if client.type(key) == b"hash":
                for field, row in client.hgetall(key).items():
                    if field.endswith(b"."):
                        born, seen, idle, last = map(int, row.split()[:4])
                        idle, last = idle - micros, last - micros
                        sum = born + seen + idle + last
                        rest = row.split()[5].decode()
                        client.hset(key, field, f"{born} {seen} {idle} {last} {sum} {rest}")
            elif len(parts := client.get(key).split()) == 3:
                till = int(parts[0]) - micros
                client.set(key, f"{till} {till} {parts[2].decode()}", keepttl=True)
            client.pexpire(key, client.pttl(key) - int(seconds * 1000))

    return wait


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock of the embedded store, and of the Redis of this process."""
    clock = FakeClock()
    for module in ("_helpers", "_socket._base", "commands_mixins.server_mixin"):
        monkeypatch.setattr(f"fakeredis.{module}.time", SimpleNamespace(time=clock, monotonic=clock))
    return clock


def fake_store() -> RedisStore:
    server = fakeredis.FakeServer()
    return RedisStore(
        RawKeys("cacheaside"),
        lambda: fakeredis.FakeRedis(server=server),
        lambda: fakeredis.FakeAsyncRedis(server=server),
    )


REAL = [pytest.param(kind, marks=pytest.mark.redis) for kind in list(SERVERS) or ["none"]]


@pytest.fixture(params=["embedded", "fakeredis", *REAL])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Every place, one after the other."""
    if request.param == "embedded":
        clock = request.getfixturevalue("clock")
        with Cache("embedded://", clock=clock) as cache:
            yield Place(cache, clock.tick)
    elif request.param == "fakeredis":
        clock = request.getfixturevalue("clock")
        store = fake_store()
        with Cache(store=store, clock=clock) as cache:
            yield Place(cache, clock.tick, store.client)
    else:
        server = request.getfixturevalue("servers")(request.param)
        with server.client() as client, Cache(server.url, l1_window=None) as cache:
            client.flushall()
            yield Place(cache, aged(client), client)


class Coloured:
    """What has sync and async methods, all of them as coroutines of one colour."""

    def __init__(self, thing: Any, colour: str) -> None:
        self.thing = thing
        self.colour = colour

    def __getattr__(self, name: str) -> Any:
        if self.colour == "async" and hasattr(self.thing, f"a{name}"):
            return getattr(self.thing, f"a{name}")

        async def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self.thing, name)(*args, **kwargs)

        return call


@pytest.fixture(params=["sync", "async"])
async def paint(request: pytest.FixtureRequest, place: Place) -> Any:
    """Make what has both colours answer in one of them; closes the loop's connections at the end."""
    yield lambda thing: Coloured(thing, request.param)
    if request.param == "async":
        await place.cache.store.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
