"""A clock that moves when told to, and caches that need no server."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import fakeredis
import pytest

from cacheaside import Cache
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.redis import RedisStore
from cacheaside.testing import FakeClock
from tests.aging import obey


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> Iterator[Cache]:
    """An embedded cache whose time stands still; waiting lets it pass."""
    with Cache("embedded://", clock=clock) as made:
        made.driver._sleep = clock.tick
        yield made


@pytest.fixture
def redis_store() -> RedisStore:
    """The Redis store over a Redis of this process."""
    server = fakeredis.FakeServer()
    return RedisStore(
        RawKeys("cacheaside"),
        lambda: fakeredis.FakeRedis(server=server),
        lambda: fakeredis.FakeAsyncRedis(server=server),
    )


@pytest.fixture
def redis_cache(clock: FakeClock, redis_store: RedisStore) -> Iterator[Cache]:
    """A cache over ``redis_store``."""
    with Cache(store=redis_store, clock=clock) as made:
        made.driver._sleep = clock.tick
        yield made


@pytest.fixture
def server_clock(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock of ``redis_store``'s server is the same clock; what ends there ends by it."""
    obey(monkeypatch, clock)
    return clock


@pytest.fixture(params=["embedded", "redis"])
def any_cache(request: pytest.FixtureRequest) -> Cache:
    """The embedded cache, then one over Redis."""
    made: Cache = request.getfixturevalue("cache" if request.param == "embedded" else "redis_cache")
    return made


Painter = Callable[[Callable[..., Any]], Callable[..., Any]]


@pytest.fixture(params=["sync", "async"])
def paint(request: pytest.FixtureRequest) -> Painter:
    """Leave a function sync, then make it async: one test for both colours."""

    def asynchronous(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        async def painted(*args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        return painted

    return asynchronous if request.param == "async" else lambda fn: fn


@pytest.fixture
def ask() -> Callable[[Any], Awaitable[Any]]:
    """The answer of a call of either colour."""

    async def answer(given: Any) -> Any:
        return await given if inspect.isawaitable(given) else given

    return answer
