"""What keeps one cache of one process in touch with its Redis: connections, health, recovery.

One object for the three questions of an outage: is Redis there (the breaker), which Redis is it (the
lineage), and what has it missed (the journal). The store asks the breaker, every new connection tells the
lineage, and the recovery thread works off the journal.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

from cacheaside.breaker import Breaker
from cacheaside.connection import aconnect, connect
from cacheaside.engine.commands import Fetch
from cacheaside.engine.drive import Driver
from cacheaside.engine.replay import replay
from cacheaside.entry import NO_INCARNATION
from cacheaside.events import Events
from cacheaside.facts import ServerFacts
from cacheaside.fork import renew_after_fork
from cacheaside.incarnation import LEFT, FailoverMode, Lineage, Verdict
from cacheaside.recovery import Recovery
from cacheaside.redaction import in_words
from cacheaside.sentinels import SentinelWatch
from cacheaside.stores.gates import Gates
from cacheaside.stores.memory import NearCache
from cacheaside.stores.redis import RedisStore
from cacheaside.ties import Ties
from cacheaside.urls import Endpoint
from cacheaside.world import ProcessWorld

SAID = {
    Verdict.COLD: "another Redis, or one that was restarted: nothing that was stored before is believed",
    Verdict.REPLAY: "a Redis that may have lost what the one before had confirmed: the invalidations of the "
    "last minute are repeated",
    Verdict.TRUST: "another Redis, which is believed: failover is set to 'trust'",
}


class Anything:
    """Contains everything."""

    def __contains__(self, _: object) -> bool:
        return True


class Link:
    """The connection of a cache to its Redis.

    Args:
        endpoint: where it is, with the seconds that a call waits for it.
        index_limit: entries that a tag's list holds at most.
    """

    def __init__(
        self, endpoint: Endpoint, world: ProcessWorld, mode: FailoverMode, events: Events, index_limit: int
    ) -> None:
        self.endpoint = endpoint
        self.world = world
        self.journal = world.journal
        self.events = events
        self.near: NearCache | None = None
        self.facts: ServerFacts | None = None
        self.lineage = Lineage(mode)
        if mode == "trust":
            world.learn_incarnation(NO_INCARNATION, Anything())
        self.ties = Ties()
        self.watch = SentinelWatch(endpoint, self.ties) if endpoint.sentinel else None
        self._learning = threading.Lock()
        renew_after_fork(self)
        self.recovery = Recovery(self)
        self.breaker = Breaker(self._lost)
        self.journal.wake = self.recovery.wake
        self.doubted = False
        self._strangers: set[bytes] = set()
        world.met_stranger = self._stranger
        self._index_limit = index_limit
        self.store = self._store(self.breaker)

    def after_fork(self) -> None:
        self._learning = threading.Lock()

    def close(self) -> None:
        """End the threads; what is owed stays owed."""
        self.recovery.close()
        if self.watch is not None:
            self.watch.close()

    def _store(self, breaker: Breaker | None) -> RedisStore:
        return RedisStore(
            self.world.keys,
            self.client,
            lambda: aconnect(self.endpoint, self.learn, punctual=True),
            has_ifeq=lambda: self.facts is not None and self.facts.has_ifeq,
            index_limit=self._index_limit,
            timeout=self.endpoint.wait,
            breaker=breaker,
            events=self.events,
        )

    def client(self) -> Any:
        """A client for threads."""
        return connect(self.endpoint, self.learn)

    @property
    def decisions(self) -> dict[str, int]:
        """How often what was done when another Redis was met."""
        return self.lineage.decisions

    # -- what connections tell

    def learn(self, facts: ServerFacts) -> None:
        """Told by every new connection, before its first command."""
        with self._learning:
            verdict = self.lineage.meet(facts, monotonic() - self.store.contact)
            self.facts = facts
            if verdict in (Verdict.REPLAY, Verdict.COLD):
                # Owed before what the server says is believed: reads of these keys and tags doubt it. A cold
                # one too may hold what others loaded from it, before this process dropped it elsewhere.
                self.journal.reopen()
            if verdict is not Verdict.SAME and facts.run_id:
                older = Anything() if self.lineage.mode == "trust" else self.lineage.older
                self.world.learn_incarnation(facts.incarnation, older)
            self.ties.made(facts)
        if self.watch is not None:
            self.watch.start()
        if verdict is Verdict.SAME:
            return
        if not facts.run_id:
            self.events.complain(
                "no INFO", "degraded", "INFO is forbidden here: which Redis this is can't be known, and the "
                "invalidations of the last minute are repeated after each lost connection",
            )  # fmt: skip
        if verdict in SAID:
            self.events.tell("failover", SAID[verdict])
        else:
            self.events.tell("connect", f"connected to {self.endpoint.safe}")

    def _lost(self, words: str) -> None:
        self.events.tell("disconnect", f"{self.endpoint.safe} is away: {words}")
        self.recovery.wake()

    def _stranger(self, incarnation: bytes) -> None:
        """Something was stored under an incarnation that is not known here: the server may have taken it on
        when its first replica came, and who has connected since knows. Asked once for each."""
        if incarnation not in self._strangers:
            if len(self._strangers) >= LEFT:
                self._strangers.clear()
            self._strangers.add(incarnation)
            self.doubted = True
            self.recovery.wake()

    # -- what recovery asks for

    def reach(self) -> RedisStore:
        """A store with connections of its own, which no breaker keeps from trying."""
        return self._store(None)

    def leave(self, store: RedisStore) -> None:
        store.close()

    def still(self, error: Exception) -> None:
        self.breaker.last = in_words(error)

    def a_key(self) -> str:
        return self.world.keys.token("ping")

    def ask(self, store: RedisStore) -> None:
        """See whether it serves reads."""
        store.perform(Fetch((self.a_key(),)))

    def replay(self, store: Any) -> int:
        """Send all that is owed; how much it was."""
        return Driver(timeout=self.endpoint.wait).run(replay(self.world, self.near), store)


class OwnStoreLink:
    """The same for a store that has its own connections, or none, and may fail all the same: a cluster, or
    one that is not Redis.

    Args:
        gates: which servers of a cluster are away.
    """

    def __init__(
        self,
        store: Callable[[], Any],
        world: ProcessWorld,
        events: Events,
        timeout: float | None = None,
        gates: Gates | None = None,
    ) -> None:
        self._driver = Driver(timeout=timeout)
        self.world = world
        self.journal = world.journal
        self.events = events
        self.near: NearCache | None = None
        self.recovery = Recovery(self)
        self.breaker: Breaker | Gates = Breaker(lambda _: None, limit=math.inf)
        if gates is not None:
            self.breaker, gates.wake = gates, self.recovery.wake
        self.journal.wake = self.recovery.wake
        self.reach = store
        self.doubted = False
        self.decisions: dict[str, int] = {}

    def close(self) -> None:
        self.recovery.close()

    def still(self, error: Exception) -> None:
        """A cluster's servers say it, each at its gate."""

    def leave(self, store: Any) -> None:
        """It is the cache's, and stays open."""

    def a_key(self) -> str:
        return self.world.keys.token("ping")

    def ask(self, store: Any) -> None:
        """See whether it serves reads; of a cluster, which servers do."""
        if isinstance(self.breaker, Gates):
            store.look_again()
        else:
            store.perform(Fetch((self.a_key(),)))

    def replay(self, store: Any) -> int:
        return self._driver.run(replay(self.world, self.near), store)


def endpoint_within(endpoint: Endpoint, timeout: float) -> Endpoint:
    """The endpoint with the seconds that a call waits for it: what its URL says, or else ``timeout``."""
    return endpoint if endpoint.timeout is not None else replace(endpoint, timeout=timeout)
