"""OpenTelemetry metrics, read from the plain counters of every cache when an exporter asks for them.

Nothing is recorded on a call: an observable instrument costs when it is read, every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from cacheaside.telemetry import NAMESPACE, OUTCOME, TIER, version

if TYPE_CHECKING:
    from cacheaside.cache import Cache

CACHE: Final = "cacheaside.cache"
KIND: Final = "cacheaside.kind"
LIMIT: Final = "cacheaside.limit"

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

MESSAGES: Final = {
    "published": "published",
    "unavailable": "unavailable",
    "received": "delivered",
    "handled": "handled",
    "failed": "failed",
    "unparsable": "unparsable",
    "dropped": "dropped",
    "acknowledged": "acknowledged",
    "retried": "retried",
    "claimed": "claimed",
    "dead": "dead",
}
"""Counters of brokers, with the outcome that they stand for."""

STATES: Final[dict[Any, Any]] = {False: 0, True: 1, "closed": 0, "half-open": 1, "open": 2}
"""What stands for a number; OTLP's encoder refuses a boolean, and with it all that was read at the time."""

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
"""Counters of each namespace."""

TOTALS: Final = {
    "cacheaside.evictions": ("l1.evictions", "1", "Entries that L1 evicted."),
    "cacheaside.invalidations": ("invalidations", "1", "Keys and tags invalidated by this process."),
    "cacheaside.invalidations.unacknowledged": (
        "unacknowledged", "1", "Invalidations that got no answer.",
    ),
    "cacheaside.propagation.messages": (
        "propagation.messages", "1", "Heartbeats of this process that its own channel delivered.",
    ),
    "cacheaside.propagation.duration": (
        "propagation.seconds", "s", "How long they were on their way, from sending to delivery, together.",
    ),
    "cacheaside.breaker.opened": ("store.openings", "1", "How often the store was found to be away."),
}  # fmt: skip
"""Counters of each cache, with their places in ``stats()``."""

STATE: Final = {
    "cacheaside.entry.count": ("l1.entries", "1", "Entries in L1."),
    "cacheaside.entry.bytes": ("l1.bytes", "By", "Bytes in L1."),
    "cacheaside.coherence.coherent": ("l1.coherent", "1", "Whether L1 may be served now."),
    "cacheaside.coherence.horizon_age": ("l1.horizon_age", "s", "How far L1 may lag behind."),
    "cacheaside.coherence.epoch": ("l1.epoch", "1", "How often the channel was subscribed."),
    "cacheaside.propagation.lag": (
        "propagation.lag", "s", "How long the last heartbeat that came back was on its way.",
    ),
    "cacheaside.breaker.state": ("store.state", "1", "Of the breaker: 0 closed, 1 half-open, 2 open."),
    "cacheaside.journal.size": (
        "store.owed", "1", "Keys, tags and patterns whose invalidation the store has not confirmed.",
    ),
    "cacheaside.flights": ("flights", "1", "Loads under way."),
}  # fmt: skip
"""Gauges of each cache, with their places in ``stats()``."""

Stats = dict[str, Any]
Rows = Iterable[tuple[float, dict[str, Any]]]


def observe(cache: Cache) -> None:
    """Have the instruments report this cache as long as it lives."""
    _caches.add(cache)
    if not _made:
        _make()


def every_cache() -> list[Cache]:
    """The caches of this process."""
    while True:
        try:
            return list(_caches)
        except RuntimeError:  # another thread has made one meanwhile
            continue


def _make() -> None:
    global _made
    _made = True
    meter = metrics.get_meter("cacheaside", version())

    def count(name: str, rows: Callable[[Stats], Rows], unit: str, text: str) -> None:
        meter.create_observable_counter(name, [_each(rows)], unit=unit, description=text)

    count("cacheaside.requests", _requests, "1", "Calls, by tier and outcome.")
    count("cacheaside.load.saved", _saved, "s", "What hits would have cost to load.")
    for name, (field, unit, text) in COUNTERS.items():
        count(name, _by_namespace(field), unit, text)
    for name, (place, unit, text) in TOTALS.items():
        count(name, _at(place), unit, text)
    count("cacheaside.broker.messages", _messages, "1", "What became of messages; outcomes overlap.")
    count("cacheaside.limiter.requests", _hits, "1", "Hits of rate limiters, by the limiter's name.")
    for name, (place, unit, text) in STATE.items():
        meter.create_observable_gauge(name, [_each(_at(place))], unit=unit, description=text)


def _each(read: Callable[[Stats], Rows]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """A callback that reads every cache there is."""

    def callback(_: CallbackOptions) -> Iterator[Observation]:
        for cache in every_cache():
            for value, attributes in read(cache.stats()):
                yield Observation(value, {CACHE: cache.prefix, **attributes})

    return callback


def _requests(stats: Stats) -> Rows:
    for ns, counts in stats["namespaces"].items():
        for field, (tier, outcome) in REQUESTS.items():
            yield counts[field], {NAMESPACE: ns, TIER: tier, OUTCOME: outcome}


def _saved(stats: Stats) -> Rows:
    """A hit in L1 counts as a load of average cost: it has no time to look what its own was."""
    for ns, counts in stats["namespaces"].items():
        average = counts["load_seconds"] / counts["loads"] if counts["loads"] else 0.0
        yield counts["saved_seconds"] + counts["hits_l1"] * average, {NAMESPACE: ns}


def _messages(stats: Stats) -> Rows:
    for kind, counts in stats["messages"].items():
        for field, outcome in MESSAGES.items():
            if field in counts:
                yield counts[field], {KIND: kind, OUTCOME: outcome}


def _hits(stats: Stats) -> Rows:
    for name, counts in stats["limits"].items():
        for outcome, n in counts.items():
            yield n, {LIMIT: name, OUTCOME: outcome}


def _by_namespace(field: str) -> Callable[[Stats], Rows]:
    def rows(stats: Stats) -> Rows:
        for ns, counts in stats["namespaces"].items():
            yield counts[field], {NAMESPACE: ns}

    return rows


def _at(place: str) -> Callable[[Stats], Rows]:
    """What stands there; nothing while it is not known."""
    *path, last = place.split(".")

    def rows(stats: Stats) -> Rows:
        for step in path:
            stats = stats[step]
        value: Any = stats[last]
        if value is not None:
            yield STATES.get(value, value), {}

    return rows
