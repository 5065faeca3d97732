"""Every interleaving of the production flows over the production store.

A *scenario* is a few processes with a few actors each. An actor plays *episodes*, one after the other:
generators that run a production flow (a read, an invalidation, a put) and yield its commands. Each
command is one atomic step of the one ``EmbeddedStore``, taken when the scheduler picks that actor; a
load reads the version of the "database", an integer, as a step of its own. Besides there may be budgets
of mishaps: evictions of any key, lost answers, cancelled calls, deaths, a failover that forgets the last
write. A get notes the version acknowledged before it began (``Note``) and is *stale* if it answers less.

**States.** Python cannot copy a generator, so nothing is copied: a process is run again from the
replies that led to it. Schedules that lead to one state are followed once. A state is what the store
holds, the database, what was acknowledged, the budgets left, and for each process its shared objects
(flights, L1) with everything its actors were told since their episodes began: replies, and what the
shared objects said. That is sound because a flow is a deterministic function of what it is told: its
nonces come from actor, episode and a count, its clock stands still, there is no jitter; whenever two
schedules meet in a state it is checked that the actors ask for the same. An episode that has ended
leaves nothing behind but the shared objects. For the same reason what a process in one state does with
one reply, and the store with one command, is computed once and remembered.

**Steps.** Of a process with a single actor, what happens between two commands is nobody else's business
and belongs to the step before. Where actors share flights or an L1, receiving a reply is its own step.
A note is taken with the first command, an acknowledgement at once: later and sooner demand the most. A
waiter may give up at any time if ``impatient``, else when nobody else can move; who polls looks again
when it would be told something new, since else it is where it was.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from cacheaside.codecs import codec_for
from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import (
    Begin,
    Begun,
    Claim,
    Expect,
    Fetch,
    Invalidate,
    Load,
    Loaded,
    Lock,
    Sleep,
    Spawn,
    Wait,
)
from cacheaside.engine.flights import Flight, Flights, Name
from cacheaside.engine.read import peek
from cacheaside.entry import (
    PLACEHOLDER,
    SLOT_HELD,
    TAG_HELD,
    Held,
    Marker,
    Value,
    holds,
    is_hold,
    is_token,
    pack_holds,
    parse,
    unpack_tags,
)
from cacheaside.errors import StoreUnavailable
from cacheaside.keys import RawKeys
from cacheaside.policy import Policy, make_policy
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.stores.memory import NearCache
from cacheaside.testing.chaos import keys_of
from cacheaside.world import ClusterWorld, ProcessWorld

KEY = "ns:key"
TTL = 100.0
CODEC = codec_for(int)

Episode = Callable[["Process"], Generator[Any, Any, None]]


class Note(Struct, frozen=True):
    """What has been acknowledged? Reply: a version."""


class Write(Struct, frozen=True):
    """The database commits its next version. Reply: that version."""


class Acknowledge(Struct, frozen=True):
    """Who begins from here on must not see less than this version."""

    version: int


class Expire(Struct, frozen=True):
    """The holds of this name end by themselves."""

    name: bytes


class Stale(Exception):
    """A get was answered with less than what had been acknowledged when it began."""


class Dropped(BaseException):
    """Ends a flow that is not needed any more."""


class Database:
    def __init__(self, version: int) -> None:
        self.version = version

    def select(self) -> int:
        return self.version

    def update(self) -> int:
        self.version += 1
        return self.version


@dataclass(frozen=True)
class Scenario:
    """Who takes part, and how much may go wrong.

    Args:
        processes: for each process its actors, for each actor its name and its episodes.
        l1: whether each process has an L1 (which is also what hears of its invalidations).
        witness: whether it only hears of them, as with ``l1=False`` on the function.
        cluster: commands on several keys are a step for each key, in any order.
        spread: in a cluster, tags live on another server than values; each may fail over alone.
        moves: how often the slot of the values may move to a server of its own.
        before: episodes that are played first, at time 0; the others play at ``clock``.
    """

    processes: tuple[tuple[tuple[str, tuple[Episode, ...]], ...], ...]
    tags: tuple[str, ...] = ("tag",)
    late: tuple[str, ...] = ()
    l1: bool = False
    witness: bool = False
    cluster: bool = False
    impatient: bool = False
    evictions: int = 0
    spread: bool = False
    moves: int = 0
    failovers: int = 0
    cancels: int = 0
    deaths: int = 0
    losses: int = 0
    before: tuple[Episode, ...] = ()
    clock: float = 0.0
    policy: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def options(self) -> Policy:
        return make_policy(**{"ns": "ns", "ttl": TTL, "jitter": 0, **self.policy})


# ---------------------------------------------------------------------------- a process


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
        return bytes((actor.number, actor.at, actor.nonces)).ljust(12, b"\0")

    def extend(self, token: str, needed: float, until: float) -> bool:
        return False  # nothing expires here by itself


class World(Told, ProcessWorld):
    """On one server."""


class SpreadWorld(Told, ClusterWorld):
    """On the servers of a cluster."""


def world_of(process: Process) -> World | SpreadWorld:
    options: dict[str, Any] = {"clock": process.time, "rand": lambda: 0.0, "index_limit": 0}
    keys = RawKeys("p")
    world: World | SpreadWorld
    if process.scenario.spread:
        world = SpreadWorld(keys, lambda raw: server_of(raw, process.moved), **options)
    else:
        world = World(keys, **options)
    world.process, world.flights = process, ToldFlights(process)
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
        flight = super().open(name)
        self.process.tell(flight is None)
        return flight

    def find(self, name: Name) -> Flight | None:
        flight = super().find(name)
        self.process.tell(flight is None)
        return flight

    def summary(self) -> Any:
        return tuple(sorted((name, state_of(flight)) for name, flight in self._flying.items()))


def state_of(flight: Flight) -> Any:
    if not flight.done.done():
        return ("flying", flight.waiters)
    landed = flight.landed
    return ("landed", flight.waiters, repr((landed.payload, landed.value, landed.error)))


class ToldNear(NearCache):
    """An L1 whose answers are on record."""

    def __init__(self, process: Process) -> None:
        super().__init__(100, 2**20, 2**20)
        self.process = process

    def now(self) -> int:
        return self.process.tell(super().now())

    def unmarked(self, tags: tuple[str, ...], since: int) -> bool:
        return self.process.tell(super().unmarked(tags, since))

    def summary(self) -> Any:
        entries = sorted((k, e.value, [t.dead for t in e.tags]) for k, e in self.entries.items())
        return repr((entries, self._count, self._floor, sorted(self._marks.items())))


class ToldNames(dict[str, tuple[str, ...]]):
    """The late tags to prefetch; whoever asks for them is on record."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def get(self, key: str, default: Any = None) -> Any:
        return self.process.tell(super().get(key, default))


