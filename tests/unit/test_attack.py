"""Attempts to make the core hang, leak, wait for nothing, or lose an invalidation."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cacheaside import Cache, ConfigError, LoadTimeout, current_load
from cacheaside.engine import drive
from cacheaside.engine.call import Site
from cacheaside.engine.commands import Begin, Fetch, Invalidate, Load, Lock, Release, Sweep
from cacheaside.engine.drive import Driver
from cacheaside.entry import MAGIC, VALUE
from cacheaside.errors import StoreUnavailable
from cacheaside.listener import Listener
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.stores.memory import NearCache
from cacheaside.workers import Workers


def leftovers(cache: Cache) -> list[str]:
    """Placeholders, holds and locks in the store: what keeps others waiting or from storing."""
    rows: dict[str, tuple[bytes, float]] = cache.store._rows
    return [
        key for key, (raw, _) in rows.items() if key.endswith(":r") or (raw[:3] == MAGIC and raw[3] != VALUE)
    ]


def at_rest(cache: Cache) -> bool:
    """Whether all background work is done; what it spawned is done too."""
    workers = cache.driver._workers
    with workers._turn:
        return workers._turn.wait_for(lambda: not workers._jobs and not workers._busy, 10)


async def settle(cache: Cache) -> None:
    while cache.driver._tasks:
        await asyncio.sleep(0)


def waiting(cache: Cache) -> int:
    """How many callers wait for another one's load."""
    return sum(flight.waiters for flight in list(cache.world.flights._flying.values()))


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never came to that")


# ------------------------------------------------------------------- cancelled at every command


class Cut(KeyboardInterrupt):
    """A cancellation, or Ctrl-C."""


class Cutter(Driver):
    """Ends a flow at its n-th command, before or after the command is carried out."""

    def __init__(self, at: int, *, after: bool) -> None:
        super().__init__()
        self.left, self.after, self.cut = at, after, ""
        self.thread = threading.current_thread()

    def _do(self, command: Any, store: Any, budget: Any) -> Any:
        if threading.current_thread() is not self.thread or self.cut:
            return super()._do(command, store, budget)
        self.left -= 1
        if self.left:
            return super()._do(command, store, budget)
        self.cut = type(command).__name__
        if self.after:
            super()._do(command, store, budget)
        raise Cut


Scene = Callable[[Cache, list[int]], tuple[Callable[[], Any], Callable[[], Any]]]


def cold(cache: Cache, version: list[int]) -> Any:
    @cache.cached(ns="n", key="k", tags=["t", "of:{result}"])
    def f() -> int:
        return version[0]

    return f, f


def stale(cache: Cache, version: list[int]) -> Any:
    f = cache.cached(ns="n", key="k", ttl=10, stale_while_revalidate=60, l1=False)(lambda: version[0])
    f()
    cache.world.clock.tick(11)
    return f, f


def kept(cache: Cache, version: list[int]) -> Any:
    f = cache.cached(ns="n", key="k", ttl=10, stale_if_error=60, l1=False)(lambda: version[0])
    f()
    cache.world.clock.tick(11)
    return f, f


def forced(cache: Cache, version: list[int]) -> Any:
    f, _ = cold(cache, version)
    f()
    return f.refresh, f


def batch(cache: Cache, version: list[int]) -> Any:
    @cache.cached_many(ns="n", key="{id}", tags=["t", "of:{result}"])
    def find(ids: list[int]) -> dict[int, int]:
        return dict.fromkeys(ids, version[0])

    find([1])
    cache.invalidate(keys=["n:1"])
    return lambda: find([1, 2, 3]), lambda: find([1, 2, 3])[2]


def update(cache: Cache, version: list[int]) -> Any:
    f, _ = cold(cache, version)

    @cache.updates(ns="n", key="k", tags=["t", "of:{result}"])
    def save() -> int:
        version[0] += 1
        return version[0]

    f()
    return save, f


def put(cache: Cache, version: list[int]) -> Any:
    f, _ = cold(cache, version)
    f()
    return lambda: f.put(version[0]), f


def set_directly(cache: Cache, version: list[int]) -> Any:
    f, _ = cold(cache, version)
    f()
    return lambda: cache.set("n:k", version[0], tags=["t"]), f


def invalidate_key(cache: Cache, version: list[int]) -> Any:
    f, _ = cold(cache, version)

    def write() -> None:
        version[0] += 1
        cache.invalidate(keys=["n:k"])

    f()
    return write, f


