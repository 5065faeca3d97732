"""Where brokers work: the embedded store, a Redis of this process, real servers. Nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import fakeredis
import pytest
import pytest_asyncio

from cacheaside import Cache
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.redis import RedisStore
from cacheaside.testing.servers import wait_until
from cacheaside.toolkit.messages import Message
from tests.conftest import SERVERS

PLACES = ["embedded", "fakeredis", *SERVERS]


def place(name: str, request: pytest.FixtureRequest) -> Cache:
    if name == "embedded":
        return Cache("embedded://")
    if name == "fakeredis":
        fake = fakeredis.FakeServer()
        store = RedisStore(
            RawKeys("cacheaside"),
            lambda: fakeredis.FakeRedis(server=fake),
            lambda: fakeredis.FakeAsyncRedis(server=fake),
        )
        return Cache(store=store)
    server = request.getfixturevalue("servers")(name)
    with server.client() as client:
        client.flushall()
    return Cache(server.url, l1_window=None)


@pytest.fixture(params=PLACES)
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    """A cache in each place there is; what is open is closed with it."""
    with place(request.param, request) as made:
        yield made


@pytest_asyncio.fixture(params=PLACES)
async def acache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """``cache`` for tests on an event loop."""
    async with place(request.param, request) as made:
        yield made


@pytest_asyncio.fixture
async def aembedded() -> AsyncIterator[Cache]:
    async with Cache("embedded://") as made:
        yield made


@pytest.fixture
def embedded() -> Iterator[Cache]:
    with Cache("embedded://") as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Threads that a test began end with it."""
    before = set(threading.enumerate())
    yield
    assert wait_until(lambda: not ours(before), 10.0), ours(before)


def ours(before: set[threading.Thread]) -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t not in before and t.name.startswith("cacheaside")]


class Heard:
    """A handler that keeps what it is given; it can be held up, and told to fail."""

    def __init__(self) -> None:
        self.messages: list[Message[Any]] = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.error: BaseException | None = None

    def __call__(self, message: Message[Any]) -> None:
        self.begun.set()
        assert self.go.wait(10)
        self.messages.append(message)
        if self.error is not None:
            raise self.error

    async def later(self, message: Message[Any]) -> None:
        self.messages.append(message)
        if self.error is not None:
            raise self.error

    @property
    def data(self) -> list[Any]:
        return [m.data for m in self.messages]

    def has(self, count: int) -> bool:
        return wait_until(lambda: len(self.messages) >= count, 20.0)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], bool]:
    return lambda condition: wait_until(condition, 5.0)
