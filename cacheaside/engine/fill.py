"""Filling a slot: a result becomes a value, and is stored over the marker that it was loaded for.

The slot must still open with what the load put there, or with the value that it renews: what anybody has
invalidated since opens with something else. Tags that only the result names are stored if this process can
show that none of them was invalidated since the load began.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import (
    Begin,
    Begun,
    Command,
    Commit,
    Confirm,
    Fill,
    Flow,
    Release,
    Spawn,
)
from cacheaside.engine.flights import Flight, Landed
from cacheaside.engine.look import (
    Seen,
)
from cacheaside.engine.tokens import fresh, living, revived
from cacheaside.entry import (
    HEAD,
    NEGATIVE,
    pack_tags,
    pack_value,
)
from cacheaside.errors import CodecError, StoreUnavailable

CONFIRM: Final = 1.0
"""Seconds to wait for the heartbeat that proves late tags."""
NOTIFY_ABOVE: Final = 0.02
"""Loads longer than this many seconds are announced to those who may wait for them elsewhere."""
TOKEN_TTL: Final = 3600.0
"""The least life of a tag token, seconds; it also outlives the values that carry it twice over."""


def token_ttl(ttl: Any, kept: float) -> float:
    """A token's life: long enough that its end is never why a value is missed."""
    return TOKEN_TTL if callable(ttl) else max(TOKEN_TTL, 2 * (float(ttl) + kept))


def unwrap(site: Site, loaded: Any) -> Any:
    if loaded.error is not None:
        site.counts.errors += 1
        raise loaded.error
    return loaded.value


def attempt(site: Site, command: Command, otherwise: Any = None) -> Flow[Any]:
    """A command whose failure costs time only: its reply, or ``otherwise``."""
    try:
        return (yield command)
    except StoreUnavailable:
        site.counts.unavailable += 1
        return otherwise


def encode(site: Site, call: Call, result: Any) -> bytes | None:
    """The payload, or None when the result does not fit its annotation: answered, counted, not kept."""
    if result is None:
        return b""
    try:
        return site.codec.encode(result)
    except CodecError as error:
        site.counts.unencodable += 1
        site.world.bad_data(site, call.key, f"unencodable: {error}")
        return None


class Ready:
    """A result on its way into the store, and what L1 will keep of it."""

    __slots__ = ("call", "cost", "fill", "late", "payload", "result", "until")

    def __init__(
        self,
        call: Call,
        fill: Fill,
        result: Any,
        payload: bytes,
        until: float,
        late: tuple[str, ...],
        cost: float,
    ) -> None:
        self.call = call
        self.fill = fill
        self.cost = cost
        self.result = result
        self.payload = payload
        self.until = until
        self.late = late


def settle(
    site: Site,
    call: Call,
    result: Any,
    start: float,
    expected: bytes,
    seen: Seen,
    flight: Flight | None,
) -> Flow[Any]:
    """Rule 2: store what was loaded, if it may be and if the slot is still ours; return it."""
    world, counts = site.world, site.counts
    cost = world.clock() - start
    counts.loads += 1
    counts.load_seconds += cost
    call.outcome = "miss"
    payload = encode(site, call, result)
    if payload is not None and flight is not None:
        land(site, call, flight, payload, result)
    try:
        ready = yield from prepare(site, call, result, payload, start, cost, expected, seen)
        done = False
        if ready is not None:
            (done,) = yield from commit(site, (ready,))
        elif flight is not None:
            yield Release(world.keys.value(call.key), expected)
        if call.forced and site.near is not None and not done:
            site.near.mark((call.key,), ())  # what the caller was just told is newer than L1
    except StoreUnavailable:
        counts.unavailable += 1
    return result


def land(site: Site, call: Call, flight: Flight, payload: bytes, result: Any) -> None:
    """Give the result to everybody who waits for this flight."""
    flags, value = NEGATIVE if result is None else 0, result if site.codec.shareable else None
    landed = Landed(payload, flags, value, late=call.late_tags(result), since=call.since)
    site.world.flights.land(flight, landed)


def prepare(
    site: Site,
    call: Call,
    result: Any,
    payload: bytes | None,
    start: float,
    cost: float,
    expected: bytes,
    seen: Seen,
    proven: Mapping[str, bytes] | None = None,
) -> Flow[Ready | None]:
    """The value that may replace what opens with ``expected``; None when it must not be stored.

    ``proven`` are the late tags that have been proven already, for a whole batch.
    """
    world, policy, counts = site.world, site.policy, site.counts
    if payload is None or not call.store or not (policy.cache_if is None or policy.cache_if(result)):
        return None
    ttl = call.ttl if call.ttl is not None else policy.ttl_of(result)
    ttl *= 1 - policy.jitter * world.random()
    if ttl <= 0:
        return None
    if len(payload) > world.max_value:
        counts.too_large += 1
        world.bad_data(site, call.key, f"too large: {len(payload)} bytes")
        return None
    names = call.late_tags(result)
    late = b""
    if names:
        if proven is None:
            proven = yield from prove(site, names, call.since)
        if not all(name in proven for name in names):
            counts.late_unproven += 1
            return None
        late = pack_tags(names, [proven[name] for name in names])
        site.remember_late(call.key, names)
    now = world.clock()
    soft, hard = now + ttl, now + ttl + policy.kept
    flags, packed = (NEGATIVE, b"") if result is None else world.pack(payload)
    value = pack_value(
        world.nonce(), incarnation_of(expected), start=start, cost=cost, soft=soft, hard=hard,
        schema=site.codec.schema, flags=flags, known=seen.known, late=late, payload=packed,
    )  # fmt: skip
    keys = world.keys
    fill = Fill(keys.value(call.key), keys.staging(call.key), expected, value, hard - now)
    return Ready(call, fill, result, payload, stay(site, soft, cost), names, cost)