def invalidate_tag(cache: Cache, version: list[int]) -> Any:
    f, _ = cold(cache, version)

    @cache.invalidates(tags=["t"])
    def write() -> None:
        version[0] += 1

    f()
    return write, f


def invalidate_transaction(cache: Cache, version: list[int]) -> Any:
    f, _ = cold(cache, version)

    def write() -> None:
        with cache.transaction():
            cache.invalidate(tags=["t"])
            version[0] += 1

    f()
    return write, f


def invalidate_mutating(cache: Cache, version: list[int]) -> Any:
    f, _ = cold(cache, version)

    def write() -> None:
        with cache.mutating(keys=["n:k"]):
            version[0] += 1

    f()
    return write, f


SCENES: list[Scene] = [
    cold,
    stale,
    kept,
    forced,
    batch,
    update,
    put,
    set_directly,
    invalidate_key,
    invalidate_tag,
    invalidate_transaction,
    invalidate_mutating,
]


@pytest.mark.parametrize("after", [False, True], ids=["unsent", "answer lost"])
@pytest.mark.parametrize("scene", SCENES, ids=[s.__name__ for s in SCENES])
def test_cut_at_any_command_nothing_is_left_and_nothing_lost(scene: Scene, after: bool, clock: Any) -> None:
    """Whichever command a flow is interrupted at: no flight, placeholder, hold or lock stays behind, the
    next call stores its result and the one after it is a hit; what was written is seen."""
    cuts: list[str] = []
    for at in range(1, 100):
        with Cache("embedded://", clock=clock) as cache:
            version = [1]
            act, ask = scene(cache, version)
            cache.driver = cutter = Cutter(at, after=after)
            try:
                act()
            except Cut:
                pass
            if not cutter.cut:
                break
            cuts.append(cutter.cut)
            where = f"{at}: {cutter.cut}"
            assert at_rest(cache), where
            assert len(cache.world.flights) == 0, where
            assert leftovers(cache) == [], where
            assert ask() == version[0], where
            before, version[0] = version[0], 100
            assert ask() == before, f"not cached after {where}"
            assert leftovers(cache) == [], where
            cutter.close()
    assert cuts, "nothing was cut"


# ------------------------------------------------------------------- cancelled with others


async def test_a_group_that_is_cancelled_leaves_no_placeholder(cache: Cache) -> None:
    """The leader leaves its placeholder to those who wait, who are cancelled in their turn."""
    calls: list[int] = []

    @cache.cached(ns="n", key="k")
    async def f() -> int:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return len(calls)

    group = [asyncio.create_task(f()) for _ in range(4)]  # type: ignore[arg-type]
    while waiting(cache) < 3:
        await asyncio.sleep(0)
    for task in group:
        task.cancel()
    ended = await asyncio.gather(*group, return_exceptions=True)
    assert all(isinstance(e, asyncio.CancelledError) for e in ended)
    await settle(cache)
    assert leftovers(cache) == []
    assert await f() == 2


