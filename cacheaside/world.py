"""What the engine knows of the process it runs in: clock, chance, names, incarnation, compression."""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from cacheaside.codecs import pack, unpack
from cacheaside.engine.flights import Flights
from cacheaside.entry import NO_INCARNATION, NONCE
from cacheaside.keys import Keyspace

if TYPE_CHECKING:
    from cacheaside.engine.call import Site

log = logging.getLogger("cacheaside")

SAID: int = 256
"""Bad data is logged once for a namespace and a reason, and for so many of them."""


_worlds: Final[WeakSet[ProcessWorld]] = WeakSet()


def _forget_flights() -> None:
    """In a forked child: the threads and tasks that lead them are in the parent."""
    for world in _worlds:
        world.flights = Flights()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_flights)


class ProcessWorld:
    """The world of one ``Cache`` in one process.

    Args:
        clock: seconds since the epoch.
        compress_above: payloads above this many bytes are compressed; None is never.
        max_value: payloads above this many bytes are answered and not stored.
        index_limit: entries listed per tag, 0 for no lists.
    """

    def __init__(
        self,
        keys: Keyspace,
        *,
        clock: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
        compress_above: int | None = 1024,
        max_value: int = 32 * 2**20,
        index_limit: int = 10_000,
    ) -> None:
        self.keys = keys
        self.flights = Flights()
        _worlds.add(self)
        self.max_value = max_value
        self.index_limit = index_limit
        self.clock = clock
        self.random = rand
        self.troubles: Counter[tuple[str, str]] = Counter()
        self._compress_above = compress_above
        self._incarnation = NO_INCARNATION
        self._extended: dict[str, float] = {}

    def nonce(self) -> bytes:
        return os.urandom(NONCE)

    def incarnation(self) -> bytes:
        return self._incarnation

    def accepts(self, incarnation: bytes) -> bool:
        return incarnation == self._incarnation

    def learn_incarnation(self, incarnation: bytes) -> None:
        """A connection found this server; what carries another incarnation is no longer believed."""
        self._incarnation = incarnation

    def pack(self, payload: bytes) -> tuple[int, bytes]:
        if self._compress_above is None or len(payload) <= self._compress_above:
            return 0, payload
        return pack(payload, self._compress_above)

    def unpack(self, flags: int, payload: bytes) -> bytes:
        return unpack(flags, payload, self.max_value)

    def extend(self, token: str, needed: float, until: float) -> bool:
        """Whether the token's life must be prolonged to reach ``needed``; it will reach ``until``."""
        if self._extended.get(token, 0.0) >= needed:
            return False
        if len(self._extended) >= 16384:
            self._extended.clear()
        self._extended[token] = until
        return True

    def bad_data(self, site: Site, key: str, reason: str) -> None:
        """Count trouble with an entry and say it once: the caller gets a miss, never an exception."""
        about = (site.policy.ns, reason.split(":")[0])
        self.troubles[about] += 1
        if self.troubles[about] == 1 and len(self.troubles) <= SAID:
            log.warning("%s (%s:...): %s; said once, counted in stats()", *_words(about[1], reason, about[0]))


def _words(kind: str, reason: str, ns: str) -> tuple[str, str, str]:
    return (
        {
            "foreign": "a slot holds something cacheaside did not write and is left alone",
            "foreign tag": "the key of a tag holds something cacheaside did not write and is left alone",
            "broken": "an entry is damaged and is replaced",
            "undecodable": "an entry does not decode and is replaced",
            "unencodable": "a result does not fit its annotation and is not cached",
            "too large": "a result is larger than max_value and is not cached",
        }.get(kind, kind),
        ns,
        reason,
    )
