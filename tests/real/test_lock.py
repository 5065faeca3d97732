"""Locks on real servers: processes that take turns, die and are paused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from cacheaside import Cache, StoreUnavailable
from cacheaside.testing import Server

PATIENCE = 30.0
KEY = "cacheaside:global:lock:counter"


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@contextmanager
def started(url: str, colour: str, rounds: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.real.locking", f"{url}?timeout=30", colour, str(rounds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


def test_processes_take_turns_and_their_fences_grow(redis_url: str, server: Server) -> None:
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(started(redis_url, colour, 10)) for colour in ("threads", "tasks", "threads")
        ]
        for one in crowd:
            go(one)
        for one in crowd:
            assert one.wait(PATIENCE) == 0
    with server.client() as client:
        fences = [int(fence) for fence in client.lrange("fences", 0, -1)]
        assert client.get("count") == b"60"
        assert len(fences) == 60
        assert fences == sorted(set(fences))
        assert not client.exists(KEY)


def test_the_lock_of_a_process_that_was_killed_ends_with_its_ttl(redis_url: str, server: Server) -> None:
    with (
        started(redis_url, "threads", 0) as victim,
        Cache(redis_url, l1_window=None) as cache,
        server.client() as client,
    ):
        go(victim)
        assert victim.stdout
        assert victim.stdout.readline() == "held\n"
        last = int(client.get(f"{{{KEY}}}:fence"))  # type: ignore[arg-type]
        time.sleep(1.2)  # it is alive, and renews
        assert cache.lock("counter").acquire(timeout=0) is None
        victim.kill()
        victim.wait()
        begin = time.monotonic()
        with cache.lock("counter", timeout=PATIENCE) as held:
            assert time.monotonic() - begin < 1.5
            assert held.fence > last


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_holder_is_told_when_its_lock_is_gone(redis_url: str, server: Server, colour: str) -> None:
    async with Cache(redis_url, l1_window=None) as cache:
        lock = cache.lock("counter", ttl=0.3)
        held = await lock.aacquire() if colour == "async" else lock.acquire()
        assert held is not None
        with server.client() as client:
            client.delete(KEY)
            assert cache.lock("counter", ttl=60).acquire(timeout=0) is not None
            until = time.monotonic() + PATIENCE
            while not held.lost:
                assert time.monotonic() < until
                await asyncio.sleep(0.005)
            assert not lock.release()
            assert client.exists(KEY)


def test_a_holder_whose_server_is_silent_knows_in_time(one_server: Server) -> None:
    with Server() as server, Cache(server.url + "?timeout=0.1", l1_window=None) as cache:
        held = cache.lock("counter", ttl=0.5).acquire()
        assert held is not None
        assert not held.lost
        server.pause()
        begin = time.monotonic()
        try:
            wait_for(lambda: held.lost)
            assert time.monotonic() - begin < 0.7
            with pytest.raises(StoreUnavailable):
                cache.lock("counter").acquire()
        finally:
            server.resume()
        # What was sent to the paused server may be done late: it ends by itself all the same.
        wait_for(lambda: answered(lambda: cache.lock("counter").acquire(timeout=PATIENCE)))


def answered(ask: Callable[[], object]) -> bool:
    """Whether the store does, and something else than None."""
    try:
        return ask() is not None
    except StoreUnavailable:
        return False


def test_who_waits_is_woken_by_the_release_where_there_is_a_channel(redis_url: str) -> None:
    with Cache(redis_url, l1_window=1) as one, Cache(redis_url, l1_window=1) as other:
        for cache in (one, other):
            cache.listen()
            wait_for(lambda cache=cache: cache.stats()["l1"]["coherent"])
        held = one.lock("counter").acquire()
        assert held is not None
        took: list[float] = []
        asked: list[Any] = []
        perform = other.store.perform
        other.store.perform = lambda command: (asked.append(command), perform(command))[1]  # type: ignore[method-assign]

        def wait() -> None:
            with other.lock("counter"):
                took.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        wait_for(lambda: asked)
        time.sleep(0.5)
        assert len(asked) <= 2, "it does not poll"
        released = time.monotonic()
        held.release()
        thread.join(PATIENCE)
        assert took[0] - released < 0.4