async def test_a_cancelled_refresh_gives_its_lock_back(cache: Cache, clock: Any) -> None:
    calls: list[int] = []

    @cache.cached(ns="n", key="k", ttl=10, stale_if_error=60)
    async def f() -> int:
        calls.append(1)
        if len(calls) == 2:
            await asyncio.Event().wait()
        return len(calls)

    await f()
    clock.tick(11)
    task = asyncio.create_task(f())  # type: ignore[arg-type]
    while len(calls) < 2:
        await asyncio.sleep(0)
    assert leftovers(cache) == ["{cacheaside:n:k}:r"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await settle(cache)
    assert leftovers(cache) == []
    assert await f() == 3


class Suspended(EmbeddedStore):
    """A store whose commands of one kind take until they are let through; what is cancelled was not sent."""

    def __init__(self, kind: type, clock: Callable[[], float]) -> None:
        super().__init__(2**20, clock)
        self.kind, self.asked = kind, 0
        self.through = asyncio.Event()

    async def aperform(self, command: Any) -> Any:
        if type(command) is self.kind:
            self.asked += 1
            await self.through.wait()
        return await super().aperform(command)


async def cancelled_while_sent(store: Suspended, task: asyncio.Task[Any]) -> None:
    while not store.asked:
        await asyncio.sleep(0)
    task.cancel()
    while store.asked < 2:
        await asyncio.sleep(0)
    store.through.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_invalidation_is_sent_all_the_same(clock: Any) -> None:
    """A client goes away after the write: the request is cancelled, and what it wrote is written."""
    store = Suspended(Invalidate, clock)
    cache = Cache(store=store, clock=clock)
    row = [1]

    @cache.cached(ns="n", key="k", tags=["t"])
    async def f() -> int:
        return row[0]

    @cache.invalidates(tags=["t"])
    async def write() -> None:
        row[0] = 2

    assert await f() == 1
    await cancelled_while_sent(store, asyncio.create_task(write()))  # type: ignore[arg-type]
    assert await f() == 2


async def test_a_block_that_is_cancelled_while_it_takes_its_hold_ends_the_hold(clock: Any) -> None:
    store = Suspended(Invalidate, clock)
    cache = Cache(store=store, clock=clock)

    async def write() -> None:
        async with cache.mutating(keys=["n:k"], hold=30):
            raise AssertionError("it was cancelled before")

    await cancelled_while_sent(store, asyncio.create_task(write()))
    assert leftovers(cache) == []


def test_a_coroutine_that_its_loop_left_behind_is_destroyed_quietly(cache: Cache) -> None:
    @cache.cached(ns="n", key="k")
    async def f() -> int:
        await asyncio.sleep(100)
        return 1

    coroutine: Any = f()

    async def begin() -> None:
        coroutine.send(None)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    assert len(cache.world.flights) == 1
    coroutine.close()
    assert len(cache.world.flights) == 0


# ------------------------------------------------------------------- callables and loaders that raise


RAISING: list[dict[str, Any]] = [
    {"cache_if": lambda result: 1 / 0},
    {"ttl": lambda result: -1},
    {"tags": ["t:{result.nothing}"]},
    {"tags": lambda result: [1 / 0]},
]


@pytest.mark.parametrize("options", RAISING, ids=["cache_if", "ttl", "tags", "tag function"])
def test_a_callable_that_raises_leaves_nothing_to_wait_for(cache: Cache, options: dict[str, Any]) -> None:
    """The caller is told; who calls next need not wait for a placeholder to end."""
    f = cache.cached(ns="n", key="k", **options)(lambda: 1)
    find = cache.cached_many(ns="m", key="{id}", **options)(lambda ids: dict.fromkeys(ids, 1))
    for call in (f, f.refresh, lambda: find([1, 2, 3])):
        with pytest.raises((ZeroDivisionError, ConfigError, AttributeError)):
            call()
        assert at_rest(cache)
        assert leftovers(cache) == []
        assert len(cache.world.flights) == 0


def test_a_callable_that_raises_after_an_update_drops_what_was_there(cache: Cache) -> None:
    row = [1]
    f = cache.cached(ns="n", key="k", cache_if=lambda result: True)(lambda: row[0])
    assert f() == 1

    @cache.updates(ns="n", key="k", cache_if=lambda result: 1 / 0)
    def save() -> int:
        row[0] = 2
        return 2

    with pytest.raises(ZeroDivisionError):
        save()
    assert leftovers(cache) == []
    assert f() == 2


@pytest.mark.parametrize("limit", [None, 60.0, (0.001, None), (0.001, 60.0)])
def test_a_loader_that_exits_does_so_in_its_caller(cache: Cache, limit: Any) -> None:
    """SystemExit in a thread of ours would end nothing but the thread, and the caller would wait on."""
    calls: list[int] = []

    @cache.cached(ns="n", key="k", load_timeout=limit)
    def f() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise SystemExit(3)
        return 5

    with pytest.raises(SystemExit):
        f()
    assert at_rest(cache)
    assert leftovers(cache) == []
    assert f() == 5


def test_a_loader_that_raises_stop_iteration_is_told_apart_from_the_flow(cache: Cache) -> None:
    """As a coroutine's, it comes out as a RuntimeError; never as the end of the flow with no result."""
    calls: list[int] = []

    @cache.cached(ns="n", key="k")
    def f() -> int:
        calls.append(1)
        return next(iter([] if len(calls) == 1 else [7]))

    with pytest.raises(RuntimeError) as raised:
        f()
    assert isinstance(raised.value.__cause__, StopIteration)
    assert leftovers(cache) == []
    assert f() == 7


def test_waiters_share_an_error_and_not_each_others_frames(cache: Cache) -> None:
    raised: list[BaseException] = []

    @cache.cached(ns="n", key="k")
    def f() -> int:
        wait_for(lambda: waiting(cache) == 7)
        raise OSError("away")

    def call(_: int) -> None:
        with pytest.raises(OSError) as caught:
            f()
        raised.append(caught.value)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert len({id(error) for error in raised}) == 1
    frames, trace = 0, raised[0].__traceback__
    while trace is not None:
        frames, trace = frames + 1, trace.tb_next
    assert frames < 20


class WriteOnly:
    """A serializer whose output cannot be read."""

    name = "write-only"

    def encode(self, value: object) -> bytes:
        return b"?"

    def decode(self, data: bytes) -> object:
        raise ValueError("no idea")


def test_a_waiter_that_cannot_read_the_result_loads_for_itself(cache: Cache) -> None:
    calls: list[int] = []

    @cache.cached(ns="n", key="k", codec=WriteOnly())  # type: ignore[arg-type]
    def f() -> list[int]:
        calls.append(1)
        if len(calls) == 1:
            wait_for(lambda: waiting(cache) == 1)
        return [1]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: f(), range(2))) == [[1], [1]]
    assert len(calls) == 2


