"""The one connection of a process on which Redis tells a broker what is published, and the thread on it.

Every two seconds the thread publishes to a channel of its own: what comes back shows that the whole way is
there, and wakes it up when there is something to subscribe. A line on which nothing is heard for six is
given up for a new one, and whoever was subscribed before is told that there was a gap.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import ResponseError

from cacheaside.errors import StoreUnavailable
from cacheaside.persistent import Persistent
from cacheaside.toolkit.board import Board, Name
from cacheaside.world import never_back

BEAT: Final = 2.0
SILENCE: Final = 6.0
SLICE: Final = 1.0
"""Seconds after which a thread that hears nothing looks what else there is to do. redis-py gives up a message
whose next piece takes longer, and with it the connection."""


class Line:
    """The line of one broker.

    Args:
        board: what is to be subscribed, and who is told.
        private: the channel of one's own.
        connect: makes a client for threads.
        beat: publishes to ``private``, by way of the store; raises StoreUnavailable.
    """

    def __init__(
        self, board: Board, private: str, connect: Callable[[], Any], beat: Callable[[], object]
    ) -> None:
        self.private = private
        self.up = False
        self._board = board
        self._connect = connect
        self._beat = beat
        self.thread = Persistent("cacheaside-broker", self._work)

    def after_fork(self, private: str) -> None:
        self.private = private
        self.up = False
        self.thread.after_fork()

    def _work(self, stop: threading.Event) -> None:
        client = self._connect()
        try:
            pubsub = client.pubsub()
            try:
                self._listen(pubsub, stop)
            finally:
                if not stop.is_set():  # else there may be a new thread already, that has its own line
                    self.up = False
                    self._board.broken()
                pubsub.close()
        finally:
            client.close()

    def _listen(self, pubsub: Any, stop: threading.Event) -> None:
        """Stay on the line until it breaks."""
        talk = Talk(pubsub, self._board, self.private)
        heard = never_back()
        next_beat = 0.0
        while not stop.is_set():
            talk.adjust()
            now = never_back()
            if now >= next_beat and talk.up:
                next_beat = now + BEAT
                try:
                    self._beat()
                except StoreUnavailable:  # if that goes on, there will be silence
                    pass
            if talk.hear():
                heard = never_back()
                self.up = talk.up
            elif never_back() - heard > SILENCE:
                raise TimeoutError(f"nothing was heard for {SILENCE:g} s")


class Talk:
    """What was asked on one connection, and what came back; used by the thread of the line alone."""

    def __init__(self, pubsub: Any, board: Board, private: str) -> None:
        self._pubsub = pubsub
        self._board = board
        self._private = private.encode()
        self._head = board.head.encode()
        self._asked: set[Name] = set()
        self._unanswered: deque[tuple[bool, Name | None]] = deque()
        self._outstanding: Counter[Name] = Counter()
        self._version = -1
        self.up = False
        """Whether the server has answered at all."""
        pubsub.subscribe(self._private)
        self._unanswered.append((True, None))

    def adjust(self) -> None:
        """Ask for what the board wants and is not asked for yet; give up what it wants no more."""
        if self._version == self._board.version:
            return
        self._version = self._board.version
        wanted = self._board.names()
        for name in self._asked - wanted:
            self._ask(name, False)
        for name in wanted - self._asked:
            self._ask(name, True)
            self._outstanding[name] += 1
        for name in wanted & self._asked:
            # It may have been given up and wanted again before this thread looked: it was never gone.
            if not self._outstanding[name]:
                self._board.held(name)
        self._asked = wanted

    def _ask(self, name: Name, on: bool) -> None:
        """One command for each: the server refuses a command as a whole."""
        channel, pattern = name
        pubsub, raw = self._pubsub, self._head + channel.encode()
        if pattern:
            (pubsub.psubscribe if on else pubsub.punsubscribe)(raw)
        else:
            (pubsub.subscribe if on else pubsub.unsubscribe)(raw)
        self._unanswered.append((on, name))

    def hear(self) -> bool:
        """Pass on what comes next; whether something came in time."""
        try:
            message = self._pubsub.get_message(timeout=SLICE)
        except ResponseError as error:
            on, name = self._unanswered.popleft()
            if name is None:
                raise
            if on:
                self._outstanding[name] -= 1
                self._board.refused(name, str(error))
            return True
        if message is None:
            return False
        kind = message["type"]
        if kind == "message":
            if message["channel"] != self._private:
                self._deliver(message["channel"], message["channel"], False, message["data"])
        elif kind == "pmessage":
            self._deliver(message["pattern"], message["channel"], True, message["data"])
        else:
            self._answered()
        return True

    def _deliver(self, name: bytes, channel: bytes, pattern: bool, data: bytes) -> None:
        head = len(self._head)
        self._board.deliver(
            (name[head:].decode("utf-8", "replace"), pattern), channel[head:].decode("utf-8", "replace"), data
        )

    def _answered(self) -> None:
        """Answers come in the order of the questions."""
        if not self._unanswered:
            raise ConnectionError("redis-py has subscribed again by itself: there was a gap")
        on, name = self._unanswered.popleft()
        self.up = True
        if name is None or not on:
            return
        self._outstanding[name] -= 1
        # An answer to an older question, with an unsubscription after it, is none to the newest.
        if self._outstanding[name] <= 0:
            del self._outstanding[name]
            self._board.confirmed(name)
