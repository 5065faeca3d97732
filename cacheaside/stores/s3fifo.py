"""S3-FIFO: an eviction policy that a scan cannot flush and whose hits move nothing.

After Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023.
A new key waits in a *small* queue, a tenth of the cache; most keys are never asked for again and leave
from there. What was asked for again goes on to the *main* queue, where each hit buys another round. A
*ghost* queue remembers what has just left: a key that comes back starts in the main queue.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, TypeVar, cast

from cachetools import Cache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SMALL: Final = 0.1
"""The small queue's share of what the cache holds."""
MOST_HITS: Final = 3
"""Hits are counted in two bits."""
PROMOTED: Final = 2
"""With so many hits a key leaves the small queue for the main one."""


class S3FIFOCache(Cache[K, V]):
    """A ``cachetools.Cache`` with the S3-FIFO policy; entries weigh what ``getsizeof`` says."""

    def __init__(self, maxsize: float, getsizeof: Callable[[V], float] | None = None) -> None:
        super().__init__(maxsize, getsizeof)
        self._small: OrderedDict[K, float] = OrderedDict()
        self._main: OrderedDict[K, None] = OrderedDict()
        self._ghost: OrderedDict[K, None] = OrderedDict()
        self._hits: dict[K, int] = {}
        self._small_size = 0.0

    def __getitem__(self, key: K) -> V:
        value = super().__getitem__(key)
        hits = self._hits.get(key, MOST_HITS)  # __missing__ may answer for a key that is not here
        if hits < MOST_HITS:
            self._hits[key] = hits + 1
        return value

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if key in self._main:
            return
        if key in self._ghost:
            del self._ghost[key]
            self._main[key] = None
        else:
            size = self.getsizeof(value)
            self._small_size += size - self._small.get(key, 0)
            self._small[key] = size
        self._hits.setdefault(key, 0)

    def __delitem__(self, key: K) -> None:
        super().__delitem__(key)
        del self._hits[key]
        if key in self._small:
            self._small_size -= self._small.pop(key)
        else:
            del self._main[key]

    def popitem(self) -> tuple[K, V]:
        """Remove and return the ``(key, value)`` pair that the policy can spare best."""
        if not self:
            raise KeyError(f"{type(self).__name__} is empty")
        key = self._victim()
        value = super().__getitem__(key)
        if key in self._small:
            self._ghost[key] = None
        del self[key]
        while len(self._ghost) > len(self):
            self._ghost.popitem(last=False)
        return key, value

    def _victim(self) -> K:
        """The key to go. Each step moves a key to the main queue or takes a hit, so it ends."""
        small, main, hits = self._small, self._main, self._hits
        while True:
            # A share of what is held, not of maxsize: an owner may bound the entries in another way too.
            if small and (self._small_size >= SMALL * self.currsize or not main):
                key = next(iter(small))
                if hits[key] < PROMOTED:
                    return key
                self._small_size -= small.pop(key)
                main[key] = None
                hits[key] = 0
            else:
                key = next(iter(main))
                if not hits[key]:
                    return key
                hits[key] -= 1
                main.move_to_end(key)

    def clear(self) -> None:
        super().clear()
        for queue in (self._small, self._main, self._ghost, self._hits):
            queue.clear()
        self._small_size = 0.0

    def __copy__(self) -> S3FIFOCache[K, V]:
        # The stubs of cachetools leave out that a cache can be copied.
        copy = cast("S3FIFOCache[K, V]", super().__copy__())  # type: ignore[misc]
        copy._small, copy._main = self._small.copy(), self._main.copy()
        copy._ghost, copy._hits = self._ghost.copy(), self._hits.copy()
        return copy