class Actor:
    """Where somebody is in the episodes he plays."""

    def __init__(self, number: int, name: str, episodes: tuple[Episode, ...]) -> None:
        self.number = number
        self.name = name
        self.episodes = episodes
        self.at = -1
        self.nonces = 0
        self.flow: Generator[Any, Any, Any] | None = None
        self.command: Any = None
        self.told: list[Any] = []
        self.polled: tuple[tuple[Any, Any], ...] = ()
        self.dead = False

    def summary(self) -> Any:
        if self.command is None or self.dead:
            return None
        waited_for = state_of(self.command.flight) if type(self.command) is Wait else None
        return (self.at, repr(self.told), waited_for)


class Process:
    """One process of a scenario: a world, a call site, actors. Runs forward only."""

    def __init__(self, scenario: Scenario, index: int, clock: float) -> None:
        self.scenario = scenario
        self.clock = clock
        self.stale = ""
        self.seen: tuple[int, ...] = (-1, -1, -1)
        """The epoch of each server that the process has seen last; none yet."""
        self.moved = False
        self.first = 16 * (index + 1)
        crew = scenario.processes[index] if index >= 0 else (("before", scenario.before),)
        self.actors = [Actor(self.first + i, name, episodes) for i, (name, episodes) in enumerate(crew)]
        self.turn = self.actors[0]
        self.world = world_of(self)
        heard = ToldNear(self) if scenario.l1 or scenario.witness else None
        self.near = heard if scenario.l1 else None
        self.heard = heard
        self.shared = len(crew) > 1 or heard is not None
        self.site = Site(self.world, scenario.options, CODEC, self.near, heard)
        self.site.late_names = ToldNames(self)
        for actor in self.actors:
            self._next_episode(actor)

    def call(self, load: Callable[..., Any] = Database.select, key: str = KEY, **more: Any) -> Call:
        """A call of the one function; the scheduler hands the database to its loader."""
        late = self.scenario.late
        return Call(key, self.scenario.tags, load, (lambda _: late) if late else None, **more)

    def tell(self, answer: Any) -> Any:
        """Put on record what the actor whose turn it is was told."""
        self.turn.told.append(answer)
        return answer

    def time(self) -> float:
        return self.tell(self.clock)

    # -- what can happen to an actor

    def reply(self, number: int, answer: Any) -> None:
        actor = self.actors[number]
        command = actor.command
        if type(command) in (Fetch, Lock):
            actor.polled += ((command, answer),)
        elif type(command) is Sleep:
            actor.polled = ()
        actor.told.append((answer, state_of(command.flight)) if type(command) is Wait else answer)
        self._advance(actor, lambda flow: flow.send(answer))

    def time_out(self, number: int) -> None:
        """Time passes for the whole process, more than anybody waits."""
        self.clock += self.scenario.options.wait_timeout + 1
        self.reply(number, False)

    def cancel(self, number: int) -> None:
        self._fail(number, asyncio.CancelledError())

    def lose(self, number: int) -> None:
        self._fail(number, StoreUnavailable("the answer is lost"))

    def _fail(self, number: int, error: BaseException) -> None:
        actor = self.actors[number]
        command = actor.command
        flight = state_of(command.flight) if type(command) is Wait else None
        actor.told.append((type(error).__name__, flight, self.world.flights.summary()))
        self._advance(actor, lambda flow: flow.throw(error))

    def die(self, number: int) -> None:
        self.actors[number].dead = True

    def learn(self, server: int, epoch: int) -> None:
        self.seen = (*self.seen[:server], epoch, *self.seen[server + 1 :])
        incarnation = incarnation_of(server, epoch)
        if isinstance(self.world, SpreadWorld):
            self.world.learn_server(server, incarnation)
        else:
            self.world.learn_incarnation(incarnation)

    def learn_all(self, epochs: tuple[int, ...]) -> None:
        for server, epoch in enumerate(epochs if self.scenario.spread else epochs[:1]):
            if epoch >= 0:
                self.learn(server, epoch)

    def move(self) -> None:
        """Told MOVED: the values are on the other server."""
        self.moved = True

    def enter(self, at: int, clock: float, seen: tuple[int, ...], moved: bool) -> None:
        """Go straight to an episode; what came before has left nothing behind."""
        self.clock, self.moved = clock, moved
        self.learn_all(seen)
        self.actors[0].at = at - 1
        self._next_episode(self.actors[0])

    def entered(self) -> tuple[Any, ...] | None:
        """How to get straight here, if that can be."""
        actor = self.actors[0]
        if self.shared or len(self.actors) > 1 or actor.told or actor.dead or self.stale:
            return None
        if len(self.world.flights) or self.site.late_names or type(actor.command) not in (Note, Write):
            return None
        return ("enter", actor.at, self.clock, self.seen, self.moved)

    # --

    def _advance(self, actor: Actor, move: Callable[[Any], Any]) -> None:
        self.turn = actor
        try:
            command = move(actor.flow)
            while type(command) in (Spawn, Expect):
                if type(command) is Spawn:
                    self._spawn(command)
                command = actor.flow.send(None)  # type: ignore[union-attr]
            actor.command = command
        except Stale as stale:
            actor.command = None
            self.stale = f"{actor.name} {stale}"
        except (StopIteration, asyncio.CancelledError):
            self._next_episode(actor)

    def _spawn(self, command: Spawn) -> None:
        number = len(self.actors)
        actor = Actor(self.first + number, f"spawned {number}", ())
        self.actors.append(actor)
        turn, actor.flow, actor.at = self.turn, command.flow, 0
        actor.told.append((turn.number, turn.at, *turn.told))  # what the flow was made from
        self._advance(actor, next)
        self.turn = turn

    def _next_episode(self, actor: Actor) -> None:
        actor.at += 1
        self.turn = actor
        actor.nonces, actor.told, actor.polled = 0, [], ()
        if actor.at >= len(actor.episodes):
            actor.flow = actor.command = None
        else:
            actor.flow = actor.episodes[actor.at](self)
            actor.command = next(actor.flow)

    def summary(self) -> Any:
        near = self.heard.summary() if self.heard is not None else None
        return (
            tuple(actor.summary() for actor in self.actors),
            self.world.flights.summary(),  # type: ignore[attr-defined]
            near,
            tuple(self.site.late_names.items()),
            self.seen,
            self.moved,
            self.clock,
            self.stale,
        )

    def l1_version(self) -> int | None:
        """What a hit in L1 would be answered with."""
        entry = self.near.get(KEY, self.clock) if self.near is not None else None
        return entry.value if entry is not None else None

    def end(self) -> None:
        """Let go of the flows in the middle of whatever they do; they may want to say something."""
        for actor in self.actors:
            if actor.flow is not None:
                try:
                    actor.flow.throw(Dropped())
                    while True:
                        actor.flow.send(None)
                except (Dropped, StopIteration):
                    pass


