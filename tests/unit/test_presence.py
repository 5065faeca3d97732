"""Who is online, by a clock that moves when told to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheaside import Cache, ConfigError, StoreUnavailable
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import FailingStore
from cacheaside.toolkit import Page, Presence
from tests.aging import cache_on


@pytest.fixture
def any_cache(any_cache: Cache, server_clock: FakeClock) -> Cache:
    return any_cache


@pytest.fixture
def presence(any_cache: Cache) -> Presence:
    return Presence(any_cache, ttl=60)


def everybody(presence: Presence, count: int = 100) -> list[str]:
    def pages() -> Iterator[Page]:
        page = presence.who(count=count)
        yield page
        while page.cursor is not None:
            page = presence.who(page.cursor, count)
            yield page

    return [user for page in pages() for user in page.users]


# ---------------------------------------------------------------------------- connections


def test_a_user_is_online_from_the_first_connection_to_the_last(presence: Presence) -> None:
    assert not presence.is_online(7)
    assert presence.online(7, "phone")
    assert not presence.online(7, "laptop"), "not the first"
    assert presence.connections(7) == ["laptop", "phone"]
    assert (presence.count(), everybody(presence)) == (1, ["7"])
    assert not presence.offline(7, "phone"), "not the last"
    assert presence.is_online(7)
    assert presence.offline(7, "laptop")
    assert not presence.is_online(7)
    assert (presence.count(), everybody(presence), presence.connections(7)) == (0, [], [])
    assert not presence.offline(7, "laptop"), "it was so before"


async def test_the_async_twins_see_the_same(presence: Presence) -> None:
    assert await presence.aonline("ann", 1)
    assert await presence.aheartbeat("ann", 1)
    assert presence.is_online("ann")
    assert await presence.ais_online("ann")
    assert await presence.aconnections("ann") == ["1"]
    assert await presence.acount() == 1
    assert await presence.awho() == Page(["ann"], None)
    assert await presence.aoffline("ann", 1)
    assert not presence.is_online("ann")


def test_all_connections_of_a_user_may_end_at_once(presence: Presence) -> None:
    presence.online("ann", 1)
    presence.online("ann", 2)
    presence.online("bob")
    assert presence.offline("ann")
    assert everybody(presence) == ["bob"]
    assert not presence.offline("ann")


def test_who_is_not_heard_of_is_offline_after_the_ttl(presence: Presence, clock: FakeClock) -> None:
    presence.online("ann", 1)
    presence.online("bob", 1)
    for _ in range(5):
        clock.tick(50)
        assert presence.heartbeat("ann", 1)
    assert [presence.is_online(user) for user in ("ann", "bob")] == [True, False]
    assert (presence.count(), everybody(presence)) == (1, ["ann"])
    clock.tick(60)
    assert (presence.count(), everybody(presence)) == (0, [])
    assert not presence.is_online("ann")


def test_a_connection_ends_for_itself(presence: Presence, clock: FakeClock) -> None:
    presence.online("ann", "phone")
    clock.tick(30)
    presence.online("ann", "laptop")
    clock.tick(40)
    assert presence.connections("ann") == ["laptop"]
    clock.tick(20)
    assert not presence.is_online("ann")


def test_a_heartbeat_revives_no_connection_that_has_ended(presence: Presence, clock: FakeClock) -> None:
    """It may come late, after the end of what it is of; ``online`` says that it is back."""
    presence.online("ann", 1)
    presence.offline("ann", 1)
    assert not presence.heartbeat("ann", 1)
    assert not presence.is_online("ann")
    assert presence.count() == 0
    presence.online("ann", 1)
    clock.tick(61)
    assert not presence.heartbeat("ann", 1)
    assert not presence.is_online("ann")
    assert presence.online("ann", 1)


def test_the_index_follows_a_user_whose_latest_connection_ended(presence: Presence, clock: FakeClock) -> None:
    presence.online("ann", "phone")
    clock.tick(50)
    presence.online("ann", "laptop")
    presence.offline("ann", "laptop")
    assert presence.count() == 1
    clock.tick(10)  # the phone's time has ended, the laptop's would not have
    assert presence.count() == 0


# ---------------------------------------------------------------------------- pages


@pytest.mark.parametrize("users", [3, 1000])
def test_pages_hold_everybody(presence: Presence, users: int) -> None:
    for user in range(users):
        presence.online(user)
    assert presence.count() == users
    assert sorted(map(int, set(everybody(presence, 50)))) == list(range(users))


def test_pages_hold_whoever_stays_while_others_come_go_and_are_heard_of(presence: Presence) -> None:
    for user in range(500):
        presence.online(user)
    page, seen = presence.who(count=50), set[str]()
    turn = 0
    while True:
        seen.update(page.users)
        if page.cursor is None:
            break
        for user in range(turn * 10, turn * 10 + 10):
            presence.online(f"new {user}")
            presence.offline(400 + user % 100)
            presence.heartbeat(user)
        turn += 1
        page = presence.who(page.cursor, 50)
    assert seen >= {str(user) for user in range(400)}


# ---------------------------------------------------------------------------- what is kept, and where


def test_keys_are_the_seed_s_and_all_end_by_themselves(
    redis_cache: Cache, redis_store: Any, server_clock: FakeClock
) -> None:
    presence = Presence(redis_cache)
    presence.online("42", "ws:1")
    presence.online("a:b", "ws:2")
    presence.online(uuid.UUID(int=7), "ws:3")
    assert sorted(redis_store.client.keys()) == [
        b"cacheaside:global:online:00000000-0000-0000-0000-000000000007",
        b"cacheaside:global:online:42",
        b"cacheaside:global:online:a%3Ab",
        b"cacheaside:global:websocket:connections",
    ]
    assert sorted(presence.who().users) == ["00000000-0000-0000-0000-000000000007", "42", "a:b"]
    assert presence.is_online(42)
    server_clock.tick(121)
    assert redis_store.client.keys() == []


def test_those_whose_time_has_ended_leave_the_index_a_hundred_at_a_time(
    redis_cache: Cache, redis_store: Any, server_clock: FakeClock
) -> None:
    presence = Presence(redis_cache)
    index = "cacheaside:global:websocket:connections"
    for user in range(250):
        presence.online(user)
    server_clock.tick(60)
    sizes: list[int] = []
    for user in range(3):
        presence.online(f"new {user}")
        sizes.append(redis_store.client.zcard(index))
    assert sizes == [151, 52, 3]
    assert presence.count() == 3


def test_a_user_has_so_many_connections_and_no_more(
    presence: Presence, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setattr("cacheaside.toolkit.presence.MOST_CONNECTIONS", 3)
    for connection in range(5):
        presence.online("ann", connection)
        clock.tick(1)
    assert presence.connections("ann") == ["2", "3", "4"]


def test_clearing_the_cache_sends_nobody_offline(any_cache: Cache, presence: Presence) -> None:
    presence.online("ann")
    assert any_cache.clear() == 0
    assert presence.is_online("ann")
    assert presence.count() == 1


# ---------------------------------------------------------------------------- several at once

CALLS = [
    ("_online", "ann", "c"),
    ("_online", "ann", "d"),
    ("_heartbeat", "ann", "b"),
    ("_offline", "ann", "a"),
    ("_offline", "ann", "b"),
]


@pytest.mark.parametrize("store", ["embedded", "redis"])
@settings(deadline=None, max_examples=80)
@given(
    calls=st.lists(st.sampled_from(CALLS), min_size=2, max_size=5, unique_by=lambda call: call[2]),
    order=st.lists(st.integers(0, 4), min_size=20, max_size=20),
    passing=st.lists(st.floats(0.001, 2), min_size=10, max_size=10),
)
def test_whatever_the_order_of_their_steps_the_index_agrees_with_the_user(
    store: str, calls: list[tuple[str, str, str]], order: list[int], passing: list[float]
) -> None:
    """Each call is two commands, and those of other calls may come in between."""
    clock = FakeClock(1_700_000_000.0)
    with cache_on(store, clock) as cache:
        presence = Presence(cache)
        for connection in ("a", "b"):
            presence.online("ann", connection)
            clock.tick(0.001)
        flows = [getattr(presence, name)(user, connection) for name, user, connection in calls]
        waiting = {flow: next(flow) for flow in flows}
        turns, times = iter(order), iter(passing)
        while waiting:
            flow = list(waiting)[next(turns, 0) % len(waiting)]
            clock.tick(next(times))
            try:
                waiting[flow] = flow.send(cache.store.perform(waiting.pop(flow)))
            except StopIteration:
                pass
        assert presence.count() == presence.is_online("ann")
        while presence.is_online("ann"):
            assert presence.count() == 1
            clock.tick(1.5)
        assert presence.count() == 0


# ---------------------------------------------------------------------------- trouble


def test_a_store_that_does_not_answer_says_so_instead_of_offline(cache: Cache) -> None:
    presence = Presence(cache)
    presence.online("ann")
    cache.store = FailingStore(cache.store)
    for ask in (
        lambda: presence.online("ann"),
        lambda: presence.heartbeat("ann"),
        lambda: presence.offline("ann"),
        lambda: presence.is_online("ann"),
        lambda: presence.connections("ann"),
        presence.count,
        presence.who,
    ):
        with pytest.raises(StoreUnavailable):
            ask()
    assert cache.stats()["namespaces"]["global"]["unavailable"] == 7


def test_an_offline_that_got_half_way_is_finished_by_the_next(cache: Cache) -> None:
    presence = Presence(cache)
    presence.online("ann")
    half = presence._offline("ann", None)
    cache.store.perform(next(half))
    assert (presence.is_online("ann"), presence.count()) == (False, 1)
    presence.offline("ann")
    assert presence.count() == 0


@pytest.mark.parametrize("wrong", [None, "", True, 1.5, b"x", ("a",), "x" * 513])
def test_what_is_no_id_is_refused(cache: Cache, wrong: Any) -> None:
    presence = Presence(cache)
    with pytest.raises(ConfigError, match="user_id"):
        presence.online(wrong)
    if wrong is not None:
        with pytest.raises(ConfigError, match="connection_id"):
            presence.offline("ann", wrong)
    assert presence.count() == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"cursor": "x"}, "cursor"),
        ({"cursor": 0}, "cursor"),
        ({"count": 0}, "count"),
        ({"count": "9"}, "count"),
    ],
)
def test_a_page_that_is_none_is_refused(cache: Cache, given: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Presence(cache).who(**given)


def test_a_ttl_that_cannot_be_is_refused(cache: Cache) -> None:
    with pytest.raises(ConfigError, match="ttl must be"):
        Presence(cache, ttl=0)
