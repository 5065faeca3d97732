"""Where Redis is and what it is: URLs, clients, and the facts each new connection learns about its server.

A client made here fails fast (one second, no retry: whether to try again is decided by who calls) and tells
``on_connect`` about the server before the first command goes out on every connection it opens. A restart or
a failover always breaks connections, so no command can reach a server that was not looked at.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import metadata
from typing import Any, Final, cast
from urllib.parse import quote, unquote

import redis
import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.driver_info import DriverInfo
from redis.exceptions import RedisClusterException, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import Sentinel

from .errors import ConfigError

SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)
_SECTIONS: Final = ("server", "replication")
_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, repr=False)
class Endpoint:
    """What a URL says: where the servers are and how to speak to them. Its repr shows no secret.

    ``timeout`` and ``connect_timeout`` are seconds; ``protocol`` is the RESP version, 2 or 3;
    ``max_connections`` bounds one client's pool (in a cluster: for each node).
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    db: int = 0
    username: str | None = None
    password: str | None = None
    path: str = ""
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    timeout: float = 1.0
    connect_timeout: float = 1.0
    protocol: int = 3
    max_connections: int = 100
    client_name: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: str = "required"
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None

    @property
    def tls(self) -> bool:
        """Whether every hop is encrypted."""
        return self.scheme.startswith("rediss")

    @property
    def cluster(self) -> bool:
        """Whether the hosts are nodes of a Redis Cluster."""
        return self.scheme.endswith("+cluster")

    @property
    def sentinel(self) -> bool:
        """Whether the hosts are sentinels that know where the primary is."""
        return self.scheme.endswith("+sentinel")

    @property
    def safe(self) -> str:
        """The URL without any secret, for logs, spans and reprs."""
        if self.username and self.password:
            login = f"{quote(self.username)}:***@"
        else:
            # A lone user name is often a password whose colon was forgotten.
            login = "***@" if self.username or self.password else ""
        if self.scheme == "unix":
            return f"unix://{login}{self.path}" + (f"?db={self.db}" if self.db else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        service = f"/{quote(self.service, safe='')}" if self.sentinel else ""
        return f"{self.scheme}://{login}{hosts}{service}/{self.db}"

    def __repr__(self) -> str:
        return f"Endpoint({self.safe!r})"


def parse_url(url: str) -> Endpoint:
    """Read a Redis URL; user name, password, path, service and option values may be percent-encoded.

    ``redis://[user:password@]host[:port][/db]``, ``unix://[user:password@]/path?db=0``,
    ``redis+cluster://host1,host2``, ``redis+sentinel://sentinel1,sentinel2/service[/db]``; ``rediss`` in the
    place of ``redis`` is TLS. Raises ConfigError, in whose text no password appears.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        raise ConfigError(f"a Redis URL begins with one of {', '.join(f'{s}://' for s in SCHEMES)}")
    login, location, query = _split(scheme, rest)
    username, colon, password = login.partition(":")
    fields: dict[str, Any] = {
        "scheme": scheme,
        "username": unquote(username) or None,
        "password": unquote(password) if colon else None,
    }
    authority, _, path = location.partition("/")
    if scheme == "unix":
        if authority or not path:
            raise ConfigError("a unix:// URL holds an absolute path: unix:///run/redis.sock?db=0")
        fields["path"] = "/" + unquote(path)
    else:
        fields["hosts"] = _hosts(scheme, authority)
        if scheme.endswith("+sentinel"):
            service, _, path = path.partition("/")
            if not service:
                raise ConfigError(f"{scheme} needs a service name: {scheme}://host:26379/service/0")
            fields["service"] = unquote(service)
        fields["db"] = _db(path or "0")
    fields.update(_options(scheme, query))
    if scheme.endswith("+cluster") and fields["db"] != 0:
        raise ConfigError(f"{scheme} has only database 0, not {fields['db']}: leave the number out")
    if "ssl_keyfile" in fields and "ssl_certfile" not in fields:
        raise ConfigError("ssl_keyfile needs ssl_certfile, the certificate that the key belongs to")
    return Endpoint(**fields)


def _split(scheme: str, rest: str) -> tuple[str, str, str]:
    # An unencoded character of a password moves the borders of a URL, and error messages would then quote a
    # piece of it: such a URL is refused before anything of it is shown.
    end = re.search(r"[/?#]", rest)
    authority = rest[: end.start()] if end else rest
    if rest.count("@") > 1 or ("@" in rest and "@" not in authority) or "#" in rest:
        raise ConfigError(
            f"it is not clear where the password of this {scheme}:// URL ends: percent-encode / ? # @ : in "
            "user names, passwords, paths and options (%2F %3F %23 %40 %3A)"
        )
    login, _, location = rest.rpartition("@")
    location, _, query = location.partition("?")
    return login, location, query


def _hosts(scheme: str, authority: str) -> tuple[tuple[str, int], ...]:
    default = "26379" if scheme.endswith("+sentinel") else "6379"
    hosts: list[tuple[str, int]] = []
    for item in authority.split(","):
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(.*))?", item)
        if match is None:
            raise ConfigError(
                f"a {scheme}:// URL needs host or host:port (IPv6: [::1]:6379) after the slashes"
            )
        host, port = match[1] or match[2], match[3] or default
        if not (port.isascii() and port.isdigit()):
            raise ConfigError(
                f"the port of {host!r} is not a number (to log in, write {scheme}://user:password@host:{default})"
            )
        if not 0 < int(port) < 65536:
            raise ConfigError(f"the port of {host!r} is {port}; a port is between 1 and 65535")
        hosts.append((host, int(port)))
    if len(hosts) > 1 and "+" not in scheme:
        raise ConfigError(
            f"{scheme}:// takes one host; for several write {scheme}+cluster or {scheme}+sentinel"
        )
    return tuple(hosts)


def _options(scheme: str, query: str) -> dict[str, object]:
    valid = dict(_COMMON_OPTIONS)
    if scheme == "unix":
        valid["db"] = _db
    if scheme.startswith("rediss"):
        valid |= _TLS_OPTIONS
    if scheme.endswith("+sentinel"):
        valid |= _SENTINEL_OPTIONS
    options: dict[str, object] = {}
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name not in valid:
            hint = "; ssl_* options need rediss" if name in _TLS_OPTIONS else ""
            raise ConfigError(
                f"unknown option {name!r} in a {scheme}:// URL; valid: {', '.join(valid)}{hint}"
            )
        if name in options:
            raise ConfigError(f"option {name!r} is given twice in a {scheme}:// URL")
        if not value:
            raise ConfigError(f"option {name!r} has no value: write {name}=... or leave it out")
        options[name] = valid[name](unquote(value))
    return options


def _db(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(f"db is a number from 0, such as /0 at the end of the URL, not {value!r}")
    return int(value)


def _seconds(name: str) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not (seconds > 0 and math.isfinite(seconds)):
            raise ConfigError(f"{name} is a number of seconds above 0, not {value!r}")
        return seconds

    return parse


def _protocol(value: str) -> int:
    if value not in ("2", "3"):
        raise ConfigError(f"protocol is the RESP version, 2 or 3, not {value!r}")
    return int(value)


def _max_connections(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value)):
        raise ConfigError(f"max_connections is a whole number above 0, not {value!r}")
    return int(value)


def _cert_reqs(value: str) -> str:
    if value not in ("none", "optional", "required"):
        raise ConfigError(f"ssl_cert_reqs is none, optional or required, not {value!r}")
    return value


_COMMON_OPTIONS: Final[dict[str, Callable[[str], object]]] = {
    "timeout": _seconds("timeout"),
    "connect_timeout": _seconds("connect_timeout"),
    "protocol": _protocol,
    "max_connections": _max_connections,
    "client_name": str,
}
_TLS_OPTIONS: Final[dict[str, Callable[[str], object]]] = {
    "ssl_ca_certs": str,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_certfile": str,
    "ssl_keyfile": str,
}
_SENTINEL_OPTIONS: Final[dict[str, Callable[[str], object]]] = {
    "sentinel_username": str,
    "sentinel_password": str,
}


@dataclass(frozen=True)
class ServerFacts:
    """What a server says about itself; all defaults where it does not say (INFO forbidden or unknown).

    ``replid`` is its ``master_replid``, ``replid2`` its ``master_replid2`` ("" for none), and ``role`` is
    "master" or "slave", as Redis words it.
    """

    version: tuple[int, ...] = (7, 0)
    valkey: bool = False
    run_id: str = ""
    replid: str = ""
    replid2: str = ""
    role: str = ""

    @property
    def has_ifeq(self) -> bool:
        """Whether ``SET ... IFEQ`` is there: Redis 8.4, Valkey 8.1."""
        return self.version >= ((8, 1) if self.valkey else (8, 4))

    @property
    def incarnation(self) -> bytes:
        """Eight bytes that change with a restart and with a promotion; zeros when the server is unknown."""
        if not self.run_id:
            return bytes(8)
        return blake2b((self.run_id + self.replid).encode(), digest_size=8).digest()


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
    )


def _fields(reply: object) -> dict[str, str]:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value for name, colon, value in pairs if colon}


def facts_of(client: redis.Redis | RedisCluster) -> ServerFacts:
    """Ask a ready client; defaults where INFO is forbidden or missing (fakeredis).

    Raises ConfigError for a server older than Redis 7.0.
    """
    info: dict[str, object] = {}
    for section in _SECTIONS:
        try:
            info |= cast("Any", client).info(section)
        except ResponseError:
            continue
    return parse_info(info)


async def afacts_of(client: aioredis.Redis | AsyncRedisCluster) -> ServerFacts:
    """``facts_of`` for an asyncio client."""
    info: dict[str, object] = {}
    for section in _SECTIONS:
        try:
            info |= await cast("Any", client).info(section)
        except ResponseError:
            continue
    return parse_info(info)


def connect(endpoint: Endpoint, on_connect: Callable[[ServerFacts], None]) -> redis.Redis | RedisCluster:
    """Make a client for threads. ``on_connect`` is told about the server on every new connection, before the
    first command; an error it raises reaches the caller of that command.

    Connections are opened when needed, except that a cluster is visited at once to learn its slots. Raises
    ConfigError for a TLS file that is not there; for a cluster also ConfigError for an old server and
    redis-py's errors for one that does not answer.
    """
    options = _client_options(endpoint)
    if endpoint.cluster:
        nodes = [cast("Any", ClusterNode)(host, port) for host, port in endpoint.hosts]
        options["redis_connect_func"] = _learner(on_connect, handshake=False)
        try:
            return RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), 0), **options)
        except RedisClusterException as error:
            raise _reason(error) from error
    options |= {
        "db": endpoint.db,
        "retry": Retry(NoBackoff(), 0),
        "redis_connect_func": _learner(on_connect, handshake=True),
    }
    if endpoint.sentinel:
        sentinel: Any = cast("Any", Sentinel)(
            endpoint.hosts,
            sentinel_kwargs=_sentinel_options(endpoint) | {"retry": Retry(NoBackoff(), 0)},
            **options,
        )
        return cast("redis.Redis", sentinel.master_for(endpoint.service, redis_class=_SentinelRedis))
    if endpoint.scheme == "unix":
        return redis.Redis(unix_socket_path=endpoint.path, **options)
    ((host, port),) = endpoint.hosts
    return redis.Redis(host=host, port=port, **options)


def aconnect(
    endpoint: Endpoint, on_connect: Callable[[ServerFacts], None]
) -> aioredis.Redis | AsyncRedisCluster:
    """Make a client for one event loop: as ``connect``, but nothing is sent before the first command."""
    options = _client_options(endpoint)
    learner = _alearner(on_connect)
    if endpoint.cluster:
        nodes = [AsyncClusterNode(host, port) for host, port in endpoint.hosts]
        cluster = _AsyncCluster(startup_nodes=nodes, retry=AsyncRetry(NoBackoff(), 0), **options)
        cluster.call_on_connect(learner)
        return cluster
    options |= {"db": endpoint.db, "retry": AsyncRetry(NoBackoff(), 0), "redis_connect_func": learner}
    if endpoint.sentinel:
        sentinel: Any = cast("Any", AsyncSentinel)(
            list(endpoint.hosts),
            sentinel_kwargs=_sentinel_options(endpoint) | {"retry": AsyncRetry(NoBackoff(), 0)},
            **options,
        )
        return cast("aioredis.Redis", sentinel.master_for(endpoint.service, redis_class=_AsyncSentinelRedis))
    if endpoint.scheme == "unix":
        return aioredis.Redis(unix_socket_path=endpoint.path, **options)
    ((host, port),) = endpoint.hosts
    return aioredis.Redis(host=host, port=port, **options)


def _learner(on_connect: Callable[[ServerFacts], None], *, handshake: bool) -> Callable[[Any], None]:
    def learn(connection: Any) -> None:
        try:
            if handshake:
                connection.on_connect()
            for section in _SECTIONS:
                connection.send_command("INFO", section)
            info: dict[str, str] = {}
            for _ in _SECTIONS:
                try:
                    info |= _fields(connection.read_response())
                except ResponseError:
                    continue
            on_connect(parse_info(info))
        except BaseException:
            # redis-py closes the socket for its own errors only; after another one the pool would hand out
            # a connection whose server nobody has looked at.
            connection.disconnect()
            raise

    return learn


def _alearner(on_connect: Callable[[ServerFacts], None]) -> Callable[[Any], Any]:
    async def learn(connection: Any) -> None:
        try:
            await connection.on_connect()
            for section in _SECTIONS:
                await connection.send_command("INFO", section)
            info: dict[str, str] = {}
            for _ in _SECTIONS:
                try:
                    info |= _fields(await connection.read_response())
                except ResponseError:
                    continue
            on_connect(parse_info(info))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    return learn


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
        "socket_timeout": endpoint.timeout,
        "socket_connect_timeout": endpoint.connect_timeout,
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
