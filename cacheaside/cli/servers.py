"""What servers say of themselves: INFO, and who listens to the channels of a cache."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct
from redis.exceptions import ResponseError

from cacheaside.cli.options import Servers

SECTIONS: Final = ("server", "clients", "memory", "persistence", "stats", "replication", "cluster")


class Health(Struct):
    """Counters and sizes of all servers of a cache together; memory is in bytes.

    ``hits`` and ``misses`` are Redis's own, of all its users: a miss of the cache looks up tags and may count
    as several.
    """

    servers: int = 0
    version: str = ""
    used_memory: int = 0
    maxmemory: int = 0
    policy: str = ""
    clients: int = 0
    ops_per_second: int = 0
    hits: int = 0
    misses: int = 0
    evicted: int = 0
    expired: int = 0
    listeners: int = 0
    """Processes with an L1 that hears invalidations."""


def health(there: Servers) -> Health:
    found = Health(servers=len(there.nodes))
    listeners: set[bytes] = set()
    for node in there.nodes:
        said = info(node)
        found.version = found.version or version_of(said)
        found.policy = found.policy or str(said.get("maxmemory_policy", ""))
        found.used_memory += int(said.get("used_memory", 0))
        found.maxmemory += int(said.get("maxmemory", 0))
        found.clients += int(said.get("connected_clients", 0))
        found.ops_per_second += int(said.get("instantaneous_ops_per_sec", 0))
        found.hits += int(said.get("keyspace_hits", 0))
        found.misses += int(said.get("keyspace_misses", 0))
        found.evicted += int(said.get("evicted_keys", 0))
        found.expired += int(said.get("expired_keys", 0))
        listeners |= listening(there, node)
    found.listeners = len(listeners)
    return found


def info(node: Any) -> dict[str, Any]:
    """INFO, as far as it is allowed."""
    said: dict[str, Any] = {}
    for section in SECTIONS:
        try:
            said |= node.info(section)
        except ResponseError:
            continue
    return said


def version_of(said: dict[str, Any]) -> str:
    if "valkey_version" in said:
        return f"Valkey {said['valkey_version']}"
    return f"Redis {said.get('redis_version', 'of unknown version')}"


def listening(there: Servers, node: Any) -> set[bytes]:
    """The identities of the processes that listen on a server; nothing where that may not be asked."""
    pattern = f"{{{there.keys.value('t.*')}}}:hb:*"
    asked = "SHARDCHANNELS" if there.endpoint.cluster else "CHANNELS"
    try:
        channels: list[bytes] = node.execute_command("PUBSUB", asked, pattern)
    except ResponseError:
        return set()
    return {channel.rpartition(b":")[2] for channel in channels}
