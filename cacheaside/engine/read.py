"""One read of one key: hit, stale, wait, or load and commit. Written once, driven from both worlds.

A flow is a generator. It yields what it wants done (commands.py) and is sent the reply; it never
blocks, never awaits and never looks at a clock that it was not given. ``drive.run`` and
``drive.arun`` carry the commands out; the interleaving explorer in the tests carries them out too,
in every order. What a slot means is in look.py, how a result gets into one in fill.py; here is who
waits, who loads and who answers. The rules that keep an answer from being stale are few:

1.  The tokens of all tags are known before the load begins (``Begin`` answers, then ``Load``).
2.  A value is stored only over the placeholder that this load put there (``Commit`` compares).
3.  A value is believed only if every tag has a token now and it is the one stored with the value.
4.  A flight is joined only if its placeholder stood in the slot, with the digest of the tokens in
    force, after the caller began; what it brings is taken only if none of its late tags was
    invalidated since its load began.

What cannot be proven is answered and not stored.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, TypeVar

from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import (
    Await,
    Begin,
    Begun,
    Expect,
    Flow,
    Load,
    Loaded,
    Lock,
    Pending,
    Place,
    Release,
    Renew,
    Sleep,
    Spawn,
    Wait,
)
from cacheaside.engine.fill import (
    attempt,
    keep_near,
    keep_only_near,
    settle,
    stay,
    token_ttl,
    unmarked,
    unwrap,
)
from cacheaside.engine.flights import Flight, Landed
from cacheaside.engine.look import (
    Seen,
    Verdict,
    flight_name,
    head_of,
    judge,
    look,
    open_payload,
    open_value,
    undecodable,
    unpack,
)
from cacheaside.engine.renew import FAILED, holding, let_go, renew, rest
from cacheaside.engine.tokens import dead, fresh
from cacheaside.entry import (
    PLACEHOLDER,
    Marker,
    Value,
    digest,
    pack_tags,
    parse,
)
from cacheaside.errors import CodecError, StoreUnavailable

T = TypeVar("T")

NOT_LOCKED: Final = b"not locked"
"""In the place of what stands there: the store takes no writes, for it is full or a replica now."""
POLL_NOTIFIED: Final = 0.25
POLL_FIRST: Final = 0.002
POLL_LAST: Final = 0.05


def read(site: Site, call: Call) -> Flow[Any]:
    """Answer a call that L1 could not answer."""
    if not site.keeps:
        return (yield from near_only(site, call))
    if site.witness is not None:
        call.since = site.witness.now()
    try:
        seen = yield from look(site, call)
        if call.forced:
            return (yield from reload(site, call, seen))
        if seen.verdict is Verdict.FRESH:  # what resolve would do first, without a generator
            try:
                return hit(site, call, seen)
            except CodecError:
                pass
        return (yield from resolve(site, call, seen))
    except StoreUnavailable:
        site.counts.unavailable += 1
    return (yield from alone(site, call))


def near_only(site: Site, call: Call) -> Flow[Any]:
    """Load, and keep the result in L1 alone, unless what it depends on was invalidated meanwhile."""
    if site.near is None:
        return (yield from alone(site, call))
    call.since, start = site.near.now(), site.world.clock()
    site.counts.misses += 1
    call.outcome = "miss"
    result = yield from alone(site, call)
    yield from keep_only_near(site, call, result, start)
    return result


def peek(site: Site, call: Call, missing: Any) -> Flow[Any]:
    """The fresh value if there is one, else ``missing``; never loads."""
    if not site.keeps:
        return missing
    try:
        seen = yield from look(site, call)
        if seen.verdict in (Verdict.FRESH, Verdict.EARLY):
            return open_value(site, seen.slot)  # type: ignore[arg-type]
    except (StoreUnavailable, CodecError):
        pass
    return missing


def read_only(site: Site, call: Call) -> Flow[Any]:
    """Answer with what is cached, else with a load that is nobody else's: for calls in a transaction."""
    missing = object()
    found = yield from peek(site, call, missing)
    if found is missing:
        return (yield from alone(site, call))
    site.counts.hits_l2 += 1
    call.outcome = "hit"
    return found


