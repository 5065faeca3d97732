"""What a worker counts, and how the counts of several workers become one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

GROWTH: Final = math.log(1.04)
BUCKETS: Final = 500


class Histogram:
    """Times in buckets that are 4 % wide, from a microsecond to five minutes."""

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS

    def add(self, seconds: float) -> None:
        self.buckets[min(BUCKETS - 1, max(0, int(math.log(max(seconds, 1e-6) * 1e6) / GROWTH)))] += 1

    def merge(self, other: Histogram) -> None:
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]

    def quantile(self, share: float) -> float | None:
        """The time in seconds that this share of all stayed below; None while there are none."""
        rank = share * sum(self.buckets)
        seen = 0
        for number, count in enumerate(self.buckets):
            seen += count
            if count and seen >= rank:
                return math.exp((number + 0.5) * GROWTH) / 1e6
        return None


@dataclass
class Tally:
    """One worker's counts so far in a phase, or those of all of them."""

    elapsed: float = 0.0
    reads: int = 0
    writes: int = 0
    queries: int = 0
    stale: int = 0
    lagging: int = 0
    """Answers from before a write that had returned less than L1's window ago."""
    wrong: int = 0
    """Answers for another user than the one who asked."""
    failed: int = 0
    """Requests without an answer, or with one that should not be."""
    hits_l1: int = 0
    hits_l2: int = 0
    loads: int = 0
    times: Histogram = field(default_factory=Histogram)

    @property
    def reads_per_second(self) -> float:
        return self.reads / self.elapsed if self.elapsed else 0.0

    @property
    def queries_per_read(self) -> float:
        return self.queries / self.reads if self.reads else 0.0

    @property
    def asked(self) -> int:
        """Values that the cache was asked for."""
        return self.hits_l1 + self.hits_l2 + self.loads

    @property
    def hit_share(self) -> float | None:
        """The share of reads answered by a cache; None without one."""
        return (self.hits_l1 + self.hits_l2) / self.asked if self.asked else None

    def queries_saved(self, uncached: Tally) -> float:
        """How many more queries these reads would have cost at the rate of ``uncached``."""
        return self.reads * uncached.queries_per_read - self.queries


def total(tallies: list[Tally]) -> Tally:
    """The sum of what workers counted side by side."""
    result = Tally(elapsed=max((tally.elapsed for tally in tallies), default=0.0))
    for tally in tallies:
        for name in ("reads", "writes", "queries", "stale", "hits_l1", "hits_l2", "loads"):
            setattr(result, name, getattr(result, name) + getattr(tally, name))
        result.times.merge(tally.times)
    return result
