"""L2 on a cluster: every key on the server that holds its slot, for threads and for event loops.

What a command is in Redis is written once, in encoding.py, and where it goes in routing.py; here it is sent.
No call has keys of two slots. A read is one round trip, to all servers concerned at once, and the reads of
one tick of an event loop go together.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar, Unpack
from weakref import WeakKeyDictionary

from redis.exceptions import RedisError

from cacheaside.breaker import is_outage
from cacheaside.engine.commands import Confirm, Fetch, Scan
from cacheaside.errors import ConfigError
from cacheaside.facts import ServerFacts, fields
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.batching import Batcher
from cacheaside.stores.encoding import Encoder, check, ours
from cacheaside.stores.gates import Gates
from cacheaside.stores.lines import Values
from cacheaside.stores.nodes import AsyncNodes, Nodes
from cacheaside.stores.redis import Remote, RemoteStore, patience
from cacheaside.stores.routing import Exchange, Pause, Route, beaten, dispatch, fetch, scan, visit
from cacheaside.stores.topology import Address, Topology

T = TypeVar("T")

WRITERS: Final = 50
"""Writes of one event loop that are on their way at a time, at most: a crowd of misses waits."""

Connect = Callable[[Address, Callable[[ServerFacts], None]], Any]


class ClusterStore(RemoteStore):
    """A Redis or Valkey cluster.

    Args:
        connect, aconnect: make a client of one server, for threads and for the running event loop, that tells
            of what each connection learns.
        learn: told what is known of a server, before anything that it answers.
        index_limit: entries that a tag's list holds at most.
        remote: as in ``RemoteStore``.
    """

    def __init__(
        self,
        keys: RawKeys,
        topology: Topology,
        connect: Connect,
        aconnect: Connect,
        learn: Callable[[Address, ServerFacts], None],
        *,
        index_limit: int = 10_000,
        **remote: Unpack[Remote],
    ) -> None:
        super().__init__(**remote)
        self.topology = topology
        self.gates = Gates(self._events)
        self._encode = Encoder(keys, self._has_ifeq, index_limit, sharded=True, rights=self.rights)
        self._connect = connect
        self._aconnect = aconnect
        self._learn = learn
        self._facts: dict[Address, ServerFacts] = {}
        self._nodes: Nodes | None = None
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Loop] = WeakKeyDictionary()

    # -- sending

    def _send(self, command: Any) -> Any:
        if type(command) is Fetch:
            return whole(drive(fetch(self.topology, command.keys), self.nodes))
        if type(command) is Confirm:
            return self._confirm(command)
        return drive(self._route(command), self.nodes)

    def _confirm(self, command: Confirm) -> bool:
        channel, name = self.channel, secrets.token_hex(8)
        if channel is None:
            return False
        beats = channel.hub.beats(name.encode(), command.tags)
        heard = channel.expect(name, len(beats))
        try:
            if not beats or not drive(beaten(beats), self.nodes):
                return False
            return heard.result(patience(command.timeout))
        except TimeoutError:
            return False
        finally:
            channel.forget(name)

    async def _asend(self, command: Any) -> Any:
        loop = self.loop
        if type(command) is Fetch:
            return whole(await loop.batcher.fetch(command.keys))
        if type(command) is Confirm:
            return await self._aconfirm(command, loop.nodes)
        async with loop.batcher.turn:
            return await adrive(self._route(command), loop.nodes)

    async def _aconfirm(self, command: Confirm, nodes: AsyncNodes) -> bool:
        channel, name = self.channel, secrets.token_hex(8)
        if channel is None:
            return False
        beats = channel.hub.beats(name.encode(), command.tags)
        heard = asyncio.wrap_future(channel.expect(name, len(beats)))
        try:
            if not beats or not await adrive(beaten(beats), nodes):
                return False
            await asyncio.wait((heard,), timeout=command.timeout)
            return heard.done() and heard.result()
        finally:
            channel.forget(name)

    def _route(self, command: Any) -> Route[Any]:
        if type(command) is Scan:
            cursor, found = yield from scan(
                self.topology,
                command.cursor,  # type: ignore[arg-type]
                command.pattern,
                command.count,
                "zset" if command.lists else "string",
            )
            return cursor, [key for raw in found if (key := ours(raw)) is not None]
        calls, parse = self._encode(command)
        return parse((yield from dispatch(self.topology, calls)))

    # -- servers

    @property
    def nodes(self) -> Nodes:
        """The servers as threads reach them."""
        if self._nodes is None:
            self._nodes = self.connected(self.gates)
        return self._nodes

    def connected(self, gates: Gates | None = None) -> Nodes:
        """The servers by connections of one's own."""
        return Nodes(gates, self._client(self._connect), self._again, self.topology.since)

    def look_again(self) -> None:
        """Ask the servers that are away, and open the gates of those that answer or have been replaced."""
        shut = list(self.gates.shut)
        if shut:
            with suppress(RedisError, OSError, ConfigError):  # by those that are not away, if there are any
                drive(visit(self.topology), self.nodes)
        current = self.topology.primaries
        # Where all are away the others too may be needed, to say who holds what.
        lost = not set(current) - set(shut)
        asked = [address for address in shut if lost or address in current]
        nodes = self.connected()
        try:
            silent = [address for address in asked if not serving(nodes, address)]
        finally:
            nodes.close()
        self.gates.open_all([address for address in shut if address not in silent])

    @property
    def loop(self) -> Loop:
        """The servers as the running event loop reaches them: connections belong to one loop."""
        running = asyncio.get_running_loop()
        loop = self._loops.get(running)
        if loop is None:
            for ended in filter(None, [ref() for ref in self._loops.keyrefs()]):
                if ended.is_closed():  # its connections hold it, and would stay open for ever
                    self._loops.pop(ended, None)
            client = self._client(self._aconnect)
            nodes = AsyncNodes(self.gates, client, self._again, self.topology.since, self.timeout)
            loop = self._loops[running] = Loop(self.topology, nodes, self.timeout)
        return loop

    def _client(self, connect: Connect) -> Callable[[Address], Any]:
        return lambda address: connect(address, lambda facts: self._met(address, facts))

    def _met(self, address: Address, facts: ServerFacts) -> None:
        self._facts[address] = facts
        self._learn(address, facts)

    def _again(self, address: Address, replies: list[Any]) -> None:
        """What a server says of itself that a connection of old leads to."""
        known = self._facts.get(address)
        text: dict[str, str] = {}
        for reply in replies:
            if not isinstance(reply, Exception):
                text |= fields(reply)
        if known is None or not text:
            return
        facts = replace(
            known,
            replid=text.get("master_replid", known.replid),
            role=text.get("role", known.role),
            epoch=text.get("cluster_my_epoch", known.epoch),
        )
        if facts.incarnation != known.incarnation:
            self._met(address, facts)

    def _has_ifeq(self) -> bool:
        return bool(self._facts) and all(facts.has_ifeq for facts in list(self._facts.values()))

    def close(self) -> None:
        if self._nodes is not None:
            self._nodes.close()
            self._nodes = None

    async def aclose(self) -> None:
        """Close the running loop's connections and those of the threads."""
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        if loop is not None:
            await loop.nodes.aclose()
        self.close()


