"""One process of a scenario, its actors, and all that can happen to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

from cacheaside.codecs import codec_for
from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import Expect, Fetch, Lock, Sleep, Spawn, Wait
from cacheaside.errors import StoreUnavailable
from cacheaside.facts import ServerFacts
from cacheaside.link import Link
from cacheaside.listener import Listener
from cacheaside.urls import parse_url
from tests.proof.steps import KEY, Database, Dropped, Episode, Note, Scenario, Stale, Write
from tests.proof.told import SpreadWorld, ToldJournal, ToldNames, ToldNear, Unheard, dead, state_of, world_of

CODEC = codec_for(int)
NOWHERE = parse_url("redis://nowhere")


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
        self.proof: tuple[str, Future[bool]] | None = None
        """The heartbeat that is to prove late tags, and what becomes of it."""
        self.sinces: list[int] = []
        """What the L1 had counted when reads began whose results are still to settle."""
        self.changes: set[int] = set()
        """What the journal had counted when something began that it will be asked about."""
        self.polled: tuple[tuple[Any, Any], ...] = ()
        self.dead = False
        self.excused = False
        """Whether, since his episode began, a server was promoted that may have forgotten something."""

    def summary(self, near: ToldNear | None, journal: ToldJournal) -> Any:
        if self.command is None or self.dead:
            return None
        waited_for = state_of(self.command.flight, near) if type(self.command) is Wait else None
        asked = self.proof and (self.proof[0], self.proof[1].result() if self.proof[1].done() else None)
        counted = (near and tuple(map(near.since, self.sinces)), tuple(map(journal.since, self.changes)))
        return (self.at, repr(self.told), waited_for, asked, counted, self.excused)


class Process:
    """One process of a scenario: a world, a call site, actors. Runs forward only."""

    def __init__(self, scenario: Scenario, index: int, clock: float) -> None:
        self.scenario = scenario
        self.clock = clock
        self.stale = ""
        self.touched = False
        """Whether the last event has read or written anything that others in this process know of."""
        self.happened: set[str] = set()
        self.last_nonce = self.beat_name = b""
        self.seen: tuple[int, ...] = (-1, -1, -1)
        """The epoch of each server that the process has seen last; none yet."""
        self.moved = False
        self.owed = 0
        """The newest version whose invalidation has been tried here."""
        self.first = 16 * (index + 1)
        crew = scenario.processes[index] if index >= 0 else (("before", scenario.before),)
        self.actors = [Actor(self.first + i, name, episodes) for i, (name, episodes) in enumerate(crew)]
        self.turn = self.actors[0]
        self.world = world_of(self)
        self.link: Link | None = None
        if scenario.failover:
            self.link = Link(NOWHERE, self.world, scenario.failover, Unheard(None), 0)
            self.world.journal.wake = lambda: None
            self.world.met_stranger = lambda _: None
        listens = index in scenario.channel
        heard = (
            ToldNear(self) if scenario.l1 or listens or (scenario.witness and not scenario.channel) else None
        )
        self.near = heard if scenario.l1 or (listens and not scenario.witness) else None
        self.heard = heard
        self.listener: Listener | None = None
        if listens and heard is not None:
            heard.horizon = 0.0
            self.listener = Listener(heard, scenario.window)
            self.subscribing()
            for _ in range(scenario.lines):
                self.confirmed()
        self.shared = len(crew) > 1 or heard is not None
        self.site = Site(self.world, scenario.options, CODEC, self.near, heard)
        self.site.late_names = ToldNames(self)
        for actor in self.actors:
            self._next_episode(actor)

    def call(self, load: Callable[..., Any] = Database.select, key: str = KEY, **more: Any) -> Call:
        """A call of the one function; the scheduler hands the database to its loader."""
        late = self.scenario.late
        return Call(key, self.scenario.tags, load, (lambda _: late) if late else None, **more)

    def touch(self) -> None:
        """Something was read or written that all actors share."""
        if len(self.actors) > 1:
            self.touched = True

    def tell(self, answer: Any) -> Any:
        """Put on record what the actor whose turn it is was told."""
        self.turn.told.append(answer)
        return answer

    def time(self) -> float:
        return self.tell(self.clock)

    def happen(self, event: tuple[Any, ...]) -> None:
        self.touched, self.beat_name = False, b""
        getattr(self, event[0])(*event[1:])

    # -- what can happen to an actor

    def reply(self, number: int, answer: Any) -> None:
        actor = self.actors[number]
        command = actor.command
        if type(command) in (Fetch, Lock):
            actor.polled += ((command, answer),)
        elif type(command) is Sleep:
            actor.polled = ()
        if type(command) is Wait:
            actor.told.append((answer, state_of(command.flight, self.heard)))
            if command.flight.done.done():
                actor.sinces.append(command.flight.landed.since)
        else:
            actor.told.append(answer)
        if actor.proof is not None:
            self.listener.forget(actor.proof[0])  # type: ignore[union-attr]
            actor.proof = None
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
        flight = state_of(command.flight, self.heard) if type(command) is Wait else None
        actor.told.append((type(error).__name__, flight, self.world.flights.summary()))
        self._advance(actor, lambda flow: flow.throw(error))

    def die(self, number: int) -> None:
        self.actors[number].dead = True

    def fail_over(self) -> None:
        for actor in self.actors:
            actor.excused = type(actor.command) is not Note

    def learn(self, server: int, epoch: int) -> None:
        self.seen = (*self.seen[:server], epoch, *self.seen[server + 1 :])
        if self.link is not None:
            self.link.learn(facts_of(epoch))
            return
        incarnation = incarnation_of(server, epoch)
        if isinstance(self.world, SpreadWorld):
            self.world.learn_server(server, incarnation)
        else:
            self.world.learn_incarnation(incarnation)

    def learn_all(self, epochs: tuple[int, ...], *, past: bool = False) -> None:
        """Meet each server; ``past``: and those that were there before it, one after the other."""
        for server, epoch in enumerate(epochs if self.scenario.spread else epochs[:1]):
            for one in range(0 if past else max(0, epoch), epoch + 1):
                self.learn(server, one)

    def move(self) -> None:
        """Told MOVED: the values are on the other server."""
        self.moved = True

    # -- what comes over the line

    def subscribing(self) -> None:
        lines = self.scenario.lines
        self.listener.subscribing(2 * lines, lines)  # type: ignore[union-attr]

    def confirmed(self, now: float = 0.0) -> None:
        """Both channels, in one go: the server has taken both at once."""
        if not (self.listener.confirmed() and self.listener.confirmed()):  # type: ignore[union-attr]
            self.listener.broken()  # type: ignore[union-attr]

    def announced(self, data: bytes, now: float) -> None:
        self.listener.announced(data)  # type: ignore[union-attr]

    def returned(self, name: bytes, now: float) -> None:
        self.listener.returned(name)  # type: ignore[union-attr]

    def broken(self) -> None:
        self.listener.broken()  # type: ignore[union-attr]

    def beat(self, now: float, line: int) -> None:
        self.beat_name = self.listener.beat(now, line)  # type: ignore[union-attr]

    def ask(self, number: int, lines: int) -> None:
        """Expect a heartbeat that proves late tags."""
        actor = self.actors[number]
        actor.nonces += 1
        name = f"{actor.number}.{actor.at}.{actor.nonces}"
        actor.proof = name, self.listener.expect(name, lines)  # type: ignore[union-attr]
        self.beat_name = name.encode()

    def proof(self, number: int) -> None:
        """Read what has become of it."""
        self.reply(number, self.actors[number].proof[1].result(0))  # type: ignore[index]

    # --

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
        if self.owed or any(map(any, self.world.journal.summary())):  # type: ignore[attr-defined]
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
            if actor.excused and not stale.own:
                self._next_episode(actor)
            else:
                actor.command = None
                self.stale = f"{actor.name} {stale}"
        except (StopIteration, asyncio.CancelledError):
            self._next_episode(actor)

    def _spawn(self, command: Spawn) -> None:
        number = len(self.actors)
        actor = Actor(self.first + number, f"spawned {number}", ())
        self.actors.append(actor)
        turn, actor.flow, actor.at = self.turn, command.flow, 0
        actor.sinces, actor.changes = list(turn.sinces), set(turn.changes)
        actor.told.append((turn.number, turn.at, *turn.told))  # what the flow was made from
        self._advance(actor, next)
        self.turn = turn

    def _next_episode(self, actor: Actor) -> None:
        actor.at += 1
        self.turn = actor
        actor.excused = False
        actor.nonces, actor.told, actor.polled, actor.sinces, actor.changes = 0, [], (), [], set()
        if actor.at >= len(actor.episodes):
            actor.flow = actor.command = None
        else:
            actor.flow = actor.episodes[actor.at](self)
            actor.command = next(actor.flow)

    def summary(self) -> Any:
        near = self.heard.summary() if self.heard is not None else None
        return (
            tuple(actor.summary(self.heard, self.world.journal) for actor in self.actors),  # type: ignore[arg-type]
            self.world.journal.summary(),  # type: ignore[attr-defined]
            self.owed,
            self.world.flights.summary(),  # type: ignore[attr-defined]
            near,
            self.hears(),
            tuple(self.site.late_names.items()),
            self.seen,
            self.moved,
            self.clock,
            self.stale,
        )

    @property
    def owing(self) -> bool:
        return self.world.journal.kept.owing  # type: ignore[attr-defined]

    @property
    def up(self) -> bool:
        return self.listener is not None and self.listener.up

    @property
    def horizon(self) -> float:
        return self.heard.horizon if self.heard is not None else 0.0

    def hears(self) -> Any:
        """All that the listener will go by."""
        one = self.listener
        if one is None or self.heard is None:
            return None
        heartbeats = (one._beats, *one._sent.items(), *one._newest, self.heard.horizon, self.beat_name)
        proofs = [(name, lines) for name, (_, lines) in one._proofs.items()]
        return (one.up, one._unconfirmed, one.epoch, *heartbeats, *proofs)

    def l1_version(self) -> int | None:
        """What a hit in L1 would be answered with, beside Redis as long as that is believed."""
        if self.near is None:
            return None
        if self.listener is None:
            entry = self.near.get(KEY, self.clock)
        else:
            entry = self.near.entries.get(KEY)
        return None if entry is None or dead(entry) else entry.value

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


def facts_of(epoch: int) -> ServerFacts:
    """A primary, and after each failover the replica that was promoted."""
    before = f"history {epoch - 1}" if epoch else ""
    return ServerFacts(run_id=f"server {epoch}", replid=f"history {epoch}", replid2=before, uptime=1e9)


def incarnation_of(server: int, epoch: int) -> bytes:
    return bytes([16 * server + epoch + 1]) * 8