class Node(Struct, frozen=True, eq=False):
    """A state of a process: what its actors want, and how to get there again."""

    index: int
    earlier: Node | None
    event: tuple[Any, ...]
    wants: tuple[Want | None, ...]
    shared: bool
    seen: tuple[int, ...]
    moved: bool
    kept: int | None
    stale: str

    def path(self) -> list[tuple[Any, ...]]:
        events: list[tuple[Any, ...]] = []
        node: Node = self
        while node.earlier is not None:
            events.append(node.event)
            node = node.earlier
        return events[::-1]


class Want(Struct, frozen=True, eq=False):
    """What an actor wants done, or that he has a reply to read."""

    name: str
    command: Any
    parts: tuple[Any, ...]
    """What the command falls into in a cluster, else (command,)."""
    landed: bool
    polled: tuple[tuple[Any, Any], ...]
    begun: bool

    def asks(self) -> Any:
        """What two actors who were told the same must agree on."""
        kind = type(self.command)
        return (kind, kind in (Load, Wait, Sleep) or self.command, self.landed, self.polled)


def parts(command: Any) -> tuple[Any, ...]:
    """One command for each key that it touches."""
    match command:
        case Fetch(keys=keys):
            return tuple(Fetch((key,)) for key in keys)
        case Begin(slots=slots, tokens=tokens, lease=lease, token_ttl=ttl, dead=dead):
            return (
                *(Begin((s,), (), lease, ttl) for s in slots),
                *(Begin((), (t,), lease, ttl) for t in tokens),
                *(Begin((), (), lease, ttl, (d,)) for d in dead),
            )
        case Claim(slots=slots, tokens=tokens, ttl=lease, token_ttl=ttl):
            return tuple(Claim((s,), (), lease, ttl) for s in slots) + tuple(
                Claim((), (t,), lease, ttl) for t in tokens
            )
        case Invalidate(slots=slots, tokens=tokens):
            return tuple(replace(command, slots=(s,), tokens=()) for s in slots) + tuple(
                replace(command, slots=(), tokens=(t,)) for t in tokens
            )
    return (command,)


