"""Faults of a primary and its replica under a sentinel."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import RedisError, ResponseError

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
    """Wait for it; servers that change their parts close connections. Raises RuntimeError when it fails."""
    deadline = clock() + PATIENCE
    while True:
        with suppress(RedisError, OSError):
            if condition():
                return
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
    """Who is primary now, and who follows."""
    first, second = group.nodes
    return (first, second) if is_primary(first) else (second, first)


def watched(group: ReplicaSet) -> tuple[int, list[str]]:
    """The port of whom the sentinel takes for the primary, and what it thinks of him and his replica."""
    with group.sentinel.client() as client:
        seen: Any = cast("Any", client).sentinel_master("main")
        followers: Any = cast("Any", client).sentinel_slaves("main")
    return int(seen["port"]), [seen["flags"], *(follower["flags"] for follower in followers)]


def promoted(group: ReplicaSet, server: Server) -> bool:
    """Whether this one is the primary, also in the eyes of the sentinel."""
    return is_primary(server) and watched(group)[0] == server.port


def in_order(group: ReplicaSet) -> bool:
    """Whether one follows the other, also in the eyes of the sentinel."""
    primary, replica = roles(group)
    return is_synced(replica) and watched(group) == (primary.port, ["master", "slave"])


def recover(arena: Arena, name: str) -> Act:
    """Have a dead primary follow who took its place, when somebody has."""
    group = cast("ReplicaSet", arena.group)
    # Or it would look at what follows only every ten seconds, and, since it first asks after a new primary
    # in a second at most, take him for dead when he has just been promoted.
    ask(group.sentinel, "SENTINEL", "DEBUG", "publish-period", 100, "info-period", 100)
    ask(group.sentinel, "SENTINEL", "SET", "main", "down-after-milliseconds", 1200)
    for dead, alive in (group.nodes, group.nodes[::-1]):
        if not dead.running:
            yield from until("a promotion", partial(promoted, group, alive))
            arena.strike(name, f"{alive.port} is promoted", lapse=True)
            dead.args = ("--replicaof", HOST, str(alive.port))
            dead.start()
    yield from until("order", partial(in_order, group))


@fault("sentinel-failover", "the primary dies, and a replica that lags behind is promoted", "sentinel")
def sentinel_failover(arena: Arena, rng: random.Random) -> Act:
    name = "sentinel-failover"
    while True:
        yield from recover(arena, name)
        arena.strike(name, "one follows the other")
        yield rng.uniform(0.3, 1.0)
        primary, replica = roles(cast("ReplicaSet", arena.group))
        ask(replica, "REPLICAOF", HOST, NOWHERE)
        arena.strike(name, f"{replica.port} follows no more")
        yield rng.uniform(0.1, 0.5)
        primary.kill()
        arena.strike(name, f"the primary {primary.port} dies")


@fault("fail-back", "the primary is handed over to its replica and back, again and again", "sentinel")
def fail_back(arena: Arena, rng: random.Random) -> Act:
    name, group = "fail-back", cast("ReplicaSet", arena.group)
    while True:
        yield from recover(arena, name)
        arena.strike(name, "one follows the other")
        yield rng.uniform(0.3, 1.0)
        _, replica = roles(group)
        yield from until("a hand-over", partial(hand_over, group))
        yield from until("a promotion", partial(promoted, group, replica))
        arena.strike(name, f"{replica.port} is promoted", lapse=True)


def hand_over(group: ReplicaSet) -> bool:
    """Ask for a failover without need; a sentinel may want to look around first."""
    try:
        ask(group.sentinel, "SENTINEL", "FAILOVER", "main")
    except ResponseError:
        return False
    return True
