"""Messages on streams: handled at least once by each group, whoever dies; dead letters for the rest."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from cacheaside import Cache, CodecError, ConfigError, StoreUnavailable
from cacheaside.engine.commands import Run
from cacheaside.testing import Server
from cacheaside.testing.chaos import ChaosProxy, FailingStore
from cacheaside.testing.clusters import ClusterServer
from cacheaside.testing.servers import wait_until
from cacheaside.toolkit import DurableBroker, Message, streams
from tests.broker.conftest import Heard
from tests.broker.test_traces import Spans, id_of, parent, spans  # noqa: F401


class Paid(msgspec.Struct, frozen=True):
    id: int
    at: datetime


PAID = Paid(1, datetime(2026, 11, 25, tzinfo=UTC))
QUICK: dict[str, Any] = {"claim_after": 0.2, "retry_after": 0.05}


def durable(cache: Cache, group: str = "mail", **options: Any) -> DurableBroker:
    return DurableBroker(cache, group=group, **{**QUICK, **options})


def pending(cache: Cache, broker: DurableBroker, stream: str = "orders") -> int:
    """How many messages are given out and not acknowledged."""
    log = broker._log(stream)
    if broker._connect is None:
        from cacheaside.toolkit import local_streams

        return len(local_streams.at(cache.store, log.key).groups[log.group].pending)
    with broker._connect() as client:
        return int(client.xpending(log.key, log.group)["pending"])


# ---------------------------------------------------------------------------- what arrives


def test_a_message_is_handled_and_acknowledged(cache: Cache, heard: Heard) -> None:
    broker = durable(cache, types={"order.paid": Paid})
    broker.subscribe("orders", heard)
    id = broker.publish("orders", "order.paid", PAID)
    assert heard.has(1)
    (message,) = heard.messages
    assert (message.type, message.data, message.id) == ("order.paid", PAID, id)
    assert (message.channel, message.tries) == ("orders", 1)
    assert wait_until(lambda: pending(cache, broker) == 0)
    assert broker.stats()["handled"] == 1


async def test_async_handlers_and_twins(acache: Cache) -> None:
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(message: Message[Paid]) -> None:
        await asyncio.sleep(0)
        await got.put((message.data, asyncio.get_running_loop()))

    async with durable(acache) as broker:
        subscription = await broker.asubscribe("orders", handler, type=Paid)
        await broker.apublish("orders", "order.paid", PAID)
        assert await asyncio.wait_for(got.get(), 20) == (PAID, asyncio.get_running_loop())
        await subscription.aclose()
        assert subscription.closed
        assert await broker.adead("orders") == []
        assert await broker.arequeue("orders") == 0
        assert await broker.adiscard("orders", "1-0") == 0


def test_messages_come_in_the_order_of_publication(cache: Cache, heard: Heard) -> None:
    broker = durable(cache)
    broker.subscribe("orders", heard)
    for n in range(100):
        broker.publish("orders", "x", n)
    assert heard.has(100)
    assert heard.data == list(range(100))


def test_what_was_published_before_anybody_listened_is_handled(cache: Cache, heard: Heard) -> None:
    broker = durable(cache)
    broker.publish("orders", "x", 1)
    broker.subscribe("orders", heard)
    assert heard.has(1)


def test_a_new_group_may_begin_with_the_next_message(cache: Cache, heard: Heard) -> None:
    broker = durable(cache, start="newest")
    broker.publish("orders", "x", 1)
    broker.subscribe("orders", heard)
    broker.publish("orders", "x", 2)
    assert heard.has(1)
    assert heard.data == [2]


def test_what_is_published_while_nobody_listens_waits(cache: Cache, heard: Heard) -> None:
    """In the original, and with a ``Broker``, it is gone."""
    broker = durable(cache)
    broker.subscribe("orders", heard).close()
    broker.publish("orders", "x", 1)
    broker.subscribe("orders", heard)
    assert heard.has(1)


def test_every_group_gets_every_message_and_its_consumers_share_them(cache: Cache) -> None:
    mail, bill = durable(cache), durable(cache, "bill")
    first, second, third = Heard(), Heard(), Heard()
    mail.subscribe("orders", first)
    mail.subscribe("orders", second)
    bill.subscribe("orders", third)
    for n in range(40):
        mail.publish("orders", "x", n)
    assert third.has(40)
    assert wait_until(lambda: len(first.messages) + len(second.messages) == 40)
    assert sorted(first.data + second.data) == third.data == list(range(40))


@pytest.mark.parametrize("name", ["a:b", "{x}y", "a b\r\n", "ü☃", "x" * 5000])
def test_any_text_is_a_stream_and_a_group(cache: Cache, heard: Heard, name: str) -> None:
    broker = durable(cache, name)
    broker.subscribe(name, heard)
    broker.publish(name, "x", 1)
    assert heard.has(1)
    assert heard.messages[0].channel == name


# ---------------------------------------------------------------------------- tries


def test_a_handler_that_raises_gets_the_message_again(cache: Cache, heard: Heard) -> None:
    told: list[Any] = []
    broker = durable(cache, on_error=lambda e, s, m: told.append((str(e), s, m.tries if m else None)))
    heard.error = ValueError("no")
    broker.subscribe("orders", heard)
    broker.publish("orders", "x", 1)
    assert heard.has(2)
    heard.error = None
    assert heard.has(3)
    assert wait_until(lambda: pending(cache, broker) == 0)
    assert [m.tries for m in heard.messages] == [1, 2, 3]
    assert len({m.id for m in heard.messages}) == 1
    assert told == [("no", "orders", 1), ("no", "orders", 2)]
    assert broker.dead("orders") == []


def test_others_do_not_wait_for_a_message_that_fails(cache: Cache) -> None:
    broker, got = durable(cache, claim_after=30, retry_after=30), []

    def handler(message: Message[int]) -> None:
        got.append(message.data)
        if message.data == 0:
            raise ValueError

    broker.subscribe("orders", handler)
    for n in range(5):
        broker.publish("orders", "x", n)
    assert wait_until(lambda: got == [0, 1, 2, 3, 4])


@pytest.mark.parametrize("failure", [ValueError("s3cret"), SystemExit(1)])
def test_after_the_last_try_it_is_a_dead_letter(cache: Cache, heard: Heard, failure: BaseException) -> None:
    broker = durable(cache, tries=2, consumer="worker")
    heard.error = failure
    broker.subscribe("orders", heard)
    id = broker.publish("orders", "order.paid", {"id": 1})
    assert wait_until(lambda: bool(broker.dead("orders")))
    (letter,) = broker.dead("orders")
    assert letter.message is not None
    assert (letter.message.id, letter.message.type, letter.message.data) == (id, "order.paid", {"id": 1})
    assert (letter.tries, letter.consumer) == (2, "worker")
    assert letter.error.startswith(type(failure).__name__)
    assert "s3cret" not in letter.error
    assert len(heard.messages) == 2
    assert wait_until(lambda: broker.stats()["dead"] == 1)
    assert pending(cache, broker) == 0


def test_a_dead_letter_can_be_handled_again_by_its_group_alone(cache: Cache) -> None:
    mail, bill = durable(cache, tries=1), durable(cache, "bill")
    handler, other = Heard(), Heard()
    handler.error = ValueError("no")
    mail.subscribe("orders", handler)
    bill.subscribe("orders", other)
    for n in range(3):
        mail.publish("orders", "x", n)
    assert wait_until(lambda: len(mail.dead("orders")) == 3)
    handler.error = None
    (first, second, _) = mail.dead("orders")
    assert mail.requeue("orders", first.id) == 1
    assert handler.has(4)
    assert mail.discard("orders", second.id) == 1
    assert mail.requeue("orders", first.id, second.id) == 0
    assert mail.requeue("orders") == 1
    assert handler.has(5)
    assert handler.data == [0, 1, 2, 0, 2]
    assert mail.dead("orders") == []
    mail.publish("orders", "x", "last")
    assert other.has(4)
    assert other.data == [0, 1, 2, "last"]
    assert wait_until(lambda: pending(cache, bill) == 0)


def test_dead_letters_are_read_page_by_page(cache: Cache, heard: Heard) -> None:
    broker = durable(cache, tries=1)
    heard.error = ValueError("no")
    broker.subscribe("orders", heard)
    for n in range(5):
        broker.publish("orders", "x", n)
    assert wait_until(lambda: len(broker.dead("orders")) == 5)
    pages, after = [], ""
    while page := broker.dead("orders", after=after, count=2):
        pages.append([letter.message.data for letter in page if letter.message])
        after = page[-1].id
    assert pages == [[0, 1], [2, 3], [4]]


def test_what_cannot_be_read_is_tried_again_and_then_dead(cache: Cache, heard: Heard) -> None:
    """A consumer of the next version may be able to read it."""
    told: list[Any] = []
    broker = durable(cache, tries=2, on_error=lambda e, s, m: told.append((s, m)))
    broker.subscribe("orders", heard)
    cache.store.perform(Run(streams.ADD, (broker._log("orders").key,), (100, b"\xc1junk", "")))
    assert wait_until(lambda: bool(broker.dead("orders")))
    (letter,) = broker.dead("orders")
    assert letter.message is None
    assert told == [("orders", None)] * 2
    assert broker.stats()["unparsable"] == 2
    broker.publish("orders", "x", 1)
    assert heard.has(1)


# ---------------------------------------------------------------------------- the dead and the slow


def test_what_a_dead_consumer_left_is_taken_over(cache: Cache, heard: Heard) -> None:
    broker = durable(cache)
    log = broker._log("orders")
    cache.run(log.open("0"))
    broker.publish("orders", "x", 1)
    reader = broker._make("orders", heard, None, None, None)._reader()
    assert len(reader.read(log, "the dead", 10, 0.1)) == 1
    reader.close()
    subscription = broker.subscribe("orders", heard)
    assert heard.has(1)
    assert heard.messages[0].tries == 2
    assert subscription.stats()["claimed"] == 1


def test_a_message_that_kills_its_consumers_is_a_dead_letter(cache: Cache, heard: Heard) -> None:
    """It is not handled once more than it may be, though nobody ever says that it failed."""
    broker = durable(cache, tries=2, claim_after=0.05)
    log = broker._log("orders")
    cache.run(log.open("0"))
    broker.publish("orders", "x", 1)
    reader = broker._make("orders", heard, None, None, None)._reader()
    assert len(reader.read(log, "first", 10, 0.1)) == 1
    reader.close()
    claimed: list[Any] = []
    assert (
        wait_until(
            lambda: bool(claimed or claimed.extend(cache.run(log.claim("second", 0.05, "", 10, 2)).entries))
        )
        or claimed
    )
    broker.subscribe("orders", heard)
    assert wait_until(lambda: bool(broker.dead("orders")))
    (letter,) = broker.dead("orders")
    assert (letter.tries, letter.consumer, letter.error) == (2, "", "its consumer died")
    assert heard.messages == []


def test_a_slow_handler_is_not_robbed(cache: Cache, heard: Heard) -> None:
    """Its message and those that wait behind it are kept for as long as it takes."""
    slow, other = durable(cache, claim_after=1.5), Heard()
    heard.go.clear()
    for n in range(3):
        slow.publish("orders", "x", n)
    slow.subscribe("orders", heard)
    assert heard.begun.wait(20)
    robber = durable(cache, claim_after=1.5)
    robber.subscribe("orders", other)
    time.sleep(3.0)
    assert robber.stats()["claimed"] == 0
    heard.go.set()
    assert heard.has(3)
    assert [m.tries for m in heard.messages] == [1, 1, 1]
    assert other.messages == []


def test_closing_gives_back_what_is_not_begun_untried(cache: Cache, heard: Heard) -> None:
    broker, other = durable(cache, claim_after=30, retry_after=30), Heard()
    heard.go.clear()
    for n in range(5):
        broker.publish("orders", "x", n)
    subscription = broker.subscribe("orders", heard)
    assert heard.begun.wait(20)
    closing = threading.Thread(target=subscription.close)
    closing.start()
    assert wait_until(lambda: subscription.closed)
    heard.go.set()
    closing.join(20)
    assert heard.data == [0]
    broker.subscribe("orders", other)
    assert other.has(4)
    assert sorted(other.data) == [1, 2, 3, 4]
    assert [m.tries for m in other.messages] == [1, 1, 1, 1]
    assert wait_until(lambda: pending(cache, broker) == 0)


def test_a_handler_may_close_its_own_subscription(cache: Cache) -> None:
    broker, done = durable(cache), threading.Event()

    def once(message: Message[Any]) -> None:
        subscription.close()
        done.set()

    subscription = broker.subscribe("orders", once)
    broker.publish("orders", "x", 1)
    assert done.wait(3)
    assert wait_until(lambda: pending(cache, broker) == 0)


async def test_an_async_handler_may_close_its_own_subscription(acache: Cache) -> None:
    done = asyncio.Event()

    async def once(message: Message[Any]) -> None:
        await subscription.aclose()
        done.set()

    async with durable(acache) as broker:
        subscription = await broker.asubscribe("orders", once)
        await broker.apublish("orders", "x", 1)
        await asyncio.wait_for(done.wait(), 3)


def test_handlers_of_a_loop_that_has_ended_leave_their_message_to_others(cache: Cache, heard: Heard) -> None:
    broker = durable(cache)

    async def main() -> Any:
        begun = asyncio.Event()

        async def stuck(message: Message[Any]) -> None:
            begun.set()
            await asyncio.sleep(60)

        subscription = await broker.asubscribe("orders", stuck)
        await broker.apublish("orders", "x", 1)
        await asyncio.wait_for(begun.wait(), 20)
        aclose = getattr(cache.store, "aclose", None)
        if broker._connect is not None and aclose is not None:
            await aclose()
        return subscription

    subscription = asyncio.run(main())
    broker.subscribe("orders", heard)
    assert heard.has(1)
    assert heard.data == [1]
    broker.publish("orders", "x", 2)
    assert heard.has(2)
    assert wait_until(lambda: subscription.closed)


# ---------------------------------------------------------------------------- bounds


def test_a_stream_is_bounded_and_what_that_cost_is_told(cache: Cache, heard: Heard) -> None:
    gaps: list[str] = []
    broker = durable(cache, max_length=10, on_gap=gaps.append)
    cache.run(broker._log("orders").open("0"))
    for n in range(500):
        broker.publish("orders", "x", n)
    dropped = broker.stats()["dropped"]
    assert dropped > 200
    broker.subscribe("orders", heard)
    assert heard.has(500 - dropped)
    assert heard.data == list(range(dropped, 500))
    assert gaps[0] == "orders"


@pytest.mark.parametrize(("start", "owed"), [("oldest", 500), ("newest", 450)])
def test_what_was_there_before_the_group_counts_if_it_was_to_be_handled(
    cache: Cache, heard: Heard, start: str, owed: int
) -> None:
    broker = durable(cache, "late", max_length=60, start=start)
    for n in range(50):
        broker.publish("orders", "x", n)
    cache.run(broker._log("orders").open(broker._policy.start))
    for n in range(450):
        broker.publish("orders", "x", n)
    broker.subscribe("orders", heard)
    assert heard.has(owed - broker.stats()["dropped"])
    assert broker.stats()["dropped"] > 200
    broker.publish("orders", "last", None)
    assert wait_until(lambda: heard.messages[-1].type == "last")
    assert len(heard.messages) + broker.stats()["dropped"] == owed + 1


def test_what_is_handled_may_be_trimmed_without_a_word(cache: Cache, heard: Heard) -> None:
    gaps: list[str] = []
    broker = durable(cache, max_length=200, on_gap=gaps.append)
    broker.subscribe("orders", heard)
    for n in range(500):
        broker.publish("orders", "x", n)
        if n % 100 == 0:
            assert heard.has(n)
    assert heard.has(500)
    assert broker.stats()["dropped"] == 0
    assert gaps == []


# ---------------------------------------------------------------------------- when the server is away


class Away(FailingStore):
    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.store, lambda _: self.failing)
        self.failing = False
        cache.store = self


def test_while_the_store_is_away_publishing_raises_and_handling_goes_on_later(
    embedded: Cache, heard: Heard
) -> None:
    away, broker = Away(embedded), durable(embedded)
    broker.subscribe("orders", heard)
    away.failing = True
    with pytest.raises(StoreUnavailable):
        broker.publish("orders", "x", 1)
    with pytest.raises(StoreUnavailable):
        broker.subscribe("orders", heard)
    assert broker.stats()["unavailable"] == 1
    away.failing = False
    broker.publish("orders", "x", 2)
    assert heard.has(1)
    assert heard.data == [2]


def test_a_message_whose_acknowledgement_was_lost_is_not_handled_again_here(embedded: Cache) -> None:
    away, broker = Away(embedded), durable(embedded, claim_after=0.1)
    got: list[Any] = []

    def handler(message: Message[Any]) -> None:
        got.append(message.data)
        away.failing = message.data == 1

    broker.subscribe("orders", handler)
    broker.publish("orders", "x", 1)
    assert wait_until(lambda: away.failing)
    time.sleep(0.15)
    away.failing = False
    assert wait_until(
        lambda: pending(Cache("embedded://"), broker) == 0 if False else broker.stats()["claimed"] == 1
    )
    broker.publish("orders", "x", 2)
    assert wait_until(lambda: got == [1, 2])


def test_a_server_that_has_forgotten_the_group_is_told_again(
    redis_url: str, server: Server, heard: Heard
) -> None:
    gaps: list[str] = []
    with Cache(redis_url) as cache:
        broker = durable(cache, on_gap=gaps.append)
        broker.subscribe("orders", heard)
        broker.publish("orders", "x", 1)
        assert heard.has(1)
        with server.client() as client:
            client.flushall()
        assert wait_until(lambda: gaps == ["orders"])
        broker.publish("orders", "x", 2)
        assert heard.has(2)


def test_a_connection_that_breaks_is_made_again(server: Server, redis_url: str, heard: Heard) -> None:
    with ChaosProxy("127.0.0.1", server.port) as proxy, Cache(proxy.url + "?timeout=0.3") as cache:
        broker = durable(cache)
        broker.subscribe("orders", heard)
        for n in range(1, 4):
            proxy.drop()
            with Cache(redis_url) as other:
                durable(other).publish("orders", "x", n)
            assert heard.has(n)
        assert heard.data == [1, 2, 3]


def test_waiting_for_messages_outlasts_the_timeout_of_commands(redis_url: str, heard: Heard) -> None:
    """redis-py gives up a read that takes longer than the socket's timeout."""
    with Cache(f"{redis_url}?timeout=0.1") as cache:
        broker = durable(cache, claim_after=30, retry_after=30)
        subscription = broker.subscribe("orders", heard)
        time.sleep(1.2)
        assert subscription._consumer.thread.trouble == ""
        broker.publish("orders", "x", 1)
        assert heard.has(1)