def merge(command: Any, replies: list[Any]) -> Any:
    """The reply to a command from the replies to its parts."""
    match command:
        case Fetch():
            return tuple(reply[0] for reply in replies)
        case Begin() | Claim():
            slots = tuple(slot for reply in replies for slot in reply.slots)
            return Begun(slots, tuple(token for reply in replies for token in reply.tokens))
    return replies[0]


# ---------------------------------------------------------------------------- all of them


class State(NamedTuple):
    """Everything at one moment; ``rows`` and ``before`` are numbers of contents of the store.

    ``before`` is what a failover would bring back: of the values (and all there is, on one server), of the
    tags. ``epochs`` are those of the servers, ``moved`` whether the values' slot has moved.
    """

    rows: int
    before: tuple[int, ...]
    db: int
    acknowledged: int
    epochs: tuple[int, ...]
    moved: bool
    budget: tuple[int, int, int, int, int, int]
    nodes: tuple[Node, ...]
    inbox: tuple[tuple[int, int, int, Any], ...]
    """Replies that have not been read: process, actor, part of the command, reply."""


OURS = (Note, Write, Acknowledge, Load, Expire)
EVICT, FAILOVER, CANCEL, DIE, LOSE, MOVE = range(6)
Choice = tuple[Any, ...]
Rows = tuple[tuple[str, tuple[bytes, float]], ...]


