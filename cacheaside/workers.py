"""Threads behind a cache: for work that nobody waits for, and for the leases of loads that go on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from cacheaside.fork import renew_after_fork

log = logging.getLogger("cacheaside")

WAITING = 1000
"""Refreshes that wait for a thread, or run as tasks; what comes when there are so many is left to a later
call."""
IDLE = 30.0
"""Seconds after which a thread without work ends: a cache that nobody closed leaves none behind."""


class Workers:
    """A few threads for what nobody waits for.

    Daemons, unlike those of an executor: a function that never returns can't keep the process from ending.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._turn = threading.Condition()
        self._jobs: deque[Callable[[], object]] = deque()
        self._threads = self._busy = 0
        self._closing = False

    def submit(self, job: Callable[[], object]) -> bool:
        """Have it done some time; False when there is too much to do, or the interpreter is ending."""
        with self._turn:
            self._closing = False
            if len(self._jobs) >= WAITING:
                return False
            if len(self._jobs) >= self._threads - self._busy and self._threads < self._most:
                try:
                    threading.Thread(target=self._work, name="cacheaside", daemon=True).start()
                    self._threads += 1
                except RuntimeError:
                    if not self._threads:
                        return False
            self._jobs.append(job)
            self._turn.notify_all()
            return True

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._jobs or self._closing, IDLE)
                if not self._jobs:
                    self._threads -= 1
                    self._turn.notify_all()
                    return
                job = self._jobs.popleft()
                self._busy += 1
            try:
                job()
            finally:
                del job
                with self._turn:
                    self._busy -= 1
                    self._turn.notify_all()

    def close(self, timeout: float) -> bool:
        """Let the threads end when they have done what there is to do; whether they have in time."""
        with self._turn:
            self._closing = True
            self._turn.notify_all()
            return self._turn.wait_for(self._at_rest, timeout)

    def _at_rest(self) -> bool:
        # Who submits meanwhile wants them to stay.
        return not (self._jobs or self._busy or (self._threads and self._closing))


class Keeper:
    """Renews the leases of loads that run in their callers' own threads, from one thread of its own.

    The thread lives for a while after the last load, and what ``perform`` knows with it.
    """

    def __init__(self, perform: Callable[[Any, Any], Any]) -> None:
        self._perform = perform
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._kept: dict[object, tuple[float, Any, Any]] = {}
        self._next = math.inf
        self._thread: threading.Thread | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock, self._thread, self._kept = threading.Lock(), None, {}

    @contextmanager
    def keep(self, renew: Any, store: Any) -> Generator[None]:
        if renew is None:
            yield
            return
        ticket = object()
        self._add(ticket, renew, store)
        try:
            yield
        finally:
            with self._lock:
                self._kept.pop(ticket, None)

    def _add(self, ticket: object, renew: Any, store: Any) -> None:
        with self._lock:
            if self._thread is None:
                self._wake, self._next = threading.Event(), math.inf
                self._thread = threading.Thread(
                    target=self._work, args=(self._wake,), name="cacheaside-lease", daemon=True
                )
                self._thread.start()
            due = time.monotonic() + renew.ttl / 3
            self._kept[ticket] = (due, renew, store)
            sooner, self._next = due < self._next, min(due, self._next)
        if sooner:  # most loads end long before: the thread is not to be woken for each
            self._wake.set()

    def _work(self, wake: threading.Event) -> None:
        while self._wake is wake:
            self._renew_what_is_due()
            with self._lock:
                self._next = min((due for due, _, _ in self._kept.values()), default=math.inf)
                pause = self._next - time.monotonic()
            idle = pause == math.inf
            if not wake.wait(IDLE if idle else max(0.01, pause)) and idle:
                with self._lock:
                    if not self._kept and self._wake is wake:
                        self._thread = None
                        return
            wake.clear()

    def _renew_what_is_due(self) -> None:
        with self._lock:
            kept = list(self._kept.items())
        now = time.monotonic()
        for ticket, (due, renew, store) in kept:
            if due > now:
                continue
            with self._lock:
                if ticket not in self._kept:
                    continue
                self._kept[ticket] = (now + renew.ttl / 3, renew, store)
            try:
                self._perform(renew, store)
            except Exception as error:
                log.debug("a lease was not renewed: %s", error)

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            wake, self._wake = self._wake, threading.Event()
        wake.set()
        if thread is not None:
            thread.join(1.0)
