"""Messages to whoever listens now, the same everywhere; each wrong of the original in a test of its own."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import msgspec
import pytest

from cacheaside import Cache, CodecError, ConfigError, StoreUnavailable
from cacheaside.engine.commands import Run
from cacheaside.testing.chaos import FailingStore
from cacheaside.testing.servers import wait_until
from cacheaside.toolkit import Broker, Message
from tests.broker.conftest import Heard

Until = Callable[[Callable[[], bool]], bool]


class PostCreated(msgspec.Struct, frozen=True):
    id: int
    title: str
    at: datetime


@dataclass
class Renamed:
    id: UUID
    name: str


POST = PostCreated(1, "Hello", datetime(2026, 11, 25, tzinfo=UTC))


# ---------------------------------------------------------------------------- what arrives


def test_a_message_arrives_with_type_data_timestamp_and_id(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    broker.subscribe("posts", heard)
    before = datetime.now(UTC)
    id = broker.publish("posts", "post.created", {"id": 1, "tags": ["a", None]})
    assert heard.has(1)
    (message,) = heard.messages
    assert message.type == "post.created"
    assert message.data == {"id": 1, "tags": ["a", None]}
    assert message.id == id
    assert message.channel == "posts"
    assert message.tries == 1
    assert timedelta() <= message.timestamp - before < timedelta(seconds=10)


def test_ids_differ(cache: Cache) -> None:
    broker = Broker(cache)
    assert len({broker.publish("posts", "x", 1) for _ in range(20)}) == 20


async def test_async_handlers_run_on_the_loop_that_they_were_subscribed_from(acache: Cache) -> None:
    got: asyncio.Queue[tuple[asyncio.AbstractEventLoop, Any]] = asyncio.Queue()

    async def handler(message: Message[Any]) -> None:
        await asyncio.sleep(0)
        await got.put((asyncio.get_running_loop(), message.data))

    async with Broker(acache) as broker:
        await broker.asubscribe("posts", handler)
        await broker.apublish("posts", "x", 1)
        assert await asyncio.wait_for(got.get(), 20) == (asyncio.get_running_loop(), 1)
        await asyncio.to_thread(broker.publish, "posts", "x", 2)
        assert await asyncio.wait_for(got.get(), 20) == (asyncio.get_running_loop(), 2)


async def test_sync_handlers_run_in_a_thread_and_hold_up_no_loop(acache: Cache, heard: Heard) -> None:
    heard.go.clear()
    async with Broker(acache) as broker:
        await broker.asubscribe("posts", heard)
        await broker.apublish("posts", "x", 1)
        assert await asyncio.to_thread(heard.begun.wait, 20)
        began = time.monotonic()
        await asyncio.sleep(0)
        assert time.monotonic() - began < 1
        heard.go.set()
        assert await asyncio.to_thread(heard.has, 1)


def test_a_handler_gets_its_messages_in_the_order_of_publication(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    broker.subscribe("posts", heard)
    for n in range(300):
        broker.publish("posts", "x", n)
    assert heard.has(300)
    assert heard.data == list(range(300))


def test_only_what_is_published_to_a_channel_is_heard_there(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    broker.subscribe("posts", heard)
    for channel in ("post", "posts:1", "Posts", "*"):
        broker.publish(channel, "x", channel)
    broker.publish("posts", "x", "mine")
    assert heard.has(1)
    assert heard.data == ["mine"]


@pytest.mark.parametrize(
    "channel", ["user:1", "{t.0}", "a b\r\nPUBLISH x y", "naïve ☃", "*", "\x00", "x" * 5000]
)
def test_any_text_is_a_channel(cache: Cache, heard: Heard, channel: str) -> None:
    broker = Broker(cache)
    broker.subscribe(channel, heard)
    broker.publish(channel, "x", 1)
    assert heard.has(1)
    assert heard.messages[0].channel == channel


def test_what_one_broker_publishes_another_one_hears(cache: Cache, heard: Heard) -> None:
    here, there = Broker(cache), Broker(cache)
    there.subscribe("posts", heard)
    here.publish("posts", "x", 1)
    assert heard.has(1)


def test_caches_with_other_prefixes_hear_nothing_of_each_other(one_redis_url: str, heard: Heard) -> None:
    with (
        Cache(one_redis_url, prefix="a", l1_window=None) as a,
        Cache(one_redis_url, prefix="b", l1_window=None) as b,
    ):
        listening = Broker(b)
        listening.subscribe("*", heard, pattern=True)
        Broker(a).publish("posts", "x", "not for b")
        listening.publish("posts", "x", "for b")
        assert heard.has(1)
        assert heard.data == ["for b"]


def test_a_pattern_hears_every_channel_that_it_matches(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    broker.subscribe("user:[0-9]*", heard, pattern=True)
    for channel in ("user:1", "user:x", "user:27:photos", "users:1"):
        broker.publish(channel, "x", None)
    broker.publish("user:9", "last", None)
    assert wait_until(lambda: [m.type for m in heard.messages][-1:] == ["last"])
    assert [m.channel for m in heard.messages] == ["user:1", "user:27:photos", "user:9"]


def test_without_pattern_a_glob_is_just_a_name(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    broker.subscribe("user:*", heard)
    broker.publish("user:1", "x", 1)
    broker.publish("user:*", "x", 2)
    assert heard.has(1)
    assert heard.data == [2]


def test_what_is_published_before_subscribing_is_not_heard(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    broker.publish("posts", "x", 1)
    broker.subscribe("posts", heard)
    broker.publish("posts", "x", 2)
    assert heard.has(1)
    assert heard.data == [2]


# ---------------------------------------------------------------------------- types


def test_declared_types_come_back_as_they_were(cache: Cache, heard: Heard) -> None:
    """In the original, dates come back as strings."""
    broker = Broker(cache, types={"post.created": PostCreated, "renamed": Renamed, "moved": datetime})
    broker.subscribe("posts", heard)
    zoned = datetime(2026, 11, 25, 3, tzinfo=timezone(timedelta(hours=5)))
    sent = [("post.created", POST), ("renamed", Renamed(UUID(int=1), "x")), ("moved", zoned)]
    for type, data in sent:
        broker.publish("posts", type, data)
    assert heard.has(3)
    assert heard.data == [data for _, data in sent]
    assert heard.data[2].utcoffset() == timedelta(hours=5)


def test_a_subscription_may_say_its_own_type(cache: Cache, heard: Heard) -> None:
    """The publisher needs to declare nothing: the class of the data says how it is written."""
    untyped = Heard()
    broker = Broker(cache)
    broker.subscribe("posts", heard, type=PostCreated)
    broker.subscribe("posts", untyped)
    broker.publish("posts", "post.created", POST)
    assert heard.has(1)
    assert untyped.has(1)
    assert heard.data == [POST]
    assert untyped.data == [{"id": 1, "title": "Hello", "at": POST.at}]


def test_data_that_does_not_fit_its_type_is_not_published(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache, types={"post.created": PostCreated})
    broker.subscribe("posts", heard)
    with pytest.raises(CodecError, match=r"'post\.created' message cannot make the trip"):
        broker.publish("posts", "post.created", {"id": "s3cret"})
    with pytest.raises(CodecError, match=r"declare it: types=\{'x': \.\.\.\}"):
        broker.publish("posts", "x", {"id": UUID(int=1)})
    broker.publish("posts", "x", "ok")
    assert heard.has(1)
    assert heard.data == ["ok"]


def test_the_data_is_not_in_the_repr_of_a_message(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    broker.subscribe("posts", heard)
    broker.publish("posts", "x", "s3cret")
    assert heard.has(1)
    message = heard.messages[0]
    assert "s3cret" not in f"{message!r} {message}"
    assert message.id in repr(message)


# ---------------------------------------------------------------------------- who hears


def test_many_handlers_of_a_channel_all_hear_it(cache: Cache) -> None:
    broker = Broker(cache)
    handlers = [Heard() for _ in range(5)]
    for handler in handlers:
        broker.subscribe("posts", handler)
    broker.publish("posts", "x", 1)
    assert all(handler.has(1) for handler in handlers)
    assert broker.stats()["channels"] == 1
    assert broker.stats()["subscriptions"] == 5
    assert broker.stats()["handled"] == 5


def test_a_closed_subscription_hears_nothing_and_the_others_go_on(cache: Cache, heard: Heard) -> None:
    broker, other = Broker(cache), Heard()
    subscription = broker.subscribe("posts", heard)
    broker.subscribe("posts", other)
    broker.publish("posts", "x", 1)
    assert heard.has(1)
    subscription.close()
    assert subscription.closed
    broker.publish("posts", "x", 2)
    assert other.has(2)
    assert heard.data == [1]
    subscription.close()


async def test_a_closed_async_subscription_hears_nothing(acache: Cache, heard: Heard) -> None:
    async with Broker(acache) as broker:
        other = Heard()
        subscription = await broker.asubscribe("posts", heard.later)
        await broker.asubscribe("posts", other.later)
        await subscription.aclose()
        await broker.apublish("posts", "x", 1)
        assert await asyncio.to_thread(other.has, 1)
        assert heard.data == []


def test_closing_waits_for_the_message_being_handled_and_drops_the_rest(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    heard.go.clear()
    subscription = broker.subscribe("posts", heard)
    for n in range(3):
        broker.publish("posts", "x", n)
    assert heard.begun.wait(20)
    assert wait_until(lambda: subscription.stats()["received"] == 3)
    closing = threading.Thread(target=subscription.close)
    closing.start()
    assert wait_until(lambda: subscription.closed)
    assert closing.is_alive()
    heard.go.set()
    closing.join(20)
    assert heard.data == [0]


def test_a_handler_may_close_its_own_subscription(cache: Cache) -> None:
    broker, done = Broker(cache), threading.Event()

    def once(message: Message[Any]) -> None:
        subscription.close()
        done.set()

    subscription = broker.subscribe("posts", once)
    broker.publish("posts", "x", 1)
    assert done.wait(3)
    assert subscription.closed


async def test_an_async_handler_may_close_its_own_subscription(acache: Cache) -> None:
    done = asyncio.Event()

    async def once(message: Message[Any]) -> None:
        await subscription.aclose()
        done.set()

    async with Broker(acache) as broker:
        subscription = await broker.asubscribe("posts", once)
        await broker.apublish("posts", "x", 1)
        await asyncio.wait_for(done.wait(), 3)
        assert subscription.closed


def test_subscribing_again_after_closing_the_broker_works(cache: Cache, heard: Heard) -> None:
    broker = Broker(cache)
    for n in range(3):
        broker.subscribe("posts", heard)
        broker.publish("posts", "x", n)
        assert heard.has(n + 1)
        broker.close()
        assert broker.stats()["subscriptions"] == 0
    broker.publish("posts", "x", 9)
    assert heard.data == [0, 1, 2]


# ---------------------------------------------------------------------------- handlers are apart


def test_a_slow_handler_stalls_nobody(cache: Cache, heard: Heard) -> None:
    """In the original, all handlers run one after another in the client's own loop."""
    broker, fast = Broker(cache), Heard()
    heard.go.clear()
    broker.subscribe("posts", heard)
    broker.subscribe("posts", fast)
    for n in range(50):
        broker.publish("posts", "x", n)
    assert fast.has(50)
    assert heard.messages == []
    heard.go.set()
    assert heard.has(50)


