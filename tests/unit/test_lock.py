"""Locks by a clock that moves when told to, on the embedded store and on a Redis of this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cacheaside import Cache, ConfigError, LockTimeout, StoreUnavailable
from cacheaside.engine.commands import Commit, Run, Spawn
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import FailingStore, StoreWrapper


@pytest.fixture
def any_cache(any_cache: Cache, server_clock: FakeClock) -> Cache:
    return any_cache


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came to that")


class Asked(StoreWrapper):
    """Notes the commands."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.store)
        self.commands: list[Any] = []
        cache.store = self

    def around(self, command: Any) -> Any:
        self.commands.append(command)
        return (yield command)


# ---------------------------------------------------------------------------- one at a time


def test_a_lock_has_one_holder_and_the_next_when_it_is_released(any_cache: Cache) -> None:
    first = any_cache.lock("reports").acquire()
    assert first is not None
    assert any_cache.lock("reports").acquire(timeout=0) is None
    assert any_cache.lock("others").acquire(timeout=0) is not None
    assert first.release()
    second = any_cache.lock("reports").acquire(timeout=0)
    assert second is not None
    assert second.fence > first.fence
    assert not first.release(), "it is somebody else's now"
    assert any_cache.lock("reports").acquire(timeout=0) is None


async def test_the_async_twins_keep_out_and_are_kept_out_by_the_others(any_cache: Cache) -> None:
    async with any_cache.lock("reports") as held:
        assert not held.lost
        assert any_cache.lock("reports").acquire(timeout=0) is None
    lock = any_cache.lock("reports")
    with lock:
        assert await any_cache.lock("reports").aacquire(timeout=0) is None
    assert await lock.aacquire(timeout=0) is not None
    assert await lock.arelease()
    assert not await lock.arelease()


def test_a_block_that_fails_gives_the_lock_back(any_cache: Cache) -> None:
    with pytest.raises(ValueError), any_cache.lock("reports"):
        raise ValueError
    assert any_cache.lock("reports").acquire(timeout=0) is not None


def test_a_lock_that_is_held_ends_the_wait_in_an_error_which_says_that_it_is_not_re_entrant(
    any_cache: Cache, clock: FakeClock
) -> None:
    begin = clock()
    with any_cache.lock("reports", ttl=60) as held:
        with pytest.raises(LockTimeout, match="held for all of 5 s; if by its own caller: it is not re-ent"):
            any_cache.lock("reports", timeout=5).__enter__()
        assert clock() - begin == pytest.approx(5)
        assert not held.lost


def test_who_waits_asks_now_and_then_and_ever_less(any_cache: Cache, clock: FakeClock) -> None:
    any_cache.lock("reports", ttl=100).acquire()
    asked = Asked(any_cache)
    assert any_cache.lock("reports").acquire(timeout=10) is None
    assert 100 <= len(asked.commands) <= 220


def test_a_release_is_announced_if_somebody_has_asked_for_the_lock(any_cache: Cache) -> None:
    any_cache.driver.notices = lambda key: None  # there is a channel
    asked = Asked(any_cache)
    held = any_cache.lock("reports").acquire()
    assert held is not None
    assert held.release()
    assert [type(command) for command in asked.commands] == [Run, Run]
    held = any_cache.lock("reports").acquire()
    assert held is not None
    assert any_cache.lock("reports").acquire(timeout=0) is None
    assert held.release()
    assert asked.commands[-1] == Commit((), notify=("global:lock:reports",))


def test_a_lock_whose_holder_is_gone_ends_by_itself(any_cache: Cache, clock: FakeClock) -> None:
    gone = any_cache.lock("reports", ttl=10).acquire()
    assert gone is not None
    gone._stop()  # its process has died
    begin = clock()
    with any_cache.lock("reports", timeout=60) as held:
        assert 10 <= clock() - begin < 10.2
        assert held.fence > gone.fence
        assert gone.lost
        assert not gone.release()
        assert not held.lost
        assert any_cache.lock("reports").acquire(timeout=0) is None, "the late release freed nothing"


