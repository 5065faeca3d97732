"""What a process makes of what it hears, without a line: every step of it is told here."""

from __future__ import annotations

import pytest

from cacheaside.listener import FORGET_AFTER, Listener
from cacheaside.stores.announcements import announcement
from cacheaside.stores.memory import NearCache

WINDOW = 1.0


@pytest.fixture
def near() -> NearCache:
    near = NearCache(10, 10_000, 1000)
    near.horizon = 0.0
    return near


@pytest.fixture
def listener(near: NearCache) -> Listener:
    return Listener(near, WINDOW)


def subscribe(listener: Listener) -> None:
    listener.subscribing()
    assert listener.confirmed()
    assert listener.confirmed()
    assert listener.up


def keep(near: NearCache, *tags: str, since: int | None = None) -> bool:
    near.put("n:k", 1, 100.0, tags, near.now() if since is None else since, 1)
    return "n:k" in near.entries


def test_a_heartbeat_moves_the_horizon_to_when_it_was_sent(listener: Listener, near: NearCache) -> None:
    """Not to when it came back: what was announced in between may still be on its way."""
    subscribe(listener)
    name = listener.beat(5.0)
    assert near.horizon == 0.0
    listener.returned(name)
    assert near.horizon == 5.0 + WINDOW


def test_the_horizon_never_goes_back(listener: Listener, near: NearCache) -> None:
    subscribe(listener)
    older, newer = listener.beat(5.0), listener.beat(6.0)
    listener.returned(newer)
    listener.returned(older)
    assert near.horizon == 6.0 + WINDOW


def test_a_heartbeat_from_before_a_gap_is_not_taken_for_a_new_one(
    listener: Listener, near: NearCache
) -> None:
    """It was sent, the line broke, and the server carried it out after the next subscription."""
    subscribe(listener)
    late = listener.beat(5.0)
    listener.broken()
    subscribe(listener)
    listener.beat(9.0)
    listener.returned(late)
    assert near.horizon == 0.0


def test_heartbeats_that_never_come_back_are_forgotten(listener: Listener) -> None:
    subscribe(listener)
    for n in range(1000):
        listener.beat(n * WINDOW / 4)
    assert len(listener._sent) <= FORGET_AFTER * 4 + 1


def test_a_subscription_starts_l1_anew(listener: Listener, near: NearCache) -> None:
    """What was there goes, and what was read before it may not settle; what is read after it may."""
    subscribe(listener)
    assert keep(near)
    since = near.now()
    listener.broken()
    assert keep(near)
    subscribe(listener)
    assert not near.entries
    assert not keep(near, since=since)
    assert keep(near)


def test_half_a_subscription_is_none(listener: Listener, near: NearCache) -> None:
    listener.subscribing()
    assert listener.confirmed()
    assert not listener.up
    assert not listener.expect("proof").result(0)


def test_a_confirmation_that_nobody_asked_for_is_a_gap(listener: Listener, near: NearCache) -> None:
    """The client has connected and subscribed again by itself."""
    subscribe(listener)
    listener.returned(listener.beat(5.0))
    assert not listener.confirmed()


def test_each_subscription_is_an_epoch(listener: Listener) -> None:
    for epoch in range(1, 4):
        subscribe(listener)
        assert listener.epoch == epoch
        listener.broken()


def test_a_broken_line_turns_l1_off_and_proves_nothing(listener: Listener, near: NearCache) -> None:
    subscribe(listener)
    listener.returned(listener.beat(5.0))
    proof, fill = listener.expect("proof"), listener.expect_fill("n:k", 5.0)
    listener.broken()
    assert near.horizon == 0.0
    assert proof.result(0) is False
    assert fill.done()
    assert not listener.expect("proof").result(0)


def test_a_proof_comes_back_by_its_name(listener: Listener) -> None:
    subscribe(listener)
    proof, forgotten = listener.expect("mine"), listener.expect("forgotten")
    listener.forget("forgotten")
    listener.returned(b"somebody's")
    listener.returned(b"\xff")
    listener.returned(b"forgotten")
    assert not proof.done()
    listener.returned(b"mine")
    assert proof.result(0) is True
    assert not forgotten.done()


@pytest.mark.parametrize(
    "heard",
    [
        announcement(keys=["n:k"]),
        announcement(tags=["tag"]),
        announcement(patterns=["n:*"]),
        b"\xc1 not an announcement",
    ],
    ids=["key", "tag", "pattern", "unreadable"],
)
def test_what_is_announced_goes_and_nothing_read_before_settles(
    listener: Listener, near: NearCache, heard: bytes
) -> None:
    """Also when it can't be read: what it meant to drop is not known."""
    subscribe(listener)
    assert keep(near, "tag")
    since = near.now()
    listener.announced(heard)
    assert near.get("n:k", 0.0) is None
    near.horizon = 10.0
    near.put("n:k", 1, 100.0, ("tag",), since, 1)
    assert near.get("n:k", 0.0) is None
    assert keep(near, "tag")


@pytest.mark.parametrize("said", [{"filled": ["n:k"]}, {"keys": ["n:k"]}], ids=["filled", "dropped"])
def test_a_follower_hears_of_its_key(listener: Listener, said: dict[str, list[str]]) -> None:
    subscribe(listener)
    fill, other = listener.expect_fill("n:k", 0.0), listener.expect_fill("n:other", 0.0)
    listener.announced(announcement(**said))
    assert fill.done()
    assert not other.done()


def test_a_forked_child_has_heard_nothing(listener: Listener) -> None:
    """What its parent waits for is the parent's."""
    subscribe(listener)
    proof = listener.expect("proof")
    listener.after_fork()
    assert not listener.up
    assert not listener.expect("proof").result(0)
    listener.broken()
    assert not proof.done()


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x91\xa1\xff", b"\x92\x90\x07"])
def test_what_is_no_announcement_empties_l1(data: bytes) -> None:
    """What it was to drop cannot be known; text that is no text is not understood either."""
    near = NearCache(10, 10_000, 1000)
    near.put("n:k", "kept", 1e12, (), near.now(), 4)
    assert near.entries
    Listener(near, 1.0).announced(data)
    assert not near.entries
