"""What a history shows: answers that are older than an acknowledged invalidation allows.

The rule: a call that began after version v of its row was acknowledged returns v or a newer one. An answer
from L1 may lag behind other processes by the window. No answer may lag behind what its own process has
invalidated, acknowledged or not. What overlaps in time with an acknowledgement has no order, and nothing is
said about it.

A server that takes over from another one may have lost what that one had confirmed. Unless the cache is told
to believe nothing then, it may believe too much for a moment: such answers are counted by themselves.
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from typing import Final

from msgspec import Struct, field

from cacheaside.check.history import Ack, Commit, Ended, Failed, Get, Load, Record, Strike

FROM_L1: Final = ("l1", "mixed")
SEEN_LATE: Final = 0.5
"""Seconds between a failover and its being seen by who watches for it."""
OFFENDERS: Final = 500
"""Offences from which the shortest trace is chosen."""


class Step(Struct, frozen=True):
    """A line of a trace: seconds since its beginning, who, and what he did."""

    at: float
    who: str
    what: str


class Times(Struct):
    """Seconds that calls took, without their own loads."""

    p50: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    most: float = 0.0


class Findings(Struct):
    """What was counted and found."""

    gets: int = 0
    tiers: dict[str, int] = field(default_factory=dict[str, int])
    commits: int = 0
    acknowledged: int = 0
    unacknowledged: int = 0
    loads: int = 0
    loads_per_generation: float = 0.0
    """Of a row between two commits, over those that were loaded at all."""
    most_loads: int = 0
    stale: int = 0
    """Answers older than an acknowledged invalidation, but for those from L1 that only lag behind others."""
    oldest: float = 0.0
    """The most seconds between an acknowledgement and a call with an answer that is stale or beyond."""
    behind: int = 0
    """Answers from L1 that lag behind another process, within the window: allowed."""
    oldest_behind: float = 0.0
    beyond: int = 0
    """Answers from L1 that lag behind by more than the window."""
    excused: int = 0
    """Answers that would be one or the other, had not a server just lost what was confirmed: allowed."""
    oldest_excused: float = 0.0
    times: Times = field(default_factory=Times)
    late: int = 0
    """Calls that took longer than the deadline."""
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict[str, int])
    leaks: list[str] = field(default_factory=list[str])
    ended: int = 0
    """Processes that closed their cache."""
    counts: dict[str, float] = field(default_factory=dict[str, float])
    strikes: dict[str, int] = field(default_factory=dict[str, int])
    trace: list[Step] = field(default_factory=list[Step])

    @property
    def fine(self) -> bool:
        """Whether nothing was found that must not happen."""
        return not (self.stale or self.beyond or self.failed or self.leaks or self.late)


class Acknowledged:
    """When which version of one row was acknowledged."""

    def __init__(self, acks: Iterable[tuple[float, int]]) -> None:
        self.times: list[float] = []
        self.versions: list[int] = []
        for at, version in sorted(acks):
            if not self.versions or version > self.versions[-1]:
                self.times.append(at)
                self.versions.append(version)

    def least(self, begin: float) -> int:
        """The version that a call beginning then must return at least; 0 if any will do."""
        before = bisect_left(self.times, begin)
        return self.versions[before - 1] if before else 0

    def age(self, version: int, begin: float) -> float:
        """Seconds for which ``version`` had been outdated when the call began; 0 if it was not."""
        newer = bisect_right(self.versions, version)
        return max(0.0, begin - self.times[newer]) if newer < len(self.times) else 0.0


NOTHING: Final = Acknowledged(())


def analyse(
    history: Iterable[tuple[str, Record]],
    *,
    window: float = 0.0,
    deadline: float = math.inf,
    shared: Container[int] = (),
    moment: float = 0.0,
) -> Findings:
    """Read a history and judge it.

    Args:
        history: is read twice, so an iterator will not do.
        window: seconds that L1 may lag behind other processes.
        deadline: seconds that a call may take, its own loads not counted.
        shared: rows that are dropped with others too: how often they were loaded says nothing.
        moment: seconds after a failover in which what was lost may be believed; inf: for ever, also what the
            process itself had invalidated.
    """
    return _Analysis(window, deadline, shared, moment).read(history)


class _Analysis:
    def __init__(self, window: float, deadline: float, shared: Container[int], moment: float) -> None:
        self.window = window
        self.deadline = deadline
        self.shared = shared
        self.moment = moment
        self.lapses: list[float] = []
        self.found = Findings()
        self.acks: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
        self.own: defaultdict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
        self.times = array("d")
        self.steps: defaultdict[int, list[Step]] = defaultdict(list)
        self.loads: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self.strikes: list[tuple[str, Step]] = []
        self.offences: list[tuple[str, Get]] = []

    def read(self, history: Iterable[tuple[str, Record]]) -> Findings:
        """Twice: answers are far too many to be kept until all that they are judged by is known."""
        for process, record in history:
            self.count(process, record)
        everybody = {row: Acknowledged(those) for row, those in self.acks.items()}
        own = {place: Acknowledged(those) for place, those in self.own.items()}
        for process, record in history:
            if isinstance(record, Get):
                row = record.row
                self.judge(process, record, everybody.get(row, NOTHING), own.get((process, row), NOTHING))
        self.sum_up()
        return self.found

    def count(self, process: str, record: Record) -> None:
        found = self.found
        match record:
            case Get():
                found.gets += 1
                found.tiers[record.tier] = found.tiers.get(record.tier, 0) + 1
            case Load(row, version, begin, end, who):
                found.loads += 1
                self.loads[row, version].append(begin)
                self.step(row, begin, process, who, f"reads row {row} from the table: version {version}")
                self.step(row, end, process, who, f"has loaded version {version} of row {row}")
            case Commit(row, version, at, who):
                found.commits += 1
                self.step(row, at, process, who, f"has committed version {version} of row {row}")
            case Ack(row, version, at, way, done, who):
                found.acknowledged += done
                found.unacknowledged += not done
                if done:
                    self.acks[row].append((at, version))
                self.own[process, row].append((at, version))
                what = "has been told that it is invalidated" if done else "was not acknowledged"
                self.step(row, at, process, who, f"version {version} of row {row}, by {way}: {what}")
            case Failed(_, _, error, _):
                found.failed += 1
                found.errors[error] = found.errors.get(error, 0) + 1
            case Strike(at, fault, what, key, lapse):
                if lapse:
                    self.lapses.append(at)
                found.strikes[fault] = found.strikes.get(fault, 0) + 1
                self.strikes.append((key, Step(at, "fault", f"{fault}: {what} {key}".rstrip())))
            case Ended(_, counts, leaks):
                found.ended += 1
                found.leaks += [f"{process}: {leak}" for leak in leaks]
                for name, value in counts.items():
                    found.counts[name] = found.counts.get(name, 0) + value

    def step(self, row: int, at: float, process: str, who: str, what: str) -> None:
        self.steps[row].append(Step(at, f"{process}/{who}", what))

    def judge(self, process: str, get: Get, everybody: Acknowledged, own: Acknowledged) -> None:
        found = self.found
        took = get.end - get.begin - get.loading
        self.times.append(took)
        if took > self.deadline:
            found.late += 1
        age, here = everybody.age(get.version, get.begin), own.age(get.version, get.begin)
        lags = get.tier in FROM_L1 and not here
        if not (age or here):
            return
        if lags and age <= self.window:
            found.behind += 1
            found.oldest_behind = max(found.oldest_behind, age)
            return
        if self.may_be_lost(get.begin) and (not here or self.moment == math.inf):
            found.excused += 1
            found.oldest_excused = max(found.oldest_excused, age, here)
            return
        if lags:
            found.beyond += 1
        else:
            found.stale += 1
        found.oldest = max(found.oldest, age, here)
        if len(self.offences) < OFFENDERS:
            self.offences.append((process, get))

    def may_be_lost(self, begin: float) -> bool:
        """Whether a server has lost confirmed invalidations just before; or is about to be seen to have."""
        return bool(self.moment) and any(at - SEEN_LATE <= begin <= at + self.moment for at in self.lapses)

    def sum_up(self) -> None:
        found = self.found
        times = sorted(self.times)
        if times:
            last = len(times) - 1
            found.times = Times(*(times[min(last, int(q * len(times)))] for q in (0.5, 0.99, 0.999, 1)))
        each = [len(begun) for (row, _), begun in self.loads.items() if row not in self.shared]
        if each:
            found.loads_per_generation = sum(each) / len(each)
            found.most_loads = max(each)
        traces = (self.trace(process, get) for process, get in self.offences)
        none: list[Step] = []
        found.trace = min(traces, key=lambda steps: (len(steps), steps[-1].at), default=none)

    def trace(self, process: str, get: Get) -> list[Step]:
        """What led to an offence: everything about its row since the load of what it returned."""
        begun = [at for at in self.loads.get((get.row, get.version), ()) if at < get.end]
        start = max(begun, default=get.begin - self.window)
        who, what = f"{process}/{get.who}", f"row {get.row}"
        steps = [s for s in (*self.steps[get.row], *self.struck(get.row)) if start <= s.at <= get.end]
        steps += [
            Step(get.begin, who, f"asks for {what}"),
            Step(get.end, who, f"is answered from {get.tier} with version {get.version} of {what}: STALE"),
        ]
        steps.sort(key=lambda step: step.at)
        return [Step(s.at - start, s.who, s.what) for s in steps]

    def struck(self, row: int) -> Iterator[Step]:
        """What the faults did, except to keys that name another row."""
        mine = re.compile(rf":{row}(\D|$)")
        return (step for key, step in self.strikes if not key or mine.search(key))
