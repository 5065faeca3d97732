"""Who listens to what in this process, and how the embedded store tells them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from cacheaside.stores.glob import matcher
from cacheaside.stores.program import Program, Room

if TYPE_CHECKING:
    from cacheaside.toolkit.broker import Subscription


class Topic:
    """A channel or pattern and who in this process listens to it."""

    def __init__(self) -> None:
        self.subscriptions: tuple[Subscription, ...] = ()
        self.heard = False
        """Whether it has been subscribed: when that is done again, there was a gap."""
        self.renew()

    def renew(self) -> None:
        """It is not subscribed, or not any more."""
        self.ready: Future[str] = Future()
        """Done when the server has answered: with "" or with why it refuses."""

    def settle(self, refusal: str = "") -> None:
        if not self.ready.done():
            self.ready.set_result(refusal)


Name = tuple[str, bool]
"""A channel; or a pattern, and True."""


class Board:
    """The subscriptions of a broker. Delivering takes no lock: what it reads is replaced, not changed."""

    def __init__(self, head: str) -> None:
        self.head = head
        """What Redis's names of channels begin with."""
        self.topics: dict[Name, Topic] = {}
        self.version = 0
        """Counts the changes of what this process listens to."""
        self._patterns: tuple[str, ...] = ()
        self.after_fork()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        for topic in self.topics.values():
            topic.renew()

    def __iter__(self) -> Iterator[Subscription]:
        with self._lock:
            topics = list(self.topics.values())
        return iter([one for topic in topics for one in topic.subscriptions])

    def add(self, subscription: Subscription) -> tuple[Topic, bool]:
        """The topic that it listens to now, and whether nobody else did."""
        name = subscription.channel, subscription.pattern
        with self._lock:
            topic = self.topics.get(name)
            new = topic is None
            if topic is None:
                topic = self.topics[name] = Topic()
                self._changed(name)
            topic.subscriptions += (subscription,)
            return topic, new

    def remove(self, subscription: Subscription) -> bool:
        """Whether nobody listens to its topic any more."""
        name = subscription.channel, subscription.pattern
        with self._lock:
            topic = self.topics.get(name)
            if topic is None or subscription not in topic.subscriptions:
                return False
            topic.subscriptions = tuple(one for one in topic.subscriptions if one is not subscription)
            if topic.subscriptions:
                return False
            del self.topics[name]
            self._changed(name)
            topic.settle("it was closed meanwhile")
            return True

    def _changed(self, name: Name) -> None:
        self.version += 1
        if name[1]:
            self._patterns = tuple(channel for channel, pattern in self.topics if pattern)

    def names(self) -> set[Name]:
        """What this process listens to."""
        with self._lock:
            return set(self.topics)

    def deliver(self, name: Name, channel: str, raw: bytes) -> None:
        """Hand a message to all who listen to this channel or pattern."""
        topic = self.topics.get(name)
        for one in topic.subscriptions if topic is not None else ():
            if not one.deliver(channel, raw):
                self.remove(one)

    def published(self, channel: str, raw: bytes) -> None:
        """Hand a message to all whom it concerns, as Redis would."""
        self.deliver((channel, False), channel, raw)
        for pattern in self._patterns:
            if matcher(pattern)(channel):
                self.deliver((pattern, True), channel, raw)

    def confirmed(self, name: Name) -> None:
        """The server has subscribed it."""
        topic = self.topics.get(name)
        if topic is None:
            return
        if topic.heard:
            for one in topic.subscriptions:
                one.missed()
        topic.heard = True
        topic.settle()

    def held(self, name: Name) -> None:
        """It has been subscribed all the time."""
        topic = self.topics.get(name)
        if topic is not None:
            topic.heard = True
            topic.settle()

    def refused(self, name: Name, why: str) -> None:
        """The server does not want to subscribe it."""
        topic = self.topics.get(name)
        if topic is not None:
            topic.settle(why)

    def broken(self) -> None:
        """Nothing is subscribed any more."""
        with self._lock:
            for topic in self.topics.values():
                if topic.ready.done():
                    topic.renew()


_boards: Final[WeakKeyDictionary[Any, tuple[Board, ...]]] = WeakKeyDictionary()
_lock: Final = threading.Lock()


def put_up(store: Any, board: Board) -> None:
    """Have a board told what is published through this embedded store."""
    with _lock:
        others = [other for other in _boards.get(store, ()) if other is not board]
        _boards[store] = (*others, board)


def take_down(store: Any, board: Board) -> None:
    with _lock:
        _boards[store] = tuple(other for other in _boards.get(store, ()) if other is not board)


def publish(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> int:
    """Twin of publish.lua."""
    boards = [board for board in _boards.get(room, ()) if keys[0].startswith(board.head)]
    for board in boards:
        board.published(keys[0].removeprefix(board.head), args[0])
    return len(boards)


PUBLISH: Final = Program("cacheaside.toolkit", "publish", publish)
