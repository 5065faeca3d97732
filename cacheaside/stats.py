"""Plain integers that count what happened; telemetry and ``cache.stats()`` read them."""

from __future__ import annotations

from collections.abc import Iterable


class Counts:
    """Counters of one namespace. Not locked: a race may lose a count, never a value."""

    __slots__ = (
        "alone",
        "bad_data",
        "bypassed",
        "coalesced",
        "early",
        "errors",
        "foreign",
        "hits_l1",
        "hits_l2",
        "late_unproven",
        "load_seconds",
        "loads",
        "misses",
        "refused",
        "saved_seconds",
        "stale",
        "stored",
        "too_large",
        "unavailable",
        "unencodable",
        "wait_seconds",
        "waits",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    alone: int
    bad_data: int
    bypassed: int
    coalesced: int
    early: int
    errors: int
    foreign: int
    hits_l1: int
    hits_l2: int
    late_unproven: int
    load_seconds: float
    loads: int
    misses: int
    refused: int
    saved_seconds: float
    stale: int
    stored: int
    too_large: int
    unavailable: int
    unencodable: int
    wait_seconds: float
    waits: int

    def snapshot(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__}


class Tally:
    """Counters by name, each also counted in a tally that outlives this one. Not locked either.

    Args:
        names: what is counted.
        among: where it is counted as well, such as the cache's for all brokers.
    """

    def __init__(self, names: Iterable[str], among: Tally | None = None) -> None:
        self.counts: dict[str, int] = dict.fromkeys(names, 0)
        self._among = among

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + n
        if self._among is not None:
            self._among.count(name, n)
