"""The processes of a check: started, stopped, frozen and killed; none is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

from cacheaside.check.board import ABSENT, CONTEXT, Board
from cacheaside.check.history import clock
from cacheaside.check.worker import Plan, work
from cacheaside.errors import CacheasideError

READY_WITHIN: Final = 60.0
END_WITHIN: Final = 30.0
POLL: Final = 0.001


class CrewError(CacheasideError):
    """A process ended before its time, or does not end."""


class Crew:
    """So many worker processes; a context manager that leaves none behind."""

    def __init__(self, plan: Plan, size: int) -> None:
        self.plan = plan
        self.board = Board(size, plan.threads + plan.tasks)
        self._processes: list[Any] = [None] * size
        self._started = [0] * size
        self._frozen: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        CONTEXT.set_forkserver_preload(["cacheaside.check.worker"])
        with ExitStack() as stack:
            stack.push(self)
            for place in range(len(self._processes)):
                self._start(place)
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thaw()
        for process in self._processes:
            if process is not None:
                process.kill()
                process.join()
                process.close()

    def _start(self, place: int) -> None:
        name = f"p{place}" if not self._started[place] else f"p{place}.{self._started[place]}"
        self._started[place] += 1
        process = CONTEXT.Process(target=work, args=(self.plan, self.board, place, name), daemon=True)
        process.start()
        self._processes[place] = process

    def ready(self) -> None:
        """Wait until all are. Raises CrewError."""
        until = clock() + READY_WITHIN
        while any(ABSENT in self.board.doing(place) for place in range(len(self._processes))):
            self.look()
            if clock() > until:
                raise CrewError("the processes of the check did not become ready")
            time.sleep(0.01)

    def begin(self, seconds: float) -> float:
        """Let all begin; when they will end."""
        now = clock()
        self.board.start(now, now + seconds)
        return now + seconds

    def stop_now(self) -> None:
        """Let all end before their time."""
        self.board.start(self.board.begin or clock(), clock())

    def look(self) -> None:
        """Raise CrewError if a process has died that nobody has killed."""
        with self._lock:
            codes = [process.exitcode for process in self._processes]
        for place, code in enumerate(codes):
            if code not in (None, 0):
                raise CrewError(f"process {place} of the check has died (exit code {code})")

    def end(self) -> None:
        """Wait until all have closed their caches. Raises CrewError."""
        until = clock() + END_WITHIN
        for place, process in enumerate(self._processes):
            process.join(max(0.0, until - clock()))
            if process.exitcode is None:
                raise CrewError(f"process {place} of the check does not end")
        self.look()

    # -- for faults

    def find(self, doing: Iterable[int], rng: random.Random, patience: float = 0.1) -> int | None:
        """The place of a process in which somebody is doing one of these right now, looked for a while."""
        places = list(range(len(self._processes)))
        wanted = set(doing)
        until = clock() + patience
        while clock() < until:
            rng.shuffle(places)
            for place in places:
                if wanted.intersection(self.board.doing(place)):
                    return place
            time.sleep(POLL)
        return None

    def freeze(self, place: int) -> None:
        with self._lock:
            self._frozen.add(place)
            self._signal(place, signal.SIGSTOP)

    def thaw(self, *places: int) -> None:
        """Let these frozen processes go on, or all."""
        with self._lock:
            for place in self._frozen.intersection(places or self._frozen):
                self._frozen.discard(place)
                self._signal(place, signal.SIGCONT)

    def kill(self, place: int) -> None:
        """Kill a process and start another one in its place."""
        with self._lock:
            process = self._processes[place]
            process.kill()
            process.join()
            process.close()
            self.board.clear(place)
            self._start(place)

    def _signal(self, place: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._processes[place].pid, number)
