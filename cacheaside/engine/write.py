"""Invalidations, explicit puts and updates, on the same rules as reads.

An invalidation is told to this process's L1 before its first command and again after the last one,
so that nothing read in between can settle there. A put is a fill whose load is the caller: it claims
the slot first and commits over its claim, so an invalidation that comes in between wins. Where a hold stands
nothing is put: it belongs to somebody whose transaction is open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from cacheaside.engine.call import Call, Near, Site, World
from cacheaside.engine.commands import (
    Begun,
    Claim,
    Fetch,
    Flow,
    Invalidate,
    Load,
    Release,
    Renew,
    Sleep,
)
from cacheaside.engine.fill import TOKEN_TTL, attempt, commit, encode, prepare, token_ttl, unwrap
from cacheaside.engine.look import Seen
from cacheaside.engine.read import alone, ask, holding
from cacheaside.entry import CLAIM, NO_INCARNATION, Marker, is_token, new_token, pack_tags
from cacheaside.errors import StoreUnavailable

RETRY_FIRST = 0.02
RETRY_LAST = 0.25


class Receipt(Struct, frozen=True):
    """What became of an invalidation. False unless the store acknowledged it."""

    keys: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    acknowledged: bool = True
    attempts: int = 1
    deferred: bool = False
    """Whether it waits for the end of a transaction, whose own receipt will tell."""

    def __bool__(self) -> bool:
        return self.acknowledged


def invalidate(
    world: World,
    near: Near | None,
    keys: tuple[str, ...],
    tags: tuple[str, ...],
    *,
    hold: tuple[bytes, float] | None = None,
    release: bytes = b"",
    timeout: float = 2.0,
) -> Flow[Receipt]:
    """Drop keys, replace tag tokens; repeat with fresh tokens until acknowledged or out of time.

    ``hold`` is the name and the seconds of a hold to begin, ``release`` the name of one that ends.
    """
    if not keys and not tags:
        return Receipt(attempts=0)
    if near is not None:
        near.mark(keys, tags)
    names = world.keys
    slots = tuple((names.value(k), names.refresh_lock(k), names.staging(k)) for k in keys)

    def command() -> Invalidate:
        incarnation = world.incarnation()
        tokens = tuple((names.token(t), new_token(incarnation, world.nonce()), t) for t in tags)
        return Invalidate(slots, tokens, TOKEN_TTL, hold, release)

    try:
        attempts, acknowledged = yield from deliver(world, command, timeout)
    except GeneratorExit:
        raise
    except BaseException:
        # Cancelled, as a request is whose client has gone: what it wrote is written all the same.
        with suppress(StoreUnavailable):
            yield command()
        raise
    finally:
        if near is not None:
            near.mark(keys, tags)
    return Receipt(keys, tags, acknowledged, attempts)


def deliver(world: World, command: Callable[[], Invalidate], timeout: float) -> Flow[tuple[int, bool]]:
    """Send it until it is acknowledged or out of time: how often, and whether it was."""
    until = world.clock() + timeout
    delay, slept, attempts = RETRY_FIRST, 0.0, 0
    while True:
        attempts += 1
        try:
            yield command()
            return attempts, True
        except StoreUnavailable:
            slept += delay
            if slept > timeout or world.clock() + delay >= until:
                return attempts, False
            yield Sleep(delay)
            delay = min(delay * 2, RETRY_LAST)


def greet(world: World, slot: str) -> Flow[bytes]:
    """The incarnation of the server; asks it something first if nobody has yet."""
    if world.incarnation() == NO_INCARNATION:
        try:
            yield Fetch((slot,))
        except StoreUnavailable:
            pass
    return world.incarnation()


def put(site: Site, call: Call, timeout: float) -> Flow[tuple[Any, bool]]:
    """Run ``call`` and make its result the value of its key: (result, whether it was stored).

    Readers meanwhile find a claim: they load for themselves and store nothing. If anything touched
    the slot meanwhile, nothing is stored and the key is dropped, for two updates that cross cannot
    tell which of them is the later. Nor is anything stored where a hold stands.
    """
    if not site.keeps:
        return (yield from alone(site, call)), False
    world, near, policy = site.world, site.near, site.policy
    key, keys = call.key, world.keys
    incarnation = yield from greet(world, keys.value(key))
    start = world.clock()
    claim = Marker(CLAIM, world.nonce(), incarnation, start, b"\0" * 8).pack()
    slot = keys.value(key)
    seen: Seen | None = None
    release = Release(slot, claim)
    take = Claim(
        ((slot, claim),),
        tuple((keys.token(t), new_token(incarnation, world.nonce())) for t in call.tags),
        policy.lease_ttl,
        token_ttl(policy.ttl, policy.kept),
    )
    begun: Begun | None = yield from holding(site, release, attempt(site, take))
    if begun is not None:
        if near is not None:  # what was read before the claim stood may settle no more
            near.mark((key,), ())
        if site.witness is not None:
            call.since = site.witness.now()
        if begun.slots[0] is None and all(map(is_token, begun.tokens)):
            seen = Seen(None, begun.tokens)
            seen.known = pack_tags(call.tags, begun.tokens)
    loading = Load(call, Renew(((slot, claim),), policy.lease_ttl), hard=policy.hard_timeout)
    loaded = yield from holding(site, release, ask(loading))
    if loaded.error is not None:
        yield from attempt(site, release)
        return unwrap(site, loaded), False
    result = loaded.value
    stored: Sequence[bool] = (False,)
    try:
        if seen is not None:
            cost = world.clock() - start
            payload = encode(site, call, result)
            ready = yield from prepare(site, call, result, payload, start, cost, claim, seen)
            if ready is not None:
                stored = yield from commit(site, (ready,))
    except StoreUnavailable:
        site.counts.unavailable += 1
    except GeneratorExit:
        raise
    except BaseException:  # cancelled, or failed in a callable of the user's: written all the same
        yield from invalidate(world, near, (key,), (), timeout=timeout)
        raise
    if not stored[0]:
        yield from invalidate(world, near, (key,), (), timeout=timeout)
    return result, stored[0]
