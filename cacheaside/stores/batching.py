"""Reads of one event-loop tick, sent as one MGET.

A bare MGET of a hundred keys costs a third of a hundred GETs, and most of the cost of a command is
the client's. Whoever is cancelled leaves the others' answers alone: the read is a task of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

MOST: Final = 512
"""Keys in one MGET at most: beyond that the server's other clients would wait for ours."""


class Batcher:
    """The client of one event loop, and the reads that wait for the end of the tick."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._waiting: list[tuple[tuple[str, ...], asyncio.Future[list[bytes | None]]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, keys: tuple[str, ...]) -> list[bytes | None]:
        """The values of ``keys``, in order."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[bytes | None]] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._leave, loop)
        self._waiting.append((keys, answer))
        return await answer

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting, []
        while batch:
            size = 0
            count = 0
            for keys, _ in batch:
                if count and size + len(keys) > MOST:
                    break
                size += len(keys)
                count += 1
            task = loop.create_task(self._send(batch[:count]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            batch = batch[count:]

    async def _send(self, batch: list[tuple[tuple[str, ...], asyncio.Future[list[bytes | None]]]]) -> None:
        try:
            if len(batch) == 1:
                keys, answer = batch[0]
                values = await self.client.execute_command("MGET", *keys)
                if not answer.done():
                    answer.set_result(values)
                return
            places: dict[str, int] = {}
            for keys, _ in batch:
                for key in keys:
                    places.setdefault(key, len(places))
            values = await self.client.execute_command("MGET", *places)
            for keys, answer in batch:
                if not answer.done():
                    answer.set_result([values[places[key]] for key in keys])
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    if isinstance(error, Exception):
                        answer.set_exception(error)
                    else:
                        answer.cancel()
            if not isinstance(error, Exception):
                raise