def commit(site: Site, batch: Sequence[Ready]) -> Flow[tuple[bool, ...]]:
    """Store what is still ours to store, and offer it to L1. Refused: stored nowhere."""
    world, counts = site.world, site.counts
    now = world.clock()
    extend: dict[str, float] = {}
    index: list[tuple[str, str, float]] = []
    for ready in batch:
        life = token_ttl(ready.fill.ttl, 0)
        for name in ready.call.tags + ready.late:
            token = world.keys.token(name)
            if world.extend(token, now + ready.fill.ttl, now + life):
                extend[token] = max(life, extend.get(token, 0.0))
            if world.index_limit:
                index.append((world.keys.tag_index(name), ready.call.key, now + ready.fill.ttl))
    fills = tuple(ready.fill for ready in batch)
    notify = tuple(r.call.key for r in batch if r.cost > NOTIFY_ABOVE)
    done: tuple[bool, ...] = yield Commit(fills, tuple(extend.items()), tuple(index), notify)
    for ready, stored in zip(batch, done, strict=True):
        ready.call.stored = stored
        if stored:
            n = counts.stored = counts.stored + 1
            if not n & (n - 1) and (asked := world.grown(site, n)) is not None:
                yield Spawn(asked)
            keep_near(site, ready.call, ready.result, ready.payload, ready.until, ready.late)
        else:
            counts.refused += 1
    return done


def incarnation_of(expected: bytes) -> bytes:
    """A value carries the incarnation under which its load began: the one of its placeholder."""
    return expected[16:24]


def prove(site: Site, names: tuple[str, ...], since: int) -> Flow[dict[str, bytes]]:
    """The tokens of those late tags that were not invalidated since the load began.

    They are read after the load and so prove nothing by themselves: only a process that has heard of every
    invalidation since then can tell.
    """
    world, policy, witness = site.world, site.policy, site.witness
    if witness is None or not names:
        return {}
    life = token_ttl(policy.ttl, policy.kept)
    begun: Begun = yield Begin((), tuple((world.keys.token(n), fresh(world, n)) for n in names), 0.0, life)
    tokens = yield from revived(world, names, begun.tokens, life)
    # Asked after the tokens were read: what had rotated them by then will have been heard.
    heard: bool = yield Confirm(CONFIRM, names)
    if not heard:
        return {}
    read = zip(names, tokens, strict=True)
    return {n: t for n, t in read if living(world, (n,), (t,)) and witness.unmarked((n,), since)}


def unmarked(site: Site, names: tuple[str, ...], since: int) -> Flow[bool]:
    """Whether this process can show that no tag was invalidated between ``since`` and now."""
    if site.witness is None:
        return False
    heard: bool = yield Confirm(CONFIRM, names)
    return heard and site.witness.unmarked(names, since)


def keep_near(
    site: Site,
    call: Call,
    result: Any,
    payload: bytes,
    until: float,
    late: tuple[str, ...],
) -> None:
    """Offer a result to L1: shared if nobody can change it, else encoded, to be decoded per hit."""
    near = site.near
    if near is None:
        return
    kept: object = result if site.codec.shareable or result is None else payload
    # By a clock that never goes back: an L1 entry must end even if somebody sets the time.
    left = min(until - site.world.clock(), site.policy.l1_ttl)
    near.put(call.key, kept, site.world.tick() + left, call.tags + late, call.since, len(payload))


def keep_only_near(site: Site, call: Call, result: Any, start: float) -> Flow[None]:
    """Offer a result to L1 that is to be stored nowhere else; the counter in the call keeps old ones out."""
    payload = encode(site, call, result)
    unread = dict.fromkeys(call.late_tags(result), b"")  # no token guards what is not stored
    cost = site.world.clock() - start
    ready = yield from prepare(site, call, result, payload, start, cost, bytes(HEAD), Seen(None, ()), unread)
    if ready is not None:
        keep_near(site, call, result, ready.payload, ready.until, ready.late)


def stay(site: Site, soft: float, cost: float) -> float:
    """When a value leaves L1: early refresh is drawn once per stay, for a hit has no time for a logarithm."""
    beta = site.policy.early_refresh
    return soft if beta is None else soft + cost * beta * math.log(1 - site.world.random())
