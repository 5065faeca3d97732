"""Connections to the servers of a cluster, and exchanges with several of them at once.

As in lines.py, a connection waits in a deque of its own and goes back there only after whole replies. Once a
second each is asked again whose it is: a server that was demoted and promoted again meanwhile, or that has
taken over slots, is another incarnation, and nothing has broken its connections.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cacheaside.budget import give_up
from cacheaside.events import Events
from cacheaside.stores.gates import Gates
from cacheaside.stores.lines import packed
from cacheaside.stores.routing import Call, Exchange
from cacheaside.stores.topology import Address

ASK_EVERY: Final = 1.0
"""Seconds after which a connection is asked again whose it is. No failover and back is as short; a slot that
comes back, and of which nothing was heard here, is noticed so much later."""
WHO: Final = (("INFO", "replication"), ("CLUSTER", "INFO"))
ASKING: Final = ("ASKING",)

Answer = list[Any] | Exception
Again = Callable[[Address, list[Any]], None]


class Batch:
    """What goes to one server in one packet, and which of its replies are the answer.

    ``asked`` is when the connection was last asked whose it is, 0 for a new one, which has just said so;
    ``since`` when its server came to be the one to speak to.
    """

    def __init__(self, address: Address, exchange: Exchange, asked: float = 0.0, since: float = 0.0) -> None:
        self.address = address
        self.kept = asked > 0
        now = time.monotonic()
        self.asks = self.kept and (asked < since or now - asked > ASK_EVERY)
        self.asked = asked if self.kept and not self.asks else now
        calls = exchange.calls[address]
        self.harmless = all(call[0] == "MGET" for call in calls)
        """Whether it may be sent twice."""
        self.calls: list[Call] = list(WHO) if self.asks else []
        self.wanted: list[bool] = [False] * len(self.calls)
        for n, call in enumerate(calls):
            if exchange.asking and (address, n) in exchange.asking:
                self.calls.append(ASKING)
                self.wanted.append(False)
            self.calls.append(call)
            self.wanted.append(True)

    def pack(self, connection: Any) -> Any:
        if self.harmless and not self.asks and len(self.calls) == sum(self.wanted):
            # A third of the time that redis-py takes.
            return [b"".join([packed(call[1:]) for call in self.calls])]
        return connection.pack_commands([by_hash(call) for call in self.calls])

    def answer(self, replies: list[Any], again: Again) -> list[Any]:
        if self.asks:
            again(self.address, replies[: len(WHO)])
        if len(replies) == sum(self.wanted):
            return replies
        return [reply for reply, wanted in zip(replies, self.wanted, strict=True) if wanted]


class Ended(RedisConnectionError):
    """A connection was closed while it was not used, and carried nothing: that says nothing of its server."""


class Failures:
    """What went wrong in an exchange. Of several servers that were too late only the first is to blame, and
    none if the time was up before: the others were asked in vain."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self._began = time.monotonic()
        self._late = give_up.get() <= self._began

    def note(self, address: Address, error: Exception) -> Exception:
        late = isinstance(error, (RedisTimeoutError, TimeoutError))
        if not (late and self._late):
            self._gates.failed(address, error, self._began)
        self._late = self._late or late
        return error


class Nodes:
    """The servers of a cluster as threads reach them.

    Args:
        gates: which servers are away; None asks all.
        connect: makes a client of one server.
        again: told what a server says of itself (the replies to ``WHO``) that an old connection leads to,
            before what it says else.
        since: when it was found out that a server is the one to speak to.
    """

    def __init__(
        self,
        gates: Gates | None,
        connect: Callable[[Address], Any],
        again: Again,
        since: Callable[[Address], float],
    ) -> None:
        self._gates = gates if gates is not None else Gates(Events(None), limit=math.inf)
        self._connect = connect
        self._again = again
        self._since = since
        self._clients: dict[Address, Any] = {}
        self._kept: dict[Address, deque[tuple[Any, float]]] = {}
        self._pid = os.getpid()
        self._closed = False

    def exchange(self, exchange: Exchange) -> dict[Address, Answer]:
        """Send to all, then read from all: one round trip."""
        if self._pid != os.getpid():  # the parent goes on using its own
            self._kept, self._pid = {}, os.getpid()
        gates = self._gates
        answers: dict[Address, Answer] = {}
        if gates.shut:
            exchange, answers = gates.pass_through(exchange)
        sent: list[tuple[Batch, Any]] = []
        again: list[Address] = []
        failures = Failures(gates)
        try:
            for address in exchange.calls:
                try:
                    sent.append(self._send(address, exchange))
                except (RedisError, OSError) as error:
                    answers[address] = failures.note(address, error)
            while sent:
                batch, line = sent[0]
                try:
                    answers[batch.address] = self._read(batch, line)
                    if batch.address in gates.failing:
                        gates.served(batch.address)
                except (RedisError, OSError) as error:
                    if batch.kept and batch.harmless and isinstance(error, RedisConnectionError):
                        again.append(batch.address)
                    else:
                        answers[batch.address] = failures.note(batch.address, error)
                sent.pop(0)
        except BaseException:
            for batch, line in sent:
                self._drop(batch.address, line)
            raise
        for address in again:
            try:
                answers[address] = self._read(*self._send(address, exchange, fresh=True))
            except (RedisError, OSError) as error:
                answers[address] = failures.note(address, error)
        return answers

    def client(self, address: Address) -> Any:
        """A client of one server."""
        client = self._clients.get(address)
        if client is None:
            client = self._clients.setdefault(address, self._connect(address))
        return client

    def close(self) -> None:
        """End the connections; one that another thread is using ends when that thread is done with it."""
        self._closed = True
        for address, kept in list(self._kept.items()):
            while kept and self._pid == os.getpid():
                self._drop(address, kept.pop()[0])
        for client in self._clients.values():
            client.connection_pool.disconnect(inuse_connections=False)

    def _send(self, address: Address, exchange: Exchange, *, fresh: bool = False) -> tuple[Batch, Any]:
        line, asked = (None, 0.0) if fresh else take(self._kept, address)
        batch = Batch(address, exchange, asked, self._since(address))
        if line is None:
            line = self.client(address).connection_pool.get_connection()
        try:
            if batch.kept and not batch.harmless and line.can_read():
                raise Ended
            line.send_packed_command(batch.pack(line))
        except BaseException as error:
            self._drop(address, line)
            if isinstance(error, Ended) or (batch.kept and batch.harmless and _broken(error)):
                return self._send(address, exchange, fresh=True)
            raise
        return batch, line

    def _read(self, batch: Batch, line: Any) -> list[Any]:
        replies: list[Any] = []
        try:
            for _ in batch.calls:
                try:
                    replies.append(line.read_response())
                except ResponseError as error:
                    replies.append(error)
            answer = batch.answer(replies, self._again)
        except BaseException:
            self._drop(batch.address, line)
            raise
        if self._closed:
            self._drop(batch.address, line)
        else:
            self._kept.setdefault(batch.address, deque()).append((line, batch.asked))
        return answer

    def _drop(self, address: Address, line: Any) -> None:
        line.disconnect()
        self.client(address).connection_pool.release(line)