async def test_a_slow_async_handler_stalls_nobody(acache: Cache, heard: Heard) -> None:
    go = asyncio.Event()

    async def slow(message: Message[Any]) -> None:
        await go.wait()

    async with Broker(acache) as broker:
        subscription = await broker.asubscribe("posts", slow)
        await broker.asubscribe("posts", heard.later)
        for n in range(50):
            await broker.apublish("posts", "x", n)
        assert await asyncio.to_thread(heard.has, 50)
        assert subscription.stats()["handled"] == 0
        go.set()


def test_the_error_of_a_handler_stops_nothing_and_is_told(cache: Cache, heard: Heard) -> None:
    told: list[tuple[Exception, str, Message[Any] | None]] = []
    broker, other = Broker(cache, on_error=lambda *trouble: told.append(trouble)), Heard()
    heard.error = ValueError("no")
    subscription = broker.subscribe("posts", heard)
    broker.subscribe("posts", other)
    for n in range(3):
        broker.publish("posts", "x", n)
    assert heard.has(3)
    assert other.has(3)
    assert wait_until(lambda: len(told) == 3)
    assert [(str(e), c, m.data) for e, c, m in told if m] == [("no", "posts", n) for n in range(3)]
    assert subscription.stats()["failed"] == broker.stats()["failed"] == 3
    assert broker.stats()["handled"] == 3


