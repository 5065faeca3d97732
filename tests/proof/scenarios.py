"""Who meets whom in the interleaving proof: the scenes of ``make test``, and the longer ones of the soak."""

from __future__ import annotations

from dataclasses import replace

from tests.proof.episodes import (
    WRITER,
    apart,
    beside,
    both_keys,
    by_key,
    by_late_tag,
    by_tag,
    get,
    get_many,
    mutate,
    reader,
    refresh,
    set_value,
    stale_value,
    together,
    update,
)
from tests.proof.steps import Scenario

_BY_KEY, _BY_TAG = ("writer", (by_key,)), ("writer", (by_tag,))
_BY_LATE_TAG = ("writer", (by_late_tag,))
_UPDATER = ("updater", (update,))
_for_errors = stale_value(stale_while_revalidate=0, stale_if_error=1000)

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
    "readers apart": (
        apart(reader(get), reader(get), WRITER, evictions=1),
        {"hits_l2", "refused", "waits"},
    ),
    "readers in one process": (BESIDE, {"hits_l2", "refused", "coalesced"}),
    "readers and the writer in one process with an L1": (L1, {"hits_l2", "refused", "coalesced"}),
    "in a cluster": (
        apart(reader(get), reader(get), WRITER, cluster=True),
        {"hits_l2", "refused"},
    ),
    "a failover that forgets the last write": (
        apart(reader(get), reader(get), WRITER, failovers=1),
        {"hits_l2", "refused"},
    ),
    "in a cluster, a failover of the values' server or of the tags'": (
        replace(SPREAD, before=(get,)),
        {"hits_l2", "refused"},
    ),
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
    "a value is set and read": (
        apart(reader(get, get), ("setter", (set_value,)), evictions=1),
        {"hits_l2", "refused"},
    ),
    "two updates and a reader": (
        apart(reader(get), ("updater", (update,)), ("updater", (update,)), evictions=1),
        {"hits_l2", "refused"},
    ),
    "a stale value renewed by its caller": (
        apart(reader(get), reader(get), _BY_TAG, **stale_value(), evictions=1),
        {"stale", "refused"},
    ),
    "a stale value renewed in the background": (
        apart(reader(get), reader(get), _BY_KEY, **stale_value(refresh="background"), evictions=1),
        {"stale", "refused"},
    ),
    "a stale value kept for errors": (
        apart(reader(get), reader(get), _BY_KEY, **_for_errors, evictions=1),
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

EXHAUSTIVE_SOAK: dict[str, Scenario] = {
    "readers apart, two gets each": apart(reader(get, get), reader(get, get), WRITER, evictions=1),
    "readers in one process, three gets": beside(reader(get, get), reader(get), WRITER, evictions=1),
    "a failover and an eviction": FAILOVER,
    "in a cluster, an eviction": apart(reader(get), reader(get), WRITER, evictions=1, cluster=True),
    "in a cluster, from nothing, a failover of one server": SPREAD,
    "a stale value renewed by its caller, two writes": apart(
        reader(get), reader(get), WRITER, **stale_value(), evictions=1
    ),
    "a stale value renewed in the background, two writes": apart(
        reader(get), reader(get), WRITER, **stale_value(refresh="background"), evictions=1
    ),
    "a stale value kept for errors, two writes": apart(
        reader(get), reader(get), WRITER, **_for_errors, evictions=1
    ),
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
