"""L1: decoded or encoded results in this process, bounded, and believed only while that is safe.

A look-up takes no lock: it reads a plain dictionary, and leaves the key in a bounded buffer, from
which the eviction policy learns when the next entry is stored (the read buffer of Caffeine).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final
from weakref import WeakValueDictionary

from cachetools import Cache, LRUCache

from cacheaside.fork import renew_after_fork
from cacheaside.stores.glob import matcher

OVERHEAD: Final = 256
"""Bytes that an entry costs besides its payload: measured once, near enough for a bound."""
MARKS: Final = 8192
STEPS: Final = 8
"""By what part of its stay an entry may leave too early, while nothing is heard."""


class Tag:
    """A tag as the entries of this process know it; dropping the tag kills the object, not the entries."""

    __slots__ = ("__weakref__", "dead")

    def __init__(self) -> None:
        self.dead = False


class Entry:
    """A result in L1, fresh until ``until`` (seconds since the epoch) while none of its tags is dead."""

    __slots__ = ("tags", "until", "value")

    def __init__(self, value: Any, until: float, tags: tuple[Tag, ...]) -> None:
        self.value = value
        self.until = until
        self.tags = tags


class Alone:
    """Times at which reads began, while nothing is heard that would end what they brought.

    ``stay`` is for how many seconds that is believed, counted from when its read began.
    """

    def __init__(self, tick: Callable[[], float], stay: float) -> None:
        self.tick = tick
        self.stay = stay
        self._times: deque[tuple[int, float]] = deque(maxlen=4 * STEPS)

    def due(self) -> bool:
        """Whether it is time for another number."""
        return not self._times or self.tick() >= self._times[-1][1] + self.stay / STEPS

    def note(self, count: int) -> None:
        """From now on reads begin with this number or a later one."""
        self._times.append((count, self.tick()))

    def began(self, since: int) -> float | None:
        """When a read with this number began, or somewhat before; None if that is long ago."""
        return next((at for count, at in reversed(self._times) if count <= since), None)


class NearCache:
    """The L1 of one ``Cache``.

    Args:
        entries: the most entries it holds.
        max_bytes: the most bytes of payload and overhead it holds, together.
        max_value: payloads above this many bytes stay out.
        evict: makes the eviction policy, any ``cachetools.Cache``, from its size and size function.
        clock: seconds since the epoch, for people who ask when something was invalidated.
    """

    def __init__(
        self,
        entries: int,
        max_bytes: int,
        max_value: int,
        evict: Callable[..., Cache[str, int]] = LRUCache,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.recent: deque[str] = deque(maxlen=1024)
        self.limit = math.inf
        """No entry is served at or after this time: the coherence horizon, or 0 while bypassed."""
        self.evictions = 0
        self._max_entries = entries
        self._max_value = max_value
        self._order: Cache[str, int] = evict(max_bytes, getsizeof=_size)
        self._popitem = self._order.popitem
        self._order.popitem = self._evict_one  # type: ignore[method-assign]
        self._lock = threading.Lock()
        self._tags: WeakValueDictionary[str, Tag] = WeakValueDictionary()
        self._count = 0
        self._floor = 0
        self._marks: dict[str, int] = {}
        self._heard: dict[str, float] = {}
        self._clock = clock
        self._bypassed = 0
        self._alone: Alone | None = None
        renew_after_fork(self)
        self._horizon = math.inf

    def after_fork(self) -> None:
        """A child starts with an empty L1: it will not hear what its parent's thread would have heard."""
        self._lock = threading.Lock()
        self._order.clear()
        self.entries.clear()
        self._count += 1
        self._floor = self._count

    def now(self) -> int:
        """The invalidation counter; an answer may settle here if nothing it depends on is marked later."""
        alone = self._alone
        if alone is not None and alone.due():
            with self._lock:
                self._count += 1
                alone.note(self._count)
        return self._count

    def get(self, key: str, now: float) -> Entry | None:
        """The live entry of ``key``; bypassing calls are not the concern of this one."""
        entry = self.entries.get(key)
        if entry is None or now >= entry.until or now >= self._horizon:
            return None
        if any(tag.dead for tag in entry.tags):
            return None
        self.recent.append(key)
        return entry

    def put(
        self, key: str, value: object, until: float, tags: tuple[str, ...], since: int, size: int
    ) -> None:
        """Keep a result whose read began at ``since``, unless it was invalidated meanwhile."""
        if size > self._max_value:
            return
        with self._lock:
            if since < self._floor or not self._unmarked((key, *map(_tag_mark, tags)), since):
                return
            if self._alone is not None:
                began = self._alone.began(since)
                if began is None:
                    return
                until = min(until, began + self._alone.stay)
            self._learn()
            try:
                self._order[key] = size + OVERHEAD
            except ValueError:  # larger than the whole cache
                return
            self.entries[key] = Entry(value, until, tuple(map(self._tag, tags)))
            while len(self._order) > self._max_entries:
                self._order.popitem()
            if len(self.entries) > len(self._order):  # a policy that drops entries by itself
                for stray in [k for k in self.entries if k not in self._order]:
                    del self.entries[stray]

    def mark(self, keys: tuple[str, ...], tags: tuple[str, ...]) -> None:
        """Drop keys and everything under tags; nothing read before now may settle for them."""
        with self._lock:
            self._count += 1
            now = self._clock()
            for key in keys:
                self._heard[key] = now
                self._drop(key)
                self._marks.pop(key, None)
                self._marks[key] = self._count
            for name in tags:
                tag = self._tags.pop(name, None)
                if tag is not None:
                    tag.dead = True
                mark = _tag_mark(name)
                self._heard[mark] = now
                self._marks.pop(mark, None)
                self._marks[mark] = self._count
            while len(self._marks) > MARKS:
                oldest = next(iter(self._marks))
                # Forgetting a mark must not forget what it forbade.
                self._floor = max(self._floor, self._marks.pop(oldest))
                self._heard.pop(oldest, None)

    def clear(self, pattern: str = "*") -> None:
        """Drop every key that matches; nothing at all that was read before now may settle."""
        matches = matcher(pattern)
        with self._lock:
            self._count += 1
            self._floor = self._count
            for key in [k for k in self.entries if matches(k)]:
                self._drop(key)

    def unmarked(self, tags: tuple[str, ...], since: int) -> bool:
        """Whether this process can show that no tag was invalidated after ``since``."""
        with self._lock:
            return since >= self._floor and self._unmarked(map(_tag_mark, tags), since)

    def last_heard(self, key: str, tags: Iterable[str]) -> tuple[float, str] | None:
        """When this process last heard an invalidation of a key or a tag, and of what; None if never."""
        names = {key: key, **{_tag_mark(tag): f"tag {tag}" for tag in tags}}
        with self._lock:
            heard = [(self._heard[mark], name) for mark, name in names.items() if mark in self._heard]
        return max(heard, default=None)

    def bypass(self, on: bool) -> None:
        """Send every call past the compiled hit path while anybody bypasses or refreshes."""
        with self._lock:
            self._bypassed += 1 if on else -1
            self.limit = 0.0 if self._bypassed else self._horizon

    @property
    def horizon(self) -> float:
        return self._horizon

    @horizon.setter
    def horizon(self, until: float) -> None:
        with self._lock:
            self._horizon = until
            if not self._bypassed:
                self.limit = until

    def live_alone(self, tick: Callable[[], float], stay: float) -> None:
        """Nothing is heard from now on: believe what is read for ``stay`` seconds. What there is goes."""
        if self._alone is None:
            self._alone = Alone(tick, stay)
            self.clear()
            self.horizon = math.inf

    def listen(self) -> None:
        """What is announced is heard from now on: start anew, and believe nothing before a heartbeat."""
        self.horizon = 0.0
        self._alone = None
        self.clear()

    def coherent(self, now: float) -> bool:
        """Whether what others drop is heard here."""
        return self._alone is None and self._horizon > now

    @property
    def size(self) -> int:
        """Bytes held, as bounded by ``max_bytes``."""
        return int(self._order.currsize)

    def _unmarked(self, names: Any, since: int) -> bool:
        marks = self._marks
        return all(marks.get(name, 0) <= since for name in names)

    def _tag(self, name: str) -> Tag:
        tag = self._tags.get(name)
        if tag is None:
            tag = self._tags[name] = Tag()
        return tag

    def _learn(self) -> None:
        recent, order = self.recent, self._order
        while recent:
            try:
                order.get(recent.popleft())
            except IndexError:
                return

    def _drop(self, key: str) -> None:
        self.entries.pop(key, None)
        self._order.pop(key, None)

    def _evict_one(self) -> tuple[str, int]:
        key, size = self._popitem()
        self.entries.pop(key, None)
        self.evictions += 1
        return key, size


def _size(size: int) -> int:
    return size


def _tag_mark(name: str) -> str:
    """Tags and keys share one table of marks; no key begins like this."""
    return "\0" + name
