"""One connection for each process, on real servers: it comes back, and says when it was away."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cacheaside import Cache, StoreUnavailable
from cacheaside.testing import Server
from cacheaside.testing.chaos import ChaosProxy
from cacheaside.testing.clusters import ClusterServer
from cacheaside.testing.servers import ReplicaSet, wait_until
from cacheaside.toolkit import Broker, DurableBroker, Message, Subscription, line
from cacheaside.toolkit.board import Board
from tests.broker.conftest import Heard


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that beats and despairs sooner."""
    monkeypatch.setattr(line, "BEAT", 0.1)
    monkeypatch.setattr(line, "SILENCE", 0.5)
    monkeypatch.setattr(line, "SLICE", 0.2)


@pytest.fixture
def cache(redis_url: str) -> Iterator[Cache]:
    with Cache(redis_url, l1_window=None) as made:
        yield made


def calls(server: Server, command: str) -> int:
    """How often a server has been sent a command."""
    with server.client() as client:
        stats: dict[str, Any] = client.info("commandstats")  # type: ignore[assignment]
        return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


def listeners(server: Server) -> list[dict[str, Any]]:
    """The connections that are subscribed to anything."""
    with server.client() as client:
        return [c for c in client.client_list() if int(c["sub"]) or int(c["psub"])]  # type: ignore[union-attr]


def subscribers(server: Server, broker: Broker, channel: str) -> int:
    with server.client() as client:
        ((_, count),) = client.pubsub_numsub(broker._board.head + channel)  # type: ignore[misc]
        return int(count)


def lost(server: Server) -> None:
    """Cut the connection of everybody who listens."""
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")


# ---------------------------------------------------------------------------- one subscription


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_of_redis(redis_url: str, heard: Heard, protocol: int) -> None:
    with Cache(f"{redis_url}?protocol={protocol}", l1_window=None) as cache, Broker(cache) as broker:
        broker.subscribe("posts", heard)
        broker.subscribe("p*", heard, pattern=True)
        broker.publish("posts", "x", 1)
        assert heard.has(2)
        assert broker.connected


def test_two_who_subscribe_at_once_subscribe_once(cache: Cache, server: Server) -> None:
    """In the original, both find no subscription and make one: every message then comes twice."""
    broker, together = Broker(cache), threading.Barrier(8)
    handlers = [Heard() for _ in range(8)]
    broker.subscribe("other", Heard())
    before = calls(server, "subscribe")

    def subscribe(handler: Heard) -> None:
        together.wait()
        broker.subscribe("posts", handler)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(subscribe, handlers))
    assert calls(server, "subscribe") == before + 1
    broker.publish("posts", "x", 1)
    broker.publish("posts", "x", 2)
    assert all(handler.has(2) for handler in handlers)
    assert [handler.data for handler in handlers] == [[1, 2]] * 8


async def test_two_tasks_that_subscribe_at_once_subscribe_once(redis_url: str, server: Server) -> None:
    async with Cache(redis_url, l1_window=None) as cache:
        broker = Broker(cache)
        before = calls(server, "subscribe")
        handlers = [Heard() for _ in range(8)]
        await asyncio.gather(*(broker.asubscribe("posts", handler.later) for handler in handlers))
        assert calls(server, "subscribe") == before + 2  # the channel, and the line's own
        await broker.apublish("posts", "x", 1)
        for handler in handlers:
            assert await asyncio.to_thread(handler.has, 1)
        assert [handler.data for handler in handlers] == [[1]] * 8


def test_all_subscriptions_of_a_process_share_a_connection_and_a_thread(cache: Cache, server: Server) -> None:
    broker = Broker(cache)
    before = len(listeners(server))
    for n in range(20):
        broker.subscribe(f"channel:{n}", Heard())
        broker.subscribe(f"{n}:*", Heard(), pattern=True)
    (mine,) = listeners(server)[before:]
    assert (int(mine["sub"]), int(mine["psub"])) == (21, 20)
    assert [t.name for t in threading.enumerate()].count("cacheaside-broker") == 1


def test_the_last_handler_of_a_channel_ends_its_subscription(cache: Cache, server: Server) -> None:
    broker = Broker(cache)
    first, second = broker.subscribe("posts", Heard()), broker.subscribe("posts", Heard())
    broker.subscribe("others", Heard())
    first.close()
    assert subscribers(server, broker, "posts") == 1
    second.close()
    assert wait_until(lambda: subscribers(server, broker, "posts") == 0, 2.0)
    assert subscribers(server, broker, "others") == 1


