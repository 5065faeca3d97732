"""Messages to whoever listens now: channels and patterns over one subscription of Redis for each process.

What is published while nobody listens is gone; what must not be lost goes through a ``DurableBroker``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from cacheaside.codecs import ValueCodec
from cacheaside.engine.commands import Flow, Run, Sleep
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.fork import renew_after_fork
from cacheaside.stats import Counts, Tally
from cacheaside.toolkit.board import PUBLISH, Board, put_up, take_down
from cacheaside.toolkit.handlers import COUNTERS, Calls, OnError, OnGap
from cacheaside.toolkit.line import Line
from cacheaside.toolkit.mailbox import OVERFLOWS, LoopMailbox, Mailbox, Overflow, ThreadMailbox
from cacheaside.toolkit.messages import Message, Types, check_channel, codec_of
from cacheaside.toolkit.places import CLOSE_WITHIN, FORKED, connector, innermost, running_loop
from cacheaside.toolkit.traces import sending

if TYPE_CHECKING:
    from cacheaside.cache import Cache

T = TypeVar("T")

PUBLIC: Final = ("published", "unavailable", *COUNTERS)
"""What a broker counts."""
SUBSCRIBE_WITHIN: Final = 2.0
"""Seconds that subscribing waits for the server to confirm it."""


class Subscription:
    """A handler that listens, until it is closed. Made by ``Broker.subscribe``."""

    def __init__(self, broker: Broker, channel: str, pattern: bool, calls: Calls, mailbox: Mailbox) -> None:
        self.channel = channel
        self.pattern = pattern
        self._broker = broker
        self._calls = calls
        self.mailbox = mailbox

    def __repr__(self) -> str:
        kind = "pattern" if self.pattern else "channel"
        return f"<Subscription of {kind} {self.channel!r} by {self._calls.name}>"

    @property
    def closed(self) -> bool:
        """Whether it hears nothing more: closed by somebody, by its overflow policy, or with its loop."""
        return self.mailbox.closed

    def stats(self) -> dict[str, int]:
        """What became of its messages; ``waiting`` are in its queue now."""
        return {**self._calls.tally.counts, "waiting": len(self.mailbox)}

    def close(self) -> None:
        """Drop what waits, and wait for the message being handled, five seconds at most.

        Called by the handler itself, or on the event loop that the handler runs on, it does not wait.
        """
        self._broker.cache.run(self._broker.end((self,), blocking=True), "unsubscribe")

    async def aclose(self) -> None:
        await self._broker.cache.arun(self._broker.end((self,), blocking=False), "unsubscribe")

    # -- what the broker asks for

    def deliver(self, channel: str, raw: bytes) -> bool:
        """Have it handled. False: it is closed."""
        self._calls.tally.count("received")
        return self.mailbox.put(partial(self._calls.message, channel, raw))

    def missed(self) -> None:
        """Messages may have been lost."""
        self.mailbox.missed()


class Broker:
    """Publishes messages to channels, and calls handlers with what is published there.

    All subscriptions of one broker share one connection and one thread. An async handler runs on the event
    loop that it was subscribed from, any other in a thread; each gets its messages one at a time, in the
    order of publication, from a queue of its own.

    Args:
        cache: whose Redis is used, or whose embedded store, which reaches this process only.
        types: what the data of messages of each type is, ``{"post.created": PostCreated}``; the data of
            other types comes back as builtin types.
        on_error: called with the error, the channel, and the message (None if it could not be read) when a
            handler raises or a message does not parse. It runs where the handler does, and may be async if
            all handlers are.
        on_gap: called with the channel (or pattern) when messages may have been lost to a handler, because
            the connection broke or its queue was full.

    Raises ConfigError for a type that cannot be the data of a message, and for a store of one's own that is
    not over Redis.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        types: Mapping[str, Any] | None = None,
        on_error: OnError | None = None,
        on_gap: OnGap | None = None,
    ) -> None:
        self.cache = cache
        self._types = Types(types)
        self._on_error = on_error
        self._on_gap = on_gap
        self._said: set[tuple[str, str]] = set()
        self._tally = Tally(PUBLIC, cache.messages.setdefault("channel", Tally(PUBLIC)))
        self._board = Board(cache.world.keys.value("broker:"))
        connect = connector(cache)
        self._line: Line | None = None
        if connect is not None:
            self._line = Line(self._board, self._private(), connect, self._nudge_now)
        cache.parts.add(self)
        renew_after_fork(self)

    def __repr__(self) -> str:
        return f"<Broker on {self.cache!r}>"

    # -- publishing

    def publish(self, channel: str, type: str, data: Any = None) -> str:
        """Tell all who listen to ``channel`` now, in any process.

        Args:
            channel: any text.
            type: what kind of message it is, such as ``"post.created"``.
            data: of the declared type, else anything that makes the trip and back.

        Returns the id of the message. Raises StoreUnavailable when Redis did not take it (after a timeout
        it may have been told all the same), CodecError for data that would not come back as it is.
        """
        return self.cache.driver.run(self._publish(channel, type, data), self.cache.store)

    async def apublish(self, channel: str, type: str, data: Any = None) -> str:
        return await self.cache.driver.arun(self._publish(channel, type, data), self.cache.store)

    def _publish(self, channel: str, type: str, data: Any) -> Flow[str]:
        # In a span of its own kind, instead of what cache.run has for everything.
        raw_channel = self._board.head + check_channel("channel", channel)
        with sending(type) as trace:
            id, raw = self._types.pack(type, data, self.cache.world.clock(), trace)
            try:
                yield Run(PUBLISH, (raw_channel,), (raw,))
            except StoreUnavailable:
                self._tally.count("unavailable")
                self.cache.counts.setdefault("global", Counts()).unavailable += 1
                raise
        self._tally.count("published")
        return id

    # -- subscribing

    def subscribe(
        self,
        channel: str,
        handler: Callable[[Message[T]], object],
        *,
        type: type[T] | None = None,
        pattern: bool = False,
        queue: int = 1000,
        overflow: Overflow = "drop-oldest",
        on_error: OnError | None = None,
        on_gap: OnGap | None = None,
    ) -> Subscription:
        """Have ``handler`` called with each message of ``channel`` that is published after this returns.

        On an event loop, ``await asubscribe(...)``; this one would hold it up.

        Args:
            channel: any text; with ``pattern``, a glob such as ``"user:*"``.
            handler: a function of a ``Message``, async or not.
            type: of the data of all messages here, in the place of the broker's ``types``.
            pattern: whether ``channel`` is a pattern, as of PSUBSCRIBE.
            queue: how many messages may wait for the handler.
            overflow: what happens when one more comes: ``"drop-oldest"``, ``"drop-newest"``, or
                ``"close"``, which ends the subscription and tells ``on_error``.
            on_error: in the place of the broker's.
            on_gap: in the place of the broker's.

        Raises StoreUnavailable when Redis has not confirmed it within two seconds, or refuses; nothing is
        subscribed then. Raises ConfigError for an async handler where no event loop runs.
        """
        made = self._make(channel, handler, type, pattern, queue, overflow, on_error, on_gap)
        return self.cache.run(self._subscribe(made), "subscribe")

    async def asubscribe(
        self,
        channel: str,
        handler: Callable[[Message[T]], object],
        *,
        type: type[T] | None = None,
        pattern: bool = False,
        queue: int = 1000,
        overflow: Overflow = "drop-oldest",
        on_error: OnError | None = None,
        on_gap: OnGap | None = None,
    ) -> Subscription:
        made = self._make(channel, handler, type, pattern, queue, overflow, on_error, on_gap)
        return await self.cache.arun(self._subscribe(made), "subscribe")

    def _make(
        self,
        channel: str,
        handler: Any,
        type: Any,
        pattern: bool,
        queue: int,
        overflow: Overflow,
        on_error: OnError | None,
        on_gap: OnGap | None,
    ) -> Subscription:
        check_channel("channel", channel)
        if isinstance(queue, bool) or not isinstance(cast(object, queue), int) or queue < 1:
            raise ConfigError(f"queue must be a whole number of messages of at least 1, not {queue!r}")
        if overflow not in OVERFLOWS:
            raise ConfigError(f"overflow must be one of {', '.join(map(repr, OVERFLOWS))}, not {overflow!r}")
        codec: Callable[[str], ValueCodec] = self._types.codec
        if type is not None:
            only = codec_of("type", type)
            codec = lambda _: only  # noqa: E731
        calls = Calls(
            handler, codec, on_error or self._on_error, on_gap or self._on_gap, self._tally, self._said
        )
        mailbox: Mailbox
        if calls.asynchronous:
            mailbox = LoopMailbox(running_loop(), calls, channel, queue, overflow)
        else:
            mailbox = ThreadMailbox(calls, channel, queue, overflow)
        return Subscription(self, channel, pattern, calls, mailbox)

    def _subscribe(self, subscription: Subscription) -> Flow[Subscription]:
        topic, new = self._board.add(subscription)
        line = self._line
        if line is None:
            put_up(innermost(self.cache.store), self._board)
            return subscription
        ready = topic.ready
        try:
            if not line.thread.start() and new:
                yield self._nudge()
            if not ready.done():
                yield Sleep(SUBSCRIBE_WITHIN, ready)
            why = ready.result() if ready.done() else line.thread.trouble or "no answer"
            if why:
                raise StoreUnavailable(f"the subscription was not confirmed: {why}")
        except BaseException:
            self._board.remove(subscription)
            subscription.mailbox.close(blocking=False)
            raise
        return subscription

    def _private(self) -> str:
        return self.cache.world.keys.value(f"broker-beat:{secrets.token_hex(8)}")

    def _nudge(self) -> Run:
        """Wakes the thread of the line."""
        assert self._line is not None
        return Run(PUBLISH, (self._line.private,), (b"",))

    def _nudge_now(self) -> None:
        self.cache.store.perform(self._nudge())

    # -- lifetime

    def stats(self) -> dict[str, int]:
        """What became of messages in this process, by all handlers together.

        ``published`` and ``unavailable`` (not taken by Redis) by this process; ``received``, ``handled``,
        ``failed``, ``unparsable``, ``dropped`` and ``gaps`` once for each handler; ``subscriptions`` and
        ``channels`` (patterns as well) now.
        """
        return {
            **self._tally.counts,
            "subscriptions": len(list(self._board)),
            "channels": len(self._board.topics),
        }

    @property
    def connected(self) -> bool:
        """Whether this process hears what is published: always, on the embedded store."""
        return self._line is None or (self._line.up and self._line.thread.running)

    def end(self, subscriptions: tuple[Subscription, ...], *, blocking: bool) -> Flow[None]:
        """Close subscriptions, and wait for those of their handlers that are at work."""
        resting = [(one, one.mailbox.close(blocking=blocking)) for one in subscriptions]
        given_up = [self._board.remove(one) for one in subscriptions]
        if any(given_up):
            yield from self._wake()
        for one, rest in resting:
            if rest is not None:
                yield Sleep(CLOSE_WITHIN, rest)
                if not rest.done():
                    one.mailbox.cancel()

    def close(self) -> None:
        """Close all subscriptions, the connection and its thread; subscribing opens them again.

        The cache does this when it is closed itself.
        """
        self.cache.run(self._close(blocking=True), "unsubscribe")

    async def aclose(self) -> None:
        await self.cache.arun(self._close(blocking=False), "unsubscribe")

    def _close(self, *, blocking: bool) -> Flow[None]:
        ended = self._line.thread.stop() if self._line is not None else None
        yield from self.end(tuple(self._board), blocking=blocking)
        if self._line is None:
            take_down(innermost(self.cache.store), self._board)
        if ended is not None:
            yield from self._wake()
            yield Sleep(CLOSE_WITHIN, ended)

    def _wake(self) -> Flow[None]:
        """Have the line look at once what has changed."""
        if self._line is not None and self._line.up:
            try:
                yield self._nudge()
            except StoreUnavailable:
                pass

    def after_fork(self) -> None:
        """Handlers in threads go on in a child, over a line of its own; those of loops have no loop here."""
        self._board.after_fork()
        for one in list(self._board):
            one.mailbox.after_fork()
            if isinstance(one.mailbox, LoopMailbox):
                one.mailbox.close(blocking=False)
                self._board.remove(one)
        if self._line is not None:
            listening = self._line.thread.running and bool(self._board.topics)
            self._line.after_fork(self._private())
            if listening:
                self._line.thread.start(FORKED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
