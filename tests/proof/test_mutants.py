"""The explorer finds what is wrong with each shortcut: the protocol, less one of its rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from cacheaside.engine import fill, look, many
from cacheaside.engine import read as reading
from cacheaside.engine import write as writing
from cacheaside.engine.commands import Fetch, Wait
from cacheaside.entry import NONCE, Marker, Value, is_token, pack_tags, unpack_tags
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.stores.memory import NearCache
from tests.proof.explorer import Explorer, Violation
from tests.proof.scenarios import (
    APART,
    BESIDE,
    FAILOVER,
    HELD,
    HELD_DROPPED,
    HELD_PUT,
    HELD_TWICE,
    L1,
    LATE,
    LATE_L1,
    MOVED,
    SPREAD,
    UPDATE,
)
from tests.proof.steps import Scenario
from tests.proof.told import SpreadWorld, World

Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]


def mutate(patch: Patch, name: str, other: Any) -> None:
    """Put ``other`` in the place of what the whole engine knows by this name."""
    for module in (look, fill, reading, many, writing):
        if hasattr(module, name):
            patch.setattr(module, name, other)


def tokens_after_load(patch: Patch) -> None:
    settle = fill.settle

    def late(site: Any, call: Any, result: Any, start: Any, expected: Any, seen: Any, flight: Any) -> Any:
        tokens = yield Fetch(tuple(map(site.world.keys.token, call.tags)))
        if all(map(is_token, tokens)):
            seen.known = pack_tags(call.tags, tokens)
        return (yield from settle(site, call, result, start, expected, seen, flight))

    mutate(patch, "settle", late)


def commit_without_comparing(patch: Patch) -> None:
    patch.setattr(EmbeddedStore, "_opens_with", lambda *_: True)


def commit_if_missing(patch: Patch) -> None:
    """The nonce does not count: an empty slot is as good as one's own placeholder."""
    compare = EmbeddedStore._opens_with
    patch.setattr(
        EmbeddedStore, "_opens_with", lambda s, k, expected: s._get(k) is None or compare(s, k, expected)
    )


def one_nonce_per_client(patch: Patch) -> None:
    pack = Marker.pack
    patch.setattr(Marker, "pack", lambda marker: pack(marker._replace(nonce=b"c" * NONCE)))


def flight_by_key(patch: Patch) -> None:
    """Whoever wants a key that this process is loading waits for that load."""
    read = reading.read

    def join_first(site: Any, call: Any) -> Any:
        flying = [f for f in site.world.flights._flying.values() if f.name[0] == call.key]
        if site.world.process.tell([f.name for f in flying]):
            landed = flying[0].landed if (yield Wait(flying[0], 5.0)) else None
            if landed is not None and not landed.abandoned:
                return reading.answer(site, call, landed)
        return (yield from read(site, call))

    patch.setattr("tests.proof.episodes.read", join_first)


def digest_ignored(patch: Patch) -> None:
    """A placeholder is followed whatever tokens its fill will carry."""
    mutate(patch, "digest", lambda _: b"digest--")


def missing_token_is_valid(patch: Patch) -> None:
    judge = look.judge

    def lenient(site: Any, call: Any, seen: Any) -> None:
        if type(seen.slot) is Value:
            stored = unpack_tags(seen.slot.known) or {}
            named = zip(call.tags, seen.tokens, strict=True)
            seen.tokens = [stored.get(name) if token is None else token for name, token in named]
        judge(site, call, seen)

    mutate(patch, "judge", lenient)


def tokens_not_compared(patch: Patch) -> None:
    mutate(patch, "valid", lambda *_: True)


def incarnation_not_compared(patch: Patch) -> None:
    patch.setattr(World, "accepts", lambda *_: True)


def token_of_a_dead_server_believed(patch: Patch) -> None:
    """The values' servers live, and a tag's server has forgotten that it rotated the token."""
    patch.setattr(SpreadWorld, "accepts_tag", lambda *_: True)


