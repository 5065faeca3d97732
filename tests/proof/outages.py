"""Scenes in which Redis misses an invalidation, or forgets it, and the journal of who sent it makes it good.

What is not confirmed shows at once in the process that sent it, and everywhere after it was sent again.
``JOURNAL`` are those of ``make test``, with what must happen in them; ``JOURNAL_SOAK`` are longer.
"""

from __future__ import annotations

from typing import Any

from tests.proof.episodes import (
    OTHER,
    get,
    get_many,
    mutate,
    reader,
    recover,
    refresh,
    set_value,
    update,
    write_once,
)
from tests.proof.steps import KEY, Episode, Scenario

Named = tuple[str, tuple[Episode, ...]]


def owing(*actors: Named, others: tuple[Named, ...] = (), **options: Any) -> Scenario:
    """Actors in one process, which recovers by itself, and others in processes of their own."""
    crew = (*actors, ("recovery", (recover,)))
    return Scenario((crew, *((one,) for one in others)), **{"before": (get,), **options})


_by_key, _by_tag = write_once(keys=(KEY,)), write_once(tags=("tag",))
_BY_KEY, _BY_TAG = ("writer", (_by_key,)), ("writer", (_by_tag,))
_BY_LATE_TAG = ("writer", (write_once(tags=("late",)),))
_UPDATER = ("updater", (update,))
_LATE = {"tags": (), "late": ("late",)}
_HEIR = {"failovers": 1, "failover": "replay"}

LOST_KEY = owing(reader(get), _BY_KEY, others=(reader(get),), losses=1)
LOST_TAG = owing(reader(get), _BY_TAG, others=(reader(get),), losses=1)
LOST_UNDER_WAY = owing(reader(get), reader(get), _BY_TAG, losses=1, before=())
LOST_TWICE = owing(reader(get), ("writer", (_by_tag, _by_tag)), others=(reader(get),), losses=2)
OVERFLOW = owing(reader(get), ("writer", (write_once(keys=(KEY, OTHER)),)), losses=1, owed=1)
FORGOTTEN_KEY = owing(reader(get), _BY_KEY, others=(reader(get),), **_HEIR)
FORGOTTEN_TAG = owing(reader(get), _BY_TAG, others=(reader(get),), **_HEIR)
FORGOTTEN_PUT = owing(reader(get), _UPDATER, others=(reader(get),), forgets=2, **_HEIR)

JOURNAL: dict[str, tuple[Scenario, set[str]]] = {
    "an invalidation by key is lost": (LOST_KEY, {"alone", "hits_l2", "unavailable", "replayed"}),
    "an invalidation by tag is lost": (LOST_TAG, {"alone", "hits_l2", "unavailable", "replayed"}),
    "two are lost, or one and its replay": (
        owing(reader(get), ("writer", (_by_tag, _by_tag)), losses=2),
        {"alone", "replayed"},
    ),
    "an invalidation by late tag is lost": (
        owing(reader(get, get), _BY_LATE_TAG, channel=(0,), losses=1, **_LATE),
        {"alone", "stored", "late_unproven", "l1_refused", "replayed"},
    ),
    "an invalidation is lost, in processes with an L1": (
        owing(reader(get), _BY_TAG, others=(reader(get),), channel=(0, 1), losses=1),
        {"alone", "l1_kept", "l1_refused", "hear", "replayed"},
    ),
    "more keys are lost than the journal holds": (OVERFLOW, {"alone", "unavailable", "replayed"}),
    "more tags are lost than the journal holds": (
        owing(reader(get), ("writer", (write_once(tags=("tag", "other")),)), losses=1, owed=1),
        {"alone", "unavailable", "replayed"},
    ),
    "a failover forgets an invalidation by key": (FORGOTTEN_KEY, {"alone", "hits_l2", "replayed"}),
    "a failover forgets an invalidation by tag": (FORGOTTEN_TAG, {"alone", "hits_l2", "replayed"}),
    "a failover forgets a put": (FORGOTTEN_PUT, {"alone", "hits_l2", "replayed"}),
    "a failover forgets what was set": (
        owing(reader(get), ("setter", (set_value,)), others=(reader(get),), forgets=2, **_HEIR),
        {"alone", "hits_l2", "replayed"},
    ),
    "a failover forgets an invalidation, another process has an L1": (
        owing(_BY_KEY, others=(reader(get),), channel=(1,), **_HEIR),
        {"l1_kept", "l1_refused", "gap", "replayed"},
    ),
}

JOURNAL_SOAK: dict[str, Scenario] = {
    "two are lost, another process reads": LOST_TWICE,
    "lost while a value is loaded": LOST_UNDER_WAY,
    "lost, and an eviction": owing(
        reader(get), _BY_TAG, others=(reader(get),), losses=1, evictions=1, before=()
    ),
    "two lost, two readers": owing(
        reader(get), ("writer", (_by_key, _by_tag)), others=(reader(get),), losses=2
    ),
    "lost, in processes with an L1, by key": owing(
        reader(get), _BY_KEY, others=(reader(get),), channel=(0, 1), losses=1, cuts=1
    ),
    "lost, a refresh": owing(reader(refresh), _BY_KEY, others=(reader(get),), losses=1),
    "a held transaction, lost": owing(
        reader(get), ("writer", (mutate(dies=False),)), others=(reader(get),), losses=1
    ),
    "a put, lost": owing(reader(get), _UPDATER, others=(reader(get),), losses=2),
    "two failovers": owing(reader(get), _BY_TAG, others=(reader(get),), failovers=2, failover="replay"),
    "a failover forgets two": owing(
        reader(get), ("writer", (_by_key, _by_tag)), others=(reader(get),), forgets=2, **_HEIR
    ),
    "a failover and a lost answer": owing(reader(get), _BY_TAG, others=(reader(get),), losses=1, **_HEIR),
    "a failover, another process has an L1, and this one reads": owing(
        reader(get), _BY_KEY, others=(reader(get),), channel=(1,), **_HEIR
    ),
    "a failover, and an L1": owing(reader(get), _BY_TAG, channel=(0,), **_HEIR),
    "a failover, a batch": owing(reader(get_many), _BY_KEY, others=(reader(get),), **_HEIR),
    "two who recover": Scenario(
        (
            (reader(get), _BY_KEY, ("recovery", (recover,))),
            (_BY_TAG, ("recovery", (recover,))),
        ),
        before=(get,),
        **_HEIR,  # type: ignore[arg-type]
    ),
}
