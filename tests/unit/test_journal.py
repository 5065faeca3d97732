"""The journal: what is owed is doubted until it is confirmed; nothing is dropped, and all is bounded."""

from __future__ import annotations

import threading

import pytest

from cacheaside.journal import Batch, Journal, matches
from cacheaside.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(clock: FakeClock) -> Journal:
    return Journal(clock, owed=40, kept=40)


def test_nothing_is_doubted_at_first(journal: Journal) -> None:
    assert not journal.owing
    assert not journal.doubts("n:k", ["t"], journal.change)
    assert journal.batch(10) == Batch(change=0)


def test_what_is_owed_is_doubted_and_nothing_else(journal: Journal) -> None:
    journal.owe(["n:k"], ["t"])
    now = journal.change
    assert journal.owing
    assert len(journal) == 2
    assert journal.doubts("n:k", [], now)
    assert journal.doubts("n:other", ["u", "t"], now)
    assert not journal.doubts("n:other", ["u", "n:k"], now)
    assert not journal.doubts("t", [], now)


def test_what_was_asked_before_a_debt_was_settled_is_doubted_after_it(journal: Journal) -> None:
    """The answer may have been on its way when the invalidation reached the store."""
    journal.owe(["n:k"], ["t"])
    asked = journal.change
    journal.settle(journal.batch(10))
    assert not journal.owing
    assert journal.doubts("n:k", [], asked)
    assert journal.doubts("n:o", ["t"], asked)
    assert not journal.doubts("n:o", ["u"], asked)
    assert not journal.doubts("n:k", ["t"], journal.change)


def test_what_is_owed_again_while_it_is_sent_stays_owed(journal: Journal) -> None:
    journal.owe(["n:k", "n:j"], ["t"], ["n:p*"])
    sent = Batch(("n:k", "n:j"), ("t",), ("n:p*",), journal.change)
    journal.owe(["n:k"], [], ["n:p*"])
    journal.settle(sent)
    assert (journal.batch(10).keys, journal.batch(10).tags) == (("n:k",), ())
    assert journal.doubts("n:p1", [], journal.change)
    assert not journal.doubts("n:j", ["t"], journal.change)
    assert journal.replayed == 2


def test_patterns_are_sent_last_one_at_a_time(journal: Journal) -> None:
    journal.owe(["n:k"], [], ["n:a*", "n:b*"])
    sent: list[Batch] = []
    while journal.owing:
        sent.append(journal.batch(10))
        journal.settle(sent[-1])
    assert [(b.keys, b.patterns) for b in sent] == [
        (("n:k",), ()),
        ((), ("n:a*",)),
        ((), ("n:b*",)),
    ]


def test_a_pattern_is_doubted_as_redis_would_match_it_or_more(journal: Journal) -> None:
    journal.owe([], [], ["posts:feed:*"])
    asked = journal.change
    assert journal.doubts("posts:feed:1", [], asked)
    assert not journal.doubts("posts:post:1", [], asked)
    journal.settle(journal.batch(10))
    assert journal.doubts("posts:feed:1", [], asked), "asked before it was settled"
    assert not journal.doubts("posts:feed:1", [], journal.change)
    assert matches("n:[ab]", "n:ab"), "fnmatch reads it in another way"
    assert matches("n:\\*", "n:x")


def test_a_batch_is_bounded_and_the_oldest_first(journal: Journal) -> None:
    journal.owe([f"n:{i}" for i in range(9)], ["t", "u"])
    assert journal.batch(3).keys == ("n:0", "n:1", "n:2")
    assert journal.batch(10) == Batch(tuple(f"n:{i}" for i in range(9)), ("t",), (), 1)


def test_too_many_keys_become_their_namespace(journal: Journal) -> None:
    """And never are any of them forgotten."""
    journal.owe([f"big:{i}" for i in range(30)] + [f"small:{i}" for i in range(9)], ["t"])
    assert len(journal) == 40
    journal.owe(["small:x"], [])
    assert len(journal) == 12
    now = journal.change
    for key in (*(f"big:{i}" for i in range(30)), *(f"small:{i}" for i in range(9)), "small:x"):
        assert journal.doubts(key, [], now)
    assert journal.doubts("other:1", ["t"], now)
    assert not journal.doubts("other:1", ["u"], now)