def resolve(site: Site, call: Call, seen: Seen) -> Flow[Any]:
    """Go on from what was seen until there is an answer."""
    delay, expected = POLL_FIRST, None
    while True:
        verdict, slot = seen.verdict, seen.slot
        if verdict is Verdict.FRESH:
            try:
                return hit(site, call, seen)
            except CodecError:
                undecodable(site, call)
                verdict = Verdict.MISS
        if verdict is Verdict.UNSTORABLE:
            return (yield from alone(site, call))
        if verdict is Verdict.MISS:
            led = yield from begin(site, call, seen)
            if led is not None:
                return (yield from lead(site, call, *led))
            continue
        if verdict is Verdict.FILLING:
            name = flight_name(call, slot)  # type: ignore[arg-type]
            flight = site.world.flights.find(name)
            if call.nested() or not patience(site, call):
                return (yield from alone(site, call))
            if flight is not None:
                landed = yield from join(site, call, flight, slot.pack())  # type: ignore[union-attr]
                if landed is None:
                    return (yield from alone(site, call))
                if landed.abandoned:
                    flight = site.world.flights.open(name)
                    if flight is not None:
                        return (yield from lead(site, call, flight, slot.pack(), seen))  # type: ignore[union-attr]
                    continue
                if landed.late and not (yield from unmarked(site, landed.late, landed.since)):
                    return (yield from alone(site, call))
                try:
                    return answer(site, call, landed)
                except CodecError:
                    undecodable(site, call)
                    return (yield from alone(site, call))
        else:
            taken = yield from refresh(site, call, seen)
            if taken is not None:
                return taken[0]
            if call.nested() or not patience(site, call):
                return (yield from alone(site, call))
        yield Sleep(min(delay, patience(site, call)), expected)
        waited(site, call)
        expected = yield Expect(call.key)
        # With a notice to come, looking is only the backing: short at first, for it may have come already.
        delay = min(delay * 1.5, POLL_LAST) if expected is None else min(delay * 4, POLL_NOTIFIED)
        seen = yield from look(site, call)


def hit(site: Site, call: Call, seen: Seen) -> Any:
    """A fresh value from L2, kept in L1 as well."""
    value: Value = seen.slot  # type: ignore[assignment]
    payload = value.payload
    if value.flags:
        payload = unpack(site, value.flags, payload)
        result = open_payload(site, value.flags, payload)
    else:
        result = site.codec.decode(payload)
    site.counts.hits_l2 += 1
    site.counts.saved_seconds += value.cost
    call.outcome = "hit"
    if site.near is not None:
        until = stay(site, value.soft, value.cost)
        keep_near(site, call, result, payload, until, tuple(seen.late) if value.late else ())
    return result


def patience(site: Site, call: Call) -> float:
    """Seconds that this call may still wait for others; its waiting begins with the first question."""
    now = site.world.tick()
    if call.wait_until is None:
        call.wait_until, call.waited = now + site.policy.wait_timeout, now
        site.counts.waits += 1
    return max(0.0, call.wait_until - now)


def waited(site: Site, call: Call) -> None:
    """Count the time that this call has waited since it was last counted."""
    now = site.world.tick()
    site.counts.wait_seconds += now - call.waited
    call.waited = now


def alone(site: Site, call: Call) -> Flow[Any]:
    """Load for this caller only and store nothing."""
    loaded: Loaded | Pending = yield Load(call, hard=site.policy.hard_timeout)
    site.counts.loads += 1
    if not call.outcome:
        site.counts.alone += 1
        call.outcome = "miss"
    return unwrap(site, loaded)


# ---------------------------------------------------------------------------- waiting


