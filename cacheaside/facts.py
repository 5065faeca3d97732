"""What a server says about itself: asked on every new connection, before its first command.

A restart or a failover always breaks connections, so no command can reach a server that was not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final, cast
from weakref import ref

import redis
import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster
from redis.exceptions import InvalidResponse, NoPermissionError, RedisError, ResponseError

from cacheaside.errors import ConfigError
from cacheaside.redaction import without
from cacheaside.sockets import PunctualSocket
from cacheaside.urls import Endpoint

_SECTIONS: Final = ("server", "replication")
_ONE_SERVER: Final = tuple(("INFO", section) for section in _SECTIONS)
_OF_CLUSTER: Final = (*_ONE_SERVER, ("CLUSTER", "INFO"))


@dataclass(frozen=True)
class ServerFacts:
    """What a server says about itself; all defaults where it does not say (INFO forbidden or unknown).

    ``replid`` is its ``master_replid``, ``replid2`` its ``master_replid2`` ("" for none), ``role`` is
    "master" or "slave" and ``mode`` "standalone", "cluster" or "sentinel", as Redis words it. ``epoch`` is
    its configuration epoch in a cluster, which is a new one when it takes slots over. ``uptime`` is seconds
    since its process was started, ``again`` whether it was learnt by a connection that was open
    before and had been lost, and ``connection`` a weak reference to that connection.
    """

    version: tuple[int, ...] = (7, 0)
    valkey: bool = False
    run_id: str = ""
    replid: str = ""
    replid2: str = ""
    role: str = ""
    mode: str = ""
    epoch: str = ""
    uptime: float = field(default=0.0, compare=False)
    again: bool = field(default=False, compare=False)
    connection: ref[Any] | None = field(default=None, compare=False, repr=False)

    @property
    def has_ifeq(self) -> bool:
        """Whether ``SET ... IFEQ`` is there: Redis 8.4, Valkey 8.1."""
        return self.version >= ((8, 1) if self.valkey else (8, 4))

    @property
    def incarnation(self) -> bytes:
        """Eight bytes that change with a restart, a promotion and, in a cluster, when slots come over: a slot
        that was away may come back with what was invalidated there. Zeros when the server is unknown."""
        if not self.run_id:
            return bytes(8)
        return blake2b((self.run_id + self.replid + self.epoch).encode(), digest_size=8).digest()


OnConnect = Callable[[ServerFacts], None]


def parse_info(info: Mapping[str, object]) -> ServerFacts:
    """Read the sections ``server`` and ``replication`` of INFO; values are text or what redis-py makes of it.

    Raises ConfigError for a server older than Redis 7.0.
    """
    text = {name: str(value) for name, value in info.items()}
    valkey = "valkey_version" in text
    written = text.get("valkey_version") or text.get("redis_version", "")
    version = tuple(map(int, re.findall(r"\d+", written)[:3])) or ServerFacts.version
    if not valkey and version < (7, 0):
        raise ConfigError(f"needs Redis >= 7.0 or Valkey; this is {written}")
    replid2 = text.get("master_replid2", "")
    return ServerFacts(
        version=version,
        valkey=valkey,
        run_id=text.get("run_id", ""),
        replid=text.get("master_replid", ""),
        # "No predecessor" is forty zeros, which redis-py's info() turns into the number 0.
        replid2=replid2 if replid2.strip("0") else "",
        role=text.get("role", ""),
        mode=text.get("redis_mode") or text.get("server_mode", ""),
        epoch=text.get("cluster_my_epoch", ""),
        uptime=float(text.get("uptime_in_seconds", "0")),
    )


def fields(reply: object) -> dict[str, str]:
    """What a reply to INFO says."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value for name, colon, value in pairs if colon}


def fit(endpoint: Endpoint, facts: ServerFacts) -> ServerFacts:
    """The same facts. Raises ConfigError where the URL names another kind of server."""
    if facts.mode == "sentinel":
        raise ConfigError(f"{endpoint.safe} is a sentinel: write redis+sentinel://host:port/service")
    if facts.mode == "cluster" and not endpoint.cluster:
        raise ConfigError(f"{endpoint.safe} is a node of a cluster: write redis+cluster://host:port")
    if facts.mode == "standalone" and endpoint.cluster:
        raise ConfigError(f"{endpoint.safe} is a single server, not a cluster: write redis://host:port")
    return facts