def test_one_lock_object_serves_many_threads(any_cache: Cache) -> None:
    any_cache.driver._sleep = time.sleep
    lock = any_cache.lock("counter")
    count = 0
    fences: list[int] = []

    def add() -> None:
        nonlocal count
        for _ in range(5):
            with lock as held:
                fences.append(held.fence)
                seen = count
                time.sleep(0.0005)
                count = seen + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 20
    assert fences == sorted(set(fences))


def test_a_block_may_be_ended_by_another_thread(any_cache: Cache) -> None:
    """As a dependency of FastAPI is, when its pool has a thread to spare."""
    lock = any_cache.lock("reports")
    thread = threading.Thread(target=lock.__enter__)
    thread.start()
    thread.join()
    lock.__exit__(None, None, None)
    assert any_cache.lock("reports").acquire(timeout=0) is not None


def test_a_forked_child_neither_holds_nor_releases_its_parent_s_lock(cache: Cache) -> None:
    held = cache.lock("reports").acquire()
    assert held is not None
    held._pid += 1
    assert held.lost
    assert not held.release()
    assert cache.lock("reports").acquire(timeout=0) is None


# ---------------------------------------------------------------------------- fences


def test_a_fence_grows_even_when_the_last_one_was_lost(redis_cache: Cache, redis_store: Any) -> None:
    fences: list[int] = []
    for _ in range(3):
        with redis_cache.lock("reports") as held:
            fences.append(held.fence)
        redis_store.client.flushall()
    assert fences == sorted(set(fences))


def test_a_fence_grows_when_the_clock_goes_back(redis_cache: Cache, server_clock: FakeClock) -> None:
    fences: list[int] = []
    for _ in range(3):
        with redis_cache.lock("reports") as held:
            fences.append(held.fence)
        server_clock.tick(-3600)
    assert fences == sorted(set(fences))


# ---------------------------------------------------------------------------- losing it


def test_a_lock_that_is_not_renewed_in_time_is_lost_without_asking_anybody(
    any_cache: Cache, clock: FakeClock
) -> None:
    with any_cache.lock("reports", ttl=10) as held:
        clock.tick(9.99)
        assert not held.lost
        clock.tick(0.01)
        asked = Asked(any_cache)
        assert held.lost
        assert "lost" in repr(held)
        assert asked.commands == []


@pytest.mark.parametrize("gone", [True, False])
def test_a_renewal_that_finds_another_holder_or_none_says_so(
    redis_cache: Cache, redis_store: Any, server_clock: FakeClock, gone: bool
) -> None:
    lock = redis_cache.lock("reports", ttl=10)
    held = lock.acquire()
    assert held is not None
    held.perform(None)  # what its thread sends every third of the ttl
    assert not held.lost
    redis_store.client.delete(lock.key)
    if not gone:
        assert redis_cache.lock("reports").acquire(timeout=0) is not None
    held.perform(None)
    assert held.lost
    assert not lock.release()
    assert held.lost


def test_renewals_prolong_it(redis_cache: Cache, redis_store: Any, server_clock: FakeClock) -> None:
    lock = redis_cache.lock("reports", ttl=10)
    held = lock.acquire()
    assert held is not None
    for _ in range(5):
        server_clock.tick(5)
        held.perform(None)
        assert redis_store.client.pttl(lock.key) == 10_000
    assert not held.lost
    assert lock.release()


async def test_locks_are_renewed_by_a_thread_or_by_the_loop(cache: Cache, clock: FakeClock) -> None:
    cache.driver._sleep = time.sleep
    asked = Asked(cache)

    def renewals() -> int:
        return sum(type(c) is Run and c.program.script.text.startswith("-- Prolong") for c in asked.commands)

    with cache.lock("threads", ttl=0.1):
        await asyncio.to_thread(wait_for, lambda: renewals() >= 3)
    begun = renewals()
    async with cache.lock("tasks", ttl=0.1):
        while renewals() < begun + 3:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    still = renewals()
    await asyncio.sleep(0.1)
    assert renewals() == still, "nothing is renewed after its release"


# ---------------------------------------------------------------------------- when the store is away