class Violation(Exception):
    """A stale answer, with the schedule that leads to it."""


@dataclass
class Report:
    states: int = 0
    schedules: int = 0
    answers: int = 0
    covered: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.states} states, {self.schedules} schedules, {self.answers} computed answers"


class Explorer:
    """The schedules of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.report = Report()
        self.time = 0.0
        self.halves = (0, 1) if scenario.spread else (0,)
        self.store = EmbeddedStore(2**30, lambda: 0.0)
        # With an L1, what a get does between its note and its first command is others' business too.
        self.joins_notes = not (scenario.l1 or scenario.witness or scenario.cluster)
        self.forget()

    def forget(self) -> None:
        """Drop all that was computed before; long random runs do so now and then."""
        self._rows: list[Rows] = []
        self._numbers: dict[Rows, int] = {}
        self._performed: dict[tuple[int, Any], tuple[int, Any]] = {}
        self._nodes: dict[Any, Node] = {}
        self._next: dict[tuple[Any, ...], Node] = {}
        self._stored: dict[Any, Any] = {}
        self.start = self._start()

    # -- remembered answers of stores and processes

    def number(self, rows: Rows) -> int:
        number = self._numbers.setdefault(rows, len(self._rows))
        if number == len(self._rows):
            self._rows.append(rows)
        return number

    def perform(self, rows: int, command: Any) -> tuple[int, Any]:
        """What the store holds after a command, and its reply."""
        known = self._performed.get((rows, command))
        if known is None:
            store = self.store._rows
            store.clear()
            store.update(self._rows[rows])
            if type(command) is Expire:
                reply = None
                for key, (raw, end) in self._rows[rows]:
                    prefix = SLOT_HELD if type(parse(raw)) is Held else TAG_HELD if is_hold(raw) else b""
                    left = (
                        [one for one in holds(raw[len(prefix) :]) if one[0] != command.name] if prefix else []
                    )
                    if left:
                        store[key] = (prefix + pack_holds(left), end)
                    elif prefix:
                        del store[key]
            else:
                reply = self.store.perform(command)
                reply = tuple(reply) if type(reply) is list else reply
            after = self.number(tuple(sorted(store.items())))
            known = self._performed[rows, command] = (after, reply)
        return known

    def follow(self, node: Node, event: tuple[Any, ...]) -> Node:
        """The state of a process after an event; found by running it again from the beginning."""
        at = (id(node), *event)
        known = self._next.get(at)
        if known is None:
            process = Process(self.scenario, node.index, self.scenario.clock)
            for name, *arguments in (*node.path(), event):
                getattr(process, name)(*arguments)
            known = self._next[at] = self._node(process, node.index, node, event)
            self.report.answers += 1
        return known

    def _node(self, process: Process, index: int, earlier: Node | None, event: tuple[Any, ...]) -> Node:
        key = (index, process.summary())
        node = self._nodes.get(key)
        wants = tuple(map(self._want, process.actors))
        if node is not None:
            alike = [one.asks() if one else None for one in wants]
            there = [one.asks() if one else None for one in node.wants]
            assert alike == there, f"one state, different wishes: {alike} and {there}"
        else:
            entered = process.entered()
            if earlier is not None and entered is not None:
                earlier, event = self.origins[index], entered
            node = self._nodes[key] = Node(
                index, earlier, event, wants, process.shared, process.seen, process.moved,
                process.l1_version(), process.stale,
            )  # fmt: skip
        self.report.covered.update(n for n, count in process.site.counts.snapshot().items() if count)
        process.end()
        return node

    def _want(self, actor: Actor) -> Want | None:
        command = actor.command
        if command is None or actor.dead:
            return None
        split = parts(command) if self.scenario.cluster else (command,)
        landed = type(command) is Wait and command.flight.done.done()
        return Want(actor.name, command, split, landed, actor.polled, bool(actor.told))

    def _start(self) -> State:
        rows = self.number(())
        if self.scenario.before:
            process = Process(self.scenario, -1, 0.0)
            process.learn_all((0, 0, 0))
            (actor,) = process.actors
            while actor.command is not None:
                if type(actor.command) is Note:
                    process.reply(0, 0)
                elif type(actor.command) is Load:
                    process.reply(0, Loaded(0))
                else:
                    rows, reply = self.perform(rows, actor.command)
                    process.reply(0, reply)
        s = self.scenario
        self.origins = tuple(self._node(Process(s, i, s.clock), i, None, ()) for i in range(len(s.processes)))
        budget = (s.evictions, s.failovers, s.cancels, s.deaths, s.losses, s.moves)
        before = tuple(self.half(rows, half) for half in self.halves)
        return State(rows, before, 0, 0, (0, 0, 0), False, budget, self.origins, ())

    def half(self, rows: int, half: int) -> int:
        """What the values' server holds, or that of the tags; on one server it is the same."""
        if not self.scenario.spread:
            return rows
        kept = tuple(row for row in self._rows[rows] if (server_of(row[0], False) == 1) == bool(half))
        return self.number(kept)

    def wrote(self, rows: int, after: int, before: tuple[int, ...]) -> tuple[int, ...]:
        """What a failover would bring back, after a step from ``rows`` to ``after``."""
        if rows == after:
            return before
        halves = ((self.half(rows, half), self.half(after, half)) for half in self.halves)
        return tuple(was if was != now else b for (was, now), b in zip(halves, before, strict=True))

    def fail_over(self, state: State, half: int) -> State:
        """The server of this half forgets its last write, and is another one from now on."""
        rows = self._rows[state.before[half]]
        if self.scenario.spread:
            rows = tuple(sorted((*rows, *self._rows[self.half(state.rows, 1 - half)])))
        server = 1 if half else server_of("", state.moved)
        epochs = tuple(e + (s == server) for s, e in enumerate(state.epochs))
        return state._replace(rows=self.number(rows), epochs=epochs, budget=spent(state.budget, FAILOVER))

    def stored(self, rows: int, epochs: tuple[int, ...], moved: bool) -> int | None:
        """What a get from nowhere would be answered with if it is a hit."""
        known = self._stored.get((rows, epochs, moved), self)
        if known is self:
            process = Process(self.scenario, -1, self.scenario.clock)
            process.moved = moved
            process.learn_all(epochs)
            flow = peek(process.site, process.call(), None)
            command = next(flow)
            try:
                while True:
                    command = flow.send(self.perform(rows, command)[1])
            except StopIteration as stop:
                known = self._stored[rows, epochs, moved] = stop.value
        return known

    def wrong(self, state: State) -> str:
        """The broken promise in this state, if any: given, or waiting for whoever asks next."""
        least = state.acknowledged
        for node in state.nodes:
            if node.stale:
                return node.stale
            if node.kept is not None and node.kept < least:
                return f"L1 holds {node.kept}, {least} is acknowledged"
        stored = self.stored(state.rows, state.epochs, state.moved)
        if stored is not None and stored < least:
            return f"L2 holds {stored}, {least} is acknowledged"
        return ""

    # -- what may happen next

    def choices(self, state: State) -> list[Choice]:
        rows, budget = state.rows, state.budget
        moves: list[Choice] = []
        later: list[Choice] = []
        for p, node in enumerate(state.nodes):
            for a, want in enumerate(node.wants):
                if want is None:
                    continue
                kind = type(want.command)
                done = [part for q, b, part, _ in state.inbox if q == p and b == a]
                reader = want.name == "reader"
                if budget[CANCEL] and reader and kind in (Load, Wait):
                    moves.append(("cancel", p, a))
                if budget[DIE] and reader and want.begun and not node.shared:
                    moves.append(("die", p, a))
                if len(done) == len(want.parts):
                    moves.append(("read", p, a))
                elif kind is Wait:
                    (moves if want.landed else later).append(("wait" if want.landed else "time_out", p, a))
                elif kind is Sleep:
                    news = not want.polled or any(
                        self.perform(rows, command)[1] != reply for command, reply in want.polled
                    )
                    (moves if news else later).append(("wake" if news else "time_out", p, a))
                else:
                    moves += [("step", p, a, part) for part in range(len(want.parts)) if part not in done]
                    if budget[LOSE] and kind not in OURS:
                        moves += [("lose", p, a, False), ("lose", p, a, True)]
        if not moves or self.scenario.impatient:
            moves += later
        if moves:
            if budget[EVICT]:
                moves += [("evict", key) for key, _ in self._rows[rows]]
            if budget[FAILOVER]:
                lost = [h for h in self.halves if state.before[h] != self.half(rows, h)]
                moves += [("failover", half) for half in lost]
            if budget[MOVE]:
                moves.append(("move",))
        return moves

    def take(self, state: State, choice: Choice) -> State:
        kind = choice[0]
        rows, before, db, acknowledged, epochs, moved, budget, nodes, inbox = state
        if kind == "evict":
            left = tuple(row for row in self._rows[rows] if row[0] != choice[1])
            return state._replace(rows=self.number(left), budget=spent(budget, EVICT))
        if kind == "failover":
            return self.fail_over(state, choice[1])
        if kind == "move":  # with all that was acknowledged: there is nothing to forget yet
            there = (self.half(rows, 0), *before[1:])
            return state._replace(before=there, moved=True, budget=spent(budget, MOVE))
        _, p, a, *rest = choice
        node = nodes[p]
        want: Want = node.wants[a]  # type: ignore[assignment]
        command = want.command
        mine = tuple(m for m in inbox if m[0] == p and m[1] == a) if inbox else ()
        if kind == "step":
            command = want.parts[rest[0]]
            if type(command) is Note:
                reply: Any = acknowledged
            elif type(command) is Write:
                reply = db = db + 1
            elif type(command) is Load:
                # In production it takes no arguments: see Process.call.
                database = Database(db)
                reply, db = Loaded(command.call.load(database)), database.version
            else:
                node = self._connected(node, command, epochs, moved)
                after, reply = self.perform(rows, command)
                rows, before = after, self.wrote(rows, after, before)
            if len(want.parts) > 1 or (node.shared and type(command) is not Note):
                inbox = tuple(sorted((*inbox, (p, a, rest[0], reply)), key=itemgetter(0, 1, 2)))
                if node.shared or len(mine) + 1 < len(want.parts):
                    nodes = (*nodes[:p], node, *nodes[p + 1 :])
                    return State(rows, before, db, acknowledged, epochs, moved, budget, nodes, inbox)
                mine = tuple(m for m in inbox if m[0] == p and m[1] == a)
                reply = merge(want.command, [m[3] for m in mine])
            node = self.follow(node, ("reply", a, reply))
        elif kind == "read":
            replies = [m[3] for m in mine]
            node = self.follow(
                node, ("reply", a, replies[0] if len(want.parts) == 1 else merge(command, replies))
            )
        elif kind == "wait" or kind == "wake":
            node = self.follow(node, ("reply", a, kind == "wait"))
        elif kind == "cancel":
            node, budget = self.follow(node, ("cancel", a)), spent(budget, CANCEL)
        elif kind == "lose":
            node = self._connected(node, command, epochs, moved)
            if rest[0]:
                after, _ = self.perform(rows, command)
                rows, before = after, self.wrote(rows, after, before)
            node, budget = self.follow(node, ("lose", a)), spent(budget, LOSE)
        else:
            node = self.follow(node, (kind, a))
            if kind == "die":
                budget = spent(budget, DIE)
        if mine:
            inbox = tuple(m for m in inbox if m[0] != p or m[1] != a)
        while (then := node.wants[a]) is not None and type(then.command) is Acknowledge:
            acknowledged = max(acknowledged, then.command.version)
            node = self.follow(node, ("reply", a, None))
        state = State(
            rows,
            before,
            db,
            acknowledged,
            epochs,
            moved,
            budget,
            (*nodes[:p], node, *nodes[p + 1 :]),
            inbox,
        )
        if type(command) is Note and then is not None and type(then.command) is Fetch and self.joins_notes:
            return self.take(state, ("step", p, a, 0))
        return state

    def _connected(self, node: Node, command: Any, epochs: tuple[int, ...], moved: bool) -> Node:
        """A new connection learns whose server it is before it carries anything."""
        server = 0
        if self.scenario.spread:
            for key in keys_of(command):
                server = server_of(key, moved)
                if server != 1 and moved != node.moved:
                    node = self.follow(node, ("move",))
        if node.seen[server] == epochs[server]:
            return node
        return self.follow(node, ("learn", server, epochs[server]))

    # -- going through them

    def exhaust(self, limit: int = 5_000_000) -> Report:
        """Visit every state, the nearest first; raises Violation with a shortest schedule."""
        came: dict[State, tuple[State, Choice] | None] = {self.start: None}
        queue = deque((self.start,))
        while queue:
            state = queue.popleft()
            choices = self.choices(state)
            if not choices:
                self._finished(state)
            for choice in choices:
                after = self.take(state, choice)
                if after in came:
                    self.report.schedules += 1
                    continue
                came[after] = (state, choice)
                if stale := self.wrong(after):
                    schedule: list[tuple[State, Choice]] = []
                    step = came[after]
                    while step is not None:
                        schedule.append(step)
                        step = came[step[0]]
                    raise Violation(self.told(schedule[::-1], stale))
                queue.append(after)
                assert len(came) < limit, "more states than expected"
        self.report.states = len(came)
        return self.report

    def wander(self, schedules: int, seed: int) -> Report:
        """Follow random schedules to their ends; raises Violation with the seed and the schedule."""
        pick = random.Random(seed)
        for _ in range(schedules):
            state, schedule = self.start, []
            while choices := self.choices(state):
                choice = choices[int(pick.random() * len(choices))]
                schedule.append((state, choice))
                state = self.take(state, choice)
                if stale := self.wrong(state):
                    raise Violation(f"seed {seed}\n" + self.told(schedule, stale))
            self._finished(state)
            self.report.states += len(schedule)
            if len(self._next) + len(self._performed) > 1_000_000:
                self.forget()
        return self.report

    def _finished(self, state: State) -> None:
        self.report.schedules += 1
        stuck = [want for node in state.nodes for want in node.wants if want is not None]
        assert not stuck, f"stuck: {stuck}"

    def told(self, schedule: list[tuple[State, Choice]], stale: str) -> str:
        """A schedule as a story."""
        return "\n".join([*(self._line(state, choice) for state, choice in schedule), f"{stale}"])

    def _line(self, state: State, choice: Choice) -> str:
        kind, *rest = choice
        if kind in ("evict", "failover", "move"):
            return " ".join(map(str, choice))
        want: Want = state.nodes[rest[0]].wants[rest[1]]  # type: ignore[assignment]
        after = self.take(state, choice)
        shown = ", ".join(f"{key}={words(raw)}" for key, (raw, _) in self._rows[after.rows])
        name, what = f"{want.name} {rest[0]}.{rest[1]}", type(want.command).__name__
        known = f"db={after.db} acknowledged={after.acknowledged}"
        return f"{name:12} {kind:8} {what:11} {known} | {shown}"


def incarnation_of(server: int, epoch: int) -> bytes:
    return bytes([16 * server + epoch + 1]) * 8


def spent(budget: Any, which: int) -> Any:
    return (*budget[:which], budget[which] - 1, *budget[which + 1 :])


def words(raw: bytes) -> str:
    """A row of the store, for people: what it is and whose."""
    slot = parse(raw)
    if type(slot) is Value:
        tokens = unpack_tags(slot.known + slot.late) or {}
        under = ", ".join(map(words, tokens.values()))
        return f"value {slot.payload.hex()} of {who(slot.nonce)} under ({under})"
    if type(slot) is Marker:
        return f"{'placeholder' if slot.kind == PLACEHOLDER else 'claim'} of {who(slot.nonce)}"
    if type(slot) is Held or is_hold(raw):
        listed = raw[len(SLOT_HELD if type(slot) is Held else TAG_HELD) :]
        return "held by " + " and ".join(who(name) for name, _ in holds(listed))
    if is_token(raw):
        return f"token of {who(raw[9:])}"
    return repr(raw)


def who(nonce: bytes) -> str:
    return f"{nonce[0] // 16 - 1}.{nonce[0] % 16}/{nonce[1]}.{nonce[2]}"
