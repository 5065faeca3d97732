"""What is checked: cacheaside as an application uses it, every way to invalidate included.

A row belongs to one of six kinds, by its number; each kind is read and invalidated in its own way, and half
of its rows are kept in L1. Threads and tasks share the entries and the loads in flight.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol

from msgspec import Struct

from cacheaside import Cache
from cacheaside.check.board import LOADING, READING
from cacheaside.check.history import Load, Recorder, clock
from cacheaside.check.table import Row, Table, owner_of
from cacheaside.engine.commands import Fetch

NS: Final = "rows"
KINDS: Final = ("key", "tag", "tags", "late", "hold", "batch")
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "key": {},
    "tag": {"tags": ["row:{row}"]},
    # Renewed before and after its end as well: a refresh may not bring back what was invalidated.
    "tags": {
        "tags": ["row:{row}", "all", "owner:{result.owner}"],
        "ttl": 1,
        "early_refresh": 1.0,
        "stale_while_revalidate": 1,
    },
    "late": {"tags": ["owner:{result.owner}"]},
    "hold": {"tags": ["held:{row}"]},
}
COMMON: Final[dict[str, Any]] = {"ns": NS, "ttl": 30, "lease_ttl": 0.5, "wait_timeout": 1}
HOLD: Final = 5.0
BATCH: Final = 3


class Call:
    """What one call of a worker has been through so far."""

    __slots__ = ("asked", "loaded", "loading", "mark", "who")

    def __init__(self, who: str, mark: Callable[[int], None]) -> None:
        self.who = who
        self.mark = mark
        self.asked = False
        """Whether it has asked the store."""
        self.loaded: set[int] = set()
        self.loading = 0.0

    def tier(self, row: int, *, several: bool, l1: bool) -> str:
        """Who has answered, as ``history.Get`` words it."""
        if row in self.loaded:
            return "load"
        if not self.asked:
            return "l1"
        return "mixed" if several and l1 else "l2"


current: ContextVar[Call] = ContextVar("cacheaside_check_call")


class Source:
    """The loads of one process: they read the table at once and then take their time."""

    def __init__(self, table: Table, recorder: Recorder) -> None:
        self._table = table
        self._recorder = recorder

    def load(self, row: int) -> Row:
        begin = clock()
        call = current.get()
        call.mark(LOADING)
        found = self._table.read(row)
        time.sleep(delay())
        self._loaded(call, found, begin)
        return found

    async def aload(self, row: int) -> Row:
        begin = clock()
        call = current.get()
        call.mark(LOADING)
        found = await asyncio.to_thread(self._table.read, row)
        await asyncio.sleep(delay())
        self._loaded(call, found, begin)
        return found

    def _loaded(self, call: Call, found: Row, begin: float) -> None:
        end = clock()
        call.loaded.add(found.id)
        call.loading += end - begin
        call.mark(READING)
        self._recorder.add(Load(found.id, found.version, begin, end, call.who))


def delay() -> float:
    """Seconds that a load takes: mostly little, sometimes more than a lease."""
    drawn = random.random()
    return 0.7 if drawn < 0.002 else 0.03 if drawn < 0.02 else random.random() * 0.004


class Subject(Protocol):
    """Something that answers reads of rows and hears of writes, correctly or not."""

    def choose(self, row: int, rng: random.Random) -> tuple[int, ...]:
        """The rows to read together when ``row`` is to be read."""
        ...

    def near(self, row: int) -> bool:
        """Whether L1 may answer for this row."""
        ...

    def read(self, rows: Sequence[int]) -> dict[int, Row]: ...
    async def aread(self, rows: Sequence[int]) -> dict[int, Row]: ...
    def write(self, row: int, commit: Callable[[], object], rng: random.Random) -> tuple[str, bool]:
        """Commit a new version and invalidate: by what, and whether that was acknowledged."""
        ...

    async def awrite(
        self, row: int, commit: Callable[[], Awaitable[object]], rng: random.Random
    ) -> tuple[str, bool]: ...
    def counts(self) -> dict[str, float]: ...
    async def aclose(self) -> None: ...


class Way(Struct, frozen=True):
    """One way to invalidate a row."""

    name: str
    keys: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def what(self) -> dict[str, Any]:
        return {"keys": self.keys, "tags": self.tags}


class CacheasideSubject:
    """Functions cached by cacheaside, of either colour, over the same entries."""

    def __init__(self, source: Source, rows: int, url: str, **settings: Any) -> None:
        self.rows = rows
        self.cache = Cache(url, **settings)
        self.cache.store = Watched(self.cache.store)
        self._l1 = self.cache.near is not None
        self._sync = functions(self.cache, source, asynchronous=False)
        self._async = functions(self.cache, source, asynchronous=True)

    def choose(self, row: int, rng: random.Random) -> tuple[int, ...]:
        if kind_of(row) != "batch":
            return (row,)
        same = range(row % (2 * len(KINDS)), self.rows, 2 * len(KINDS))
        return tuple({row, *rng.sample(same, min(BATCH, len(same)))})

    def near(self, row: int) -> bool:
        return self._l1 and row // len(KINDS) % 2 == 0

    def read(self, rows: Sequence[int]) -> dict[int, Row]:
        function = self._sync[kind_of(rows[0]), self.near(rows[0])]
        if kind_of(rows[0]) == "batch":
            found: dict[int, Row] = function(list(rows))
            return found
        return {rows[0]: function(rows[0])}

    async def aread(self, rows: Sequence[int]) -> dict[int, Row]:
        function = self._async[kind_of(rows[0]), self.near(rows[0])]
        if kind_of(rows[0]) == "batch":
            found: dict[int, Row] = await function(list(rows))
            return found
        return {rows[0]: await function(rows[0])}

    def write(self, row: int, commit: Callable[[], object], rng: random.Random) -> tuple[str, bool]:
        way = self.way(row, rng)
        if way.name == "hold":
            with self.cache.mutating(**way.what, hold=HOLD) as held:
                commit()
            return way.name, bool(held.receipt)
        commit()
        return way.name, bool(self.cache.invalidate(**way.what))

    async def awrite(
        self, row: int, commit: Callable[[], Awaitable[object]], rng: random.Random
    ) -> tuple[str, bool]:
        way = self.way(row, rng)
        if way.name == "hold":
            async with self.cache.mutating(**way.what, hold=HOLD) as held:
                await commit()
            return way.name, bool(held.receipt)
        await commit()
        return way.name, bool(await self.cache.ainvalidate(**way.what))

    def way(self, row: int, rng: random.Random) -> Way:
        """How a write of this row invalidates it this time."""
        kind = kind_of(row)
        key = f"{NS}:{place(kind, self.near(row))}:{row}"
        by_key = rng.random() < 0.5
        match kind:
            case "key":
                return Way("key", keys=(key,))
            case "tag":
                return Way("tag", tags=(f"row:{row}",))
            case "tags":  # each of them is enough
                tags = (f"row:{row}", "all", f"owner:{owner_of(row)}")
                return Way("tags", tags=tuple(rng.sample(tags, rng.choice((1, 1, 2, 3)))))
            case "late":
                return Way("late tag", tags=(f"owner:{owner_of(row)}",))
            case "hold":
                return Way("hold", keys=(key,)) if by_key else Way("hold", tags=(f"held:{row}",))
            case _:
                batch = "key of a batch", "tag of a batch"
                return Way(batch[0], keys=(key,)) if by_key else Way(batch[1], tags=(f"row:{row}",))

    def counts(self) -> dict[str, float]:
        counts: dict[str, float] = self.cache.stats()["namespaces"].get(NS, {})
        return counts

    async def aclose(self) -> None:
        await self.cache.aclose()


class Watched:
    """The cache's store, which tells a call that it was asked."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def perform(self, command: Any) -> Any:
        notice(command)
        return self._inner.perform(command)

    async def aperform(self, command: Any) -> Any:
        notice(command)
        return await self._inner.aperform(command)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def notice(command: Any) -> None:
    call = current.get(None)
    if call is not None and isinstance(command, Fetch):
        call.asked = True