def test_ids_that_come_back_as_another_type_are_no_absence(cache: Cache) -> None:
    @cache.cached_many(ns="n", key="{id}")
    def find(ids: list[int]) -> dict[Any, int]:
        return {str(one): one for one in ids}

    with pytest.raises(ConfigError, match=r"asked for 1 it returned '1'"):
        find([1, 2])
    assert leftovers(cache) == []
    assert not cache.exists("n:1")


def test_a_loader_of_a_batch_may_bring_more_than_was_asked_for(cache: Cache) -> None:
    find = cache.cached_many(ns="n", key="{id}")(lambda ids: {1: "one", 2: "two"})
    assert find([9]) == {}
    assert find([1, 9]) == {1: "one"}


def test_what_the_loader_of_a_batch_says_holds_for_its_items(cache: Cache) -> None:
    @cache.cached_many(ns="n", key="{id}", ttl=1000, jitter=0)
    def find(ids: list[int], store: bool = True) -> dict[int, int]:
        load = current_load()
        assert load is not None
        load.store, load.ttl = store, 10
        load.tag("said")
        return {one: one for one in ids}

    find([1, 2], store=False)
    assert not cache.exists(find.key(1, store=False))
    find([1, 2])
    assert cache.ttl(find.key(1)) == pytest.approx(10, abs=0.1)
    cache.invalidate(tags=["said"])
    assert not cache.exists(find.key(1))


# ------------------------------------------------------------------- a store that takes no writes


class ReadOnly(EmbeddedStore):
    """A full server, or one that is a replica now: it answers reads and refuses the rest."""

    full = False

    def perform(self, command: Any) -> Any:
        if self.full and type(command) is not Fetch:
            raise StoreUnavailable("OOM")
        return super().perform(command)


def test_stale_values_are_served_by_a_store_that_takes_no_writes(clock: Any) -> None:
    """The lock of a refresh cannot be had there; the source that is away must not be heard of either."""
    store = ReadOnly(2**20, clock)
    cache = Cache(store=store, clock=clock)
    away: list[int] = []
    calls: list[int] = []

    def load() -> int:
        calls.append(1)
        if away:
            raise OSError("away")
        return len(calls)

    swr = cache.cached(ns="n", key="swr", ttl=10, stale_while_revalidate=60)(load)
    sie = cache.cached(ns="n", key="sie", ttl=10, stale_if_error=60)(load)
    assert (swr(), sie()) == (1, 2)
    clock.tick(11)
    store.full = True
    assert swr() == 1, "nobody can be chosen to renew it"
    assert sie() == 3, "newer, if it is to be had"
    away.append(1)
    assert sie() == 2
    clock.tick(60)
    with pytest.raises(OSError):
        sie()


def test_a_batch_gives_its_placeholders_back_in_one_round_trip(clock: Any) -> None:
    sent: list[Any] = []

    class Counting(EmbeddedStore):
        def perform(self, command: Any) -> Any:
            sent.append(command)
            return super().perform(command)

    cache = Cache(store=Counting(2**20, clock), clock=clock)
    find = cache.cached_many(ns="n", key="{id}", cache_if=lambda item: item % 2 == 0)(
        lambda ids: {one: one for one in ids}
    )
    find(range(10))
    assert [len(c.keys) for c in sent if type(c) is Sweep] == [5]
    assert not [c for c in sent if type(c) is Release]
    assert leftovers(cache) == []


