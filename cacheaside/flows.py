"""The flows of a cache's direct operations; ``operations.py`` has the methods that drive them.

A store that does not answer is a miss, or False, and is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, cast
from weakref import WeakSet

from cacheaside.codecs import ValueCodec, codec_for
from cacheaside.coherence import Channel
from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import Flow, Members, Scan, Sizes, Sleep
from cacheaside.engine.direct import BATCH, Found, drop_matching, expire, find, put_values
from cacheaside.engine.drive import Driver, Store
from cacheaside.engine.read import alone, read, read_only
from cacheaside.engine.write import Dropped, Receipt, invalidate
from cacheaside.entry import NEGATIVE
from cacheaside.errors import CodecError, ConfigError, InvalidationNotAcknowledged, StoreUnavailable
from cacheaside.events import Events
from cacheaside.keys import tag_name
from cacheaside.keyspace import DeclaredKey
from cacheaside.link import Link, OwnStoreLink
from cacheaside.missing import MISSING
from cacheaside.names import check_key, key_names, tag_names
from cacheaside.policy import Seconds, make_policy, seconds
from cacheaside.reclaim import Reclaimer
from cacheaside.stats import Counts, Tally
from cacheaside.stores.memory import NearCache
from cacheaside.telemetry import Telemetry
from cacheaside.transactions import Transaction, collecting, recording
from cacheaside.world import ProcessWorld

log = logging.getLogger("cacheaside")

T = TypeVar("T")

DIRECT: Final = "(direct)"
"""Stands in the place of a namespace where operations are counted."""
MANY: Final = 256
COUNTED: Final = 10_000
"""Tags that are looked at to find the biggest, at most."""

Named = tuple[bytes, float]
"""The name of a hold, and its seconds."""


class Flows:
    """What ``Operations`` is made of; ``Cache`` brings what it works with."""

    world: ProcessWorld
    link: Link | OwnStoreLink
    events: Events
    telemetry: Telemetry
    driver: Driver
    store: Store
    near: NearCache | None
    l1_entries: int
    channel: Channel | None
    reclaimer: Reclaimer
    counts: dict[str, Counts]
    messages: dict[str, Tally]
    limits: dict[str, Tally]
    codecs: dict[bytes, ValueCodec]
    bound_here: WeakSet[Any]
    untyped: ValueCodec
    ttl_default: float
    invalidation_timeout: float
    raise_unacknowledged: bool
    invalidations = 0
    unacknowledged = 0
    _direct: dict[tuple[float, bytes], Site]
    _direct_counts: Counts
    _typed: dict[Any, ValueCodec]

    def run(self, flow: Flow[T], name: str = "run", outcome: Callable[[T], str] | None = None) -> T:
        """Drive a flow over this cache's store; raises StoreUnavailable when the flow lets it through.

        ``name`` is that of its span, ``outcome`` what it says of the result.
        """
        with self.telemetry.operation(name, outcome=outcome) as note:
            return cast(T, note(self.driver.run(flow, self.store)))

    async def arun(self, flow: Flow[T], name: str = "run", outcome: Callable[[T], str] | None = None) -> T:
        """``run`` on the running event loop."""
        with self.telemetry.operation(name, outcome=outcome) as note:
            return cast(T, note(await self.driver.arun(flow, self.store)))

    def collecting(self) -> Transaction | None:
        """The transaction of this context, if it is one of this cache."""
        transaction = collecting.get()
        while transaction is not None and (transaction.cache is not self or transaction.over):
            transaction = transaction.outer
        return transaction

    def _counted(self) -> Counts:
        """The counters of direct operations; in ``stats()`` once there are any."""
        return self.counts.setdefault(DIRECT, self._direct_counts)

    def _codec(self, wanted: Any) -> ValueCodec:
        """The codec for values of a type; ``Any`` is what has none of its own."""
        if wanted is Any:
            return self.untyped
        try:
            codec = self._typed.get(wanted)
        except TypeError:  # a type with something unhashable in it
            codec = None
            wanted = repr(wanted)
        if codec is None:
            if len(self._typed) >= MANY:
                self._typed.clear()
            codec = self._typed[wanted] = codec_for(wanted)
        return codec

    def _direct_site(self, ttl: Seconds | None, codec: ValueCodec) -> Site:
        """The call site of direct operations with this ttl and codec."""
        wanted = self.ttl_default if ttl is None else seconds("ttl", ttl)
        site = self._direct.get((wanted, codec.schema))
        if site is None:
            if len(self._direct) >= MANY:
                self._direct.clear()
            policy = make_policy(ns=DIRECT, ttl=wanted, l1=False, jitter=0)
            site = self._direct[wanted, codec.schema] = Site(self.world, policy, codec, None)
            site.counts = self._counted()
            self.codecs[codec.schema] = codec
        return site

    def _direct_call(
        self, key: str, load: Callable[[], Any], ttl: Seconds | None, tags: Iterable[str], wanted: Any
    ) -> tuple[Site, Call]:
        return self._direct_site(ttl, self._codec(wanted)), direct_call(key, load, ttl, tag_names(tags))

    def _reading(self, site: Site, call: Call) -> Flow[Any]:
        transaction = self.collecting()
        if transaction is None:
            return read(site, call)
        return (alone if transaction.dirty else read_only)(site, call)

    def _get(self, keys: tuple[str, ...], wanted: Any) -> Flow[dict[str, Any]]:
        found: dict[str, Any] = dict.fromkeys(keys, MISSING)
        codec, counts = None if wanted is Any else self._codec(wanted), self._counted()
        try:
            entries: list[Found] = yield from find(self.world, keys)
        except StoreUnavailable as error:
            self.events.complain("get", "error", f"get answered as a miss: {error}")
            counts.unavailable += 1
            return found
        for entry in entries:
            value = self._open(entry, codec)
            if value is not MISSING:
                counts.hits_l2 += 1
                found[entry.key] = value
        return found

    def _open(self, entry: Found, wanted: ValueCodec | None = None) -> Any:
        """A found value by the codec that wrote it, which this process may or may not know.

        With ``wanted`` only a value of that type: one that was written as such, or, without a type of its
        own, one that fits.
        """
        value = entry.value
        if value is None or not entry.believed or value.soft <= self.world.clock():
            return MISSING
        if value.flags & NEGATIVE:
            return None
        codec = self.codecs.get(value.schema)
        if wanted is not None and value.schema in (wanted.schema, self.untyped.schema):
            codec = wanted
        elif wanted is not None or codec is None:
            return MISSING
        try:
            payload = value.payload
            return codec.decode(self.world.unpack(value.flags, payload) if value.flags else payload)
        except CodecError:
            return MISSING

    def _get_many(self, keys: Iterable[str], wanted: Any) -> Flow[dict[str, Any]]:
        found = yield from self._get(key_names(keys), wanted)
        return {key: value for key, value in found.items() if value is not MISSING}

    def _ttl(self, key: str) -> Flow[float | None]:
        try:
            (entry,) = yield from find(self.world, (key,))
        except StoreUnavailable as error:
            self.events.complain("ttl", "error", f"ttl answered as a miss: {error}")
            self._counted().unavailable += 1
            return None
        if entry.value is None or not entry.believed:
            return None
        left = entry.value.soft - self.world.clock()
        return left if left > 0 else None

    def _set(
        self, values: Mapping[str, Any], ttl: Seconds | None, tags: Iterable[str], wanted: Any
    ) -> Flow[list[bool]]:
        site, tagged = self._direct_site(ttl, self._codec(wanted)), tag_names(tags)
        calls = [(direct_call(key, _nothing, ttl, tagged), value) for key, value in values.items()]
        for _, value in calls:
            if value is not None:
                site.codec.encode(value)  # what cannot be stored is the caller's mistake, said at once
        return (yield from put_values(site, calls, self.invalidation_timeout, self.near))

    def _expire(self, key: str, ttl: float) -> Flow[bool]:
        try:
            return (yield from expire(self.world, key, ttl))
        except StoreUnavailable as error:
            self.events.complain("expire", "error", f"expire did nothing: {error}")
            self._counted().unavailable += 1
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
            yield Sleep(self.channel.lag)
        return receipt

    def _acknowledge(self, receipt: Receipt) -> Receipt:
        self.invalidations += len(receipt.keys) + len(receipt.tags)
        noted = recording.get()
        if noted is not None:
            noted.extend(receipt.tags)
        if receipt.acknowledged:
            return receipt
        self.unacknowledged += 1
        message = (
            f"not acknowledged after {receipt.attempts} attempts: keys {list(receipt.keys)}, tags "
            f"{list(receipt.tags)}; it is sent again until it is, and until then other processes may be "
            "answered with what it drops"
        )
        self.events.complain("unacknowledged", "unacknowledged", f"an invalidation was {message}")
        if self.raise_unacknowledged:
            raise InvalidationNotAcknowledged(message)
        return receipt

    def _delete_matching(self, pattern: str, progress: Callable[[int], None] | None) -> Flow[Dropped]:
        if not isinstance(pattern, str) or not pattern:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f'pattern must be a string such as "posts:feed:*", not {pattern!r}')
        dropped, error = yield from drop_matching(
            self.world, self.near, pattern, timeout=self.invalidation_timeout, progress=progress
        )
        if error is None:
            return Dropped(dropped)
        self._counted().unavailable += 1
        self.unacknowledged += 1
        message = f"dropping {pattern!r} ended after {dropped} keys, and is begun again: {error}"
        self.events.complain("unacknowledged pattern", "unacknowledged", message)
        if self.raise_unacknowledged:
            raise InvalidationNotAcknowledged(message) from error
        return Dropped(dropped, complete=False)

    def _members(self, tag: str, start: int, count: int) -> Flow[list[str]]:
        found: list[str] = yield Members(self.world.keys.tag_index(tag_name(tag)), start, count)
        return found

    def _biggest_tags(self, most: int) -> Flow[list[tuple[str, int]]]:
        names, cursor = self.world.keys, None
        sizes: dict[str, int] = {}
        while len(sizes) < COUNTED:
            cursor, indexes = yield Scan(names.tag_indexes(), cursor, BATCH, lists=True)
            if indexes:
                counted: tuple[int, ...] = yield Sizes(tuple(indexes))
                sizes.update(zip(map(names.tag_of, indexes), counted, strict=True))
            if cursor is None:
                break
        return sorted(sizes.items(), key=lambda one: (-one[1], one[0]))[:most]

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
        words += [f"L2 {entry.words(now)}", *self._around(key, entry, now)]
        return f"{key}: {'; '.join(words)}"

    def _around(self, key: str, entry: Found, now: float) -> Iterator[str]:
        """Who would load the key, what would make it a miss, and what was heard of it."""
        ns = key.partition(":")[0]
        plans = [plan for plan in list(self.bound_here) if plan.ns == ns]
        loaders = sorted({f"{plan.fn.__module__}.{plan.fn.__qualname__}" for plan in plans})
        if loaders:
            yield f"loaded by {' or '.join(loaders)}"
        tags = list(entry.stored or ())
        if entry.value is not None and entry.believed:
            words = ", ".join([key, *(f"tag {tag}" for tag in tags)])
            yield f"a miss when {words} is invalidated"
        heard = self.near.last_heard(key, tags) if self.near is not None else None
        if heard is not None:
            yield f"last invalidation heard here: {heard[1]}, {now - heard[0]:.1f} s ago"


def direct_call(key: str, load: Callable[[], Any], ttl: Seconds | None, tags: tuple[str, ...]) -> Call:
    """The call of an operation; a declared key brings the ttl and the tags that were not given."""
    if not isinstance(key, DeclaredKey):
        return Call(check_key(key), tags, load)
    call = Call(check_key(key), tags or key.tags, load)
    if ttl is None:
        call.ttl = key.ttl
    return call


def hit_or_miss(found: dict[str, Any]) -> str:
    return "miss" if any(value is MISSING for value in found.values()) else "hit"


def _nothing() -> None:
    return None
