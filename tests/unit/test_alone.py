"""L1 while nothing is heard (``l1_without_channel``): believed for so many seconds, counted from the read."""

from __future__ import annotations

import pytest

from cacheaside import Cache, ConfigError
from cacheaside.listener import Listener
from cacheaside.stores.memory import NearCache
from cacheaside.testing import FakeClock

STAY = 8.0


@pytest.fixture
def near() -> NearCache:
    near = NearCache(10, 2**20, 2**20)
    near.horizon = 0.0
    return near


@pytest.fixture
def listener(near: NearCache, clock: FakeClock) -> Listener:
    listener = Listener(near, 1.0, STAY, clock)
    listener.broken()
    return listener


def put(near: NearCache, clock: FakeClock, since: int | None = None, tags: tuple[str, ...] = ()) -> None:
    near.put("k", "v", clock() + 60, tags, near.now() if since is None else since, 1)


def there(near: NearCache, clock: FakeClock) -> bool:
    return near.get("k", clock()) is not None and near.limit > clock()


def test_an_entry_stays_so_long_and_no_longer(listener: Listener, near: NearCache, clock: FakeClock) -> None:
    put(near, clock)
    clock.tick(STAY - 0.01)
    assert there(near, clock)
    clock.tick(0.02)
    assert not there(near, clock)


def test_its_stay_is_counted_from_when_its_read_began(
    listener: Listener, near: NearCache, clock: FakeClock
) -> None:
    """A process may be frozen between the answer and L1, and others go on invalidating."""
    since = near.now()
    clock.tick(STAY - 1)
    put(near, clock, since)
    assert there(near, clock)
    clock.tick(1.01)
    assert not there(near, clock)
    put(near, clock, since)
    assert not there(near, clock)


def test_a_read_that_began_longer_ago_than_can_be_told_does_not_settle(
    listener: Listener, near: NearCache, clock: FakeClock
) -> None:
    since = near.now()
    for _ in range(100):
        clock.tick(STAY / 8)
        near.now()
    put(near, clock, since)
    assert not there(near, clock)


def test_no_entry_leaves_much_too_early(listener: Listener, near: NearCache, clock: FakeClock) -> None:
    """Reads that begin shortly one after the other share a number."""
    near.now()
    clock.tick(STAY / 8 - 0.01)
    put(near, clock)
    clock.tick(STAY * 7 / 8)
    assert there(near, clock)


def test_one_s_own_invalidation_shows_at_once(listener: Listener, near: NearCache, clock: FakeClock) -> None:
    since = near.now()
    put(near, clock, tags=("t",))
    near.mark((), ("t",))
    assert not there(near, clock)
    put(near, clock, since, tags=("t",))
    assert not there(near, clock)
    put(near, clock, tags=("t",))
    assert there(near, clock)


def test_nothing_is_kept_from_one_state_to_the_other(
    listener: Listener, near: NearCache, clock: FakeClock
) -> None:
    """Neither what is there nor what was read before."""
    put(near, clock)
    before = near.now()
    listener.subscribing()
    listener.confirmed(), listener.confirmed()
    assert not near.entries
    assert near.limit == 0.0, "not before a heartbeat"
    put(near, clock, before)
    assert not near.entries
    listener.returned(listener.beat(clock()))
    assert near.coherent(clock())
    put(near, clock)
    assert there(near, clock)
    before = near.now()
    listener.broken()
    assert not near.entries
    assert not near.coherent(clock())
    put(near, clock, before)
    assert not near.entries


def test_it_needs_an_l1() -> None:
    with pytest.raises(ConfigError, match="l1_without_channel needs l1_window"):
        Cache("redis://localhost", l1_window=None, l1_without_channel=5)
    with pytest.raises(ConfigError, match="l1_without_channel"):
        Cache("redis://localhost", l1_window=1, l1_without_channel=-5)
