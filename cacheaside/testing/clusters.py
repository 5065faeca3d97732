"""A Redis Cluster for tests: primaries and their replicas, slots that move, primaries that fail over."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any, Final, cast

from redis.crc import key_slot
from redis.exceptions import RedisError

from cacheaside.testing.servers import HOST, Group, Kind, Server, free_port, settle, wait_until

SLOTS: Final = 16384


class ClusterServer(Group):
    """A Redis Cluster of three primaries that share the slots.

    Each has as many ``replicas``; ``nodes`` are the primaries at the start, ``servers`` all of them.
    """

    def __init__(self, kind: Kind | None = None, *, replicas: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.nodes: tuple[Server, ...] = tuple(Server(kind) for _ in range(3))
        self.servers: tuple[Server, ...] = (*self.nodes, *(Server(kind) for _ in range(3 * replicas)))

    @property
    def url(self) -> str:
        """The URL that names all primaries."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def primary_of(self, key: str) -> Server:
        """The server that holds ``key``, by the word of the first that answers."""
        slot = key_slot(key.encode())
        for server in self.servers:
            with suppress(RedisError):
                for first, last, (_, port, *_), *_ in ask(server, "CLUSTER SLOTS"):
                    if first <= slot <= last:
                        return next(s for s in self.servers if s.port == int(port))
        raise RuntimeError(f"nobody holds slot {slot}")

    def replica_of(self, primary: Server) -> Server:
        """A server that replicates ``primary``. Raises StopIteration if there is none."""
        return next(
            s
            for s in self.servers
            if s.running and _info(s)["role"] == "slave" and _info(s)["master_port"] == primary.port
        )

    def promote(self, replica: Server, *, how: str = "") -> None:
        """Have a replica take over from its primary, and wait until it has; ``how`` is FORCE or TAKEOVER."""

        def promoted() -> bool:
            with suppress(RedisError):  # on a busy machine it may give up, after five seconds
                ask(replica, "CLUSTER FAILOVER", *how.split())
            return wait_until(lambda: _info(replica)["role"] == "master", 6)

        settle("the promotion", promoted)

    def lag(self, replica: Server) -> None:
        """Have a replica hear no more of its primary: a password that is wrong keeps it away."""
        ask(replica, "CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong")
        ask(replica, "CLIENT", "KILL", "TYPE", "master")
        settle("the lag", lambda: _info(replica)["master_link_status"] == "down")

    def move(self, key: str, to: Server) -> Move:
        """Begin to move the slot of ``key`` to another primary; nothing has moved yet."""
        return Move(self, key_slot(key.encode()), self.primary_of(key), to)

    def in_order(self) -> bool:
        """Whether all that run agree that every slot is served."""
        return all(_state(s) for s in self.servers if s.running)

    def _assemble(self, servers: ExitStack) -> None:
        buses = [free_port() for _ in self.servers]
        for node, bus in zip(self.servers, buses, strict=True):
            node.args = (
                *("--cluster-enabled", "yes", "--cluster-port", str(bus)),
                *("--cluster-node-timeout", "2000", "--cluster-replica-validity-factor", "0"),
            )
            servers.enter_context(node)
        clients: list[Any] = [servers.enter_context(node.client()) for node in self.servers]
        share = SLOTS // len(self.nodes) + 1
        for number, client in enumerate(clients):
            if number < len(self.nodes):
                first, last = number * share, min((number + 1) * share, SLOTS) - 1
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node, bus in zip(self.servers[1:], buses[1:], strict=True):
            clients[0].execute_command("CLUSTER MEET", HOST, node.port, bus)
        known = str(len(self.servers))
        settle(
            "the cluster",
            lambda: (
                self.in_order() and all(c.cluster("info")["cluster_known_nodes"] == known for c in clients)
            ),
        )
        ids = [node_id(node) for node in self.nodes]
        for number, client in enumerate(clients[len(self.nodes) :]):
            client.execute_command("CLUSTER REPLICATE", ids[number % len(ids)])
        # A primary that has not heard of its replica yet ignores it when it wants to take over.
        settle("the replicas", lambda: all(_knows(c, len(self.servers) // len(ids) - 1) for c in clients))


class Move:
    """A slot on its way, as ``redis-cli --cluster reshard`` moves one: ``keys``, then ``finish``."""

    def __init__(self, cluster: ClusterServer, slot: int, source: Server, target: Server) -> None:
        self.cluster, self.slot, self.source, self.target = cluster, slot, source, target
        ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", node_id(source))
        ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", node_id(target))

    def keys(self, most: int = 1000) -> list[bytes]:
        """Move so many keys of the slot; which."""
        keys: list[bytes] = ask(self.source, "CLUSTER GETKEYSINSLOT", self.slot, most)
        if keys:
            ask(self.source, "MIGRATE", HOST, self.target.port, "", 0, 5000, "KEYS", *keys)
        return keys

    def finish(self) -> None:
        """Move what is left; then the target owns the slot, and all know."""
        while self.keys():
            pass
        owner = node_id(self.target)
        others = [s for s in self.cluster.servers if s.running and _info(s)["role"] == "master"]
        for server in sorted(others, key=lambda s: (s is not self.target, s is not self.source)):
            ask(server, "CLUSTER SETSLOT", self.slot, "NODE", owner)
        settle("the slot", self.cluster.in_order)


def ask(server: Server, *command: Any) -> Any:
    """The answer of one server to one command."""
    with server.client() as client:
        return cast("Any", client).execute_command(*command)


def node_id(server: Server) -> str:
    """What the cluster calls a server."""
    raw = ask(server, "CLUSTER MYID")
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def _info(server: Server) -> dict[str, Any]:
    info: dict[str, Any] = ask(server, "INFO", "replication")
    return info


def _state(server: Server) -> bool:
    return bool(ask(server, "CLUSTER INFO")["cluster_state"] == "ok")


def _knows(client: Any, replicas: int) -> bool:
    """Whether a server lists so many replicas for all slots, and has caught up if it is one."""
    info = client.info("replication")
    ranges = client.execute_command("CLUSTER SLOTS")
    return info.get("master_link_status", "up") == "up" and all(len(r) == 3 + replicas for r in ranges)
