"""The whole cache on a cluster: every operation, keys and tags wherever their slots are."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cacheaside import Cache
from cacheaside.testing import ClusterServer
from cacheaside.testing.servers import wait_until
from tests.real.test_op_counts import Wire, wire  # noqa: F401

both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


async def do(result: Any) -> Any:
    """What a call answers, whatever its colour."""
    return await result if inspect.isawaitable(result) else result


class Face:
    """The operations of a cache in one colour, by their plain names."""

    def __init__(self, cache: Cache, *, asynchronous: bool) -> None:
        self.cache = cache
        self.asynchronous = asynchronous

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self.cache, f"a{name}" if self.asynchronous else name)
        return lambda *args, **options: do(operation(*args, **options))


@pytest.fixture
def whole(cluster: ClusterServer) -> Iterator[ClusterServer]:
    """The shared cluster; at the end nobody has been told CROSSSLOT."""
    for node in cluster.nodes:
        with node.client() as client:
            client.config_resetstat()
    yield cluster
    for node in cluster.nodes:
        with node.client() as client:
            errors = client.info("errorstats")
        assert not {name for name in errors if "CROSSSLOT" in name}


@both
async def test_direct_operations(whole: ClusterServer, asynchronous: bool) -> None:
    """Fifty keys and ten tags, on all servers: stored, listed, dropped by key, by tag and by pattern."""
    async with Cache(whole.url, l1_window=None) as cache:
        face = Face(cache, asynchronous=asynchronous)
        values = {f"n:k{i}": i for i in range(50)}
        for i, (key, value) in enumerate(values.items()):
            assert await face.set(key, value, tags=[f"t{i % 10}", "all"])
        assert await face.get_many(values) == values
        assert await face.get("n:k7") == 7
        assert await face.exists("n:k7") is True
        assert 290 < await face.ttl("n:k7") <= 300
        assert await face.expire("n:k7", 60)
        assert 50 < await face.ttl("n:k7") <= 60
        assert set(await face.tag_keys("t7")) == {"n:k7", "n:k17", "n:k27", "n:k37", "n:k47"}
        assert "valid" in await face.explain("n:k7")
        assert await face.biggest_tags(2) == [("all", 50), ("t0", 5)]

        assert await face.invalidate(tags=["t7", "t8"], keys=["n:k0", "n:k1"])
        gone = {key for i, key in enumerate(values) if i % 10 in (7, 8) or i < 2}
        assert set(await face.get_many(values)) == set(values) - gone
        assert await face.reclaim("t7") == 5

        assert await face.set_many({"m:a": 1, "m:b": 2, "m:c": 3}, tags=["all"])
        assert await face.delete("m:a", "m:b")
        assert await face.get_many(["m:a", "m:b", "m:c"]) == {"m:c": 3}
        assert await face.delete_matching("n:k1*") >= 8
        assert not {key for key in await face.get_many(values) if key.startswith("n:k1")}
        assert await face.clear("n") >= 20
        assert await face.get_many(values) == {}
        assert await face.get("m:c") == 3
        assert await face.invalidate(tags=["all"])
        assert await face.get("m:c", None) is None
        assert await face.clear() >= 1


def functions(cache: Cache, *, asynchronous: bool, loads: list[Any]) -> tuple[Any, Any, Any, Any]:
    """A tagged function, one of batches, a writer and an updater, in one colour."""

    def post(id: int) -> str:
        loads.append(id)
        return f"post {id} " + "x" * (id * 1000)

    def posts(ids: list[int]) -> dict[int, str]:
        loads.append(tuple(ids))
        return {id: f"post {id}" for id in ids if id >= 0}

    def write(id: int) -> None:
        loads.append(f"write {id}")

    def update(id: int) -> str:
        return f"updated {id}"

    def colour(f: Any) -> Any:
        async def af(*args: Any) -> Any:
            return f(*args)

        if not asynchronous:
            return f
        af.__annotations__, af.__name__, af.__qualname__ = f.__annotations__, f.__name__, f.__qualname__
        af.__signature__ = inspect.signature(f)  # type: ignore[attr-defined]
        return af

    tags = ["post:{id}", "posts"]
    return (
        cache.cached(ns="p", key="post:{id}", ttl=60, tags=tags)(colour(post)),
        cache.cached_many(ns="many", key="post:{id}", ttl=60, tags=tags)(colour(posts)),
        cache.invalidates(tags=["post:{id}"])(colour(write)),
        cache.updates(ns="p", key="post:{id}", ttl=60, tags=tags)(colour(update)),
    )


@both
async def test_decorators(whole: ClusterServer, asynchronous: bool) -> None:
    """Hits, batches, writers, puts and handles, small values and staged ones."""
    loads: list[Any] = []
    async with Cache(whole.url, compress_above=None, l1_window=None) as cache:
        post, posts, write, update = functions(cache, asynchronous=asynchronous, loads=loads)
        for _ in range(2):
            for id in range(12):
                assert (await do(post(id))).startswith(f"post {id} ")
        assert loads == list(range(12))
        loads.clear()

        assert await do(posts([1, 2, -3])) == {1: "post 1", 2: "post 2"}
        assert await do(posts([1, 2, -3, 4])) == {1: "post 1", 2: "post 2", 4: "post 4"}
        assert loads == [(1, 2, -3), (4,)]
        loads.clear()

        await do(write(2))
        await do(post(2)), await do(posts([2])), await do(post(1))
        assert loads == ["write 2", 2, (2,)]
        loads.clear()

        assert await do(update(3)) == "updated 3"
        assert await do(post(3)) == "updated 3"
        assert await do(post.put("put", 3)) is True
        assert await do(post.peek(3)) == "put"
        assert await do(post.invalidate(3))
        await do(post.refresh(4)), await do(post.warm([(5,), (3,)]))
        assert loads == [4, 3]
        loads.clear()

        invalidate = cache.ainvalidate if asynchronous else cache.invalidate
        assert await do(invalidate(tags=["posts"]))
        await do(post(0)), await do(post(11))
        assert loads == [0, 11]


@both
async def test_transactions_and_holds(whole: ClusterServer, asynchronous: bool) -> None:
    loads: list[Any] = []
    async with Cache(whole.url, l1_window=None) as cache:
        post, *_ = functions(cache, asynchronous=asynchronous, loads=loads)
        invalidate = cache.ainvalidate if asynchronous else cache.invalidate
        await do(post(1))
        if asynchronous:
            async with cache.transaction():
                await cache.ainvalidate(tags=["post:1"])
            async with cache.mutating(tags=["post:1"], keys=["p:post:2"]):
                await post(1), await post(1), await post(2)
        else:
            with cache.transaction():
                cache.invalidate(tags=["post:1"])
            with cache.mutating(tags=["post:1"], keys=["p:post:2"]):
                post(1), post(1), post(2)
        assert loads == [1, 1, 1, 2]
        loads.clear()
        await do(post(1)), await do(post(1)), await do(post(2)), await do(post(2))
        assert loads == [1, 2]
        await do(invalidate(tags=["post:1"], hold=30))
        await do(post(1)), await do(post(1))
        assert loads == [1, 2, 1, 1]


@both
async def test_a_hit_is_one_round_trip_to_each_server_concerned(
    whole: ClusterServer,
    wire: Wire,  # noqa: F811
    asynchronous: bool,
) -> None:
    async with Cache(whole.url, l1_window=None) as cache:
        post, posts, *_ = functions(cache, asynchronous=asynchronous, loads=[])
        store: Any = cache.store
        for id in range(10):
            await do(post(id))
            await do(post(id))
            raws = [cache.world.keys.value(post.key(id)), *map(cache.world.keys.token, post.tags(id))]
            servers = {store.topology.server_of(raw) for raw in raws}
            with wire.counting():
                await do(post(id))
            assert set(wire.names) == {"MGET"}
            assert wire.round_trips == len(servers)
        await do(posts(list(range(100))))
        with wire.counting():
            assert len(await do(posts(list(range(100))))) == 100
        assert set(wire.names) == {"MGET"}
        assert wire.round_trips == 3


async def test_calls_of_one_tick_are_one_round_trip_to_each_server(
    whole: ClusterServer,
    wire: Wire,  # noqa: F811
) -> None:
    async with Cache(whole.url, l1_window=None) as cache:
        post, *_ = functions(cache, asynchronous=True, loads=[])
        await asyncio.gather(*(post(id % 20) for id in range(100)))
        with wire.counting():
            await asyncio.gather(*(post(id % 20) for id in range(100)))
        assert wire.round_trips == 3


# ---------------------------------------------------------------------------- L1


def rows(cache: Cache, versions: dict[int, int]) -> Callable[[int], int]:
    @cache.cached(ns="rows", key="row:{id}", ttl=60, tags=["row:{id}", "rows"])
    def row(id: int) -> int:
        return versions.get(id, 0)

    return row


@pytest.mark.parametrize("protocol", [2, 3])
def test_every_l1_hears_what_is_invalidated_on_any_server(whole: ClusterServer, protocol: int) -> None:
    """By key, by tag, by pattern and by put, of thirty keys whose buckets lie on all servers."""
    url, versions = f"{whole.url}?protocol={protocol}", dict[int, int]()
    with Cache(url, l1_window=1) as here, Cache(url, l1_window=1) as there:
        mine, theirs = rows(here, versions), rows(there, versions)
        mine(0), theirs(0)
        assert wait_until(lambda: coherent(here) and coherent(there))
        for id in range(30):
            writes: list[Callable[[], object]] = [
                lambda id=id: there.invalidate(tags=[f"row:{id}"]),
                lambda id=id: there.invalidate(keys=[f"rows:row:{id}"]),
                lambda id=id: theirs.put(versions[id], id),
                lambda id=id: there.delete_matching(f"rows:row:{id}"),
            ]
            write = writes[id % 4]
            mine(id), mine(id)
            before = here.stats()["namespaces"]["rows"]["hits_l1"]
            mine(id)
            assert here.stats()["namespaces"]["rows"]["hits_l1"] == before + 1
            versions[id] = 1
            write()
            assert wait_until(lambda id=id: mine(id) == 1, 1.0)


@both
async def test_late_tags_are_stored_when_all_their_servers_have_been_heard(
    whole: ClusterServer, asynchronous: bool
) -> None:
    async with Cache(whole.url, l1_window=1) as cache, Cache(whole.url, l1_window=1) as other:
        loads: list[int] = []

        def post(id: int) -> dict[str, int]:
            loads.append(id)
            return {"id": id, "author": id % 10, "topic": id % 7}

        async def apost(id: int) -> dict[str, int]:
            return post(id)

        tags = ["author:{result[author]}", "topic:{result[topic]}"]
        late: Any = cache.cached(ns="late", key="post:{id}", ttl=60, tags=tags)(
            apost if asynchronous else post
        )
        await do(late(0))
        assert await asyncio.to_thread(wait_until, lambda: coherent(cache))
        loads.clear()
        for id in range(20):
            await do(late(id)), await do(late(id))
        assert loads == list(range(20))
        other.invalidate(tags=["author:3"])
        cache.near.clear()  # type: ignore[union-attr]
        loads.clear()
        for id in range(20):
            await do(late(id))
        assert loads == [3, 13]


def test_a_line_that_is_cut_turns_l1_off_until_all_are_heard_again(whole: ClusterServer) -> None:
    """Subscribers of one server killed: what is invalidated in the gap is not served afterwards."""
    versions: dict[int, int] = {}
    with Cache(whole.url, l1_window=1) as here, Cache(whole.url, l1_window=None) as there:
        mine = rows(here, versions)
        mine(1)
        assert wait_until(lambda: coherent(here))
        for version in range(1, 4):
            node = whole.primary_of(there.world.keys.token("rows"))
            assert mine(1) == version - 1
            with node.client() as admin:
                admin.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
            versions[1] = version
            there.invalidate(tags=["rows"])
            assert wait_until(lambda version=version: mine(1) == version, 2.0)
            assert wait_until(lambda: coherent(here))
            assert mine(1) == version


def test_a_paused_server_turns_l1_off_within_the_window() -> None:
    with ClusterServer() as cluster, Cache(cluster.url, l1_window=0.4) as cache:
        rows(cache, {})(1)
        assert wait_until(lambda: coherent(cache))
        for node in cluster.nodes:
            node.pause()
            began = time.monotonic()
            assert wait_until(lambda: not coherent(cache), 2.0)
            assert time.monotonic() - began < 0.6
            node.resume()
            assert wait_until(lambda: coherent(cache), 10.0)


def test_l1_is_back_when_all_servers_were_away() -> None:
    """For longer than a few attempts of the channel: it has no breaker that anybody would close."""
    with ClusterServer() as cluster, Cache(cluster.url, l1_window=0.4, timeout=0.1) as cache:
        rows(cache, {})(1)
        assert wait_until(lambda: coherent(cache))
        for node in cluster.nodes:
            node.pause()
        time.sleep(3)
        for node in cluster.nodes:
            node.resume()
        assert wait_until(cluster.in_order, 30)
        assert wait_until(lambda: coherent(cache), 10.0)


def coherent(cache: Cache) -> bool:
    return bool(cache.stats()["l1"]["coherent"])