async def test_an_async_hook_is_awaited_where_the_handler_runs(acache: Cache, heard: Heard) -> None:
    told: list[Any] = []

    async def on_error(error: Exception, channel: str, message: Message[Any] | None) -> None:
        await asyncio.sleep(0)
        told.append((str(error), asyncio.get_running_loop()))

    async with Broker(acache) as broker:
        heard.error = ValueError("no")
        await broker.asubscribe("posts", heard.later, on_error=on_error)
        await broker.apublish("posts", "x", 1)
        assert await asyncio.to_thread(wait_until, lambda: bool(told))
        assert told == [("no", asyncio.get_running_loop())]


@pytest.mark.parametrize("error", [SystemExit("bye"), KeyboardInterrupt()])
def test_a_handler_that_wants_to_exit_is_an_error_too(
    embedded: Cache, heard: Heard, error: BaseException
) -> None:
    broker = Broker(embedded)
    heard.error = error
    subscription = broker.subscribe("posts", heard)
    broker.publish("posts", "x", 1)
    assert heard.has(1)
    heard.error = None
    broker.publish("posts", "x", 2)
    assert heard.has(2)
    assert subscription.stats()["failed"] == 1


async def test_a_handler_that_is_cancelled_from_within_is_an_error_too(
    aembedded: Cache, heard: Heard
) -> None:
    async with Broker(aembedded) as broker:
        heard.error = asyncio.CancelledError()
        subscription = await broker.asubscribe("posts", heard.later)
        await broker.apublish("posts", "x", 1)
        assert await asyncio.to_thread(heard.has, 1)
        heard.error = None
        await broker.apublish("posts", "x", 2)
        assert await asyncio.to_thread(heard.has, 2)
        assert subscription.stats()["failed"] == 1


