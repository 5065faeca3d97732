"""Which server of a cluster holds which slot, as far as is known here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

Address = tuple[str, int]

VISIT_EVERY: Final = 0.1
"""Seconds between two questions of one process to the cluster, at least: in trouble all threads have one."""

DOWN_FOR: Final = 0.5
"""Seconds that a cluster may say it is down before nobody waits any more for that to pass."""
DOWN_NO_MORE: Final = 1.0
"""Seconds without a word of it after which a cluster is taken to have been up."""


@lru_cache(maxsize=1 << 15)
def slot_of(key: str) -> int:
    return int(key_slot(key.encode()))


class Topology:
    """The owners of the slots; threads and event loops share one.

    Args:
        seeds: where to ask first.
    """

    def __init__(self, seeds: Iterable[Address], tick: Callable[[], float] = time.monotonic) -> None:
        self._seeds = tuple(seeds)
        self._tick = tick
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._known: tuple[Address, ...] = ()
        self._doubted = True
        self._next_visit = 0.0
        self._failed: dict[Address, float] = {}
        self._since: dict[Address, float] = {}
        self._down_since = self._down_last = -math.inf

    def owner(self, slot: int) -> Address | None:
        return self._owners[slot]

    def server_of(self, key: str) -> Address | None:
        """Where a raw key is."""
        return self._owners[slot_of(key)]

    @property
    def known(self) -> bool:
        """Whether anybody has told who holds what."""
        return bool(self._known)

    @property
    def primaries(self) -> tuple[Address, ...]:
        """The servers that hold slots."""
        return tuple(dict.fromkeys(owner for owner in self._owners if owner is not None))

    def candidates(self) -> list[Address]:
        """Whom to ask who holds what: those that failed last come last."""
        everybody = dict.fromkeys((*self._known, *self._seeds))
        return sorted(everybody, key=lambda address: self._failed.get(address, 0.0))

    def due(self) -> bool:
        """Whether to ask now; who is told so is the one who asks."""
        if not self._doubted or (self._known and self._tick() < self._next_visit):
            return False
        self._next_visit = self._tick() + VISIT_EVERY
        return True

    def doubt(self) -> None:
        """What is known here has led astray: ask again before long."""
        self._doubted = True

    def failed(self, address: Address) -> None:
        """A server did not answer."""
        self._failed[address] = self._tick()
        self.doubt()

    def down(self) -> bool:
        """A server said that the cluster is down; whether it may pass in a moment, as in a failover."""
        now = self._tick()
        if now - self._down_last > DOWN_NO_MORE:
            self._down_since = now
        self._down_last = now
        self.doubt()
        return now - self._down_since < DOWN_FOR

    def moved(self, slot: int, address: Address) -> None:
        """A server said that this slot is elsewhere; where one has moved there may be others."""
        self._since[address] = self._tick()  # before anybody goes there
        self._owners[slot] = address
        self.doubt()

    def learn(self, ranges: Iterable[Any], told_by: Address) -> None:
        """Take over the answer to CLUSTER SLOTS."""
        owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        known: dict[Address, None] = {}
        for first, last, *nodes in ranges:
            for number, (host, port, *_) in enumerate(nodes):
                address = (_host(host) or told_by[0], int(port))
                known[address] = None
                if number == 0:
                    owners[int(first) : int(last) + 1] = [address] * (int(last) - int(first) + 1)
        for address in {new for new, old in zip(owners, self._owners, strict=True) if new and new != old}:
            self._since[address] = self._tick()
        self._owners, self._known, self._doubted = owners, tuple(known), False

    def since(self, address: Address) -> float:
        """When it was found out that this server holds slots, or more of them: it may have been a replica."""
        return self._since.get(address, 0.0)


def _host(raw: bytes | str | None) -> str:
    """Empty where the server does not know how it is reached, or does not say."""
    host = raw.decode() if isinstance(raw, bytes) else raw or ""
    return "" if host == "?" else host
