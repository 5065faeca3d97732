"""Which servers of a cluster are away: a breaker for each, so that one that is silent keeps nobody waiting.

A gate shuts after a few failures in a row, for all threads and event loops of the process; from then on what
is for its server fails at once, and what is for the others goes on. The recovery thread opens it again
(recovery.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from time import monotonic

from msgspec import Struct
from msgspec.structs import replace
from redis.exceptions import ConnectionError as RedisConnectionError

from cacheaside.breaker import FAILURES, is_outage
from cacheaside.events import Events
from cacheaside.fork import renew_after_fork
from cacheaside.redaction import in_words
from cacheaside.stores.routing import Answers, Exchange
from cacheaside.stores.topology import Address


class Shut(Struct, frozen=True):
    """Since when a server is away, by ``time.monotonic()``, and what failed last."""

    since: float
    words: str


class Gates:
    """The servers that do not answer.

    To whoever asks after the store as a whole this is its breaker: open while one of them is away.

    Args:
        events: told when a gate shuts, in the thread or task that this happened to.
        limit: failures in a row that shut one.
    """

    def __init__(self, events: Events, limit: float = FAILURES) -> None:
        self._events = events
        self._limit = limit
        self.wake: Callable[[], object] = lambda: None
        """Called when a gate shuts, to have its server asked again."""
        self._lock = threading.Lock()
        renew_after_fork(self)
        self.shut: dict[Address, Shut] = {}
        self.failing: dict[Address, tuple[int, float]] = {}
        """Failures in a row, and when the first of them came."""
        self._opened: dict[Address, float] = {}
        self._was_open = False
        self.openings = 0
        self.answered = False

    def after_fork(self) -> None:
        """A child has no thread that would open them: it finds out for itself."""
        self._lock = threading.Lock()
        self.shut, self.failing, self._was_open = {}, {}, False

    # -- what exchanges ask and tell

    def pass_through(self, exchange: Exchange) -> tuple[Exchange, Answers]:
        """What of an exchange may be sent, and the answers that the rest has already."""
        refused = {address: self._refusal(address) for address in exchange.calls if address in self.shut}
        calls = {address: calls for address, calls in exchange.calls.items() if address not in refused}
        return replace(exchange, calls=calls), dict(refused)

    def served(self, address: Address) -> None:
        """A server that failed before has answered."""
        with self._lock:
            self.failing.pop(address, None)

    def failed(self, address: Address, error: Exception, sent: float) -> None:
        """What went to a server at ``sent`` got no answer; an error of another kind says nothing about it."""
        if not is_outage(error):
            return
        with self._lock:
            # What was sent before it was let go on says nothing about now.
            if address in self.shut or sent < self._opened.get(address, 0.0):
                return
            count, since = self.failing.get(address, (0, monotonic()))
            self.failing[address] = (count + 1, since)
            if count + 1 < self._limit:
                return
            del self.failing[address]
            words = in_words(error)
            self.shut[address] = Shut(since, words)
            self._was_open = True
            self.openings += 1
        self._events.tell("disconnect", f"{name_of(address)} is away: {words}")
        self.wake()

    def _refusal(self, address: Address) -> Exception:
        shut = self.shut.get(address)
        words = shut.words if shut is not None else "it has just come back"
        return RedisConnectionError(f"{name_of(address)} is away: {words}")

    # -- what recovery does

    def open_all(self, addresses: Collection[Address]) -> None:
        """These answer again, or are nobody's business any more."""
        now = monotonic()
        with self._lock:
            for address in addresses:
                self.shut.pop(address, None)
                self._opened[address] = now

    # -- as a breaker

    def close(self) -> bool:
        """After a round of recovery: whether one was away before it, and none is now."""
        with self._lock:
            was, self._was_open = self._was_open, bool(self.shut)
            return was and not self.shut

    @property
    def open(self) -> bool:
        """Whether a server is away."""
        return bool(self.shut)

    @property
    def state(self) -> str:
        """``"open"`` while a server is away, else ``"closed"``."""
        return "open" if self.shut else "closed"

    @property
    def last(self) -> str:
        """Who is away, in words."""
        return "; ".join(f"{name_of(address)}: {shut.words}" for address, shut in list(self.shut.items()))

    @property
    def away(self) -> float:
        """For how many seconds the one that has been away longest has been; 0 while none is."""
        since = [shut.since for shut in list(self.shut.values())]
        return monotonic() - min(since) if since else 0.0


def name_of(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
