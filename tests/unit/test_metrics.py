"""Metrics: plain counters, read when an exporter asks; nothing that is gone is kept for them."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from cacheaside import Cache, metrics
from cacheaside.breaker import Breaker
from cacheaside.coherence import Channel
from cacheaside.errors import StoreUnavailable
from cacheaside.events import Events
from cacheaside.journal import Journal
from cacheaside.listener import Listener
from cacheaside.recovery import Recovery
from cacheaside.stores.memory import NearCache
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import FailingStore
from cacheaside.testing.servers import wait_until
from cacheaside.toolkit import Broker, DurableBroker, Message, RateLimiter

Points = dict[tuple[str, ...], Any]


class Measured:
    """Reads all points of some caches: (name, attributes but the cache's) -> value."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])
        self.caches: weakref.WeakSet[Cache] = weakref.WeakSet()
        monkeypatch.setattr(metrics, "_caches", self.caches)
        monkeypatch.setattr(metrics, "_made", True)
        monkeypatch.setattr(metrics.metrics, "get_meter", self.provider.get_meter)
        metrics._make()

    def __call__(self, *caches: Cache) -> Points:
        for cache in caches:
            self.caches.add(cache)
        points: Points = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for metric in resource.scope_metrics[0].metrics:
                for point in metric.data.data_points:
                    attributes = dict(point.attributes or {})
                    assert attributes.pop("cacheaside.cache") == "cacheaside"
                    points[(metric.name, *map(str, attributes.values()))] = point.value  # type: ignore[union-attr]
        return points


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measured]:
    made = Measured(monkeypatch)
    yield made
    made.provider.shutdown()


def test_metrics_are_the_counters(cache: Cache, clock: FakeClock, measured: Measured) -> None:
    """Of requests by tier and outcome, loads, commits, L1 and its coherence."""

    @cache.cached(ns="posts", key="post:{id}", tags=["post:{id}"])
    def find(id: int) -> int:
        clock.tick(2.0)
        return id

    @cache.cached(ns="posts", key="late:{id}")
    def late(id: int) -> int:
        cache.invalidate(keys=[f"posts:late:{id}"])
        return id

    for _ in range(3):
        assert find(1) == 1
    assert find(2) == 2
    assert late(3) == 3
    with cache.bypass():
        find(1)
    cache.invalidate(tags=["post:1"])
    points = measured(cache)
    assert points["cacheaside.requests", "posts", "l1", "hit"] == 2
    assert points["cacheaside.requests", "posts", "origin", "miss"] == 3
    assert points["cacheaside.requests", "posts", "origin", "bypass"] == 1
    assert points["cacheaside.requests", "posts", "l2", "stale"] == 0
    assert points["cacheaside.commits", "posts"] == 2
    assert points["cacheaside.commits.refused", "posts"] == 1
    assert points["cacheaside.load.saved", "posts"] > 1.0
    assert points["cacheaside.invalidations",] == 2
    assert points["cacheaside.invalidations.unacknowledged",] == 0
    assert points["cacheaside.coherence.coherent",] == 1
    assert points["cacheaside.entry.count",] == 2
    assert points["cacheaside.entry.bytes",] > 0
    assert points["cacheaside.evictions",] == points["cacheaside.flights",] == 0


def test_stale_answers_and_errors_are_counted(cache: Cache, clock: FakeClock, measured: Measured) -> None:
    answers: list[int] = [1]

    @cache.cached(ns="n", key="k", ttl=10, stale_if_error=60, l1=False)
    def find() -> int:
        return answers.pop()

    assert find() == 1
    clock.tick(15)
    assert find() == 1
    points = measured(cache)
    assert points["cacheaside.requests", "n", "l2", "stale"] == points["cacheaside.load.errors", "n"] == 1


