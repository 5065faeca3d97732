"""The thread that asks after Redis while it is away, and tells it first what it has missed.

It runs only while there is something to do: while the breaker is open, while invalidations are owed, or when
it is to be found out whether the server is still the one it was. It has connections of its own. When Redis
answers, everything owed is sent before the breaker closes: this process never serves from Redis what it has
itself invalidated. A server that answers but takes no writes (a replica, a full disk) is read from meanwhile,
for what is owed is doubted by every read.
"""

from __future__ import annotations

import os
import random
import threading
import weakref
from typing import Any, Final, Protocol

from cacheaside.errors import StoreUnavailable
from cacheaside.events import Events
from cacheaside.fork import renew_after_fork
from cacheaside.journal import Journal

STEP: Final = 0.05
LAST: Final = 1.0
"""Seconds between attempts: one step more each time, up to this."""
END_WITHIN: Final = 3.0


class Gate(Protocol):
    """The breaker, or those of all servers of a cluster."""

    answered: bool
    """Whether the store has answered while it was open, and is being told what it has missed."""

    @property
    def open(self) -> bool: ...
    def close(self) -> bool: ...


class Link(Protocol):
    """What recovery works on; it is not kept alive by the thread."""

    @property
    def breaker(self) -> Gate: ...

    journal: Journal
    events: Events
    doubted: bool
    """Whether to ask the server again who it is, which every new connection does."""

    def reach(self) -> Any:
        """A store that no breaker keeps from trying."""

    def leave(self, store: Any) -> None:
        """It is needed no more."""

    def still(self, error: Exception) -> None:
        """It is away still, and this is why."""

    def replay(self, store: Any) -> int:
        """Send all that is owed; how much it was. Raises StoreUnavailable, with some of it still owed."""
        ...

    def ask(self, store: Any) -> None:
        """See whether reads are served. Raises StoreUnavailable if they are not."""


class Recovery:
    """Starts the thread when there is something to do, and ends it."""

    def __init__(self, link: Link) -> None:
        self._link = weakref.ref(link)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock, self._thread, self._stop = threading.Lock(), None, threading.Event()

    def wake(self) -> None:
        """There is something to do."""
        with self._lock:
            if self._thread is not None and self._pid == os.getpid():
                return
            thread = threading.Thread(
                target=self._work, args=(self._stop,), name="cacheaside-recovery", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending
                return
            self._thread, self._pid = thread, os.getpid()

    def close(self) -> None:
        """End the thread; what is owed stays owed."""
        with self._lock:
            self._stop.set()
            thread, self._thread, self._stop = self._thread, None, threading.Event()
        if thread is not None and self._pid == os.getpid() and thread is not threading.current_thread():
            thread.join(END_WITHIN)

    def _work(self, stop: threading.Event) -> None:
        store: Any = None
        link = self._link()
        tries = 1 if link is not None and link.breaker.open else 0  # it has just failed
        del link
        while not stop.wait(random.uniform(0.8, 1.0) * min(tries * STEP, LAST)):
            link = self._link()
            if link is None or self._done(link, stop):
                break
            tries += 1
            doubted, link.doubted = link.doubted, False
            try:
                if store is not None and doubted:
                    link.leave(store)
                    store = None
                if store is None:
                    store = link.reach()
                if self._attempt(link, store):
                    tries, doubted = 0, False
            except Exception as error:
                link.still(error)
                link.events.complain(f"recovery {type(error).__name__}", "error", f"{error}")
            link.doubted = link.doubted or doubted
            del link
        link = self._link()
        if link is not None and store is not None:
            link.leave(store)

    def _done(self, link: Link, stop: threading.Event) -> bool:
        with self._lock:
            if link.breaker.open or link.journal.owing or link.doubted:
                return False
            if self._stop is stop:
                self._thread = None
            return True

    def _attempt(self, link: Link, store: Any) -> bool:
        """Whether Redis is back, all of its servers, and nothing is owed any more."""
        try:
            link.ask(store)
        except StoreUnavailable as error:
            if not error.answered:
                link.still(error)
                return False
        settled, link.breaker.answered = True, True
        try:  # half-open: only what is owed is let through
            count = link.replay(store)
            if count:
                link.events.tell("replayed", f"{count} invalidations that Redis had missed or may have lost")
        except StoreUnavailable as error:
            if not error.answered:
                return False
            settled = False
        finally:
            link.breaker.answered = False
        if link.breaker.close():
            link.events.tell("connect", "Redis answers again")
        return settled and not link.breaker.open