def test_a_lock_cannot_be_had_from_a_store_that_does_not_answer(cache: Cache) -> None:
    store = FailingStore(cache.store)
    cache.store = store
    with pytest.raises(StoreUnavailable):
        cache.lock("reports").acquire()
    assert cache.stats()["namespaces"]["global"]["unavailable"] == 1


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_lock_whose_answer_was_lost_is_given_back(cache: Cache, colour: str) -> None:
    failing = [True]
    cache.store = FailingStore(cache.store, lambda command: failing and failing.pop(), late=True)
    lock = cache.lock("reports")
    with pytest.raises(StoreUnavailable):
        await lock.aacquire() if colour == "async" else lock.acquire()
    for _ in range(1000):
        if lock.acquire(timeout=0) is not None:
            break
        await asyncio.sleep(0.005)
    else:
        raise AssertionError("it stays taken")


async def test_who_is_cancelled_while_it_is_taken_gives_it_back(cache: Cache) -> None:
    lock = cache.lock("reports")
    flow = lock._acquire(None)
    while type(command := next(flow)) is not Run:
        pass
    cache.store.perform(command)
    spawned = flow.throw(asyncio.CancelledError())
    assert type(spawned) is Spawn
    with pytest.raises(asyncio.CancelledError):
        flow.send(None)
    assert lock.acquire(timeout=0) is None
    cache.run(spawned.flow)
    assert lock.acquire(timeout=0) is not None


async def test_who_is_cancelled_while_waiting_leaves_nothing_behind(cache: Cache) -> None:
    held = await cache.lock("reports").aacquire()
    assert held is not None
    waiting = asyncio.create_task(cache.lock("reports").aacquire(timeout=60))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await held.arelease()
    assert await cache.lock("reports").aacquire(timeout=0) is not None


def test_a_release_that_is_not_answered_says_false(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    held = cache.lock("reports").acquire()
    assert held is not None
    cache.store = FailingStore(cache.store)
    assert not held.release()
    assert "was not released and ends by itself" in caplog.text


def test_a_renewal_that_is_not_answered_is_no_loss_yet(cache: Cache, clock: FakeClock) -> None:
    with cache.lock("reports", ttl=10) as held:
        whole, cache.store = cache.store, FailingStore(cache.store)
        clock.tick(4)
        held.perform(None)
        assert not held.lost
        cache.store = whole
        clock.tick(4)
        held.perform(None)
        clock.tick(9)
        assert not held.lost


# ---------------------------------------------------------------------------- names and bad input


@pytest.mark.parametrize(
    ("name", "rest"), [("reports", "reports"), ("42", "42"), ("a:b", "a%3Ab"), ("{x} y", "%7Bx%7D%20y")]
)
def test_a_key_is_the_seed_s_and_no_name_can_forge_another(
    redis_cache: Cache, redis_store: Any, name: str, rest: str
) -> None:
    with redis_cache.lock(name):
        keys = sorted(redis_store.client.keys())
    key = f"cacheaside:global:lock:{rest}"
    assert keys == [key.encode(), f"{{{key}}}:fence".encode()]
    assert len(redis_cache.lock("x" * 5000).key) < 300


def test_clearing_the_cache_frees_no_lock(any_cache: Cache) -> None:
    any_cache.set("global:other", 1)
    with any_cache.lock("reports"):
        assert any_cache.clear() == 1
        assert any_cache.clear("global") == 0
        assert any_cache.lock("reports").acquire(timeout=0) is None


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"name": ""}, "name must be"),
        ({"name": 7}, "name must be"),
        ({"ttl": 0}, "ttl must be"),
        ({"ttl": 0.01}, "ttl must be at least 0.1 s"),
        ({"ttl": None}, "ttl must be"),
        ({"timeout": -1}, "timeout must be"),
    ],
)
def test_a_lock_that_cannot_work_is_refused(cache: Cache, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        cache.lock(**{"name": "reports", **given})


def test_a_token_is_shown_by_nothing(cache: Cache) -> None:
    """Who knows it could release the lock."""
    lock = cache.lock("reports")
    with lock as held:
        assert held._token not in f"{held!r} {lock!r}"