# ------------------------------------------------------------------- transactions


def test_a_transaction_is_for_one_block(cache: Cache) -> None:
    transaction = cache.transaction()
    with transaction, pytest.raises(ConfigError, match="one block"), transaction:
        pass
    with pytest.raises(ConfigError, match="one block"), transaction:
        pass


def test_what_a_thread_adds_to_a_transaction_that_has_just_ended_is_not_lost(cache: Cache) -> None:
    """It asked whether there is one, then the block ended, then it added."""
    with cache.transaction() as transaction:
        cache.invalidate(keys=["n:other"])
        asked = cache.collecting()
        assert asked is transaction
    cache.set("n:k", 1)
    asked.add(("n:k",), ())
    assert not cache.exists("n:k")
    assert cache.near is not None
    assert cache.near.limit > 0, "L1 is on again"


def test_a_transaction_may_end_in_another_context_than_it_began_in(cache: Cache) -> None:
    """As a dependency of a web framework does, whose halves run in threads."""
    cache.set("n:k", 1)
    transaction = cache.transaction()
    transaction.__enter__()
    cache.invalidate(keys=["n:k"])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(transaction.__exit__, None, None, None).result()
    assert not cache.exists("n:k")


def test_mutating_inside_a_transaction_invalidates_after_it_too(cache: Cache) -> None:
    """What the block wrote is committed with the transaction; what is read before that is the old row."""
    row = [1]
    f = cache.cached(ns="n", key="k", tags=["t"])(lambda: row[0])
    with cache.transaction():
        with cache.mutating(tags=["t"]):
            pass
        with ThreadPoolExecutor(1) as pool:  # another request, before the commit
            assert pool.submit(f).result() == 1
        row[0] = 2
    assert f() == 2


# ------------------------------------------------------------------- clocks


def test_a_clock_that_is_set_back_keeps_nobody_waiting_and_nothing_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall, steady = [1e9], [100.0]
    store = EmbeddedStore(2**20, lambda: wall[0], tick=lambda: steady[0])
    cache = Cache(store=store, clock=lambda: wall[0])
    monkeypatch.setattr(cache.world, "tick", lambda: steady[0])

    def pause(seconds: float) -> None:
        steady[0] += seconds
        wall[0] += seconds

    cache.driver._sleep = pause
    f = cache.cached(ns="n", key="k", ttl=60, jitter=0)(lambda: wall[0])
    first = f()
    wall[0] -= 3600
    steady[0] += 61
    assert f() != first, "it ended by the clock that does not go back"

    dead = store._rows
    f.invalidate()
    placeholder = cut_off(cache, f)
    assert placeholder in dead
    wall[0] -= 3600
    began = steady[0]
    f()
    assert steady[0] - began < 5.1, "who follows waits no longer than wait_timeout"


def cut_off(cache: Cache, f: Any) -> str:
    """Leave behind what a process leaves that dies while it loads; the key of its placeholder."""
    kept: dict[str, Any] = {}
    alive = cache.driver
    cache.driver = Driver()

    def die(command: Any, store: Any, budget: Any) -> Any:
        if type(command) is Load:
            kept.update(store._rows)
            raise Cut
        return Driver._do(cache.driver, command, store, budget)

    cache.driver._do = die  # type: ignore[method-assign]
    with pytest.raises(Cut):
        f()
    assert at_rest(cache)
    cache.driver = alive
    for key, row in kept.items():
        cache.store._rows[key] = row
    return "cacheaside:n:k"


# ------------------------------------------------------------------- threads


def test_work_that_never_ends_keeps_neither_close_nor_the_process(
    clock: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drive, "CLOSE_WITHIN", 0.05)
    before = set(threading.enumerate())
    cache = Cache("embedded://", clock=clock)
    calls: list[int] = []
    stuck, go = threading.Event(), threading.Event()

    @cache.cached(ns="n", key="k", ttl=10, stale_while_revalidate=60, refresh="background")
    def f() -> int:
        calls.append(1)
        if len(calls) == 2:
            stuck.set()
            go.wait(30)
        return 1

    f()
    clock.tick(11)
    assert f() == 1
    assert stuck.wait(10)
    (thread,) = [t for t in set(threading.enumerate()) - before if t.name == "cacheaside"]
    assert thread.daemon
    with caplog.at_level(logging.WARNING, "cacheaside"):
        cache.close()
    assert "goes on" in caplog.text
    go.set()
    thread.join(10)
    assert not thread.is_alive()


