"""A circuit breaker: while Redis is away, nobody waits to find that out again.

It opens after a few failures in a row, for all threads and event loops of the process; from then on commands
fail at once. The recovery thread asks after Redis and closes it (recovery.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, MaxConnectionsError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.fork import renew_after_fork

FAILURES: Final = 3
"""Failures in a row after which the breaker opens: one may be a connection that was idle for too long."""
OUT_OF_SERVICE: Final = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN")
"""What servers say that answer, and serve nobody."""


def is_outage(error: BaseException) -> bool:
    """Whether an error says that Redis is away, for everything and everybody.

    A server that answers, and refuses this command only (READONLY, OOM, MISCONF, NOPERM, ...), is there; so
    is one to which this process has too many connections.
    """
    if isinstance(error, ResponseError):
        return (getattr(error, "status_code", None) or str(error).partition(" ")[0]) in OUT_OF_SERVICE
    if isinstance(error, MaxConnectionsError):
        return False
    return isinstance(error, (RedisConnectionError, RedisTimeoutError, InvalidResponse, ConfigError, OSError))


class Breaker:
    """Counts failures in a row; open while Redis is away.

    Args:
        opened: called when it opens, with what failed last, in the thread or task that this happened to.
        limit: failures in a row that open it.
    """

    def __init__(self, opened: Callable[[str], None], limit: float = FAILURES) -> None:
        self._opened = opened
        self._limit = limit
        self._lock = threading.Lock()
        renew_after_fork(self)
        self.open = False
        self.failures = 0
        """Failures in a row. Who succeeds sets it to 0, without a lock: one failure more or less is no
        matter."""
        self.turn = 0
        """Changes when it closes: what was sent before and fails later says nothing about now."""
        self.since = 0.0
        """When the first of the failures in a row came, by ``time.monotonic()``."""
        self.last = ""
        """What failed last, in words."""
        self.openings = 0
        self.answered = False
        """Whether Redis has answered while it was open, and is being told what it has missed."""

    def after_fork(self) -> None:
        """A child has no thread that would close it: it finds out for itself."""
        self._lock = threading.Lock()
        self.open, self.failures, self.answered = False, 0, False

    def failed(self, turn: int, words: str) -> None:
        """Something that was sent in ``turn`` has failed because Redis is away."""
        with self._lock:
            if turn != self.turn or self.open:
                return
            self.last = words
            if not self.failures:
                self.since = monotonic()
            self.failures += 1
            if self.failures < self._limit:
                return
            self.open = True
            self.openings += 1
        self._opened(words)

    def close(self) -> bool:
        """Redis answers again; whether the breaker was open."""
        with self._lock:
            was, self.open, self.failures = self.open, False, 0
            self.turn += 1
            return was

    @property
    def state(self) -> str:
        """``"closed"``, ``"half-open"`` while only the recovery thread is let through, or ``"open"``."""
        return ("half-open" if self.answered else "open") if self.open else "closed"

    @property
    def away(self) -> float:
        """Seconds since Redis went away; 0 while it is not known to be."""
        return monotonic() - self.since if self.open or self.failures else 0.0

    def refusal(self) -> StoreUnavailable:
        """What to raise while it is open."""
        error = StoreUnavailable(f"Redis has been away for {self.away:.1f} s: {self.last}")
        error.away = self.away
        return error