def test_subscribing_right_after_unsubscribing_hears_everything(cache: Cache) -> None:
    """The confirmation of the older subscription is none of the newer one."""
    broker = Broker(cache)
    for n in range(50):
        heard = Heard()
        subscription = broker.subscribe("posts", heard)
        broker.publish("posts", "x", n)
        assert heard.has(1)
        subscription.close()


@pytest.mark.parametrize("by", ["broker", "cache"])
def test_closing_leaves_no_connection_and_no_thread(redis_url: str, server: Server, by: str) -> None:
    def connections() -> int:
        with server.client() as client:
            return len(client.client_list())  # type: ignore[arg-type]

    before = connections()
    with Cache(redis_url, l1_window=None) as cache:
        broker = Broker(cache)
        broker.subscribe("posts", Heard())
        broker.publish("posts", "x", 1)
        if by == "broker":
            began = time.monotonic()
            broker.close()
            assert time.monotonic() - began < 1
            assert not listeners(server)
    assert wait_until(lambda: connections() == before)
    assert "cacheaside-broker" not in [t.name for t in threading.enumerate()]


# ---------------------------------------------------------------------------- it comes back


def test_after_a_broken_connection_handlers_hear_again_and_of_the_gap(
    cache: Cache, server: Server, heard: Heard
) -> None:
    """In the original, nothing restores what was subscribed."""
    gaps: list[str] = []
    broker = Broker(cache, on_gap=gaps.append)
    broker.subscribe("posts", heard)
    broker.subscribe("p*", Heard(), pattern=True)
    for n in range(1, 4):
        lost(server)
        assert wait_until(lambda n=n: len(gaps) == 2 * n)
        broker.publish("posts", "x", n)
        assert heard.has(n)
    assert heard.data == [1, 2, 3]
    assert sorted(gaps) == ["p*"] * 3 + ["posts"] * 3


def test_a_new_subscription_knows_of_no_gap(cache: Cache, server: Server) -> None:
    old: list[str] = []
    new: list[str] = []
    broker = Broker(cache)
    broker.subscribe("old", Heard(), on_gap=old.append)
    lost(server)
    assert wait_until(lambda: old == ["old"])
    broker.subscribe("new", Heard(), on_gap=new.append)
    broker.publish("new", "x", 1)
    assert new == []


def test_a_server_that_was_restarted_is_subscribed_again(heard: Heard) -> None:
    gaps: list[str] = []
    with (
        Server() as server,
        Cache(server.url, l1_window=None) as cache,
        Broker(cache, on_gap=gaps.append) as broker,
    ):
        broker.subscribe("posts", heard)
        server.kill()
        assert wait_until(lambda: not broker.connected)
        server.start()
        assert wait_until(lambda: gaps == ["posts"])
        broker.publish("posts", "x", 1)
        assert heard.has(1)


@pytest.mark.usefixtures("impatient")
def test_a_line_that_has_gone_silent_is_given_up(server: Server, redis_url: str, heard: Heard) -> None:
    """Nothing says that a black hole is there, but that nothing comes back from it."""
    gaps: list[str] = []
    with ChaosProxy("127.0.0.1", server.port) as proxy:
        url = f"{proxy.url}?timeout=0.2&connect_timeout=0.2"
        with Cache(url, l1_window=None) as cache, Broker(cache, on_gap=gaps.append) as broker:
            broker.subscribe("posts", heard)
            proxy.black_hole()
            assert wait_until(lambda: not broker.connected)
            assert gaps == []
            proxy.heal()
            assert wait_until(lambda: gaps == ["posts"])
            broker.publish("posts", "x", 1)
            assert heard.has(1)


@pytest.mark.usefixtures("impatient")
def test_a_quiet_line_is_kept(cache: Cache, server: Server) -> None:
    gaps: list[str] = []
    broker = Broker(cache, on_gap=gaps.append)
    broker.subscribe("posts", Heard())
    (before,) = listeners(server)
    beats = calls(server, "publish")
    assert wait_until(lambda: calls(server, "publish") >= beats + 8)  # longer than the silence
    assert [c["id"] for c in listeners(server)] == [before["id"]]
    assert gaps == []


