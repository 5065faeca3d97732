"""``Cache``: its settings, its lifetime, and the decorators and contexts that belong to it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, cast, overload

import cachetools

from cacheaside.codecs import NO_ANNOTATION, ValueCodec, codec_for
from cacheaside.coherence import Channel
from cacheaside.connection import aconnect_node, connect_node
from cacheaside.decorators import cached_decorator
from cacheaside.engine.call import Site
from cacheaside.engine.drive import Driver, Store
from cacheaside.engine.write import Dropped
from cacheaside.errors import ConfigError
from cacheaside.events import Event, Events
from cacheaside.faces import CacheDecorator, ManyDecorator, SameDecorator
from cacheaside.hubs import Hub, OneServer, Shards
from cacheaside.incarnation import FailoverMode, check_mode
from cacheaside.keys import check_namespace
from cacheaside.keyspace import Key
from cacheaside.link import Link, OwnStoreLink, endpoint_within
from cacheaside.many import cached_many_decorator
from cacheaside.metrics import observe
from cacheaside.names import key_names, tag_names
from cacheaside.operations import Operations
from cacheaside.options import CachedOptions, ManyOptions, TagTemplates, UpdatesOptions, refuse_bare
from cacheaside.policy import Policy, Seconds, Ttl, seconds
from cacheaside.rawkeys import RawKeys
from cacheaside.reclaim import Reclaimer
from cacheaside.stats import Counts, Tally
from cacheaside.stores.cluster import ClusterStore
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.stores.memory import NearCache
from cacheaside.stores.redis import RemoteStore
from cacheaside.stores.s3fifo import S3FIFOCache
from cacheaside.stores.topology import Topology
from cacheaside.telemetry import Telemetry
from cacheaside.transactions import Mutating, Transaction
from cacheaside.urls import TIMEOUT, Endpoint, parse_url
from cacheaside.weak import Weakly
from cacheaside.world import ClusterWorld, ProcessWorld
from cacheaside.writers import invalidates_decorator, updates_decorator

if TYPE_CHECKING:
    from cacheaside.toolkit.lock import Lock

log = logging.getLogger("cacheaside")

EMBEDDED = "embedded://"
BUCKETS = 64
"""Slots of a cluster that tags are spread over."""
Mode = Literal["bypass", "refresh"]
Evict = Callable[..., cachetools.Cache[str, int]]
POLICIES: dict[str, Evict] = {"lru": cachetools.LRUCache, "s3fifo": S3FIFOCache}


class Cache(Operations):
    """A cache: L1 in this process, and L2 in Redis or, without a URL, in this process as well.

    One serves many threads and many event loops. Close it with ``close()`` or ``await aclose()``, or use
    it in a ``with`` or ``async with`` block.

    Args:
        url: where Redis is; None reads ``CACHEASIDE_URL`` and, if that is not set, embeds everything in
            this process, as ``"embedded://"`` does whatever is set.
        prefix: comes before every key in Redis.
        ttl: seconds for functions and operations that name none.
        l1_entries: the most entries of L1; 0 turns it off.
        l1_max_bytes: the most bytes of L1.
        l1_max_value: payloads above this many bytes stay in L2 only.
        l1_window: the seconds that L1 may lag behind an invalidation made by another process, connected or
            not; one's own show at once. None: no L1 beside Redis. The embedded cache needs none.
        l1_without_channel: what L1 does while invalidations by other processes cannot be heard, because
            the line is cut or the account may not subscribe: None turns it off, a number of seconds is for
            how long it may lag behind them then.
        l1_policy: L1's eviction policy: ``"lru"``, ``"s3fifo"``, or any class of ``cachetools``.
        max_bytes: the most bytes of the embedded store.
        max_value: payloads above this many bytes are answered and not stored.
        compress_above: payloads above this many bytes are compressed; None turns it off.
        index_limit: the most entries listed per tag for ``tag_keys`` and reclaiming; 0 turns lists off.
        reclaim_every: seconds between the rounds of a thread that frees what tags have invalidated in
            Redis, from their lists; None leaves it to the ttl. The embedded store frees what it needs.
        timeout: the most seconds that one call waits for Redis in all, connecting included; loads and
            waits for other callers' loads are not counted. ``?timeout=`` in the URL goes before it.
        failover: what is believed of a Redis that was restarted or took over from another: ``"strict"``
            nothing from before, ``"replay"`` everything once this process has repeated its last minute of
            invalidations, ``"trust"`` everything, ``"auto"`` replay after a promotion and else strict.
        on_event: told what happens to the connection, as an ``Event``; must be quick, for it is called
            wherever that is found out.
        invalidation_timeout: seconds that an invalidation is repeated for before it counts as
            unacknowledged.
        on_unacknowledged: what an invalidation does then: ``"return"`` a receipt that is false, or
            ``"raise"`` InvalidationNotAcknowledged.
        trace_keys: whether spans carry the keys of calls, which hold what users passed.
        clock: seconds since the epoch, for tests.
        store: a store of one's own in the place of Redis.

    Raises ConfigError for a wrong URL or setting, without its password.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str = "cacheaside",
        ttl: Seconds = 300,
        l1_entries: int = 10_000,
        l1_max_bytes: int = 64 * 2**20,
        l1_max_value: int = 2**20,
        l1_window: Seconds | None = 1,
        l1_without_channel: Seconds | None = None,
        l1_policy: Literal["lru", "s3fifo"] | Evict = "lru",
        max_bytes: int = 256 * 2**20,
        max_value: int = 32 * 2**20,
        compress_above: int | None = 1024,
        index_limit: int = 10_000,
        reclaim_every: Seconds | None = 60,
        timeout: Seconds = TIMEOUT,
        failover: FailoverMode = "auto",
        on_event: Callable[[Event], Any] | None = None,
        invalidation_timeout: Seconds = 2,
        on_unacknowledged: str = "return",
        trace_keys: bool = False,
        clock: Callable[[], float] = time.time,
        store: Store | None = None,
    ) -> None:
        if on_unacknowledged not in ("return", "raise"):
            raise ConfigError(f'on_unacknowledged must be "return" or "raise", not {on_unacknowledged!r}')
        for name, value in (("l1_entries", l1_entries), ("index_limit", index_limit)):
            check_size(name, value, least=0)
        for name, value in (
            ("l1_max_bytes", l1_max_bytes),
            ("l1_max_value", l1_max_value),
            ("max_bytes", max_bytes),
            ("max_value", max_value),
        ):
            check_size(name, value, least=1)
        if compress_above is not None:
            check_size("compress_above", compress_above, least=0)
        if not callable(clock):
            raise ConfigError(f"clock must be a function such as time.time, not {clock!r}")
        evict = eviction_policy(l1_policy)
        alone = None if l1_without_channel is None else seconds("l1_without_channel", l1_without_channel)
        if alone is not None and l1_window is None:
            raise ConfigError("l1_without_channel needs l1_window, which turns L1 on beside Redis")
        if url is not None and store is not None:
            raise ConfigError("give a url or a store of your own, not both")
        self.prefix = prefix
        self.ttl_default = seconds("ttl", ttl)
        self.invalidation_timeout = seconds("invalidation_timeout", invalidation_timeout)
        self.raise_unacknowledged = on_unacknowledged == "raise"
        self.telemetry = Telemetry(keys=trace_keys)
        self.events = Events(on_event)
        self.endpoint = endpoint_of(url, seconds("timeout", timeout)) if store is None else None
        self.driver = Driver(spans=self.telemetry, timeout=self.endpoint.wait if self.endpoint else None)
        mode = check_mode(failover)
        world: dict[str, Any] = {
            "clock": clock,
            "compress_above": compress_above,
            "max_value": max_value,
            "index_limit": index_limit,
            "recent": self.endpoint is not None and mode != "trust",
        }
        cluster = None
        if self.endpoint is not None and self.endpoint.cluster:
            self.world, cluster = clustered(self.endpoint, prefix, index_limit, world, self.events)
        else:
            self.world = ProcessWorld(RawKeys(prefix), **world)
        self.l1_entries = l1_entries
        self.near: NearCache | None = None
        self.channel: Channel | None = None
        self.store: Store
        self.link: Link | OwnStoreLink
        remote: RemoteStore | None = cluster
        if self.endpoint is None or cluster is not None:
            present = Weakly(self._present_store)
            gates = cluster.gates if cluster is not None else None
            self.link = OwnStoreLink(present, self.world, self.events, self.driver.timeout, gates)
        else:
            self.link = Link(self.endpoint, self.world, mode, self.events, index_limit)
            remote = self.link.store
        if store is not None:
            self.store = store
        elif remote is None:
            self.store = EmbeddedStore(max_bytes, clock, index_limit, tick=self.world.tick)
            self.near = NearCache(l1_entries, l1_max_bytes, l1_max_value, evict, clock=clock)
        else:
            self.store = remote
            if l1_window is not None:
                self.near = NearCache(l1_entries, l1_max_bytes, l1_max_value, evict, clock=clock)
                self.near.horizon = 0.0
                window, keys = seconds("l1_window", l1_window), self.world.keys
                hub: Hub = (
                    OneServer(keys, self.link.client, window)
                    if isinstance(self.link, Link)
                    else Shards(keys, cast(ClusterStore, remote), BUCKETS, window)
                )
                self.channel = remote.channel = Channel(
                    hub, self.near, self.world.tick, window, alone, self.events, Weakly(self.listen).alive
                )
                self.driver.notices = self.channel.expect_fill
        self.link.near = self.near
        every = None if reclaim_every is None else seconds("reclaim_every", reclaim_every)
        listed = self.endpoint is not None and index_limit
        self.reclaimer = Reclaimer(Weakly(self.reclaim), every if listed else None)
        self.counts: dict[str, Counts] = {}
        self.codecs: dict[bytes, ValueCodec] = {}
        self.bound_here: weakref.WeakSet[Any] = weakref.WeakSet()
        self.parts: weakref.WeakSet[Any] = weakref.WeakSet()
        """What is closed with the cache: brokers and the like."""
        self.messages: dict[str, Tally] = {}
        """What became of messages, by the kind of their broker."""
        self.limits: dict[str, Tally] = {}
        """What became of hits, by the name of their limiter."""
        self._mode: ContextVar[Mode | None] = ContextVar(f"cacheaside_mode_{id(self)}", default=None)
        self._direct: dict[tuple[float, bytes], Site] = {}
        self._typed: dict[Any, ValueCodec] = {}
        self._direct_counts = Counts()
        observe(self)
        self.untyped = codec_for(NO_ANNOTATION)
        self.codecs[self.untyped.schema] = self.untyped

    def __repr__(self) -> str:
        where = self.endpoint.safe if self.endpoint is not None else type(self.store).__name__
        return f"<Cache {where} prefix={self.prefix!r}>"

    # -- what decorated functions need

    def site(self, policy: Policy, codec: ValueCodec, app: str = "") -> Site:
        """A call site of this cache, of a function of ``app``; its counters appear in ``stats()``."""
        self.listen()
        near = self.near if policy.l1 and self.l1_entries else None
        keeps = policy.l2 or (self.channel is None and self.near is not None)
        site = Site(self.world, policy, codec, near, self.near, keeps=keeps, app=app)
        # By namespace: a function that is gone, such as one made in a loop, leaves its counts and no more.
        site.counts = self.counts.setdefault(policy.ns, site.counts)
        self.codecs[codec.schema] = codec
        return site

    def store_of(self, site: Site) -> Store:
        return self.store

    def listen(self) -> None:
        """Have this process hear invalidations; a forked child must listen for itself."""
        if self.channel is not None:
            self.channel.start()

    @property
    def mode(self) -> Mode | None:
        """Whether calls here bypass the cache or refresh it."""
        return self._mode.get()

    # -- decorators

    @overload
    def cached(
        self, *, ns: str, key: str | None = None, **options: Unpack[CachedOptions]
    ) -> CacheDecorator: ...
    @overload
    def cached(
        self, *, ns: str | None = None, key: Key[...], **options: Unpack[CachedOptions]
    ) -> CacheDecorator: ...
    def cached(
        self,
        *bare: object,
        ns: str | None = None,
        key: str | Key[...] | None = None,
        **options: Unpack[CachedOptions],
    ) -> CacheDecorator:
        """``cacheaside.cached`` on this cache."""
        refuse_bare("cached", bare)
        return cached_decorator(lambda: self, id(self), ns=ns, key=key, options=options)

    @overload
    def cached_many(self, *, ns: str, key: str, **options: Unpack[ManyOptions]) -> ManyDecorator: ...
    @overload
    def cached_many(
        self, *, ns: str | None = None, key: Key[...], **options: Unpack[ManyOptions]
    ) -> ManyDecorator: ...
    def cached_many(
        self, *, ns: str | None = None, key: str | Key[...], **options: Unpack[ManyOptions]
    ) -> ManyDecorator:
        """``cacheaside.cached_many`` on this cache."""
        return cached_many_decorator(lambda: self, id(self), ns=ns, key=key, options=options)

    def invalidates(
        self,
        *,
        tags: TagTemplates = (),
        keys: Iterable[str | Key[...]] = (),
        ns: str | None = None,
        on_error: bool = False,
    ) -> SameDecorator:
        """``cacheaside.invalidates`` on this cache."""
        return invalidates_decorator(lambda: self, tags=tags, keys=keys, ns=ns, on_error=on_error)

    @overload
    def updates(self, *, ns: str, key: str, **options: Unpack[UpdatesOptions]) -> SameDecorator: ...
    @overload
    def updates(
        self, *, ns: str | None = None, key: Key[...], **options: Unpack[UpdatesOptions]
    ) -> SameDecorator: ...
    def updates(
        self, *, ns: str | None = None, key: str | Key[...], **options: Unpack[UpdatesOptions]
    ) -> SameDecorator:
        """``cacheaside.updates`` on this cache."""
        return updates_decorator(lambda: self, ns=ns, key=key, options=options)

    def namespace(self, ns: str, *, ttl: Ttl | None = None) -> Namespace:
        """The decorators with ``ns`` and ``ttl`` filled in."""
        return Namespace(self, ns, ttl)

    # -- contexts

    @contextmanager
    def _in_mode(self, mode: Mode) -> Generator[None]:
        token = self._mode.set(mode)
        if self.near is not None:
            self.near.bypass(True)
        try:
            yield
        finally:
            if self.near is not None:
                self.near.bypass(False)
            self._mode.reset(token)

    def bypass(self) -> AbstractContextManager[None]:
        """``with cache.bypass():`` calls go to the functions themselves; nothing is read or stored."""
        return self._in_mode("bypass")

    def refreshing(self) -> AbstractContextManager[None]:
        """``with cache.refreshing():`` calls load and store anew, whatever is cached."""
        return self._in_mode("refresh")

    def transaction(self) -> Transaction:
        """``with cache.transaction():`` invalidations wait for the end of the block; an error drops them."""
        return Transaction(self)

    def mutating(self, *, keys: Iterable[str] = (), tags: Iterable[str] = (), hold: Seconds = 30) -> Mutating:
        """``with cache.mutating(tags=[...]):`` nothing of these is stored while the block runs.

        Put it around a database transaction: the keys and tags are held before it begins and
        invalidated when it ends, error or not. If the process dies in between, the hold ends by itself
        after ``hold`` seconds, in misses.
        """
        return Mutating(self, key_names(keys), tag_names(tags), seconds("hold", hold))

    def lock(self, name: str, ttl: Seconds = 10, *, timeout: Seconds = 10) -> Lock:
        """``with cache.lock("reports") as held:`` one holder at a time among all processes.

        It is renewed while it is held, and ends ``ttl`` seconds after its process has died. ``held.fence``
        grows with every holder: what the lock protects should refuse a smaller one, for no lock of one
        Redis can promise that there are never two holders. Not re-entrant.

        Args:
            timeout: seconds to wait for it; LockTimeout then.
        """
        from cacheaside.toolkit.lock import Lock

        return Lock(self, name, ttl, timeout)

    # -- lifetime

    def _present_store(self) -> Store:
        return self.store

    def close(self) -> None:
        """Wait for background refreshes, five seconds at most, and close all connections of threads."""
        for part in list(self.parts):
            part.close()
        self.reclaimer.close()
        self.link.close()
        if owed := len(self.world.journal):
            self.events.tell("unacknowledged", f"closed while {owed} invalidations are not acknowledged")
        if self.channel is not None:
            self.channel.close()
        self.driver.close()
        close = getattr(self.store, "close", None)
        if close is not None:
            close()
        if self.near is not None:
            self.near.clear()

    async def aclose(self) -> None:
        """``close`` from an event loop: also ends its background tasks and its connections."""
        for part in list(self.parts):
            await part.aclose()
        await self.driver.aclose()
        aclose = getattr(self.store, "aclose", None)
        if aclose is not None:
            await aclose()
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class Namespace:
    """The decorators of a cache with a namespace, and a ttl if given, filled in."""

    def __init__(self, cache: Cache, ns: str, ttl: Ttl | None) -> None:
        self.cache = cache
        self.ns = check_namespace(ns)
        self.ttl = ttl

    def cached(self, *, key: str | None = None, **options: Unpack[CachedOptions]) -> CacheDecorator:
        options.setdefault("ttl", self.ttl)
        return self.cache.cached(ns=self.ns, key=key, **options)

    def cached_many(self, *, key: str, **options: Unpack[ManyOptions]) -> ManyDecorator:
        options.setdefault("ttl", self.ttl)
        return self.cache.cached_many(ns=self.ns, key=key, **options)

    def updates(self, *, key: str, **options: Unpack[UpdatesOptions]) -> SameDecorator:
        options.setdefault("ttl", self.ttl)
        return self.cache.updates(ns=self.ns, key=key, **options)

    def invalidates(
        self, *, tags: TagTemplates = (), keys: Iterable[str] = (), on_error: bool = False
    ) -> SameDecorator:
        return self.cache.invalidates(tags=tags, keys=keys, ns=self.ns, on_error=on_error)

    def clear(self) -> Dropped:
        return self.cache.clear(self.ns)

    async def aclear(self) -> Dropped:
        return await self.cache.aclear(self.ns)


