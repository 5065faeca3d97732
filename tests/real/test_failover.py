"""Another Redis than before: what each mode believes of it, and what it does not lose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from redis.exceptions import ResponseError

from cacheaside import Cache
from cacheaside.events import Event
from cacheaside.testing import Server
from cacheaside.testing.chaos import ChaosProxy
from cacheaside.testing.servers import wait_until
from tests.conftest import SERVERS
from tests.real.test_outages import Row

FAST: dict[str, Any] = {"timeout": 0.5, "invalidation_timeout": 0.1}


class Pair:
    """A primary, a replica of it, and a name that leads to the primary."""

    def __init__(self, kind: Any, stack: ExitStack) -> None:
        self.primary, self.replica = (stack.enter_context(Server(kind)) for _ in range(2))
        self.name = stack.enter_context(ChaosProxy("127.0.0.1", self.primary.port))
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", self.primary.port)
            # It counts whole seconds, and must be known to have been there before anybody reads.
            assert wait_until(lambda: client.info("server")["uptime_in_seconds"] >= 2)
        assert wait_until(self.in_step)

    def in_step(self) -> bool:
        with self.primary.client() as mine, self.replica.client() as theirs:
            primary, replica = mine.info("replication"), theirs.info("replication")
            return bool(
                replica["master_link_status"] == "up"
                and primary["master_repl_offset"] == replica["slave_repl_offset"]
            )

    def part(self) -> None:
        """From now on the replica hears nothing, as if it lagged; it is promoted."""
        assert wait_until(self.in_step)
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")

    def save(self) -> None:
        """A snapshot of now; the one that the replica was given may still be on its way to the disk."""

        def saved() -> bool:
            try:
                return bool(client.save())
            except ResponseError:
                return False

        with self.primary.client() as client:
            assert wait_until(saved)

    def fail_over(self) -> None:
        """The primary dies, and the name leads to the other."""
        self.primary.kill()
        self.name.target = ("127.0.0.1", self.replica.port)
        self.name.drop()


@pytest.fixture(params=list(SERVERS) or ["none"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(request.param, stack)


class Reader:
    """Two rows read through one cache, one of which is going to be invalidated."""

    def __init__(self, url: str, mode: str, **settings: Any) -> None:
        self.cache = Cache(url, failover=mode, **FAST, **settings, l1_window=None)  # type: ignore[arg-type]
        self.row, self.other = Row(), Row()
        self.read = self.row.reader(self.cache)
        self.read_other = self.other.reader(self.cache, key="other", tags=["others"])

    def fill(self) -> None:
        for _ in range(2):
            assert self.read() == self.read_other() == 0
        assert self.row.loads + self.other.loads <= 2

    def settled(self) -> None:
        """Redis is there again, and has been told everything; what it says is believed, whatever that is."""
        assert wait_until(lambda: self.cache.health().ok and not self.cache.health().owed, 5)
        self.read_other()

    @property
    def failovers(self) -> dict[str, int]:
        found: dict[str, int] = self.cache.stats()["store"]["failovers"]
        return {name: n for name, n in found.items() if n}


def lose_an_invalidation(pair: Pair, readers: list[Reader]) -> None:
    """The old primary confirms it, and dies before it is replicated."""
    for reader in readers:
        reader.fill()
    pair.part()
    for reader in readers:
        reader.row.version = 1
    assert readers[0].cache.invalidate(tags=["rows"])
    pair.fail_over()


def test_after_a_promotion_what_was_invalidated_here_stays_invalidated_and_the_rest_is_warm(
    pair: Pair,
) -> None:
    """Each process repeats its own: another one may see the old value for the moment that takes."""
    events: list[Event] = []
    mine, theirs = Reader(pair.name.url, "auto", on_event=events.append), Reader(pair.name.url, "auto")
    with mine.cache, theirs.cache:
        lose_an_invalidation(pair, [mine, theirs])
        until = time.monotonic() + 5
        while mine.cache.health().owed or not mine.cache.health().ok or mine.failovers == {}:
            assert mine.read() == 1
            assert time.monotonic() < until
        assert mine.read() == mine.read() == 1
        assert wait_until(lambda: theirs.read() == 1, 5)
        theirs.settled()
        loads = mine.other.loads, theirs.other.loads
        assert mine.read_other() == theirs.read_other() == 0
        assert (mine.other.loads, theirs.other.loads) == loads, "warm"
        assert mine.failovers == theirs.failovers == {"replay": 1}
        assert mine.cache.stats()["store"]["replayed"] >= 1
        assert [event.name for event in events if event.name in ("failover", "replayed")] == [
            "failover",
            "replayed",
        ]


async def test_a_loop_of_its_own_finds_that_out_too(pair: Pair) -> None:
    row = Row()
    async with Cache(pair.name.url, **FAST, l1_window=None) as cache:
        read = row.reader(cache, "async")
        assert await read() == await read() == 0
        pair.part()
        row.version = 1
        assert await cache.ainvalidate(tags=["rows"])
        pair.fail_over()
        for _ in range(200):
            assert await read() == 1
        assert cache.stats()["store"]["failovers"]["replay"] == 1


def test_strict_is_cold_after_a_promotion(pair: Pair) -> None:
    reader = Reader(pair.name.url, "strict")
    with reader.cache:
        lose_an_invalidation(pair, [reader])
        loads = reader.other.loads
        for _ in range(20):
            assert reader.read() == 1
        reader.settled()
        assert reader.read() == 1
        assert reader.other.loads == loads + 1
        assert reader.failovers == {"cold": 1}


def test_trust_believes_what_the_new_primary_says(pair: Pair) -> None:
    """It has lost an invalidation, and nobody repeats it: this is what the other modes protect from."""
    reader = Reader(pair.name.url, "trust")
    with reader.cache:
        lose_an_invalidation(pair, [reader])
        assert wait_until(lambda: reader.read() == 0, 5)
        assert reader.failovers == {"trust": 1}


def test_what_could_not_be_sent_is_sent_to_the_new_primary(pair: Pair) -> None:
    """Whatever mode: it is owed, not lost."""
    reader = Reader(pair.name.url, "trust")
    with reader.cache:
        reader.fill()
        pair.part()
        pair.name.refuse()
        pair.name.drop()
        reader.row.version = 1
        assert not reader.cache.invalidate(tags=["rows"])
        pair.fail_over()
        pair.name.heal()
        for _ in range(100):
            assert reader.read() == 1
        reader.settled()
        assert reader.read() == 1


@pytest.mark.parametrize("with_replica", [False, True])
@pytest.mark.parametrize(
    ("mode", "answer", "warm"),
    [("auto", 1, False), ("strict", 1, False), ("replay", 1, True), ("trust", 0, True)],
)
def test_a_restart_from_an_old_snapshot(
    pair: Pair, mode: str, answer: int, warm: bool, with_replica: bool
) -> None:
    """A primary with a replica names itself as its predecessor then, as a promoted replica names its own."""
    if not with_replica:
        with pair.replica.client() as client:
            client.replicaof("NO", "ONE")
        pair.primary.restart()
    reader = Reader(pair.name.url, mode)
    with reader.cache:
        reader.fill()
        pair.save()
        reader.row.version = 1
        assert reader.cache.invalidate(tags=["rows"])
        pair.primary.kill()
        pair.primary.start()
        with pair.primary.client() as client:
            named = client.info("replication")["master_replid2"]
        assert (str(named).strip("0") != "") == with_replica
        assert wait_until(lambda: reader.read() == answer, 5)
        reader.settled()
        assert reader.read() == answer
        loads = reader.other.loads
        assert reader.read_other() == 0
        assert reader.other.loads == loads
        assert reader.other.loads == (1 if warm else 2)


def test_replay_does_not_reach_further_back_than_a_minute(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheaside.journal.KEEP", 0.05)
    reader = Reader(pair.name.url, "replay")
    with reader.cache:
        reader.fill()
        pair.save()
        reader.row.version = 1
        assert reader.cache.invalidate(tags=["rows"])
        time.sleep(0.1)
        assert reader.cache.invalidate(tags=["others"])
        pair.primary.kill()
        pair.primary.start()
        assert wait_until(lambda: reader.read() == 0, 5)


def test_a_replica_that_comes_makes_nothing_cold(pair: Pair) -> None:
    """The primary takes another replication id then; it is the same process, and has lost nothing."""
    with pair.replica.client() as client:
        client.replicaof("NO", "ONE")
    pair.primary.restart()
    reader = Reader(pair.name.url, "auto")
    with reader.cache:
        reader.fill()
        with pair.primary.client() as client:
            before = client.info("replication")["master_replid"]
            with pair.replica.client() as replica:
                replica.replicaof("127.0.0.1", pair.primary.port)
            assert wait_until(pair.in_step)
            assert client.info("replication")["master_replid"] != before
        pair.name.drop()
        for _ in range(5):
            assert reader.read() == reader.read_other() == 0
        assert (reader.row.loads, reader.other.loads) == (1, 1)
        assert reader.failovers == {"replay": 1}


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_who_connected_before_the_first_replica_came_and_who_did_after_share_entries(
    pair: Pair, mode: str
) -> None:
    """The primary's name is another one since: whoever meets it in an entry asks again, and once."""
    with pair.replica.client() as client:
        client.replicaof("NO", "ONE")
    pair.primary.restart()
    before = Reader(pair.name.url, mode)
    with before.cache:
        before.fill()
        with pair.replica.client() as replica:
            replica.replicaof("127.0.0.1", pair.primary.port)
        assert wait_until(pair.in_step)
        after = Reader(pair.name.url, mode)
        with after.cache:
            assert after.read() == 0

            def shared() -> bool:
                loads = before.row.loads + after.row.loads
                before.read(), after.read()
                return before.row.loads + after.row.loads == loads

            assert wait_until(shared, 5)
            assert [shared() for _ in range(5)] == [True] * 5
            assert before.cache.invalidate(tags=["rows"])
            before.row.version = after.row.version = 1
            assert after.read() == before.read() == 1


def test_too_many_invalidations_are_repeated_as_patterns(pair: Pair) -> None:
    """More in a minute than the journal holds one by one: whole namespaces go, and nothing is back."""
    reader = Reader(pair.name.url, "auto")
    with reader.cache:
        reader.cache.world.journal._recent.limit = 50
        reader.fill()
        keys = [f"many:{n}" for n in range(100)]
        assert reader.cache.set_many(dict.fromkeys(keys, 0))
        pair.part()
        reader.row.version = 1
        assert reader.cache.invalidate(tags=["rows"])
        assert reader.cache.invalidate(keys=keys)
        pair.fail_over()
        for _ in range(50):
            assert reader.read() == 1
            assert reader.cache.get_many(keys) == {}
        reader.settled()
        assert reader.cache.get_many(keys) == {}
