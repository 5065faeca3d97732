"""Invalidations, explicit puts and updates, on the same rules as reads.

An invalidation is told to this process's L1 before its first command and again after the last one,
so that nothing read in between can settle there. What the store does not confirm is owed: the journal keeps
it, to be sent again, and what the store says about it meanwhile is not believed.

A put is a fill whose load is the caller: it claims the slot first and commits over its claim, so an
invalidation that comes in between wins. Where a hold stands nothing is put: it belongs to somebody whose
transaction is open.
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
from cacheaside.engine.read import alone
from cacheaside.engine.renew import ask, holding
from cacheaside.engine.tokens import fresh, living, revived
from cacheaside.entry import CLAIM, NO_INCARNATION, Marker, pack_tags
from cacheaside.errors import StoreUnavailable

RETRY_FIRST = 0.02
RETRY_LAST = 0.25


class Receipt(Struct, frozen=True):
    """What became of an invalidation. False unless the store acknowledged it."""

    keys: tuple[str, ...] = ()
    """The keys that were to be dropped, ``ns:rest``."""
    tags: tuple[str, ...] = ()
    """The tags under which everything was to be dropped."""
    acknowledged: bool = True
    """Whether the store has confirmed it."""
    attempts: int = 1
    """How often it was sent."""
    deferred: bool = False
    """Whether it waits for the end of a transaction, whose own receipt will tell."""

    def __bool__(self) -> bool:
        return self.acknowledged


class Dropped(int):
    """How many keys a pattern has dropped; not ``complete`` where the store stopped answering before all."""

    complete: bool
    """Whether the store answered to the end."""

    def __new__(cls, count: int, complete: bool = True) -> Dropped:
        made = super().__new__(cls, count)
        made.complete = complete
        return made


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
    journal, done = world.journal, False
    if near is not None:
        near.mark(keys, tags)
    journal.note(keys, tags)

    def command() -> Invalidate:
        return invalidation(world, keys, tags, hold, release)

    try:
        attempts, done, acknowledged = yield from deliver(world, command, timeout)
    except GeneratorExit:
        raise
    except BaseException:
        # Cancelled, as a request is whose client has gone: what it wrote is written all the same.
        with suppress(StoreUnavailable):
            yield command()
            done = True
        raise
    finally:
        (journal.confirm if done else journal.owe)(keys, tags)
        if near is not None:
            near.mark(keys, tags)
    return Receipt(keys, tags, acknowledged, attempts)


def invalidation(
    world: World,
    keys: tuple[str, ...],
    tags: tuple[str, ...],
    hold: tuple[bytes, float] | None = None,
    release: bytes = b"",
) -> Invalidate:
    """The command that drops keys and replaces the tokens of tags by fresh ones."""
    names = world.keys
    slots = tuple((names.value(k), names.refresh_lock(k), names.staging(k)) for k in keys)
    tokens = tuple((names.token(t), fresh(world, t), t) for t in tags)
    return Invalidate(slots, tokens, TOKEN_TTL, hold, release)


def deliver(world: World, command: Callable[[], Invalidate], timeout: float) -> Flow[tuple[int, bool, bool]]:
    """Send it until it is acknowledged or out of time: how often, whether it is done and whether all know.

    A store that is known to be away for longer than that is not waited for.
    """
    until = world.clock() + timeout
    delay, slept, attempts = RETRY_FIRST, 0.0, 0
    while True:
        attempts += 1
        try:
            yield command()
            return attempts, True, True
        except StoreUnavailable as error:
            if error.unheard:
                return attempts, True, False
            slept += delay
            if slept > timeout or error.away > timeout or world.clock() + delay >= until:
                return attempts, False, False
            yield Sleep(delay)
            delay = min(delay * 2, RETRY_LAST)


def greet(world: World, keys: tuple[str, ...]) -> Flow[None]:
    """Know the incarnation of the server of each key: ask it something if nobody has yet."""
    strangers = tuple(world.keys.value(k) for k in keys if world.incarnation(k) == NO_INCARNATION)
    if strangers:
        with suppress(StoreUnavailable):
            yield Fetch(strangers if world.spread else strangers[:1])


def claimed(
    site: Site, slots: tuple[tuple[str, bytes], ...], tags: tuple[str, ...]
) -> Flow[tuple[tuple[bytes | None, ...], tuple[bytes, ...]]]:
    """Claim slots: what stands there in spite of it, and the tokens in force."""
    world, policy = site.world, site.policy
    life = token_ttl(policy.ttl, policy.kept)
    tokens = tuple((world.keys.token(t), fresh(world, t)) for t in tags)
    begun: Begun = yield Claim(slots, tokens, policy.lease_ttl, life)
    return begun.slots, (yield from revived(world, tags, begun.tokens, life))


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
    yield from greet(world, (key,))
    world.journal.note((key,), ())
    start = world.clock()
    claim = Marker(CLAIM, world.nonce(), world.incarnation(key), start, b"\0" * 8).pack()
    slot = keys.value(key)
    seen: Seen | None = None
    release = Release(slot, claim)
    taken = None
    try:
        taken = yield from holding(site, release, claimed(site, ((slot, claim),), call.tags))
    except StoreUnavailable:
        site.counts.unavailable += 1
    if taken is not None:
        if near is not None:  # what was read before the claim stood may settle no more
            near.mark((key,), ())
        if site.witness is not None:
            call.since = site.witness.now()
        (held,), tokens = taken
        if held is None and living(world, call.tags, tokens):
            seen = Seen(None, tokens)
            seen.known = pack_tags(call.tags, tokens)
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
    if stored[0]:
        world.journal.confirm((key,), ())
    else:
        yield from invalidate(world, near, (key,), (), timeout=timeout)
    return result, stored[0]