def join(site: Site, call: Call, flight: Flight, placeholder: bytes) -> Flow[Landed | None]:
    """Wait for a load of this process; None when patience ends first."""
    flight.waiters += 1
    try:
        ended = yield Wait(flight, patience(site, call))
    except BaseException:
        left = flight.done.done() and flight.landed.abandoned
        if left and flight.waiters == 1 and site.world.flights.find(flight.name) is None:
            # The leader left its placeholder to us, and nobody else is there to take it over.
            yield Spawn(attempt(site, Release(site.world.keys.value(call.key), placeholder)))
        raise
    finally:
        flight.waiters -= 1
        waited(site, call)
    return flight.landed if ended else None


def answer(site: Site, call: Call, landed: Landed) -> Any:
    """What a flight brought, as this caller's own object."""
    site.counts.coalesced += 1
    call.outcome = "coalesced"
    if landed.error is not None:
        # One exception for all: raised as it landed, or every waiter's frames would pile up on it.
        raise landed.error.with_traceback(landed.trace)
    if site.codec.shareable:
        return landed.value
    return open_payload(site, landed.flags, landed.payload or b"")


# ---------------------------------------------------------------------------- leading


def begin(site: Site, call: Call, seen: Seen) -> Flow[tuple[Flight, bytes, Seen] | None]:
    """Rule 1: take the slot, with the tokens that the value will carry. None: ``seen`` is news."""
    world, policy = site.world, site.policy
    keys = world.keys
    while True:
        tags, before = call.tags, seen.tokens
        missing = [i for i, t in enumerate(before) if t is None]
        gone = [i for i, t in enumerate(before) if dead(world, tags[i], t)] if world.spread else []
        proposed = list(before)
        for i in (*missing, *gone):
            proposed[i] = fresh(world, tags[i])
        known = pack_tags(tags, proposed) if proposed else b""  # type: ignore[arg-type]
        nonce = world.nonce()
        marker = Marker(PLACEHOLDER, nonce, world.incarnation(call.key), world.clock(), digest(known))
        placeholder = marker.pack()
        # Known here before anybody can see it in the store, or a neighbour would poll for it.
        flight = world.flights.open(flight_name(call, marker))
        assert flight is not None
        expected = None if seen.slot is None else head_of(seen.slot)
        seen.since = world.journal.change
        try:
            begun: Begun = yield Begin(
                (Place(keys.value(call.key), placeholder, expected),),
                tuple((keys.token(tags[i]), proposed[i]) for i in missing),  # type: ignore[misc]
                policy.lease_ttl,
                token_ttl(policy.ttl, policy.kept),
                tuple((keys.token(tags[i]), proposed[i], before[i]) for i in gone),  # type: ignore[misc]
            )
        except BaseException:
            world.flights.close(flight)
            # The answer is lost, perhaps not the command: nobody should wait for this placeholder.
            yield Spawn(attempt(site, Release(keys.value(call.key), placeholder)))
            raise
        for i, token in zip((*missing, *gone), begun.tokens, strict=True):
            proposed[i] = token
        seen.tokens = proposed
        ours = begun.slots[0] is None
        seen.slot = marker if ours else parse(begun.slots[0])
        if type(seen.slot) is Value and seen.slot.late:  # valid or not: its late tags are to be read
            world.flights.close(flight)
            again = yield from look(site, call)
            seen.slot, seen.tokens, seen.known = again.slot, again.tokens, again.known
            seen.late, seen.verdict, seen.since = again.late, again.verdict, again.since
            if seen.verdict is not Verdict.MISS:
                return None
            continue
        judge(site, call, seen)
        if ours and seen.verdict is Verdict.FILLING:
            return flight, placeholder, seen
        world.flights.close(flight)
        if ours and seen.verdict is Verdict.UNSTORABLE:
            yield Release(keys.value(call.key), placeholder)
        if seen.verdict is not Verdict.MISS:
            return None


