"""Whom the coherence channel listens to: one server, or all that hold a bucket of tags.

A line is one subscription on one server. It carries the announcements of some buckets, and the heartbeats
that this process sends itself down it; what one line carries comes in the order in which it was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol

from redis.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from cacheaside.rawkeys import RawKeys
from cacheaside.stores.cluster import ClusterStore, drive
from cacheaside.stores.encoding import Call, check, script
from cacheaside.stores.nodes import Nodes
from cacheaside.stores.redis import send_all
from cacheaside.stores.routing import beaten, visit
from cacheaside.stores.topology import Address

LIFE: Final = 10
"""Windows that the key of a heartbeat lives."""


class Hub(Protocol):
    """What a channel needs of its servers."""

    publics: frozenset[bytes]
    """The channels of all buckets."""

    def subscribe(self, identity: str) -> list[Any]:
        """Subscribe to everything, and to a channel of one's own on each line: the lines, as redis-py has
        them."""
        ...

    def beat(self, names: list[bytes]) -> None:
        """Send a heartbeat down each line by the write path: a server that takes no writes sends none
        back."""
        ...

    def close(self) -> None: ...


class OneServer:
    """A single server, which has one line.

    Args:
        connect: makes a client for threads.
        window: seconds that L1 may lag behind an invalidation.
    """

    def __init__(self, keys: RawKeys, connect: Callable[[], Any], window: float) -> None:
        self._connect = connect
        self._life = int(window * LIFE * 1000)
        self._channel = keys.channel(0)
        self._private = ""
        self._client: Any = None
        self.publics = frozenset((self._channel.encode(),))

    def subscribe(self, identity: str) -> list[Any]:
        if self._client is None:
            self._client = self._connect()
        self._private = f"{self._channel}:hb:{identity}"
        line = self._client.pubsub()
        try:
            line.subscribe(self._channel, self._private)
        except BaseException:
            line.close()
            raise
        return [line]

    def beat(self, names: list[bytes]) -> None:
        for reply in send_all(self._client, self.beats(names[0])):
            check(reply)

    def beats(self, name: bytes) -> list[Call]:
        """What sends a heartbeat down the line, through whatever client."""
        return [script("beat")((self._private,), name, self._life, "PUBLISH")]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class Line(PubSub):
    """A subscription that is not mended: redis-py would ask for channels of many slots at once."""

    def on_connect(self, connection: Any) -> None:
        raise RedisConnectionError("the line was cut")


class Shard:
    """A server of a cluster and the buckets whose slots it holds."""

    def __init__(self, address: Address, buckets: list[int]) -> None:
        self.address = address
        self.buckets = buckets


class Shards:
    """A cluster: a line to each server that holds a bucket, by sharded publish and subscribe.

    While a slot moves, what is published may come by another server than the one that is listened to. So a
    heartbeat comes with a question for a key that nobody has, in the slot of every bucket: a server answers
    it only while the slot is its own and stays.
    """

    def __init__(self, keys: RawKeys, store: ClusterStore, buckets: int, window: float) -> None:
        self._keys = keys
        self._topology = store.topology
        self._connect = store.connected
        self._nodes: Nodes | None = None
        self._buckets = buckets
        self._life = int(window * LIFE * 1000)
        self._identity = ""
        self._shards: list[Shard] = []
        self.publics = frozenset(keys.channel(bucket).encode() for bucket in range(buckets))

    def subscribe(self, identity: str) -> list[Any]:
        self._identity = identity
        nodes = self._nodes = self._nodes or self._connect()
        drive(visit(self._topology), nodes)
        held: dict[Address, list[int]] = {}
        for bucket in range(self._buckets):
            address = self._topology.server_of(self._keys.channel(bucket))
            if address is None:
                raise RedisConnectionError(f"no server of the cluster holds {self._keys.channel(bucket)}")
            held.setdefault(address, []).append(bucket)
        self._shards = [Shard(address, buckets) for address, buckets in held.items()]
        lines: list[Any] = []
        try:
            for shard in self._shards:
                line = Line(nodes.client(shard.address).connection_pool)
                lines.append(line)
                for channel in (*map(self._keys.channel, shard.buckets), self._private(shard)):
                    line.ssubscribe(channel)  # one by one: they are of many slots
        except BaseException:
            for line in lines:
                with suppress(RedisError, OSError):
                    line.close()
            raise
        return lines

    def beat(self, names: list[bytes]) -> None:
        shards = zip(self._shards, names, strict=True)
        calls = {s.address: self._beats(s, s.buckets, name) for s, name in shards}
        if self._nodes is None or not drive(beaten(calls), self._nodes):
            raise RedisConnectionError("a slot of the cluster has moved or is moving")

    def beats(self, name: bytes, tags: Iterable[str]) -> dict[Address, list[Call]]:
        """What sends a heartbeat down the lines that carry these tags."""
        wanted = {self._keys.bucket(tag) for tag in tags}
        concerned = [(shard, [b for b in shard.buckets if b in wanted]) for shard in self._shards]
        return {shard.address: self._beats(shard, buckets, name) for shard, buckets in concerned if buckets}

    def _beats(self, shard: Shard, buckets: list[int], name: bytes) -> list[Call]:
        asked = [("EXISTS", self._keys.channel(bucket)) for bucket in buckets]
        return [*asked, script("beat")((self._private(shard),), name, self._life, "SPUBLISH")]

    def _private(self, shard: Shard) -> str:
        return f"{self._keys.channel(shard.buckets[0])}:hb:{self._identity}"

    def close(self) -> None:
        if self._nodes is not None:
            self._nodes.close()
            self._nodes = None