def test_a_hook_that_fails_stops_nothing(embedded: Cache, heard: Heard) -> None:
    def on_error(*trouble: object) -> None:
        raise RuntimeError("hook")

    broker = Broker(embedded, on_error=on_error)
    heard.error = ValueError("no")
    broker.subscribe("posts", heard)
    broker.publish("posts", "x", 1)
    broker.publish("posts", "x", 2)
    assert heard.has(2)


def test_bytes_that_are_no_message_are_counted_and_told_and_stop_nothing(cache: Cache, heard: Heard) -> None:
    told: list[Any] = []
    broker = Broker(cache, on_error=lambda error, channel, message: told.append((channel, message)))
    broker.subscribe("posts", heard)
    for junk in (b"", b"{not msgpack", b"\xc1" * 40, msgspec.msgpack.encode({"type": 1})):
        inject(cache, broker, "posts", junk)
    broker.publish("posts", "x", 1)
    assert heard.has(1)
    assert heard.data == [1]
    assert told == [("posts", None)] * 4
    assert broker.stats()["unparsable"] == 4


def test_data_of_another_type_than_was_declared_is_counted_and_told(cache: Cache, heard: Heard) -> None:
    told: list[str] = []
    here = Broker(cache)
    there = Broker(
        cache, types={"post.created": PostCreated}, on_error=lambda e, c, m: told.append(type(e).__name__)
    )
    there.subscribe("posts", heard)
    here.publish("posts", "post.created", {"id": "one"})
    here.publish("posts", "post.created", POST)
    assert heard.has(1)
    assert heard.data == [POST]
    assert told == ["CodecError"]
    assert there.stats()["unparsable"] == 1


