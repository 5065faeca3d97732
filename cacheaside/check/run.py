"""One check from its settings to its result."""

from __future__ import annotations

import math
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from msgspec import Struct

from cacheaside.check.analysis import Findings, analyse
from cacheaside.check.arena import Arena, opened
from cacheaside.check.crew import Crew
from cacheaside.check.faults import Striking
from cacheaside.check.history import History, Recorder, clock
from cacheaside.check.settings import Settings
from cacheaside.check.subject import shared_rows
from cacheaside.check.worker import Plan

LOOK_EVERY: Final = 0.1
MOMENTS: Final = {"strict": 0.5, "replay": 2.0, "auto": 2.0, "trust": math.inf}
"""Seconds after a failover in which the cache may believe what was lost, by its setting: until processes
have heard of it, one by one, and have repeated what they had invalidated. On a cluster, never: there each
slot is cold on another server."""


class Result(Struct, frozen=True):
    """What a check has shown, and where."""

    settings: Settings
    server: str
    seconds: float
    findings: Findings
    nothing: str = ""
    """Why it has shown nothing, if it has not."""

    @property
    def code(self) -> int:
        """The exit code: 0 if all is well, 1 if not, 2 if nothing was shown."""
        if not self.findings.fine:
            return 1
        return 2 if self.nothing else 0


def run(settings: Settings, *, progress: Callable[[float], None] = lambda done: None) -> Result:
    """Run a check; ``progress`` is told the seconds that have passed, now and then.

    Raises ConfigError for settings that make no sense or a server that does not answer, CrewError when a
    process of the check dies by itself.
    """
    settings = settings.checked()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cacheaside-check-")))
        recorder = Recorder(directory, "faults")
        stack.callback(recorder.close)
        arena = stack.enter_context(opened(settings, recorder))
        plan = make_plan(settings, arena, directory)
        table = plan.open_table()
        table.create(plan.rows)
        stack.callback(table.drop)
        began, leaks = work(settings, arena, plan, progress)
        recorder.close()
        findings = analyse(
            History(directory),
            window=settings.l1_window,
            deadline=settings.deadline or math.inf,
            shared=shared_rows(settings.keys) if settings.mode == "cacheaside" else (),
            moment=0.0 if "cluster" in settings.needs else MOMENTS[settings.failover or "auto"],
        )
        findings.leaks += leaks
    return Result(settings, arena.version, clock() - began, findings, shown_nothing(settings, findings))


def work(
    settings: Settings, arena: Arena, plan: Plan, progress: Callable[[float], None]
) -> tuple[float, list[str]]:
    """Let the processes read and write while the faults strike: when they began, and what they left open."""
    with Crew(plan, settings.processes) as crew:
        arena.crew = crew
        crew.ready()
        began, end = clock(), crew.begin(settings.seconds)
        with Striking(settings.chosen, arena, settings.seed):
            while (now := clock()) < end:
                progress(now - began)
                crew.look()
                time.sleep(min(LOOK_EVERY, end - now))
        crew.end()
        return began, arena.leaks()


def make_plan(settings: Settings, arena: Arena, directory: Path) -> Plan:
    workers = settings.processes * (settings.threads + settings.tasks)
    cache = {**settings.cache, "l1_window": settings.l1_window or None}
    if settings.failover is not None:
        cache["failover"] = settings.failover
    return Plan(
        url=arena.worker_url,
        mode=settings.mode,
        prefix=arena.prefix,
        directory=str(directory),
        database=settings.database or str(directory / "table.db"),
        table=f"cacheaside_check_{secrets.token_hex(4)}",
        rows=settings.keys,
        threads=settings.threads,
        tasks=settings.tasks,
        writes=settings.writes / workers,
        seed=settings.seed,
        settings=cache,
    )


def shown_nothing(settings: Settings, findings: Findings) -> str:
    """A check in which nothing could have been found is worth nothing."""
    if not findings.acknowledged:
        return "no invalidation was acknowledged"
    if not any(count for tier, count in findings.tiers.items() if tier != "load"):
        return "nothing was answered from the cache"
    missed = [name for name in settings.faults if not findings.strikes.get(name)]
    return f"these faults never struck: {', '.join(missed)}" if missed else ""
