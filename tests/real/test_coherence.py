"""L1 beside Redis: coherent within its window, off when that cannot be shown, never wrong in between."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from operator import itemgetter

import pytest

from cacheaside import Cache
from cacheaside.testing import Server
from cacheaside.testing.servers import wait_until


def until(condition: Callable[[], bool], timeout: float = 5.0) -> bool:
    """Wait for something that another thread or process brings about; bounded."""
    pause = threading.Event()
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        pause.wait(0.005)
    return condition()


def coherent(cache: Cache) -> bool:
    assert cache.near is not None
    return cache.near.limit > cache.world.tick()


class Rows:
    """A table of versions, and a repository of it on one cache."""

    def __init__(self) -> None:
        self.versions: dict[int, int] = {}
        self.loads = 0

    def repository(self, cache: Cache) -> Callable[[int], int]:
        @cache.cached(ns="rows", key="row:{id}", ttl=60, tags=["row:{id}", "rows"])
        def row(id: int) -> int:
            self.loads += 1
            return self.versions.get(id, 0)

        return row


@pytest.mark.parametrize("protocol", [2, 3])
def test_another_process_drops_what_is_invalidated(redis_url: str, protocol: int) -> None:
    """An invalidation by key, tag, pattern or put reaches every other L1 without being asked for."""
    url = f"{redis_url}?protocol={protocol}"
    with Cache(url, l1_window=1) as here, Cache(url, l1_window=1) as there:
        rows = Rows()
        mine, theirs = rows.repository(here), rows.repository(there)
        mine(1), theirs(1)
        assert until(lambda: coherent(here) and coherent(there))
        writes: list[Callable[[], object]] = [
            lambda: there.invalidate(tags=["rows"]),
            lambda: there.invalidate(keys=["rows:row:1"]),
            lambda: there.delete_matching("rows:*"),
            lambda: theirs.put(rows.versions[1], 1),  # type: ignore[attr-defined]
            lambda: there.clear(),
        ]
        for write in writes:
            mine(1)
            before = here.stats()["namespaces"]["rows"]["hits_l1"]
            mine(1)
            assert here.stats()["namespaces"]["rows"]["hits_l1"] == before + 1
            rows.versions[1] = rows.versions.get(1, 0) + 1
            write()
            assert until(lambda: mine(1) == rows.versions[1], timeout=1.0)


def test_one_s_own_invalidation_shows_at_once(redis_url: str) -> None:
    """The process that invalidates never waits for the channel."""
    with Cache(redis_url, l1_window=1) as cache:
        rows = Rows()
        row = rows.repository(cache)
        row(1)
        assert until(lambda: coherent(cache))
        for version in range(1, 200):
            assert row(1) == version - 1
            assert row(1) == version - 1
            rows.versions[1] = version
            cache.invalidate(tags=["row:1"])
            assert row(1) == version


def test_a_paused_server_turns_l1_off_within_the_window() -> None:
    """No heartbeat, no L1: nothing has to be detected. And it comes back by itself."""
    with Server() as server, Cache(server.url, l1_window=0.4) as cache:
        rows = Rows()
        row = rows.repository(cache)
        row(1)
        assert until(lambda: coherent(cache))
        server.pause()
        began = time.monotonic()
        assert until(lambda: not coherent(cache), timeout=2.0)
        assert time.monotonic() - began < 1.0
        server.resume()
        assert until(lambda: coherent(cache), timeout=5.0)


def test_a_gap_in_the_channel_is_not_survived_by_old_entries(redis_url: str, server: Server) -> None:
    """Subscriber killed, invalidation in the gap: the entry from before is not served afterwards."""
    with Cache(redis_url, l1_window=1) as here, Cache(redis_url, l1_window=None) as there:
        rows = Rows()
        mine, theirs = rows.repository(here), rows.repository(there)
        assert mine(1) == theirs(1) == 0
        assert until(lambda: coherent(here))
        for version in range(1, 6):
            assert mine(1) == version - 1
            with server.client() as admin:
                admin.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
            rows.versions[1] = version
            there.invalidate(tags=["rows"])
            assert until(lambda: mine(1) == rows.versions[1], timeout=2.0)
            assert until(lambda: coherent(here))
            assert mine(1) == version


def test_late_tags_are_stored_when_it_can_be_shown(redis_url: str) -> None:
    """Nothing was invalidated since the load began: stored. Something was: returned and not stored."""
    with Cache(redis_url, l1_window=1) as cache, Cache(redis_url, l1_window=1) as other:
        loads: list[int] = []
        entered, go = threading.Event(), threading.Event()
        go.set()

        @cache.cached(ns="late", key="post:{id}", ttl=60, tags=["author:{result[author]}"])
        def post(id: int) -> dict[str, int]:
            loads.append(id)
            entered.set()
            go.wait(5)
            return {"id": id, "author": 7}

        post(0)
        assert until(lambda: coherent(cache))
        loads.clear()
        post(1), post(1)
        assert loads == [1]
        other.invalidate(tags=["author:7"])
        assert until(lambda: post(1) and loads == [1, 1])
        entered.clear()
        go.clear()
        reader = threading.Thread(target=post, args=(2,))
        reader.start()
        assert entered.wait(5)
        other.invalidate(tags=["author:7"])
        go.set()
        reader.join(5)
        post(2)
        assert loads == [1, 1, 2, 2]


async def test_late_tags_async(redis_url: str) -> None:
    """The same proof from an event loop."""
    async with Cache(redis_url, l1_window=1) as cache:
        loads: list[int] = []

        @cache.cached(ns="late", key="post:{id}", ttl=60, tags=["author:{result[author]}"])
        async def post(id: int) -> dict[str, int]:
            loads.append(id)
            return {"id": id, "author": 7}

        await post(0)
        assert await asyncio.to_thread(until, lambda: coherent(cache))
        await post(1)
        assert await post(1) == {"id": 1, "author": 7}
        await cache.ainvalidate(tags=["author:7"])
        await post(1)
        assert loads == [0, 1, 1]


def test_a_forked_child_listens_for_itself(redis_url: str) -> None:
    """The parent's horizon proves nothing in a child; the child's own channel does."""
    with Cache(redis_url, l1_window=1) as cache, Cache(redis_url, l1_window=None) as other:
        rows = Rows()
        row, theirs = rows.repository(cache), rows.repository(other)
        row(1)
        assert until(lambda: coherent(cache))
        row(1)
        assert cache.channel is not None
        name, epoch = cache.channel.identity, cache.channel.epoch
        child = os.fork()
        if child == 0:
            code = 1
            try:
                ok = row(1) == 0 and until(lambda: cache.channel.epoch > epoch and coherent(cache))
                code = 0 if ok and cache.channel.identity != name else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        rows.versions[1] = 1
        other.invalidate(tags=["rows"])
        assert until(lambda: row(1) == 1)
        assert theirs(1) == 1


def test_a_follower_is_woken_by_the_fill(redis_url: str) -> None:
    """A caller in another process has the value soon after it was stored, with few commands."""
    with Cache(redis_url, l1_window=1) as here, Cache(redis_url, l1_window=1) as there:
        entered, go = threading.Event(), threading.Event()

        def decorate(cache: Cache) -> Callable[[int], int]:
            @cache.cached(ns="slow", key="x:{id}", ttl=60)
            def slow(id: int) -> int:
                entered.set()
                go.wait(5)
                return id

            return slow

        mine, theirs = decorate(here), decorate(there)
        assert until(lambda: here.channel is not None and there.channel is not None)
        go.set()
        mine(0), theirs(0)
        assert until(lambda: coherent(here) and coherent(there))
        entered.clear()
        go.clear()
        leader = threading.Thread(target=mine, args=(1,))
        leader.start()
        assert entered.wait(5)
        got: list[float] = []
        follower = threading.Thread(target=lambda: (theirs(1), got.append(time.monotonic())))
        follower.start()
        threading.Event().wait(0.6)
        released = time.monotonic()
        go.set()
        follower.join(5)
        leader.join(5)
        assert got[0] - released < 0.2
        assert there.stats()["namespaces"]["slow"]["loads"] == 0


def test_after_a_barrier_no_process_serves_what_was_dropped(redis_url: str) -> None:
    """One window after the acknowledgement every L1 has heard of it or has switched itself off."""
    with Cache(redis_url, l1_window=0.3) as here, Cache(redis_url, l1_window=0.3) as there:
        rows = Rows()
        mine, theirs = rows.repository(here), rows.repository(there)
        mine(1), theirs(1)
        assert until(lambda: coherent(here) and coherent(there))
        for version in range(1, 6):
            mine(1)
            mine(1)
            rows.versions[1] = version
            began = time.monotonic()
            assert there.invalidate(tags=["rows"], barrier=True)
            assert time.monotonic() - began >= 0.3
            assert mine(1) == version


def test_stats_tell_whether_l1_is_coherent(redis_url: str) -> None:
    """Coherent, since when, and which subscription it is."""
    with Cache(redis_url, l1_window=0.4) as cache:
        assert cache.stats()["l1"]["coherent"] is False
        rows = Rows()
        rows.repository(cache)(1)
        assert until(lambda: bool(cache.stats()["l1"]["coherent"]))
        state = cache.stats()["l1"]
        assert state["epoch"] == 1
        assert 0 <= state["horizon_age"] < 0.4


def test_another_process_s_l1_is_never_older_than_its_window(redis_url: str, server: Server) -> None:
    """Readers beside a writer elsewhere, the subscriber killed again and again: age within the window."""
    window, seconds = 0.4, 3.0
    with Cache(redis_url, l1_window=window) as here, Cache(redis_url, l1_window=window) as there:
        rows = Rows()
        rows.versions = dict.fromkeys(range(5), 0)
        mine, theirs = rows.repository(here), rows.repository(there)
        acknowledged: dict[int, list[tuple[float, int]]] = {id: [(0.0, 0)] for id in rows.versions}
        end = time.monotonic() + seconds
        answers: list[tuple[float, int, int]] = []
        pause = threading.Event()

        def write() -> None:
            while time.monotonic() < end:
                for id in rows.versions:
                    rows.versions[id] += 1
                    version = rows.versions[id]
                    if there.invalidate(tags=[f"row:{id}"]):
                        acknowledged[id].append((time.monotonic(), version))
                    theirs(id)
                    pause.wait(0.01)

        def read() -> None:
            while time.monotonic() < end:
                for id in rows.versions:
                    began = time.monotonic()
                    answers.append((began, id, mine(id)))

        def kill() -> None:
            with server.client() as admin:
                while time.monotonic() < end:
                    admin.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
                    pause.wait(0.5)

        work = [threading.Thread(target=one) for one in (write, read, read, kill)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join(30)
        hits = here.stats()["namespaces"]["rows"]["hits_l1"]

    def newest(id: int, before: float) -> int:
        return acknowledged[id][bisect_right(acknowledged[id], before, key=itemgetter(0)) - 1][1]

    behind = sum(version < newest(id, began) for began, id, version in answers)
    too_old = [a for a in answers if a[2] < newest(a[1], a[0] - window)]
    print(
        f"{len(answers)} answers, {hits} from L1, {behind} behind within the window, {len(too_old)} beyond it"
    )
    assert hits > 100
    assert not too_old


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_nothing_is_announced_before_it_is_done_when_the_server_forgot_its_scripts(
    redis_url: str, server: Server, asynchronous: bool
) -> None:
    """Who has heard keeps what he reads from then on: it must not be what is about to be dropped.

    The script that drops a key comes first and is unknown; the announcement behind it must wait for it.
    """
    with server.client() as admin:
        async with Cache(redis_url, l1_window=None) as cache:

            async def do(operation: str, *args: object, **kwargs: object) -> None:
                if asynchronous:
                    await getattr(cache, f"a{operation}")(*args, **kwargs)
                else:
                    getattr(cache, operation)(*args, **kwargs)

            for operation, args, kwargs in (
                ("invalidate", (), {"keys": ["rows:row:1"]}),
                ("invalidate", (), {"keys": ["rows:row:1"], "tags": ["rows"]}),
                ("set", ("rows:row:1", "new"), {}),
            ):
                await do("get", "rows:row:1")  # the connection is open: what follows is the operation alone
                admin.script_flush()
                with admin.monitor() as monitor:
                    await do(operation, *args, **kwargs)
                    admin.echo("over")
                    seen: list[str] = []
                    while "ECHO" not in (line := monitor.next_command())["command"]:
                        seen.append(line["command"].split()[0].upper())
                whole = [i for i, name in enumerate(seen) if name == "EVAL"]
                announced = [i for i, name in enumerate(seen) if name == "PUBLISH"]
                assert whole, seen
                assert announced[-1] > whole[0], (operation, seen)
                if operation == "invalidate":
                    assert announced[-1] > whole[-1], seen


@pytest.mark.parametrize("by", ["key", "tag", "late tag"])
def test_what_stays_out_of_redis_is_as_coherent_as_the_rest(redis_url: str, server: Server, by: str) -> None:
    """With ``l2=False`` each process keeps its own; an invalidation by another one drops it."""
    with Cache(redis_url, l1_window=1) as here, Cache(redis_url, l1_window=1) as there:
        version = 1

        @here.cached(ns="n", key="{a}", l2=False, tags=["all", "late:{result}"])
        def f(a: int) -> int:
            return version

        @here.cached_many(ns="m", key="{id}", l2=False, tags=["all"])
        def many(ids: list[int]) -> dict[int, int]:
            return dict.fromkeys(ids, version)

        f(1)
        assert wait_until(lambda: here.stats()["l1"]["coherent"])
        assert (f(1), many([1, 2])) == (1, {1: 1, 2: 1})
        version = 2
        assert (f(1), many([1, 2])) == (1, {1: 1, 2: 1}), "kept"
        assert here.stats()["namespaces"]["n"]["hits_l1"] > 0
        with server.client() as client:
            assert client.keys("cacheaside:*") == []
        what = {"key": {"keys": ["n:1"]}, "tag": {"tags": ["all"]}, "late tag": {"tags": ["late:1"]}}[by]
        assert there.invalidate(**what, barrier=True)
        assert f(1) == 2
        assert many([1]) == ({1: 2} if by == "tag" else {1: 1})


def test_a_load_that_an_invalidation_overtakes_stays_out_of_l1(redis_url: str) -> None:
    with Cache(redis_url, l1_window=1) as here, Cache(redis_url, l1_window=1) as there:
        version = [1]

        @here.cached(ns="n", key="k", l2=False, tags=["t"])
        def f() -> int:
            found = version[0]
            if found == 1:
                version[0] = 2
                heard = here.near.now()  # type: ignore[union-attr]
                assert there.invalidate(tags=["t"])
                assert wait_until(lambda: here.near.now() > heard)  # type: ignore[union-attr]
            return found

        here.listen()
        assert wait_until(lambda: here.stats()["l1"]["coherent"])
        assert f() == 1
        assert f() == 2
