"""What actors play: episodes around production flows; and who plays with whom."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from cacheaside.engine.call import Call
from cacheaside.engine.direct import put_values
from cacheaside.engine.many import read_many
from cacheaside.engine.read import read
from cacheaside.engine.replay import replay
from cacheaside.engine.write import invalidate, put
from cacheaside.errors import StoreUnavailable
from tests.proof.process import Process
from tests.proof.steps import (
    KEY,
    TTL,
    Acknowledge,
    Database,
    Episode,
    Expire,
    Note,
    Owing,
    Scenario,
    Stale,
    Write,
)

Steps = Generator[Any, Any, None]
OTHER = "ns:other"


def check(result: int, floor: tuple[int, int]) -> None:
    _, here = floor
    if result < max(floor):
        said = f"was told {result}, and {max(floor)} had been acknowledged before"
        raise Stale(said, own=result < here)


def get(process: Process) -> Steps:
    """A call of the function: L1 first, as the compiled hit path does, then the engine."""
    floor = yield Note()
    # Beside Redis what L1 would answer is checked in every state: the more it reads, the more may go wrong.
    near = process.near if process.listener is None else None
    entry = near.get(KEY, process.clock) if near is not None else None
    check((yield from read(process.site, process.call())) if entry is None else entry.value, floor)


def refresh(process: Process) -> Steps:
    """``f.refresh()``."""
    floor = yield Note()
    check((yield from read(process.site, process.call(forced=True))), floor)


def get_many(process: Process) -> Steps:
    """A batch of two keys."""
    floor = yield Note()
    keys = (KEY, OTHER)

    def loader(positions: list[int]) -> Call:
        return process.call(lambda database: (database.version,) * len(positions), "")

    calls = [process.call(key=key) for key in keys]
    for result in (yield from read_many(process.site, calls, loader)):
        check(result, floor)


def write(*, keys: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> Episode:
    """Commit a new version, then invalidate it."""

    def episode(process: Process) -> Steps:
        version = yield Write()
        if (yield from invalidate(process.world, process.heard, keys, tags)):
            yield Acknowledge(version)

    return episode


def write_once(*, keys: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> Episode:
    """Commit a new version and invalidate it, in one attempt: what is not confirmed is owed."""

    def episode(process: Process) -> Steps:
        version = yield Write()
        receipt = yield from invalidate(process.world, process.heard, keys, tags, timeout=0.01)
        process.owed = version
        yield Acknowledge(version, own=not receipt)

    return episode


def recover(process: Process) -> Steps:
    """What the recovery thread does: while anything is owed, send it again; then all of it is known."""
    while (yield Owing()):
        try:
            yield from replay(process.world, process.heard)
        except StoreUnavailable:
            continue
        yield Acknowledge(process.owed)


def update(process: Process) -> Steps:
    """``@updates``: commit a new version and make it the value of the key."""
    version, _ = yield from put(process.site, process.call(Database.update), 2.0)
    process.owed = version
    yield Acknowledge(version)


def set_value(process: Process) -> Steps:
    """Commit a new version, then ``cache.set()`` it."""
    version = yield Write()
    yield from put_values(process.site, [(process.call(), version)], 2.0, process.heard)
    process.owed = version
    yield Acknowledge(version)


def mutate(*, dies: bool, keys: tuple[str, ...] = (KEY,), tags: tuple[str, ...] = ("tag",)) -> Episode:
    """``with cache.mutating(...):`` around a commit; if the writer dies after it, the holds end."""

    def episode(process: Process) -> Steps:
        name = process.world.nonce()
        yield from invalidate(process.world, process.heard, keys, tags, hold=(name, 30.0))
        version = yield Write()
        if dies:
            yield Expire(name)
        else:
            yield from invalidate(process.world, process.heard, keys, tags, release=name)
        yield Acknowledge(version)

    return episode


by_key, by_tag, by_late_tag = write(keys=(KEY,)), write(tags=("tag",)), write(tags=("late",))
both_keys = write(keys=(KEY, OTHER))
WRITER = ("writer", (by_key, by_tag))


def reader(*episodes: Episode) -> tuple[str, tuple[Episode, ...]]:
    return ("reader", episodes)


def apart(*actors: tuple[str, tuple[Episode, ...]], **options: Any) -> Scenario:
    """Each actor in a process of his own."""
    return Scenario(tuple((actor,) for actor in actors), **options)


def together(*actors: tuple[str, tuple[Episode, ...]], **options: Any) -> Scenario:
    """All actors in one process."""
    return Scenario((actors,), **options)


def beside(*actors: tuple[str, tuple[Episode, ...]], **options: Any) -> Scenario:
    """The last actor in a process of his own, the others in one."""
    return Scenario((actors[:-1], actors[-1:]), **options)


def stale_value(**policy: Any) -> dict[str, Any]:
    """Options for a value that stands in the store past its ttl, and may be served until it is renewed."""
    return {"before": (get,), "clock": TTL + 1, "policy": {"stale_while_revalidate": 1000, **policy}}
