"""Frees, in the background, the memory of entries that tags have invalidated. Never needed to be right."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from typing import Final

from cacheaside.fork import renew_after_fork
from cacheaside.weak import Weakly

log = logging.getLogger("cacheaside")

WAITING: Final = 10_000


class Reclaimer:
    """Remembers which tags were invalidated and, every so often, has each swept once.

    Args:
        sweep: frees what one tag has invalidated; the thread ends when it is not alive any more.
        every: seconds between rounds; None turns it off.
    """

    def __init__(self, sweep: Weakly, every: float | None) -> None:
        self._sweep = sweep
        self._every = every
        self._tags: dict[str, None] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock, self._thread = threading.Lock(), None

    def note(self, tags: Iterable[str]) -> None:
        """Have these tags swept in the next round; the thread starts with the first of them."""
        if self._every is None:
            return
        with self._lock:
            self._tags.update(dict.fromkeys(tags))
            while len(self._tags) > WAITING:  # what is dropped here ends with its ttl
                del self._tags[next(iter(self._tags))]
            if self._tags and (self._thread is None or self._pid != os.getpid()):
                self._pid, self._stop = os.getpid(), threading.Event()
                self._thread = threading.Thread(target=self._work, name="cacheaside-reclaim", daemon=True)
                self._thread.start()

    def round(self) -> int:
        """Sweep what is waiting, now; how many entries were freed."""
        with self._lock:
            tags, self._tags = self._tags, {}
        freed = 0
        for tag in tags:
            if self._stop.is_set():
                break
            try:
                freed += self._sweep(tag)
            except Exception as error:
                log.warning("reclaiming what tag %r has invalidated: %s", tag, error)
        return freed

    def close(self) -> None:
        """End the thread; what was waiting ends with its ttl."""
        self._stop.set()
        thread = self._thread
        if thread is not None and self._pid == os.getpid() and thread is not threading.current_thread():
            thread.join(2.0)
        self._thread = None

    def _work(self) -> None:
        stop = self._stop
        while not stop.wait(self._every) and self._sweep.alive():
            self.round()
