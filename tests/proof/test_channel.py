"""The coherence channel: no L1 beside Redis holds less than its process has heard of, or than a window ago.

What a process makes of what it hears is the production ``Listener``; what is published is what the production
``Encoder`` publishes. Each rule is taken away in turn, to see that it is missed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from cacheaside.engine import fill, many
from cacheaside.engine.commands import Confirm, Flow
from cacheaside.listener import Listener
from cacheaside.stores.encoding import Encoder
from cacheaside.stores.memory import NearCache
from tests.proof.channels import (
    BY_KEY,
    BY_LATE_TAG,
    BY_TAG,
    CHANNEL,
    CHANNEL_SOAK,
    CLUSTER_LATE,
    CLUSTER_WINDOW,
    MANY,
    PUT,
    WINDOW,
)
from tests.proof.explorer import Explorer, Violation
from tests.proof.process import Process
from tests.proof.steps import KEY, Scenario

Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]


@pytest.mark.parametrize("name", CHANNEL)
def test_no_l1_falls_behind(name: str) -> None:
    """Every state of the scenario is visited, and what it is about does happen in it."""
    scenario, happens = CHANNEL[name]
    report = Explorer(scenario).exhaust()
    print(f"{name}: {report}")
    assert happens <= report.covered


@pytest.mark.soak
@pytest.mark.parametrize("name", CHANNEL_SOAK)
def test_no_l1_falls_behind_in_a_longer_scenario(name: str) -> None:
    print(f"{name}: {Explorer(CHANNEL_SOAK[name]).exhaust()}")


@pytest.mark.soak
def test_no_l1_falls_behind_in_random_schedules() -> None:
    """Three processes with an L1, four writes, two broken lines, an eviction; PROOF_SEED repeats a run."""
    seed = int(os.environ.get("PROOF_SEED") or int.from_bytes(os.urandom(4)))
    report = Explorer(MANY).wander(100_000, seed)
    print(f"seed {seed}: {report}")
    assert {"l1", "l1_behind", "gap", "l1_refused"} <= report.covered


# ---------------------------------------------------------------------------- the put rule and epochs


def no_marks(patch: Patch) -> None:
    """L1 takes what was read before its key or tag was announced."""
    patch.setattr(NearCache, "_unmarked", lambda *_: True)


def no_floor(patch: Patch) -> None:
    """L1 takes what was read before the last subscription."""

    def clear(near: NearCache, pattern: str = "*") -> None:
        near.entries.clear()

    patch.setattr(NearCache, "clear", clear)


def no_clear(patch: Patch) -> None:
    """L1 keeps what it held before the last subscription."""

    def floor(near: NearCache, pattern: str = "*") -> None:
        near._count += 1
        near._floor = near._count

    patch.setattr(NearCache, "clear", floor)


def cleared_before_it_listens(patch: Patch) -> None:
    """L1 starts anew when a subscription is asked for, not when it is confirmed."""
    subscribing, confirmed, clear = Listener.subscribing, Listener.confirmed, NearCache.clear

    def ask(listener: Listener, *of: int) -> None:
        clear(listener._near)
        subscribing(listener, *of)

    def take(listener: Listener) -> bool:
        with pytest.MonkeyPatch.context() as within:
            within.setattr(NearCache, "clear", lambda *_: None)
            return confirmed(listener)

    patch.setattr(Listener, "subscribing", ask)
    patch.setattr(Listener, "confirmed", take)


def silent_gap(patch: Patch) -> None:
    """The client subscribes again by itself, and that is nobody's business."""
    confirmed = Listener.confirmed
    patch.setattr(Listener, "confirmed", lambda listener: listener.up or confirmed(listener))


# ---------------------------------------------------------------------------- the horizon


def horizon_at_receipt(patch: Patch) -> None:
    """L1 is believed from when a heartbeat comes back."""
    returned = Process.returned

    def late(process: Process, name: bytes, now: float) -> None:
        assert process.listener is not None
        sent = process.listener._sent
        sent.update((one, (now, line)) for one, (_, line) in sent.items() if one == name)
        returned(process, name, now)

    patch.setattr(Process, "returned", late)


