"""Direct operations of a ``Cache``: get, set, invalidate and the like, each with an a-prefixed twin.

Keys are ``ns:rest``, without the prefix. Every operation is one flow; the sync and the async method
only choose who drives it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from cacheaside.codecs import ValueCodec
from cacheaside.coherence import Channel
from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import Announce, Flow, Members, Scan, Sleep
from cacheaside.engine.direct import Found, expire, find, put_values, reclaim
from cacheaside.engine.drive import Driver, Store
from cacheaside.engine.read import alone, read, read_only
from cacheaside.engine.write import Receipt, invalidate
from cacheaside.entry import NEGATIVE
from cacheaside.errors import CodecError, ConfigError, InvalidationNotAcknowledged, StoreUnavailable
from cacheaside.keys import tag_name
from cacheaside.keyspace import DeclaredKey
from cacheaside.missing import MISSING
from cacheaside.names import check_key, everything, key_names, tag_names
from cacheaside.policy import Seconds, make_policy, seconds
from cacheaside.reclaim import Reclaimer
from cacheaside.stats import Counts
from cacheaside.stores.memory import NearCache
from cacheaside.telemetry import Telemetry
from cacheaside.transactions import Transaction, collecting
from cacheaside.world import ProcessWorld

log = logging.getLogger("cacheaside")

T = TypeVar("T")

BATCH: Final = 500

Named = tuple[bytes, float]
"""The name of a hold, and its seconds."""


class Operations:
    """The direct operations; ``Cache`` inherits them, and brings what they work with."""

    world: ProcessWorld
    telemetry: Telemetry
    driver: Driver
    store: Store
    near: NearCache | None
    l1_entries: int
    channel: Channel | None
    reclaimer: Reclaimer
    counts: dict[str, Counts]
    codecs: dict[bytes, ValueCodec]
    untyped: ValueCodec
    ttl_default: float
    invalidation_timeout: float
    raise_unacknowledged: bool
    invalidations = 0
    unacknowledged = 0
    _direct: dict[float, Site]
    _direct_counts: Counts

    # -- reading

    def get(self, key: str, default: Any = MISSING) -> Any:
        """The value of ``key``, or ``default`` when there is no fresh one. A cached None is None."""
        return self.run(self._get((check_key(key),), default), "get")[key]

    async def aget(self, key: str, default: Any = MISSING) -> Any:
        return (await self.arun(self._get((check_key(key),), default), "get"))[key]

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The fresh values among ``keys``; what is missing is left out."""
        return self.run(self._get_many(keys), "get_many")

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        return await self.arun(self._get_many(keys), "get_many")

    def exists(self, key: str) -> bool:
        """Whether ``key`` has a fresh value."""
        return self.get(key) is not MISSING

    async def aexists(self, key: str) -> bool:
        return await self.aget(key) is not MISSING

    def ttl(self, key: str) -> float | None:
        """Seconds that the value of ``key`` stays fresh; None when there is none."""
        return self.run(self._ttl(check_key(key)), "ttl")

    async def attl(self, key: str) -> float | None:
        return await self.arun(self._ttl(check_key(key)), "ttl")

    def get_or_load(
        self,
        key: str,
        load: Callable[[], T],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
    ) -> T:
        """The value of ``key``; when there is none, what ``load()`` returns, stored under ``tags``."""
        site, call = self._direct_call(key, load, ttl, tags)
        value: T = self.run(self._reading(site, call), "get_or_load")
        return value

    async def aget_or_load(
        self,
        key: str,
        load: Callable[[], Awaitable[T]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
    ) -> T:
        """``get_or_load`` with an async ``load``."""
        site, call = self._direct_call(key, load, ttl, tags)
        return await self.arun(self._reading(site, call), "get_or_load")

    # -- writing

    def set(self, key: str, value: Any, *, ttl: Seconds | None = None, tags: Iterable[str] = ()) -> bool:
        """Store a value for ``ttl`` seconds (default: the cache's); False if it was not stored."""
        return all(self.run(self._set({key: value}, ttl, tags), "set"))

    async def aset(
        self, key: str, value: Any, *, ttl: Seconds | None = None, tags: Iterable[str] = ()
    ) -> bool:
        return all(await self.arun(self._set({key: value}, ttl, tags), "set"))

    def set_many(
        self,
        values: Mapping[str, Any],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
    ) -> bool:
        """Store several values, each with its ttl from the start; False unless all were stored."""
        return all(self.run(self._set(values, ttl, tags), "set_many"))

    async def aset_many(
        self,
        values: Mapping[str, Any],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
    ) -> bool:
        return all(await self.arun(self._set(values, ttl, tags), "set_many"))

    def expire(self, key: str, ttl: Seconds) -> bool:
        """Give the value of ``key`` another ttl from now; False when there is none to give it to."""
        return self.run(self._expire(check_key(key), seconds("ttl", ttl)), "expire")

    async def aexpire(self, key: str, ttl: Seconds) -> bool:
        return await self.arun(self._expire(check_key(key), seconds("ttl", ttl)), "expire")

    def delete(self, *keys: str) -> Receipt:
        """Drop keys; the same as ``invalidate(keys=keys)``."""
        return self.invalidate(keys=tuple(map(check_key, keys)))

    async def adelete(self, *keys: str) -> Receipt:
        return await self.ainvalidate(keys=tuple(map(check_key, keys)))

    def invalidate(
        self,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        hold: Seconds | None = None,
        barrier: bool = False,
    ) -> Receipt:
        """Drop keys and everything under tags; inside a transaction, when it has succeeded.

        Args:
            barrier: wait until no process's L1 can serve what was dropped: one ``l1_window``.
            hold: seconds for which nothing of them may be stored again, at once even inside a
                transaction: for sources that lag behind, such as a replica.

        Raises InvalidationNotAcknowledged where the cache was made with ``on_unacknowledged="raise"``.
        """
        keys, tags = key_names(keys), tag_names(tags)
        transaction = self.collecting()
        if transaction is not None and hold is None:
            transaction.add(keys, tags, barrier=barrier)
            return Receipt(keys, tags, acknowledged=False, attempts=0, deferred=True)
        return self.invalidate_now(keys=keys, tags=tags, hold=self._named(hold), barrier=barrier)

    async def ainvalidate(
        self,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        hold: Seconds | None = None,
        barrier: bool = False,
    ) -> Receipt:
        keys, tags = key_names(keys), tag_names(tags)
        transaction = self.collecting()
        if transaction is not None and hold is None:
            transaction.add(keys, tags, barrier=barrier)
            return Receipt(keys, tags, acknowledged=False, attempts=0, deferred=True)
        return await self.ainvalidate_now(keys=keys, tags=tags, hold=self._named(hold), barrier=barrier)

    def invalidate_now(
        self,
        *,
        keys: tuple[str, ...],
        tags: tuple[str, ...],
        hold: Named | None = None,
        release: bytes = b"",
        barrier: bool = False,
    ) -> Receipt:
        """``invalidate`` that no transaction defers; may begin or end a hold by its name."""
        self.reclaimer.note(tags)
        with self.telemetry.invalidation(len(keys), len(tags)) as note:
            flow = self._invalidation(keys, tags, hold, release, barrier)
            receipt = note(self.driver.run(flow, self.store))
        return self._acknowledge(receipt)

    async def ainvalidate_now(
        self,
        *,
        keys: tuple[str, ...],
        tags: tuple[str, ...],
        hold: Named | None = None,
        release: bytes = b"",
        barrier: bool = False,
    ) -> Receipt:
        self.reclaimer.note(tags)
        with self.telemetry.invalidation(len(keys), len(tags)) as note:
            flow = self._invalidation(keys, tags, hold, release, barrier)
            receipt = note(await self.driver.arun(flow, self.store))
        return self._acknowledge(receipt)

    def _named(self, hold: Seconds | None) -> Named | None:
        """A hold that nobody ends before its time."""
        return None if hold is None else (self.world.nonce(), seconds("hold", hold))

    def delete_matching(self, pattern: str, *, progress: Callable[[int], None] | None = None) -> int:
        """Drop all keys that match a glob pattern, such as ``"posts:feed:*"``; how many were dropped.

        Walks the key space with SCAN in batches, never KEYS. Tags do the same in one step: prefer them.
        ``progress`` is told the count after each batch.
        """
        return self.run(self._delete_matching(pattern, progress), "delete_matching")

    async def adelete_matching(self, pattern: str, *, progress: Callable[[int], None] | None = None) -> int:
        return await self.arun(self._delete_matching(pattern, progress), "delete_matching")

    def clear(self, ns: str | None = None) -> int:
        """Drop everything of a namespace, or of the whole prefix; how many keys."""
        return self.run(self._delete_matching(everything(ns), None), "clear")

    async def aclear(self, ns: str | None = None) -> int:
        return await self.arun(self._delete_matching(everything(ns), None), "clear")

    def collecting(self) -> Transaction | None:
        """The transaction of this context, if it is one of this cache."""
        transaction = collecting.get()
        while transaction is not None and (transaction.cache is not self or transaction.over):
            transaction = transaction.outer
        return transaction

    # -- looking

    def tag_keys(self, tag: str, *, start: int = 0, count: int = 1000) -> list[str]:
        """Keys that were stored under ``tag``, the first to expire first. For people: it may lag."""
        return self.run(self._members(tag, start, count), "tag_keys")

    async def atag_keys(self, tag: str, *, start: int = 0, count: int = 1000) -> list[str]:
        return await self.arun(self._members(tag, start, count), "tag_keys")

    def explain(self, key: str) -> str:
        """In words: which tier holds ``key``, how old it is, its tags, and why a read would hit or miss."""
        return self.run(self._explain(check_key(key)), "explain")

    async def aexplain(self, key: str) -> str:
        return await self.arun(self._explain(check_key(key)), "explain")

    def stats(self) -> dict[str, Any]:
        """Counters of this process, by namespace, and the state of L1."""
        near = self.near
        return {
            "namespaces": {ns: counts.snapshot() for ns, counts in list(self.counts.items())},
            "l1": {
                "on": near is not None and self.l1_entries > 0,
                "coherent": near is not None and near.horizon > self.world.tick(),
                "epoch": self.channel.epoch if self.channel else 0,
                "horizon_age": self.channel.horizon_age if self.channel else 0.0,
                "entries": len(near.entries) if near else 0,
                "bytes": near.size if near else 0,
                "evictions": near.evictions if near else 0,
            },
            "flights": len(self.world.flights),
            "invalidations": self.invalidations,
            "unacknowledged": self.unacknowledged,
            "bad_data": {f"{ns}: {reason}": n for (ns, reason), n in self.world.troubles.items()},
        }

    # -- the flows

    def run(self, flow: Flow[T], name: str = "run") -> T:
        """Drive a flow over this cache's store; raises StoreUnavailable when the flow lets it through.

        ``name`` is that of its span.
        """
        with self.telemetry.operation(name):
            return self.driver.run(flow, self.store)

    async def arun(self, flow: Flow[T], name: str = "run") -> T:
        """``run`` on the running event loop."""
        with self.telemetry.operation(name):
            return await self.driver.arun(flow, self.store)

    def _direct_site(self, ttl: Seconds | None) -> Site:
        """The call site of direct operations with this ttl; entries of it are untyped."""
        wanted = self.ttl_default if ttl is None else seconds("ttl", ttl)
        site = self._direct.get(wanted)
        if site is None:
            if len(self._direct) > 256:
                self._direct.clear()
            policy = make_policy(ns="(direct)", ttl=wanted, l1=False, jitter=0)
            site = self._direct[wanted] = Site(self.world, policy, self.untyped, None)
            site.counts = self._direct_counts
        return site

    def _direct_call(
        self, key: str, load: Callable[[], Any], ttl: Seconds | None, tags: Iterable[str]
    ) -> tuple[Site, Call]:
        return self._direct_site(ttl), direct_call(key, load, ttl, tag_names(tags))

    def _reading(self, site: Site, call: Call) -> Flow[Any]:
        transaction = self.collecting()
        if transaction is None:
            return read(site, call)
        return (alone if transaction.dirty else read_only)(site, call)

    def _get(self, keys: tuple[str, ...], default: Any) -> Flow[dict[str, Any]]:
        found = dict.fromkeys(keys, default)
        try:
            entries: list[Found] = yield from find(self.world, keys)
        except StoreUnavailable as error:
            log.warning("get answered as a miss: %s", error)
            return found
        for entry in entries:
            value = self._open(entry)
            if value is not MISSING:
                found[entry.key] = value
        return found

    def _open(self, entry: Found) -> Any:
        """A found value by the codec that wrote it, which this process may or may not know."""
        value = entry.value
        if value is None or not entry.believed or value.soft <= self.world.clock():
            return MISSING
        if value.flags & NEGATIVE:
            return None
        codec = self.codecs.get(value.schema)
        if codec is None:
            return MISSING
        try:
            payload = value.payload
            return codec.decode(self.world.unpack(value.flags, payload) if value.flags else payload)
        except CodecError:
            return MISSING

    def _get_many(self, keys: Iterable[str]) -> Flow[dict[str, Any]]:
        wanted = key_names(keys)
        found = yield from self._get(wanted, MISSING)
        return {key: value for key, value in found.items() if value is not MISSING}

    def _ttl(self, key: str) -> Flow[float | None]:
        try:
            (entry,) = yield from find(self.world, (key,))
        except StoreUnavailable:
            return None
        if entry.value is None or not entry.believed:
            return None
        left = entry.value.soft - self.world.clock()
        return left if left > 0 else None

    def _set(self, values: Mapping[str, Any], ttl: Seconds | None, tags: Iterable[str]) -> Flow[list[bool]]:
        site, tagged = self._direct_site(ttl), tag_names(tags)
        calls = [(direct_call(key, _nothing, ttl, tagged), value) for key, value in values.items()]
        for _, value in calls:
            if value is not None:
                self.untyped.encode(value)  # what cannot be stored is the caller's mistake, said at once
        return (yield from put_values(site, calls, self.invalidation_timeout, self.near))

    def _expire(self, key: str, ttl: float) -> Flow[bool]:
        try:
            return (yield from expire(self.world, key, ttl))
        except StoreUnavailable as error:
            log.warning("expire did nothing: %s", error)
            return False
        finally:
            if self.near is not None:
                self.near.mark((key,), ())

    def _invalidation(
        self, keys: tuple[str, ...], tags: tuple[str, ...], hold: Named | None, release: bytes, barrier: bool
    ) -> Flow[Receipt]:
        timeout = self.invalidation_timeout
        receipt = yield from invalidate(
            self.world, self.near, keys, tags, hold=hold, release=release, timeout=timeout
        )
        if barrier and self.channel is not None:
            yield Sleep(self.channel.window)
        return receipt

    def _acknowledge(self, receipt: Receipt) -> Receipt:
        self.invalidations += len(receipt.keys) + len(receipt.tags)
        if receipt.acknowledged:
            return receipt
        self.unacknowledged += 1
        message = (
            f"not acknowledged after {receipt.attempts} attempts in {self.invalidation_timeout:g} s: "
            f"keys {list(receipt.keys)}, tags {list(receipt.tags)}; entries may be served until their ttl"
        )
        log.error("an invalidation was %s", message)
        if self.raise_unacknowledged:
            raise InvalidationNotAcknowledged(message)
        return receipt

    def _delete_matching(self, pattern: str, progress: Callable[[int], None] | None) -> Flow[int]:
        if not isinstance(pattern, str) or not pattern:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f'pattern must be a string such as "posts:feed:*", not {pattern!r}')
        if self.near is not None:
            self.near.clear(pattern)
        yield Announce(patterns=(pattern,))
        raw = self.world.keys.value(pattern)
        dropped, cursor = 0, None
        while True:
            cursor, found = yield Scan(raw, cursor, BATCH)
            # Companions and tokens begin with a brace: they are not values.
            keys = tuple(self.world.keys.strip(k) for k in found if not k.startswith("{"))
            if keys:
                receipt = yield from invalidate(
                    self.world, self.near, keys, (), timeout=self.invalidation_timeout
                )
                if not receipt:
                    raise StoreUnavailable(f"dropping {pattern!r} stopped after {dropped} keys")
                dropped += len(keys)
                if progress is not None:
                    progress(dropped)
            if cursor is None:
                break
        # Again: an L1 may have been given meanwhile what stood in L2 until just now.
        yield Announce(patterns=(pattern,))
        if self.near is not None:
            self.near.clear(pattern)
        return dropped

    def _members(self, tag: str, start: int, count: int) -> Flow[list[str]]:
        found: list[str] = yield Members(self.world.keys.tag_index(tag_name(tag)), start, count)
        return found

    def reclaim(self, tag: str) -> int:
        """Free the memory of entries that ``tag`` invalidated, in batches; how many were deleted.

        They are never served again either way; without this they stay until their ttl.
        """
        return self.run(reclaim(self.world, tag_name(tag)), "reclaim")

    async def areclaim(self, tag: str) -> int:
        return await self.arun(reclaim(self.world, tag_name(tag)), "reclaim")

    def _explain(self, key: str) -> Flow[str]:
        now = self.world.clock()
        words: list[str] = []
        near = self.near
        if near is None:
            words.append("L1 is off")
        elif (held := near.get(key, self.world.tick())) is not None:
            words.append(f"L1 holds it for {held.until - self.world.tick():.1f} s more")
        else:
            words.append("L1 does not hold it")
        try:
            (entry,) = yield from find(self.world, (key,))
        except StoreUnavailable as error:
            return f"{key}: {words[0]}; L2 did not answer ({error})"
        return f"{key}: {words[0]}; L2 {entry.words(now)}"


def direct_call(key: str, load: Callable[[], Any], ttl: Seconds | None, tags: tuple[str, ...]) -> Call:
    """The call of an operation; a declared key brings the ttl and the tags that were not given."""
    if not isinstance(key, DeclaredKey):
        return Call(check_key(key), tags, load)
    call = Call(check_key(key), tags or key.tags, load)
    if ttl is None:
        call.ttl = key.ttl
    return call


def _nothing() -> None:
    return None