def any_living_incarnation_accepted(patch: Patch) -> None:
    """A value keeps what it carries when its slot moves, and is believed while the server it left lives."""

    def lenient(world: SpreadWorld, incarnation: bytes, key: str) -> bool:
        accepted: bool = world.process.tell(incarnation in world._incarnations.values())
        return accepted

    patch.setattr(SpreadWorld, "accepts", lenient)


def holds_ignored(patch: Patch) -> None:
    """Holds are replaced like anything else that is of no use."""
    patch.setattr(look, "Held", None)


def holds_dropped(patch: Patch) -> None:
    """An invalidation drops holds as it drops values."""
    held = EmbeddedStore._held

    def only_its_own(store: Any, key: str, prefix: bytes, command: Any) -> bool:
        if command.hold is None:
            store._rows.pop(key, None)
        return held(store, key, prefix, command)

    patch.setattr(EmbeddedStore, "_held", only_its_own)


def holds_claimed(patch: Patch) -> None:
    """A put takes the place of a hold."""
    claim = EmbeddedStore._claim

    def over_anything(store: Any, command: Any) -> Any:
        for slot, _ in command.slots:
            store._rows.pop(slot, None)
        return claim(store, command)

    patch.setattr(EmbeddedStore, "_claim", over_anything)


def one_hold_at_a_time(patch: Patch) -> None:
    """The end of one hold is the end of all."""
    patch.setattr("cacheaside.stores.embedded.holds", lambda _: [])


def update_overwrites(patch: Patch) -> None:
    """An update that finds something else in the place of its hold stores its value nevertheless."""
    original = fill.commit

    def commit(site: Any, batch: Any) -> Any:
        for ready in batch:
            ready.fill = replace(ready.fill, expected=b"")
        return (yield from original(site, batch))

    patch.setattr(writing, "commit", commit)


def late_tags_unproven(patch: Patch) -> None:
    patch.setattr(NearCache, "unmarked", lambda *_: True)


def late_tags_not_checked_in_flights(patch: Patch) -> None:
    """A flight brings its result whatever became of the tags that only the result names."""
    landed = fill.Landed

    def without_late(*args: Any, late: Any = (), since: int = 0, **more: Any) -> Any:
        return landed(*args, **more)

    mutate(patch, "Landed", without_late)


def l1_keeps_what_was_read_before(patch: Patch) -> None:
    """L1 takes a result though its key or tag was invalidated after the read began."""
    patch.setattr(NearCache, "_unmarked", lambda *_: True)


def l1_not_dropped(patch: Patch) -> None:
    patch.setattr(NearCache, "mark", lambda *_: None)


MUTANTS: list[tuple[Mutant, Scenario]] = [
    (tokens_after_load, APART),
    (commit_without_comparing, APART),
    (commit_if_missing, APART),
    (one_nonce_per_client, APART),
    (flight_by_key, BESIDE),
    (digest_ignored, BESIDE),
    (missing_token_is_valid, APART),
    (tokens_not_compared, APART),
    (incarnation_not_compared, FAILOVER),
    (token_of_a_dead_server_believed, SPREAD),
    (any_living_incarnation_accepted, MOVED),
    (holds_ignored, HELD),
    (holds_dropped, HELD_DROPPED),
    (holds_claimed, HELD_PUT),
    (one_hold_at_a_time, HELD_TWICE),
    (update_overwrites, UPDATE),
    (late_tags_unproven, LATE),
    (late_tags_not_checked_in_flights, LATE_L1),
    (l1_keeps_what_was_read_before, L1),
    (l1_not_dropped, L1),
]


@pytest.mark.parametrize(("mutant", "scenario"), MUTANTS, ids=[m.__name__ for m, _ in MUTANTS])
def test_caught(mutant: Mutant, scenario: Scenario, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    with pytest.raises(Violation) as caught:
        Explorer(scenario).exhaust()
    print(caught.value)


def test_random_schedules_catch_one_too(monkeypatch: Patch) -> None:
    """The seed that finds it is named."""
    tokens_after_load(monkeypatch)
    with pytest.raises(Violation, match=r"^seed 1\n"):
        Explorer(APART).wander(100_000, seed=1)
