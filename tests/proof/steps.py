"""What actors of a scenario do besides the production commands, and what a scenario is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from cacheaside.engine.commands import Begin, Begun, Claim, Fetch, Invalidate
from cacheaside.incarnation import FailoverMode
from cacheaside.journal import OWED
from cacheaside.policy import Policy, make_policy

if TYPE_CHECKING:
    from tests.proof.process import Process

KEY = "ns:key"
TTL = 100.0

Episode = Callable[["Process"], Generator[Any, Any, None]]


class Note(Struct, frozen=True):
    """What has been acknowledged? Reply: a version for everybody, and one for this process."""


class Write(Struct, frozen=True):
    """The database commits its next version. Reply: that version."""


class Acknowledge(Struct, frozen=True):
    """Who begins from here on must not see less than this version; ``own``: who begins in this process."""

    version: int
    own: bool = False


class Owing(Struct, frozen=True):
    """Wait until this process owes an invalidation. Reply: False when nothing else will happen."""


class Expire(Struct, frozen=True):
    """The holds of this name end by themselves."""

    name: bytes


class Stale(Exception):
    """A get was answered with less than what had been acknowledged when it began.

    ``own``: or less than what its own process has invalidated, which no failover excuses.
    """

    def __init__(self, words: str, *, own: bool) -> None:
        super().__init__(words)
        self.own = own


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
        channel: which processes have an L1 (or with ``witness`` only hear) and a line to the channel. They
            begin subscribed. What others announce arrives in order, some time.
        lines: servers that announce, each with half of the keys and tags: a process has a line to each.
        cuts: how often a line may break.
        beats: heartbeats that each process may send.
        ticks: how often time may go on by one; the window of L1 is ``window`` ticks.
        failover: the mode by which a process takes a new primary for the heir of the one before; without one
            it is just another server.
        forgets: how many of the last writes a failover may forget.
        owed: what the journal holds before it takes a pattern for it.
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
    channel: tuple[int, ...] = ()
    lines: int = 1
    cuts: int = 0
    beats: int = 0
    ticks: int = 0
    window: int = 1
    failover: FailoverMode | None = None
    forgets: int = 1
    owed: int = OWED
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
