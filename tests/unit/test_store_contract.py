"""One contract for every store: the same commands, the same answers, for threads and event loops."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cacheaside.engine.commands import (
    NOT_A_STRING,
    Begin,
    Begun,
    Commit,
    Fetch,
    Fill,
    Forget,
    Hold,
    Invalidate,
    Lock,
    Members,
    Place,
    Release,
    Renew,
    Scan,
    Sweep,
)
from cacheaside.entry import (
    HEAD,
    HOLD,
    NO_INCARNATION,
    PLACEHOLDER,
    Marker,
    hold_token,
    is_hold,
    new_token,
    pack_value,
)
from cacheaside.keys import Keyspace
from cacheaside.stores import embedded
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.stores.redis import STAGE_ABOVE

Do = Callable[[Any], Awaitable[Any]]

KEYS = Keyspace("cacheaside")
SLOT, OTHER = KEYS.value("n:a"), KEYS.value("n:b")
TOKEN, TOKEN_2 = KEYS.token("t"), KEYS.token("u")


def nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def placeholder(number: int, kind: int = PLACEHOLDER) -> bytes:
    return Marker(kind, nonce(number), NO_INCARNATION, 1.0, b"\0" * 8).pack()


def token(number: int) -> bytes:
    return new_token(NO_INCARNATION, nonce(number))


def value(number: int, payload: bytes = b"v") -> bytes:
    return pack_value(
        nonce(number), NO_INCARNATION, start=1.0, cost=0.0, soft=2.0, hard=3.0, schema=b"\0" * 8, flags=0,
        known=b"", late=b"", payload=payload,
    )  # fmt: skip


def fill(slot: str, expected: bytes, new: bytes, ttl: float = 60) -> Fill:
    return Fill(slot, KEYS.staging(KEYS.strip(slot)), expected, new, ttl)


def slots_of(*slots: str) -> tuple[tuple[str, str, str], ...]:
    keys = [KEYS.strip(slot) for slot in slots]
    return tuple((s, KEYS.refresh_lock(k), KEYS.staging(k)) for s, k in zip(slots, keys, strict=True))


@pytest.fixture(params=["embedded", "redis"])
def store(request: pytest.FixtureRequest) -> Any:
    if request.param == "redis":
        return request.getfixturevalue("redis_store")
    return EmbeddedStore(2**20, time.time)


@pytest.fixture(params=["perform", "aperform"])
def do(request: pytest.FixtureRequest, store: Any) -> Do:
    """Have the store carry out a command, as a thread or as an event loop does."""

    async def command(one: Any) -> Any:
        answer = getattr(store, request.param)(one)
        return await answer if request.param == "aperform" else answer

    return command


async def fetch(do: Do, *keys: str) -> list[bytes | None]:
    return list(await do(Fetch(keys)))


# ---------------------------------------------------------------------------- begin


async def test_an_empty_slot_is_taken_and_a_full_one_is_shown(do: Do) -> None:
    first = await do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
    assert first == Begun((None,), ())
    second = await do(Begin((Place(SLOT, placeholder(2)), Place(OTHER, placeholder(3))), (), 60, 60))
    assert second == Begun((placeholder(1), None), ())
    assert await fetch(do, SLOT, OTHER, KEYS.value("n:c")) == [placeholder(1), placeholder(3), None]


async def test_missing_tokens_are_made_and_those_in_force_are_told(do: Do) -> None:
    begun = await do(Begin((), ((TOKEN, token(1)),), 60, 60))
    assert begun.tokens == (token(1),)
    begun = await do(Begin((), ((TOKEN, token(2)), (TOKEN_2, token(3))), 60, 60))
    assert begun.tokens == (token(1), token(3))
    assert await fetch(do, TOKEN, TOKEN_2) == [token(1), token(3)]


async def test_a_slot_is_replaced_only_while_it_opens_with_what_was_seen(do: Do) -> None:
    await do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
    wrong = await do(Begin((Place(SLOT, placeholder(2), placeholder(9)[:HEAD]),), (), 60, 60))
    assert wrong.slots == (placeholder(1),)
    right = await do(Begin((Place(SLOT, placeholder(2), placeholder(1)[:HEAD]),), (), 60, 60))
    assert right.slots == (None,)
    assert await fetch(do, SLOT) == [placeholder(2)]
    gone = await do(Begin((Place(OTHER, placeholder(3), placeholder(1)[:HEAD]),), (), 60, 60))
    assert gone.slots == (b"",), "it was there when it was seen, and has gone since"
    assert await fetch(do, OTHER) == [None]


# ---------------------------------------------------------------------------- commit


@pytest.mark.parametrize("size", [0, 1, STAGE_ABOVE, STAGE_ABOVE + 1, 200_000])
async def test_a_value_replaces_its_placeholder_whatever_its_size(do: Do, size: int) -> None:
    new = value(5, b"x" * size)
    await do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
    assert tuple(await do(Commit((fill(SLOT, placeholder(1), new),)))) == (True,)
    assert await fetch(do, SLOT, KEYS.staging("n:a")) == [new, None]


@pytest.mark.parametrize("size", [1, STAGE_ABOVE + 1])
@pytest.mark.parametrize("there", [None, placeholder(2), placeholder(1, HOLD), value(3), b"foreign"])
async def test_a_value_is_refused_when_anything_else_stands_there(
    do: Do, store: Any, there: bytes | None, size: int
) -> None:
    if there is not None:
        await do(Hold(((SLOT, there),), (), 60, 60))
    assert tuple(await do(Commit((fill(SLOT, placeholder(1), value(5, b"x" * size)),)))) == (False,)
    assert await fetch(do, SLOT) == [there]


async def test_a_batch_is_answered_one_by_one(do: Do) -> None:
    await do(Begin((Place(SLOT, placeholder(1)), Place(OTHER, placeholder(2))), (), 60, 60))
    fills = (fill(SLOT, placeholder(9), value(5)), fill(OTHER, placeholder(2), value(6, b"y" * 5000)))
    assert tuple(await do(Commit(fills))) == (False, True)
    assert await fetch(do, SLOT, OTHER) == [placeholder(1), value(6, b"y" * 5000)]


async def test_a_value_is_replaced_by_its_head(do: Do) -> None:
    await do(Hold(((SLOT, value(1, b"old")),), (), 60, 60))
    assert tuple(await do(Commit((fill(SLOT, value(1)[:HEAD], value(2, b"new")),)))) == (True,)
    assert await fetch(do, SLOT) == [value(2, b"new")]


# ---------------------------------------------------------------------------- hold and release


async def test_a_hold_replaces_whatever_stands_there(do: Do) -> None:
    await do(Begin((Place(SLOT, placeholder(1)),), ((TOKEN, token(1)),), 60, 60))
    held = await do(Hold(((SLOT, placeholder(2, HOLD)),), ((TOKEN, token(2)), (TOKEN_2, token(3))), 60, 60))
    assert held.tokens == (token(1), token(3))
    assert await fetch(do, SLOT) == [placeholder(2, HOLD)]
    assert tuple(await do(Commit((fill(SLOT, placeholder(1), value(5)),)))) == (False,)


async def test_only_ones_own_is_released(do: Do) -> None:
    await do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
    assert await do(Release(SLOT, placeholder(2))) is False
    assert await fetch(do, SLOT) == [placeholder(1)]
    assert await do(Release(SLOT, placeholder(1))) is True
    assert await do(Release(SLOT, placeholder(1))) is False
    assert await fetch(do, SLOT) == [None]


async def test_a_sweep_counts_what_it_deleted(do: Do) -> None:
    await do(Hold(((SLOT, value(1)), (OTHER, value(2))), (), 60, 60))
    assert await do(Sweep(((SLOT, value(1)[:HEAD]), (OTHER, value(9)[:HEAD])))) == 1
    assert await fetch(do, SLOT, OTHER) == [None, value(2)]


# ---------------------------------------------------------------------------- locks and lives


async def test_a_lock_has_one_owner(do: Do) -> None:
    lock = KEYS.refresh_lock("n:a")
    assert await do(Lock(lock, nonce(1), 60)) is None
    assert await do(Lock(lock, nonce(2), 60)) == nonce(1)
    await do(Release(lock, nonce(1)))
    assert await do(Lock(lock, nonce(2), 60)) is None


async def test_lives_end_and_are_prolonged_for_their_owner_only(clock: Any) -> None:
    """On the embedded store, whose clock is ours; Redis' own lives are Redis' to keep."""
    store = EmbeddedStore(2**20, clock)
    store.perform(
        Begin((Place(SLOT, placeholder(1)), Place(OTHER, placeholder(2))), ((TOKEN, token(1)),), 10, 20)
    )
    clock.tick(9)
    store.perform(Renew(((SLOT, placeholder(1)), (OTHER, placeholder(9))), 10))
    clock.tick(2)
    assert store.perform(Fetch((SLOT, OTHER, TOKEN))) == [placeholder(1), None, token(1)]
    store.perform(Commit((), extend=((TOKEN, 60),)))
    store.perform(Commit((), extend=((TOKEN, 5),)))
    clock.tick(50)
    assert store.perform(Fetch((SLOT, TOKEN))) == [None, token(1)], "a life is prolonged, never cut"
    clock.tick(11)
    assert store.perform(Fetch((TOKEN,))) == [None]


async def test_redis_is_told_lives_in_milliseconds_and_never_none(redis_store: Any) -> None:
    client = redis_store.client
    redis_store.perform(Begin((Place(SLOT, placeholder(1)),), ((TOKEN, token(1)),), 0.5, 20))
    assert 0 < client.pttl(SLOT) <= 500
    assert 19_000 < client.pttl(TOKEN) <= 20_000
    redis_store.perform(Renew(((SLOT, placeholder(1)),), 10))
    assert 9_000 < client.pttl(SLOT) <= 10_000
    redis_store.perform(
        Commit((fill(SLOT, placeholder(1), value(1), ttl=30),), extend=((TOKEN, 60), (TOKEN, 5)))
    )
    assert 29_000 < client.pttl(SLOT) <= 30_000
    assert 59_000 < client.pttl(TOKEN) <= 60_000
    redis_store.perform(Hold(((SLOT, placeholder(2, HOLD)),), (), 0.0001, 20))
    assert all(client.pttl(key) != -1 for key in client.scan_iter()), "nothing of ours lives for ever"


# ---------------------------------------------------------------------------- invalidate


async def test_an_invalidation_drops_slots_with_their_companions_and_replaces_tokens(do: Do) -> None:
    lock = KEYS.refresh_lock("n:a")
    await do(Begin((Place(SLOT, placeholder(1)), Place(OTHER, placeholder(2))), ((TOKEN, token(1)),), 60, 60))
    await do(Lock(lock, nonce(1), 60))
    await do(Invalidate(slots_of(SLOT), ((TOKEN, token(2), "t"), (TOKEN_2, token(3), "u")), 60))
    assert await fetch(do, SLOT, lock, OTHER) == [None, None, placeholder(2)]
    assert await fetch(do, TOKEN, TOKEN_2) == [token(2), token(3)]


async def test_an_invalidation_with_a_hold_leaves_it_there(do: Do) -> None:
    marker = placeholder(7, HOLD)
    await do(Begin((Place(SLOT, placeholder(1)),), ((TOKEN, token(1)),), 60, 60))
    await do(
        Invalidate(slots_of(SLOT), ((TOKEN, hold_token(NO_INCARNATION, nonce(2)), "t"),), 60, (marker, 30))
    )
    slot, tag = await fetch(do, SLOT, TOKEN)
    assert slot == marker
    assert is_hold(tag)
    assert tuple(await do(Commit((fill(SLOT, placeholder(1), value(5)),)))) == (False,)


# ---------------------------------------------------------------------------- lists


async def scanned(do: Do, pattern: str) -> list[str]:
    cursor, found = None, []
    while True:
        cursor, some = await do(Scan(pattern, cursor))
        found += some
        if cursor is None:
            return sorted(found)


async def test_a_scan_finds_what_matches(do: Do) -> None:
    await do(Hold(tuple((KEYS.value(f"n:{i}"), value(i)) for i in range(700)), ((TOKEN, token(1)),), 60, 60))
    await do(Hold(((KEYS.value("m:1"), value(1)),), (), 60, 60))
    assert len(await scanned(do, KEYS.value("n:*"))) == 700
    assert await scanned(do, KEYS.value("n:69?")) == [KEYS.value(f"n:69{i}") for i in range(10)]
    assert await scanned(do, KEYS.value("none:*")) == []


async def test_a_tag_lists_its_entries_by_their_ends(do: Do) -> None:
    now, index = time.time(), KEYS.tag_index("t")
    rows = tuple((index, f"n:{i}", now + 100 - i * 10) for i in range(4))
    await do(Commit((), index=rows))
    assert await do(Members(index, 0, 10)) == ["n:3", "n:2", "n:1", "n:0"]
    assert await do(Members(index, 1, 2)) == ["n:2", "n:1"]
    assert await do(Members(index, 4, 10)) == []
    await do(Commit((), index=((index, "n:3", now + 500),)))
    await do(Forget(index, ("n:1", "n:never")))
    assert await do(Members(index, 0, 10)) == ["n:2", "n:0", "n:3"]
    assert await do(Members(KEYS.tag_index("none"), 0, 10)) == []


# ---------------------------------------------------------------------------- what is not ours


async def test_other_types_and_empty_strings_are_left_alone(redis_store: Any) -> None:
    """Only Redis is shared with others."""
    client = redis_store.client
    client.rpush(SLOT, "a list")
    client.set(OTHER, b"")
    for ask in ("perform", "aperform"):
        answer = getattr(redis_store, ask)(Fetch((SLOT, OTHER)))
        assert list(await answer if ask == "aperform" else answer) == [None, b""]
        answer = getattr(redis_store, ask)(
            Begin((Place(SLOT, placeholder(1)), Place(OTHER, placeholder(2))), (), 60, 60)
        )
        begun = await answer if ask == "aperform" else answer
        assert begun.slots == (NOT_A_STRING, NOT_A_STRING)
    assert client.lrange(SLOT, 0, -1) == [b"a list"]
    assert client.get(OTHER) == b""


# ---------------------------------------------------------------------------- embedded only


def test_the_embedded_store_is_bounded_and_drops_what_was_used_longest_ago(clock: Any) -> None:
    store = EmbeddedStore(10 * 1256, clock)
    for i in range(10):
        store.perform(Hold(((f"k{i}", b"x" * 1000),), (), 60, 60))
    store.perform(Fetch(("k0",)))
    store.perform(Hold((("new", b"x" * 1000),), (), 60, 60))
    there = store.perform(Fetch(tuple(f"k{i}" for i in range(10))))
    assert [i for i, raw in enumerate(there) if raw is None] == [1]


def test_a_value_larger_than_the_embedded_store_leaves_its_slot_empty(clock: Any) -> None:
    store = EmbeddedStore(2000, clock)
    store.perform(Hold(((SLOT, placeholder(1)),), (), 60, 60))
    store.perform(Commit((fill(SLOT, placeholder(1), value(1, b"x" * 5000)),)))
    assert store.perform(Fetch((SLOT,))) == [None]


def test_lists_of_the_embedded_store_are_bounded(clock: Any) -> None:
    store = EmbeddedStore(2**20, clock, index_limit=3)
    index = KEYS.tag_index("t")
    for i in range(5):
        store.perform(Commit((), index=((index, f"n:{i}", clock() + 100 + i),)))
    assert store.perform(Members(index, 0, 10)) == ["n:2", "n:3", "n:4"]


def test_many_tags_do_not_fill_the_embedded_store_with_lists(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MOST_LISTED", 10)
    store = EmbeddedStore(2**20, clock)
    for i in range(6):
        store.perform(Commit((), index=((KEYS.tag_index(f"short:{i}"), "n:k", clock() + 5),)))
    clock.tick(6)
    for i in range(100):
        store.perform(Commit((), index=((KEYS.tag_index(f"t:{i}"), "n:k", clock() + 100),)))
        assert store._listed == sum(map(len, store._index.values())) <= 10
        assert len(store._index) <= 10
    assert store.perform(Members(KEYS.tag_index("t:99"), 0, 10)) == ["n:k"]
    assert store.perform(Members(KEYS.tag_index("t:0"), 0, 10)) == []
    store.perform(Forget(KEYS.tag_index("t:99"), ("n:k",)))
    assert store._listed == sum(map(len, store._index.values()))
