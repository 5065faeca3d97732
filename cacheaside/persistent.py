"""A thread of this process that keeps at its work: begun again after it broke, with growing pauses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from redis.exceptions import RedisError

from cacheaside.errors import CacheasideError
from cacheaside.world import never_back

log = logging.getLogger("cacheaside")

PAUSE_FIRST: Final = 0.05
PAUSE_LAST: Final = 1.0
WENT_WELL: Final = 5.0
"""Seconds of work after which the next pause is the shortest again."""


class Persistent:
    """Runs ``work(stop)`` in a daemon thread, again and again until it is closed.

    ``work`` returns or raises when it cannot go on, and returns soon after ``stop`` is set. Whoever owns
    this calls ``after_fork`` in a forked child, which has no such thread, and ``start`` if it wants one.
    """

    def __init__(self, name: str, work: Callable[[threading.Event], None]) -> None:
        self._name = name
        self._work = work
        self.trouble = ""
        """Why it broke last; without what a password could be in."""
        self.after_fork()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ended: Future[None] = Future()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self, pause: float = 0.0) -> bool:
        """Begin after ``pause`` seconds, unless it has begun; whether this call did it."""
        with self._lock:
            if self._thread is not None:
                return False
            self._stop, self._ended = threading.Event(), Future()
            self._thread = threading.Thread(
                target=self._persist, args=(self._stop, self._ended, pause), name=self._name, daemon=True
            )
            self._thread.start()
            return True

    def stop(self) -> Future[None] | None:
        """Have it end soon; what to wait for, unless there is no thread or it is this one."""
        with self._lock:
            self._stop.set()
            thread, self._thread = self._thread, None
            return None if thread in (None, threading.current_thread()) else self._ended

    def _persist(self, stop: threading.Event, ended: Future[None], pause: float) -> None:
        try:
            self._try(stop, pause)
        finally:
            ended.set_result(None)

    def _try(self, stop: threading.Event, pause: float) -> None:
        wait = PAUSE_FIRST
        stop.wait(pause)
        while not stop.is_set():
            began = never_back()
            try:
                self._work(stop)
            except (RedisError, OSError, CacheasideError) as error:
                self.trouble = f"{type(error).__name__}: {error}"
                log.debug("%s broke: %s", self._name, self.trouble)
            except Exception:
                log.exception("%s failed", self._name)
            if never_back() - began > WENT_WELL:
                wait = PAUSE_FIRST
            if stop.wait(wait):
                return
            wait = min(wait * 2, PAUSE_LAST)
