"""Invalidations that the store has missed, or may have lost, once more."""

from __future__ import annotations

from typing import Final

from cacheaside.engine.call import Near, World
from cacheaside.engine.commands import Flow, Sleep
from cacheaside.engine.direct import drop_matching
from cacheaside.engine.write import invalidation
from cacheaside.errors import StoreUnavailable

BATCH: Final = 500


def replay(world: World, near: Near | None) -> Flow[int]:
    """Send all that is owed, the oldest first; how much it was.

    Raises StoreUnavailable when the store does not confirm it: the rest stays owed.
    """
    journal, count = world.journal, 0
    while journal.owing:
        keys, tags, patterns, _ = batch = journal.batch(BATCH)
        for pattern in patterns:
            _, failure = yield from drop_matching(world, near, pattern, timeout=0.0)
            if failure is not None and not failure.unheard:
                raise failure
        if keys or tags:
            try:
                yield invalidation(world, keys, tags)
            except StoreUnavailable as error:
                if not error.unheard:
                    raise
        if near is not None:
            near.mark(keys, tags)
        journal.settle(batch)
        count += len(keys) + len(tags) + len(patterns)
        yield Sleep(0)
    return count