def test_a_large_message_in_small_pieces_is_no_gap(server: Server, redis_url: str, heard: Heard) -> None:
    gaps: list[str] = []
    with ChaosProxy("127.0.0.1", server.port) as proxy, Cache(proxy.url, l1_window=None) as cache:
        broker = Broker(cache, on_gap=gaps.append)
        broker.subscribe("posts", heard)
        proxy.chop(4096, 0.002, role="channel", direction="replies")
        broker.publish("posts", "x", "y" * 500_000)
        broker.publish("posts", "x", "small")
        assert heard.has(2)
        assert [len(d) for d in heard.data] == [500_000, 5]
        assert gaps == []


# ---------------------------------------------------------------------------- when it cannot be had


def test_without_a_server_subscribing_says_so_and_leaves_nothing() -> None:
    with Server() as server:
        url = server.url
    with Cache(f"{url}?timeout=0.2&connect_timeout=0.2", l1_window=None) as cache, Broker(cache) as broker:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="not confirmed: ConnectionError"):
            broker.subscribe("posts", Heard())
        assert time.monotonic() - began < 3
        assert broker.stats()["subscriptions"] == 0
        assert not broker.connected


def test_a_channel_that_the_server_refuses_disturbs_no_other(heard: Heard) -> None:
    gaps: list[str] = []
    with Server() as server:
        with server.client() as client:
            client.execute_command(
                "ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "resetchannels",
                "&cacheaside:broker:posts", "&cacheaside:broker-beat:*",
            )  # fmt: skip
        url = server.url.replace("redis://", "redis://app:pw@")
        with Cache(url, l1_window=None) as cache, Broker(cache, on_gap=gaps.append) as broker:
            broker.subscribe("posts", heard)
            with pytest.raises(StoreUnavailable, match=r"(?i)no permissions") as refused:
                broker.subscribe("secrets", Heard())
            assert "pw" not in str(refused.value)
            broker.publish("posts", "x", 1)
            assert heard.has(1)
            assert gaps == []


