"""What a cache says about itself: ``stats()`` and ``health()``. Nothing is asked for; it is all known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from cacheaside.flows import Flows

NO_TRIPS: Final = {"messages": 0, "seconds": 0.0, "lag": None}


class Health(Struct, frozen=True):
    """How a process stands with its store."""

    ok: bool
    """Whether it is asked: false while it, or a server of a cluster, is known to be away."""
    away: float
    """Seconds since it went away, 0 while it is there."""
    trouble: str
    """What failed last, while it is away."""
    owed: int
    """Keys, tags and patterns that were invalidated and that it has not confirmed."""
    coherent: bool
    """Whether L1 may be believed now."""


def health_of(cache: Flows) -> Health:
    breaker = cache.link.breaker
    return Health(
        ok=not breaker.open,
        away=breaker.away,
        trouble=breaker.last if breaker.open else "",
        owed=len(cache.world.journal),
        coherent=cache.near is not None and cache.near.coherent(cache.world.tick()),
    )


def stats_of(cache: Flows) -> dict[str, Any]:
    near = cache.near
    return {
        "namespaces": {ns: counts.snapshot() for ns, counts in list(cache.counts.items())},
        "l1": {
            "on": near is not None and cache.l1_entries > 0,
            "coherent": near is not None and near.coherent(cache.world.tick()),
            "epoch": cache.channel.epoch if cache.channel else 0,
            "horizon_age": cache.channel.horizon_age if cache.channel else None,
            "entries": len(near.entries) if near else 0,
            "bytes": near.size if near else 0,
            "evictions": near.evictions if near else 0,
        },
        "propagation": cache.channel.propagation if cache.channel else dict(NO_TRIPS),
        "store": {
            "state": cache.link.breaker.state,
            "away": cache.link.breaker.away,
            "openings": cache.link.breaker.openings,
            "owed": len(cache.world.journal),
            "recent": cache.world.journal.recent,
            "replayed": cache.world.journal.replayed,
            "failovers": dict(cache.link.decisions),
        },
        "messages": {kind: dict(tally.counts) for kind, tally in list(cache.messages.items())},
        "limits": {name: dict(tally.counts) for name, tally in list(cache.limits.items())},
        "flights": len(cache.world.flights),
        "invalidations": cache.invalidations,
        "unacknowledged": cache.unacknowledged,
        "bad_data": {f"{ns}: {reason}": n for (ns, reason), n in cache.world.troubles.items()},
    }
