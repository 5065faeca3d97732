"""Ways to break the library in the processes of a check, which then has to find it out.

Each stands in for an eviction policy of L1: that is made in every process, when its cache is.
"""

from __future__ import annotations

import math
from typing import Any

import cachetools

from cacheaside import Cache
from cacheaside.journal import Journal
from cacheaside.stores.memory import NearCache
from cacheaside.world import ProcessWorld


def trust_every_server(*args: Any, **kwargs: Any) -> cachetools.LRUCache[str, int]:
    """Values and tokens of a server that has been restarted are believed, and nothing is repeated to it."""
    Journal.reopen = lambda self: 0  # type: ignore[method-assign]
    ProcessWorld.accepts = lambda self, incarnation, key: True  # type: ignore[method-assign]
    ProcessWorld.accepts_tag = lambda self, incarnation, tag: True  # type: ignore[method-assign]
    return cachetools.LRUCache(*args, **kwargs)


def believe_l1_for_ever(*args: Any, **kwargs: Any) -> cachetools.LRUCache[str, int]:
    """The horizon is at the end of time, heartbeats or not."""

    def nothing(self: NearCache, until: float) -> None: ...

    NearCache.horizon = property(lambda self: math.inf, nothing)  # type: ignore[assignment]
    return cachetools.LRUCache(*args, **kwargs)


def never_close(*args: Any, **kwargs: Any) -> cachetools.LRUCache[str, int]:
    """Closing does nothing."""

    async def nothing(self: Cache) -> None: ...

    Cache.aclose = nothing  # type: ignore[method-assign]
    return cachetools.LRUCache(*args, **kwargs)
