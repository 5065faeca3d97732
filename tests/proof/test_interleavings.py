"""The promise holds in every interleaving of the production flows, and in random ones of larger scenes."""

from __future__ import annotations

import os

import pytest

from tests.proof.explorer import Explorer, Violation
from tests.proof.scenarios import APART, EXHAUSTIVE, EXHAUSTIVE_SOAK, THREE
from tests.proof.steps import Scenario


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_no_schedule_is_stale(name: str) -> None:
    """Every state of the scenario is visited, and what it is about does happen in it."""
    scenario, happens = EXHAUSTIVE[name]
    report = Explorer(scenario).exhaust()
    print(f"{name}: {report}")
    assert happens <= report.covered


@pytest.mark.soak
@pytest.mark.parametrize("name", EXHAUSTIVE_SOAK)
def test_no_schedule_of_a_longer_scenario_is_stale(name: str) -> None:
    print(f"{name}: {Explorer(EXHAUSTIVE_SOAK[name]).exhaust()}")


def wander(scenario: Scenario, schedules: int) -> None:
    seed = int(os.environ.get("PROOF_SEED") or int.from_bytes(os.urandom(4)))
    report = Explorer(scenario).wander(schedules, seed)
    print(f"seed {seed}: {report}")
    assert {"hits_l2", "refused", "waits"} <= report.covered


def test_random_schedules_with_a_leader_that_dies_are_not_stale() -> None:
    """Three readers, two writes, two evictions, a death; PROOF_SEED repeats a run."""
    wander(THREE, 5_000)


@pytest.mark.soak
def test_a_million_random_schedules_are_not_stale() -> None:
    wander(THREE, 1_000_000)


def test_a_violation_is_told_as_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest schedule, a line for each step, with what the store holds after it."""
    monkeypatch.setattr("cacheaside.engine.look.valid", lambda *_: True)
    with pytest.raises(Violation) as caught:
        Explorer(APART).exhaust()
    lines = str(caught.value).splitlines()
    assert lines[0].split()[:4] == ["reader", "0.0", "step", "Note"]
    assert any("Commit" in line and "value" in line for line in lines)
    assert lines[-2].split()[:4] == ["writer", "2.0", "step", "Invalidate"]
    assert lines[-1] == "L2 holds 1, 2 is acknowledged"
