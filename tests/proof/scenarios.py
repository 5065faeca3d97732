"""Who meets whom in the interleaving proof: episodes around production flows, and scenarios of them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from cacheaside.engine.call import Call
from cacheaside.engine.many import read_many
from cacheaside.engine.read import read
from cacheaside.engine.write import invalidate, put
from tests.proof.process import Process
from tests.proof.steps import (
    KEY,
    TTL,
    Acknowledge,
    Database,
    Episode,
    Expire,
    Note,
    Scenario,
    Stale,
    Write,
)

Steps = Generator[Any, Any, None]
OTHER = "ns:other"


def check(result: int, floor: int) -> None:
    if result < floor:
        raise Stale(f"was told {result}, and {floor} had been acknowledged before")


def get(process: Process) -> Steps:
    """A call of the function: L1 first, as the compiled hit path does, then the engine."""
    floor = yield Note()
    entry = process.near.get(KEY, process.clock) if process.near is not None else None
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


def update(process: Process) -> Steps:
    """``@updates``: commit a new version and make it the value of the key."""
    version, _ = yield from put(process.site, process.call(Database.update), 2.0)
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


APART = apart(reader(get, get), reader(get), WRITER, evictions=1)
BESIDE = beside(reader(get), reader(get), WRITER, evictions=1)
L1 = together(reader(get), reader(get), WRITER, l1=True)
HELD = apart(reader(get), reader(get), ("writer", (mutate(dies=True, tags=()),)))
KEY_DIES, TAG_DIES = mutate(dies=True, tags=()), mutate(dies=True, keys=())
HELD_PUT = apart(reader(get), ("updater", (update,)), ("writer", (KEY_DIES,)))
HELD_DROPPED = apart(reader(get), reader(get), ("writer", (TAG_DIES,)), ("other", (by_tag,)))
HELD_TWICE = apart(
    reader(get), reader(get), ("writer", (KEY_DIES,)), ("other", (mutate(dies=False, tags=()),))
)
SPREAD = apart(reader(get), reader(get), ("writer", (by_tag,)), cluster=True, spread=True, failovers=1)
MOVED = apart(
    reader(get),
    reader(get),
    ("writer", (by_key,)),
    tags=(),
    cluster=True,
    spread=True,
    moves=1,
    failovers=1,
)
FAILOVER = apart(reader(get), reader(get), WRITER, evictions=1, failovers=1)
LATE = together(reader(get), reader(get), ("writer", (by_late_tag,)), tags=(), late=("late",), witness=True)
LATE_L1 = together(reader(get), reader(get), ("writer", (by_late_tag,)), tags=(), late=("late",), l1=True)
UPDATE = apart(reader(get), ("updater", (update,)), ("writer", (by_key,)), evictions=1)
THREE = apart(reader(get, get), reader(get, get), reader(get, get), WRITER, evictions=2, deaths=1)

EXHAUSTIVE: dict[str, tuple[Scenario, set[str]]] = {
    "readers apart": (APART, {"hits_l2", "refused", "waits"}),
    "readers in one process": (BESIDE, {"hits_l2", "refused", "coalesced"}),
    "readers and the writer in one process with an L1": (L1, {"hits_l2", "refused", "coalesced"}),
    "in a cluster": (
        apart(reader(get), reader(get), WRITER, evictions=1, cluster=True),
        {"hits_l2", "refused"},
    ),
    "a failover that forgets the last write": (FAILOVER, {"hits_l2", "refused"}),
    "in a cluster, a failover of the values' server or of the tags'": (SPREAD, {"hits_l2", "refused"}),
    "in a cluster, a slot that moves, and a failover": (MOVED, {"hits_l2", "refused"}),
    "a held transaction whose writer dies, by key": (HELD, {"hits_l2", "refused"}),
    "a held transaction whose writer dies, by tag": (
        apart(reader(get), reader(get), ("writer", (mutate(dies=True, keys=()),))),
        {"hits_l2", "waits"},
    ),
    "a held transaction whose writer dies, by both": (
        apart(reader(get), reader(get), ("writer", (mutate(dies=True),))),
        {"hits_l2", "refused"},
    ),
    "a put while a transaction is held whose writer dies": (HELD_PUT, {"hits_l2", "refused"}),
    "a put under a tag while a transaction is held whose writer dies": (
        apart(reader(get), ("updater", (update,)), ("writer", (TAG_DIES,))),
        {"hits_l2", "refused"},
    ),
    "an invalidation by key while a transaction is held whose writer dies": (
        apart(reader(get), reader(get), ("writer", (KEY_DIES,)), ("other", (by_key,))),
        {"hits_l2", "refused"},
    ),
    "an invalidation by tag while a transaction is held whose writer dies": (
        HELD_DROPPED,
        {"hits_l2", "waits"},
    ),
    "two held transactions that overlap, by key": (HELD_TWICE, {"hits_l2", "refused"}),
    "two held transactions that overlap, by tag": (
        apart(reader(get), reader(get), ("writer", (TAG_DIES,)), ("other", (mutate(dies=False, keys=()),))),
        {"hits_l2", "waits"},
    ),
    "a held transaction and an eviction": (
        apart(reader(get), reader(get), ("writer", (mutate(dies=False),)), evictions=1),
        {"hits_l2", "refused"},
    ),
    "an update, a reader and an invalidation": (UPDATE, {"hits_l2", "refused"}),
    "an update, a reader and an invalidation in one process with an L1": (
        together(reader(get), ("updater", (update,)), ("writer", (by_key,)), l1=True),
        {"hits_l2", "refused"},
    ),
    "two updates and a reader": (
        apart(reader(get), ("updater", (update,)), ("updater", (update,)), evictions=1),
        {"hits_l2", "refused"},
    ),
    "a stale value renewed by its caller": (
        apart(reader(get), reader(get), WRITER, **stale_value(), evictions=1),
        {"stale", "refused"},
    ),
    "a stale value renewed in the background": (
        apart(reader(get), reader(get), WRITER, **stale_value(refresh="background"), evictions=1),
        {"stale", "refused"},
    ),
    "a stale value kept for errors": (
        apart(
            reader(get),
            reader(get),
            WRITER,
            evictions=1,
            **stale_value(stale_while_revalidate=0, stale_if_error=1000),
        ),
        {"waits", "refused"},
    ),
    "refresh, a reader and invalidations": (
        apart(reader(refresh), reader(get), WRITER, evictions=1),
        {"hits_l2", "refused"},
    ),
    "refresh, a reader and the writer in one process with an L1": (
        together(reader(refresh), reader(get), ("writer", (by_key,)), l1=True),
        {"hits_l2", "refused"},
    ),
    "late tags, invalidations heard": (LATE, {"stored", "late_unproven"}),
    "late tags with an L1": (LATE_L1, {"stored", "late_unproven"}),
    "late tags, invalidations not heard by readers of one process": (
        beside(reader(get), reader(get), ("writer", (by_late_tag,)), tags=(), late=("late",)),
        {"late_unproven", "waits"},
    ),
    "late tags, invalidations not heard": (
        apart(reader(get), reader(get), ("writer", (by_late_tag,)), tags=(), late=("late",)),
        {"late_unproven"},
    ),
    "a leader is cancelled": (
        beside(reader(get), reader(get), WRITER, cancels=1),
        {"coalesced", "refused"},
    ),
    "a leader is cancelled in a process with an L1": (
        together(reader(get), reader(get), ("writer", (by_key,)), l1=True, cancels=1),
        {"coalesced", "refused"},
    ),
    "a leader dies": (apart(reader(get), reader(get), WRITER, deaths=1), {"hits_l2", "waits"}),
    "an answer is lost": (
        apart(reader(get), reader(get), WRITER, losses=1),
        {"hits_l2", "refused", "unavailable"},
    ),
    "an answer is lost in one process": (
        beside(reader(get), reader(get), ("writer", (by_tag,)), losses=1),
        {"coalesced", "unavailable"},
    ),
    "waiters give up at any time": (
        apart(reader(get), reader(get), WRITER, impatient=True),
        {"hits_l2", "waits"},
    ),
    "waiters of one process give up at any time": (
        beside(reader(get), reader(get), WRITER, impatient=True),
        {"coalesced", "waits"},
    ),
    "batches": (
        apart(reader(get_many), reader(get), ("writer", (both_keys, by_tag))),
        {"hits_l2", "refused"},
    ),
    "batches in one process": (
        beside(reader(get_many), reader(get_many), ("writer", (by_tag,))),
        {"hits_l2", "waits"},
    ),
}

_BY_TAG = ("writer", (by_tag,))
_BY_LATE_TAG = ("writer", (by_late_tag,))
_UPDATER = ("updater", (update,))

EXHAUSTIVE_SOAK: dict[str, Scenario] = {
    "readers apart, two gets each": apart(reader(get, get), reader(get, get), WRITER, evictions=1),
    "readers in one process, three gets": beside(reader(get, get), reader(get), WRITER, evictions=1),
    "an L1 and an eviction": together(reader(get), reader(get), WRITER, l1=True, evictions=1),
    "an L1 and a lost answer": together(reader(get), reader(get), _BY_TAG, l1=True, losses=1),
    "an L1 and a batch": together(reader(get_many), reader(get), _BY_TAG, l1=True),
    "an L1 and a held transaction": together(
        reader(get), reader(get), ("writer", (mutate(dies=False),)), l1=True
    ),
    "an L1 and two updates": together(reader(get), _UPDATER, _UPDATER, l1=True),
    "an L1, an update and a late tag": together(
        reader(get), _UPDATER, _BY_LATE_TAG, tags=(), late=("late",), l1=True
    ),
    "an L1 and a stale value renewed in the background": together(
        reader(get), reader(get), _BY_TAG, l1=True, **stale_value(refresh="background")
    ),
    "a batch and a late tag": together(
        reader(get_many), reader(get), _BY_LATE_TAG, tags=(), late=("late",), l1=True
    ),
    "known tags and late ones": together(
        reader(get), reader(get), ("writer", (by_late_tag, by_tag)), late=("late",), l1=True
    ),
    "a late tag, a cancelled call": together(
        reader(get), reader(get), _BY_LATE_TAG, tags=(), late=("late",), witness=True, cancels=1
    ),
    "cancelled calls and an eviction": beside(
        reader(get), reader(get), ("writer", (by_key,)), cancels=2, evictions=1
    ),
    "a batch, a lost answer": apart(reader(get_many), reader(get), _BY_TAG, losses=1),
    "an update and a failover": apart(reader(get), _UPDATER, ("writer", (by_key,)), evictions=1, failovers=1),
}
