"""What this process has invalidated: what Redis has not confirmed, and what it confirmed a moment ago.

An invalidation that Redis does not confirm is *owed*: kept here, last wins, until it is sent again and
confirmed. Until then the process *doubts* what Redis says about those keys and tags, for it may say what was
there before. What was confirmed is *recent* for a minute, counted to the last confirmation: a primary that
dies may take it along, and then it is owed again.

Both are bounded. What is too much becomes a pattern: first the namespace with the most keys, then everything.
Nothing is dropped.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from cacheaside.fork import renew_after_fork

OWED: Final = 10_000
"""Keys and tags that may be owed before they become patterns."""
RECENT: Final = 50_000
"""Keys and tags that may be recent before they become patterns."""
KEEP: Final = 60.0
"""Seconds for which an invalidation is recent."""
SETTLED: Final = 8192
"""Names whose settling is remembered, for reads that began before; then all reads count that did."""
EVERYTHING: Final = "*"


class Names:
    """Keys, tags and patterns of keys, each with the number it was last added with. Bounded by ``limit``."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.keys: dict[str, float] = {}
        self.tags: dict[str, float] = {}
        self.patterns: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.keys) + len(self.tags) + len(self.patterns)

    def add(self, number: float, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str]) -> None:
        for table, names in ((self.keys, keys), (self.tags, tags), (self.patterns, patterns)):
            for name in names:
                table.pop(name, None)
                table[name] = number
        while len(self) > self.limit:
            self._fold(number)

    def _fold(self, number: float) -> None:
        """Take a pattern for the keys of a namespace; where none has many, one for everything."""
        ((namespace, count),) = Counter(map(namespace_of, self.keys)).most_common(1) or [("", 0)]
        if count > self.limit // 8:
            self.keys = {key: n for key, n in self.keys.items() if namespace_of(key) != namespace}
            self.add(number, (), (), (f"{namespace}:*",))
        else:
            self.keys, self.tags, self.patterns = {}, {}, {EVERYTHING: number}

    def forget(self, before: float) -> None:
        """Drop what was last added with a lower number."""
        for table in (self.keys, self.tags, self.patterns):
            while table:
                oldest = next(iter(table))
                if table[oldest] >= before:
                    break
                del table[oldest]


class Batch(NamedTuple):
    """Some of what is owed, and up to which change."""

    keys: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    change: int = 0


