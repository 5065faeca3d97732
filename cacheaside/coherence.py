"""When L1 may be believed beside Redis: a horizon that heartbeats push forward, not hope.

One thread per cache and process listens on the channel where invalidations are announced and, on the
same connection, on a channel of its own. Every quarter of the window it sends itself a heartbeat by the
write path: a script that SETs and PUBLISHes. When one comes back, everything announced before it was
sent has been delivered, for one connection keeps the order; so L1 may be served until the moment it was
*sent* plus the window. A dead thread, a paused process, a fork, a black hole, a demoted primary: the
heartbeats stop, and L1 switches itself off by the clock. Nothing has to be detected.

After every (re)subscription L1 starts anew: what was announced in the gap was not heard.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final

import msgspec
from redis.exceptions import NoScriptError, RedisError

from cacheaside.errors import CacheasideError
from cacheaside.fork import renew_after_fork
from cacheaside.keys import RawKeys
from cacheaside.stores.announcements import read_announcement
from cacheaside.stores.memory import NearCache
from cacheaside.stores.redis import asend, script, send, whole

log = logging.getLogger("cacheaside")

BEATS: Final = 4
"""Heartbeats per window: three may be late before L1 pauses."""
PAUSE_FIRST: Final = 0.05
PAUSE_LAST: Final = 1.0
SUBSCRIBE_WITHIN: Final = 2.0
HEARD: Final = 4096
EXPECTED: Final = 1.0


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
        self.identity = secrets.token_hex(8)
        self.private = f"{keys.channel(0)}:hb:{self.identity}"
        self.epoch = 0
        self.up = False
        self._lock = threading.Lock()
        renew_after_fork(self)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._waiting: dict[str, Future[bool]] = {}
        self._fills: OrderedDict[str, tuple[Future[bool], float]] = OrderedDict()

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
        self._thread, self.up = None, False
        self.identity = secrets.token_hex(8)
        self.private = f"{self._keys.channel(0)}:hb:{self.identity}"
        self._waiting, self._fills = {}, OrderedDict()

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
        future: Future[bool] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self.up:
                self._waiting[beat] = future
            else:
                future.set_result(False)
        return future

    def forget(self, beat: str) -> None:
        self._waiting.pop(beat, None)

    def expect_fill(self, key: str) -> Future[bool]:
        """A future that is done when somebody has announced that ``key`` was filled or dropped.

        All who ask within a second share one, and it ends then: short loads are not announced, and what
        was asked about them would pile up.
        """
        now = self._tick()
        with self._lock:
            known = self._fills.get(key)
            if known is not None and now - known[1] < EXPECTED:
                return known[0]
            future: Future[bool] = Future()
            future.set_running_or_notify_cancel()
            self._fills[key] = future, now
            self._fills.move_to_end(key)
            over = [known] if known is not None else []
            while len(self._fills) > HEARD:
                over.append(self._fills.popitem(last=False)[1])
        self._settle(over)
        return future

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
                self._broken()
            if self._tick() - began > 5:
                pause = PAUSE_FIRST
            if stop.wait(pause):
                break
            pause = min(pause * 2, PAUSE_LAST)
        if client is not None:
            client.close()

    def _listen(self, client: Any, stop: threading.Event) -> None:
        public = self._keys.channel(0)
        pubsub = client.pubsub()
        try:
            pubsub.subscribe(public, self.private)
            confirmed = 0
            until = self._tick() + SUBSCRIBE_WITHIN
            while confirmed < 2:
                if self._tick() > until or stop.is_set():
                    return
                message = pubsub.get_message(timeout=0.1)
                if message is not None and message["type"] == "subscribe":
                    confirmed += 1
            # Nothing read before now may settle: what was announced before we listened was not heard.
            self._near.clear()
            with self._lock:
                self.epoch += 1
                self.up = True
            sent: dict[bytes, float] = {}
            next_beat, number = 0.0, 0
            while not stop.is_set():
                now = self._tick()
                if now >= next_beat:
                    number += 1
                    # Named by the epoch too: a late one from before a gap proves nothing now.
                    name = b"%d.%d" % (self.epoch, number)
                    sent[name] = now
                    self.beat(client, name)
                    next_beat = now + self.window / BEATS
                    for old in [n for n, at in sent.items() if at < now - 10 * self.window]:
                        del sent[old]
                message = pubsub.get_message(timeout=max(0.001, next_beat - self._tick()))
                if message is None:
                    continue
                if message["type"] != "message":
                    return  # redis-py has subscribed again by itself: there was a gap
                data: bytes = message["data"]
                if message["channel"] == public.encode():
                    self._hear(data)
                elif data in sent:
                    # The older of two may come second after a retry: the horizon never goes back.
                    self._near.horizon = max(self._near.horizon, sent.pop(data) + self.window)
                else:
                    future = self._waiting.pop(data.decode("ascii", "replace"), None)
                    if future is not None:
                        future.set_result(True)
        finally:
            pubsub.close()

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
        return [script("beat")((self.private,), name, int(self.window * 10_000))]

    def _hear(self, data: bytes) -> None:
        try:
            heard = read_announcement(data)
        except msgspec.MsgspecError:
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
        self._settle(filter(None, waiters))

    def _broken(self) -> None:
        self._near.horizon = 0.0
        with self._lock:
            self.up = False
            waiting, self._waiting = self._waiting, {}
            fills, self._fills = self._fills, OrderedDict()
        for future in waiting.values():
            future.set_result(False)
        self._settle(fills.values())

    @staticmethod
    def _settle(fills: Iterable[tuple[Future[bool], float]]) -> None:
        for future, _ in fills:
            future.set_result(True)