def lead(site: Site, call: Call, flight: Flight, placeholder: bytes, seen: Seen) -> Flow[Any]:
    """Load under our own placeholder, tell the waiters, commit."""
    world, policy = site.world, site.policy
    slot = world.keys.value(call.key)
    site.counts.misses += 1
    start, began = world.clock(), world.tick()
    release = Release(slot, placeholder)
    keep = Renew(((slot, placeholder),), policy.lease_ttl)
    try:
        loaded = yield Load(call, keep, policy.soft_timeout, policy.hard_timeout)
        if type(loaded) is Pending:  # nothing stale to give meanwhile
            loaded = yield Await(loaded, rest(policy.hard_timeout, began, world.tick()), keep)
        if loaded.error is None:
            return (yield from settle(site, call, loaded.value, start, placeholder, seen, flight))
        world.flights.land(flight, Landed(error=loaded.error))
        yield from attempt(site, release)
    except BaseException:
        # Cancelled: the next waiter takes over the placeholder. With nobody waiting it must go, as it
        # must when a callable of the user's, such as cache_if, has raised.
        if flight.done.done() or not flight.waiters:
            yield Spawn(attempt(site, release))
        raise
    finally:
        world.flights.close(flight)
    return unwrap(site, loaded)


# ---------------------------------------------------------------------------- refreshing


def refresh(site: Site, call: Call, seen: Seen) -> Flow[tuple[Any] | None]:
    """A value past its best: one caller renews it, the others are answered with it.

    None: it may only be served if loading fails, and somebody else is loading; look again later.
    """
    world, policy, counts = site.world, site.policy, site.counts
    value: Value = seen.slot  # type: ignore[assignment]
    lock, nonce = world.keys.refresh_lock(call.key), world.nonce()
    try:
        old = open_value(site, value)
    except CodecError:
        undecodable(site, call)
        return ((yield from reload(site, call, seen)),)
    release = Release(lock, nonce)
    locking = attempt(site, Lock(lock, nonce, policy.lease_ttl), NOT_LOCKED)
    holder: bytes | None = yield from holding(site, release, locking)
    if holder is not None:
        if seen.verdict is Verdict.KEPT:
            if holder == NOT_LOCKED:
                with suppress(Exception):
                    return ((yield from alone(site, call)),)
            elif holder != FAILED:
                return None
        count_served(site, call, seen.verdict)
        return (old,)
    again = yield from holding(site, release, look(site, call))
    gone = again.verdict in (Verdict.MISS, Verdict.UNSTORABLE)
    if type(again.slot) is not Value or again.slot.nonce != value.nonce or gone:
        yield from let_go(site, release)
        return ((yield from resolve(site, call, again)),)
    renewing = renew(site, call, again, release)
    if policy.refresh == "background" and seen.verdict is not Verdict.KEPT:
        yield Spawn(renewing, "refresh")
        count_served(site, call, seen.verdict)
        return (old,)
    try:
        renewed = yield from renewing
    except Exception:
        if again.verdict is Verdict.EARLY:
            counts.early += 1
            call.outcome = "hit"
            return (old,)
        if world.clock() - value.soft < policy.kept:
            count_served(site, call, Verdict.STALE)
            return (old,)
        raise
    if renewed is None:  # the soft timeout: it goes on behind our back
        count_served(site, call, Verdict.STALE)
        return (old,)
    return renewed


def count_served(site: Site, call: Call, verdict: Verdict) -> None:
    if verdict is Verdict.EARLY:
        site.counts.hits_l2 += 1
        call.outcome = "hit"
    else:
        site.counts.stale += 1
        call.outcome = "stale"


def reload(site: Site, call: Call, seen: Seen) -> Flow[Any]:
    """Load now, whatever is there, and store the result: ``f.refresh()``."""
    while True:
        if seen.verdict is Verdict.UNSTORABLE:
            return (yield from alone(site, call))
        if type(seen.slot) is Value and seen.verdict is not Verdict.MISS:
            start = site.world.clock()
            loaded = yield Load(call, hard=site.policy.hard_timeout)
            result = unwrap(site, loaded)
            return (yield from settle(site, call, result, start, head_of(seen.slot), seen, None))
        led = yield from begin(site, call, seen)
        if led is not None:
            return (yield from lead(site, call, *led))
