"""The coherence channel on real servers: one thread reads the lines and sends heartbeats down them.

One thread per cache and process listens on the channels where invalidations are announced and, on the
same connections, on channels of its own. Every quarter of the window it sends itself a heartbeat by the
write path: a script that SETs and PUBLISHes. When one comes back, everything announced before it was
sent has been delivered, for one connection keeps the order; so L1 may be served until the moment it was
*sent* plus the window. A dead thread, a paused process, a fork, a black hole, a demoted primary: the
heartbeats stop, and L1 switches itself off by the clock. Nothing has to be detected.

What is heard is understood in ``listener.py``; here is only who listens, and to whom.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from redis.exceptions import NoPermissionError, RedisError

from cacheaside.errors import CacheasideError
from cacheaside.events import Events
from cacheaside.fork import renew_after_fork
from cacheaside.hubs import Hub
from cacheaside.listener import Listener
from cacheaside.stores.memory import NearCache
from cacheaside.stores.rights import missing_right

log = logging.getLogger("cacheaside")

BEATS: Final = 4
"""Heartbeats per window: three may be late before L1 pauses."""
PAUSE_FIRST: Final = 0.05
PAUSE_LAST: Final = 1.0
SUBSCRIBE_WITHIN: Final = 2.0
REST_WITHIN: Final = 0.1
"""Seconds that the rest of a message may take."""
ASK_WITHIN: Final = 0.5
"""Seconds after which it is asked again whether there is anything else to do than to listen."""
SILENT: Final = 2.0
"""Seconds without a heartbeat of one's own, four windows at least, after which the line is made anew."""


