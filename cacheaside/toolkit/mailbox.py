"""What waits for one handler: a bounded queue, emptied by a thread or on an event loop, one item at a time.

Who puts something in never waits, so a slow handler holds up nobody but itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from typing import Any, Final, Literal

from cacheaside.errors import QueueOverflow
from cacheaside.toolkit.handlers import Calls, Steps, acall, call

Overflow = Literal["drop-oldest", "drop-newest", "close"]
OVERFLOWS: Final[tuple[Overflow, ...]] = ("drop-oldest", "drop-newest", "close")
IDLE: Final = 30.0
"""Seconds after which a thread without work ends; the next message starts another."""

Item = Callable[[], Steps[Any]]


class Mailbox:
    """The queue, and what is the same for threads and loops.

    Args:
        calls: the handler.
        channel: what is said to have gaps.
        size: how many items may wait.
        overflow: what goes when there is one more: the oldest, the newest, or the handler itself.
    """

    def __init__(self, calls: Calls, channel: str, size: int, overflow: Overflow) -> None:
        self._calls = calls
        self._channel = channel
        self._size = size
        self._overflow = overflow
        self.closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """What was waiting is the parent's, and nobody works here."""
        self._turn = threading.Condition()
        self._items: deque[Item] = deque()
        self._missed = False
        self._working = False  # whether somebody will look at the queue
        self._rest: Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> bool:
        """Have an item handled after the others. False: it is closed."""
        with self._turn:
            if self.closed:
                return False
            if len(self._items) < self._size:
                self._items.append(item)
            else:
                self._overflowed(item)
            self._wake()
            return not self.closed

    def missed(self) -> None:
        """Have the handler told, before all else, that messages may have been lost; once for many gaps."""
        with self._turn:
            if not self.closed:
                self._missed = True
                self._wake()

    def close(self, *, blocking: bool) -> Future[None] | None:
        """Let nothing more begin.

        Args:
            blocking: whether who asks would hold up its thread while it waits.

        Returns what to wait for until nothing is handled any more; None if it is the handler that asks.
        """
        with self._turn:
            self._end()
            if not self._working or self._inside(blocking):
                return None
            if self._rest is None:
                self._rest = Future()
            return self._rest

    def cancel(self) -> None:
        """End what is being handled, if that can be done."""

    def _overflowed(self, item: Item) -> None:
        lost = 1
        if self._overflow == "drop-oldest":
            self._items.popleft()
            self._items.append(item)
        elif self._overflow == "close":
            lost += len(self._items)
            self._end()
            error = QueueOverflow(f"more than {self._size} messages were waiting: the subscription is closed")
            self._items.append(partial(self._calls.trouble, "is closed", error, self._channel, None))
        self._missed = self._overflow != "close"
        self._calls.tally.count("dropped", lost)
        self._calls.say("its queue is full", self._overflow)

    def _wake(self) -> None:
        if self._working:
            self._turn.notify()
        else:
            self._working = self._begin()

    def _next(self, wait: float = 0.0) -> Item | None:
        """What to handle now that the last item has been; None when nothing came: it looks no further."""
        with self._turn:
            self._turn.wait_for(lambda: self._items or self._missed or self.closed, wait)
            item: Item | None = None
            if self._missed:
                self._missed = False
                item = partial(self._calls.gap, self._channel)
            elif self._items:
                item = self._items.popleft()
            self._working = item is not None
            if not self._working and self._rest is not None:
                self._rest.set_result(None)
                self._rest = None
            return item

    def _end(self) -> None:
        self.closed = True
        self._missed = False
        self._items.clear()
        self._turn.notify()

    def _failed(self, error: BaseException) -> None:
        """What is no Exception: SystemExit and the like, of which nobody else hears."""
        self._calls.tally.count("failed")
        self._calls.say("failed", type(error).__qualname__)

    def _begin(self) -> bool:
        """Under the lock, have somebody empty the queue; whether there is somebody."""
        raise NotImplementedError

    def _inside(self, blocking: bool) -> bool:
        raise NotImplementedError


class ThreadMailbox(Mailbox):
    """Emptied by a daemon thread that is there while there is something to do."""

    def after_fork(self) -> None:
        super().after_fork()
        self._thread: threading.Thread | None = None

    def _begin(self) -> bool:
        self._thread = threading.Thread(target=self._work, name="cacheaside-handler", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, or there are too many; the next item tries again
            return False
        return True

    def _inside(self, blocking: bool) -> bool:
        return threading.current_thread() is self._thread

    def _work(self) -> None:
        while (item := self._next(IDLE)) is not None:
            try:
                # A context of its own: what one message sets is not there for the next.
                Context().run(call, item())
            except BaseException as error:
                self._failed(error)
            del item


class LoopMailbox(Mailbox):
    """Emptied on an event loop, by a task that is there while there is something to do."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        calls: Calls,
        channel: str,
        size: int,
        overflow: Overflow,
    ) -> None:
        self._loop = loop
        super().__init__(calls, channel, size, overflow)

    def after_fork(self) -> None:
        super().after_fork()
        self._task: asyncio.Task[None] | None = None
        self._current: asyncio.Task[Any] | None = None

    def put(self, item: Item) -> bool:
        if self._loop.is_closed():
            self.close(blocking=False)
        return super().put(item)

    def cancel(self) -> None:
        current = self._current
        if current is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(current.cancel)

    def _begin(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._start, context=Context())
        except RuntimeError:  # closed this moment
            self._end()
            return False
        return True

    def _start(self) -> None:
        self._task = self._loop.create_task(self._drain())

    def _inside(self, blocking: bool) -> bool:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False
        return here and (blocking or asyncio.current_task() is self._current)

    async def _drain(self) -> None:
        current: asyncio.Task[Any] | None = None
        try:
            while (item := self._next()) is not None:
                # A task of its own, for its context: what one message sets is not there for the next.
                self._current = current = self._loop.create_task(acall(item()), context=Context())
                del item
                await asyncio.wait((current,))
                if current.cancelled():
                    self._failed(asyncio.CancelledError())
                elif (error := current.exception()) is not None:
                    self._failed(error)
        except asyncio.CancelledError:  # the loop is ending, and with it this handler
            if current is not None and not current.done():
                current.cancel()
                await asyncio.wait((current,))
            with self._turn:
                self._end()
            self._next()
            raise
        finally:
            self._current = None
