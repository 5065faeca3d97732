"""Connections kept at hand for reads, which the hit path goes over without the client's ceremony.

Taking a connection from redis-py's pool, checking it, and the retries and measuring around a command
cost as much as the rest of a read. Here a connection waits in a deque instead. It goes back there only
after a whole reply, so it never holds half of one; and one that the server has closed meanwhile shows
when it is used, which a read stands: it is repeated, once, by way of the pool.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Final

from redis import ConnectionPool
from redis.asyncio import ConnectionPool as AsyncConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from cacheaside.stores.replies import read_values

Values = list[bytes | None]

STRANGE: Final = "what came is not the answer to what was asked"
WRITERS: Final = 50
"""Connections of a loop that are written on at a time, at most."""


class Lines:
    """A client for threads, and its connections kept for reads."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._pool = plain_pool(client, ConnectionPool)
        self._kept: deque[Any] = deque()
        self._pid = os.getpid()

    def mget(self, keys: tuple[str, ...]) -> Values:
        """The values of ``keys``, in order."""
        pool = self._pool
        if pool is None:
            return self.client.execute_command("MGET", *keys)  # type: ignore[no-any-return]
        if self._pid != os.getpid():  # the parent goes on using its own
            self._kept, self._pid = deque(), os.getpid()
        try:
            line, kept = self._kept.pop(), True
        except IndexError:
            line, kept = pool.get_connection(), False
        try:
            line.send_packed_command((packed(keys),))
            values: Values = line.read_response()
            if type(values) is not list or len(values) != len(keys):
                raise InvalidResponse(STRANGE)
        except BaseException as error:
            if not isinstance(error, ResponseError):
                line.disconnect()
            pool.release(line)
            if kept and isinstance(error, RedisConnectionError):
                return self.client.execute_command("MGET", *keys)  # type: ignore[no-any-return]
            raise
        self._kept.append(line)
        return values

    def pooled(self) -> Any:
        """The client, with a connection given back to its pool if one is kept: it is about to take one."""
        if self._kept and self._pid == os.getpid():
            try:
                self._pool.release(self._kept.pop())
            except IndexError:  # another thread was faster
                pass
        return self.client

    def close(self) -> None:
        """End the connections; one that another thread is using ends when that thread is done with it."""
        if self._pool is None:
            self.client.close()
            return
        while self._kept and self._pid == os.getpid():
            self.pooled()
        self._pool.disconnect(inuse_connections=False)


class AsyncLines:
    """``Lines`` for one event loop."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._pool = plain_pool(client, AsyncConnectionPool)
        self._kept: deque[Any] = deque()
        limit = getattr(getattr(client, "connection_pool", client), "max_connections", None) or WRITERS
        # The rest is for reads, of which there are few: one for each tick of the loop.
        self.writers = max(1, min(WRITERS, limit // 2))

    async def mget(self, keys: tuple[str, ...]) -> Values:
        pool = self._pool
        if pool is None:
            return await self.client.execute_command("MGET", *keys)  # type: ignore[no-any-return]
        try:
            line, kept = self._kept.pop(), True
        except IndexError:
            line, kept = await pool.get_connection(), False
        try:
            await line.send_packed_command((packed(keys),))
            values: Values = await read_values(line, len(keys))
            if type(values) is not list or len(values) != len(keys):
                raise InvalidResponse(STRANGE)
        except BaseException as error:
            if not isinstance(error, ResponseError):
                await line.disconnect(nowait=True)
            await pool.release(line)
            if kept and isinstance(error, RedisConnectionError):
                return await self.client.execute_command("MGET", *keys)  # type: ignore[no-any-return]
            raise
        self._kept.append(line)
        return values

    async def pooled(self) -> Any:
        if self._kept:
            await self._pool.release(self._kept.pop())
        return self.client


def plain_pool(client: Any, kind: type[Any]) -> Any:
    """The client's pool; None for a cluster's or a sentinel's, which watch over what goes back to them."""
    pool = getattr(client, "connection_pool", None)
    return pool if type(pool) is kind else None


def packed(keys: tuple[str, ...]) -> bytes:
    """The MGET of ``keys`` as the server reads it."""
    parts = [b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1)]
    for key in keys:
        raw = key.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)
