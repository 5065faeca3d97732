"""The production objects of a process, with all that they say on record: world, flights, L1, journal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cacheaside.engine.flights import Flight, Flights, Landed, Name
from cacheaside.events import Events
from cacheaside.journal import Batch, Journal, Names
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.memory import Entry, NearCache
from cacheaside.world import ClusterWorld, ProcessWorld

if TYPE_CHECKING:
    from tests.proof.process import Process


class Told:
    """A production world with nonces and a clock that repeat; what it says is on record."""

    process: Process

    def incarnation(self, key: str) -> bytes:
        return self.process.tell(super().incarnation(key))  # type: ignore[misc]

    def tag_incarnation(self, tag: str) -> bytes:
        return self.process.tell(super().tag_incarnation(tag))  # type: ignore[misc]

    def accepts(self, incarnation: bytes, key: str) -> bool:
        return self.process.tell(super().accepts(incarnation, key))  # type: ignore[misc]

    def accepts_tag(self, incarnation: bytes, tag: str) -> bool:
        return self.process.tell(super().accepts_tag(incarnation, tag))  # type: ignore[misc]

    def nonce(self) -> bytes:
        actor = self.process.turn
        actor.nonces += 1
        self.process.last_nonce = bytes((actor.number, actor.at, actor.nonces)).ljust(12, b"\0")
        return self.process.last_nonce

    def extend(self, token: str, needed: float, until: float) -> bool:
        return False  # nothing expires here by itself


class World(Told, ProcessWorld):
    """On one server."""


class SpreadWorld(Told, ClusterWorld):
    """On the servers of a cluster."""


def world_of(process: Process) -> World | SpreadWorld:
    options: dict[str, Any] = {"clock": process.time, "rand": lambda: 0.0, "index_limit": 0}
    keys = RawKeys("p", process.scenario.lines)
    world: World | SpreadWorld
    if process.scenario.spread:
        world = SpreadWorld(keys, lambda raw: server_of(raw, process.moved), **options)
    else:
        world = World(keys, **options)
    world.process, world.flights = process, ToldFlights(process)
    world.journal = ToldJournal(process)  # type: ignore[assignment]
    return world


def server_of(raw: str, moved: bool) -> int:
    """Values live on one server, until their slot has moved to another, and tags on a third."""
    return 1 if raw.startswith("{p:t.") else 2 if moved else 0


class ToldFlights(Flights):
    """Flights whose answers are on record."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def open(self, name: Name) -> Flight | None:
        if name[2] != self.process.last_nonce:  # else nobody can know of it yet
            self.process.touch()
        flight = super().open(name)
        self.process.tell(flight is None)
        return flight

    def find(self, name: Name) -> Flight | None:
        self.process.touch()
        flight = super().find(name)
        self.process.tell(flight is None)
        return flight

    def land(self, flight: Flight, landed: Landed) -> None:
        self.process.touch()
        super().land(flight, landed)

    def close(self, flight: Flight) -> None:
        self.process.touch()
        super().close(flight)

    def summary(self) -> Any:
        near = self.process.heard
        return tuple(sorted((name, state_of(flight, near)) for name, flight in self._flying.items()))


def state_of(flight: Flight, near: ToldNear | None) -> Any:
    if not flight.done.done():
        return ("flying", flight.waiters)
    landed = flight.landed
    since = near and near.since(landed.since) if landed.late else None
    return ("landed", flight.waiters, repr((landed.payload, landed.value, landed.error, landed.late, since)))


class ToldNear(NearCache):
    """An L1 whose answers are on record."""

    def __init__(self, process: Process) -> None:
        super().__init__(100, 2**20, 2**20)
        self.process = process

    def now(self) -> int:
        """Only what was marked since will matter, so that is what is on record: see ``since``."""
        self.process.touched = True
        since = super().now()
        self.process.turn.sinces.append(since)
        return since

    def put(self, key: str, *args: Any) -> None:
        self.process.touched = True
        before = self.entries.get(key)
        super().put(key, *args)
        self.process.happened.add("l1_refused" if self.entries.get(key) is before else "l1_kept")

    def mark(self, keys: tuple[str, ...], tags: tuple[str, ...]) -> None:
        self.process.touched = True
        super().mark(keys, tags)

    def unmarked(self, tags: tuple[str, ...], since: int) -> bool:
        self.process.touched = True
        return self.process.tell(super().unmarked(tags, since))

    def since(self, count: int) -> Any:
        """What may not settle any more of what was read at this count; all else it might be asked."""
        marked = sorted(name for name, mark in self._marks.items() if mark > count)
        return (count < self._floor, *marked)

    def summary(self) -> Any:
        entries = sorted((key, entry.value, dead(entry)) for key, entry in self.entries.items())
        return repr(entries)


def dead(entry: Entry) -> bool:
    return any(tag.dead for tag in entry.tags)


class ToldJournal:
    """A journal whose answers are on record, but for its counts: see ``since``."""

    def __init__(self, process: Process) -> None:
        self.process = process
        scenario = process.scenario
        self.kept = Journal(lambda: 0.0, owed=scenario.owed)
        self.may_owe = bool(scenario.losses or scenario.cancels or scenario.failover)

    def touch(self) -> None:
        """Where nothing gets lost, it has always the same to say."""
        if self.may_owe:
            self.process.touch()

    def __getattr__(self, name: str) -> Any:
        self.touch()
        return getattr(self.kept, name)

    @property
    def change(self) -> int:
        self.touch()
        self.process.turn.changes.add(self.kept.change)
        return self.kept.change

    @property
    def owing(self) -> bool:
        self.touch()
        return self.process.tell(("owing", self.kept.owing))[1]

    def doubts(self, key: str, tags: Iterable[str], since: int) -> bool:
        self.touch()
        return self.process.tell(("doubts", self.kept.doubts(key, tags, since)))[1]

    def batch(self, most: int) -> Batch:
        self.touch()
        batch = self.kept.batch(most)
        self.process.turn.changes.add(batch.change)
        self.process.tell(batch[:-1])
        return batch

    def settle(self, batch: Batch) -> None:
        self.touch()
        self.process.happened.add("replayed")
        self.kept.settle(batch)

    def since(self, count: int) -> Any:
        """What was settled or is owed since this count; all else it might be asked."""
        kept = self.kept
        settled = sorted(name for name, number in kept._settled.items() if number > count)
        return (count < kept._floor, *settled, *names(kept._owed, count))

    def summary(self) -> Any:
        return (names(self.kept._owed), names(self.kept._recent))


def names(listed: Names, above: float = -1) -> tuple[tuple[str, ...], ...]:
    tables = (listed.keys, listed.tags, listed.patterns)
    return tuple(tuple(sorted(name for name, n in table.items() if n > above)) for table in tables)


class Unheard(Events):
    """What happens to the connection is nobody's business here."""

    def tell(self, *_: Any) -> None: ...


class ToldNames(dict[str, tuple[str, ...]]):
    """The late tags to prefetch; whoever asks for them is on record."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def get(self, key: str, default: Any = None) -> Any:
        self.process.touch()
        return self.process.tell(super().get(key, default))

    def __setitem__(self, key: str, names: tuple[str, ...]) -> None:
        self.process.touch()
        super().__setitem__(key, names)