def horizon_when_sent(patch: Patch) -> None:
    """L1 is believed as soon as a heartbeat is sent."""
    beat = Listener.beat

    def at_once(listener: Listener, now: float, line: int) -> bytes:
        name = beat(listener, now, line)
        listener.returned(name)
        return name

    patch.setattr(Listener, "beat", at_once)


def heartbeats_without_epoch(patch: Patch) -> None:
    """A heartbeat from before a gap is taken for one from after it."""
    beat = Listener.beat

    def numbered(listener: Listener, now: float, line: int) -> bytes:
        name = beat(listener, now, line)
        number = name.partition(b".")[2]
        listener._sent[number] = listener._sent.pop(name)
        return number

    patch.setattr(Listener, "beat", numbered)


def one_line_counts_for_all(patch: Patch) -> None:
    """A heartbeat that has come back by one line shows what was announced on another."""
    beat, subscribing = Listener.beat, Listener.subscribing
    patch.setattr(Listener, "beat", lambda listener, now, line: beat(listener, now))
    patch.setattr(Listener, "subscribing", lambda listener, channels, lines: subscribing(listener, channels))


# ---------------------------------------------------------------------------- what is announced, and when


def announced_before(patch: Patch) -> None:
    """An invalidation is announced, and then it is done."""
    invalidate = Encoder._invalidate

    def first(encoder: Encoder, command: Any) -> Any:
        calls, parse = invalidate(encoder, command)
        told, done = [], []
        for call in calls:
            if call[0] == "PUBLISH":
                told.append(call)
                continue
            at = 3 + call[2] + 7 if call[0] == "EVALSHA" else 0
            if at and call[at]:  # a script that announces what it does
                told.append(("PUBLISH", *call[at - 1 : at + 1]))
                call = (*call[:at], "", *call[at + 1 :])
            done.append(call)
        return told + done, parse

    patch.setattr(Encoder, "_invalidate", first)


def puts_not_announced(patch: Patch) -> None:
    patch.setattr(Encoder, "_told", lambda *_, **__: [])


# ---------------------------------------------------------------------------- late tags


def without_heartbeats(flow: Flow[Any]) -> Flow[Any]:
    """Whoever asks for one is told at once that it has come back."""
    try:
        command = next(flow)
        while True:
            command = flow.send(True if type(command) is Confirm else (yield command))
    except StopIteration as stop:
        return stop.value


def proven_without_a_heartbeat(patch: Patch) -> None:
    """What has not been heard has not happened."""
    prove = fill.prove
    for module in (fill, many):
        patch.setattr(module, "prove", lambda *args: without_heartbeats(prove(*args)))


def tokens_read_after_the_heartbeat(patch: Patch) -> None:
    """First it is shown that everything was heard, and then the tokens are read."""
    prove = fill.prove

    def late(site: Any, names: tuple[str, ...], since: int) -> Flow[Any]:
        if not (yield Confirm(1.0, names)):
            return {}
        return (yield from without_heartbeats(prove(site, names, since)))

    for module in (fill, many):
        patch.setattr(module, "prove", late)


def proven_by_another_line(patch: Patch) -> None:
    """The heartbeat that is to prove late tags takes the line of the key."""
    patch.setattr(fill, "Confirm", lambda timeout, _: Confirm(timeout, (KEY,)))


MUTANTS: list[tuple[Mutant, Scenario]] = [
    (no_marks, BY_TAG),
    (no_floor, BY_TAG),
    (no_clear, BY_KEY),
    (cleared_before_it_listens, BY_KEY),
    (silent_gap, BY_KEY),
    (horizon_at_receipt, WINDOW),
    (horizon_when_sent, WINDOW),
    (heartbeats_without_epoch, WINDOW),
    (one_line_counts_for_all, CLUSTER_WINDOW),
    (announced_before, BY_TAG),
    (puts_not_announced, PUT),
    (proven_without_a_heartbeat, BY_LATE_TAG),
    (tokens_read_after_the_heartbeat, BY_LATE_TAG),
    (proven_by_another_line, CLUSTER_LATE),
]


@pytest.mark.parametrize(("mutant", "scenario"), MUTANTS, ids=[m.__name__ for m, _ in MUTANTS])
def test_caught(mutant: Mutant, scenario: Scenario, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    with pytest.raises(Violation) as caught:
        Explorer(scenario).exhaust()
    print(caught.value)