def test_in_a_cluster_every_stream_is_where_its_slot_is(heard: Heard) -> None:
    with ClusterServer() as cluster, Cache(cluster.url) as cache, durable(cache, tries=1) as broker:
        failing = Heard()
        failing.error = ValueError("no")
        for n in range(8):
            broker.subscribe(f"stream:{n}", heard)
            broker.publish(f"stream:{n}", "x", n)
        broker.subscribe("bad", failing)
        broker.publish("bad", "x", 1)
        assert heard.has(8)
        assert sorted(heard.data) == list(range(8))
        assert wait_until(lambda: len(broker.dead("bad")) == 1)
        assert broker.requeue("bad") == 1


# ---------------------------------------------------------------------------- what is left


def consumers(server: Server, broker: DurableBroker, stream: str = "orders") -> list[str]:
    log = broker._log(stream)
    with server.client() as client:
        return [c["name"].decode() for c in client.xinfo_consumers(log.key, log.group)]  # type: ignore[union-attr]


@pytest.mark.parametrize("by", ["broker", "cache"])
def test_closing_leaves_no_connection_no_thread_and_no_consumer(
    redis_url: str, server: Server, heard: Heard, by: str
) -> None:
    def connections() -> int:
        with server.client() as client:
            return len(client.client_list())  # type: ignore[arg-type]

    before = connections()
    with Cache(redis_url) as cache:
        broker = durable(cache)
        broker.subscribe("orders", heard)
        broker.publish("orders", "x", 1)
        assert heard.has(1)
        assert len(consumers(server, broker)) == 1
        if by == "broker":
            began = time.monotonic()
            broker.close()
            assert time.monotonic() - began < 2
    assert consumers(server, broker) == []
    assert wait_until(lambda: connections() == before)


