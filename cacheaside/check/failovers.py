"""Faults of a primary and its replica under a sentinel."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from cacheaside.check.faults import Act, fault
from cacheaside.check.history import clock
from cacheaside.testing.servers import ReplicaSet, Server

if TYPE_CHECKING:
    from cacheaside.check.arena import Arena

HOST = "127.0.0.1"
NOWHERE = 1
"""A port where nobody listens: who follows that lags behind."""
PATIENCE = 20.0


def until(what: str, condition: Callable[[], bool]) -> Act:
    """Wait for it. Raises RuntimeError when it does not come."""
    deadline = clock() + PATIENCE
    while not condition():
        if clock() > deadline:
            raise RuntimeError(f"{what} did not happen within {PATIENCE:g} seconds")
        yield 0.02


def ask(server: Server, *command: Any) -> Any:
    with server.client() as client:
        return cast("Any", client).execute_command(*command)


def replication(server: Server) -> dict[str, Any]:
    """What a server says about its part in replication."""
    with server.client() as client:
        return cast("dict[str, Any]", cast("Any", client).info("replication"))


def is_primary(server: Server) -> bool:
    return bool(replication(server)["role"] == "master")


def is_synced(server: Server) -> bool:
    return bool(replication(server).get("master_link_status") == "up")


def roles(group: ReplicaSet) -> tuple[Server, Server]:
    """Who is primary now, and who follows; both run afterwards."""
    first, second = (server.start() for server in group.nodes)
    return (first, second) if is_primary(first) else (second, first)


@fault("sentinel-failover", "the primary dies, and a replica that lags behind is promoted", "sentinel")
def sentinel_failover(arena: Arena, rng: random.Random) -> Act:
    group = cast("ReplicaSet", arena.group)
    while True:
        yield rng.uniform(0.3, 1.0)
        primary, replica = roles(group)
        ask(replica, "REPLICAOF", HOST, NOWHERE)
        arena.strike("sentinel-failover", f"{replica.port} follows no more")
        yield rng.uniform(0.1, 0.5)
        primary.kill()
        arena.strike("sentinel-failover", f"the primary {primary.port} dies")
        yield from until("a promotion", partial(is_primary, replica))
        arena.strike("sentinel-failover", f"{replica.port} is promoted")
        primary.args = ("--replicaof", HOST, str(replica.port))
        primary.start()
        yield from until("following", partial(is_synced, primary))
        arena.strike("sentinel-failover", f"{primary.port} is back and follows")
