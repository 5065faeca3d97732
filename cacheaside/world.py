"""What the engine knows of the process it runs in: clock, chance, names, incarnation, compression."""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Container, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

from cacheaside.advice import grown
from cacheaside.compression import pack, unpack
from cacheaside.engine.commands import Flow
from cacheaside.engine.flights import Flights
from cacheaside.entry import NO_INCARNATION, NONCE
from cacheaside.fork import renew_after_fork
from cacheaside.journal import Journal
from cacheaside.rawkeys import RawKeys

if TYPE_CHECKING:
    from cacheaside.engine.call import Site

log = logging.getLogger("cacheaside")

SAID: int = 256
"""Bad data is logged once for a namespace and a reason, and for so many of them."""


# It must count while the machine sleeps: others go on writing meanwhile.
never_back: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class ProcessWorld:
    """The world of one ``Cache`` in one process.

    Args:
        clock: seconds since the epoch.
        tick: seconds of a clock that never goes back; for ages in L1.
        compress_above: payloads above this many bytes are compressed; None is never.
        max_value: payloads above this many bytes are answered and not stored.
        index_limit: entries listed per tag, 0 for no lists.
        recent: whether the journal keeps what was confirmed, for servers that may lose it.
    """

    def __init__(
        self,
        keys: RawKeys,
        *,
        clock: Callable[[], float] = time.time,
        tick: Callable[[], float] | None = None,
        rand: Callable[[], float] = random.random,
        compress_above: int | None = 1024,
        max_value: int = 32 * 2**20,
        index_limit: int = 10_000,
        recent: bool = True,
    ) -> None:
        self.keys = keys
        self.flights = Flights()
        renew_after_fork(self)
        self.max_value = max_value
        self.index_limit = index_limit
        self.clock = clock
        self.tick = tick if tick is not None else never_back if clock is time.time else clock
        self.journal = Journal(self.tick, recent=recent)
        self.random = rand
        self.troubles: Counter[tuple[str, str]] = Counter()
        self._compress_above = compress_above
        self._incarnation = NO_INCARNATION
        self._older: Container[bytes] = ()
        self.met_stranger: Callable[[bytes], None] = lambda incarnation: None
        """Told of an incarnation that is not believed; another process may know the server better."""
        self._extended: dict[str, float] = {}

    def after_fork(self) -> None:
        """The threads and tasks that lead the flights of now are in the parent."""
        self.flights = Flights()

    def nonce(self) -> bytes:
        return os.urandom(NONCE)

    spread = False

    def incarnation(self, key: str) -> bytes:
        """The incarnation of the server that holds the value of ``key``."""
        return self._incarnation

    def tag_incarnation(self, tag: str) -> bytes:
        return self._incarnation

    def accepts(self, incarnation: bytes, key: str) -> bool:
        """Whether what stands in the slot of ``key`` and carries this incarnation may be believed."""
        if incarnation == self._incarnation or incarnation in self._older:
            return True
        self.met_stranger(incarnation)
        return False

    def accepts_tag(self, incarnation: bytes, tag: str) -> bool:
        return True  # the values tell: they live on the same server

    def learn_incarnation(self, incarnation: bytes, older: Container[bytes] = ()) -> None:
        """A connection found this server; what carries neither its incarnation nor an ``older`` one is no
        longer believed."""
        self._older = older
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

    def grown(self, site: Site, stored: int) -> Flow[None] | None:
        return grown(self, site, stored)

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


class ClusterWorld(ProcessWorld):
    """The world of a ``Cache`` on several servers, each with an incarnation of its own.

    A slot that has moved to another server is cold: what it holds carries the incarnation of the server it
    came from, and the one it went to may since have failed over and forgotten an invalidation.

    Args:
        server_of: where a raw key is, as far as is known here: any hashable.
    """

    spread = True

    def __init__(self, keys: RawKeys, server_of: Callable[[str], Hashable], **options: Any) -> None:
        super().__init__(keys, **options)
        self._server_of = server_of
        self._incarnations: dict[Hashable, bytes] = {}

    def learn_server(self, server: Hashable, incarnation: bytes) -> None:
        """A connection found this server; what an earlier one stored in its place is not believed."""
        self._incarnations[server] = incarnation

    def incarnation(self, key: str) -> bytes:
        return self._of(self.keys.value(key))

    def tag_incarnation(self, tag: str) -> bytes:
        return self._of(self.keys.token(tag))

    def accepts(self, incarnation: bytes, key: str) -> bool:
        return incarnation == self._of(self.keys.value(key))

    def accepts_tag(self, incarnation: bytes, tag: str) -> bool:
        return incarnation == self._of(self.keys.token(tag))

    def _of(self, raw: str) -> bytes:
        return self._incarnations.get(self._server_of(raw), NO_INCARNATION)