async def test_a_subscribing_task_that_is_cancelled_leaves_nothing(redis_url: str) -> None:
    async with Cache(redis_url, l1_window=None) as cache:
        broker = Broker(cache)
        for ticks in range(12):
            task = asyncio.ensure_future(broker.asubscribe("posts", Heard().later))
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            # On 3.11, redis-py sometimes swallows a cancellation.
            (answer,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(answer, Subscription):
                await answer.aclose()
            else:
                assert isinstance(answer, asyncio.CancelledError)
            assert broker.stats()["subscriptions"] == 0


# ---------------------------------------------------------------------------- loops that end


def test_handlers_of_a_loop_that_has_ended_end_with_it(cache: Cache, server: Server) -> None:
    broker = Broker(cache)

    async def main() -> Any:
        async def stuck(message: Message[Any]) -> None:
            await asyncio.sleep(60)

        subscription = await broker.asubscribe("posts", stuck)
        await broker.apublish("posts", "x", 1)
        while not subscription.stats()["received"]:
            await asyncio.sleep(0.001)
        await cache.store.aclose()  # type: ignore[attr-defined]
        return subscription

    subscription = asyncio.run(main())
    broker.publish("posts", "x", 2)
    assert wait_until(lambda: subscription.closed)
    assert wait_until(lambda: broker.stats()["subscriptions"] == 0)
    assert wait_until(lambda: subscribers(server, broker, "posts") == 0)


async def test_closing_leaves_no_task(redis_url: str) -> None:
    before = len(asyncio.all_tasks())
    async with Cache(redis_url, l1_window=None) as cache:
        broker, stuck = Broker(cache), asyncio.Event()

        async def slow(message: Message[Any]) -> None:
            stuck.set()
            await asyncio.sleep(0.05)

        await broker.asubscribe("posts", slow)
        for _ in range(3):
            await broker.apublish("posts", "x", 1)
        await asyncio.wait_for(stuck.wait(), 20)
    assert len(asyncio.all_tasks()) == before


# ---------------------------------------------------------------------------- forks


def run(script: str, url: str) -> str:
    """What a script prints in an interpreter of its own: forking this one is no business of a test."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_has_a_line_of_its_own(redis_url: str) -> None:
    """Handlers in threads go on in both; each hears every message once."""
    said = run(
        """
        import os, sys, threading, time
        from cacheaside import Cache
        from cacheaside.toolkit import Broker

        cache = Cache(sys.argv[1], l1_window=None)
        broker = Broker(cache)
        got = []
        broker.subscribe("posts", lambda message: got.append(message.data))
        r, w = os.pipe()

        def until(condition):
            end = time.monotonic() + 10
            while not condition():
                assert time.monotonic() < end, got
                time.sleep(0.005)

        child = os.fork()
        if child == 0:
            until(lambda: broker.connected)
            more = []
            broker.subscribe("more", lambda message: more.append(message.data))
            os.write(w, b"ready")
            until(lambda: got == ["both"])
            broker.publish("more", "x", "child")
            until(lambda: more == ["child"])
            broker.close()
            assert not [t for t in threading.enumerate() if t.name == "cacheaside-broker"]
            os._exit(0)
        os.read(r, 5)
        broker.publish("posts", "x", "both")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        broker.publish("posts", "x", "parent")
        until(lambda: got == ["both", "parent"])
        cache.close()
        print("fine")
        """,
        redis_url,
    )
    assert said == "fine\n"


# ---------------------------------------------------------------------------- clusters and sentinels


def heard_everywhere(url: str, heard: Heard, channels: int = 20) -> None:
    with (
        Cache(url, l1_window=None) as here,
        Cache(url, l1_window=None) as there,
        Broker(here) as listening,
        Broker(there) as speaking,
    ):
        for n in range(channels):
            listening.subscribe(f"channel:{n}", heard)
        listening.subscribe("channel:*", heard, pattern=True)
        for n in range(channels):
            speaking.publish(f"channel:{n}", "x", n)
        assert heard.has(2 * channels)
        assert sorted(heard.data) == sorted(2 * list(range(channels)))


def test_a_cluster_is_heard_as_a_whole(heard: Heard) -> None:
    """Channels of any slot, on one connection to one node."""
    with ClusterServer() as cluster:
        heard_everywhere(cluster.url, heard)


def test_after_a_failover_the_new_primary_is_heard(heard: Heard) -> None:
    gaps: list[str] = []
    worked = Heard()
    with (
        ReplicaSet() as group,
        Cache(group.url, l1_window=None) as cache,
        Broker(cache, on_gap=gaps.append) as broker,
        DurableBroker(cache, group="g", claim_after=0.2) as durable,
    ):
        durable.subscribe("orders", worked)
        durable.publish("orders", "x", 1)
        assert worked.has(1)
        broker.subscribe("posts", heard)
        broker.publish("posts", "x", 1)
        assert heard.has(1)
        group.primary.kill()
        assert wait_until(lambda: bool(gaps), 20.0)

        def published() -> bool:
            try:
                broker.publish("posts", "x", 2)
                durable.publish("orders", "x", 2)
            except StoreUnavailable:
                return False
            return True

        assert wait_until(published, 20.0)
        assert heard.has(2)
        assert wait_until(lambda: bool(worked.data[1:]) and worked.data[-1] == 2, 20.0)


# ---------------------------------------------------------------------------- questions and answers


class Asked:
    """A pub/sub connection that notes what it is asked, and answers what a test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.answers: list[dict[str, Any]] = []

    def subscribe(self, raw: bytes) -> None:
        self.asked.append(("subscribe", raw))

    def unsubscribe(self, raw: bytes) -> None:
        self.asked.append(("unsubscribe", raw))

    def get_message(self, timeout: float) -> dict[str, Any] | None:
        return self.answers.pop(0) if self.answers else None

    def answer(self, talk: line.Talk, *kinds: str) -> None:
        self.answers = [{"type": kind, "channel": b"", "data": 1} for kind in kinds]
        while talk.hear():
            pass


def test_the_answer_to_an_older_question_is_none_to_the_newest(embedded: Cache) -> None:
    """Subscribed, given up and subscribed again: it is not subscribed before all three are answered."""
    board, pubsub = Board(""), Asked()
    talk = line.Talk(pubsub, board, "private")
    first = Broker(embedded)._make("x", print, None, False, 1, "close", None, None)
    topic, _ = board.add(first)
    talk.adjust()
    board.remove(first)
    talk.adjust()
    topic, _ = board.add(first)
    talk.adjust()
    assert [kind for kind, _ in pubsub.asked] == ["subscribe", "subscribe", "unsubscribe", "subscribe"]
    pubsub.answer(talk, "subscribe", "subscribe")
    assert talk.up
    assert not topic.ready.done()
    pubsub.answer(talk, "unsubscribe", "subscribe")
    assert topic.ready.result(0) == ""


def test_an_answer_to_no_question_is_a_gap() -> None:
    """redis-py connects and subscribes again by itself, and does not say so."""
    board, pubsub = Board(""), Asked()
    talk = line.Talk(pubsub, board, "private")
    pubsub.answer(talk, "subscribe")
    with pytest.raises(ConnectionError, match="there was a gap"):
        pubsub.answer(talk, "subscribe")
