"""Sessions and tokens on real servers: races, real time, servers that are full, gone, copies or a cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cacheaside import Cache, StoreUnavailable
from cacheaside.testing import ClusterServer, ReplicaSet, Server
from cacheaside.testing.servers import wait_until
from cacheaside.toolkit import Blacklist, RefreshTokens, SessionStore

DATA = {"email": "ann@example.org"}
CROWD = 12


@pytest.fixture
def cache(redis_url: str) -> Iterator[Cache]:
    with Cache(redis_url, l1_window=None) as cache:
        yield cache


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """What ``act(n)`` gives in so many threads that begin together."""
    start = threading.Barrier(count)

    def one(n: int) -> Any:
        start.wait()
        return act(n)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


# ---------------------------------------------------------------------------- races


def test_no_update_of_many_threads_is_lost(cache: Cache) -> None:
    store = SessionStore(cache)
    token = store.create("ann", {}).token
    for turn in range(5):
        at_once(CROWD, lambda n, turn=turn: store.update(token, {f"{turn}.{n}": n}))
    found = store.get(token)
    assert found is not None
    assert found.data == {f"{turn}.{n}": n for turn in range(5) for n in range(CROWD)}
    assert store.stats()["conflicts"] > 0, "they did meet"


async def test_no_update_of_many_tasks_is_lost(redis_url: str) -> None:
    async with Cache(redis_url, l1_window=None) as cache:
        store = SessionStore(cache)
        token = (await store.acreate("ann", {"count": 0})).token
        await asyncio.gather(
            *(store.aupdate(token, lambda data: {"count": data["count"] + 1}) for _ in range(40))
        )
        found = await store.aget(token)
        assert found is not None
        assert found.data == {"count": 40}
        assert store.stats()["conflicts"] > 0


def test_nobody_is_logged_in_after_a_logout_whatever_runs_beside_it(cache: Cache) -> None:
    """Readers, writers, rotations and extensions go on while one thread logs out."""
    store = SessionStore(cache)
    for turn in range(15):
        made = store.create("ann", DATA)
        tokens = [made.token]

        def act(n: int, turn: int = turn, token: str = made.token, tokens: list[str] = tokens) -> None:
            if n == 0:
                time.sleep(turn * 0.0004)
                assert store.delete_all("ann")
                return
            for step in range(6):
                if n == 1:
                    new = store.rotate(token)
                    if new is not None:
                        tokens.append(new.token)
                elif n == 2:
                    store.update(token, {"step": step})
                elif n == 3:
                    store.extend(token)
                else:
                    store.get(token)

        at_once(6, act)
        assert [token for token in tokens if store.get(token) is not None] == []
        assert store.list("ann") == []


def test_rotations_of_many_threads_agree_on_one_token(cache: Cache) -> None:
    store, refresh = SessionStore(cache), RefreshTokens(cache)
    token, line = store.create("ann", DATA).token, refresh.issue("ann")
    sessions = at_once(CROWD, lambda _: store.rotate(token))
    assert len({session.token for session in sessions}) == 1
    assert store.get(sessions[0].token) is not None
    following = at_once(CROWD, lambda _: refresh.rotate(line))
    assert len(set(map(str, following))) == 1
    assert refresh.rotate(following[0]) is not None


def test_logins_of_many_threads_keep_to_the_cap(cache: Cache) -> None:
    store = SessionStore(cache, max_per_user=5)
    made = at_once(CROWD, lambda n: store.create("ann", {"n": n}))
    live = [one for one in made if store.get(one.token) is not None]
    assert len(live) == 5
    youngest = sorted(made, key=lambda one: one.created_at)[-5:]
    assert {one.id for one in live} == {one.id for one in youngest}


# ---------------------------------------------------------------------------- time


def test_a_session_and_a_grace_end_by_the_server_s_own_clock(cache: Cache) -> None:
    """The client's may be wrong by years."""
    cache.world.clock = lambda: 1.0
    store = SessionStore(cache, ttl=0.3, grace=0.05)
    old = store.create("ann", DATA)
    new = store.rotate(old.token)
    assert new is not None
    assert abs(new.created_at.timestamp() - time.time()) < 60
    assert wait_until(lambda: store.get(old.token) is None)
    assert store.extend(new.token)
    assert wait_until(lambda: not store.list("ann"))
    assert store.get(new.token) is None


def test_use_keeps_a_session_until_its_absolute_end(one_redis_url: str) -> None:
    with Cache(one_redis_url, l1_window=None) as cache:
        store = SessionStore(cache, ttl=1, absolute_ttl=1.2)
        made = store.create("ann", DATA)
        began = time.monotonic()
        assert wait_until(lambda: store.get(made.token) is None)
        assert time.monotonic() - began > 1.15, "use kept it past its idle life"


# ---------------------------------------------------------------------------- servers in trouble


