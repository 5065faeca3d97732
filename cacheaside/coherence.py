"""The coherence channel on real servers: one thread reads the line and sends heartbeats down it.

One thread per cache and process listens on the channel where invalidations are announced and, on the
same connection, on a channel of its own. Every quarter of the window it sends itself a heartbeat by the
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
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError

from cacheaside.errors import CacheasideError
from cacheaside.fork import renew_after_fork
from cacheaside.keys import RawKeys
from cacheaside.listener import Listener
from cacheaside.stores.encoding import script
from cacheaside.stores.memory import NearCache
from cacheaside.stores.redis import asend, send, whole

log = logging.getLogger("cacheaside")

BEATS: Final = 4
"""Heartbeats per window: three may be late before L1 pauses."""
PAUSE_FIRST: Final = 0.05
PAUSE_LAST: Final = 1.0
SUBSCRIBE_WITHIN: Final = 2.0


class Channel:
    """The listening side of one cache in one process.

    Args:
        connect: makes a client for threads, as the store's.
        near: what is marked, cleared and believed until its ``horizon``.
        tick: seconds of a clock that never goes back and counts while the machine sleeps.
        window: seconds that L1 may lag behind an invalidation.
    """

    def __init__(
        self,
        keys: RawKeys,
        connect: Callable[[], Any],
        near: NearCache,
        tick: Callable[[], float],
        window: float,
    ) -> None:
        self._keys = keys
        self._connect = connect
        self._near = near
        self._tick = tick
        self.window = window
        self.listener = Listener(near, window)
        self.identity = secrets.token_hex(8)
        self.private = f"{keys.channel(0)}:hb:{self.identity}"
        self._public = keys.channel(0).encode()
        self._lock = threading.Lock()
        renew_after_fork(self)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0

    # -- lifetime

    def start(self) -> None:
        """Begin to listen, once per process: a forked child starts its own thread."""
        if self._thread is not None and self._pid == os.getpid():
            return
        with self._lock:
            if self._thread is not None and self._pid == os.getpid():
                return
            self._pid = os.getpid()
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._work, name="cacheaside-channel", daemon=True)
            self._thread.start()

    def after_fork(self) -> None:
        """A child has no thread that listens: it starts one of its own, under another name."""
        self._lock = threading.Lock()
        self._thread = None
        self.identity = secrets.token_hex(8)
        self.private = f"{self._keys.channel(0)}:hb:{self.identity}"

    def close(self) -> None:
        """Stop listening; L1 is off from here on."""
        self._stop.set()
        self._near.horizon = 0.0
        thread = self._thread
        if thread is not None and self._pid == os.getpid() and thread is not threading.current_thread():
            thread.join(3.0)
        self._thread = None

    # -- what others ask

    def expect(self, beat: str) -> Future[bool]:
        """A future that is done when the heartbeat named so has come back; False if the line broke."""
        return self.listener.expect(beat)

    def forget(self, beat: str) -> None:
        self.listener.forget(beat)

    def expect_fill(self, key: str) -> Future[bool]:
        """A future that is done when somebody has announced that ``key`` was filled or dropped."""
        return self.listener.expect_fill(key, self._tick())

    @property
    def epoch(self) -> int:
        """How often this process has subscribed, that it knows of."""
        return self.listener.epoch

    @property
    def horizon_age(self) -> float:
        """Seconds since the newest heartbeat that has come back was sent."""
        return self._tick() - (self._near.horizon - self.window)

    # -- the thread

    def _work(self) -> None:
        stop, pause = self._stop, PAUSE_FIRST
        client: Any = None
        while not stop.is_set():
            began = self._tick()
            try:
                if client is None:
                    client = self._connect()
                self._listen(client, stop)
            except (RedisError, OSError, CacheasideError) as error:
                log.debug("the coherence channel broke: %s", error)
            except Exception:
                log.exception("the coherence channel failed")
            finally:
                self.listener.broken()
            if self._tick() - began > 5:
                pause = PAUSE_FIRST
            if stop.wait(pause):
                break
            pause = min(pause * 2, PAUSE_LAST)
        if client is not None:
            client.close()

    def _listen(self, client: Any, stop: threading.Event) -> None:
        """Subscribe, and stay on the line until it breaks."""
        listener, pubsub = self.listener, client.pubsub()
        try:
            listener.subscribing()
            pubsub.subscribe(self._public, self.private)
            until = self._tick() + SUBSCRIBE_WITHIN
            while not listener.up:
                if self._tick() > until or stop.is_set() or not self._hear(pubsub, 0.1):
                    return
            next_beat = 0.0
            while not stop.is_set():
                now = self._tick()
                if now >= next_beat:
                    self.beat(client, listener.beat(now))
                    next_beat = now + self.window / BEATS
                if not self._hear(pubsub, max(0.001, next_beat - self._tick())):
                    return
        finally:
            pubsub.close()

    def _hear(self, pubsub: Any, timeout: float) -> bool:
        """Pass on the next message, if one comes in time. False: the line had a gap."""
        message = pubsub.get_message(timeout=timeout)
        if message is None:
            return True
        if message["type"] != "message":  # redis-py may have subscribed again by itself, and says nothing
            return message["type"] == "subscribe" and self.listener.confirmed()
        if message["channel"] == self._public:
            self.listener.announced(message["data"])
        else:
            self.listener.returned(message["data"])
        return True

    def beat(self, client: Any, name: bytes) -> None:
        """Send a heartbeat by the write path: a server that takes no writes sends none back."""
        calls = self._beat_calls(name)
        replies = send(client, calls)
        if isinstance(replies[0], NoScriptError):
            replies = send(client, whole(calls, [0]))
        if isinstance(replies[0], Exception):
            raise replies[0]

    async def abeat(self, client: Any, name: bytes) -> None:
        """``beat`` through an asyncio client."""
        calls = self._beat_calls(name)
        replies = await asend(client, calls)
        if isinstance(replies[0], NoScriptError):
            replies = await asend(client, whole(calls, [0]))
        if isinstance(replies[0], Exception):
            raise replies[0]

    def _beat_calls(self, name: bytes) -> list[Any]:
        return [script("beat")((self.private,), name, int(self.window * 10_000), "PUBLISH")]