class Loop:
    """What serves one event loop."""

    def __init__(self, topology: Topology, nodes: AsyncNodes, timeout: float) -> None:
        self.writers = WRITERS
        self.nodes = nodes
        self._topology = topology
        self.batcher: Batcher[Loop] = Batcher(self, timeout)

    async def mget(self, keys: tuple[str, ...]) -> Values:
        """The values of ``keys``, in order; an exception in the place of one that is not to be had."""
        return await adrive(fetch(self._topology, keys), self.nodes)


def drive(route: Route[T], nodes: Nodes) -> T:
    """Go a route for a thread."""
    try:
        step = next(route)
        while True:
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                step = route.send(None)
            else:
                step = route.send(nodes.exchange(step))
    except StopIteration as stop:
        result: T = stop.value
        return result


async def adrive(route: Route[T], nodes: AsyncNodes) -> T:
    """``drive`` on an event loop."""
    try:
        step = next(route)
        while True:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                step = route.send(None)
            else:
                step = route.send(await nodes.exchange(step))
    except StopIteration as stop:
        result: T = stop.value
        return result


def serving(nodes: Nodes, address: Address) -> bool:
    """Whether a server answers, and is one of a cluster."""
    try:
        answer = nodes.exchange(Exchange({address: [("PING",)]}))[address]
    except ConfigError:
        return False
    return not isinstance(answer, Exception) and not (
        isinstance(answer[0], Exception) and is_outage(answer[0])
    )


def whole(values: list[Any]) -> Values:
    """These values; raises what is an error among them."""
    for value in values:
        if isinstance(value, Exception):
            check(value)
    return values