def kind_of(row: int) -> str:
    return KINDS[row % len(KINDS)]


def shared_rows(rows: int) -> frozenset[int]:
    """The rows whose tags others have as well."""
    return frozenset(row for row in range(rows) if kind_of(row) in ("tags", "late"))


def place(kind: str, near: bool) -> str:
    return f"{kind}:{'near' if near else 'far'}"


def functions(cache: Cache, source: Source, *, asynchronous: bool) -> dict[tuple[str, bool], Any]:
    """A cached function for each kind, with L1 and without."""
    one, many = loaders(source, asynchronous=asynchronous)
    made: dict[tuple[str, bool], Any] = {}
    for near in (True, False):
        for kind, options in OPTIONS.items():
            chosen: Any = {**COMMON, **options, "l1": near}
            made[kind, near] = cache.cached(key=place(kind, near) + ":{row}", **chosen)(one)
        batch: Any = {**COMMON, "l1": near, "tags": ["row:{row}"]}
        made["batch", near] = cache.cached_many(key=place("batch", near) + ":{row}", **batch)(many)
    return made


def loaders(source: Source, *, asynchronous: bool) -> tuple[Any, Any]:
    """The functions that are cached, of one row and of several."""

    def one(row: int) -> Row:
        return source.load(row)

    def many(rows: list[int]) -> dict[int, Row]:
        return {row: source.load(row) for row in rows}

    async def aone(row: int) -> Row:
        return await source.aload(row)

    async def amany(rows: list[int]) -> dict[int, Row]:
        return {row: await source.aload(row) for row in rows}

    # Two functions may not have the same keys, but one may be defined again.
    aone.__qualname__, amany.__qualname__ = one.__qualname__, many.__qualname__
    return (aone, amany) if asynchronous else (one, many)
