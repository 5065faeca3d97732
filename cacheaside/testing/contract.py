"""The contract of a store: what every store must answer, ours and yours, for threads and event loops.

A store of your own passes when a class of yours does, in a file of tests::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self):
            return MyStore()

With ``pytest.register_assert_rewrite("cacheaside.testing.contract")`` in a conftest.py, before this module
is imported, failures show the values.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pytest

from cacheaside.engine.commands import (
    Announce,
    Begin,
    Begun,
    Claim,
    Commit,
    Confirm,
    Fetch,
    Fill,
    Forget,
    Invalidate,
    Lock,
    Members,
    Place,
    Release,
    Renew,
    Run,
    Scan,
    Sweep,
)
from cacheaside.engine.drive import Store
from cacheaside.entry import (
    CLAIM,
    HEAD,
    NO_INCARNATION,
    PLACEHOLDER,
    Held,
    Marker,
    is_hold,
    is_token,
    new_token,
    pack_value,
    parse,
)
from cacheaside.rawkeys import RawKeys
from cacheaside.toolkit.counting import PROGRAMS

Wait = Callable[[float], None]

KEYS = RawKeys("cacheaside")
SLOT, OTHER = KEYS.value("n:a"), KEYS.value("n:b")
TOKEN, TOKEN_2 = KEYS.token("t"), KEYS.token("u")
CROWD = 8
SIZES = [0, 1, 4096, 4097, 200_000]


def nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def placeholder(number: int, kind: int = PLACEHOLDER) -> bytes:
    return Marker(kind, nonce(number), NO_INCARNATION, 1.0, b"\0" * 8).pack()


def token(number: int) -> bytes:
    return new_token(NO_INCARNATION, nonce(number))


def invalidation(number: int, **holds: Any) -> Invalidate:
    return Invalidate(slots_of(SLOT), ((TOKEN, token(number), "t"),), 60, **holds)


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


class Do(Protocol):
    """Has the store carry out a command, or several at once."""

    def __call__(self, command: Any) -> Any: ...
    def at_once(self, commands: Sequence[Any]) -> list[Any]: ...


class InThreads:
    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, command: Any) -> Any:
        return self.store.perform(command)

    def at_once(self, commands: Sequence[Any]) -> list[Any]:
        together = threading.Barrier(len(commands))

        def one(command: Any) -> Any:
            together.wait(10)
            return self.store.perform(command)

        with ThreadPoolExecutor(len(commands)) as pool:
            return list(pool.map(one, commands))


class OnALoop:
    def __init__(self, store: Store, loop: asyncio.Runner) -> None:
        self.store = store
        self.loop = loop

    def __call__(self, command: Any) -> Any:
        return self.loop.run(self.store.aperform(command))

    def at_once(self, commands: Sequence[Any]) -> list[Any]:
        async def together() -> list[Any]:
            return await asyncio.gather(*map(self.store.aperform, commands))

        return self.loop.run(together())


def fetch(do: Do, *keys: str) -> list[bytes | None]:
    return list(do(Fetch(keys)))


def scanned(do: Do, pattern: str) -> list[str]:
    cursor, found = None, []
    while True:
        cursor, some = do(Scan(pattern, cursor))
        found += some
        if cursor is None:
            return sorted(found)


class StoreContract:
    """Inherit, and give a fixture ``store`` that makes an empty one with the prefix ``cacheaside``."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("the class needs a fixture `store` that makes the store")

    @pytest.fixture
    def wait(self, store: Store) -> Wait:
        """Lets seconds pass for the store; one whose clock can be moved need not sleep."""
        return time.sleep

    @pytest.fixture(params=["threads", "loop"])
    def do(self, request: pytest.FixtureRequest, store: Any) -> Iterator[Do]:
        """The store as threads use it, then as an event loop does."""
        if request.param == "threads":
            yield InThreads(store)
            return
        # A loop of its own: no plugin is needed, and no other loop is disturbed.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as loop:
            yield OnALoop(store, loop)
            if hasattr(store, "aclose"):
                loop.run(store.aclose())

    # -- begin

    def test_an_empty_slot_is_taken_and_a_full_one_is_shown(self, do: Do) -> None:
        first = do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
        assert first == Begun((None,), ())
        second = do(Begin((Place(SLOT, placeholder(2)), Place(OTHER, placeholder(3))), (), 60, 60))
        assert second == Begun((placeholder(1), None), ())
        assert fetch(do, SLOT, OTHER, KEYS.value("n:c")) == [placeholder(1), placeholder(3), None]

    def test_missing_tokens_are_made_and_those_in_force_are_told(self, do: Do) -> None:
        begun = do(Begin((), ((TOKEN, token(1)),), 60, 60))
        assert begun.tokens == (token(1),)
        begun = do(Begin((), ((TOKEN, token(2)), (TOKEN_2, token(3))), 60, 60))
        assert begun.tokens == (token(1), token(3))
        assert fetch(do, TOKEN, TOKEN_2) == [token(1), token(3)]

    def test_a_dead_token_is_replaced_unless_another_took_its_place(self, do: Do) -> None:
        do(Begin((), ((TOKEN, token(1)),), 60, 60))
        dead = ((TOKEN, token(2), token(1)), (TOKEN_2, token(3), token(1)))
        assert do(Begin((), (), 60, 60, dead)).tokens == (token(2), token(3))
        begun = do(Begin((), ((TOKEN, token(4)),), 60, 60, ((TOKEN, token(5), token(1)),)))
        assert begun.tokens == (token(2), token(2))
        assert fetch(do, TOKEN, TOKEN_2) == [token(2), token(3)]

    def test_a_slot_is_replaced_only_while_it_opens_with_what_was_seen(self, do: Do) -> None:
        do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
        wrong = do(Begin((Place(SLOT, placeholder(2), placeholder(9)[:HEAD]),), (), 60, 60))
        assert wrong.slots == (placeholder(1),)
        right = do(Begin((Place(SLOT, placeholder(2), placeholder(1)[:HEAD]),), (), 60, 60))
        assert right.slots == (None,)
        assert fetch(do, SLOT) == [placeholder(2)]
        gone = do(Begin((Place(OTHER, placeholder(3), placeholder(1)[:HEAD]),), (), 60, 60))
        assert gone.slots == (b"",), "it was there when it was seen, and has gone since"
        assert fetch(do, OTHER) == [None]

    # -- commit

    @pytest.mark.parametrize("size", SIZES)
    def test_a_value_replaces_its_placeholder_whatever_its_size(self, do: Do, size: int) -> None:
        new = value(5, b"x" * size)
        do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
        assert tuple(do(Commit((fill(SLOT, placeholder(1), new),)))) == (True,)
        assert fetch(do, SLOT, KEYS.staging("n:a")) == [new, None]

    @pytest.mark.parametrize("size", [1, 5000])
    @pytest.mark.parametrize("there", [None, placeholder(2), placeholder(1, CLAIM), value(3), b"foreign"])
    def test_a_value_is_refused_when_anything_else_stands_there(
        self, do: Do, there: bytes | None, size: int
    ) -> None:
        if there is not None:
            do(Claim(((SLOT, there),), (), 60, 60))
        assert tuple(do(Commit((fill(SLOT, placeholder(1), value(5, b"x" * size)),)))) == (False,)
        assert fetch(do, SLOT) == [there]

    def test_a_batch_is_answered_one_by_one(self, do: Do) -> None:
        do(Begin((Place(SLOT, placeholder(1)), Place(OTHER, placeholder(2))), (), 60, 60))
        fills = (fill(SLOT, placeholder(9), value(5)), fill(OTHER, placeholder(2), value(6, b"y" * 5000)))
        assert tuple(do(Commit(fills))) == (False, True)
        assert fetch(do, SLOT, OTHER) == [placeholder(1), value(6, b"y" * 5000)]

    def test_a_value_is_replaced_by_its_head(self, do: Do) -> None:
        do(Claim(((SLOT, value(1, b"old")),), (), 60, 60))
        assert tuple(do(Commit((fill(SLOT, value(1)[:HEAD], value(2, b"new")),)))) == (True,)
        assert fetch(do, SLOT) == [value(2, b"new")]

    # -- claim and release

    def test_a_claim_replaces_whatever_stands_there(self, do: Do) -> None:
        do(Begin((Place(SLOT, placeholder(1)),), ((TOKEN, token(1)),), 60, 60))
        claimed = do(
            Claim(((SLOT, placeholder(2, CLAIM)),), ((TOKEN, token(2)), (TOKEN_2, token(3))), 60, 60)
        )
        assert claimed == Begun((None,), (token(1), token(3)))
        assert fetch(do, SLOT) == [placeholder(2, CLAIM)]
        assert tuple(do(Commit((fill(SLOT, placeholder(1), value(5)),)))) == (False,)

    def test_only_ones_own_is_released(self, do: Do) -> None:
        do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
        assert do(Release(SLOT, placeholder(2))) is False
        assert fetch(do, SLOT) == [placeholder(1)]
        assert do(Release(SLOT, placeholder(1))) is True
        assert do(Release(SLOT, placeholder(1))) is False
        assert fetch(do, SLOT) == [None]

    def test_a_sweep_counts_what_it_deleted(self, do: Do) -> None:
        do(Claim(((SLOT, value(1)), (OTHER, value(2))), (), 60, 60))
        assert do(Sweep(((SLOT, value(1)[:HEAD]), (OTHER, value(9)[:HEAD])))) == 1
        assert fetch(do, SLOT, OTHER) == [None, value(2)]

    # -- locks and lives

    def test_a_lock_has_one_owner(self, do: Do) -> None:
        lock = KEYS.refresh_lock("n:a")
        assert do(Lock(lock, nonce(1), 60)) is None
        assert do(Lock(lock, nonce(2), 60)) == nonce(1)
        do(Release(lock, nonce(1)))
        assert do(Lock(lock, nonce(2), 60)) is None

    def test_lives_end_and_are_prolonged_for_their_owner_only(self, do: Do, wait: Wait) -> None:
        places = (Place(SLOT, placeholder(1)), Place(OTHER, placeholder(2)))
        do(Begin(places, ((TOKEN, token(1)),), 1.0, 2.0))
        wait(0.6)
        do(Renew(((SLOT, placeholder(1)), (OTHER, placeholder(9))), 1.0))
        wait(0.6)
        assert fetch(do, SLOT, OTHER, TOKEN) == [placeholder(1), None, token(1)]
        do(Commit((), extend=((TOKEN, 3.0),)))
        do(Commit((), extend=((TOKEN, 0.1),)))
        wait(2.0)
        assert fetch(do, SLOT, TOKEN) == [None, token(1)], "a life is prolonged, never cut"
        wait(1.5)
        assert fetch(do, TOKEN) == [None]

    def test_a_value_a_lock_and_a_claim_end(self, do: Do, wait: Wait) -> None:
        do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
        do(Commit((fill(SLOT, placeholder(1), value(5), ttl=1.0),)))
        lock = KEYS.refresh_lock("n:a")
        do(Lock(lock, nonce(1), 1.0))
        do(Claim(((OTHER, placeholder(2, CLAIM)),), (), 1.0, 60))
        assert None not in fetch(do, SLOT, lock, OTHER)
        wait(1.1)
        assert fetch(do, SLOT, lock, OTHER) == [None, None, None]

    # -- invalidate

    def test_an_invalidation_drops_slots_with_their_companions_and_replaces_tokens(self, do: Do) -> None:
        lock = KEYS.refresh_lock("n:a")
        do(Begin((Place(SLOT, placeholder(1)), Place(OTHER, placeholder(2))), ((TOKEN, token(1)),), 60, 60))
        do(Lock(lock, nonce(1), 60))
        do(Invalidate(slots_of(SLOT), ((TOKEN, token(2), "t"), (TOKEN_2, token(3), "u")), 60))
        assert fetch(do, SLOT, lock, OTHER) == [None, None, placeholder(2)]
        assert fetch(do, TOKEN, TOKEN_2) == [token(2), token(3)]

    # -- holds

    def test_while_a_hold_stands_nothing_takes_its_place(self, do: Do) -> None:
        """No begin, no commit, no claim, no invalidation; releasing it leaves nothing, and a fresh token."""
        do(Begin((Place(SLOT, placeholder(1)),), ((TOKEN, token(1)),), 60, 60))
        do(invalidation(2, hold=(nonce(7), 30)))
        assert tuple(do(Commit((fill(SLOT, placeholder(1), value(5)),)))) == (False,)
        there, tag = fetch(do, SLOT, TOKEN)
        assert type(parse(there)) is Held
        assert is_hold(tag)
        assert do(Begin((Place(SLOT, placeholder(3)),), ((TOKEN, token(3)),), 60, 60)).slots == (there,)
        claimed = do(Claim(((SLOT, placeholder(4, CLAIM)), (OTHER, placeholder(5, CLAIM))), (), 60, 60))
        assert claimed.slots == (there, None)
        do(invalidation(6))
        do(invalidation(7, release=nonce(8)))
        assert fetch(do, SLOT, TOKEN) == [there, tag]
        do(invalidation(9, release=nonce(7)))
        assert fetch(do, SLOT, TOKEN) == [None, token(9)]

    def test_holds_that_overlap_end_each_for_itself(self, do: Do) -> None:
        for name in (1, 2, 1):  # the last is what a repeated command does
            do(invalidation(3, hold=(nonce(name), 30)))
        do(invalidation(4, release=nonce(1)))
        there, tag = fetch(do, SLOT, TOKEN)
        assert type(parse(there)) is Held
        assert is_hold(tag)
        do(invalidation(5, release=nonce(2)))
        assert fetch(do, SLOT, TOKEN) == [None, token(5)]

    def test_a_hold_that_nobody_releases_ends(self, do: Do, wait: Wait) -> None:
        do(invalidation(1, hold=(nonce(1), 2.0)))
        do(invalidation(1, hold=(nonce(2), 1.0)))
        wait(1.5)
        assert None not in fetch(do, SLOT, TOKEN)
        wait(1.0)
        assert fetch(do, SLOT, TOKEN) == [None, None]

    def test_a_hold_drops_the_companions_of_its_slot(self, do: Do) -> None:
        lock = KEYS.refresh_lock("n:a")
        do(Lock(lock, nonce(1), 60))
        do(invalidation(1, hold=(nonce(1), 30)))
        assert fetch(do, lock) == [None]
        do(invalidation(2))
        assert not is_token(fetch(do, TOKEN)[0])

    # -- lists

    def test_a_scan_finds_what_matches(self, do: Do) -> None:
        do(Claim(tuple((KEYS.value(f"n:{i}"), value(i)) for i in range(700)), ((TOKEN, token(1)),), 60, 60))
        do(Claim(((KEYS.value("m:1"), value(1)),), (), 60, 60))
        assert len(scanned(do, KEYS.value("n:*"))) == 700
        assert scanned(do, KEYS.value("n:69?")) == [KEYS.value(f"n:69{i}") for i in range(10)]
        assert scanned(do, KEYS.value("none:*")) == []

    def test_a_scan_leaves_out_what_programs_keep(self, do: Do) -> None:
        do(Run(PROGRAMS["sliding-log"], (KEYS.value("n:kept"),), (1, 1, 5, 60_000_000)))
        do(Claim(((KEYS.value("n:1"), value(1)),), (), 60, 60))
        assert scanned(do, KEYS.value("n:*")) == [KEYS.value("n:1")]

    def test_a_tag_lists_its_entries_by_their_ends(self, do: Do) -> None:
        now, index = time.time(), KEYS.tag_index("t")
        rows = tuple((index, f"n:{i}", now + 100 - i * 10) for i in range(4))
        do(Commit((), index=rows))
        assert do(Members(index, 0, 10)) == ["n:3", "n:2", "n:1", "n:0"]
        assert do(Members(index, 1, 2)) == ["n:2", "n:1"]
        assert do(Members(index, 4, 10)) == []
        do(Commit((), index=((index, "n:3", now + 500),)))
        do(Forget(index, ("n:1", "n:never")))
        assert do(Members(index, 0, 10)) == ["n:2", "n:0", "n:3"]
        assert do(Members(KEYS.tag_index("none"), 0, 10)) == []

    # -- atomic

    def test_of_many_that_begin_at_once_one_leads_and_all_have_its_tokens(self, do: Do) -> None:
        begins = [
            Begin((Place(SLOT, placeholder(i)),), ((TOKEN, token(i)),), 60, 60) for i in range(1, CROWD + 1)
        ]
        replies = do.at_once(begins)
        (leader,) = [i for i, begun in enumerate(replies, 1) if begun.slots == (None,)]
        in_force = {begun.tokens for begun in replies}
        assert fetch(do, SLOT) == [placeholder(leader)]
        assert in_force == {tuple(fetch(do, TOKEN))}
        assert {begun.slots[0] for begun in replies} == {None, placeholder(leader)}

    @pytest.mark.parametrize("size", [1, 5000])
    def test_of_many_commits_over_one_placeholder_one_is_done(self, do: Do, size: int) -> None:
        do(Begin((Place(SLOT, placeholder(1)),), (), 60, 60))
        values = [value(i, b"%d" % i * size) for i in range(CROWD)]
        replies = do.at_once([Commit((fill(SLOT, placeholder(1), new),)) for new in values])
        assert [done for (done,) in replies].count(True) == 1
        assert fetch(do, SLOT)[0] in values

    # -- announcements

    def test_an_announcement_is_taken_and_a_confirmation_says_yes_or_no(self, do: Do) -> None:
        assert do(Announce(("n:a",), ("n:*",))) is None
        assert do(Confirm(0.1)) in (True, False)