class Journal:
    """The invalidations of one cache in one process.

    Args:
        tick: seconds of a clock that never goes back.
        recent: whether what was confirmed is kept for a minute.
    """

    def __init__(
        self, tick: Callable[[], float], *, recent: bool = True, owed: int = OWED, kept: int = RECENT
    ) -> None:
        self._tick = tick
        self._keeps = recent
        self._lock = threading.Lock()
        renew_after_fork(self)
        self._owed = Names(owed)
        self._recent = Names(kept)
        self._settled: dict[str, int] = {}
        self._floor = 0
        self.change = 0
        """Counts what was owed and what was settled; a read notes it before it asks the store."""
        self.owing = False
        """Whether anything is owed."""
        self.wake: Callable[[], object] = lambda: None
        """Called when something is owed, and when somebody reads while it is, to have it sent again."""
        self.replayed = 0
        """Keys, tags and patterns that were owed and have been confirmed."""

    def after_fork(self) -> None:
        """A child owes what its parent owed: to say it twice does no harm. Its first read has it sent."""
        self._lock = threading.Lock()

    # -- what happens

    def owe(self, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str] = ()) -> None:
        """Redis has not confirmed that these were dropped."""
        with self._lock:
            self._owe(keys, tags, patterns)
        self.wake()

    def note(self, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str] = ()) -> None:
        """These are about to be dropped: a server that dies now may have confirmed it and forget it."""
        if self._keeps:
            with self._lock:
                self._recent.add(self._tick(), keys, tags, patterns)

    def confirm(self, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str] = ()) -> None:
        """Redis has confirmed that these were dropped."""
        if self._keeps:
            with self._lock:
                self._confirm(keys, tags, patterns)

    def _confirm(self, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str]) -> None:
        # Only now: nothing confirmed gets old while nothing is confirmed.
        now = self._tick()
        self._recent.forget(now - KEEP)
        self._recent.add(now, keys, tags, patterns)

    def reopen(self) -> int:
        """The server may have lost what it confirmed: all that is recent is owed again. How much that is."""
        with self._lock:
            recent, self._recent = self._recent, Names(self._recent.limit)
            if not len(recent):
                return 0
            self._owe(recent.keys, recent.tags, recent.patterns)
        self.wake()
        return len(recent)

    def _owe(self, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str]) -> None:
        self.change += 1
        self._owed.add(self.change, keys, tags, patterns)
        self.owing = len(self._owed) > 0

    # -- paying back

    def batch(self, most: int) -> Batch:
        """Some of what is owed, the oldest first; patterns last, for they take longest."""
        with self._lock:
            owed = self._owed
            keys = tuple(_first(owed.keys, most))
            tags = tuple(_first(owed.tags, most - len(keys)))
            patterns = () if keys or tags else tuple(owed.patterns)[:1]
            return Batch(keys, tags, patterns, self.change)

    def settle(self, batch: Batch) -> None:
        """Redis has confirmed ``batch``; what was owed anew meanwhile still is."""
        with self._lock:
            owed, change = self._owed, batch.change
            self.change += 1
            keys = [key for key in batch.keys if owed.keys.get(key, math.inf) <= change]
            tags = [tag for tag in batch.tags if owed.tags.get(tag, math.inf) <= change]
            patterns = [p for p in batch.patterns if owed.patterns.get(p, math.inf) <= change]
            for table, names in ((owed.keys, keys), (owed.tags, tags), (owed.patterns, patterns)):
                for name in names:
                    del table[name]
            for mark in (*keys, *map(_tag, tags)):
                self._settled.pop(mark, None)
                self._settled[mark] = self.change
            if patterns:  # they may have matched anything
                self._floor = self.change
            while len(self._settled) > SETTLED:
                self._floor = max(self._floor, self._settled.pop(next(iter(self._settled))))
            if self._keeps:
                self._confirm(keys, tags, patterns)
            self.replayed += len(keys) + len(tags) + len(patterns)
            self.owing = len(owed) > 0

    # -- what readers ask

    def doubts(self, key: str, tags: Iterable[str], since: int) -> bool:
        """Whether what the store said about ``key`` and ``tags``, when asked at ``since``, may be from before
        an invalidation of this process: one is owed, or was when it was asked."""
        if since == self.change and not self.owing:
            return False
        if self.owing:  # a forked child has nobody yet who pays
            self.wake()
        with self._lock:
            owed, settled = self._owed, self._settled
            if since < self._floor or key in owed.keys or settled.get(key, 0) > since:
                return True
            if any(tag in owed.tags or settled.get(_tag(tag), 0) > since for tag in tags):
                return True
            return any(matches(pattern, key) for pattern in owed.patterns)

    def __len__(self) -> int:
        """Keys, tags and patterns that are owed."""
        return len(self._owed)

    @property
    def recent(self) -> int:
        """Keys, tags and patterns that were dropped in the last minute."""
        return len(self._recent)


def matches(pattern: str, key: str) -> bool:
    """Whether a glob pattern of Redis may match; brackets mean other things to it than to fnmatch."""
    return "[" in pattern or "\\" in pattern or fnmatchcase(key, pattern)


def namespace_of(key: str) -> str:
    return key.partition(":")[0]


def _tag(name: str) -> str:
    """Tags and keys share one table; no key begins like this."""
    return "\0" + name


def _first(names: Collection[str], most: int) -> Iterator[str]:
    return (name for name, _ in zip(names, range(most), strict=False))