def test_refreshes_that_wait_for_a_thread_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheaside.workers.WAITING", 3)
    workers, go = Workers(1), threading.Event()
    begun = threading.Event()

    def stick() -> None:
        begun.set()
        go.wait(30)

    assert workers.submit(stick)
    assert begun.wait(10)
    assert [workers.submit(go.wait) for _ in range(5)] == [True, True, True, False, False]
    go.set()
    assert workers.close(10)


def test_a_call_while_the_cache_is_closed_is_answered(cache: Cache, clock: Any) -> None:
    """A background refresh that comes while the threads end starts one anew."""
    f = cache.cached(ns="n", key="k", ttl=10, stale_while_revalidate=600, refresh="background")(lambda: 1)
    f()
    for _ in range(50):
        clock.tick(11)
        with ThreadPoolExecutor(2) as pool:
            closing = pool.submit(cache.driver.close)
            assert pool.submit(f).result() == 1
            closing.result()


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheaside.workers.IDLE", 0.01)


def test_a_cache_that_nobody_closed_leaves_no_threads_behind(idle: None, clock: Any) -> None:
    before = set(threading.enumerate())
    cache = Cache("embedded://", clock=clock)
    f = cache.cached(
        ns="n", key="k", ttl=10, stale_while_revalidate=60, refresh="background", lease_ttl=0.03
    )(lambda: 1)
    f()
    clock.tick(11)
    f()
    gone = weakref.ref(cache)
    assert at_rest(cache)
    del cache, f
    wait_for(lambda: not set(threading.enumerate()) - before)
    gc.collect()
    assert gone() is None


def test_a_lease_is_kept_again_after_its_thread_has_gone_idle(idle: None, clock: Any) -> None:
    cache = Cache("embedded://", clock=clock)
    keeper = cache.driver._keeper
    f = cache.cached(ns="n", key="{a}", lease_ttl=0.03)
    renewed: list[Any] = []
    perform = cache.store.perform

    def watched(command: Any) -> Any:
        if type(command).__name__ == "Renew":
            renewed.append(command)
        return perform(command)

    cache.store.perform = watched  # type: ignore[method-assign]

    @f
    def load(a: int) -> int:
        wait_for(lambda: len(renewed) > a)
        return a

    assert load(0) == 0
    wait_for(lambda: keeper._thread is None)
    renewed.clear()
    assert load(1) == 1
    cache.close()


