"""The whole protocol in one process: what Redis does for many, a dictionary does for one.

Every command is one atomic step, as a command or a script is in Redis, so the flows behave here as
they do there. The tests explore their interleavings on this store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from cachetools import LRUCache

from cacheaside.engine.commands import (
    Announce,
    Begin,
    Begun,
    Claim,
    Commit,
    Confirm,
    Fetch,
    Forget,
    Invalidate,
    Lock,
    Members,
    Release,
    Renew,
    Run,
    Scan,
    Sizes,
    Sweep,
)
from cacheaside.entry import HEAD, SLOT_HELD, TAG_HELD, holds, pack_holds
from cacheaside.fork import renew_after_fork
from cacheaside.stores.glob import matcher

MOST_LISTED: Final = 100_000
"""Entries in the lists of all tags together: there may be as many tags as entries."""

Row = tuple[Any, float]


def _size(row: Row) -> int:
    """What a row costs, nearly: programs keep other things than bytes."""
    value = row[0]
    return 256 + (len(value) if type(value) is bytes else 128 * len(value))


class EmbeddedStore:
    """A bounded dictionary of bytes with expiries.

    Args:
        max_bytes: what it holds at most; beyond that the least recently used goes, as in Redis under
            ``allkeys-lru``. The protocol stands the loss of any key.
        clock: seconds since the epoch, which the lists of tags are kept in.
        tick: seconds of a clock that never goes back: what ends must end even if somebody sets the time.
            None is ``clock``.
    """

    def __init__(
        self,
        max_bytes: int,
        clock: Callable[[], float],
        index_limit: int = 10_000,
        *,
        tick: Callable[[], float] | None = None,
    ) -> None:
        self._rows: LRUCache[str, Row] = LRUCache(max_bytes, getsizeof=_size)
        self._index: dict[str, dict[str, float]] = {}
        self._listed = 0
        self._clock = clock
        self._tick = tick or clock
        self._index_limit = index_limit
        self._lock = threading.Lock()
        renew_after_fork(self)
        self._answers: dict[type, Callable[[Any], Any]] = {
            Fetch: self._fetch,
            Begin: self._begin,
            Commit: self._commit,
            Claim: self._claim,
            Release: self._release,
            Sweep: self._sweep,
            Lock: self._take_lock,
            Renew: self._renew,
            Invalidate: self._invalidate,
            Announce: lambda _: None,
            Confirm: lambda _: True,
            Run: self._run,
            Scan: self._scan,
            Sizes: self._sizes,
            Members: self._members,
            Forget: self._forget,
        }

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def perform(self, command: Any) -> Any:
        with self._lock:
            return self._answers[type(command)](command)

    async def aperform(self, command: Any) -> Any:
        return self.perform(command)

    def close(self) -> None:
        with self._lock:
            self._rows.clear()
            self._index.clear()
            self._listed = 0

    async def aclose(self) -> None:
        self.close()

    # -- rows

    def _get(self, key: str) -> Any:
        row = self._rows.get(key)
        if row is None:
            return None
        if row[1] <= self._tick():
            del self._rows[key]
            return None
        return row[0]

    def _set(self, key: str, value: Any, ttl: float) -> None:
        try:
            self._rows[key] = (value, self._tick() + ttl)
        except ValueError:  # larger than the whole store
            self._rows.pop(key, None)

    def _opens_with(self, key: str, expected: bytes) -> bool:
        there = self._get(key)
        return there is not None and there.startswith(expected)

    # -- what programs may do, under the lock

    def now(self) -> float:
        return self._tick()

    def clock(self) -> float:
        return self._clock()

    def get(self, key: str) -> Any:
        return self._get(key)

    def set(self, key: str, value: Any, ttl: float) -> None:
        self._set(key, value, ttl)

    def delete(self, key: str) -> bool:
        return self._rows.pop(key, None) is not None

    def left(self, key: str) -> float | None:
        return None if self._get(key) is None else self._rows[key][1] - self._tick()

    # -- commands

    def _fetch(self, command: Fetch) -> list[bytes | None]:
        return [self._get(key) for key in command.keys]

    def _begin(self, command: Begin) -> Begun:
        tokens = self._tokens(command.tokens, command.token_ttl)
        tokens += tuple(self._replace_token(*row, command.token_ttl) for row in command.dead)
        slots: list[bytes | None] = []
        for place in command.slots:
            there = self._get(place.slot)
            if place.expected is None:
                ours = there is None
            else:
                ours = there is not None and there[:HEAD] == place.expected
            if ours:
                self._set(place.slot, place.marker, command.lease)
            slots.append(None if ours else there or b"")
        return Begun(tuple(slots), tokens)

    def _tokens(self, wanted: tuple[tuple[str, bytes], ...], ttl: float) -> tuple[bytes, ...]:
        tokens: list[bytes] = []
        for key, fresh in wanted:
            token = self._get(key)
            if token is None:
                self._set(key, fresh, ttl)
            tokens.append(token or fresh)
        return tuple(tokens)

    def _replace_token(self, key: str, fresh: bytes, dead: bytes, ttl: float) -> bytes:
        there: bytes | None = self._get(key)
        if there is not None and there != dead:
            return there
        self._set(key, fresh, ttl)
        return fresh

    def _commit(self, command: Commit) -> tuple[bool, ...]:
        done: list[bool] = []
        for fill in command.fills:
            ours = self._opens_with(fill.slot, fill.expected)
            if ours:
                self._set(fill.slot, fill.value, fill.ttl)
            done.append(ours)
        for key, ttl in command.extend:
            token = self._get(key)
            if token is not None and self._rows[key][1] < self._tick() + ttl:
                self._set(key, token, ttl)
        for index, key, end in command.index:
            self._list(index, key, end)
        return tuple(done)

    def _list(self, index: str, key: str, end: float) -> None:
        listed = self._index.setdefault(index, {})
        if listed.pop(key, None) is None:
            self._listed += 1
        listed[key] = end
        while len(listed) > self._index_limit:
            del listed[next(iter(listed))]
            self._listed -= 1
        if self._listed > MOST_LISTED:
            self._tidy()

    def _tidy(self) -> None:
        """Shorten the lists by what has expired; where that is not enough, the oldest lists go."""
        now = self._clock()
        for index, listed in list(self._index.items()):
            left = {key: end for key, end in listed.items() if end > now}
            if left:
                self._index[index] = left
            else:
                del self._index[index]
        self._listed = sum(map(len, self._index.values()))
        while self._listed > MOST_LISTED // 2:
            self._listed -= len(self._index.pop(next(iter(self._index))))

    def _claim(self, command: Claim) -> Begun:
        tokens = self._tokens(command.tokens, command.token_ttl)
        slots: list[bytes | None] = []
        for slot, marker in command.slots:
            there: bytes = self._get(slot) or b""
            if there.startswith(SLOT_HELD):
                slots.append(there)
            else:
                slots.append(None)
                self._set(slot, marker, command.ttl)
        return Begun(tuple(slots), tokens)

    def _release(self, command: Release) -> bool:
        ours = self._opens_with(command.key, command.expected)
        if ours:
            self._rows.pop(command.key, None)
        return ours

    def _sweep(self, command: Sweep) -> int:
        return sum(self._release(Release(key, expected)) for key, expected in command.keys)

    def _take_lock(self, command: Lock) -> bytes | None:
        there: bytes | None = self._get(command.key)
        if there is None:
            self._set(command.key, command.nonce, command.ttl)
        return there

    def _renew(self, command: Renew) -> None:
        for key, expected in command.keys:
            there = self._get(key)
            if there is not None and there.startswith(expected):
                self._set(key, there, command.ttl)

    def _invalidate(self, command: Invalidate) -> None:
        for slot, lock, staging in command.slots:
            if not self._held(slot, SLOT_HELD, command):
                self._rows.pop(slot, None)
            self._rows.pop(lock, None)
            self._rows.pop(staging, None)
        for key, token, _ in command.tokens:
            if not self._held(key, TAG_HELD, command):
                self._set(key, token, command.token_ttl)

    def _held(self, key: str, prefix: bytes, command: Invalidate) -> bool:
        """Whether holds are left in ``key`` when this one has begun or ended."""
        now = round(self._tick() * 1000)
        name, life = command.hold or (b"", 0.0)
        there: bytes = self._get(key) or b""
        listed = holds(there[len(prefix) :]) if there.startswith(prefix) else []
        left = [one for one in listed if one[1] > now and one[0] not in (name, command.release)]
        if name:
            left.append((name, now + round(life * 1000)))
        if left:
            last = max(ends for _, ends in left)
            self._set(key, prefix + pack_holds(left), (last - now) / 1000)
        return bool(left)

    def _run(self, command: Run) -> Any:
        return command.program.twin(self, command.keys, command.args)

    def _scan(self, command: Scan) -> tuple[object, list[str]]:
        matches = matcher(command.pattern)
        if command.lists:
            return None, [index for index in list(self._index) if matches(index)]
        return None, [k for k in list(self._rows) if matches(k) and type(self._get(k)) is bytes]

    def _sizes(self, command: Sizes) -> tuple[int, ...]:
        return tuple(len(self._index.get(index, ())) for index in command.indexes)

    def _members(self, command: Members) -> list[str]:
        now = self._clock()
        listed = sorted((end, key) for key, end in self._index.get(command.index, {}).items() if end > now)
        return [key for _, key in listed[command.start : command.start + command.count]]

    def _forget(self, command: Forget) -> None:
        listed = self._index.get(command.index, {})
        for key in command.keys:
            if listed.pop(key, None) is not None:
                self._listed -= 1
        if not listed:
            self._index.pop(command.index, None)
