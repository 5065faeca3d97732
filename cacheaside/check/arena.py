"""Where a check takes place: the servers it starts or is given, what stands between, and who works there."""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final, cast

from redis.cluster import RedisCluster
from redis.exceptions import RedisError

from cacheaside.check.crew import Crew
from cacheaside.check.history import Recorder, Strike, clock
from cacheaside.check.settings import Settings
from cacheaside.connection import connect
from cacheaside.errors import ConfigError
from cacheaside.facts import facts_of
from cacheaside.testing import ClusterServer, ReplicaSet, Server
from cacheaside.testing.proxy import ChaosProxy
from cacheaside.urls import parse_url

GONE_WITHIN: Final = 3.0


class Arena:
    """What faults may lay hands on. ``url`` leads to the server, ``worker_url`` is the way of the workers."""

    server: Server
    proxy: ChaosProxy
    group: ReplicaSet | ClusterServer
    crew: Crew
    version: str

    def __init__(self, url: str, recorder: Recorder) -> None:
        self.name = f"cacheaside-check-{secrets.token_hex(4)}"
        self.prefix = self.name
        self.url = self.worker_url = url
        self._recorder = recorder

    @contextmanager
    def admin(self) -> Generator[Any]:
        """A client of the server itself, whatever stands in the way of the workers."""
        client: Any = connect(parse_url(self.url), lambda facts: None)
        try:
            yield client
        finally:
            client.close()

    def strike(self, fault: str, what: str, key: str = "", *, lapse: bool = False) -> None:
        """Put into the history what a fault has done."""
        self._recorder.add(Strike(clock(), fault, what, key, lapse))

    def leaks(self) -> list[str]:
        """Connections of the workers that the server still has, some time after they have ended."""
        until = time.monotonic() + GONE_WITHIN
        left: list[str] = []
        while True:
            with suppress(RedisError, OSError), self.admin() as client:
                left = [
                    f"server: connection {found['id']} ({found.get('cmd')})"
                    for node in nodes(client)
                    for found in node.client_list()
                    if found.get("name") == self.name
                ]
                if not left:
                    return []
            if time.monotonic() > until:
                return left
            time.sleep(0.02)

    def sweep(self) -> None:
        """Delete what the check has left."""
        with suppress(RedisError, OSError), self.admin() as client:
            for name in client.scan_iter(f"*{self.prefix}*", count=1000):
                client.unlink(name)


@contextmanager
def opened(settings: Settings, recorder: Recorder) -> Generator[Arena]:
    """The arena that the settings ask for; everything it started is ended. Raises ConfigError."""
    with ExitStack() as stack:
        if settings.url is not None:
            arena = Arena(settings.url, recorder)
            stack.callback(arena.sweep)
        else:
            started = stack.enter_context(start(settings))
            arena = Arena(started.url, recorder)
            if isinstance(started, Server):
                arena.server = started
            else:
                arena.group = started
        if "proxy" in settings.needs:
            ((host, port),) = parse_url(arena.url).hosts
            arena.proxy = stack.enter_context(ChaosProxy(host, port, seed=settings.seed))
            arena.worker_url = through(arena.url, arena.proxy.port)
        arena.worker_url += f"{'&' if '?' in arena.worker_url else '?'}client_name={arena.name}"
        try:
            with arena.admin() as client:
                facts = facts_of(client)
        except (RedisError, OSError) as error:
            raise ConfigError(f"{parse_url(arena.url).safe} does not answer: {error}") from error
        arena.version = f"{'Valkey' if facts.valkey else 'Redis'} {'.'.join(map(str, facts.version))}"
        yield arena


def nodes(client: Any) -> list[Any]:
    """A client of each server behind this one."""
    if not isinstance(client, RedisCluster):
        return [client]
    return [client.get_redis_connection(node) for node in cast("Any", client).get_nodes()]


@contextmanager
def start(settings: Settings) -> Generator[Server | ReplicaSet | ClusterServer]:
    groups: dict[str, Any] = {"sentinel": ReplicaSet, "cluster": partial(ClusterServer, replicas=1)}
    kinds = [groups[need] for need in settings.needs if need in groups]
    started: Any = cast("Any", kinds[0] if kinds else Server)(settings.server)
    try:
        started.start()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{error}; or give the URL of one") from error
    try:
        yield started
    finally:
        started.stop()


def through(url: str, port: int) -> str:
    """The same URL by way of a proxy of this machine."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    login, at, _ = authority.rpartition("@")
    return f"{scheme}://{login}{at}127.0.0.1:{port}{slash}{path}"
