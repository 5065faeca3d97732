"""The worker processes: what they read and write, and how they find out that an answer was stale.

How staleness is seen. When a write has returned, its invalidation has been acknowledged; only then does the
writer enter the write's number, for each thing that it changed, into memory that all processes share. A
reader notes the number that stands there **before** its call begins, and compares it with the version inside
the answer. An answer whose load began after the commit of that write has at least its number; so one with a
lower version was loaded before the write and served after its invalidation had returned: exactly what must
not happen, and nothing else. For a feed this holds for every reason it may have to change, because its
version is the number of the last write in its database snapshot.
"""

from __future__ import annotations

import bisect
import itertools
import multiprocessing
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

import redis

from cacheaside import configure

from .access import Cacheaside, Naive, Uncached
from .measure import Tally, total
from .repository import PAGES, Change, Repository, text

SPAWN: Final = multiprocessing.get_context("spawn")
REPORT: Final = 0.25
"""Seconds between two reports of a worker."""
GRACE: Final = 20.0
"""Seconds after the end of a phase in which every worker must have ended it."""
MORE_POSTS: Final = 500_000
"""How many posts can be written in one run: shared memory does not grow."""


class WorkerDied(Exception):
    """A worker process ended, or stopped answering, before its time."""


@dataclass(frozen=True)
class Plan:
    """All that the workers must know, the same for each."""

    database: Path
    redis_url: str
    prefix: str
    users: Sequence[int]
    """All users, the one who is read most often first."""
    posts: int
    delay: float
    write_share: float
    skew: float = 1.2
    seed: int = 1


@dataclass(frozen=True)
class Phase:
    """What to do next, for how long; ``mode`` is ``"uncached"``, ``"naive"`` or ``"cacheaside"``."""

    mode: str
    seconds: float


class Zipf:
    """Draws from ``items``: the one in place n is drawn in proportion to 1 / n ** skew."""

    def __init__(self, items: Sequence[int], skew: float, rng: random.Random) -> None:
        self.items = items
        self.rng = rng
        self.sums = list(itertools.accumulate(1 / place**skew for place in range(1, len(items) + 1)))

    def draw(self) -> int:
        place = bisect.bisect(self.sums, self.rng.random() * self.sums[-1])
        return self.items[min(place, len(self.items) - 1)]


class Acknowledged:
    """For everything that can be read: the number of its last write whose invalidation has returned.

    Shared by all processes. An element is eight aligned bytes, written and read in one piece; writers take
    turns, so that a number is never replaced by a lower one.
    """

    def __init__(self, users: int, posts: int) -> None:
        self.turn = SPAWN.Lock()
        self.profile = SPAWN.RawArray("q", users)
        self.friends = SPAWN.RawArray("q", users)
        self.feed = SPAWN.RawArray("q", users)
        self.post = SPAWN.RawArray("q", posts + 1)

    def note(self, change: Change) -> None:
        """Enter a write that has returned."""
        with self.turn:
            for numbers, ids in (
                (self.profile, change.profiles),
                (self.friends, change.friends),
                (self.feed, change.feeds),
                (self.post, change.posts),
            ):
                for one in ids:
                    numbers[one] = max(numbers[one], change.version)

    def version(self, what: str, one: int) -> int:
        """The least version that an answer about ``one`` may have from now on."""
        number: int = getattr(self, what)[one]
        return number


