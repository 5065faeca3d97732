"""Which Redis this is: the one of before, one that carries on its data, or another one.

Redis may come back with less than it has confirmed: restarted from an old snapshot, or as a replica that was
promoted before it had heard the last commands. Every entry carries the incarnation of the server it was
loaded under, and this decides, by what each new connection learns, which incarnations may be believed.

A new primary names its predecessor: its ``master_replid2`` is what the other's ``master_replid`` was. So does
a primary that was restarted from a snapshot. They differ in age: a promoted replica was there already when
the predecessor was last heard of.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import Final, Literal, get_args

from cacheaside.errors import ConfigError
from cacheaside.facts import ServerFacts
from cacheaside.fork import renew_after_fork

FailoverMode = Literal["auto", "strict", "replay", "trust"]
CHAIN: Final = 8
"""Predecessors in a row that are believed at most."""
LEFT: Final = 64
"""Servers that were left for another one, and are known again when they come back."""


class Verdict(Enum):
    """What a new connection means for what is stored."""

    SAME = "same"
    FIRST = "first"
    COLD = "cold"
    """Nothing that was stored before is believed."""
    REPLAY = "replay"
    """What was stored is believed once this process has repeated its last minute of invalidations."""
    TRUST = "trust"


def check_mode(mode: object) -> FailoverMode:
    known: FailoverMode
    for known in get_args(FailoverMode):
        if mode == known:
            return known
    modes = ", ".join(map(repr, get_args(FailoverMode)))
    raise ConfigError(f"failover must be one of {modes}, not {mode!r}")


class Lineage:
    """The servers that this process has met, one after the other."""

    def __init__(self, mode: FailoverMode) -> None:
        self.mode: FailoverMode = mode
        self.known: ServerFacts | None = None
        self.older: tuple[bytes, ...] = ()
        """Incarnations before the present one that are believed too, the last one first."""
        self.decisions = dict.fromkeys(
            (v.value for v in Verdict if v not in (Verdict.SAME, Verdict.FIRST)), 0
        )
        self._left: tuple[bytes, ...] = ()
        self._lock = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def meet(self, facts: ServerFacts, silence: float) -> Verdict:
        """A connection was made; ``silence`` is for how many seconds the server before had not answered."""
        with self._lock:
            known = self.known
            verdict = decide(self.mode, known, facts, silence)
            cold = verdict is Verdict.COLD
            if cold and facts.incarnation in self._left:
                # It was never demoted, and carries the stamps of before: what was invalidated elsewhere
                # meanwhile would be back.
                verdict = Verdict.REPLAY
            if verdict is not Verdict.SAME:
                if known is not None and known.run_id:
                    self._left = (known.incarnation, *self._left)[:LEFT]
                if facts.run_id or known is None:
                    self.known = facts
                if cold:
                    self.older = ()
                elif known is not None and facts.run_id:
                    self.older = (known.incarnation, *self.older)[:CHAIN]
            if verdict.value in self.decisions:
                self.decisions[verdict.value] += 1
            return verdict


def decide(mode: FailoverMode, known: ServerFacts | None, facts: ServerFacts, silence: float) -> Verdict:
    """What to believe on a server with these facts, after the one with the ``known`` ones.

    Where INFO is forbidden nothing is known: any connection that is made again may lead to another server,
    and only a replay helps.
    """
    if known is None:
        return Verdict.FIRST
    if not facts.run_id:
        return Verdict.REPLAY if facts.again and mode != "trust" else Verdict.SAME
    if facts.incarnation == known.incarnation:
        return Verdict.SAME
    if mode == "trust":
        return Verdict.TRUST
    if mode == "strict":
        return Verdict.COLD
    if mode == "replay":
        return Verdict.REPLAY
    # A primary changes its replication id too when its first replica comes; then it is the same process.
    was_there = facts.uptime - 1 >= silence  # whole seconds, cut off at both ends: it may be one less
    carries_on = facts.run_id == known.run_id or (facts.replid2 == known.replid and was_there)
    return Verdict.REPLAY if carries_on and known.run_id else Verdict.COLD
