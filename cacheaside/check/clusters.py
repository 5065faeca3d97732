"""Faults of a cluster: a primary dies and its replica takes over, slots move."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, cast

from cacheaside.check.failovers import ask, is_primary, is_synced, until
from cacheaside.check.faults import Act, fault

if TYPE_CHECKING:
    from cacheaside.check.arena import Arena
    from cacheaside.testing.clusters import ClusterServer


@fault("cluster-failover", "a primary of a cluster dies or steps back, and its replica takes over", "cluster")
def cluster_failover(arena: Arena, rng: random.Random) -> Act:
    cluster = cast("ClusterServer", arena.group)
    while True:
        yield rng.uniform(0.2, 0.8)
        primary = rng.choice([s for s in cluster.servers if s.start() and is_primary(s)])
        replica = cluster.replica_of(primary)
        if dies := rng.random() < 0.5:
            primary.kill()
        arena.strike("cluster-failover", f"the primary {primary.port} {'dies' if dies else 'steps back'}")
        ask(replica, "CLUSTER", "FAILOVER", *(["TAKEOVER"] if dies else []))
        yield from until("a promotion", partial(is_primary, replica))
        arena.strike("cluster-failover", f"{replica.port} takes over", lapse=True)
        primary.start()
        yield from until("following", partial(is_synced, primary))
        yield from until("order", cluster.in_order)
        arena.strike("cluster-failover", f"{primary.port} follows")


@fault("slot-migration", "slots with entries of the check move from one primary to another", "cluster")
def slot_migration(arena: Arena, rng: random.Random) -> Act:
    cluster = cast("ClusterServer", arena.group)
    with arena.admin() as client:
        while True:
            yield rng.uniform(0.02, 0.2)
            names = [name.decode(errors="replace") for name in client.scan_iter(f"*{arena.prefix}*")]
            if not names:
                continue
            name = rng.choice(names)
            source = cluster.primary_of(name)
            target = rng.choice([s for s in cluster.nodes if s is not source])
            move = cluster.move(name, target)
            arena.strike("slot-migration", f"slot {move.slot} begins to move to {target.port}")
            yield rng.uniform(0, 0.1)
            move.keys(1)
            yield rng.uniform(0, 0.1)
            move.finish()
            arena.strike("slot-migration", f"slot {move.slot} has moved")
