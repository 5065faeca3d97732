"""Every interleaving of the production flows over the production store.

A *scenario* is a few processes with a few actors each. An actor plays *episodes*, one after the other:
generators that run a production flow (a read, an invalidation, a put) and yield its commands. Each
command is one atomic step of the one ``EmbeddedStore``, taken when the scheduler picks that actor; a
load reads the version of the "database", an integer, as a step of its own. Besides there may be budgets
of mishaps: evictions of any key, lost answers, cancelled calls, deaths, failovers that forget the last
writes, lines that break. A get notes the version acknowledged before it began (``Note``) and is *stale*
if it answers less.

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
and belongs to the step before. Where actors share flights or an L1, receiving a reply is its own step, if
it makes the actor read or write what they share: else it can be told apart from nothing that others do.
A note is taken with the first command, an acknowledgement at once: later and sooner demand the most. A
waiter may give up at any time if ``impatient``, else when nobody else can move; who polls looks again
when it would be told something new, since else it is where it was.

**Lines.** A process that listens to the channel has a line, or one to each server: what is published waits
there, in order, until it is heard. A line may break; the process notices it some time, or the client has
subscribed again behind its back. Heartbeats take their time, and time goes on in ticks. What L1 would
answer is checked in every state. A process that does nothing, and whose L1 holds nothing that may age, hears
no more.
"""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from cacheaside.engine.commands import Confirm, Fetch, Load, Loaded, Sleep, Wait
from cacheaside.testing.chaos import keys_of
from tests.proof.channel import Line, Piped, Sub, told
from tests.proof.process import Process
from tests.proof.states import (
    CANCEL,
    DIE,
    EVICT,
    FAILOVER,
    LOSE,
    MOVE,
    Choice,
    Node,
    Report,
    State,
    Want,
    merged,
    spent,
)
from tests.proof.steps import Acknowledge, Database, Expire, Note, Owing, Write
from tests.proof.told import server_of
from tests.proof.weather import Weather
from tests.proof.words import words

OURS = (Note, Write, Acknowledge, Owing, Load, Expire)
ACTS = {"step", "read", "wait", "wake", "rest", "proof", "cancel", "lose", "time_out", "die"}


class Violation(Exception):
    """A stale answer, with the schedule that leads to it."""


