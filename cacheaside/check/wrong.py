"""Protocols that do not work, to show that the check finds it: four that are written by hand everywhere.

Each is written once, as generators that yield Redis commands, and driven for threads and for tasks.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Final, cast

import msgspec
import redis
import redis.asyncio as aioredis

from cacheaside.check.subject import Source, current
from cacheaside.check.table import Row

LIFE: Final = 60
LOCKED_MS: Final = 500
LOAD: Final = ("LOAD",)
"""Yielded among the commands to read the table."""

Protocol = Generator[tuple[Any, ...], Any, Any]


class Naive:
    """GET; on a miss load and SET; after a write DEL. What was loaded before a write is stored after it."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def key(self, row: int) -> str:
        return f"{self.prefix}:{row}"

    def read(self, row: int) -> Protocol:
        stored = yield "GET", self.key(row)
        if stored is not None:
            return stored
        loaded = yield LOAD
        yield "SET", self.key(row), loaded, "EX", LIFE
        return loaded

    def invalidate(self, row: int) -> Protocol:
        yield "DEL", self.key(row)


class Lock(Naive):
    """The same with a lock around load and SET: a writer does not ask for it."""

    def read(self, row: int) -> Protocol:
        stored = yield "GET", self.key(row)
        if stored is not None:
            return stored
        locked = yield "SET", f"{self.key(row)}:lock", "1", "NX", "PX", LOCKED_MS
        loaded = yield LOAD
        if locked:
            yield "SET", self.key(row), loaded, "EX", LIFE
            yield "DEL", f"{self.key(row)}:lock"
        return loaded


class SetIndex(Naive):
    """A set of keys for each tag, whose members are deleted: a value can be stored after it was read."""

    def read(self, row: int) -> Protocol:
        stored = yield "GET", self.key(row)
        if stored is not None:
            return stored
        loaded = yield LOAD
        yield "SADD", f"{self.key(row)}:tag", self.key(row)
        yield "SET", self.key(row), loaded, "EX", LIFE
        return loaded

    def invalidate(self, row: int) -> Protocol:
        members = yield "SMEMBERS", f"{self.key(row)}:tag"
        yield "DEL", f"{self.key(row)}:tag", *members


class Counter(Naive):
    """A number in the key that INCR raises: once evicted it begins again, where it was before."""

    def read(self, row: int) -> Protocol:
        generation = int((yield "GET", f"{self.key(row)}:generation") or 0)
        key = f"{self.key(row)}:{generation}"
        stored = yield "GET", key
        if stored is not None:
            return stored
        loaded = yield LOAD
        yield "SET", key, loaded, "EX", LIFE
        return loaded

    def invalidate(self, row: int) -> Protocol:
        yield "INCR", f"{self.key(row)}:generation"


WRONG: Final[dict[str, type[Naive]]] = {
    "naive": Naive,
    "lock": Lock,
    "setindex": SetIndex,
    "counter": Counter,
}
NEEDS: Final = {"counter": ("eviction",)}
"""Faults without which a mode is right: used when none is named."""


class WrongSubject:
    """A wrong protocol over a plain redis-py client."""

    def __init__(self, source: Source, mode: str, url: str, prefix: str) -> None:
        self._source = source
        self._protocol = WRONG[mode](prefix)
        self._client: Any = cast("Any", redis.Redis).from_url(url, protocol=2)
        self._url = url
        self._aclient: Any = None

    def choose(self, row: int, rng: random.Random) -> tuple[int, ...]:
        return (row,)

    def near(self, row: int) -> bool:
        return False

    def read(self, rows: Sequence[int]) -> dict[int, Row]:
        return {row: decode(self._run(self._protocol.read(row), row)) for row in rows}

    async def aread(self, rows: Sequence[int]) -> dict[int, Row]:
        return {row: decode(await self._arun(self._protocol.read(row), row)) for row in rows}

    def write(self, row: int, commit: Callable[[], object], rng: random.Random) -> tuple[str, bool]:
        commit()
        self._run(self._protocol.invalidate(row), row)
        return "key", True

    async def awrite(
        self, row: int, commit: Callable[[], Awaitable[object]], rng: random.Random
    ) -> tuple[str, bool]:
        await commit()
        await self._arun(self._protocol.invalidate(row), row)
        return "key", True

    def counts(self) -> dict[str, float]:
        return {}

    async def aclose(self) -> None:
        self._client.close()
        if self._aclient is not None:
            await self._aclient.aclose()

    def _run(self, protocol: Protocol, row: int) -> Any:
        try:
            command = next(protocol)
            while True:
                if command is LOAD:
                    reply: Any = encode(self._source.load(row))
                else:
                    current_asks()
                    reply = self._client.execute_command(*command)
                command = protocol.send(reply)
        except StopIteration as stop:
            return stop.value

    async def _arun(self, protocol: Protocol, row: int) -> Any:
        if self._aclient is None:
            self._aclient = cast("Any", aioredis.Redis).from_url(self._url, protocol=2)
        try:
            command = next(protocol)
            while True:
                if command is LOAD:
                    reply: Any = encode(await self._source.aload(row))
                else:
                    current_asks()
                    reply = await self._aclient.execute_command(*command)
                command = protocol.send(reply)
        except StopIteration as stop:
            return stop.value


def current_asks() -> None:
    call = current.get(None)
    if call is not None:
        call.asked = True


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Row).decode