async def test_waits_and_their_time_are_counted(cache: Cache, measured: Measured) -> None:
    go_on = asyncio.Event()

    @cache.cached(ns="n", key="k")
    async def slow() -> int:
        await go_on.wait()
        return 1

    calls = [asyncio.create_task(slow()) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert measured(cache)["cacheaside.flights",] == 1
    cache.world.tick.tick(4.0)  # type: ignore[attr-defined]
    go_on.set()
    await asyncio.gather(*calls)
    points = measured(cache)
    assert points["cacheaside.requests", "n", "origin", "coalesced"] == points["cacheaside.waits", "n"] == 2
    assert points["cacheaside.waits.duration", "n"] == pytest.approx(8.0)


def test_l1_that_is_full_evicts(clock: FakeClock, measured: Measured) -> None:
    with Cache("embedded://", l1_entries=2, clock=clock) as cache:

        @cache.cached(ns="n", key="{id}")
        def find(id: int) -> int:
            return id

        for id in range(5):
            find(id)
        points = measured(cache)
        assert (points["cacheaside.entry.count",], points["cacheaside.evictions",]) == (2, 3)


def test_an_invalidation_that_the_store_does_not_confirm_is_in_the_journal(
    clock: FakeClock, measured: Measured
) -> None:
    with Cache(store=FailingStore(Cache("embedded://", clock=clock).store, 1.0), clock=clock) as cache:
        cache.driver._sleep = clock.tick
        assert not cache.invalidate(tags=["t", "u"])
        points = measured(cache)
        assert points["cacheaside.journal.size",] == 2
        assert points["cacheaside.invalidations.unacknowledged",] == 1
        assert points["cacheaside.breaker.state",] == 0, "a store of one's own has no breaker"


# ---------------------------------------------------------------------------- the breaker


class Away:
    """A link whose server answers or not, and takes what is owed or not."""

    def __init__(self) -> None:
        self.breaker = Breaker(lambda _: None)
        self.journal = Journal(lambda: 0.0)
        self.events = Events(None)
        self.states: list[str] = []
        self.answers = self.takes = self.doubted = False

    def ask(self, store: Any) -> None:
        self.states.append(self.breaker.state)
        if not self.answers:
            raise StoreUnavailable("away")

    def replay(self, store: Any) -> int:
        self.states.append(self.breaker.state)
        if not self.takes:
            raise StoreUnavailable("away again")
        return 0

    def still(self, error: Exception) -> None: ...

    def attempt(self) -> list[str]:
        """What the breaker was at each step, and in the end."""
        self.states = []
        Recovery(self)._attempt(self, None)
        return [*self.states, self.breaker.state]


def test_a_breaker_is_half_open_while_redis_is_told_what_it_has_missed() -> None:
    link = Away()
    assert link.breaker.state == "closed"
    for _ in range(3):
        link.breaker.failed(link.breaker.turn, "no answer")
    assert link.breaker.state == "open"
    assert link.attempt() == ["open", "open"]
    link.answers = True
    assert link.attempt() == ["open", "half-open", "open"]
    link.takes = True
    assert link.attempt() == ["open", "half-open", "closed"]
    assert link.breaker.openings == 1


def test_the_state_of_the_breaker_is_a_number(cache: Cache, measured: Measured) -> None:
    breaker = cache.link.breaker
    breaker.open, breaker.openings = True, 1
    points = measured(cache)
    assert (points["cacheaside.breaker.state",], points["cacheaside.breaker.opened",]) == (2, 1)
    breaker.answered = True
    assert measured()["cacheaside.breaker.state",] == 1
    breaker.close()
    assert measured()["cacheaside.breaker.state",] == 0


# ---------------------------------------------------------------------------- propagation


def test_the_lag_is_the_trip_of_a_heartbeat_by_one_clock(clock: FakeClock) -> None:
    """From sending it to hearing it, behind whatever was announced before it."""
    near = NearCache(10, 10_000, 1000)
    listener = Listener(near, 1.0, tick=clock)
    listener.subscribing()
    assert listener.confirmed()
    assert listener.confirmed()
    assert (listener.trips, listener.trip_seconds, listener.lag) == (0, 0.0, None)
    for seconds in (0.5, 0.25):
        name = listener.beat(clock())
        clock.tick(seconds)
        listener.returned(name)
        assert listener.lag == pytest.approx(seconds)
    listener.returned(name)
    listener.returned(b"somebody's proof")
    assert (listener.trips, listener.trip_seconds) == (2, pytest.approx(0.75))
    listener.after_fork()
    assert (listener.trips, listener.trip_seconds, listener.lag) == (0, 0.0, None)


@pytest.mark.parametrize("alone", [None, 5.0])
def test_the_horizon_ages_while_nothing_comes_back(clock: FakeClock, alone: float | None) -> None:
    """Whatever L1 does meanwhile; of several lines by the one that is behind."""
    channel = Channel(NoServers(), NearCache(10, 10_000, 1000), clock, 1.0, alone)
    listener = channel.listener
    listener.subscribing(2, lines=2)
    assert listener.confirmed()
    assert listener.confirmed()
    first, second = (listener.beat(clock(), line) for line in range(2))
    listener.returned(first)
    assert channel.horizon_age is None
    clock.tick(0.5)
    listener.returned(second)
    assert channel.horizon_age == pytest.approx(0.5)
    listener.broken()
    clock.tick(60)
    assert channel.horizon_age == pytest.approx(60.5)


class NoServers:
    """A hub that nobody asks."""

    publics: frozenset[bytes] = frozenset()

    def subscribe(self, identity: str) -> list[Any]:
        raise NotImplementedError

    def beat(self, names: list[bytes]) -> None:
        raise NotImplementedError

    def close(self) -> None: ...


def test_without_a_channel_no_lag_is_told(cache: Cache, measured: Measured) -> None:
    points = measured(cache)
    assert not {("cacheaside.propagation.lag",), ("cacheaside.coherence.horizon_age",)} & set(points)
    assert points["cacheaside.propagation.messages",] == points["cacheaside.propagation.duration",] == 0


# ---------------------------------------------------------------------------- the toolkit


def test_hits_are_counted_by_the_name_of_their_limiter(cache: Cache, measured: Measured) -> None:
    """Limiters of one name together; what a limiter that is gone has counted stays."""
    one, other = RateLimiter(cache, 2, 60, name="login"), RateLimiter(cache, 1, 60, name="search")
    for _ in range(3):
        one.hit("ann")
    RateLimiter(cache, 2, 60, name="login", remember=0).hit("bob")
    other.hit("ann")
    other.peek("ann")
    gc.collect()
    points = measured(cache)
    assert points["cacheaside.limiter.requests", "login", "allowed"] == 3
    assert points["cacheaside.limiter.requests", "login", "denied"] == 1
    assert points["cacheaside.limiter.requests", "search", "allowed"] == 1
    assert points["cacheaside.limiter.requests", "search", "denied"] == 0
    one.hit("ann")
    assert measured()["cacheaside.limiter.requests", "login", "denied"] == 2, "a remembered refusal too"


def test_messages_are_counted_by_what_became_of_them(cache: Cache, measured: Measured) -> None:
    def handler(message: Message[int]) -> None:
        assert message.data

    def outcome(name: str) -> int:
        return int(measured(cache)["cacheaside.broker.messages", "channel", name])

    one, other = Broker(cache), Broker(cache)
    one.subscribe("posts", handler)
    for data in (1, 0, 2):
        other.publish("posts", "post", data)
    assert wait_until(lambda: outcome("handled") + outcome("failed") == 3)
    assert (outcome("published"), outcome("delivered")) == (3, 3)
    assert (outcome("handled"), outcome("failed")) == (2, 1)
    assert outcome("unavailable") == outcome("unparsable") == outcome("dropped") == 0
    one.close()


def test_durable_messages_are_acknowledged_retried_and_dead(measured: Measured) -> None:
    def handler(message: Message[str]) -> None:
        if message.data == "never" or (message.data == "second" and message.tries < 2):
            raise ValueError

    with Cache("embedded://") as cache:
        broker = DurableBroker(cache, group="g", tries=2, claim_after=0.05, retry_after=0.05)
        broker.subscribe("orders", handler)
        for data in ("first", "second", "never"):
            broker.publish("orders", "order", data)
        assert wait_until(lambda: broker.stats()["dead"] == 1 and broker.stats()["acknowledged"] == 2)
        points = measured(cache)
        counted = {
            what: n for (name, *rest), n in points.items() if rest[:1] == ["stream"] for what in rest[1:]
        }
        assert counted == {
            "published": 3, "delivered": 5, "handled": 2, "acknowledged": 2, "failed": 3, "retried": 2,
            "claimed": 2, "dead": 1, "dropped": 0, "unavailable": 0, "unparsable": 0,
        }  # fmt: skip


# ---------------------------------------------------------------------------- what it costs


def test_what_is_gone_is_not_kept_alive(measured: Measured) -> None:
    cache = Cache("embedded://")
    broker, durable, limiter = Broker(cache), DurableBroker(cache, group="g"), RateLimiter(cache, 2, 60)
    limiter.hit("ann")
    broker.publish("posts", "x")
    assert measured(cache)
    gone = [weakref.ref(one) for one in (broker, durable, limiter)]
    del broker, durable, limiter
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    cache.close()
    last = weakref.ref(cache)
    del cache
    gc.collect()
    assert last() is None
    assert measured() == {}


def test_caches_may_be_made_while_metrics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, made = threading.Event(), list[int]()

    def making() -> None:
        while not ended.is_set():
            caches.add(Thing())  # gone at once
            made.append(1)

    class Thing: ...

    caches: weakref.WeakSet[Any] = weakref.WeakSet()
    kept = [Thing() for _ in range(2000)]
    for one in kept:
        caches.add(one)
    monkeypatch.setattr(metrics, "_caches", caches)
    thread = threading.Thread(target=making)
    thread.start()
    try:
        assert all(len(metrics.every_cache()) >= len(kept) for _ in range(500))
    finally:
        ended.set()
        thread.join()
    assert made


def test_an_observable_instrument_alone_reads_what_is_counted() -> None:
    """With an SDK that exports on its own, and a cache made before it was set."""
    code = """
from cacheaside import Cache
cache = Cache("embedded://")
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))

@cache.cached(ns="n", key="{a}")
def find(a: int) -> int:
    return a

find(1), find(1)
(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
(requests,) = [m for m in scope.metrics if m.name == "cacheaside.requests"]
print({(p.attributes["cacheaside.tier"], p.attributes["cacheaside.outcome"]): p.value
       for p in requests.data.data_points if p.value})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "{('l1', 'hit'): 1, ('origin', 'miss'): 1}\n"
