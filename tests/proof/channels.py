"""Scenes with the coherence channel: each process with an L1 hears on a line of its own what others announce.

``CHANNEL`` are those of ``make test``, with what must happen in them; ``CHANNEL_SOAK`` are longer.
"""

from __future__ import annotations

from tests.proof.episodes import (
    apart,
    by_key,
    by_late_tag,
    by_tag,
    get,
    get_many,
    mutate,
    reader,
    refresh,
    set_value,
    update,
)
from tests.proof.steps import Scenario

_KEY, _TAG, _LATE_TAG = ("writer", (by_key,)), ("writer", (by_tag,)), ("writer", (by_late_tag,))
_UPDATER = ("updater", (update,))
_LINE = {"l1_kept", "l1_refused", "hear", "cut", "notice", "again", "gap", "subscribe", "admit"}
_CLOCK = {"l1", "l1_behind", "tick", "beat", "carry"}

# Where a value is there before, the first thing that a get does is to take it into L1.
BY_KEY = apart(reader(get), reader(get), _KEY, channel=(0, 1), cuts=1)
BY_TAG = apart(reader(get), reader(get), _TAG, channel=(0, 1), cuts=1, before=(get,))
BY_LATE_TAG = apart(reader(get), reader(get), _LATE_TAG, channel=(0, 1), tags=(), late=("late",))
PUT = apart(reader(get), reader(get), _UPDATER, channel=(0, 1), cuts=1, before=(get,))
WINDOW = apart(reader(get), _KEY, channel=(0,), cuts=1, beats=2, ticks=1, before=(get,))
# On two servers: what is announced of the key goes over one line, of the tags over the other.
_TWO = {"cluster": True, "lines": 2}
CLUSTER_WINDOW = apart(reader(get), _TAG, channel=(0,), beats=1, ticks=1, before=(get,), **_TWO)
CLUSTER_LATE = apart(reader(get), _LATE_TAG, channel=(0,), cuts=1, tags=(), late=("late",), **_TWO)
MANY = apart(
    reader(get, get),
    reader(get, get),
    ("updater", (update, update)),
    ("writer", (by_key, by_tag)),
    channel=(0, 1, 2),
    cuts=2,
    beats=2,
    ticks=2,
    evictions=1,
)

CHANNEL: dict[str, tuple[Scenario, set[str]]] = {
    "an invalidation by key": (BY_KEY, {*_LINE, "hits_l2", "refused"}),
    "an invalidation by tag": (BY_TAG, {*_LINE, "hits_l2", "misses"}),
    "an invalidation by late tag": (BY_LATE_TAG, {"l1_kept", "l1_refused", "ask", "stored", "late_unproven"}),
    "an invalidation by late tag while the line breaks": (
        apart(reader(get, get), _LATE_TAG, channel=(0,), cuts=1, tags=(), late=("late",)),
        {*_LINE, "ask", "stored", "late_unproven"},
    ),
    "a late tag of results that are kept out of L1": (
        apart(
            reader(get), _LATE_TAG, channel=(0,), cuts=1, evictions=1, witness=True, tags=(), late=("late",)
        ),
        {"ask", "gap", "stored", "late_unproven"},
    ),
    "a put elsewhere": (PUT, {*_LINE, "hits_l2"}),
    "a value is set elsewhere": (
        apart(reader(get), reader(get), ("setter", (set_value,)), channel=(0, 1), cuts=1, before=(get,)),
        {*_LINE, "hits_l2"},
    ),
    "a put by a process with an L1": (
        apart(reader(get), _UPDATER, channel=(0, 1), cuts=1),
        {*_LINE, "hits_l2", "refused"},
    ),
    "the window": (WINDOW, {*_LINE, *_CLOCK, "hits_l2"}),
    "a held transaction": (
        apart(reader(get), ("writer", (mutate(dies=False),)), channel=(0,), cuts=1, evictions=1),
        {*_LINE, "refused"},
    ),
    "in a cluster, by key and tag, while a line breaks": (
        apart(reader(get), ("writer", (by_key, by_tag)), channel=(0,), cuts=1, before=(get,), **_TWO),
        {"l1_kept", "l1_refused", "hear", "cut", "notice", "subscribe", "admit", "hits_l2"},
    ),
    "in a cluster, the window": (CLUSTER_WINDOW, {"l1", "l1_behind", "tick", "beat", "carry"}),
    "in a cluster, a late tag": (CLUSTER_LATE, {"ask", "stored", "late_unproven", "l1_refused"}),
    "two gets, two writes and an eviction": (
        apart(reader(get, get), ("writer", (by_key, by_tag)), channel=(0,), evictions=1),
        {"l1_kept", "l1_refused", "hear", "hits_l2", "refused"},
    ),
}

CHANNEL_SOAK: dict[str, Scenario] = {
    "by tag, from nothing": apart(reader(get), reader(get), _TAG, channel=(0, 1), cuts=1),
    "by late tag, the line breaks": apart(
        reader(get), reader(get), _LATE_TAG, channel=(0, 1), cuts=1, tags=(), late=("late",)
    ),
    "a put elsewhere, from nothing": apart(reader(get), reader(get), _UPDATER, channel=(0, 1), cuts=1),
    "by key, an eviction": apart(reader(get), reader(get), _KEY, channel=(0, 1), cuts=1, evictions=1),
    "by key, two gets": apart(reader(get, get), reader(get), _KEY, channel=(0, 1), cuts=1),
    "by tag, the line breaks twice": apart(reader(get, get), _TAG, channel=(0,), cuts=2),
    "a longer window": apart(reader(get), _KEY, channel=(0,), cuts=1, beats=2, ticks=3, window=2),
    "the window, by tag": apart(reader(get), _TAG, channel=(0,), cuts=1, beats=2, ticks=2),
    "the window, two processes": apart(
        reader(get), reader(get), _KEY, channel=(0, 1), beats=1, ticks=1, before=(get,)
    ),
    "in a cluster, the window and a line that breaks": apart(
        reader(get), _TAG, channel=(0,), cuts=1, beats=1, ticks=1, before=(get,), **_TWO
    ),
    "in a cluster, two processes": apart(
        reader(get), reader(get), _TAG, channel=(0, 1), cuts=1, before=(get,), **_TWO
    ),
    "in a cluster, a put": apart(reader(get), _UPDATER, channel=(0, 1), cuts=1, **_TWO),
    "the window and a put": apart(reader(get), _UPDATER, channel=(0, 1), cuts=1, beats=1, ticks=1),
    "three processes with an L1": apart(reader(get), reader(get), _UPDATER, channel=(0, 1, 2), cuts=1),
    "a put, an invalidation": apart(reader(get), _UPDATER, _KEY, channel=(0, 1), cuts=1),
    "who writes also reads": Scenario(((reader(get),), (reader(get), _TAG)), channel=(0, 1), cuts=1),
    "refresh": apart(reader(refresh), reader(get), _TAG, channel=(0, 1), cuts=1),
    "a batch": apart(reader(get_many), reader(get), _TAG, channel=(0, 1), cuts=1),
    "late tags and known ones": apart(
        reader(get), reader(get), ("writer", (by_late_tag, by_tag)), channel=(0, 1), late=("late",)
    ),
    "a late tag, a lost answer": apart(
        reader(get), reader(get), _LATE_TAG, channel=(0, 1), tags=(), late=("late",), losses=1
    ),
}