def inject(cache: Cache, broker: Broker, channel: str, raw: bytes) -> None:
    """Publish bytes that are no message."""
    from cacheaside.toolkit.board import PUBLISH

    cache.store.perform(Run(PUBLISH, (broker._board.head + channel,), (raw,)))


def test_a_handler_that_forgot_async_is_told_so(embedded: Cache) -> None:
    told: list[str] = []

    async def forgot(message: Message[Any]) -> None: ...

    broker = Broker(embedded, on_error=lambda error, *_: told.append(str(error)))
    broker.subscribe("posts", lambda message: forgot(message))
    broker.publish("posts", "x", 1)
    assert wait_until(lambda: told == ["a handler that is no async function returned an awaitable"])


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")


def test_what_one_message_sets_in_its_context_is_not_there_for_the_next(embedded: Cache) -> None:
    seen: list[str] = []

    def handler(message: Message[Any]) -> None:
        seen.append(variable.get())
        variable.set("dirty")

    variable.set("the subscriber's")
    broker = Broker(embedded)
    broker.subscribe("posts", handler)
    for _ in range(2):
        broker.publish("posts", "x", 1)
    assert wait_until(lambda: seen == ["clean", "clean"])


# ---------------------------------------------------------------------------- queues are bounded


def filled(broker: Broker, heard: Heard, overflow: Any, **options: Any) -> Any:
    """A subscription whose handler is at message 0, with 1, 2 and 3 waiting, when 4 and 5 come."""
    heard.go.clear()
    subscription = broker.subscribe("posts", heard, queue=3, overflow=overflow, **options)
    broker.publish("posts", "x", 0)
    assert heard.begun.wait(20)
    for n in range(1, 6):
        broker.publish("posts", "x", n)
    return subscription


@pytest.mark.parametrize(("overflow", "left"), [("drop-oldest", [0, 3, 4, 5]), ("drop-newest", [0, 1, 2, 3])])
def test_a_full_queue_drops_by_its_policy_and_tells_of_the_gap(
    cache: Cache, heard: Heard, overflow: str, left: list[int]
) -> None:
    gaps: list[str] = []
    broker = Broker(cache, on_gap=gaps.append)
    subscription = filled(broker, heard, overflow)
    assert wait_until(lambda: subscription.stats()["dropped"] == 2)
    heard.go.set()
    assert heard.has(4)
    assert heard.data == left
    assert gaps == ["posts"]


def test_a_full_queue_may_end_its_subscription(cache: Cache, heard: Heard) -> None:
    told: list[Any] = []
    broker, other = Broker(cache), Heard()
    broker.subscribe("posts", other)
    subscription = filled(
        broker, heard, "close", on_error=lambda e, c, m: told.append((type(e).__name__, c, m))
    )
    assert wait_until(lambda: subscription.closed)
    heard.go.set()
    assert wait_until(lambda: told == [("QueueOverflow", "posts", None)])
    assert other.has(6)
    assert heard.data == [0]
    assert subscription.stats()["dropped"] == 4
    assert wait_until(lambda: broker.stats()["subscriptions"] == 1)


async def test_a_full_queue_of_an_async_handler_drops_as_well(aembedded: Cache) -> None:
    go, got = asyncio.Event(), []

    async def handler(message: Message[Any]) -> None:
        await go.wait()
        got.append(message.data)

    async with Broker(aembedded) as broker:
        subscription = await broker.asubscribe("posts", handler, queue=3)
        await broker.apublish("posts", "x", 0)
        while subscription.stats()["waiting"]:
            await asyncio.sleep(0)
        for n in range(1, 6):
            await broker.apublish("posts", "x", n)
        go.set()
        while len(got) < 4:
            await asyncio.sleep(0)
        assert got == [0, 3, 4, 5]


