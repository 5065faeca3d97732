"""What happens to the lines of a scenario, and to time; and what an L1 beside Redis must not hold."""

from __future__ import annotations

from typing import Any

from tests.proof.answers import Answers
from tests.proof.channel import Piped
from tests.proof.states import CUT, Choice, Lines, State, spent, written


class Weather(Answers):
    """The lines of one scenario."""

    def incoherent(self, state: State, p: int, kept: int) -> str:
        """The broken promise of an L1 beside Redis, if any.

        It never holds less than what its process has been told of; and while it is believed, no less than
        what had been acknowledged a window ago, whatever its process has been told.
        """
        node, line = state.nodes[p], state.lines[p]
        assert line is not None
        believed = state.now < node.horizon
        if believed:
            self.report.covered.add("l1")
            if kept < state.acknowledged:
                self.report.covered.add("l1_behind")
        if node.up and kept < line.least:
            return f"L1 of {p} holds {kept}, and {line.least} has been heard of"
        if believed and kept < state.then[0]:
            return f"L1 of {p} is believed and holds {kept}, {state.then[0]} was acknowledged a window ago"
        return ""

    def _weather(self, state: State) -> list[Choice]:
        """What may happen to the lines, and to time."""
        moves: list[Choice] = []
        done = written(state)
        for p, line in enumerate(state.lines):
            if line is None:
                continue
            up = state.nodes[p].up
            if line.status == "on" and state.budget[CUT] and (line.queue or line.flying or not done):
                moves.append(("cut", p))
            elif line.status == "asked":
                moves.append(("admit", p))
            elif line.status == "cut":
                moves += [("notice", p), ("again", p)] if up else [("subscribe", p)]
            if up and line.beats:
                moves.append(("beat", p))
            moves += [("carry", p, name) for name in line.flying]
        if state.now < self.scenario.ticks:
            moves.append(("tick",))
        return moves

    def _happen(self, state: State, kind: str, *rest: Any) -> State:
        """Take a step of the lines or of time."""
        self.report.covered.add(kind)
        if kind == "tick":
            return state._replace(now=state.now + 1, then=(*state.then[1:], state.then[-1]))
        p, *_ = rest
        node, line, budget = state.nodes[p], state.lines[p], state.budget
        assert line is not None
        if kind == "hear":
            event, _ = line.queue[0]
            node, line = self.follow(node, (*event, float(state.now))), line.heard()
            if event == ("confirmed",) and not node.up:
                self.report.covered.add("gap")
                line = line.cut()  # it was not asked for: the process leaves this line and takes another
        elif kind == "cut":
            line, budget = line.cut(), spent(budget, CUT)
        elif kind == "notice":
            node = self.follow(node, ("broken",))
        elif kind == "subscribe":
            node, line = self.follow(node, ("subscribing",)), line._replace(status="asked")
        elif kind in ("admit", "again"):  # again: by the client itself, and the process knows nothing of it
            line = line.subscribed(state.acknowledged)
        elif kind == "beat":
            node = self.follow(node, ("beat", float(state.now)))
            line = line._replace(flying=(*line.flying, node.beat), beats=line.beats - 1)
        elif kind == "carry":
            left = tuple(name for name in line.flying if name != rest[1])
            line = line._replace(flying=left).published("returned", rest[1])
        elif kind == "ask":
            node = self.follow(node, ("ask", rest[1]))
            line = line.published("returned", node.beat)
        after = state._replace(
            nodes=(*state.nodes[:p], node, *state.nodes[p + 1 :]),
            lines=(*state.lines[:p], line, *state.lines[p + 1 :]),
            budget=budget,
        )
        return self._without_idle_lines(after)

    def _without_idle_lines(self, state: State) -> State:
        """Nothing matters any more to a process that does nothing and whose L1 holds nothing that may age."""
        done = written(state)
        nodes, lines = list(state.nodes), list(state.lines)
        for p, (node, line) in enumerate(zip(state.nodes, state.lines, strict=True)):
            if line is None or any(node.wants) or node.stale:
                continue
            if node.kept is None or (done and node.kept == state.db):
                nodes[p], lines[p] = self.over[p], None
        return state._replace(nodes=tuple(nodes), lines=tuple(lines))

    def _serve(self, rows: int, lines: Lines, command: Any) -> tuple[int, Lines, Any]:
        """What the store holds after a command, or a part of one, what is on the lines, and its reply."""
        if type(command) is not Piped:
            return (after := self.perform(rows, command))[0], lines, after[1]
        reply = None
        if command.command is not None:
            rows, reply = self.perform(rows, command.command)
        if command.message:
            lines = tuple(line and line.published("announced", command.message) for line in lines)
        return rows, lines, reply
