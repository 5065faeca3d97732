"""What the store and the processes of a scenario answer, each computed once and remembered."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from cacheaside.engine.commands import Wait
from cacheaside.engine.read import peek
from cacheaside.entry import SLOT_HELD, TAG_HELD, Held, holds, is_hold, pack_holds, parse
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.embedded import EmbeddedStore
from tests.proof.channel import Piped, encoder, pipeline
from tests.proof.process import Actor, Process
from tests.proof.states import Node, Report, Want, hashable
from tests.proof.steps import Expire, Scenario, parts
from tests.proof.told import server_of

PARKED = 4000
"""Processes that are kept where they are, to go on from there."""
Rows = tuple[tuple[str, tuple[bytes, float]], ...]


class Answers:
    """Of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.report = Report()
        self.time = 0.0
        self.halves = (0, 1) if scenario.spread else (0,)
        self.encode, self.keys = encoder(scenario.lines), RawKeys("p", scenario.lines)
        self.owes = any(name == "recovery" for crew in scenario.processes for name, _ in crew)
        self.store = EmbeddedStore(2**30, lambda: 0.0)
        # With an L1, what a get does between its note and its first command is others' business too.
        self._parked: OrderedDict[int, Process] = OrderedDict()
        self.joins_notes = not (scenario.l1 or scenario.witness or scenario.cluster or scenario.channel)
        self.forget()

    def forget(self) -> None:
        """Drop all that was computed before; long random runs do so now and then."""
        self._clear()
        self._rows: list[Rows] = []
        self._numbers: dict[Rows, int] = {}
        self._performed: dict[tuple[int, Any], tuple[int, Any]] = {}
        self._nodes: dict[Any, Node] = {}
        self._next: dict[tuple[Any, ...], Node] = {}
        self._alone: set[tuple[Any, ...]] = set()
        self._stored: dict[Any, Any] = {}
        self.start = self._start()

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
                reply = hashable(reply)
            after = self.number(tuple(sorted(store.items())))
            known = self._performed[rows, command] = (after, reply)
        return known

    def follow(self, node: Node, event: tuple[Any, ...]) -> Node:
        """The state of a process after an event: the parked process goes on, or one runs again to there."""
        at = (id(node), *event)
        known = self._next.get(at)
        if known is None:
            process = self._parked.pop(id(node), None)
            if process is None:
                process = Process(self.scenario, node.index, self.scenario.clock)
                for earlier in node.path():
                    process.happen(earlier)
            process.happen(event)
            if not process.touched:
                self._alone.add(at)
            known = self._node(process, node.index, node, event)
            if known.kept is None and not known.stale and not any(known.wants):
                known = self.over[node.index]
            self._next[at] = known
            self.report.answers += 1
        return known

    def _park(self, node: Node, process: Process) -> None:
        """Whoever follows this node first goes on with this process."""
        if self._parked.setdefault(id(node), process) is not process:
            process.end()
        elif len(self._parked) > PARKED:
            self._parked.popitem(last=False)[1].end()

    def _clear(self) -> None:
        while self._parked:
            self._parked.popitem()[1].end()

    def _private(self, node: Node, actor: int, reply: Any) -> bool:
        """Whether reading this reply concerns nobody else, so that it may as well be read at once."""
        if self.scenario.cancels or self.scenario.impatient or self.scenario.failovers:
            return False
        self.follow(node, ("reply", actor, reply))
        return (id(node), "reply", actor, reply) in self._alone

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
                process.l1_version(), process.stale, process.owing, process.up, process.horizon,
                process.beat_name,
            )  # fmt: skip
        self.report.covered.update(n for n, count in process.site.counts.snapshot().items() if count)
        self.report.covered.update(process.happened)
        self._park(node, process)
        return node

    def _want(self, actor: Actor) -> Want | None:
        command = actor.command
        if command is None or actor.dead:
            return None
        split = (command,)
        if self.scenario.channel:
            split = pipeline(self.encode, command)
        if self.scenario.cluster and type(split[0]) is not Piped:
            split = parts(command)
        landed = type(command) is Wait and command.flight.done.done()
        if actor.proof is not None:
            landed = actor.proof[1].done()
        return Want(
            actor.name, command, split, actor.proof is not None, landed, actor.polled, bool(actor.told)
        )

    def half(self, rows: int, half: int) -> int:
        """What the values' server holds, or that of the tags; on one server it is the same."""
        if not self.scenario.spread:
            return rows
        kept = tuple(row for row in self._rows[rows] if (server_of(row[0], False) == 1) == bool(half))
        return self.number(kept)

    def stored(self, rows: int, epochs: tuple[int, ...], moved: bool) -> int | None:
        """What a get from nowhere would be answered with if it is a hit."""
        known = self._stored.get((rows, epochs, moved), self)
        if known is self:
            process = Process(self.scenario, -1, self.scenario.clock)
            process.moved = moved
            process.learn_all(epochs, past=True)
            flow = peek(process.site, process.call(), None)
            command = next(flow)
            try:
                while True:
                    command = flow.send(self.perform(rows, command)[1])
            except StopIteration as stop:
                known = self._stored[rows, epochs, moved] = stop.value
        return known