class AsyncNodes:
    """``Nodes`` for one event loop, whose commands take ``timeout`` seconds at most."""

    def __init__(
        self,
        gates: Gates,
        connect: Callable[[Address], Any],
        again: Again,
        since: Callable[[Address], float],
        timeout: float,
    ) -> None:
        self._gates = gates
        self._patience = timeout / 2
        self._connect = connect
        self._again = again
        self._since = since
        self._clients: dict[Address, Any] = {}
        self._kept: dict[Address, deque[tuple[Any, float]]] = {}

    async def exchange(self, exchange: Exchange) -> dict[Address, Answer]:
        """Ask all at once."""
        refused: dict[Address, Answer] = {}
        if self._gates.shut:
            exchange, refused = self._gates.pass_through(exchange)
        addresses = list(exchange.calls)
        if len(addresses) == 1:
            return {addresses[0]: await self._ask(addresses[0], exchange), **refused}
        answers = await asyncio.gather(*(self._ask(address, exchange) for address in addresses))
        return {**dict(zip(addresses, answers, strict=True)), **refused}

    def client(self, address: Address) -> Any:
        """A client of one server."""
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._connect(address)
        return client

    async def aclose(self) -> None:
        for address, kept in list(self._kept.items()):
            while kept:
                await self._drop(address, kept.pop()[0])
        for client in list(self._clients.values()):
            await client.aclose()

    async def _ask(self, address: Address, exchange: Exchange) -> Answer:
        began = time.monotonic()
        try:
            answer = await self._answer(address, exchange)
        except (RedisError, OSError) as error:
            self._gates.failed(address, error, began)
            return error
        except asyncio.CancelledError:
            # Whoever asked gives up: the timers are his.
            if time.monotonic() - began > self._patience:
                self._gates.failed(address, TimeoutError("it does not answer"), began)
            raise
        if address in self._gates.failing:
            self._gates.served(address)
        return answer

    async def _answer(self, address: Address, exchange: Exchange) -> list[Any]:
        line, asked = take(self._kept, address)
        if line is not None:
            batch = Batch(address, exchange, asked, self._since(address))
            try:
                return await self._through(line, batch)
            except RedisConnectionError as error:
                if not (batch.harmless or isinstance(error, Ended)):
                    raise
        line = await self.client(address).connection_pool.get_connection()
        return await self._through(line, Batch(address, exchange))

    async def _through(self, line: Any, batch: Batch) -> list[Any]:
        replies: list[Any] = []
        try:
            if batch.kept and not batch.harmless and await line.can_read():
                raise Ended
            await line.send_packed_command(batch.pack(line))
            for _ in batch.calls:
                try:
                    replies.append(await line.read_response())
                except ResponseError as error:
                    replies.append(error)
            answer = batch.answer(replies, self._again)
        except BaseException:
            await self._drop(batch.address, line)
            raise
        self._kept.setdefault(batch.address, deque()).append((line, batch.asked))
        return answer

    async def _drop(self, address: Address, line: Any) -> None:
        await line.disconnect(nowait=True)
        await self.client(address).connection_pool.release(line)


def take(kept: dict[Address, deque[tuple[Any, float]]], address: Address) -> tuple[Any, float]:
    """A connection that waits, and when it was asked last whose it is; None if there is none."""
    try:
        return kept[address].pop()
    except (KeyError, IndexError):
        return None, 0.0


def _broken(error: BaseException) -> bool:
    return isinstance(error, RedisConnectionError)


def by_hash(call: Call) -> Call:
    """A call as it is sent: scripts by their hash."""
    return ("EVALSHA", call[1].sha, *call[2:]) if call[0] == "EVALSHA" else call