class Explorer(Weather):
    """The schedules of one scenario."""

    def _start(self) -> State:
        rows = self.number(())
        if self.scenario.before:
            process = Process(self.scenario, -1, 0.0)
            process.learn_all((0, 0, 0))
            (actor,) = process.actors
            while actor.command is not None:
                if type(actor.command) is Note:
                    process.reply(0, (0, 0))
                elif type(actor.command) is Load:
                    process.reply(0, Loaded(0))
                else:
                    rows, reply = self.perform(rows, actor.command)
                    process.reply(0, reply)
        s = self.scenario
        crews = range(len(s.processes))
        self.origins = tuple(self._node(Process(s, i, s.clock), i, None, ()) for i in crews)
        budget = (s.evictions, s.failovers, s.cancels, s.deaths, s.losses, s.moves, s.cuts)
        before = ((),) * len(self.halves) if s.failovers else ()
        self.over = tuple(
            Node(i, None, (), (), False, (), False, None, "", False, False, 0.0, b"") for i in crews
        )
        state = State(rows, before, 0, 0, (0, 0, 0), False, budget, self.origins, (), (0,) * len(crews))
        if not s.channel:
            return state
        line = Line((Sub("on"),) * s.lines, (), 0, (), s.beats)
        lines = tuple(line if i in s.channel else None for i in range(len(s.processes)))
        return state._replace(lines=lines, then=(0,) * (s.window + 1))

    def wrote(
        self, rows: int, after: int, before: tuple[tuple[int, ...], ...]
    ) -> tuple[tuple[int, ...], ...]:
        """What a failover could bring back, after a step from ``rows`` to ``after``."""
        if rows == after:
            return before
        halves = ((self.half(rows, half), self.half(after, half)) for half in self.halves)
        most = self.scenario.forgets
        return tuple(
            (was, *past)[:most] if was != now else past
            for (was, now), past in zip(halves, before, strict=True)
        )

    def fail_over(self, state: State, half: int, forgotten: int) -> State:
        """The server of this half forgets its last writes, so many, and is another one from now on."""
        rows = self._rows[state.before[half][forgotten - 1]]
        if self.scenario.spread:
            rows = tuple(sorted((*rows, *self._rows[self.half(state.rows, 1 - half)])))
        server = 1 if half else server_of("", state.moved)
        epochs = tuple(e + (s == server) for s, e in enumerate(state.epochs))
        budget = spent(state.budget, FAILOVER)
        before = ((),) * len(self.halves) if budget[FAILOVER] else ()
        lines = tuple(line and line.left() for line in state.lines)
        state = state._replace(
            rows=self.number(rows), before=before, epochs=epochs, budget=budget, lines=lines
        )
        if self.scenario.failover:  # until who has invalidated it does so again, nobody else can know
            nodes = tuple(
                self.follow(node, ("fail_over",)) if any(node.wants) else node for node in state.nodes
            )
            lines = tuple(line and line._replace(least=o) for line, o in zip(lines, state.own, strict=False))
            then = (0,) * len(state.then)
            state = state._replace(acknowledged=0, nodes=nodes, lines=lines, then=then)
        return state

    def wrong(self, state: State) -> str:
        """The broken promise in this state, if any: given, or waiting for whoever asks next."""
        for p, node in enumerate(state.nodes):
            if node.stale:
                return node.stale
            if node.kept is None:
                continue
            if state.lines:
                if said := self.incoherent(state, p, node.kept):
                    return said
            elif node.kept < (least := max(state.acknowledged, state.own[p])):
                return f"L1 holds {node.kept}, {least} is acknowledged"
        least = state.acknowledged
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
                elif kind is Confirm and state.lines and state.lines[p] is not None:
                    if not want.asked:
                        moves.append(("ask", p, a))
                    else:
                        (moves if want.landed else later).append(
                            ("proof" if want.landed else "time_out", p, a)
                        )
                elif kind is Owing:
                    (moves if node.owing else later).append(("wake" if node.owing else "rest", p, a))
                elif kind is Sleep:
                    news = not want.polled or any(
                        self.perform(rows, command)[1] != reply for command, reply in want.polled
                    )
                    (moves if news else later).append(("wake" if news else "time_out", p, a))
                else:
                    in_order = type(want.parts[0]) is Piped
                    open_parts = (len(done),) if in_order else range(len(want.parts))
                    moves += [("step", p, a, part) for part in open_parts if part not in done]
                    if budget[LOSE] and kind not in OURS:
                        moves += [("lose", p, a, False), ("lose", p, a, True)]
        for p, line in enumerate(state.lines):
            moves += [("hear", p, s) for s, sub in enumerate(line.subs) if sub.queue] if line else []
        if not moves or self.scenario.impatient:
            moves += later
        if moves:
            if budget[EVICT]:
                moves += [("evict", key) for key, _ in self._rows[rows]]
            if budget[FAILOVER]:
                for half in self.halves:
                    now = self.half(rows, half)
                    past = enumerate(state.before[half], 1)
                    moves += [("failover", half, forgotten) for forgotten, was in past if was != now]
            if budget[MOVE]:
                moves.append(("move",))
        if state.lines:
            moves += self._weather(state)
        return moves

    def take(self, state: State, choice: Choice) -> State:
        kind, *rest = choice
        if kind in ACTS:
            return self._act(state, kind, *rest)
        budget = state.budget
        if kind == "evict":
            left = tuple(row for row in self._rows[state.rows] if row[0] != choice[1])
            return state._replace(rows=self.number(left), budget=spent(budget, EVICT))
        if kind == "failover":
            return self.fail_over(state, *rest)
        if kind == "move":  # with all that was acknowledged: there is nothing to forget yet
            there = ((), *state.before[1:]) if budget[FAILOVER] else ()
            return state._replace(before=there, moved=True, budget=spent(budget, MOVE))
        return self._happen(state, kind, *rest)

    def _act(self, state: State, kind: str, p: int, a: int, *rest: Any) -> State:
        """Take a step of an actor."""
        rows, before, db, acknowledged, epochs, moved, budget, nodes, inbox, own, lines, now, past = state
        node = nodes[p]
        want: Want = node.wants[a]  # type: ignore[assignment]
        command = want.command
        mine = tuple(m for m in inbox if m[0] == p and m[1] == a) if inbox else ()
        if kind == "step":
            command = want.parts[rest[0]]
            if type(command) is Note:
                reply: Any = (acknowledged, own[p])
            elif type(command) is Write:
                reply = db = db + 1
            elif type(command) is Load:
                # In production it takes no arguments: see Process.call.
                database = Database(db)
                reply, db = Loaded(command.call.load(database)), database.version
            else:
                node = self._connected(node, command, epochs, moved)
                after, lines, reply = self._serve(rows, lines, command)
                rows, before = after, self.wrote(rows, after, before) if budget[FAILOVER] else ()
            if len(want.parts) > 1 or (node.shared and type(command) is not Note):
                inbox = tuple(sorted((*inbox, (p, a, rest[0], reply)), key=itemgetter(0, 1, 2)))
                mine = tuple(m for m in inbox if m[0] == p and m[1] == a)
                complete = len(mine) == len(want.parts)
                if complete:
                    reply = merged(want, mine)
                if not complete or (node.shared and not self._private(node, a, reply)):
                    nodes = (*nodes[:p], node, *nodes[p + 1 :])
                    return State(
                        rows,
                        before,
                        db,
                        acknowledged,
                        epochs,
                        moved,
                        budget,
                        nodes,
                        inbox,
                        own,
                        lines,
                        now,
                        past,
                    )
            node = self.follow(node, ("reply", a, reply))
        elif kind == "read":
            node = self.follow(node, ("reply", a, merged(want, mine)))
        elif kind in ("wait", "wake", "rest"):
            node = self.follow(
                node, ("reply", a, kind == "wait" or (kind == "wake" and type(command) is Owing))
            )
        elif kind == "cancel":
            node, budget = self.follow(node, ("cancel", a)), spent(budget, CANCEL)
        elif kind == "lose":
            node = self._connected(node, command, epochs, moved)
            for part in want.parts[len(mine) :] if rest[0] else ():
                after, lines, _ = self._serve(rows, lines, part)
                rows, before = after, self.wrote(rows, after, before) if budget[FAILOVER] else ()
            node, budget = self.follow(node, ("lose", a)), spent(budget, LOSE)
        else:
            node = self.follow(node, (kind, a))
            if kind == "die":
                budget = spent(budget, DIE)
        if mine:
            inbox = tuple(m for m in inbox if m[0] != p or m[1] != a)
        while (then := node.wants[a] if node.wants else None) and type(then.command) is Acknowledge:
            version, only = then.command.version, then.command.own
            if self.scenario.failover and (node.owing or node.seen[0] != epochs[0]):
                only = True  # it was a server of before that has confirmed it
            node = self.follow(node, ("reply", a, None))
            if self.owes:
                own = (*own[:p], max(own[p], version), *own[p + 1 :])
            if not only:
                acknowledged = max(acknowledged, version)
            if lines:
                past = (*past[:-1], acknowledged)
                lines = tuple(
                    line.acknowledged(version, own=q == p) if line and (q == p or not only) else line
                    for q, line in enumerate(lines)
                )
        nodes = (*nodes[:p], node, *nodes[p + 1 :])
        state = State(
            rows, before, db, acknowledged, epochs, moved, budget, nodes, inbox, own, lines, now, past
        )
        if type(command) is Note and then is not None and type(then.command) is Fetch and self.joins_notes:
            return self.take(state, ("step", p, a, 0))
        return self._without_idle_lines(state) if lines else state

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
        with self._exploring():
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
        with self._exploring():
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

    @contextmanager
    def _exploring(self) -> Generator[None]:
        """With fewer rounds of the garbage collector, for nearly all there is here stays."""
        rounds = gc.get_threshold()
        gc.set_threshold(20_000, 20, 100)
        try:
            yield
        finally:
            gc.set_threshold(*rounds)
            self._clear()

    def _finished(self, state: State) -> None:
        self.report.schedules += 1
        stuck = [want for node in state.nodes for want in node.wants if want is not None]
        assert not stuck, f"stuck: {stuck}"

    def told(self, schedule: list[tuple[State, Choice]], stale: str) -> str:
        """A schedule as a story."""
        return "\n".join([*(self._line(state, choice) for state, choice in schedule), f"{stale}"])

    def _line(self, state: State, choice: Choice) -> str:
        kind, *rest = choice
        if kind in ("evict", "failover", "move", "tick"):
            return " ".join(map(str, choice))
        if kind not in ACTS:
            before, line = state.lines[rest[0]], self.take(state, choice).lines[rest[0]]
            assert before is not None
            what = told(before.subs[rest[1]].queue[0]) if kind == "hear" else ""
            there = (
                "; ".join(f"{sub.status}: {', '.join(map(told, sub.queue))}" for sub in line.subs)
                if line
                else ""
            )
            return f"{f'lines of {rest[0]}':12} {kind:8} {what:11} | {there}"
        want: Want = state.nodes[rest[0]].wants[rest[1]]  # type: ignore[assignment]
        after = self.take(state, choice)
        shown = ", ".join(f"{key}={words(raw)}" for key, (raw, _) in self._rows[after.rows])
        name, what = f"{want.name} {rest[0]}.{rest[1]}", type(want.command).__name__
        known = f"db={after.db} acknowledged={after.acknowledged}"
        return f"{name:12} {kind:8} {what:11} {known} | {shown}"