@pytest.mark.parametrize("what", ["tags", "namespaces", "patterns"])
def test_what_cannot_become_a_namespace_becomes_everything(journal: Journal, what: str) -> None:
    for i in range(41):
        journal.owe(
            [f"n{i}:k"] if what == "namespaces" else [],
            [f"t{i}"] if what == "tags" else [],
            [f"n{i}:*"] if what == "patterns" else [],
        )
    assert journal.batch(10).patterns == ("*",)
    assert journal.doubts("any:key", [], journal.change)


def test_settled_debts_are_remembered_up_to_a_bound(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it every read that began before them is doubted."""
    monkeypatch.setattr("cacheaside.journal.SETTLED", 2)
    asked = journal.change
    for i in range(4):
        journal.owe([f"n:{i}"], [])
        journal.settle(journal.batch(10))
    assert journal.doubts("n:0", [], asked)
    assert journal.doubts("n:unheard of", [], asked)
    assert not journal.doubts("n:0", [], journal.change)
    assert len(journal._settled) == 2


# ---------------------------------------------------------------------------- what was confirmed


def test_what_was_confirmed_is_owed_again_when_the_server_may_have_lost_it(journal: Journal) -> None:
    woken: list[int] = []
    journal.wake = lambda: woken.append(1)
    journal.note(["n:k"], ["t"])
    journal.confirm(["n:k"], ["t"])
    assert (journal.recent, journal.owing) == (2, False)
    assert journal.reopen() == 2
    assert (journal.recent, woken) == (0, [1])
    assert journal.doubts("n:k", [], journal.change)
    assert journal.doubts("n:o", ["t"], journal.change)
    assert len(woken) == 3, "who reads wakes whoever pays: a forked child has not been told"
    assert journal.reopen() == 0


def test_what_is_on_its_way_is_recent_already(journal: Journal) -> None:
    """Confirmed by a server that another thread has just found to be dead, it would be lost."""
    journal.note(["n:k"], [])
    assert journal.reopen() == 1


def test_what_was_confirmed_is_kept_for_a_minute(journal: Journal, clock: FakeClock) -> None:
    for i in range(4):
        journal.confirm([f"n:{i}"], [])
        clock.tick(25)
    assert journal.recent == 3
    assert journal.reopen() == 3
    assert not journal.doubts("n:0", [], journal.change)


def test_the_minute_ends_with_the_last_confirmation(journal: Journal, clock: FakeClock) -> None:
    """A process that has not heard from the server for an hour does not know when it lost what."""
    journal.confirm(["n:k"], [])
    clock.tick(3600)
    journal.note(["n:j"], [])
    assert journal.reopen() == 2


def test_a_debt_that_was_paid_is_recent(journal: Journal) -> None:
    journal.owe(["n:k"], ["t"])
    journal.settle(journal.batch(10))
    assert journal.recent == 2


def test_too_much_that_is_recent_becomes_patterns_too(journal: Journal) -> None:
    journal.confirm([f"n:{i}" for i in range(50)], [])
    assert journal.recent == 1
    journal.reopen()
    assert journal.doubts("n:7", [], journal.change)
    assert not journal.doubts("m:7", [], journal.change)


def test_nothing_is_kept_where_nothing_will_be_repeated(clock: FakeClock) -> None:
    journal = Journal(clock, recent=False)
    journal.note(["n:k"], [])
    journal.confirm(["n:k"], [])
    journal.owe(["n:k"], [])
    journal.settle(journal.batch(1))
    assert journal.recent == 0


def test_many_threads_lose_nothing(clock: FakeClock) -> None:
    journal = Journal(clock)
    paid: list[str] = []

    def owe(n: int) -> None:
        for i in range(200):
            journal.owe([f"{n}:{i}"], [])

    def pay() -> None:
        while len(paid) < 800:
            batch = journal.batch(7)
            journal.settle(batch)
            paid.extend(batch.keys)

    threads = [threading.Thread(target=owe, args=(n,)) for n in range(4)]
    threads.append(threading.Thread(target=pay))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(paid) == sorted(f"{n}:{i}" for n in range(4) for i in range(200))
    assert not journal.owing
