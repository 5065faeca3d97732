"""Reads of one event-loop tick, sent as one MGET.

A bare MGET of a hundred keys costs a third of a hundred GETs, and most of the cost of a command is the
client's. The first to read in a tick lets the others of that tick catch up. Alone, it sends the read itself,
at once where the loop says that nobody else is about to run. In company the read is a task of its own, so
that whoever is cancelled leaves the others' answers alone.
"""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import Final, Generic, Protocol, TypeVar

from cacheaside.budget import give_up
from cacheaside.stores.lines import Values
from cacheaside.urls import TIMEOUT

MOST: Final = 512
"""Keys in one MGET at most: beyond that the server's other clients would wait for ours."""

Waiting = tuple[tuple[str, ...], asyncio.Future[Values]]


class Reads(Protocol):
    """What a batcher sends by."""

    writers: int

    async def mget(self, keys: tuple[str, ...]) -> Values: ...


L = TypeVar("L", bound=Reads)


class Batcher(Generic[L]):
    """The connections of one event loop, and the reads that wait for the end of the tick.

    ``timeout`` is for how many seconds a read is waited for whose caller does not say.
    """

    def __init__(self, lines: L, timeout: float = TIMEOUT) -> None:
        self.lines = lines
        self.timeout = timeout
        self.turn = asyncio.Semaphore(lines.writers)
        """Held by what is no read, so that a crowd of misses waits for connections instead of failing."""
        self._waiting: list[Waiting] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, keys: tuple[str, ...]) -> Values:
        """The values of ``keys``, in order."""
        if self._waiting is not None:
            return await self._answer(self._join(self._waiting, keys))
        if nobody_else_runs():  # nor would join
            async with in_time(self.timeout):
                return await self.lines.mget(keys)
        company: list[Waiting] = []
        self._waiting = company
        try:
            await asyncio.sleep(0)
        except BaseException:
            self._waiting = None
            self._leave(company)
            raise
        self._waiting = None
        if not company:
            async with in_time(self.timeout):
                return await self.lines.mget(keys)
        answer = self._join(company, keys)
        self._leave(company)
        return await self._answer(answer)

    async def _answer(self, answer: asyncio.Future[Values]) -> Values:
        """Wait for it; the read has a timer, and only who has less time than that needs one of his own."""
        if give_up.get() - monotonic() > 0.9 * self.timeout:
            return await answer
        async with in_time(self.timeout):
            return await answer

    def _join(self, company: list[Waiting], keys: tuple[str, ...]) -> asyncio.Future[Values]:
        answer: asyncio.Future[Values] = asyncio.get_running_loop().create_future()
        company.append((keys, answer))
        return answer

    def _leave(self, company: list[Waiting]) -> None:
        """Send what has gathered, in as many reads as it needs."""
        start = size = 0
        for end, (keys, _) in enumerate(company):
            if end > start and size + len(keys) > MOST:
                self._start(company[start:end])
                start, size = end, 0
            size += len(keys)
        if company:
            self._start(company[start:])

    def _start(self, batch: list[Waiting]) -> None:
        task = asyncio.get_running_loop().create_task(self._send(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[Waiting]) -> None:
        try:
            wanted = tuple(dict.fromkeys([key for keys, _ in batch for key in keys]))
            async with asyncio.timeout(self.timeout):
                found = dict(zip(wanted, await self.lines.mget(wanted), strict=True))
            for keys, answer in batch:
                if not answer.done():
                    answer.set_result([found[key] for key in keys])
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    if isinstance(error, Exception):
                        answer.set_exception(error)
                    else:
                        answer.cancel()
            if not isinstance(error, Exception):
                raise


def nobody_else_runs() -> bool:
    """Whether the rest of this tick belongs to the caller: another one is a system call, a tenth of a hit.

    Only asyncio's own loops have the attribute; False where the loop does not tell.
    """
    ready = getattr(asyncio.get_running_loop(), "_ready", None)
    return ready is not None and not ready


def in_time(timeout: float) -> asyncio.Timeout:
    """A context that ends when the caller has to give up, or after ``timeout`` if he does not say."""
    until = give_up.get()
    return asyncio.timeout(timeout if until == math.inf else until - monotonic())
