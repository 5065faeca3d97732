"""Redis answers and refuses: what is served, stored and kept then, and that it is said once."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from cacheaside import Cache, ConfigError, StoreUnavailable
from cacheaside.events import Event
from cacheaside.testing import ClusterServer, ReplicaSet, Server
from cacheaside.testing.servers import wait_until
from tests.conftest import SERVERS
from tests.real.replies import INFO as REPLIES_TO_INFO
from tests.real.replies import Says

FAST: dict[str, Any] = {"timeout": 1, "invalidation_timeout": 0.05}
servers_of_each_kind = pytest.mark.parametrize("kind", list(SERVERS))


class Row:
    """A row with a version; ``get`` reads it through a cache."""

    def __init__(self, cache: Cache) -> None:
        self.version = 0
        self.loads = 0

        @cache.cached(ns="rows", key="row", ttl=60, tags=["rows"], early_refresh=None)
        def get() -> int:
            self.loads += 1
            return self.version

        self.get: Callable[[], int] = get


def back(cache: Cache) -> bool:
    return wait_until(lambda: cache.health().ok and not cache.health().owed, 5)


@pytest.fixture
def events() -> list[Event]:
    return []


# ---------------------------------------------------------------------------- a server that takes no writes


def demoted(server: Server) -> Callable[[], object]:
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)
    return lambda: server.client().replicaof("NO", "ONE")


def full(server: Server) -> Callable[[], object]:
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
    return lambda: server.client().config_set("maxmemory", 0)


def snapshots_fail(server: Server) -> Callable[[], object]:
    with server.client() as client:
        client.config_set("save", "3600 1")
        shutil.rmtree(server.directory, ignore_errors=True)
        client.bgsave()
        assert wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    return lambda: server.client().config_set("stop-writes-on-bgsave-error", "no")


@servers_of_each_kind
@pytest.mark.parametrize("trouble", [demoted, full, snapshots_fail])
def test_a_server_that_takes_no_writes_is_read_from_and_told_later(
    kind: Any, trouble: Callable[[Server], Callable[[], object]], events: list[Event]
) -> None:
    with Server(kind) as server, Cache(server.url, **FAST, on_event=events.append, l1_window=None) as cache:
        row = Row(cache)
        other = cache.get_or_load("rows:other", lambda: 7)
        assert row.get() == row.get() == 0
        mend = trouble(server)
        for _ in range(5):
            assert row.get() == 0
        assert cache.get("rows:other") == other == 7
        row.version = 1
        assert not cache.invalidate(tags=["rows"])
        for _ in range(5):
            assert row.get() == 1, "what was invalidated here is not believed"
        assert cache.get("rows:other") == 7, "what was not is served"
        assert cache.health().ok
        assert cache.health().owed == 1
        mend()
        assert back(cache)
        assert row.get() == row.get() == 1
        assert cache.stats()["namespaces"]["rows"]["hits_l2"] >= 6
        assert len([e for e in events if e.name == "error"]) <= 2


# ---------------------------------------------------------------------------- a server that serves nobody


@servers_of_each_kind
def test_a_server_busy_with_a_script_is_away(kind: Any) -> None:
    with (
        Server(kind, args=["--busy-reply-threshold", "50"]) as server,
        Cache(server.url, **FAST, l1_window=None) as cache,
    ):
        row = Row(cache)
        row.get()

        def spin() -> None:
            with server.client() as client, pytest.raises(redis.ResponseError):
                client.eval("while true do end", 0)

        spinning = threading.Thread(target=spin)
        spinning.start()
        assert wait_until(lambda: row.get() == 0 and not cache.health().ok)
        row.version = 1
        assert not cache.invalidate(tags=["rows"])
        incarnation = cache.world.incarnation("rows:row")
        with server.client() as client:
            client.script_kill()
        spinning.join()
        assert back(cache)
        assert row.get() == row.get() == 1
        assert cache.world.incarnation("rows:row") == incarnation, "BUSY is no news about the server"
        assert cache.stats()["store"]["failovers"] == {"cold": 0, "replay": 0, "trust": 0}


@pytest.mark.parametrize(
    "reply",
    [
        "-LOADING Redis is loading the dataset in memory",
        "-BUSY Redis is busy running a script.",
        "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "-CLUSTERDOWN The cluster is down",
        "-NOAUTH Authentication required.",
        "-ERR max number of clients reached",
        "?what is this",
        "",
    ],
)
def test_what_a_server_says_that_serves_nobody_opens_the_breaker(reply: str) -> None:
    with Says(reply) as server, Cache(server.url, timeout=0.3, invalidation_timeout=0.05) as cache:
        row = Row(cache)
        for row.version in range(8):
            assert row.get() == row.version
        assert not cache.health().ok
        asked = len(server.asked)
        for _ in range(100):
            row.get()
        assert len(server.asked) - asked < 20, "only recovery asks"
        assert not cache.invalidate(tags=["rows"])
        assert cache.get("rows:row", "missing") == "missing"


@pytest.mark.parametrize(
    "reply",
    [
        "-READONLY You can't write against a read only replica.",
        "-OOM command not allowed when used memory > 'maxmemory'.",
        "-MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist on disk.",
        "-NOPERM this user has no permissions to run the 'mget' command",
        "-ERR unknown command 'MGET'",
        "-TRYAGAIN Multiple keys request during rehashing of slot",
        "-MOVED 3999 127.0.0.1:6381",
        "-ASK 3999 127.0.0.1:6381",
        "-ERR",
        ":1",
        "$-1",
        "*0",
        "*1\r\n$1\r\nx",
    ],
)
def test_whatever_a_server_says_calls_are_answered_by_their_functions(reply: str) -> None:
    with Says(reply) as server, Cache(server.url, timeout=0.3, invalidation_timeout=0.05) as cache:
        row = Row(cache)
        for row.version in range(5):
            assert row.get() == row.version
        assert cache.get("rows:row", "missing") == "missing"
        assert cache.set("rows:row", 1) is False


@pytest.mark.parametrize("word", ["MOVED", "ASK"])
def test_servers_that_send_us_to_each_other_are_not_followed_for_ever(word: str) -> None:
    info = REPLIES_TO_INFO.replace("standalone", "cluster")
    with Says("", INFO=f"${len(info)}\r\n{info}") as one, Says("", INFO=f"${len(info)}\r\n{info}") as other:
        for server, next_one in ((one, other), (other, one)):
            server.reply = f"-{word} 3999 127.0.0.1:{next_one.port}"
            server.handshake["CLUSTER"] = f"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:{one.port}"
        url = f"redis+cluster://127.0.0.1:{one.port}?protocol=2"
        with Cache(url, timeout=1, invalidation_timeout=0.05, l1_window=None) as cache:
            row = Row(cache)
            for row.version in range(5):
                before = len(one.asked) + len(other.asked)
                began = time.monotonic()
                assert row.get() == row.version
                asked = len(one.asked) + len(other.asked) - before
                assert 2 <= asked < 100
                assert time.monotonic() - began < 1.2
            assert not cache.invalidate(tags=["rows"])


@servers_of_each_kind
def test_a_server_that_is_loading_is_away_until_it_has_loaded(kind: Any) -> None:
    """It answers INFO meanwhile, so the connection is made and the server known."""
    with Server(
        kind, args=["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
    ) as server:
        with server.client() as client:
            client.config_set("key-load-delay", 0)
            for n in range(30):
                client.mset({f"k:{n}:{i}": b"x" * 100 for i in range(100)})
            client.save()
        with Cache(server.url, **FAST, l1_window=None) as cache:
            row = Row(cache)
            row.get()
            server.kill()
            starting = threading.Thread(target=server.start)
            starting.start()
            assert wait_until(lambda: row.get() == 0 and "BusyLoadingError" in cache.health().trouble)
            starting.join()
            assert back(cache)
            assert row.get() == row.get() == 0


# ---------------------------------------------------------------------------- accounts that may not


def account(server: Server, *rules: str) -> str:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">p:w/d@", *rules)
    return f"redis://app:p%3Aw%2Fd%40@127.0.0.1:{server.port}/0"


@pytest.fixture(params=list(SERVERS) or ["none"], scope="module")
def guarded(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(request.param) as made:
        yield made


@pytest.fixture
def clean(guarded: Server) -> Server:
    with guarded.client() as client:
        client.flushall()
    return guarded


ENOUGH = ("~cacheaside:*", "~{cacheaside:*", "&{cacheaside:*", "+@all", "-@dangerous", "+info", "-@admin")


def test_an_account_with_what_is_needed_is_enough(clean: Server, events: list[Event]) -> None:
    """Keys and channels of the prefix."""
    with Cache(account(clean, *ENOUGH), **FAST, l1_window=1, on_event=events.append) as cache:
        row = Row(cache)
        row.get()
        assert wait_until(lambda: cache.health().coherent)
        assert row.get() == row.get() == 0
        row.version = 1
        assert cache.invalidate(tags=["rows"], keys=["rows:row"])
        assert row.get() == 1
        assert cache.clear("rows").complete
        assert {event.name for event in events} == {"connect", "coherent"}


@pytest.mark.parametrize(
    "rules", [("resetchannels",), ("&*", "-publish", "-spublish")], ids=["channels", "publish"]
)
def test_an_account_that_may_not_publish_works_without_l1(
    clean: Server, rules: tuple[str, ...], events: list[Event]
) -> None:
    """As an account of Redis 7 that was given no channels."""
    url = account(clean, "~*", "+@all", *rules)
    with (
        Cache(url, timeout=1, l1_window=1, on_event=events.append) as cache,
        Cache(clean.url, timeout=1, l1_window=None) as other,
        Cache(clean.url, timeout=1, l1_window=1) as listening,
    ):
        row, theirs = Row(cache), Row(other)
        assert row.get() == row.get() == theirs.get() == 0
        assert cache.stats()["namespaces"]["rows"]["hits_l2"] == 1
        for version in (1, 2):
            row.version = theirs.version = version
            what = {"tags": ["rows"]} if version == 1 else {"keys": ["rows:row"]}
            assert cache.invalidate(**what)
            assert theirs.get() == row.get() == version
        assert cache.set("rows:set", 1)
        assert cache.clear("rows").complete
        assert other.get("rows:set", "gone") == "gone"
        assert not cache.health().coherent
        # Somebody has L1 on, and cannot be told.
        ears = Row(listening)
        ears.get()
        assert wait_until(lambda: listening.health().coherent)
        row.version = ears.version = 3
        receipt = cache.invalidate(tags=["rows"])
        assert not receipt
        assert receipt.attempts == 1
        assert not cache.health().owed, "it is done, there is nothing to send again"
        assert row.get() == 3
        assert not cache.clear("rows").complete
        assert not cache.health().owed
        degraded = [event.message for event in events if event.name == "degraded"]
        assert len([words for words in degraded if "may not PUBLISH" in words]) == 1
        assert len([words for words in degraded if "L1 stays off" in words]) == 1


@pytest.mark.parametrize("rules", [("-@scripting",), ("-eval", "-evalsha")], ids=["all", "eval"])
def test_an_account_without_scripts_reads_and_invalidates_and_stores_nothing(
    clean: Server, rules: tuple[str, ...], events: list[Event]
) -> None:
    with (
        Cache(
            account(clean, "~*", "&*", "+@all", *rules), **FAST, l1_window=1, on_event=events.append
        ) as cache,
        Cache(clean.url, timeout=1, l1_window=None) as other,
    ):
        row, theirs = Row(cache), Row(other)
        assert cache.set("rows:set", 1) is False
        assert row.get() == row.get() == 0
        assert row.loads == (1 if cache.link.facts.has_ifeq else 2)  # type: ignore[union-attr]
        with clean.client() as client:
            client.flushall()
        assert theirs.get() == 0
        assert row.get() == row.get() == 0, "what others have stored is read"
        theirs.version = row.version = 9
        assert cache.invalidate(tags=["rows"])
        assert theirs.get() == 9
        theirs.version = 10
        assert cache.invalidate(keys=["rows:row"])
        assert theirs.get() == 10
        assert not cache.invalidate(tags=["rows"], hold=5), "a hold needs scripts"
        assert not cache.health().coherent
        degraded = [event.message for event in events if event.name == "degraded"]
        assert len([words for words in degraded if "may not EVAL" in words]) == 1
        with pytest.raises(StoreUnavailable), cache.lock("l", timeout=0.1):
            pass


def test_an_account_without_evalsha_uses_eval(clean: Server) -> None:
    with Cache(account(clean, "~*", "&*", "+@all", "-evalsha"), **FAST, l1_window=None) as cache:
        row = Row(cache)
        assert row.get() == row.get() == 0
        assert row.loads == 1
        assert cache.invalidate(tags=["rows"], hold=0.01)


def test_rights_that_are_given_later_are_used(
    clean: Server, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    monkeypatch.setattr("cacheaside.stores.rights.AGAIN", 0.05)
    with Cache(
        account(clean, "~*", "&*", "+@all", "-@scripting"), **FAST, on_event=events.append, l1_window=None
    ) as cache:
        row = Row(cache)
        assert row.get() == row.get() == 0
        account(clean, "~*", "&*", "+@all")
        assert wait_until(
            lambda: row.get() == row.get() == 0 and cache.stats()["namespaces"]["rows"]["hits_l2"] > 0
        )


@servers_of_each_kind
def test_an_account_without_info_repeats_after_each_lost_connection(kind: Any, events: list[Event]) -> None:
    """It cannot see that the server was restarted from an old snapshot; what it has invalidated it knows."""
    args = ["--user", "app", "on", ">pw", "~*", "&*", "+@all", "-info"]
    with Server(kind, args=args) as server:
        url = f"redis://app:pw@127.0.0.1:{server.port}/0"
        with Cache(url, **FAST, on_event=events.append, l1_window=None) as cache:
            row = Row(cache)
            assert row.get() == row.get() == 0
            with server.client() as client:
                client.save()
            row.version = 1
            assert cache.invalidate(tags=["rows"])
            server.kill()
            server.start()
            for _ in range(50):
                assert row.get() == 1
            assert back(cache)
            assert row.get() == row.get() == 1
            assert cache.stats()["store"]["replayed"] >= 1
            told = [event.message for event in events if event.name == "degraded"]
            assert len(told) == 1
            assert "INFO is forbidden" in told[0]


# ---------------------------------------------------------------------------- URLs of another kind of server


def test_a_cluster_url_on_a_single_server_says_what_to_write(one_server: Server) -> None:
    with Cache(f"redis+cluster://127.0.0.1:{one_server.port}") as cache:
        with pytest.raises(ConfigError, match=r"write redis://"):
            Row(cache).get()
        with pytest.raises(ConfigError, match=r"write redis://"):
            cache.ping()


async def test_the_url_of_a_single_server_on_a_cluster_says_what_to_write(cluster: ClusterServer) -> None:
    url = f"redis://127.0.0.1:{cluster.nodes[0].port}"
    async with Cache(url) as cache:
        row = Row(cache)
        for _ in range(5):
            with pytest.raises(ConfigError, match=r"node of a cluster: write redis\+cluster://"):
                row.get()
        with pytest.raises(ConfigError, match=r"redis\+cluster://"):
            await cache.aping()


def test_the_url_of_a_single_server_on_a_sentinel_says_what_to_write(one_server: Server) -> None:
    with (
        ReplicaSet(one_server.kind) as group,
        Cache(f"redis://127.0.0.1:{group.sentinel.port}") as cache,
        pytest.raises(ConfigError, match=r"is a sentinel: write redis\+sentinel://"),
    ):
        cache.ping()


def test_what_was_written_stays_written_on_a_server_of_another_kind(cluster: ClusterServer) -> None:
    """An invalidation on a misconfigured cache is false, and no error of the function that it follows."""
    with Cache(f"redis://127.0.0.1:{cluster.nodes[0].port}", invalidation_timeout=0.05) as cache:
        written = []

        @cache.invalidates(tags=["rows"])
        def write() -> int:
            written.append(1)
            return 1

        assert write() == 1
        assert cache.health().owed == 1
