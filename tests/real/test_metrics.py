"""The metrics of a process while its Redis goes away and comes back."""

from __future__ import annotations

from collections.abc import Callable

from cacheaside import Cache
from cacheaside.testing import Server
from cacheaside.testing.servers import wait_until
from tests.unit.test_metrics import Measured, measured  # noqa: F401


def test_an_outage_is_seen_from_beginning_to_end(measured: Measured) -> None:  # noqa: F811
    with Server() as server, Cache(f"{server.url}?timeout=0.3", invalidation_timeout=0.1) as cache:

        @cache.cached(ns="n", key="{id}")
        def find(id: int) -> int:
            return id

        def now(name: str) -> float:
            return float(measured(cache)[f"cacheaside.{name}",])

        def until(true: Callable[[], bool]) -> None:
            assert wait_until(true, 20.0), measured(cache)

        find(1)
        until(lambda: now("coherence.coherent") == 1)
        before = now("propagation.messages")
        until(lambda: now("propagation.messages") >= before + 3)
        assert 0 < now("propagation.lag") < 5
        assert now("propagation.duration") > 0
        assert 0 <= now("coherence.horizon_age") < 5
        assert now("coherence.epoch") >= 1
        assert (now("breaker.state"), now("journal.size")) == (0, 0)

        server.pause()
        cache.invalidate(tags=["t"])
        for id in range(10, 20):
            assert find(id) == id
        until(lambda: now("breaker.state") == 2)
        assert now("breaker.opened") >= 1
        assert now("journal.size") == 1
        until(lambda: now("coherence.coherent") == 0)
        assert now("coherence.horizon_age") > 0.5

        server.resume()
        until(lambda: (now("breaker.state"), now("journal.size")) == (0, 0))
        until(lambda: now("coherence.coherent") == 1)
