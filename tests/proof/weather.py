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
            for s, sub in enumerate(line.subs):
                if sub.status == "on" and state.budget[CUT] and (sub.queue or line.flying or not done):
                    moves.append(("cut", p, s))
                elif sub.status == "asked":
                    moves.append(("admit", p, s))
                elif sub.status == "cut" and up and len(line.subs) == 1:
                    moves.append(("again", p, s))
            if line.cut_off and not up:
                moves.append(("subscribe", p))
            elif any(sub.status == "cut" for sub in line.subs):
                moves.append(("notice", p))
            if up and line.beats:
                moves.append(("beat", p))
            moves += [("carry", p, beat) for beat in line.flying]
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
            event = line.subs[rest[1]].queue[0]
            up, line = node.up, line.heard(rest[1])
            node = self.follow(node, (*event, float(state.now)))
            if event == ("confirmed",) and up and not node.up:
                self.report.covered.add("gap")
                line = line.left()  # it was not asked for: the process leaves its lines and takes others
        elif kind == "cut":
            line, budget = line.cut(rest[1]), spent(budget, CUT)
        elif kind == "notice":
            node, line = self.follow(node, ("broken",)), line.left()
        elif kind == "subscribe":
            node, line = self.follow(node, ("subscribing",)), line.asked()
        elif kind in ("admit", "again"):  # again: by the client itself, and the process knows nothing of it
            line = line.subscribed(rest[1], state.acknowledged)
        elif kind == "beat":
            for s in range(len(line.subs)):
                node = self.follow(node, ("beat", float(state.now), s))
                line = line._replace(flying=(*line.flying, (node.beat, s)))
            line = line._replace(beats=line.beats - 1)
        elif kind == "carry":
            name, s = rest[1]
            left = tuple(beat for beat in line.flying if beat != rest[1])
            line = line._replace(flying=left).published(s, "returned", name)
        elif kind == "ask":
            want = node.wants[rest[1]]
            assert want is not None
            asked = sorted({self.keys.bucket(tag) for tag in want.command.tags})
            node = self.follow(node, ("ask", rest[1], len(asked)))
            for s in asked:
                line = line.published(s, "returned", node.beat)
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
            news = (command.line, "announced", command.message)
            lines = tuple(line and line.published(*news) for line in lines)
        return rows, lines, reply
