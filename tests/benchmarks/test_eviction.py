"""How many hits an eviction policy gets out of the same memory, on traces of real requests."""

from __future__ import annotations

import lzma
from array import array
from pathlib import Path
from typing import Any

import pytest
from cachetools import LRUCache

from cacheaside.stores.s3fifo import S3FIFOCache

pytestmark = pytest.mark.benchmark

DATA = Path(__file__).parents[3] / "shared" / "data"


def trace(name: str, most: int = -1) -> array[int]:
    """The keys that were asked for, in order: big-endian numbers of 32 bits."""
    file = DATA / f"{name}.trace.xz"
    if not file.exists():
        pytest.skip(f"{file} is not there: nothing to measure")
    with lzma.open(file) as numbers:
        keys = array("I", numbers.read(4 * most if most > 0 else -1))
    keys.byteswap()
    return keys


def hit_ratio(cache: Any, keys: array[int]) -> float:
    hits = 0
    for key in keys:
        if cache.get(key):
            hits += 1
        else:
            cache[key] = True
    return hits / len(keys)


@pytest.mark.parametrize(
    ("name", "most", "sizes", "least"),
    [("web12", -1, (256, 1024, 3000), 0.02), ("orm-busy", 1_500_000, (1000, 5000, 20_000), -0.02)],
)
def test_s3_fifo_beside_lru(table, name, most, sizes, least):
    """Ahead of LRU on requests for pages; on a busy ORM ahead or close behind, depending on the size."""
    keys = trace(name, most)
    for size in sizes:
        lru, s3fifo = hit_ratio(LRUCache(size), keys), hit_ratio(S3FIFOCache(size), keys)
        table(f"{name}, {size} entries", "LRU", f"{lru:.3f} hits", "")
        table("", "S3-FIFO", f"{s3fifo:.3f} hits", f"{100 * (s3fifo - lru):+.1f} points")
        assert s3fifo - lru > least
