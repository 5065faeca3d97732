"""Messages that are not lost: streams, each message handled at least once by each group of consumers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from msgspec import Struct

from cacheaside.codecs import ValueCodec
from cacheaside.engine.commands import Flow, Sleep
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.fork import renew_after_fork
from cacheaside.policy import Seconds, seconds
from cacheaside.stats import Counts, Tally
from cacheaside.toolkit.consumer import BLOCK, Consumer, Policy
from cacheaside.toolkit.handlers import Calls, OnError, OnGap
from cacheaside.toolkit.messages import Message, Types, check_channel, codec_of, read_wire
from cacheaside.toolkit.places import CLOSE_WITHIN, FORKED, connector, innermost, running_loop
from cacheaside.toolkit.streams import LocalReader, Log, Reader, RedisReader, text
from cacheaside.toolkit.traces import sending

if TYPE_CHECKING:
    from cacheaside.cache import Cache

T = TypeVar("T")

AT_ONCE: Final = 100
"""Dead letters that one script moves."""
STARTS: Final = {"oldest": "0", "newest": "$"}


class DeadLetter(Struct, frozen=True):
    """A message that no consumer of a group could handle."""

    id: str
    """Of the dead letter, for ``requeue`` and ``discard``."""
    message: Message[Any] | None
    """None when it could not be read."""
    error: str
    """The kind of the last error and where it was raised."""
    tries: int
    consumer: str
    """Who tried last; "" when that died of it."""


class DurableSubscription:
    """A consumer at work, until it is closed. Made by ``DurableBroker.subscribe``."""

    def __init__(self, broker: DurableBroker, consumer: Consumer) -> None:
        self.stream = consumer.log.stream
        self._broker = broker
        self._consumer = consumer

    def __repr__(self) -> str:
        return f"<DurableSubscription of {self.stream!r} as {self.consumer!r} by {self._consumer.calls.name}>"

    @property
    def consumer(self) -> str:
        """What the group knows it by."""
        return self._consumer.name

    @property
    def closed(self) -> bool:
        """Whether it takes no more messages: closed by somebody, or with its event loop."""
        return not self._consumer.thread.running

    def stats(self) -> dict[str, int]:
        """What became of its messages."""
        return {name: self._consumer.calls.tally.counts.get(name, 0) for name in DURABLE_COUNTERS}

    def close(self) -> None:
        """Take no more messages, and wait for the one being handled, five seconds at most.

        What was given to this consumer and is not begun goes to others at once. Called by the handler
        itself, or on the event loop that the handler runs on, it does not wait.
        """
        self._broker.cache.run(self._broker.end((self._consumer,), blocking=True), "unsubscribe")

    async def aclose(self) -> None:
        await self._broker.cache.arun(self._broker.end((self._consumer,), blocking=False), "unsubscribe")


DURABLE_COUNTERS: Final = (
    "received",
    "handled",
    "failed",
    "unparsable",
    "acknowledged",
    "retried",
    "claimed",
    "dead",
    "dropped",
    "gaps",
)
PUBLIC: Final = ("published", "unavailable", *DURABLE_COUNTERS)
"""What a durable broker counts."""


class DurableBroker:
    """Publishes messages to streams, and has each handled at least once by each group that takes part.

    The consumers of a group share the messages. One is acknowledged after its handler has returned; if the
    handler raises, or its process dies, it is given out again, so **a handler must stand being called twice
    with one message** (its ``id`` tells). Messages come in the order of publication, but for those that are
    tried again.

    Args:
        cache: whose Redis is used, or whose embedded store, which reaches this process only and keeps
            messages no longer than it lives.
        group: what the consumers that share the work are called, such as the name of a service.
        consumer: what this one is called in the group; None makes a name that no other has.
        types: what the data of messages of each type is; see ``Broker``.
        start: where a new group begins: with the ``"oldest"`` message that is there, or the ``"newest"``,
            the next that is published.
        tries: how often a message is given to a handler before it becomes a dead letter.
        claim_after: seconds after which a message of a consumer that has died is given to another one. A
            handler may take longer: what is at work is kept.
        retry_after: seconds after which a message whose handler raised is given out again, about; at most
            ``claim_after``.
        max_length: messages that a stream keeps, about; the oldest go, **handled or not**.
        on_error: called with the error, the stream, and the message (None if it could not be read).
        on_gap: called with the stream when messages were trimmed before they were handled, or the server
            has lost the group.

    Raises ConfigError for what cannot work.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        group: str,
        consumer: str | None = None,
        types: Mapping[str, Any] | None = None,
        start: Literal["oldest", "newest"] = "oldest",
        tries: int = 5,
        claim_after: Seconds = 60,
        retry_after: Seconds = 5,
        max_length: int = 100_000,
        on_error: OnError | None = None,
        on_gap: OnGap | None = None,
    ) -> None:
        if start not in STARTS:
            raise ConfigError(f'start must be "oldest" or "newest", not {start!r}')
        for name, value in (("tries", tries), ("max_length", max_length)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
        self.cache = cache
        self.group = check_channel("group", group)
        self._consumer = None if consumer is None else check_channel("consumer", consumer)
        self._max_length = max_length
        claim = seconds("claim_after", claim_after)
        retry = min(claim, seconds("retry_after", retry_after))
        self._policy = Policy(tries, claim, retry, STARTS[start])
        self._types = Types(types)
        self._on_error = on_error
        self._on_gap = on_gap
        self._said: set[tuple[str, str]] = set()
        self._tally = Tally(PUBLIC, cache.messages.setdefault("stream", Tally(PUBLIC)))
        self._consumers: list[Consumer] = []
        self._connect = connector(cache, BLOCK)
        cache.parts.add(self)
        renew_after_fork(self)

    def __repr__(self) -> str:
        return f"<DurableBroker group={self.group!r} on {self.cache!r}>"

    # -- publishing

    def publish(self, stream: str, type: str, data: Any = None) -> str:
        """Append a message to a stream.

        Args:
            stream: any text.
            type: what kind of message it is, such as ``"order.paid"``.
            data: of the declared type, else anything that makes the trip and back.

        Returns the id of the message. Raises StoreUnavailable when Redis did not take it (after a timeout
        it may be there all the same), CodecError for data that would not come back as it is.
        """
        return self.cache.driver.run(self._publish(stream, type, data), self.cache.store)

    async def apublish(self, stream: str, type: str, data: Any = None) -> str:
        return await self.cache.driver.arun(self._publish(stream, type, data), self.cache.store)

    def _publish(self, stream: str, type: str, data: Any) -> Flow[str]:
        # In a span of its own kind, instead of what cache.run has for everything.
        log = self._log(stream)
        with sending(type) as trace:
            id, raw = self._types.pack(type, data, self.cache.world.clock(), trace)
            try:
                lost = yield from log.add(raw, self._max_length)
            except StoreUnavailable:
                self._tally.count("unavailable")
                self.cache.counts.setdefault("global", Counts()).unavailable += 1
                raise
        self._tally.count("published")
        self._tally.count("dropped", lost)
        return id

    # -- consuming

    def subscribe(
        self,
        stream: str,
        handler: Callable[[Message[T]], object],
        *,
        type: type[T] | None = None,
        on_error: OnError | None = None,
        on_gap: OnGap | None = None,
    ) -> DurableSubscription:
        """Take part in handling the messages of a stream, one at a time, as a consumer of the group.

        An async handler runs on the event loop that it was subscribed from, any other in a thread.

        Args:
            stream: any text.
            handler: a function of a ``Message``, async or not; its return acknowledges the message.
            type: of the data of all messages here, in the place of the broker's ``types``.
            on_error: in the place of the broker's.
            on_gap: in the place of the broker's.

        Raises StoreUnavailable when Redis does not answer; ConfigError for an async handler where no event
        loop runs, and for a second consumer of the same name on the same stream.
        """
        consumer = self._make(stream, handler, type, on_error, on_gap)
        return self.cache.run(self._subscribe(consumer), "subscribe")

    async def asubscribe(
        self,
        stream: str,
        handler: Callable[[Message[T]], object],
        *,
        type: type[T] | None = None,
        on_error: OnError | None = None,
        on_gap: OnGap | None = None,
    ) -> DurableSubscription:
        consumer = self._make(stream, handler, type, on_error, on_gap)
        return await self.cache.arun(self._subscribe(consumer), "subscribe")

    def _make(
        self, stream: str, handler: Any, type: Any, on_error: OnError | None, on_gap: OnGap | None
    ) -> Consumer:
        log = self._log(stream)
        codec: Callable[[str], ValueCodec] = self._types.codec
        if type is not None:
            only = codec_of("type", type)
            codec = lambda _: only  # noqa: E731
        calls = Calls(
            handler, codec, on_error or self._on_error, on_gap or self._on_gap, self._tally, self._said
        )
        loop: asyncio.AbstractEventLoop | None = running_loop() if calls.asynchronous else None

        def reader() -> Reader:
            if self._connect is not None:
                return RedisReader(self._connect)
            return LocalReader(self.cache.store.perform, innermost(self.cache.store), log.key)

        return Consumer(log, calls, self._policy, lambda: self.cache.store, reader, self._consumer, loop)

    def _subscribe(self, consumer: Consumer) -> Flow[DurableSubscription]:
        self._consumers = [one for one in self._consumers if one.thread.running]
        if any(one.log.key == consumer.log.key and one.name == consumer.name for one in self._consumers):
            raise ConfigError(
                f"{consumer.name!r} is a consumer of {consumer.log.stream!r} already; "
                "leave consumer out, and each gets a name of its own"
            )
        yield from consumer.log.open(self._policy.start)
        consumer.thread.start()
        self._consumers.append(consumer)
        return DurableSubscription(self, consumer)

    # -- dead letters

    def dead(self, stream: str, *, after: str = "", count: int = 100) -> list[DeadLetter]:
        """The dead letters of this group, oldest first: ``count`` of those ``after`` the one with this id."""
        return self.cache.run(self._dead(stream, after, count), "dead_letters")

    async def adead(self, stream: str, *, after: str = "", count: int = 100) -> list[DeadLetter]:
        return await self.cache.arun(self._dead(stream, after, count), "dead_letters")

    def _dead(self, stream: str, after: str, count: int) -> Flow[list[DeadLetter]]:
        found = yield from self._log(stream).dead(after, count)
        return [self._letter(stream, row) for row in found]

    def _letter(self, stream: str, row: list[Any]) -> DeadLetter:
        id, raw, error, tries, consumer = row
        message: Message[Any] | None
        try:
            wire = read_wire(raw)
            data = self._types.codec(wire.type).decode(wire.data)
            message = Message(wire.type, data, wire.timestamp, wire.id, stream, int(tries))
        except Exception:
            message = None  # it may be dead for that
        return DeadLetter(text(id), message, text(error), int(tries), text(consumer))

    def requeue(self, stream: str, *ids: str) -> int:
        """Have dead letters handled again by this group, as new messages; how many there were.

        Without ids, all that are there now.
        """
        return self.cache.run(self._requeue(stream, ids), "requeue")

    async def arequeue(self, stream: str, *ids: str) -> int:
        return await self.cache.arun(self._requeue(stream, ids), "requeue")

    def _requeue(self, stream: str, ids: tuple[str, ...]) -> Flow[int]:
        if not ids:
            ids = yield from self._all_dead(stream)
        return (yield from self._revive(stream, ids, again=True))

    def _all_dead(self, stream: str) -> Flow[tuple[str, ...]]:
        log, ids = self._log(stream), [""]
        while found := (yield from log.dead(ids[-1], AT_ONCE)):
            ids += [text(row[0]) for row in found]
        return tuple(ids[1:])

    def _revive(self, stream: str, ids: tuple[str, ...], *, again: bool) -> Flow[int]:
        log, revived = self._log(stream), 0
        for at in range(0, len(ids), AT_ONCE):
            revived += yield from log.revive(ids[at : at + AT_ONCE], again=again)
        return revived

    def discard(self, stream: str, *ids: str) -> int:
        """Drop dead letters for good; how many there were."""
        return self.cache.run(self._revive(stream, ids, again=False), "discard")

    async def adiscard(self, stream: str, *ids: str) -> int:
        return await self.cache.arun(self._revive(stream, ids, again=False), "discard")

    # -- lifetime

    def stats(self) -> dict[str, int]:
        """What became of messages in this process.

        ``published``, ``unavailable`` (not taken by Redis); ``received`` from the stream, ``claimed`` from
        other consumers among them; ``handled``, ``failed`` and ``unparsable`` once for each try;
        ``acknowledged`` by the group; ``retried``: to be given out again; ``dead`` letters made;
        ``dropped``: trimmed before they were handled; ``gaps`` told; ``consumers`` now.
        """
        return {**self._tally.counts, "consumers": sum(one.thread.running for one in self._consumers)}

    def end(self, consumers: tuple[Consumer, ...], *, blocking: bool) -> Flow[None]:
        """Close consumers, and wait for those of their handlers that are at work."""
        stopping = [(one, one.stop(blocking=blocking)) for one in consumers]
        self._consumers = [one for one in self._consumers if one not in consumers]
        for one, ended in stopping:
            if ended is not None:
                yield Sleep(CLOSE_WITHIN, ended)
                if not ended.done():
                    one.cancel()

    def close(self) -> None:
        """Close all subscriptions. The cache does this when it is closed itself."""
        self.cache.run(self.end(tuple(self._consumers), blocking=True), "unsubscribe")

    async def aclose(self) -> None:
        await self.cache.arun(self.end(tuple(self._consumers), blocking=False), "unsubscribe")

    def after_fork(self) -> None:
        """Handlers in threads go on in a child, as consumers of other names; those of loops do not."""
        running = [one for one in self._consumers if one.thread.running]
        for one in running:
            one.after_fork()
            if one.loop is None:
                one.thread.start(FORKED)
        self._consumers = [one for one in running if one.loop is None]

    def _log(self, stream: str) -> Log:
        return Log(self.cache.world.keys, check_channel("stream", stream), self.group)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
