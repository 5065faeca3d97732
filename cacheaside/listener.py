"""What a process makes of what it hears: when L1 may be believed, and what has been proven. No I/O here.

A line carries the announcements of all processes and the heartbeats of this one in the order in which they
were published. ``coherence.py`` reads the line on real servers; the tests read it in every order there is.

1.  After every subscription L1 starts anew, and nothing read before it may settle: what was announced in
    the gap was not heard. A confirmation that nobody asked for is a gap as well.
2.  A heartbeat that comes back moves the horizon to when it was *sent*, plus the window. Of several lines,
    as in a cluster, the one that is behind counts.
3.  Heartbeats have the epoch in their names: one from before a gap may come back after it, and must not be
    taken for a newer one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Final

import msgspec

from cacheaside.fork import renew_after_fork
from cacheaside.stores.announcements import read_announcement
from cacheaside.stores.memory import NearCache

log = logging.getLogger("cacheaside")

CHANNELS: Final = 2
"""Of a line, at least: what is announced, and one's own heartbeats."""
FORGET_AFTER: Final = 10
"""Windows after which a heartbeat is not waited for any more."""
HEARD: Final = 4096
EXPECTED: Final = 1.0


class Listener:
    """The listening side of one cache in one process, told by one thread what comes over the line.

    Args:
        near: what is marked, cleared, and believed until its ``horizon``.
        window: seconds that L1 may lag behind an invalidation.
        alone: seconds that L1 is believed while nothing is heard; None turns it off then.
        tick: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        near: NearCache,
        window: float,
        alone: float | None = None,
        tick: Callable[[], float] = time.monotonic,
    ) -> None:
        self.window = window
        self.alone = alone
        self._tick = tick
        self.epoch = 0
        self.up = False
        self._near = near
        self._unconfirmed = CHANNELS
        self._sent: dict[bytes, tuple[float, int]] = {}
        self._newest = [-math.inf]
        self._beats = 0
        self._forget_trips()
        self._lock = threading.Lock()
        self._proofs: dict[str, tuple[Future[bool], int]] = {}
        self._fills: OrderedDict[str, tuple[Future[bool], float]] = OrderedDict()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Whoever waits does so in the parent; what is on the line is the parent's as well."""
        self._lock = threading.Lock()
        self.up = False
        self._proofs, self._fills = {}, OrderedDict()
        self._forget_trips()

    def _forget_trips(self) -> None:
        self.trips = 0
        """Heartbeats that have come back."""
        self.trip_seconds = 0.0
        """How long they were on their way, together."""
        self.lag: float | None = None
        """How long the last of them was; None before the first."""
        self.heard: float | None = None
        """When the newest of them was sent, on the line that is behind; None before that."""

    # -- what comes over the line

    def subscribing(self, channels: int = CHANNELS, lines: int = 1) -> None:
        """A subscription is asked for, of so many channels on so many lines at once, public and private."""
        self._unconfirmed = channels
        self._sent.clear()
        self._newest = [-math.inf] * lines
        self._beats = 0

    def confirmed(self) -> bool:
        """The server has confirmed one channel. False: that was not asked for, so there was a gap."""
        if self.up:
            return False
        self._unconfirmed -= 1
        if not self._unconfirmed:
            self._near.listen()
            with self._lock:
                self.epoch += 1
                self.up = True
        return True

    def announced(self, data: bytes) -> None:
        """Somebody has announced what L1 must drop, or what a follower may find filled."""
        try:
            heard = read_announcement(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # Somebody speaks who is not understood: what he meant to drop can't be known.
            log.warning("an announcement does not parse; L1 starts anew")
            self._near.clear()
            return
        if heard.keys or heard.tags:
            self._near.mark(tuple(heard.keys), tuple(heard.tags))
        for pattern in heard.patterns:
            self._near.clear(pattern)
        with self._lock:
            waiters = [self._fills.pop(key, None) for key in (*heard.filled, *heard.keys)]
        settle(filter(None, waiters))

    def beat(self, now: float, line: int = 0) -> bytes:
        """The name of the heartbeat that is sent now."""
        self._beats += 1
        name = b"%d.%d" % (self.epoch, self._beats)
        self._sent[name] = now, line
        for old in [n for n, (at, _) in self._sent.items() if at < now - FORGET_AFTER * self.window]:
            del self._sent[old]
        return name

    def returned(self, name: bytes) -> None:
        """A heartbeat has come back; what was announced before it was sent has been heard."""
        sent = self._sent.pop(name, None)
        if sent is not None:
            # The older of two may come second after a retry: the horizon never goes back.
            at, line = sent
            self.lag = max(0.0, self._tick() - at)
            self.trips += 1
            self.trip_seconds += self.lag
            self._newest[line] = max(self._newest[line], at)
            heard = min(self._newest)
            self._near.horizon = max(self._near.horizon, heard + self.window)
            if heard > -math.inf:
                self.heard = heard
            return
        self._prove(name.decode("ascii", "replace"))

    def _prove(self, name: str) -> None:
        with self._lock:
            proof, lines = self._proofs.pop(name, (None, 0))
            if proof is not None and lines > 1:
                self._proofs[name] = proof, lines - 1
                return
        if proof is not None:
            proof.set_result(True)

    def broken(self) -> None:
        """Nothing more will be heard until the next subscription."""
        if self.alone is None:
            self._near.horizon = 0.0
        else:
            self._near.live_alone(self._tick, self.alone)
        with self._lock:
            self.up = False
            proofs, self._proofs = self._proofs, {}
            fills, self._fills = self._fills, OrderedDict()
        for proof, _ in proofs.values():
            proof.set_result(False)
        settle(fills.values())

    # -- what others ask

    def expect(self, name: str, lines: int = 1) -> Future[bool]:
        """A future that is done when the heartbeat named so has come back by so many lines; False if one
        broke."""
        proof: Future[bool] = Future()
        proof.set_running_or_notify_cancel()
        with self._lock:
            if self.up:
                self._proofs[name] = proof, lines
            else:
                proof.set_result(False)
        return proof

    def forget(self, name: str) -> None:
        self._proofs.pop(name, None)

    def expect_fill(self, key: str, now: float) -> Future[bool]:
        """A future that is done when somebody has announced that ``key`` was filled or dropped.

        All who ask within a second share one, and it ends then: short loads are not announced, and what
        was asked about them would pile up.
        """
        with self._lock:
            known = self._fills.get(key)
            if known is not None and now - known[1] < EXPECTED:
                return known[0]
            fill: Future[bool] = Future()
            fill.set_running_or_notify_cancel()
            self._fills[key] = fill, now
            self._fills.move_to_end(key)
            over = [known] if known is not None else []
            while len(self._fills) > HEARD:
                over.append(self._fills.popitem(last=False)[1])
        settle(over)
        return fill


def settle(fills: Iterable[tuple[Future[bool], float]]) -> None:
    for fill, _ in fills:
        fill.set_result(True)
