"""The coherence channel between the processes of a scenario: what goes over each line, in which order.

What is published is what ``encoding.py`` has for a command: a call that publishes does so in one step with
what else it does, and the calls of a pipeline are steps of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from cacheaside.engine.commands import Announce, Claim, Commit, Invalidate
from cacheaside.keys import RawKeys
from cacheaside.stores.announcements import read_announcement
from cacheaside.stores.encoding import Encoder, script


class Piped(Struct, frozen=True):
    """One call of a pipeline: what it does to the store, if anything, and what it publishes, if anything."""

    command: Any
    message: bytes


def encoder() -> Encoder:
    """What says things to a single server."""
    return Encoder(RawKeys("p"), lambda: False, 0)


def pipeline(encode: Encoder, command: Any) -> tuple[Any, ...]:
    """The steps that a command is for the server, in order; what comes before one that publishes is one."""
    if type(command) not in (Announce, Claim, Commit, Invalidate):
        return (command,)
    steps: list[Piped] = []
    silent: list[str] = []
    calls, _ = encode(command)
    for call in calls:
        keys, message = anatomy(call)
        if not message:
            silent += keys
            continue
        if before := only(command, silent):
            steps.append(Piped(before, b""))
        steps.append(Piped(only(command, keys), message))
        silent = []
    if rest := only(command, silent):
        steps.append(Piped(rest, b""))
    return tuple(steps)


def anatomy(call: tuple[Any, ...]) -> tuple[tuple[str, ...], bytes]:
    """The keys that a call is about, and the message that it publishes."""
    if call[0] == "PUBLISH":
        return (), call[2]
    if call[0] != "EVALSHA":
        return call[1:2], b""
    _, named, count, *rest = call
    message = rest[count + 7] if named is script("replace") else b""
    return tuple(rest[:count]), message or b""


def only(command: Any, keys: Sequence[str]) -> Any:
    """As much of a command as concerns these keys; None for nothing."""
    if type(command) is Invalidate:
        slots = tuple(slot for slot in command.slots if slot[0] in keys)
        tokens = tuple(token for token in command.tokens if token[0] in keys)
        return replace(command, slots=slots, tokens=tokens) if slots or tokens else None
    return command if keys else None


class Line(NamedTuple):
    """One process's line, as the server has it.

    ``least`` is what its L1 must not go below, for it has been told of it: everything that had been
    acknowledged when the last thing that was heard was published.
    """

    status: str
    """``on``, ``cut``, or ``asked``: the process wants to subscribe, and the server does not know."""
    queue: tuple[tuple[tuple[Any, ...], int], ...]
    """What is on its way: an event, and what has been acknowledged when it has been heard."""
    flying: tuple[bytes, ...]
    """Heartbeats that were sent and not yet carried out."""
    least: int
    beats: int
    """How many heartbeats it may still send."""

    def published(self, *event: Any) -> Line:
        """Something comes over the line."""
        return self._replace(queue=(*self.queue, (event, 0))) if self.status == "on" else self

    def acknowledged(self, version: int, *, own: bool) -> Line:
        """Who wrote it knows at once; others when they have heard what has been published until now."""
        if self.status != "on" and not own:
            return self
        if own or not self.queue:
            return self._replace(least=max(self.least, version))
        event, least = self.queue[-1]
        return self._replace(queue=(*self.queue[:-1], (event, max(least, version))))

    def subscribed(self, acknowledged: int) -> Line:
        """What was published before is lost, but all of it is known once this is confirmed."""
        return self._replace(status="on", queue=((("confirmed",), acknowledged),))

    def cut(self) -> Line:
        return self._replace(status="cut", queue=())

    def heard(self) -> Line:
        """The first thing on the line has arrived."""
        return self._replace(queue=self.queue[1:], least=max(self.least, self.queue[0][1]))


def told(event: tuple[Any, ...]) -> str:
    """What comes over a line, for people."""
    kind, *what = event
    return f"{kind} {read_announcement(what[0]) if kind == 'announced' else what[0] if what else ''}"