async def test_a_loop_that_has_ended_is_not_told_of_a_flight_it_gave_up(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    go, flying = threading.Event(), threading.Event()

    def load() -> int:
        flying.set()
        go.wait(30)
        return 1

    async def aload() -> int:
        return 2

    def on_a_loop_of_its_own() -> None:
        async def wait() -> None:
            task = asyncio.ensure_future(cache.aget_or_load("n:k", aload))
            while not waiting(cache):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(wait())

    leader = asyncio.create_task(asyncio.to_thread(cache.get_or_load, "n:k", load))
    await asyncio.to_thread(flying.wait, 10)
    await asyncio.to_thread(on_a_loop_of_its_own)
    go.set()
    assert await leader == 1
    assert caplog.text == ""


# ------------------------------------------------------------------- what piles up


async def test_a_function_that_schedules_its_next_call_makes_no_chain(cache: Cache) -> None:
    """Contexts are copied into what a loader begins; calls that are over are not around the next one."""
    lengths: list[int] = []
    done = asyncio.Event()
    tasks: set[asyncio.Task[int]] = set()

    @cache.cached(ns="n", key="{a}")
    async def f(a: int) -> int:
        call, length = current_load(), 0
        while call is not None:
            call, length = call.parent, length + 1
        lengths.append(length)
        if a == 50:
            done.set()
        else:
            tasks.add(asyncio.create_task(f(a + 1)))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return a

    await f(0)
    await done.wait()
    await asyncio.gather(*tasks)
    assert max(lengths) <= 4
    assert current_load() is None


async def test_a_task_that_outlives_the_load_is_in_no_load(cache: Cache) -> None:
    go = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def outlive() -> Any:
        await go.wait()
        return current_load()

    @cache.cached(ns="n", key="k")
    async def f() -> int:
        tasks.append(asyncio.create_task(outlive()))
        return 1

    await f()
    go.set()
    assert await tasks[0] is None


def test_functions_made_in_a_loop_leave_their_counts_and_no_more(cache: Cache) -> None:
    for a in range(10):
        f = cache.cached(ns="n", key="{a}")(lambda a: a)
        f(a), f(a)
        del f
    gc.collect()
    assert cache.stats()["namespaces"]["n"]["loads"] == 10
    assert cache.stats()["namespaces"]["n"]["hits_l1"] == 10
    assert len(cache.codecs) <= 2
    assert not [one for one in gc.get_objects() if type(one) is Site and one.world is cache.world]


def test_what_followers_wait_for_does_not_pile_up() -> None:
    """Short loads are not announced: nobody ends what was asked about them, except the next who asks."""
    listener = Listener(NearCache(10, 1000, 1000), window=1.0)
    first = listener.expect_fill("n:k", 0.0)
    assert listener.expect_fill("n:k", 0.0) is first
    for n in range(100):
        listener.expect_fill("n:k", float(n + 2))
    assert first.done()
    assert len(listener._fills) == 1
    for n in range(10_000):
        listener.expect_fill(f"n:{n}", 101.0)
    assert len(listener._fills) <= 4096


# ------------------------------------------------------------------- deadlocks


def test_batches_that_overlap_in_opposite_order_do_not_wait_for_each_other(cache: Cache) -> None:
    """Each has taken what the other one wants as well; both load what they have, then look for the rest."""
    find = cache.cached_many(ns="n", key="{id}")(lambda ids: {one: one for one in ids})
    both, met = threading.Barrier(2, timeout=10), []
    perform = cache.store.perform

    def in_step(command: Any) -> Any:
        reply = perform(command)
        if type(command) is Fetch and len(command.keys) == 3 and len(met) < 2:
            met.append(command)
            both.wait()
        if type(command) is Begin and len(met) < 4:
            met.append(command)
            both.wait()
        return reply

    cache.store.perform = in_step  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(find, [1, 2, 3]), pool.submit(find, [3, 4, 1])
        assert one.result(20) == {1: 1, 2: 2, 3: 3}
        assert other.result(20) == {3: 3, 4: 4, 1: 1}
    assert len(met) == 4


def test_two_functions_that_call_each_other_end(cache: Cache) -> None:
    @cache.cached(ns="n", key="a:{n}")
    def a(n: int) -> int:
        return 0 if n == 0 else 1 + b(n)

    @cache.cached(ns="n", key="b:{n}")
    def b(n: int) -> int:
        return 1 + a(n - 1)

    assert a(5) == 10
    assert leftovers(cache) == []


def test_a_load_over_its_limit_is_thrown_away_when_it_comes(cache: Cache) -> None:
    go, ended = threading.Event(), threading.Event()

    @cache.cached(ns="n", key="k", load_timeout=0.001)
    def f() -> int:
        go.wait(30)
        ended.set()
        return 1

    with pytest.raises(LoadTimeout):
        f()
    assert leftovers(cache) == []
    go.set()
    assert ended.wait(10)
    assert not cache.exists("n:k")


def test_a_refresh_behind_a_soft_timeout_does_not_survive_an_invalidation(cache: Cache, clock: Any) -> None:
    row = [1]
    go, begun = threading.Event(), threading.Event()

    @cache.cached(ns="n", key="k", tags=["t"], ttl=10, stale_while_revalidate=60, load_timeout=(0.01, None))
    def f() -> int:
        seen = row[0]
        if seen == 2:
            begun.set()
            go.wait(30)
        return seen

    assert f() == 1
    clock.tick(11)
    row[0] = 2
    assert f() == 1, "the soft timeout"
    assert begun.wait(10)
    row[0] = 3
    cache.invalidate(tags=["t"])
    go.set()
    assert at_rest(cache)
    assert f() == 3


def test_a_lock_is_not_asked_for_on_a_hit(clock: Any) -> None:
    sent: list[type] = []

    class Watched(EmbeddedStore):
        def perform(self, command: Any) -> Any:
            sent.append(type(command))
            return super().perform(command)

    cache = Cache(store=Watched(2**20, clock), clock=clock)
    f = cache.cached(ns="n", key="k", stale_while_revalidate=60)(lambda: 1)
    f(), f()
    assert Lock not in sent
