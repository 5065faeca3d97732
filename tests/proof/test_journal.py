"""The journal: what Redis has missed or forgotten shows at once where it was sent from, and is made good.

The journal, its replay and what a new primary means are those of production. Each rule is taken away in turn,
to see that it is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cacheaside.engine import look, many, read
from cacheaside.entry import Marker
from cacheaside.journal import Batch, Journal, Names
from tests.proof.explorer import Explorer, Violation
from tests.proof.outages import (
    FORGOTTEN_KEY,
    FORGOTTEN_PUT,
    FORGOTTEN_TAG,
    JOURNAL,
    JOURNAL_SOAK,
    LOST_KEY,
    LOST_TAG,
    LOST_TWICE,
    LOST_UNDER_WAY,
    OVERFLOW,
)
from tests.proof.steps import Scenario

Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]


@pytest.mark.parametrize("name", JOURNAL)
def test_what_is_lost_is_made_good(name: str) -> None:
    """Every state of the scenario is visited, and what it is about does happen in it."""
    scenario, happens = JOURNAL[name]
    report = Explorer(scenario).exhaust()
    print(f"{name}: {report}")
    assert happens <= report.covered


@pytest.mark.soak
@pytest.mark.parametrize("name", JOURNAL_SOAK)
def test_what_is_lost_is_made_good_in_a_longer_scenario(name: str) -> None:
    print(f"{name}: {Explorer(JOURNAL_SOAK[name]).exhaust()}")


def not_consulted(patch: Patch) -> None:
    """Reads believe what Redis says about what it has missed."""
    patch.setattr(Journal, "doubts", lambda *_: False)


def replayed_after_the_first_read(patch: Patch) -> None:
    """What a new primary may have forgotten is owed when the recovery gets to it, and not before."""
    reopen, batch = Journal.reopen, Journal.batch

    def later(journal: Any) -> int:
        journal.owing = journal.reopens = True
        return 0

    def reopened(journal: Any, most: int) -> Batch:
        if getattr(journal, "reopens", False):
            journal.reopens = False
            reopen(journal)
        return batch(journal, most)

    patch.setattr(Journal, "reopen", later)
    patch.setattr(Journal, "batch", reopened)


def dropped_on_overflow(patch: Patch) -> None:
    """What is too much for the journal is left out."""

    def drop(names: Names, number: float) -> None:
        table = names.keys or names.tags
        del table[next(iter(table))]

    patch.setattr(Names, "_fold", drop)


def settled_and_forgotten(patch: Patch) -> None:
    """What was asked before a debt was settled is believed after it."""
    settle = Journal.settle

    def forget(journal: Journal, batch: Batch) -> None:
        settle(journal, batch)
        journal._settled.clear()

    patch.setattr(Journal, "settle", forget)


def settled_though_owed_anew(patch: Patch) -> None:
    """A replay settles what came to be owed while it was on its way."""
    settle = Journal.settle
    patch.setattr(Journal, "settle", lambda journal, batch: settle(journal, batch._replace(change=10**9)))


def noted_when_confirmed(patch: Patch) -> None:
    """An invalidation that is on its way when the primary dies is not repeated."""
    patch.setattr(Journal, "note", lambda *_: None)


def not_noted(patch: Patch) -> None:
    """Nothing is repeated on a new primary."""
    patch.setattr(Journal, "note", lambda *_: None)
    patch.setattr(Journal, "confirm", lambda *_: None)


def loads_under_way_are_joined(patch: Patch) -> None:
    """Values are doubted, and not a load of this process that began before the invalidation."""
    judge = look.judge

    def trusting(site: Any, call: Any, seen: Any) -> None:
        with patch.context() as inner:
            if type(seen.slot) is Marker:
                inner.setattr(Journal, "doubts", lambda *_: False)
            judge(site, call, seen)

    for module in (look, many, read):
        patch.setattr(module, "judge", trusting)


MUTANTS: list[tuple[Mutant, Scenario]] = [
    (not_consulted, LOST_TAG),
    (replayed_after_the_first_read, FORGOTTEN_KEY),
    (dropped_on_overflow, OVERFLOW),
    (loads_under_way_are_joined, LOST_UNDER_WAY),
    (settled_and_forgotten, LOST_KEY),
    (settled_though_owed_anew, LOST_TWICE),
    (noted_when_confirmed, FORGOTTEN_TAG),
    (not_noted, FORGOTTEN_PUT),
]


@pytest.mark.parametrize(("mutant", "scenario"), MUTANTS, ids=[m.__name__ for m, _ in MUTANTS])
def test_caught(mutant: Mutant, scenario: Scenario, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    with pytest.raises(Violation) as caught:
        Explorer(scenario).exhaust()
    print(caught.value)
