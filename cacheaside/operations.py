"""Direct operations of a ``Cache``: get, set, invalidate and the like, each with an a-prefixed twin.

Keys are ``ns:rest``, without the prefix. Every operation is one flow; the sync and the async method
only choose who drives it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import Any, TypeVar, overload

from cacheaside.engine.commands import Fetch
from cacheaside.engine.direct import reclaim
from cacheaside.engine.renew import ask
from cacheaside.engine.write import Dropped, Receipt
from cacheaside.flows import Flows, Named, hit_or_miss
from cacheaside.keys import tag_name
from cacheaside.missing import MISSING, Missing
from cacheaside.names import check_key, everything, key_names, tag_names
from cacheaside.policy import Seconds, seconds
from cacheaside.status import Health, health_of, stats_of

log = logging.getLogger("cacheaside")

T = TypeVar("T")
D = TypeVar("D")


class Operations(Flows):
    """The direct operations; ``Cache`` inherits them.

    Keys are ``ns:rest``; one without a colon raises ConfigError.
    """

    # -- reading

    @overload
    def get(self, key: str, default: Any = MISSING) -> Any: ...
    @overload
    def get(self, key: str, *, type: type[T]) -> T | Missing | None: ...
    @overload
    def get(self, key: str, default: D, *, type: type[T]) -> T | D | None: ...
    @overload
    def get(self, key: str, default: Any = MISSING, *, type: object) -> Any: ...
    def get(self, key: str, default: Any = MISSING, *, type: Any = Any) -> Any:
        """The value of ``key``, or ``default`` when there is no fresh one. A cached None is None.

        With a ``type``, a value of that type: what was stored under another one is no value, and what was
        stored without one must fit. Raises CodecError for a type that cannot be cached.
        """
        value = self.run(self._get((check_key(key),), type), "get", hit_or_miss)[key]
        return default if value is MISSING else value

    @overload
    async def aget(self, key: str, default: Any = MISSING) -> Any: ...
    @overload
    async def aget(self, key: str, *, type: type[T]) -> T | Missing | None: ...
    @overload
    async def aget(self, key: str, default: D, *, type: type[T]) -> T | D | None: ...
    @overload
    async def aget(self, key: str, default: Any = MISSING, *, type: object) -> Any: ...
    async def aget(self, key: str, default: Any = MISSING, *, type: Any = Any) -> Any:
        value = (await self.arun(self._get((check_key(key),), type), "get", hit_or_miss))[key]
        return default if value is MISSING else value

    @overload
    def get_many(self, keys: Iterable[str]) -> dict[str, Any]: ...
    @overload
    def get_many(self, keys: Iterable[str], *, type: type[T]) -> dict[str, T | None]: ...
    @overload
    def get_many(self, keys: Iterable[str], *, type: object) -> dict[str, Any]: ...
    def get_many(self, keys: Iterable[str], *, type: Any = Any) -> dict[str, Any]:
        """The fresh values among ``keys``; what is missing, or not of the type, is left out.

        Raises CodecError for a type that cannot be cached.
        """
        return self.run(self._get_many(keys, type), "get_many")

    @overload
    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]: ...
    @overload
    async def aget_many(self, keys: Iterable[str], *, type: type[T]) -> dict[str, T | None]: ...
    @overload
    async def aget_many(self, keys: Iterable[str], *, type: object) -> dict[str, Any]: ...
    async def aget_many(self, keys: Iterable[str], *, type: Any = Any) -> dict[str, Any]:
        return await self.arun(self._get_many(keys, type), "get_many")

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
        type: Any = Any,
    ) -> T:
        """The value of ``key``; when there is none, what ``load()`` returns, stored as ``set`` would.

        Raises what ``load`` raises, and ConfigError or CodecError as ``set`` does.
        """
        site, call = self._direct_call(key, load, ttl, tags, type)
        value: T = self.run(self._reading(site, call), "get_or_load", lambda _: call.outcome)
        return value

    async def aget_or_load(
        self,
        key: str,
        load: Callable[[], Awaitable[T]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        type: Any = Any,
    ) -> T:
        """``get_or_load`` with an async ``load``."""
        site, call = self._direct_call(key, load, ttl, tags, type)
        return await self.arun(self._reading(site, call), "get_or_load", lambda _: call.outcome)

    # -- writing

    def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        type: Any = Any,
    ) -> bool:
        """Store a value; False if it was not stored.

        Args:
            ttl: seconds. None is that of a declared key, or else the cache's; there is no value without an
                end, and what should have none gets ``FOREVER``.
            tags: what it is invalidated by. None given: those of a declared key.
            type: the value's type, for values that are more than builtin ones; readers name the same.

        Raises ConfigError for a ttl of 0, and CodecError for a value that would not come back as it is.
        """
        return all(self.run(self._set({key: value}, ttl, tags, type), "set"))

    async def aset(
        self,
        key: str,
        value: Any,
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        type: Any = Any,
    ) -> bool:
        return all(await self.arun(self._set({key: value}, ttl, tags, type), "set"))

    def set_many(
        self,
        values: Mapping[str, Any],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        type: Any = Any,
    ) -> bool:
        """Store several values, each with its ttl (seconds) from the start; False unless all were stored.

        Raises ConfigError and CodecError as ``set`` does.
        """
        return all(self.run(self._set(values, ttl, tags, type), "set_many"))

    async def aset_many(
        self,
        values: Mapping[str, Any],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        type: Any = Any,
    ) -> bool:
        return all(await self.arun(self._set(values, ttl, tags, type), "set_many"))

    def expire(self, key: str, ttl: Seconds) -> bool:
        """Give the value of ``key`` another ttl, seconds from now; False when there is none to give it to."""
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
            barrier: wait until no process's L1 can serve what was dropped: one ``l1_window``, or
                ``l1_without_channel`` where that is more.
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

    def delete_matching(self, pattern: str, *, progress: Callable[[int], None] | None = None) -> Dropped:
        """Drop all keys that match a glob pattern, such as ``"posts:feed:*"``; how many were dropped.

        Walks the key space with SCAN in batches, never KEYS. Tags do the same in one step: prefer them.
        ``progress`` is told the count after each batch. Where the store stops answering, the number is not
        ``complete``; InvalidationNotAcknowledged instead with ``on_unacknowledged="raise"``.
        """
        return self.run(self._delete_matching(pattern, progress), "delete_matching")

    async def adelete_matching(
        self, pattern: str, *, progress: Callable[[int], None] | None = None
    ) -> Dropped:
        return await self.arun(self._delete_matching(pattern, progress), "delete_matching")

    def clear(self, ns: str | None = None) -> Dropped:
        """Drop all of a namespace, or of the whole prefix, as ``delete_matching`` does; how many keys."""
        return self.run(self._delete_matching(everything(ns), None), "clear")

    async def aclear(self, ns: str | None = None) -> Dropped:
        return await self.arun(self._delete_matching(everything(ns), None), "clear")

    # -- looking

    def tag_keys(self, tag: str, *, start: int = 0, count: int = 1000) -> list[str]:
        """Keys that were stored under ``tag``, the first to expire first. For people: it may lag.

        Raises StoreUnavailable when the store does not answer.
        """
        return self.run(self._members(tag, start, count), "tag_keys")

    async def atag_keys(self, tag: str, *, start: int = 0, count: int = 1000) -> list[str]:
        return await self.arun(self._members(tag, start, count), "tag_keys")

    def reclaim(self, tag: str) -> int:
        """Free the memory of entries that ``tag`` invalidated, in batches; how many were deleted.

        They are never served again either way; without this they stay until their ttl. Raises
        StoreUnavailable when the store does not answer.
        """
        return self.run(reclaim(self.world, tag_name(tag)), "reclaim")

    async def areclaim(self, tag: str) -> int:
        return await self.arun(reclaim(self.world, tag_name(tag)), "reclaim")

    def biggest_tags(self, most: int = 20) -> list[tuple[str, int]]:
        """Tags and how many entries are listed under them, the biggest first; of ten thousand tags at most.

        Walks the key space in batches. For people: lists are bounded (``index_limit``) and may lag.
        """
        return self.run(self._biggest_tags(most), "biggest_tags")

    async def abiggest_tags(self, most: int = 20) -> list[tuple[str, int]]:
        return await self.arun(self._biggest_tags(most), "biggest_tags")

    def explain(self, key: str) -> str:
        """In words: which tier holds ``key``, how old it is, its tags, and why a read would hit or miss."""
        return self.run(self._explain(check_key(key)), "explain")

    async def aexplain(self, key: str) -> str:
        return await self.arun(self._explain(check_key(key)), "explain")

    def stats(self) -> dict[str, Any]:
        """Counters of this process, by namespace, and the state of L1 and of the store."""
        return stats_of(self)

    def ping(self) -> float:
        """Seconds that a round trip to the store takes; raises StoreUnavailable when it does not answer."""
        began = monotonic()
        self.run(ask(Fetch((self.link.a_key(),))), "ping")
        return monotonic() - began

    async def aping(self) -> float:
        began = monotonic()
        await self.arun(ask(Fetch((self.link.a_key(),))), "ping")
        return monotonic() - began

    def health(self) -> Health:
        """How this process stands with its store, as it knows without asking it."""
        return health_of(self)
