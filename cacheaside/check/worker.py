"""One process of a check: threads and tasks that read and write until the time is up."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from cacheaside.check.board import IDLE, READING, WRITING, Board
from cacheaside.check.history import Ack, Commit, Ended, Failed, Get, Recorder, clock
from cacheaside.check.subject import CacheasideSubject, Call, Source, Subject, current
from cacheaside.check.table import Table, open_table
from cacheaside.check.wrong import WrongSubject

POLL: Final = 0.005
START_WITHIN: Final = 60.0


class Plan(Struct, frozen=True):
    """What every process of a check must know."""

    url: str
    mode: str
    prefix: str
    directory: str
    database: str
    table: str
    rows: int
    threads: int
    tasks: int
    writes: float
    """Each thread or task writes so often a second."""
    seed: int
    settings: dict[str, Any]
    """Of the cache."""

    def open_table(self) -> Table:
        return open_table(self.database, self.table)

    def subject(self, source: Source) -> Subject:
        if self.mode == "cacheaside":
            return CacheasideSubject(source, self.rows, self.url, prefix=self.prefix, **self.settings)
        return WrongSubject(source, self.mode, self.url, self.prefix)


def work(plan: Plan, board: Board, place: int, name: str) -> None:
    """The main function of a process, ``name``, that stands in ``place`` of the board."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by who started us
    threading.Thread(target=end_with_parent, name="check-parent", daemon=True).start()
    recorder = Recorder(Path(plan.directory), name)
    hear(recorder)
    table = plan.open_table()
    before = Remains.now()
    counts, tasks = asyncio.run(Worker(plan, board, place, name, recorder, table).run())
    table.close()
    gc.collect()
    recorder.add(Ended(clock(), counts, tasks + Remains.now().beyond(before)))
    recorder.close()


def end_with_parent() -> None:
    """Work for nobody when who started us is gone, killed perhaps."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Trouble(logging.Handler):
    """What goes wrong where no call can raise it: a thread or a task in the background."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(logging.ERROR)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and record.exc_info[1] is not None:
            error = record.exc_info[1]
            what = f"{record.getMessage()}: {type(error).__name__}: {error}"
            self._recorder.add(Failed(-1, clock(), what, record.threadName or ""))


def hear(recorder: Recorder) -> None:
    """Take errors from the logs into the history; warnings are what faults are meant to bring about."""
    for name in ("cacheaside", "asyncio"):
        logger = logging.getLogger(name)
        logger.addHandler(Trouble(recorder))
        logger.propagate = False


class Remains(Struct, frozen=True):
    """What a process holds that it must give back: threads and sockets."""

    threads: frozenset[str]
    sockets: int

    @classmethod
    def now(cls) -> Remains:
        names = frozenset(f"{t.name} ({t.ident})" for t in threading.enumerate())
        return cls(names, sockets())

    def beyond(self, before: Remains) -> list[str]:
        leaks = [f"thread {name}" for name in sorted(self.threads - before.threads)]
        if self.sockets > before.sockets:
            leaks.append(f"{self.sockets - before.sockets} sockets")
        return leaks


def sockets() -> int:
    """Open sockets of this process; 0 where the system does not tell."""
    count = 0
    try:
        for number in os.listdir("/proc/self/fd"):
            try:
                count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
            except OSError:
                continue
    except OSError:
        return 0
    return count


