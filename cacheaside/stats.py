"""Plain integers that count what happened; telemetry and ``cache.stats()`` read them."""

from __future__ import annotations


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
