"""Invalidations that the store has missed, or may have lost, once more."""

from __future__ import annotations

from typing import Final

from cacheaside.engine.call import Near, World
from cacheaside.engine.commands import Flow, Sleep
from cacheaside.engine.direct import drop_matching
from cacheaside.engine.write import invalidation
from cacheaside.errors import StoreUnavailable
from cacheaside.journal import Batch

BATCH: Final = 500


def replay(world: World, near: Near | None) -> Flow[int]:
    """Send all that is owed, the oldest first; how much it was.

    Raises StoreUnavailable when the store does not confirm it: the rest stays owed.
    """
    journal, count = world.journal, 0
    while journal.owing:
        batch = journal.batch(BATCH)
        try:
            count += yield from pay(world, near, batch)
        except StoreUnavailable as error:
            failure, parts = error, each(batch) if world.spread else []
            if len(parts) < 2:
                raise
            # One of several servers may be away: to the others nothing is to be said with each attempt.
            for part in parts:
                yield Sleep(0)
                try:
                    count += yield from pay(world, near, part)
                except StoreUnavailable as still:
                    failure = still
            raise failure from None
        yield Sleep(0)
    return count


def pay(world: World, near: Near | None, batch: Batch) -> Flow[int]:
    """Send these, and settle them; how much it was."""
    keys, tags, patterns, _ = batch
    for pattern in patterns:
        _, failure = yield from drop_matching(world, near, pattern, timeout=0.0)
        if failure is not None and not failure.unheard:
            raise failure from None
    if keys or tags:
        try:
            yield invalidation(world, keys, tags)
        except StoreUnavailable as error:
            if not error.unheard:
                raise
    if near is not None:
        near.mark(keys, tags)
    world.journal.settle(batch)
    return len(keys) + len(tags) + len(patterns)


def each(batch: Batch) -> list[Batch]:
    """Its keys and tags one by one."""
    keys = [Batch(keys=(key,), change=batch.change) for key in batch.keys]
    return keys + [Batch(tags=(tag,), change=batch.change) for tag in batch.tags]