def test_a_server_that_forgets_its_scripts_is_told_them_again(cache: Cache, server: Server) -> None:
    store = SessionStore(cache)
    token = store.create("ann", DATA).token
    with server.client() as client:
        client.script_flush()
    assert store.get(token) is not None


def test_a_full_server_knows_who_is_logged_in_and_lets_nobody_else_in(server: Server) -> None:
    """Nothing can be written but what frees memory: reading and logging out go on, logins fail loudly."""
    with (
        Server(server.kind, args=("--maxmemory-policy", "noeviction")) as full,
        Cache(full.url, l1_window=None) as cache,
    ):
        store, refresh, blacklist = SessionStore(cache), RefreshTokens(cache), Blacklist(cache)
        made, other, line = store.create("ann", DATA), store.create("bob", DATA), refresh.issue("ann")
        blacklist.add("jwt", 60)
        with full.client() as client:
            client.config_set("maxmemory", 1)
        found = store.get(made.token)
        assert found is not None
        assert found.data == DATA
        assert blacklist.contains("jwt")
        assert [one.id for one in store.list("ann")] == [made.id]
        for refused in (
            lambda: store.create("ann", DATA),
            lambda: store.update(made.token, {"role": "admin"}),
            lambda: store.rotate(made.token),
            lambda: refresh.rotate(line),
            lambda: blacklist.add("other", 60),
        ):
            with pytest.raises(StoreUnavailable):
                refused()
        assert store.get(made.token) is not None, "a rotation that failed has taken nothing away"
        assert store.delete(made.token)
        assert store.delete_all("bob")
        assert refresh.revoke(line)
        assert [store.get(one.token) for one in (made, other)] == [None, None]


def test_a_read_only_copy_lets_nobody_in() -> None:
    """It may not have heard of a logout."""
    with Server() as primary, Server() as replica, Cache(replica.url, l1_window=None) as cache:
        store, refresh = SessionStore(cache), RefreshTokens(cache)
        token, line = store.create("ann", DATA).token, refresh.issue("ann")
        with replica.client() as client:
            dumps = {key: client.dump(key) for key in client.scan_iter()}
            with primary.client() as source:
                for key, raw in dumps.items():
                    source.restore(key, 60_000, raw)
            client.replicaof("127.0.0.1", primary.port)
            assert wait_until(lambda: client.info("replication")["master_link_status"] == "up")
            assert client.dbsize() == 2
        assert store.get(token) is None
        assert store.stats()["unavailable"] == 1
        with pytest.raises(StoreUnavailable):
            refresh.rotate(line)


async def test_a_server_that_is_gone_logs_nobody_in_and_comes_back() -> None:
    with Server() as server:
        cache = Cache(server.url, l1_window=None)
        store, blacklist, lax = (
            SessionStore(cache), Blacklist(cache), Blacklist(cache, on_unavailable="allow"),
        )  # fmt: skip
        token = store.create("ann", DATA).token
        server.kill()
        assert store.get(token) is None
        assert await store.aget(token) is None
        assert store.stats()["unavailable"] == 2
        assert (blacklist.contains("jwt"), lax.contains("jwt")) == (True, False)
        for refused in (store.create, store.update):
            with pytest.raises(StoreUnavailable):
                refused("ann" if refused == store.create else token, {})
        with pytest.raises(StoreUnavailable):
            await store.adelete_all("ann")
        server.restart()
        assert wait_until(lambda: cache.health().ok, 2)
        assert store.get(token) is None, "what an empty server does not know is no session"
        made = await store.acreate("ann", DATA)
        assert store.get(made.token) is not None
        await cache.aclose()


# ---------------------------------------------------------------------------- many servers


async def everything_works(url: str) -> None:
    async with Cache(url, l1_window=None) as cache:
        store, refresh, blacklist = SessionStore(cache), RefreshTokens(cache), Blacklist(cache)
        made = [await store.acreate(user, {"n": user}) for user in range(12)]
        for user, one in enumerate(made):
            new = store.rotate(one.token)
            assert new is not None
            again = await store.arotate(one.token)
            assert again is not None
            assert again.token == new.token
            updated = await store.aupdate(new.token, {"more": True})
            assert updated is not None
            assert updated.data == {"n": user, "more": True}
            assert [listed.id for listed in await store.alist(user)] == [one.id]
            line = await refresh.aissue(user)
            following = refresh.rotate(line)
            assert following == await refresh.arotate(line)
            assert await refresh.arevoke_all(user)
            await blacklist.aadd(f"jwt {user}", 60)
            assert blacklist.contains(f"jwt {user}")
            assert await store.adelete_all(user)
            assert await store.aget(new.token) is None


async def test_a_cluster_will_do() -> None:
    with ClusterServer() as cluster:
        await everything_works(cluster.url)
        for node in cluster.nodes:
            with node.client() as client:
                assert client.dbsize() > 0, "the users are spread over all of it"


async def test_a_primary_behind_a_sentinel_will_do() -> None:
    with ReplicaSet() as servers:
        await everything_works(servers.url)
