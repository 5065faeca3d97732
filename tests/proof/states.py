"""States of the exploration: of a process, and of everything at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec import Struct

from cacheaside.engine.commands import Load, Sleep, Wait
from tests.proof.channel import Line, Piped
from tests.proof.steps import merge

Choice = tuple[Any, ...]
Lines = tuple[Line | None, ...]
EVICT, FAILOVER, CANCEL, DIE, LOSE, MOVE, CUT = range(7)


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
    owing: bool
    """Whether it owes an invalidation."""
    up: bool
    """Whether it believes to be on its line."""
    horizon: float
    beat: bytes
    """The name of the heartbeat that it has sent last."""

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
    asked: bool
    """Whether the proof that it wants has been asked for."""
    landed: bool
    polled: tuple[tuple[Any, Any], ...]
    begun: bool

    def asks(self) -> Any:
        """What two actors who were told the same must agree on."""
        kind = type(self.command)
        return (kind, kind in (Load, Wait, Sleep) or self.command, self.asked, self.landed, self.polled)


class State(NamedTuple):
    """Everything at one moment; ``rows`` and ``before`` are numbers of contents of the store.

    ``before`` is what a failover could bring back, newest first: of the values (and all there is, on one
    server), of the tags. ``epochs`` are those of the servers, ``moved`` whether the values' slot has moved.
    """

    rows: int
    before: tuple[tuple[int, ...], ...]
    db: int
    acknowledged: int
    epochs: tuple[int, ...]
    moved: bool
    budget: tuple[int, ...]
    nodes: tuple[Node, ...]
    inbox: tuple[tuple[int, int, int, Any], ...]
    """Replies that have not been read: process, actor, part of the command, reply."""
    own: tuple[int, ...] = ()
    """What nobody may see less of who begins in each process."""
    lines: Lines = ()
    now: int = 0
    then: tuple[int, ...] = ()
    """What had been acknowledged when each of the ticks ended that a window is long, and by now."""


@dataclass
class Report:
    states: int = 0
    schedules: int = 0
    answers: int = 0
    covered: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.states} states, {self.schedules} schedules, {self.answers} computed answers"


def written(state: State) -> bool:
    """Whether nobody is left who writes or invalidates."""
    return not any(want and want.name != "reader" for node in state.nodes for want in node.wants)


def merged(want: Want, mine: tuple[tuple[int, int, int, Any], ...]) -> Any:
    """The reply to a command from the replies to its parts."""
    replies = [reply for _, _, _, reply in mine]
    if len(replies) == 1:
        return replies[0]
    if type(want.parts[0]) is Piped:
        return next((reply for reply in replies if reply is not None), None)
    return merge(want.command, replies)


def hashable(reply: Any) -> Any:
    return tuple(map(hashable, reply)) if type(reply) in (list, tuple) else reply


def spent(budget: Any, which: int) -> Any:
    return (*budget[:which], budget[which] - 1, *budget[which + 1 :])
