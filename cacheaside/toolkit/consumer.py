"""A consumer: one thread that takes messages from a stream and calls a handler with them, one at a time.

1.  A message is acknowledged after the handler has returned. If the handler raises, the message is given out
    again after ``retry_after``, by whichever consumer looks first; after the last try it is a dead letter.
2.  What a consumer was given and has not acknowledged for ``claim_after``, another one takes over. While a
    handler is at work its message is kept, and so are those behind it, so only the dead are robbed.
3.  When it ends it gives back what it was given and has not begun.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_futures
from contextvars import Context
from typing import Any, Final, TypeVar

from msgspec import Struct

from cacheaside.engine.commands import Flow
from cacheaside.engine.drive import Driver, Store
from cacheaside.errors import StoreUnavailable
from cacheaside.persistent import Persistent
from cacheaside.toolkit.handlers import Calls, Steps, acall, call, place
from cacheaside.toolkit.streams import Entry, Log, NoGroup, Reader
from cacheaside.workers import Keeper
from cacheaside.world import never_back

T = TypeVar("T")

BLOCK: Final = 0.5
"""Seconds that the server is asked to wait for a message: as long may closing take."""
BATCH: Final = 16
"""Messages that a consumer is given at once."""
FORGET_AFTER: Final = 10
"""Times ``claim_after``, after which the group forgets a consumer that is silent and holds nothing."""
REMEMBERED: Final = 10_000
"""Messages that were handled and whose acknowledgement did not arrive."""
LOOK: Final = 1.0
"""Seconds between two looks whether the loop of an async handler is still there."""


class Policy(Struct, frozen=True):
    """How often and how soon a message is given out; seconds."""

    tries: int
    claim_after: float
    retry_after: float
    start: str


class Lease(Struct, frozen=True):
    """What the keeper renews every third of ``ttl`` seconds."""

    ttl: float


class Ended(Exception):
    """The event loop of the handler has ended."""


class Consumer:
    """One handler of one stream, as a member of a group.

    Args:
        name: what the group knows it by; made up when it is None.
        loop: where an async handler runs.
    """

    def __init__(
        self,
        messages: Log,
        calls: Calls,
        policy: Policy,
        store: Callable[[], Store],
        reader: Callable[[], Reader],
        name: str | None,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.log = messages
        self.calls = calls
        self.loop = loop
        self.given = name
        self._policy = policy
        self._store = store
        self._reader = reader
        self._driver = Driver()
        self._pid = os.getpid()
        self._opened = False
        self.thread = Persistent("cacheaside-consumer", self._work)
        self.after_fork()

    def after_fork(self) -> None:
        """What it holds is the parent's; a child is another consumer."""
        self.name = consumer_name(self.given) if os.getpid() == self._pid else consumer_name(None)
        self.thread.after_fork()
        self._keeper = Keeper(lambda lease, store: self._keep())
        self._telling = threading.Lock()
        self._held: dict[bytes, None] = {}
        self._done: set[bytes] = set()
        self._current: asyncio.Task[Any] | None = None
        self._working: Future[Any] | None = None

    def stop(self, *, blocking: bool) -> Future[None] | None:
        """Have it end soon; what to wait for, unless the handler or its loop would wait for itself."""
        ended = self.thread.stop()
        try:
            here = self.loop is not None and asyncio.get_running_loop() is self.loop
        except RuntimeError:
            here = False
        if here and (blocking or asyncio.current_task() is self._current):
            return None
        return ended

    def cancel(self) -> None:
        """Cancel an async handler at work."""
        working = self._working
        if working is not None:
            working.cancel()

    # -- the thread

    def _work(self, stop: threading.Event) -> None:
        reader = self._reader()
        try:
            made = self._run(self.log.open(self._policy.start))
            if made and self._opened:
                self.calls.say("its group was gone, and is made anew", "messages may have been lost")
                self._carry_out(self.calls.gap(self.log.stream))
            self._opened = True
            self._consume(reader, stop)
        except NoGroup:
            pass
        except Ended:
            self.thread.stop()
        finally:
            reader.close()
            if stop.is_set():
                self._leave()

    def _consume(self, reader: Reader, stop: threading.Event) -> None:
        every = max(0.02, min(self._policy.claim_after, self._policy.retry_after) / 2)
        next_claim = 0.0
        while not stop.is_set():
            if self.loop is not None and self.loop.is_closed():
                raise Ended
            now = never_back()
            if now >= next_claim:
                next_claim = now + every
                self._claim(stop)
            else:
                block = max(0.001, min(BLOCK, next_claim - now))
                self._handle(reader.read(self.log, self.name, BATCH, block), stop)

    def _claim(self, stop: threading.Event) -> None:
        """Take over what the dead have left, and what is to be tried again."""
        policy, tally, more, told = self._policy, self.calls.tally, "", False
        while not stop.is_set():
            claimed = self._run(self.log.claim(self.name, policy.claim_after, more, BATCH, policy.tries))
            tally.count("claimed", len(claimed.entries))
            tally.count("dropped", claimed.lost)
            if claimed.died:
                tally.count("dead", claimed.died)
                self.calls.say("messages are dead letters", "their consumers died at every try")
            if not told and (claimed.lost or claimed.behind):
                told = True
                self.calls.say("messages were trimmed before they were handled", "max_length is too small")
                self._carry_out(self.calls.gap(self.log.stream))
            self._handle(claimed.entries, stop)
            more = claimed.more
            if not more:
                return

    def _handle(self, entries: list[Entry], stop: threading.Event) -> None:
        if not entries:
            return
        self._held = dict.fromkeys(entry.id for entry in entries)
        self.calls.tally.count("received", len(entries))
        try:
            with self._keeper.keep(Lease(self._policy.claim_after), None):
                for entry in entries:
                    if stop.is_set():
                        return
                    if entry.id in self._held:  # else somebody else has it by now
                        self._settle(entry)
        finally:
            self._give_back()

    def _keep(self) -> None:
        """Tell the group that what is held is held still; what somebody else has is not begun any more."""
        with self._telling:
            held = tuple(self._held)
            if held:
                mine = self._store().perform(self.log.keep(self.name, 0.0, held))
                for id in held:
                    if id not in mine:
                        self._held.pop(id, None)

    def _give_back(self) -> None:
        held, self._held = tuple(self._held), {}
        if held:
            try:
                self._idle(self._policy.claim_after, held, untried=True)
            except StoreUnavailable:  # then it has to be waited for
                pass

    def _idle(self, seconds: float, ids: tuple[bytes, ...], *, untried: bool = False) -> None:
        with self._telling:
            self._store().perform(self.log.keep(self.name, seconds, ids, untried=untried))

    def _leave(self) -> None:
        self._keeper.close()
        try:
            self._run(self.log.leave(self.name, FORGET_AFTER * self._policy.claim_after))
        except StoreUnavailable:
            pass

    def _run(self, flow: Flow[T]) -> T:
        return self._driver.run(flow, self._store())

    # -- one message

    def _settle(self, entry: Entry) -> None:
        """Handle a message, and tell the group what came of it."""
        error: BaseException | None = None
        if entry.id not in self._done and entry.group in ("", self.log.group):
            error = self._call(entry)
        self._held.pop(entry.id, None)
        if error is None:
            if len(self._done) < REMEMBERED:
                self._done.add(entry.id)
            if self._run(self.log.ack(entry.id)):
                self.calls.tally.count("acknowledged")
            self._done.discard(entry.id)
        elif entry.tries < self._policy.tries:
            self._idle(max(0.0, self._policy.claim_after - self._policy.retry_after), (entry.id,))
            self.calls.tally.count("retried")
        elif self._run(self.log.bury(entry, place(error), self.name)):
            self.calls.tally.count("dead")
            self.calls.say("a message is a dead letter", f"after {entry.tries} tries")

    def _call(self, entry: Entry) -> BaseException | None:
        """The error of the handler, if it had one."""
        try:
            return self._carry_out(self.calls.message(self.log.stream, entry.raw, entry.tries))
        except Ended:
            raise
        except BaseException as error:  # SystemExit, a cancellation from within, and the like
            self.calls.tally.count("failed")
            self.calls.say("failed", type(error).__qualname__)
            return error

    def _carry_out(self, steps: Steps[T]) -> T:
        """Call the handler or a hook of it, where it runs, in a context of its own."""
        if self.loop is None:
            return Context().run(call, steps)
        work = self._on_loop(steps)
        try:
            working = Context().run(asyncio.run_coroutine_threadsafe, work, self.loop)
        except RuntimeError:
            work.close()
            raise Ended from None
        self._working = working
        while not wait_futures((working,), LOOK).done:
            if self.loop.is_closed():
                raise Ended
        return working.result()

    async def _on_loop(self, steps: Steps[T]) -> T:
        self._current = asyncio.current_task()
        try:
            return await acall(steps)
        finally:
            self._current = None


def consumer_name(given: str | None) -> str:
    """A name that no other consumer has, or the one that was given."""
    return given or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