def is_silence(error: ResponseError) -> bool:
    """Whether a server does not say what it is: the question is forbidden, renamed or unknown (fakeredis), or
    is about a cluster that it is no node of.

    Any other error (BUSY, LOADING) is not about the question: it may say so later.
    """
    words = str(error).lower()
    return isinstance(error, NoPermissionError) or "unknown" in words or "cluster support disabled" in words


def facts_of(client: redis.Redis | RedisCluster) -> ServerFacts:
    """Ask a ready client; defaults where INFO is forbidden or missing (fakeredis).

    Raises ConfigError for a server older than Redis 7.0.
    """
    info: dict[str, object] = {}
    for section in _SECTIONS:
        try:
            info |= cast("Any", client).info(section)
        except ResponseError as error:
            if not is_silence(error):
                raise
    return parse_info(info)


async def afacts_of(client: aioredis.Redis | AsyncRedisCluster) -> ServerFacts:
    """``facts_of`` for an asyncio client."""
    info: dict[str, object] = {}
    for section in _SECTIONS:
        try:
            info |= await cast("Any", client).info(section)
        except ResponseError as error:
            if not is_silence(error):
                raise
    return parse_info(info)


def learner(endpoint: Endpoint, on_connect: OnConnect | None, *, handshake: bool) -> Callable[[Any], None]:
    """What makes a connection ready and tells ``on_connect`` of its server; None for a sentinel."""

    def learn(connection: Any) -> None:
        try:
            connection._sock = PunctualSocket(connection._sock, connection.socket_timeout)
            if handshake:
                with only_redis():
                    connection.on_connect()
            else:  # done already, with the socket as it was
                connection._parser.on_connect(connection)
            if on_connect is None:
                return
            questions = _OF_CLUSTER if endpoint.cluster else _ONE_SERVER
            for question in questions:
                connection.send_command(*question)
            info: dict[str, str] = {}
            for _ in questions:
                try:
                    info |= fields(connection.read_response())
                except ResponseError as error:
                    if not is_silence(error):
                        raise
            with only_redis():
                facts = fit(endpoint, parse_info(info))
            on_connect(_met(connection, facts))
            return
        except RedisError as error:
            connection.disconnect()
            clean = without(error, endpoint.secrets)
            if clean is error:
                raise
        except BaseException:
            # redis-py closes the socket for its own errors only; after another one the pool would hand out
            # a connection whose server nobody has looked at.
            connection.disconnect()
            raise
        raise clean

    return learn


def alearner(endpoint: Endpoint, on_connect: OnConnect | None) -> Callable[[Any], Any]:
    """``learner`` for event loops."""

    async def learn(connection: Any) -> None:
        try:
            with only_redis():
                await connection.on_connect()
            if on_connect is None:
                return
            questions = _OF_CLUSTER if endpoint.cluster else _ONE_SERVER
            for question in questions:
                await connection.send_command(*question)
            info: dict[str, str] = {}
            for _ in questions:
                try:
                    info |= fields(await connection.read_response())
                except ResponseError as error:
                    if not is_silence(error):
                        raise
            with only_redis():
                facts = fit(endpoint, parse_info(info))
            on_connect(_met(connection, facts))
            return
        except RedisError as error:
            await connection.disconnect(nowait=True)
            clean = without(error, endpoint.secrets)
            if clean is error:
                raise
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        raise clean

    return learn


@contextmanager
def only_redis() -> Generator[None]:
    """Whatever goes wrong with answers that no Redis gives is an error of redis-py's."""
    try:
        yield
    except ConfigError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InvalidResponse("what answers here is not Redis") from error


def _met(connection: Any, facts: ServerFacts) -> ServerFacts:
    """What a connection has learnt, that it has, and whether it is not its first server."""
    again = getattr(connection, "cacheaside_met", False)
    connection.cacheaside_met = True
    return replace(facts, again=again, connection=ref(connection))
