"""Clients of Redis that fail fast: half a second, no retry; whether to try again is decided by who calls.

Every connection that they open tells ``on_connect`` about its server before the first command (facts.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any, Final, cast

import redis
import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.driver_info import DriverInfo
from redis.exceptions import (
    RedisClusterException,
)
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import Sentinel

from cacheaside.errors import ConfigError
from cacheaside.facts import OnConnect, alearner, learner
from cacheaside.sockets import PUNCTUAL
from cacheaside.urls import Endpoint

_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def connect(endpoint: Endpoint, on_connect: OnConnect) -> redis.Redis | RedisCluster:
    """Make a client for threads. ``on_connect`` is told about the server on every new connection, before the
    first command; an error it raises reaches the caller of that command.

    Connections are opened when needed, except that a cluster is visited at once to learn its slots. Raises
    ConfigError for a TLS file that is not there; for a cluster also ConfigError for an old server and
    redis-py's errors for one that does not answer.
    """
    options = _client_options(endpoint)
    if endpoint.cluster:
        nodes = [cast("Any", ClusterNode)(host, port) for host, port in endpoint.hosts]
        options["redis_connect_func"] = learner(endpoint, on_connect, handshake=False)
        try:
            return RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), 0), **options)
        except RedisClusterException as error:
            raise _reason(error) from error
    options |= {
        "db": endpoint.db,
        "retry": Retry(NoBackoff(), 0),
        "redis_connect_func": learner(endpoint, on_connect, handshake=True),
    }
    if endpoint.sentinel:
        sentinel: Any = cast("Any", Sentinel)(
            endpoint.hosts,
            sentinel_kwargs=_sentinel_options(endpoint)
            | {
                "retry": Retry(NoBackoff(), 0),
                "redis_connect_func": learner(endpoint, None, handshake=True),
            },
            **options,
        )
        return cast("redis.Redis", sentinel.master_for(endpoint.service, redis_class=_SentinelRedis))
    if endpoint.scheme == "unix":
        return redis.Redis(unix_socket_path=endpoint.path, **options)
    ((host, port),) = endpoint.hosts
    return _punctual(redis.Redis(host=host, port=port, **options))


def connect_node(endpoint: Endpoint, address: tuple[str, int], on_connect: OnConnect) -> redis.Redis:
    """Make a client of one server of a cluster, for threads."""
    options: dict[str, Any] = _client_options(endpoint) | {
        "retry": Retry(NoBackoff(), 0),
        "redis_connect_func": learner(endpoint, on_connect, handshake=True),
    }
    return _punctual(redis.Redis(host=address[0], port=address[1], **options))


def connect_sentinel(endpoint: Endpoint, address: tuple[str, int]) -> redis.Redis:
    """Make a client of one sentinel, for threads."""
    options: dict[str, Any] = _sentinel_options(endpoint) | {
        "retry": Retry(NoBackoff(), 0),
        "redis_connect_func": learner(endpoint, None, handshake=True),
    }
    return _punctual(redis.Redis(host=address[0], port=address[1], **options))


def aconnect_node(endpoint: Endpoint, address: tuple[str, int], on_connect: OnConnect) -> aioredis.Redis:
    """``connect_node`` for one event loop."""
    options: dict[str, Any] = _client_options(endpoint) | {
        "retry": AsyncRetry(NoBackoff(), 0),
        "redis_connect_func": alearner(endpoint, on_connect),
        "socket_timeout": None,  # its commands are bounded by asyncio.timeout
    }
    return aioredis.Redis(host=address[0], port=address[1], **options)


def aconnect(
    endpoint: Endpoint, on_connect: OnConnect, *, punctual: bool = False
) -> aioredis.Redis | AsyncRedisCluster:
    """Make a client for one event loop: as ``connect``, but nothing is sent before the first command.

    ``punctual`` is for who bounds its commands with ``asyncio.timeout``: redis-py's own timers, several for
    each command, are left out.
    """
    options = _client_options(endpoint)
    if punctual:
        options["socket_timeout"] = None
    learner = alearner(endpoint, on_connect)
    if endpoint.cluster:
        nodes = [AsyncClusterNode(host, port) for host, port in endpoint.hosts]
        cluster = _AsyncCluster(startup_nodes=nodes, retry=AsyncRetry(NoBackoff(), 0), **options)
        cluster.call_on_connect(learner)
        return cluster
    options |= {"db": endpoint.db, "retry": AsyncRetry(NoBackoff(), 0), "redis_connect_func": learner}
    if endpoint.sentinel:
        sentinel: Any = cast("Any", AsyncSentinel)(
            list(endpoint.hosts),
            sentinel_kwargs=_sentinel_options(endpoint)
            | {"retry": AsyncRetry(NoBackoff(), 0), "redis_connect_func": alearner(endpoint, None)},
            **options,
        )
        return cast("aioredis.Redis", sentinel.master_for(endpoint.service, redis_class=_AsyncSentinelRedis))
    if endpoint.scheme == "unix":
        return aioredis.Redis(unix_socket_path=endpoint.path, **options)
    ((host, port),) = endpoint.hosts
    return aioredis.Redis(host=host, port=port, **options)


def _punctual(client: redis.Redis) -> redis.Redis:
    """The same client, whose connections are made in time."""
    pool: Any = client.connection_pool
    pool.connection_class = PUNCTUAL[pool.connection_class]
    return client


def _client_options(endpoint: Endpoint) -> dict[str, Any]:
    return {
        **_hop_options(endpoint),
        "username": endpoint.username,
        "password": endpoint.password,
        "client_name": endpoint.client_name,
        "max_connections": endpoint.max_connections,
    }


def _sentinel_options(endpoint: Endpoint) -> dict[str, Any]:
    return {
        **_hop_options(endpoint),
        "username": endpoint.sentinel_username,
        "password": endpoint.sentinel_password,
    }


def _hop_options(endpoint: Endpoint) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": endpoint.wait,
        "socket_connect_timeout": endpoint.connect_wait,
        "protocol": endpoint.protocol,
        "legacy_responses": False,
        "driver_info": DriverInfo().add_upstream_driver("cacheaside", _version()),
        # They stretch the timeouts to many seconds, and with them the pool no longer checks that a connection
        # it hands out has no unread reply.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if endpoint.tls:
        for name in _TLS_FILES:
            file = getattr(endpoint, name)
            # redis-py would report a missing file as a server that cannot be reached.
            if file is not None and not os.path.isfile(file):
                raise ConfigError(f"{name} is {file!r}, and no such file exists")
            options[name] = file
        options |= {"ssl": True, "ssl_cert_reqs": endpoint.ssl_cert_reqs}
    return options


@cache
def _version() -> str:
    try:
        return metadata.version("cacheaside")
    except metadata.PackageNotFoundError:
        return "unknown"


def _reason(error: RedisClusterException) -> Exception:
    """The ConfigError behind a failed visit to a cluster, if that is why it failed."""
    return error.__cause__ if isinstance(error.__cause__, ConfigError) else error


class _SentinelRedis(redis.Redis):
    """A client of the primary that also closes its connections to the sentinels."""

    def close(self) -> None:
        super().close()
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            sentinel.close()


class _AsyncSentinelRedis(aioredis.Redis):
    """A client of the primary that also closes its connections to the sentinels."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


class _AsyncCluster(AsyncRedisCluster):
    """The asyncio cluster client with what its synchronous twin has: a hook for new connections."""

    def call_on_connect(self, hook: Callable[[Any], Any]) -> None:
        self.connection_kwargs["redis_connect_func"] = hook
        for node in self.startup_nodes:
            node.connection_kwargs["redis_connect_func"] = hook

    async def initialize(self, *args: Any, **kwargs: Any) -> AsyncRedisCluster:
        try:
            return await super().initialize(*args, **kwargs)
        except RedisClusterException as error:
            raise _reason(error) from error