# ---------------------------------------------------------------------------- when the store is away


class Away(FailingStore):
    """Serves nothing while it is told so."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.store, lambda _: self.failing)
        self.failing = False
        cache.store = self


async def test_a_message_that_the_store_does_not_take_raises_and_is_counted(aembedded: Cache) -> None:
    away, broker = Away(aembedded), Broker(aembedded)
    away.failing = True
    with pytest.raises(StoreUnavailable):
        broker.publish("posts", "x", 1)
    with pytest.raises(StoreUnavailable):
        await broker.apublish("posts", "x", 1)
    assert broker.stats()["unavailable"] == aembedded.stats()["namespaces"]["global"]["unavailable"] == 2
    assert broker.stats()["published"] == 0


# ---------------------------------------------------------------------------- what is logged


def test_trouble_is_logged_once_without_what_was_in_the_message(
    cache: Cache, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    broker = Broker(cache)
    heard.error = ValueError("s3cret")
    broker.subscribe("posts", heard, queue=1)
    inject(cache, broker, "posts", b"s3cret")
    for _ in range(3):
        broker.publish("posts", "x", {"password": "s3cret"})
    assert wait_until(lambda: sum(broker.stats()[n] for n in ("failed", "dropped", "unparsable")) == 4)
    broker.close()
    said = [
        r.getMessage() for r in caplog.records if r.name == "cacheaside" and "handler Heard" in r.getMessage()
    ]
    assert len([s for s in said if "failed (ValueError at " in s]) == 1
    assert len([s for s in said if "a message does not parse (" in s]) <= 1
    assert "s3cret" not in caplog.text


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"channel": ""}, "channel must be a string"),
        ({"channel": b"x"}, "channel must be a string"),
        ({"channel": "\ud800"}, "UTF-8"),
        ({"handler": None}, "handler must be a function"),
        ({"queue": 0}, "queue must be"),
        ({"queue": True}, "queue must be"),
        ({"overflow": "block"}, "overflow must be one of"),
        ({"on_error": 1}, "on_error must be a function"),
        ({"on_gap": "x"}, "on_gap must be a function"),
        ({"type": object()}, "type cannot be"),
    ],
)
def test_bad_input_is_refused_by_name(embedded: Cache, given: dict[str, Any], complaint: str) -> None:
    broker = Broker(embedded)
    options: dict[str, Any] = {"channel": "x", "handler": print, **given}
    with pytest.raises(ConfigError, match=complaint):
        broker.subscribe(**options)
    assert broker.stats()["subscriptions"] == 0


def test_an_async_handler_needs_a_running_loop(embedded: Cache, heard: Heard) -> None:
    with pytest.raises(ConfigError, match="none is running here"):
        Broker(embedded).subscribe("x", heard.later)


def test_an_async_hook_needs_an_async_handler(embedded: Cache, heard: Heard) -> None:
    async def hook(*_: object) -> None: ...

    with pytest.raises(ConfigError, match="on_gap is async and the handler is not"):
        Broker(embedded).subscribe("x", heard, on_gap=hook)


@pytest.mark.parametrize("type", ["", None, 3])
def test_a_message_has_a_type(embedded: Cache, type: Any) -> None:
    with pytest.raises(ConfigError, match="type must be a string"):
        Broker(embedded).publish("x", type, 1)


def test_a_type_that_cannot_be_data_is_refused_when_it_is_declared(embedded: Cache) -> None:
    with pytest.raises(ConfigError, match=r"types\['x'\] cannot be the data"):
        Broker(embedded, types={"x": threading.Lock})


def test_a_store_of_one_s_own_is_refused() -> None:
    class Mine:
        def perform(self, command: Any) -> None: ...

        async def aperform(self, command: Any) -> None: ...

    with pytest.raises(ConfigError, match="needs Redis or the embedded store, not Mine"):
        Broker(Cache(store=Mine()))
