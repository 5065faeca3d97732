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
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.announcements import read_announcement
from cacheaside.stores.encoding import Encoder, script


class Piped(Struct, frozen=True):
    """One call of a pipeline: what it does to the store, if anything, and what it publishes, if anything."""

    command: Any
    message: bytes
    line: int = 0
    """The line that the message goes over."""


def encoder(lines: int) -> Encoder:
    """What says things to a single server, or to so many of a cluster."""
    return Encoder(RawKeys("p", lines), lambda: False, 0, sharded=lines > 1)


def pipeline(encode: Encoder, command: Any) -> tuple[Any, ...]:
    """The steps that a command is for the server, in order; what comes before one that publishes is one."""
    if type(command) not in (Announce, Claim, Commit, Invalidate):
        return (command,)
    steps: list[Piped] = []
    silent: list[str] = []
    calls, _ = encode(command)
    for call in calls:
        keys, channel, message = anatomy(call)
        if not message:
            silent += keys
            continue
        if before := only(command, silent):
            steps.append(Piped(before, b""))
        line = int(channel.rpartition(".")[2].strip("}"))  # {p:t.BUCKET}
        steps.append(Piped(only(command, keys), message, line))
        silent = []
    if rest := only(command, silent):
        steps.append(Piped(rest, b""))
    return tuple(steps)


def anatomy(call: tuple[Any, ...]) -> tuple[tuple[str, ...], str, bytes]:
    """The keys that a call is about, the channel and the message that it publishes."""
    if call[0] in ("PUBLISH", "SPUBLISH"):
        return (), call[1], call[2]
    if call[0] != "EVALSHA":
        return call[1:2], "", b""
    _, named, count, *rest = call
    channel, message = rest[count + 6 : count + 8] if named is script("replace") else ("", b"")
    return tuple(rest[:count]), channel, message or b""


def only(command: Any, keys: Sequence[str]) -> Any:
    """As much of a command as concerns these keys; None for nothing."""
    if type(command) is Invalidate:
        slots = tuple(slot for slot in command.slots if slot[0] in keys)
        tokens = tuple(token for token in command.tokens if token[0] in keys)
        return replace(command, slots=slots, tokens=tokens) if slots or tokens else None
    return command if keys else None


class Sub(NamedTuple):
    """A subscription on one server, as that server has it."""

    status: str
    """``on``, ``cut``, or ``asked``: the process wants to subscribe, and the server does not know."""
    queue: tuple[tuple[Any, ...], ...] = ()
    """Events on their way."""


class Line(NamedTuple):
    """The lines of one process: one to each server, and the process takes all anew when one breaks.

    ``least`` is what its L1 must not go below, for it has been told of it: everything that had been
    acknowledged when the last things that were heard were published.
    """

    subs: tuple[Sub, ...]
    flying: tuple[tuple[bytes, int], ...]
    """Heartbeats that were sent and not yet carried out, and the line that they take."""
    least: int
    pending: tuple[tuple[int, tuple[int, ...]], ...]
    """Versions that have been acknowledged, and how much on each line comes before."""
    beats: int
    """How many heartbeats it may still send down each line."""

    @property
    def on(self) -> bool:
        return all(sub.status == "on" for sub in self.subs)

    @property
    def cut_off(self) -> bool:
        return all(sub.status == "cut" for sub in self.subs)

    def _with(self, s: int, sub: Sub, **more: Any) -> Line:
        return self._replace(subs=(*self.subs[:s], sub, *self.subs[s + 1 :]), **more)

    def published(self, s: int, *event: Any) -> Line:
        """Something comes over a line."""
        sub = self.subs[s]
        return self._with(s, sub._replace(queue=(*sub.queue, event))) if sub.status == "on" else self

    def acknowledged(self, version: int, *, own: bool) -> Line:
        """Who wrote it knows at once; others when they have heard what has been published until now."""
        if own:
            return self._replace(least=max(self.least, version))
        if not self.on:
            return self
        ahead = tuple(len(sub.queue) for sub in self.subs)
        return self._replace(pending=(*self.pending, (version, ahead)))._due()

    def subscribed(self, s: int, acknowledged: int) -> Line:
        """What was published before is lost, but all of it is known once this is confirmed."""
        line = self._with(s, Sub("on", (("confirmed",),)), pending=())
        return line.acknowledged(acknowledged, own=False)

    def asked(self) -> Line:
        return self._replace(subs=(Sub("asked"),) * len(self.subs))

    def cut(self, s: int) -> Line:
        return self._with(s, Sub("cut"), pending=())

    def left(self) -> Line:
        return self._replace(subs=(Sub("cut"),) * len(self.subs), pending=())

    def heard(self, s: int) -> Line:
        """The first thing on a line has arrived."""
        sub = self.subs[s]
        pending = tuple(
            (version, (*ahead[:s], max(0, ahead[s] - 1), *ahead[s + 1 :])) for version, ahead in self.pending
        )
        return self._with(s, sub._replace(queue=sub.queue[1:]), pending=pending)._due()

    def _due(self) -> Line:
        known = max([version for version, ahead in self.pending if not any(ahead)], default=0)
        least = max(self.least, known)
        return self._replace(least=least, pending=tuple(one for one in self.pending if one[0] > least))


def told(event: tuple[Any, ...]) -> str:
    """What comes over a line, for people."""
    kind, *what = event
    return f"{kind} {read_announcement(what[0]) if kind == 'announced' else what[0] if what else ''}"