def test_silent_consumers_are_forgotten_unless_something_waits_for_them(
    redis_url: str, server: Server, heard: Heard
) -> None:
    with Cache(redis_url) as cache:
        broker = durable(cache, claim_after=0.02)
        log = broker._log("orders")
        cache.run(log.open("0"))
        for _ in range(2):
            broker.publish("orders", "x", 1)
        reader = broker._make("orders", heard, None, None, None)._reader()
        assert len(reader.read(log, "holding", 1, 0.1)) == 1
        (entry,) = reader.read(log, "silent", 1, 0.1)
        cache.run(log.ack(entry.id))
        reader.close()
        time.sleep(0.3)
        cache.run(log.leave("nobody", 0.2))
        assert consumers(server, broker) == ["holding"]


def test_a_forked_child_is_another_consumer(redis_url: str) -> None:
    script = """
        import os, sys, time
        from cacheaside import Cache
        from cacheaside.toolkit import DurableBroker

        cache = Cache(sys.argv[1])
        broker = DurableBroker(cache, group="g", consumer="parent")
        got = []
        subscription = broker.subscribe("orders", lambda message: got.append(message.data))
        r, w = os.pipe()
        back, ready = os.pipe()

        def until(condition):
            end = time.monotonic() + 10
            while not condition():
                assert time.monotonic() < end
                time.sleep(0.005)

        child = os.fork()
        if child == 0:
            assert subscription.consumer != "parent"
            os.write(ready, b"x")
            until(lambda: got)
            broker.close()
            os.write(w, b"%d;" % len(got))
            os._exit(0)
        os.read(back, 1)
        published = 0
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            broker.publish("orders", "x", published)
            published += 1
            time.sleep(0.001)
        theirs = int(os.read(r, 99).split(b";")[0])
        until(lambda: len(got) + theirs >= published)
        cache.close()
        assert len(got) + theirs == published
        assert got
        print("fine")
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), redis_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


# ---------------------------------------------------------------------------- traces


def test_the_trace_goes_through_the_stream_each_time_it_is_tried(
    cache: Cache,
    heard: Heard,
    spans: Spans,  # noqa: F811
) -> None:
    broker = durable(cache)
    heard.error = ValueError("s3cret")
    broker.subscribe("orders", heard)
    broker.publish("orders", "order.paid", "s3cret")
    assert heard.has(2)
    publish = spans.one("cacheaside.publish")
    assert wait_until(lambda: len(spans.named("cacheaside.handle")) >= 2)
    for handle in spans.named("cacheaside.handle"):
        assert parent(handle) == id_of(publish)
        assert "s3cret" not in handle.to_json()


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"group": ""}, "group must be a string"),
        ({"group": None}, "group must be a string"),
        ({"consumer": ""}, "consumer must be a string"),
        ({"start": "now"}, 'start must be "oldest" or "newest"'),
        ({"tries": 0}, "tries must be"),
        ({"max_length": True}, "max_length must be"),
        ({"claim_after": 0}, "claim_after must be"),
        ({"retry_after": -1}, "retry_after must be"),
    ],
)
def test_bad_settings_are_refused_by_name(embedded: Cache, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        DurableBroker(embedded, **{"group": "g", **given})


@pytest.fixture
def broker(embedded: Cache) -> Iterator[DurableBroker]:
    with DurableBroker(embedded, group="g", consumer="one", types={"paid": Paid}) as made:
        yield made


def test_bad_calls_are_refused_by_name(broker: DurableBroker, heard: Heard) -> None:
    with pytest.raises(ConfigError, match="stream must be a string"):
        broker.publish("", "x", 1)
    with pytest.raises(ConfigError, match="type must be a string"):
        broker.publish("x", "", 1)
    with pytest.raises(CodecError, match="cannot make the trip"):
        broker.publish("x", "paid", 1)
    with pytest.raises(ConfigError, match="none is running here"):
        broker.subscribe("x", heard.later)
    with pytest.raises(ConfigError, match="handler must be a function"):
        broker.subscribe("x", None)  # type: ignore[call-overload]
    broker.subscribe("x", heard)
    broker.subscribe("y", heard)
    with pytest.raises(ConfigError, match="'one' is a consumer of 'x' already"):
        broker.subscribe("x", heard)