class Worker:
    """The threads and tasks of one process."""

    def __init__(
        self, plan: Plan, board: Board, place: int, name: str, recorder: Recorder, table: Table
    ) -> None:
        self.plan = plan
        self.board = board
        self.place = place
        self.name = name
        self.recorder = recorder
        self.table = table
        self.subject = plan.subject(Source(table, recorder))

    async def run(self) -> tuple[dict[str, float], list[str]]:
        """Read and write until the end, and close the cache: what it counted, and the tasks it left."""
        plan = self.plan
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(plan.tasks + 2)
        loop.set_default_executor(pool)
        threads = [
            threading.Thread(target=self.work, args=(slot,), name=f"check-{slot}")
            for slot in range(plan.threads)
        ]
        tasks = [self.awork(slot) for slot in range(plan.threads, plan.threads + plan.tasks)]
        self.board.clear(self.place, IDLE)
        until = clock() + START_WITHIN
        while not self.board.begin:
            if clock() > until:
                raise TimeoutError("nobody has given the sign to begin")
            await asyncio.sleep(POLL)
        for thread in threads:
            thread.start()
        await asyncio.gather(*tasks)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        counts = self.subject.counts()
        await self.subject.aclose()
        mine = asyncio.current_task()
        return counts, [f"task {t.get_name()}" for t in asyncio.all_tasks() if t is not mine]

    def work(self, slot: int) -> None:
        turn = Turn(self, slot, f"t{slot}")
        while clock() < self.board.end:
            if turn.writes():
                self.write(turn)
            else:
                self.read(turn)
        turn.mark(IDLE)

    async def awork(self, slot: int) -> None:
        turn = Turn(self, slot, f"a{slot}")
        while clock() < self.board.end:
            if turn.writes():
                await self.awrite(turn)
            else:
                await self.aread(turn)
            await asyncio.sleep(0)  # an answer from L1 never waits, and the others want their turn
        turn.mark(IDLE)

    # -- reading

    def read(self, turn: Turn) -> None:
        rows, call = turn.begin_read()
        begin = clock()
        try:
            found = self.subject.read(rows)
        except Exception as error:
            turn.failed(rows[0], error)
        else:
            turn.end_read(call, found, begin)

    async def aread(self, turn: Turn) -> None:
        rows, call = turn.begin_read()
        begin = clock()
        try:
            found = await self.subject.aread(rows)
        except Exception as error:
            turn.failed(rows[0], error)
        else:
            turn.end_read(call, found, begin)

    # -- writing

    def write(self, turn: Turn) -> None:
        row = turn.begin_write()
        versions: list[int] = []

        def commit() -> None:
            versions.append(self.table.write(row))
            turn.committed(row, versions[0])

        try:
            way, done = self.subject.write(row, commit, turn.rng)
        except Exception as error:
            turn.failed(row, error)
        else:
            turn.end_write(row, versions[0], way, done)

    async def awrite(self, turn: Turn) -> None:
        row = turn.begin_write()
        versions: list[int] = []

        async def commit() -> None:
            versions.append(await asyncio.to_thread(self.table.write, row))
            turn.committed(row, versions[0])

        try:
            way, done = await self.subject.awrite(row, commit, turn.rng)
        except Exception as error:
            turn.failed(row, error)
        else:
            turn.end_write(row, versions[0], way, done)


class Turn:
    """One thread or task: its chance, its byte on the board, and what it records."""

    def __init__(self, worker: Worker, slot: int, who: str) -> None:
        plan = worker.plan
        self.rng = random.Random(f"{plan.seed}/{worker.name}/{slot}")
        self.mark = worker.board.marker(worker.place, slot)
        self.who = who
        self._rows = plan.rows
        self._subject = worker.subject
        self._add, self._add_now = worker.recorder.add, worker.recorder.add_now
        self._pause = 1 / plan.writes if plan.writes else 0.0
        self._next = clock() + self.rng.random() * self._pause if plan.writes else float("inf")

    def row(self) -> int:
        """Some rows are asked for far more often than others."""
        return min(int(self.rng.expovariate(3 / self._rows)), self._rows - 1)

    def writes(self) -> bool:
        """Whether it is time to write again."""
        now = clock()
        if now < self._next:
            return False
        self._next = now + 2 * self.rng.random() * self._pause
        return True

    def begin_read(self) -> tuple[tuple[int, ...], Call]:
        call = Call(self.who, self.mark)
        current.set(call)
        self.mark(READING)
        return self._subject.choose(self.row(), self.rng), call

    def end_read(self, call: Call, found: dict[int, Any], begin: float) -> None:
        end = clock()
        self.mark(IDLE)
        several = len(found) > 1
        for id, row in found.items():
            tier = call.tier(id, several=several, l1=self._subject.near(id))
            self._add(Get(id, row.version, begin, end, tier, call.loading, self.who))

    def begin_write(self) -> int:
        current.set(Call(self.who, self.mark))
        self.mark(WRITING)
        return self.row()

    def committed(self, row: int, version: int) -> None:
        self._add_now(Commit(row, version, clock(), self.who))

    def end_write(self, row: int, version: int, way: str, done: bool) -> None:
        self._add_now(Ack(row, version, clock(), way, done, self.who))
        self.mark(IDLE)

    def failed(self, row: int, error: Exception) -> None:
        self.mark(IDLE)
        self._add(Failed(row, clock(), f"{type(error).__name__}: {error}", self.who))
