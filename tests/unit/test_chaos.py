"""The chaos kit does what it says: measured through raw sockets, and at stores of its own."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from cacheaside import Cache
from cacheaside.engine.commands import (
    Announce,
    Begin,
    Claim,
    Commit,
    Confirm,
    Fetch,
    Fill,
    Forget,
    Invalidate,
    Lock,
    Members,
    Place,
    Release,
    Renew,
    Run,
    Scan,
    Sizes,
    Sweep,
)
from cacheaside.errors import StoreUnavailable
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import ChaosProxy, DelayingStore, EvictingStore, FailingStore, keys_of
from cacheaside.testing.servers import free_port

# ---------------------------------------------------------------------------- the proxy


class Echo:
    """A server that sends back what it is sent, and notes it."""

    def __init__(self) -> None:
        self.heard = b""
        self.ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    self.heard += data
                    client.sendall(data)
            except OSError:
                pass
        self.ended.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[ChaosProxy]:
    with ChaosProxy("127.0.0.1", echo.port) as made:
        yield made


def connected(proxy: ChaosProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5)


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = client.recv(count - len(data))
        assert more, f"the connection ended after {data!r}"
        data += more
    return data


def to_the_end(client: socket.socket) -> tuple[bytes, str]:
    """All that still comes, and how it ended."""
    data = b""
    try:
        while more := client.recv(65536):
            data += more
    except ConnectionResetError:
        return data, "reset"
    return data, "closed"


def silent(client: socket.socket) -> bool:
    """Whether nothing comes for a while."""
    client.settimeout(0.1)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def test_without_faults_bytes_and_ends_pass_both_ways(proxy: ChaosProxy, echo: Echo) -> None:
    sent = random.Random(1).randbytes(300_000)
    with connected(proxy) as client:
        writer = threading.Thread(target=client.sendall, args=(sent,))
        writer.start()
        assert read(client, len(sent)) == sent
        writer.join()
        assert proxy.bytes == {"requests": len(sent), "replies": len(sent)}
        assert (proxy.connections, proxy.open()) == (1, 1)
        client.shutdown(socket.SHUT_WR)
        assert to_the_end(client) == (b"", "closed")
    assert echo.ended.wait(5)
    assert echo.heard == sent


def test_latency_delays_each_direction_and_jitter_adds_to_it(proxy: ChaosProxy) -> None:
    def round_trip(client: socket.socket) -> float:
        began = time.monotonic()
        client.sendall(b"ping")
        read(client, 4)
        return time.monotonic() - began

    with connected(proxy) as client:
        round_trip(client)
        proxy.latency(0.05)
        assert round_trip(client) >= 0.1
        proxy.latency(0.05, direction="requests")
        proxy.latency(0, direction="replies")
        assert 0.05 <= min(round_trip(client) for _ in range(3)) < 0.1
        proxy.latency(0.02, jitter=0.04, direction="replies")
        proxy.latency(0, direction="requests")
        took = [round_trip(client) for _ in range(6)]
        assert min(took) >= 0.02
        assert max(took) - min(took) > 0.005
        proxy.heal()
        assert min(round_trip(client) for _ in range(3)) < 0.02


def test_latency_is_a_delay_and_no_narrow_road(proxy: ChaosProxy) -> None:
    """Chunks are under way at the same time: ten of them take one latency, not ten."""
    with connected(proxy) as client:
        proxy.latency(0.2, direction="replies")
        began = time.monotonic()
        for _ in range(10):
            client.sendall(b"x")
            threading.Event().wait(0.01)
        read(client, 10)
        assert 0.2 <= time.monotonic() - began < 1.0


def test_chopped_bytes_come_one_by_one(proxy: ChaosProxy) -> None:
    with connected(proxy) as client:
        proxy.chop(1, pause=0.02, direction="replies")
        client.sendall(b"+PONG\r\n")
        pieces = []
        while sum(map(len, pieces)) < 7:
            pieces.append(client.recv(100))
        assert b"".join(pieces) == b"+PONG\r\n"
        assert len(pieces) >= 5  # a slow reader may find two together


def test_chopping_costs_no_time_by_itself(proxy: ChaosProxy) -> None:
    """Small pieces are not kept until the one before is acknowledged."""
    with connected(proxy) as client:
        proxy.chop(1)
        began = time.monotonic()
        for _ in range(10):
            client.sendall(b"abc")
            assert read(client, 3) == b"abc"
        assert time.monotonic() - began < 0.2


def test_a_black_hole_holds_back_what_healing_lets_pass(proxy: ChaosProxy, echo: Echo) -> None:
    with connected(proxy) as before:
        before.sendall(b"a")
        assert read(before, 1) == b"a"
        proxy.black_hole()
        with connected(proxy) as during:
            before.sendall(b"b")
            during.sendall(b"c")
            assert silent(before)
            assert silent(during)
            assert echo.heard == b"a"
            proxy.heal()
            assert (read(before, 1), read(during, 1)) == (b"b", b"c")


def test_a_black_hole_may_swallow_one_direction_only(proxy: ChaosProxy, echo: Echo) -> None:
    with connected(proxy) as client:
        proxy.black_hole(direction="replies")
        client.sendall(b"written")
        assert silent(client)
        assert echo.heard == b"written"
        proxy.heal(direction="replies")
        assert read(client, 7) == b"written"


def test_a_reset_comes_in_the_middle_of_a_reply(proxy: ChaosProxy) -> None:
    """So many times as it was asked for; later connections live."""
    with connected(proxy) as idle:
        idle.sendall(b"before")
        read(idle, 6)
        proxy.reset(after=3, times=1)
        idle.sendall(b"broken")
        got, end = to_the_end(idle)
        assert len(got) <= 3, "what had arrived may go with the reset"
        assert end == "reset"
    with connected(proxy) as client:
        client.sendall(b"whole")
        assert read(client, 5) == b"whole"


def test_a_connection_is_closed_after_so_many_bytes(proxy: ChaosProxy, echo: Echo) -> None:
    proxy.close_after(4)
    for _ in range(2):
        with connected(proxy) as client:
            client.sendall(b"abcdefg")
            assert to_the_end(client) == (b"abcd", "closed")
    proxy.heal()
    with connected(proxy) as client:
        client.sendall(b"abcdefg")
        assert read(client, 7) == b"abcdefg"


def test_a_half_closed_connection_still_takes_requests(proxy: ChaosProxy, echo: Echo) -> None:
    with connected(proxy) as client:
        proxy.half_close(after=2)
        client.sendall(b"abc")
        assert to_the_end(client) == (b"ab", "closed")
        client.sendall(b"def")
        client.shutdown(socket.SHUT_WR)
        assert echo.ended.wait(5)
        assert echo.heard == b"abcdef"


def test_refused_connections_are_taken_again_after_healing(proxy: ChaosProxy) -> None:
    with connected(proxy) as before:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        before.sendall(b"x")
        assert read(before, 1) == b"x"
        assert proxy.drop() == 1
        assert to_the_end(before) == (b"", "reset")
    proxy.refuse()
    proxy.heal()
    with connected(proxy) as client:
        client.sendall(b"y")
        assert read(client, 1) == b"y"


def test_a_target_that_is_away_ends_connections() -> None:
    with ChaosProxy("127.0.0.1", free_port()) as proxy, connected(proxy) as client:
        assert to_the_end(client)[0] == b""


def request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


HELLO = request(b"HELLO", b"3") + request(b"CLIENT", b"SETNAME", b"SUBSCRIBE")


@pytest.mark.parametrize(
    ("first", "role"),
    [
        (request(b"SUBSCRIBE", b"x"), "channel"),
        (request(b"ssubscribe", b"x"), "channel"),
        (request(b"GET", b"SUBSCRIBE"), "commands"),
        (request(b"MGET", b"x" * 100_000)[:50], "commands"),
        (b"ping\r\n", "commands"),
        (b"*nonsense\r\n", "commands"),
    ],
)
def test_the_first_command_after_the_handshake_tells_the_role(
    proxy: ChaosProxy, first: bytes, role: Any
) -> None:
    with connected(proxy) as client:
        for byte in HELLO:  # however it is cut into pieces
            client.sendall(bytes((byte,)))
        assert read(client, len(HELLO)) == HELLO
        assert (proxy.open(), proxy.open("commands"), proxy.open("channel")) == (1, 0, 0)
        client.sendall(first)
        assert read(client, len(first)) == first
        assert proxy.open(role) == 1


def test_a_fault_of_one_role_leaves_the_other_alone(proxy: ChaosProxy) -> None:
    get, subscribe = request(b"GET", b"x"), request(b"SUBSCRIBE", b"x")
    with connected(proxy) as commands, connected(proxy) as channel:
        proxy.black_hole(role="channel")
        for client in (commands, channel):
            client.sendall(HELLO)
            assert read(client, len(HELLO)) == HELLO
        commands.sendall(get)
        channel.sendall(subscribe)
        assert read(commands, len(get)) == get
        assert silent(channel)
        proxy.heal(role="channel")
        assert read(channel, len(subscribe)) == subscribe
        assert proxy.drop("channel") == 1
        commands.sendall(get)
        assert read(commands, len(get)) == get


def test_a_stopped_proxy_leaves_nothing_and_starts_again_on_its_port(echo: Echo) -> None:
    proxy = ChaosProxy("127.0.0.1", echo.port)
    with pytest.raises(RuntimeError, match="not running"):
        proxy.heal()
    with proxy, connected(proxy) as client:
        port = proxy.port
        proxy.black_hole()
        client.sendall(b"held back")
        proxy.stop()
        assert to_the_end(client)[0] == b""
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
    assert echo.ended.wait(5)
    assert not [t for t in threading.enumerate() if t.name == "chaos-proxy"]
    with proxy:
        assert proxy.port == port
        assert proxy.url == f"redis://127.0.0.1:{port}/0"


@pytest.mark.parametrize(
    ("fault", "wrong", "complaint"),
    [
        ("latency", {"seconds": -1}, "seconds must be at least 0"),
        ("latency", {"seconds": 1, "jitter": float("nan")}, "jitter must be at least 0"),
        ("chop", {"bytes": 0}, "bytes must be at least 1"),
        ("reset", {"after": -1}, "after must be at least 0"),
        ("close_after", {"after": 1, "times": 0}, "times must be at least 1"),
        ("black_hole", {"role": "pubsub"}, "role must be one of commands, channel, not 'pubsub'"),
        ("heal", {"direction": "up"}, "direction must be one of requests, replies, not 'up'"),
        ("open", {"role": "x"}, "role must be one of"),
    ],
)
def test_a_fault_that_is_none_is_refused_by_name(
    proxy: ChaosProxy, fault: str, wrong: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        getattr(proxy, fault)(**wrong)


# ---------------------------------------------------------------------------- stores


@pytest.fixture
def inner(clock: FakeClock) -> EmbeddedStore:
    return EmbeddedStore(2**20, clock)


HELD = Claim((("k", b"value"),), (), 60, 60)


def test_a_failing_store_fails_as_it_is_told(inner: EmbeddedStore) -> None:
    store = FailingStore(inner)
    with pytest.raises(StoreUnavailable):
        store.perform(HELD)
    assert inner.perform(Fetch(("k",))) == [None]
    store.fail = lambda command: isinstance(command, Fetch)
    store.perform(HELD)
    store.error = lambda: TimeoutError("mine")
    with pytest.raises(TimeoutError, match="mine"):
        store.perform(Fetch(("k",)))
    store.fail = 0
    assert store.perform(Fetch(("k",))) == [b"value"]
    assert store.failed == 2


def test_a_failure_may_come_after_the_deed(inner: EmbeddedStore) -> None:
    store = FailingStore(inner, late=True)
    with pytest.raises(StoreUnavailable):
        store.perform(HELD)
    assert inner.perform(Fetch(("k",))) == [b"value"]


async def test_failures_by_chance_repeat_with_their_seed(inner: EmbeddedStore) -> None:
    async def failures(seed: int) -> list[int]:
        store, failed = FailingStore(inner, 0.3, seed=seed), []
        for number in range(200):
            try:
                await store.aperform(Fetch(("k",)))
            except StoreUnavailable:
                failed.append(number)
        return failed

    first = await failures(1)
    assert 30 < len(first) < 90
    assert await failures(1) == first != await failures(2)


def test_a_delaying_store_lets_time_pass_before_the_command(inner: EmbeddedStore, clock: FakeClock) -> None:
    store = DelayingStore(inner, 5, sleep=clock.tick)
    began = clock()
    store.perform(Claim((("k", b"value"),), (), 6, 6))
    assert clock() == began + 5
    assert store.perform(Fetch(("k",))) == [b"value"]
    assert store.perform(Fetch(("k",))) == [None]
    store.delay = lambda command: 7 if isinstance(command, Invalidate) else 0
    store.perform(Fetch(("k",)))
    assert clock() == began + 15
    store.perform(Invalidate((), (), 60))
    assert clock() == began + 22


async def test_a_delay_on_an_event_loop_lets_others_run(inner: EmbeddedStore) -> None:
    store, order = DelayingStore(inner, lambda command: 0.02 if isinstance(command, Fetch) else 0), []

    async def fetch() -> None:
        await store.aperform(Fetch(("k",)))
        order.append("fetched")

    async def hold() -> None:
        await store.aperform(HELD)
        order.append("held")

    await asyncio.gather(fetch(), hold())
    assert order == ["held", "fetched"]


async def test_an_evicting_store_forgets_and_repeats_with_its_seed(clock: FakeClock) -> None:
    async def lost(seed: int) -> list[bytes | None]:
        inner = EmbeddedStore(2**20, clock)
        store = EvictingStore(inner, 0.3, seed=seed)
        keys = tuple(f"k{i}" for i in range(100))
        inner.perform(Claim(tuple((key, b"v") for key in keys), (), 60, 60))
        found: list[bytes | None] = await store.aperform(Fetch(keys))
        assert found.count(None) == store.evicted
        assert inner.perform(Fetch(keys)) == store.inner.perform(Fetch(keys)) == found
        return found

    first = await lost(1)
    assert 15 < first.count(None) < 45
    assert await lost(1) == first != await lost(2)


def test_an_eviction_comes_before_the_command(inner: EmbeddedStore) -> None:
    """What a command writes is there after it, and what stood in its way may be gone."""
    store = EvictingStore(inner, 1.0)
    inner.perform(HELD)
    begun = store.perform(Begin((Place("k", b"placeholder"),), (("t", b"token"),), 60, 60))
    assert begun.slots == (None,)
    assert inner.perform(Fetch(("k", "t"))) == [b"placeholder", b"token"]
    assert store.evicted == 1


NAMED: list[tuple[Any, str]] = [
    (Fetch(("a", "b")), "ab"),
    (Begin((Place("a", b""),), (("b", b""),), 1, 1), "ab"),
    (Commit((Fill("a", "x", b"", b"", 1),), (("b", 1.0),), (("x", "x", 1.0),)), "ab"),
    (Claim((("a", b""),), (("b", b""),), 1, 1), "ab"),
    (Release("a", b""), "a"),
    (Sweep((("a", b""), ("b", b""))), "ab"),
    (Lock("a", b"", 1), "a"),
    (Renew((("a", b""), ("b", b"")), 1), "ab"),
    (Invalidate((("a", "b", "c"),), (("d", b"", "x"),), 1), "abcd"),
    (Members("a", 0, 1), "a"),
    (Forget("a", ("x",)), "a"),
    (Announce(("x",)), ""),
    (Confirm(1), ""),
    (Scan("x"), ""),
    (Sizes(("a", "b")), "ab"),
    (Run(None, ("a", "b")), "ab"),
]


@pytest.mark.parametrize(("command", "keys"), NAMED, ids=[type(c).__name__ for c, _ in NAMED])
def test_a_command_tells_its_keys(command: Any, keys: str) -> None:
    assert "".join(keys_of(command)) == keys


def test_no_command_of_a_store_is_passed_by(inner: EmbeddedStore) -> None:
    assert {type(command) for command, _ in NAMED} == set(inner._answers)


def test_wrappers_nest_and_pass_on_what_they_do_not_know(clock: FakeClock) -> None:
    inner = EmbeddedStore(2**20, clock)
    store = FailingStore(EvictingStore(inner, 0.0), 0.0)
    with Cache(store=store, clock=clock) as cache:
        cache.set("posts:1", "one")
        assert cache.get("posts:1") == "one"
        assert inner.perform(Fetch((cache.world.keys.value("posts:1"),))) != [None]
    assert len(inner._rows) == 0, "closing reached the store"


@pytest.mark.parametrize("trouble", ["failing", "lost answers", "evicting"])
def test_a_cache_over_a_troubled_store_is_never_stale_and_never_raises(
    clock: FakeClock, trouble: str
) -> None:
    """Reads and acknowledged writes in turn: every read sees the last of them."""
    inner = EmbeddedStore(2**20, clock)
    store: Any = {
        "failing": lambda: FailingStore(inner, 0.3, seed=1),
        "lost answers": lambda: FailingStore(inner, 0.3, late=True, seed=1),
        "evicting": lambda: EvictingStore(inner, 0.3, seed=1),
    }[trouble]()
    chance = random.Random(2)
    with Cache(store=store, clock=clock, invalidation_timeout=1000) as cache:
        cache.driver._sleep = clock.tick
        version = 0

        @cache.cached(ns="rows", key="row", ttl=600, tags=["rows"])
        def row() -> int:
            return version

        for _ in range(500):
            if chance.random() < 0.3:
                version += 1
                receipt = cache.invalidate(**chance.choice([{"tags": ["rows"]}, {"keys": ["rows:row"]}]))
                assert receipt.acknowledged
            assert row() == version
        counts = cache.stats()["namespaces"]["rows"]
        assert counts["hits_l2"] > 20
        assert counts["loads"] > 100


# ---------------------------------------------------------------------------- the clock


def test_a_cache_lives_by_a_fake_clock() -> None:
    clock = FakeClock(1000.0)
    with Cache("embedded://", clock=clock) as cache:
        cache.set("posts:1", "one", ttl=60)
        clock.tick(timedelta(seconds=59))
        assert cache.get("posts:1") == "one"
        clock.tick(1)
        assert not cache.exists("posts:1")
        assert clock() == 1060.0