def endpoint_of(url: str | None, timeout: float) -> Endpoint | None:
    """Where Redis is and for how long a call waits for it; None for the embedded store."""
    if url is None:
        url = os.environ.get("CACHEASIDE_URL") or EMBEDDED
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f'url must be a string such as "redis://localhost:6379/0", not {url!r}')
    return None if url == EMBEDDED else endpoint_within(parse_url(url), timeout)


def eviction_policy(wanted: Any) -> Evict:
    """The policy of this name, or a policy of one's own."""
    if callable(wanted):
        return cast(Evict, wanted)
    evict = POLICIES.get(str(wanted))
    if evict is None:
        known = ", ".join(map(repr, POLICIES))
        raise ConfigError(f"l1_policy must be one of {known} or a class of cachetools, not {wanted!r}")
    return evict


def check_size(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")


def clustered(
    endpoint: Endpoint, prefix: str, index_limit: int, options: dict[str, Any], events: Events
) -> tuple[ClusterWorld, ClusterStore]:
    """What a cache works with on a cluster."""
    keys, topology = RawKeys(prefix, BUCKETS), Topology(endpoint.hosts)
    world = ClusterWorld(keys, topology.server_of, **options)
    store = ClusterStore(
        keys,
        topology,
        lambda address, told: connect_node(endpoint, address, told),
        lambda address, told: aconnect_node(endpoint, address, told),
        lambda address, facts: world.learn_server(address, facts.incarnation),
        index_limit=index_limit,
        timeout=endpoint.wait,
        events=events,
    )
    return world, store
