"""The seconds that a flow may wait for its store: spent once, renewed after waits for others, kept to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from cacheaside.budget import Budget, give_up
from cacheaside.engine.call import Call
from cacheaside.engine.commands import Fetch, Load, Sleep
from cacheaside.engine.drive import Driver
from cacheaside.errors import StoreUnavailable
from cacheaside.sockets import SLACK, PunctualConnection, PunctualSocket, look_up
from cacheaside.testing import FakeClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock of budgets, which moves when told to."""
    clock = FakeClock()
    monkeypatch.setattr("cacheaside.budget.monotonic", clock)
    return clock


class Slow:
    """A store that takes its time; it notes how much it was given."""

    def __init__(self, seconds: float, now: FakeClock) -> None:
        self.seconds = seconds
        self.now = now
        self.given: list[float] = []

    def perform(self, command: Any) -> Any:
        self.given.append(give_up.get() - self.now())
        self.now.tick(self.seconds)
        return None

    async def aperform(self, command: Any) -> Any:
        return self.perform(command)


both = pytest.mark.parametrize("colour", ["sync", "async"])


async def run(driver: Driver, flow: Any, store: Any, colour: str) -> Any:
    return driver.run(flow, store) if colour == "sync" else await driver.arun(flow, store)


@both
async def test_one_flow_has_one_budget(colour: str, now: FakeClock) -> None:
    def flow() -> Any:
        for _ in range(3):
            yield Fetch(("k",))

    store = Slow(0.03, now)
    with pytest.raises(StoreUnavailable, match=r"used up the 0\.05 s"):
        await run(Driver(timeout=0.05), flow(), store, colour)
    first, second = store.given
    assert first == pytest.approx(0.05)
    assert second == pytest.approx(0.02)
    assert give_up.get() == float("inf")


@both
async def test_loads_are_not_charged(colour: str, now: FakeClock) -> None:
    def slow() -> int:
        now.tick(0.06)
        return 1

    async def aslow() -> int:
        return slow()

    def flow() -> Any:
        yield Fetch(("k",))
        yield Load(Call("n:k", (), slow if colour == "sync" else aslow))
        yield Fetch(("k",))

    store = Slow(0.0, now)
    await run(Driver(timeout=0.05), flow(), store, colour)
    assert store.given[1] == pytest.approx(0.05)


@both
async def test_after_a_wait_for_others_there_is_all_of_it_again(colour: str, now: FakeClock) -> None:
    """Who follows a load elsewhere looks again and again."""

    def flow() -> Any:
        for _ in range(4):
            yield Fetch(("k",))
            yield Sleep(0.0)

    store = Slow(0.03, now)
    await run(Driver(timeout=0.05), flow(), store, colour)
    assert min(store.given) == pytest.approx(0.05)


def test_a_store_that_does_not_block_has_none(now: FakeClock) -> None:
    def flow() -> Any:
        yield Fetch(("k",))

    store = Slow(0.0, now)
    Driver().run(flow(), store)
    assert store.given == [float("inf")]


def test_a_budget_inside_another_ends_by_itself() -> None:
    """A cached function may call another one while it loads, and the other way round."""
    with Budget(5):
        outer = give_up.get()
        with Budget(1):
            assert give_up.get() < outer
        assert give_up.get() == outer


# ---------------------------------------------------------------------------- sockets


@contextmanager
def pair(timeout: float | None) -> Iterator[tuple[PunctualSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield PunctualSocket(ours, timeout), theirs


def read_on(line: PunctualSocket) -> None:
    while line.recv(1):
        pass


def test_a_reply_that_trickles_in_is_given_up_in_time() -> None:
    """However short each of its pauses is."""
    stop = threading.Event()

    def trickle(line: socket.socket) -> None:
        while not stop.wait(0.01):
            line.sendall(b"x")

    with pair(5) as (ours, theirs):
        thread = threading.Thread(target=trickle, args=(theirs,))
        thread.start()
        began = time.monotonic()
        with Budget(0.1), pytest.raises(TimeoutError):
            read_on(ours)
        assert time.monotonic() - began < 0.1 + SLACK + 0.1
        stop.set()
        thread.join()


def test_a_reader_who_does_not_read_is_given_up_in_time() -> None:
    with pair(5) as (ours, _):
        began = time.monotonic()
        with Budget(0.1), pytest.raises(TimeoutError):
            ours.sendall(b"x" * 2**24)
        assert time.monotonic() - began < 0.3


def test_without_a_budget_a_socket_has_its_own_timeout() -> None:
    with pair(0.05) as (ours, theirs):
        with pytest.raises(TimeoutError):
            ours.recv(1)
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_a_question_whether_there_is_something_does_not_wait() -> None:
    with pair(5) as (ours, theirs):
        ours.settimeout(0)
        with Budget(1), pytest.raises(BlockingIOError):
            ours.recv(1)
        ours.settimeout(5)
        theirs.sendall(b"x")
        with Budget(0.01):
            assert ours.recv(1) == b"x"


def test_a_short_budget_leaves_a_socket_as_it_was() -> None:
    with pair(0.5) as (ours, theirs):
        with Budget(0.05), pytest.raises(TimeoutError):
            ours.recv(1)
        threading.Timer(0.15, theirs.sendall, (b"x",)).start()
        with Budget(0.5):
            assert ours.recv(1) == b"x"
        with Budget(0.0001):
            time.sleep(0.001)
            with pytest.raises(TimeoutError):
                ours.recv(1)


def test_a_resolver_that_does_not_answer_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    real = socket.getaddrinfo

    def stuck(*args: Any, flags: int = 0) -> Any:
        if flags:
            return real(*args, flags=flags)
        end.wait(10)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    began = time.monotonic()
    connection = PunctualConnection(host="redis.invalid", port=1, socket_connect_timeout=5)
    with Budget(0.1), pytest.raises(RedisTimeoutError):
        connection.connect()
    assert time.monotonic() - began < 0.4
    assert look_up("127.0.0.1", 1, 0, time.monotonic() - 1), "numbers need no resolver"
    end.set()


def test_a_host_with_many_addresses_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of which nobody answers are tried in turn, together for no longer than one."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    with full:
        for _ in range(8):  # more than its queue holds: the next connection gets no answer
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(full.getsockname())
            waiting.append(client)
        address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", full.getsockname())
        monkeypatch.setattr("cacheaside.sockets.look_up", lambda *_: [address] * 5)
        connection = PunctualConnection(host="h", port=1, socket_connect_timeout=5)
        began = time.monotonic()
        with Budget(0.2), pytest.raises(RedisTimeoutError):
            connection.connect()
        assert 0.1 < time.monotonic() - began < 0.5
        for client in waiting:
            client.close()
