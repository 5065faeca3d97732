"""OpenTelemetry metrics, read from the plain counters of every cache when an exporter asks for them.

Nothing is recorded on a call: an observable instrument costs when it is read, every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from cacheaside.telemetry import NAMESPACE, version

if TYPE_CHECKING:
    from cacheaside.cache import Cache

CACHE: Final = "cacheaside.cache"

_caches: WeakSet[Cache] = WeakSet()
_made = False

REQUESTS: Final = {
    "hits_l1": ("l1", "hit"),
    "hits_l2": ("l2", "hit"),
    "stale": ("l2", "stale"),
    "misses": ("origin", "miss"),
    "alone": ("origin", "alone"),
    "coalesced": ("origin", "coalesced"),
    "bypassed": ("origin", "bypass"),
}
"""Counters of ``Counts`` that are answers, with the tier and the outcome that they stand for."""

COUNTERS: Final = {
    "cacheaside.load.errors": ("errors", "1", "Decorated functions that raised."),
    "cacheaside.waits": ("waits", "1", "Calls that waited for somebody else's load."),
    "cacheaside.waits.duration": ("wait_seconds", "s", "How long they waited, together."),
    "cacheaside.commits": ("stored", "1", "Results that were stored."),
    "cacheaside.commits.refused": ("refused", "1", "Results that came too late to be stored."),
    "cacheaside.late_tags.unproven": ("late_unproven", "1", "Results not stored for their late tags."),
    "cacheaside.bad_data": ("bad_data", "1", "Entries in the store that were damaged."),
    "cacheaside.unavailable": ("unavailable", "1", "Steps that the store did not serve."),
}
STATE: Final = {
    "cacheaside.entry.count": ("entries", "1", "Entries in L1."),
    "cacheaside.entry.bytes": ("bytes", "By", "Bytes in L1."),
    "cacheaside.coherence.coherent": ("coherent", "1", "Whether L1 may be served now."),
    "cacheaside.coherence.horizon_age": ("horizon_age", "s", "How far L1 may lag behind."),
    "cacheaside.coherence.epoch": ("epoch", "1", "How often the channel was subscribed."),
}

Rows = Iterable[tuple[float, dict[str, Any]]]


def observe(cache: Cache) -> None:
    """Have the instruments report this cache as long as it lives."""
    _caches.add(cache)
    if not _made:
        _make()


def every_cache() -> list[Cache]:
    """The caches of this process."""
    return list(_caches)


def _make() -> None:
    global _made
    _made = True
    meter = metrics.get_meter("cacheaside", version())
    meter.create_observable_counter(
        "cacheaside.requests", [_each(_requests)], unit="1", description="Calls, by tier and outcome."
    )
    meter.create_observable_counter(
        "cacheaside.load.saved", [_each(_saved)], unit="s", description="What hits would have cost to load."
    )
    for name, (field, unit, text) in COUNTERS.items():
        meter.create_observable_counter(name, [_each(_counter(field))], unit=unit, description=text)
    for name, (field, unit, text) in STATE.items():
        meter.create_observable_gauge(name, [_each(_state(field))], unit=unit, description=text)
    meter.create_observable_counter(
        "cacheaside.evictions", [_each(_state("evictions"))], unit="1", description="Entries that L1 evicted."
    )
    for name, field, text in (
        ("cacheaside.invalidations", "invalidations", "Keys and tags invalidated by this process."),
        ("cacheaside.invalidations.unacknowledged", "unacknowledged", "Invalidations that got no answer."),
    ):
        meter.create_observable_counter(name, [_each(_total(field))], unit="1", description=text)
    meter.create_observable_gauge(
        "cacheaside.flights", [_each(_total("flights"))], unit="1", description="Loads under way."
    )


def _each(read: Callable[[dict[str, Any]], Rows]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """A callback that reads every cache there is."""

    def callback(_: CallbackOptions) -> Iterator[Observation]:
        for cache in list(_caches):
            for value, attributes in read(cache.stats()):
                yield Observation(value, {CACHE: cache.prefix, **attributes})

    return callback


def _requests(stats: dict[str, Any]) -> Rows:
    for ns, counts in stats["namespaces"].items():
        for field, (tier, outcome) in REQUESTS.items():
            yield (
                counts[field],
                {NAMESPACE: ns, "cacheaside.tier": tier, "cacheaside.outcome": outcome},
            )


def _saved(stats: dict[str, Any]) -> Rows:
    """A hit in L1 counts as a load of average cost: it has no time to look what its own was."""
    for ns, counts in stats["namespaces"].items():
        average = counts["load_seconds"] / counts["loads"] if counts["loads"] else 0.0
        yield counts["saved_seconds"] + counts["hits_l1"] * average, {NAMESPACE: ns}


def _counter(field: str) -> Callable[[dict[str, Any]], Rows]:
    def rows(stats: dict[str, Any]) -> Rows:
        for ns, counts in stats["namespaces"].items():
            yield counts[field], {NAMESPACE: ns}

    return rows


def _state(field: str) -> Callable[[dict[str, Any]], Rows]:
    return lambda stats: [(stats["l1"][field], {})]


def _total(field: str) -> Callable[[dict[str, Any]], Rows]:
    return lambda stats: [(stats[field], {})]