class Channel:
    """The listening side of one cache in one process.

    Args:
        hub: the servers that are listened to.
        near: what is marked, cleared and believed until its ``horizon``.
        tick: seconds of a clock that never goes back and counts while the machine sleeps.
        window: seconds that L1 may lag behind an invalidation.
        alone: seconds that L1 is believed while the channel cannot be had; None turns it off then.
        events: told when L1 may be believed from now on, when no longer, and if it never can be.
        wanted: whether anybody still needs it; asked now and then.
    """

    def __init__(
        self,
        hub: Hub,
        near: NearCache,
        tick: Callable[[], float],
        window: float,
        alone: float | None = None,
        events: Events | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._wanted = wanted
        self.hub = hub
        self._events = events if events is not None else Events(None)
        self._coherent = False
        self._near = near
        self._tick = tick
        self.window = window
        self.listener = Listener(near, window, alone, tick)
        self.identity = secrets.token_hex(8)
        self._lock = threading.Lock()
        renew_after_fork(self)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self.trouble: Exception | None = None
        """Why the line broke the last time, until it is whole again."""

    # -- lifetime

    def start(self) -> None:
        """Begin to listen, once per process: a forked child starts its own thread."""
        if self._thread is not None and self._pid == os.getpid():
            return
        with self._lock:
            if self._thread is not None and self._pid == os.getpid():
                return
            self._pid = os.getpid()
            self.listener.broken()  # until there is a line
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._work, name="cacheaside-channel", daemon=True)
            self._thread.start()

    def after_fork(self) -> None:
        """A child has no thread that listens: it starts one of its own, under another name."""
        self._lock = threading.Lock()
        self._thread = None
        self.identity = secrets.token_hex(8)

    def close(self) -> None:
        """Stop listening; L1 is off from here on."""
        self._stop.set()
        self._near.horizon = 0.0
        thread = self._thread
        if thread is not None and self._pid == os.getpid() and thread is not threading.current_thread():
            thread.join(3.0)
        self._thread = None

    # -- what others ask

    def expect(self, beat: str, lines: int = 1) -> Future[bool]:
        """A future that is done when the heartbeat named so has come back by so many lines; False if one
        broke."""
        return self.listener.expect(beat, lines)

    def forget(self, beat: str) -> None:
        self.listener.forget(beat)

    def expect_fill(self, key: str) -> Future[bool]:
        """A future that is done when somebody has announced that ``key`` was filled or dropped."""
        return self.listener.expect_fill(key, self._tick())

    @property
    def lag(self) -> float:
        """Seconds after which no L1 of a process with these settings serves what was dropped."""
        return max(self.window, self.listener.alone or 0.0)

    @property
    def epoch(self) -> int:
        """How often this process has subscribed, that it knows of."""
        return self.listener.epoch

    @property
    def horizon_age(self) -> float | None:
        """Seconds since the newest heartbeat that has come back was sent; None before the first."""
        heard = self.listener.heard
        return None if heard is None else self._tick() - heard

    @property
    def propagation(self) -> dict[str, float | None]:
        """The trips of heartbeats, which go the way of announcements: how many, their seconds, the last."""
        listener = self.listener
        return {"messages": listener.trips, "seconds": listener.trip_seconds, "lag": listener.lag}

    # -- the thread

    def _work(self) -> None:
        stop, pause, alone = self._stop, PAUSE_FIRST, self.listener.alone
        while not stop.is_set() and self._wanted():
            began = self._tick()
            try:
                self._listen(stop)
            except (RedisError, OSError, CacheasideError) as error:
                self.trouble = error
                log.debug("the coherence channel broke: %s", error)
                if isinstance(error, NoPermissionError) or missing_right(error):
                    stays = "stays off" if alone is None else f"may lag behind other processes by {alone:g} s"
                    self._events.complain("L1", "degraded", f"L1 {stays}: {error}")
            except Exception:
                log.exception("the coherence channel failed")
            finally:
                self.listener.broken()
                if stop.is_set():
                    self._near.horizon = 0.0
                else:
                    self._notice()
            if self._tick() - began > 5:
                pause = PAUSE_FIRST
            if stop.wait(pause):
                break
            pause = min(pause * 2, PAUSE_LAST)
        self.hub.close()

    def _listen(self, stop: threading.Event) -> None:
        """Subscribe, and stay on the lines until one breaks."""
        listener, hub = self.listener, self.hub
        lines = hub.subscribe(self.identity)
        try:
            listener.subscribing(len(hub.publics) + len(lines), len(lines))
            until = self._tick() + SUBSCRIBE_WITHIN
            while not listener.up:
                if self._tick() > until or stop.is_set() or not self._hear(lines, 0.1):
                    return
            self.trouble = None
            next_beat, began = 0.0, self._tick()
            while not stop.is_set() and self._wanted():
                now = self._tick()
                self._notice()
                if now - max(began, self._near.horizon - self.window) > max(SILENT, BEATS * self.window):
                    return  # a line may be dead without a word
                if now >= next_beat:
                    hub.beat([listener.beat(now, line) for line in range(len(lines))])
                    next_beat = now + self.window / BEATS
                if not self._hear(lines, min(max(0.001, next_beat - self._tick()), ASK_WITHIN)):
                    return
        finally:
            for line in lines:
                line.close()

    def _notice(self) -> None:
        """Say it when L1 may be believed, or may not any more."""
        coherent = self._near.coherent(self._tick())
        if coherent != self._coherent:
            self._coherent = coherent
            if coherent:
                self._events.tell("coherent", "L1 hears of every invalidation and is served")
            else:
                self._events.tell("incoherent", "L1 may have missed invalidations and is not served")

    def _hear(self, lines: list[Any], timeout: float) -> bool:
        """Pass on what comes in time. False: a line had a gap."""
        if len(lines) == 1:
            return self._heard(lines[0].get_message(timeout=timeout))
        for line in readable(lines, timeout):
            while line.connection.can_read(timeout=0):
                if not self._heard(line.get_message(timeout=REST_WITHIN)):
                    return False
        return True

    def _heard(self, message: Any) -> bool:
        if message is None:
            return True
        kind = message["type"]
        if kind not in ("message", "smessage"):  # redis-py subscribes again by itself
            return kind in ("subscribe", "ssubscribe") and self.listener.confirmed()
        if message["channel"] in self.hub.publics:
            self.listener.announced(message["data"])
        else:
            self.listener.returned(message["data"])
        return True


def readable(lines: list[Any], timeout: float) -> list[Any]:
    """Those of these lines on which something has come; waits for it for so many seconds."""
    # redis-py waits for one connection at a time, and a line must not wait for another one's messages.
    sockets = {line.connection._sock: line for line in lines}
    return [sockets[ready] for ready in select.select(list(sockets), [], [], timeout)[0]]
