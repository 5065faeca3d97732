"""``Warmer``: fills the cache before anybody asks, once or every so often, in one process of all."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, Self

from cacheaside.cache import Cache
from cacheaside.engine.commands import Flow, Lock, Release, Renew, Sleep, Spawn, Together
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.keys import escape
from cacheaside.policy import Seconds, number, seconds
from cacheaside.toolkit.warm_round import Job, Round, WarmReport, total

log = logging.getLogger("cacheaside")

EXTRA: Final = "a progress bar needs rich: pip install 'cacheaside[cli]'"

CLOSE_WITHIN: Final = 5.0
"""Seconds that closing the cache waits for the batch that is being loaded."""

Source = Iterable[Any] | Callable[[], Iterable[Any]] | Callable[[], Awaitable[Iterable[Any]]]
Tell = Callable[[int], None]


class Warmer:
    """Loads what will be asked for into a cache.

    ``run`` does so once. ``start`` does so every so often, in a thread: of all processes with such a warmer,
    one does each round. Sync functions are warmed by ``run`` and ``start``, async ones by ``arun`` and
    ``astart``, on their event loop; these take sync ones too, and run them in a thread.

    Args:
        batch: calls that are looked up, and ids that a ``cached_many`` function loads, in one step.
        concurrency: calls of a ``cached`` function at a time; 1 keeps them in the thread of ``run``.
        jitter: up to this share of ``every`` is added to a pause, so that processes do not ask together.
    """

    def __init__(self, cache: Cache, *, batch: int = 500, concurrency: int = 8, jitter: float = 0.1) -> None:
        for name, value in (("batch", batch), ("concurrency", concurrency)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
        self.cache = cache
        self.last: dict[str, WarmReport] = {}
        """The report of the last round that this process did on schedule, by name."""
        self._jitter = number("jitter", jitter, 0, 1)
        self._jobs: dict[str, Job] = {}
        self._stopped: Future[None] = Future()
        self._round = Round(cache, batch, concurrency)
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, f: Any, source: Source, every: Seconds | None = None, *, name: str | None = None) -> None:
        """Have ``f`` warmed.

        Args:
            f: a function or bound method decorated with ``cached`` or ``cached_many``.
            source: its calls (as ``f.warm`` takes them: ids, tuples or dicts of arguments), or a function
                that returns them, such as a query for the ids of what is popular now.
            every: seconds between the beginnings of two rounds, under ``start``. What would end before the
                next round is loaded anew.
            name: of the job, the same in all processes; default: that of the function.

        Raises ConfigError.
        """
        job = Job(f, source, None if every is None else seconds("every", every), name)
        if job.name in self._jobs:
            raise ConfigError(f"{job.name} is warmed already: give the second source a name=")
        self._jobs[job.name] = job

    # -- once

    def run(self, *, progress: bool = False) -> WarmReport:
        """Warm everything now. What fails is in the report; see ``WarmReport``.

        Args:
            progress: show a bar for each function, by rich.
        """
        late = [job.name for job in self._jobs.values() if job.is_async]
        if late:
            raise ConfigError(f"{late[0]} is async: await arun()")
        began = self._ready()
        with telling(progress) as tell:
            reports = [self.cache.run(self._round.run(j, tell=tell(j)), "warm") for j in self._jobs.values()]
        return total(reports, self.cache.world.tick() - began)

    async def arun(self, *, progress: bool = False) -> WarmReport:
        """``run`` on the running event loop."""
        began = self._ready()
        reports: list[WarmReport] = []
        with telling(progress) as tell:
            for job in self._jobs.values():
                flow = self._round.run(job, tell=tell(job))
                if job.is_async:
                    reports.append(await self.cache.arun(flow, "warm"))
                else:
                    reports.append(await asyncio.to_thread(self.cache.run, flow, "warm"))
        return total(reports, self.cache.world.tick() - began)

    def _ready(self) -> float:
        if self.cache.collecting() is not None:
            raise ConfigError("warm outside of a transaction: what it has not committed must not be cached")
        return self.cache.world.tick()

    # -- on schedule

    def start(self) -> None:
        """Warm what was added with ``every``, now and then every so often, until ``stop``.

        After a fork, each process starts its own.
        """
        late = [job.name for job in self._scheduled() if job.is_async]
        if late:
            raise ConfigError(f"{late[0]} is async: await astart()")
        self._begin()
        self._start_thread(self._scheduled())

    def close(self) -> None:
        """What closing the cache does: ``stop``, but not for ever."""
        self.stop(CLOSE_WITHIN)

    async def aclose(self) -> None:
        await self.astop(CLOSE_WITHIN)

    def stop(self, timeout: Seconds | None = None) -> bool:
        """End the schedule when the batch that is being loaded is through; False if that takes longer.

        Another process takes over with its next round.
        """
        self._end()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(None if timeout is None else seconds("timeout", timeout))
        return thread is None or not thread.is_alive()

    async def astart(self) -> None:
        """``start`` on the running event loop."""
        jobs = self._scheduled()
        self._begin()
        mine = [job for job in jobs if job.is_async]
        if mine:
            flow = self._schedule(mine, self._stopped)
            self._task = asyncio.create_task(self.cache.driver.arun(flow, self.cache.store))
        if len(mine) < len(jobs):
            self._start_thread([job for job in jobs if not job.is_async])

    async def astop(self, timeout: Seconds | None = None) -> bool:
        """``stop`` on the event loop of ``astart``."""
        self._end()
        task, self._task = self._task, None
        wait = None if timeout is None else seconds("timeout", timeout)
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait((task,), timeout=wait)
        through = await asyncio.to_thread(self.stop, wait)
        return through and (task is None or task.done())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.astart()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.astop()

    def _scheduled(self) -> list[Job]:
        jobs = [job for job in self._jobs.values() if job.every is not None]
        if not jobs:
            raise ConfigError("nothing was added with every=: there is no round to wait for")
        return jobs

    def _begin(self) -> None:
        if (self._thread is not None and self._thread.is_alive()) or self._task is not None:
            raise ConfigError("this warmer has started already")
        self._stopped = Future()
        self.cache.parts.add(self)

    def _start_thread(self, jobs: list[Job]) -> None:
        flow = self._schedule(jobs, self._stopped)
        self._thread = threading.Thread(
            target=self.cache.driver.run, args=(flow, self.cache.store), name="cacheaside-warm", daemon=True
        )
        self._thread.start()

    def _end(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _schedule(self, jobs: list[Job], stopped: Future[None]) -> Flow[None]:
        """Do rounds when they are due, one after another."""
        tick = self.cache.world.tick
        due = dict.fromkeys(jobs, tick())
        while not stopped.done():
            job = min(due, key=due.__getitem__)
            wait = due[job] - tick()
            if wait > 0:
                yield Sleep(wait, stopped)
                continue
            began, pause = tick(), self._pause(job)
            try:
                yield from self._turn(job, stopped)
            except StoreUnavailable as error:
                log.warning("no round of warming %s: %s", job.name, error)
            except Exception:
                log.exception("a round of warming %s failed; the next one comes", job.name)
            due[job] = began + pause if tick() < began + pause else tick() + pause

    def _pause(self, job: Job) -> float:
        assert job.every is not None
        return job.every * (1 + self._jitter * random.random())

    def _turn(self, job: Job, stopped: Future[None]) -> Flow[None]:
        """A round, if no other process has done one in the last ``every`` seconds.

        Who begins it puts a claim into the store, which outlives the round and ends before the next one.
        """
        assert job.every is not None
        tick, keys = self.cache.world.tick, self.cache.world.keys
        claim, nonce = f"{{{keys.value(f'warm:{escape(job.name)}')}}}:claim", self.cache.world.nonce()
        life = job.every - min(1.0, job.every / 20)
        if (yield Lock(claim, nonce, life)) is not None:
            return
        began, release = tick(), Release(claim, nonce)
        kept = ((claim, nonce),)
        flow = self._round.run(job, need=job.every * (1 + self._jitter), stopped=stopped)
        try:
            with self.cache.telemetry.operation("warm"):
                (ended,) = yield Together((flow,), 1, Renew(kept, life))
        except BaseException:
            yield Spawn(alone(release))
            raise
        if ended.error is not None:
            raise ended.error
        self.last[job.name] = report = ended.value
        log.log(logging.INFO if report else logging.WARNING, "%s", report)
        if stopped.done():
            yield release
        else:
            yield Renew(kept, max(0.001, life - (tick() - began)))


def alone(release: Release) -> Flow[None]:
    yield release


@contextmanager
def telling(progress: bool) -> Generator[Callable[[Job], Tell | None]]:
    """Who is told of a job's progress: nobody, or a bar on the terminal."""
    if not progress:
        yield lambda job: None
        return
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError as error:
        raise ConfigError(EXTRA) from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bars:

        def tell(job: Job) -> Tell:
            count = len(job.source) if hasattr(job.source, "__len__") else None
            bar = bars.add_task(job.name, total=count)
            return lambda done: bars.advance(bar, done)

        yield tell