class Worker:
    """One process's reads and writes, chosen at random and the same in every run with one worker."""

    def __init__(self, plan: Plan, number: int, acknowledged: Acknowledged) -> None:
        self.plan = plan
        self.acknowledged = acknowledged
        self.rng = random.Random(f"{plan.seed}/{number}")
        self.popular_users = Zipf(plan.users, plan.skew, self.rng)
        posts = list(range(1, plan.posts + 1))
        random.Random(plan.seed).shuffle(posts)
        self.popular_posts = Zipf(posts, plan.skew, self.rng)
        self.repository = Repository(plan.database, plan.delay)
        # In an application: once, where it starts. An invalidation that Redis did not acknowledge is an
        # error here, since the demonstration claims that it was. L1 may lag behind other processes, so there
        # is none: an old answer is stale here, however little old it is.
        self.cache = configure(plan.redis_url, prefix=plan.prefix, on_unacknowledged="raise", l1_window=None)
        self.client = redis.Redis.from_url(plan.redis_url)

    def access(self, mode: str) -> Uncached:
        if mode == "uncached":
            return Uncached(self.repository)
        if mode == "naive":
            return Naive(self.repository, self.client, f"{self.plan.prefix}-naive")
        return Cacheaside(self.repository, self.cache)

    def run(self, phase: Phase, report: Callable[[Tally], None]) -> Tally:
        """Read and write until the phase ends; ``report`` is told the counts now and then."""
        access, tally = self.access(phase.mode), Tally()
        begin = time.perf_counter()
        next_report = begin + REPORT
        while (now := time.perf_counter()) < begin + phase.seconds:
            if now >= next_report:
                report(self.counted(tally, access, now - begin))
                next_report = now + REPORT
            if self.rng.random() < self.plan.write_share:
                self.write(access, tally)
            else:
                self.read(access, tally)
        return self.counted(tally, access, time.perf_counter() - begin)

    def read(self, access: Uncached, tally: Tally) -> None:
        what, *args = self.choose_read()
        least = self.acknowledged.version(what, args[0])
        queries = self.repository.queries
        begin = time.perf_counter()
        answer = access.read(what, *args)
        tally.times.add(time.perf_counter() - begin)
        tally.reads += 1
        tally.queries += self.repository.queries - queries
        tally.stale += answer.version < least

    def write(self, access: Uncached, tally: Tally) -> None:
        method, *args = self.choose_write()
        self.acknowledged.note(access.write(method, *args))
        tally.writes += 1

    def choose_read(self) -> tuple[Any, ...]:
        kind = self.rng.random()
        if kind < 0.3:
            page = min(int(self.rng.expovariate(1.5)), PAGES - 1)
            return "feed", self.popular_users.draw(), page
        if kind < 0.8:
            return "profile", self.popular_users.draw()
        if kind < 0.9:
            return "post", self.popular_posts.draw()
        return "friends", self.popular_users.draw()

    def choose_write(self) -> tuple[Any, ...]:
        kind = self.rng.random()
        if kind < 0.25:
            return "create_post", self.popular_users.draw(), text(self.rng, 140)
        if kind < 0.5:
            return "edit_post", self.popular_posts.draw(), text(self.rng, 140)
        if kind < 0.9:
            return "edit_profile", self.popular_users.draw(), text(self.rng, 30)
        return "befriend", *self.rng.sample(self.plan.users, 2)

    def counted(self, tally: Tally, access: Uncached, elapsed: float) -> Tally:
        tally.elapsed = elapsed
        for name, count in access.counts().items():
            setattr(tally, name, count)
        return tally

    def close(self) -> None:
        self.cache.close()
        self.client.close()
        self.repository.close()


def work(connection: Connection, plan: Plan, number: int, acknowledged: Acknowledged) -> None:
    """A worker process: does the phases that it is sent, until there are no more."""
    worker = Worker(plan, number, acknowledged)
    # The main process is gone when its end of the pipe is: then there is nobody left to work for.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send((True, None))
        while (phase := connection.recv()) is not None:
            connection.send((True, worker.run(phase, lambda tally: connection.send((False, tally)))))
    worker.close()


class Crew:
    """The worker processes; a context manager that leaves none behind."""

    def __init__(self, plan: Plan, size: int, acknowledged: Acknowledged) -> None:
        self.acknowledged = acknowledged  # or its lock might be gone before the workers open it
        self.processes: list[Any] = []
        self.connections: list[Connection] = []
        for number in range(size):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=work, args=(theirs, plan, number, acknowledged), daemon=True)
            self.connections.append(ours)
            self.processes.append(process)
            # Ctrl-C goes to all processes of a terminal; only the main one is to answer it.
            with ignoring_interrupts():
                process.start()
            theirs.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self.connections:
            with suppress(OSError):
                connection.send(None)
        for process in self.processes:
            if error[0] is None:
                process.join(5)
            process.kill()
            process.join()
        for connection in self.connections:
            connection.close()

    def ready(self) -> None:
        """Wait until all are. Raises WorkerDied."""
        for _ in self.messages(time.monotonic() + GRACE, len(self.connections)):
            pass

    def run(self, phase: Phase, progress: Callable[[Tally], None]) -> Tally:
        """Let all do a phase side by side and return what they counted. Raises WorkerDied."""
        for connection in self.connections:
            with suppress(OSError):  # a worker that is gone is found below
                connection.send(phase)
        tallies: dict[int, Tally] = {}
        for number, tally in self.messages(time.monotonic() + phase.seconds + GRACE, len(self.connections)):
            if tally is not None:
                tallies[number] = tally
                progress(total(list(tallies.values())))
        return total(list(tallies.values()))

    def messages(self, deadline: float, unfinished: int) -> Iterator[tuple[int, Tally | None]]:
        """What the workers say, until each has finished."""
        numbers = {connection: number for number, connection in enumerate(self.connections)}
        while unfinished:
            ready = wait(self.connections, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerDied("a worker has stopped answering")
            for connection in ready:
                number = numbers[connection]  # type: ignore[index]
                try:
                    finished, tally = connection.recv()  # type: ignore[union-attr]
                except (EOFError, ConnectionResetError):
                    self.processes[number].join(1)
                    code = self.processes[number].exitcode
                    raise WorkerDied(f"worker {number} has died (exit code {code})") from None
                unfinished -= finished
                yield number, tally


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
