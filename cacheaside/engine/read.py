"""One read of one key: hit, stale, wait, or load and commit. Written once, driven from both worlds.

A flow is a generator. It yields what it wants done (commands.py) and is sent the reply; it never
blocks, never awaits and never looks at a clock that it was not given. ``drive.run`` and
``drive.arun`` carry the commands out; the interleaving explorer in the tests carries them out too,
in every order. The rules that keep an answer from being stale are few:

1.  The tokens of all tags are known before the load begins (``Begin`` answers, then ``Load``).
2.  A value is stored only over the placeholder that this load put there (``Commit`` compares).
3.  A value is believed only if every tag has a token now and it is the one stored with the value.
4.  A flight is joined only if its placeholder stood in the slot, with the digest of the tokens in
    force, after the caller began; what it brings is taken only if none of its late tags was
    invalidated since its load began.

What cannot be proven is answered and not stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Final, TypeVar

from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import (
    Await,
    Begin,
    Begun,
    Command,
    Commit,
    Confirm,
    Expect,
    Fetch,
    Fill,
    Flow,
    Hold,
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
from cacheaside.engine.flights import Flight, Landed, Name
from cacheaside.entry import (
    HEAD,
    HOLD,
    NEGATIVE,
    PLACEHOLDER,
    Broken,
    Foreign,
    Marker,
    Slot,
    Value,
    digest,
    is_hold,
    is_token,
    new_token,
    pack_tags,
    pack_value,
    parse,
    unpack_tags,
)
from cacheaside.errors import CodecError, StoreUnavailable

T = TypeVar("T")

FAILED: Final = b"failed"
"""What stands in a refresh lock after a failed load."""
CONFIRM: Final = 1.0
"""Seconds to wait for the heartbeat that proves late tags."""
NOTIFY_ABOVE: Final = 0.02
"""Loads longer than this many seconds are announced to those who may wait for them elsewhere."""
POLL_NOTIFIED: Final = 0.25
POLL_FIRST: Final = 0.002
POLL_LAST: Final = 0.05
TOKEN_TTL: Final = 3600.0
"""The least life of a tag token, seconds; it also outlives the values that carry it twice over."""


class Verdict(Enum):
    """What a slot means for the call that has read it."""

    FRESH = auto()
    EARLY = auto()
    STALE = auto()
    KEPT = auto()
    FILLING = auto()
    UNSTORABLE = auto()
    MISS = auto()


class Seen:
    """A slot as one call has read it, with the tokens of its tags and what that means."""

    __slots__ = ("known", "late", "slot", "tokens", "verdict")

    def __init__(self, slot: Slot, tokens: Sequence[bytes | None]) -> None:
        self.slot = slot
        self.tokens = tokens
        self.known = b""
        self.late: dict[str, bytes | None] = {}
        self.verdict = Verdict.MISS


# ---------------------------------------------------------------------------- looking


def look(site: Site, call: Call) -> Flow[Seen]:
    """Read the slot and the tokens of its tags: one round trip, one more for unforeseen late tags."""
    keys = site.world.keys
    names = call.tags
    foreseen = site.late_names.get(call.key, ())
    wanted = (keys.value(call.key), *map(keys.token, names), *map(keys.token, foreseen))
    replies: list[bytes | None] = yield Fetch(wanted)
    seen = Seen(parse(replies[0]), replies[1 : 1 + len(names)])
    if foreseen:
        seen.late = dict(zip(foreseen, replies[1 + len(names) :], strict=True))
    slot = seen.slot
    if type(slot) is Value and slot.late:
        stored = unpack_tags(slot.late)
        unforeseen = tuple(n for n in stored or () if n not in seen.late)
        if unforeseen:
            site.remember_late(call.key, tuple(stored or ()))
            tokens: list[bytes | None] = yield Fetch(tuple(keys.token(n) for n in unforeseen))
            seen.late.update(zip(unforeseen, tokens, strict=True))
    judge(site, call, seen)
    return seen


def judge(site: Site, call: Call, seen: Seen) -> None:
    """Decide what the slot means, and note the tag block that a load would store."""
    slot, world = seen.slot, site.world
    tokens = seen.tokens
    proven = all(map(is_token, tokens))
    seen.known = pack_tags(call.tags, tokens) if proven and tokens else b""  # type: ignore[arg-type]
    seen.verdict = Verdict.MISS
    if type(slot) is Value:
        if proven and valid(site, call, seen, slot):
            seen.verdict = freshness(site, slot)
    elif type(slot) is Marker:
        if slot.kind == HOLD:
            seen.verdict = Verdict.UNSTORABLE
        elif proven and slot.digest == digest(seen.known) and world.accepts(slot.incarnation):
            seen.verdict = Verdict.FILLING
    elif type(slot) is Foreign:
        site.counts.foreign += 1
        world.bad_data(site, call.key, "foreign")
        seen.verdict = Verdict.UNSTORABLE
    elif type(slot) is Broken:
        site.counts.bad_data += 1
        world.bad_data(site, call.key, "broken")
    if seen.verdict is Verdict.MISS and not proven:
        strange = [t for t in tokens if t is not None and not is_token(t)]
        if strange:
            seen.verdict = Verdict.UNSTORABLE
        if not all(map(is_hold, strange)):
            site.counts.foreign += 1
            world.bad_data(site, call.key, "foreign tag")


def valid(site: Site, call: Call, seen: Seen, value: Value) -> bool:
    """Rule 3: this schema, this incarnation, these tags, and for each the token it has now."""
    if value.schema != site.codec.schema or not site.world.accepts(value.incarnation):
        return False
    if value.known != seen.known:
        return False
    if not value.late:
        return True
    stored = unpack_tags(value.late)
    if stored is None:
        return False
    return all(is_token(seen.late.get(name)) and seen.late[name] == t for name, t in stored.items())


def freshness(site: Site, value: Value) -> Verdict:
    """Where a valid value stands between its load and its end."""
    policy, now = site.policy, site.world.clock()
    if now < value.soft:
        beta = policy.early_refresh
        if beta is not None and now - value.cost * beta * math.log(1 - site.world.random()) >= value.soft:
            return Verdict.EARLY  # XFetch: Vattani, Chierichetti, Lowenstein, VLDB 2015
        return Verdict.FRESH
    past = now - value.soft
    if past < policy.stale_while_revalidate:
        return Verdict.STALE
    if past < policy.stale_if_error:
        return Verdict.KEPT
    return Verdict.MISS


# ---------------------------------------------------------------------------- answering


def read(site: Site, call: Call) -> Flow[Any]:
    """Answer a call that L1 could not answer."""
    if not site.keeps:
        return (yield from alone(site, call))
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
                    return answer(site, landed)
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
    if site.near is not None:
        until = stay(site, value.soft, value.cost)
        keep_near(site, call, result, payload, until, tuple(seen.late) if value.late else ())
    return result


def stay(site: Site, soft: float, cost: float) -> float:
    """When a value leaves L1: early refresh is drawn once per stay, for a hit has no time for a logarithm."""
    beta = site.policy.early_refresh
    return soft if beta is None else soft + cost * beta * math.log(1 - site.world.random())


def open_value(site: Site, value: Value) -> Any:
    """The result in a value; raises CodecError when it cannot be read."""
    return open_payload(site, value.flags, unpack(site, value.flags, value.payload))


def unpack(site: Site, flags: int, payload: bytes) -> bytes:
    return site.world.unpack(flags, payload) if flags & ~NEGATIVE else payload


def open_payload(site: Site, flags: int, payload: bytes) -> Any:
    return None if flags & NEGATIVE else site.codec.decode(payload)


def undecodable(site: Site, call: Call) -> None:
    site.counts.bad_data += 1
    site.world.bad_data(site, call.key, "undecodable")


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


def patience(site: Site, call: Call) -> float:
    """Seconds that this call may still wait for others; its waiting begins with the first question."""
    now = site.world.tick()
    if call.wait_until is None:
        call.wait_until = now + site.policy.wait_timeout
        site.counts.waits += 1
    return max(0.0, call.wait_until - now)


def alone(site: Site, call: Call) -> Flow[Any]:
    """Load for this caller only and store nothing."""
    loaded: Loaded | Pending = yield Load(call, hard=site.policy.hard_timeout)
    site.counts.loads += 1
    return unwrap(site, loaded)


def unwrap(site: Site, loaded: Any) -> Any:
    if loaded.error is not None:
        site.counts.errors += 1
        raise loaded.error
    return loaded.value


# ---------------------------------------------------------------------------- waiting


def flight_name(call: Call, placeholder: Marker) -> Name:
    return (call.key, placeholder.digest, placeholder.nonce)


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
    return flight.landed if ended else None


def answer(site: Site, landed: Landed) -> Any:
    """What a flight brought, as this caller's own object."""
    site.counts.coalesced += 1
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
        incarnation = world.incarnation()
        proposed = [t if t is not None else new_token(incarnation, world.nonce()) for t in seen.tokens]
        missing = [i for i, t in enumerate(seen.tokens) if t is None]
        known = pack_tags(call.tags, proposed) if proposed else b""
        nonce = world.nonce()
        marker = Marker(PLACEHOLDER, nonce, incarnation, world.clock(), digest(known))
        placeholder = marker.pack()
        # Known here before anybody can see it in the store, or a neighbour would poll for it.
        flight = world.flights.open(flight_name(call, marker))
        assert flight is not None
        expected = None if seen.slot is None else head_of(seen.slot)
        try:
            begun: Begun = yield Begin(
                (Place(keys.value(call.key), placeholder, expected),),
                tuple((keys.token(call.tags[i]), proposed[i]) for i in missing),
                policy.lease_ttl,
                token_ttl(policy.ttl, policy.kept),
            )
        except BaseException:
            world.flights.close(flight)
            # The answer is lost, perhaps not the command: nobody should wait for this placeholder.
            yield Spawn(attempt(site, Release(keys.value(call.key), placeholder)))
            raise
        for i, token in zip(missing, begun.tokens, strict=True):
            proposed[i] = token
        seen.tokens = proposed
        ours = begun.slots[0] is None
        seen.slot = marker if ours else parse(begun.slots[0])
        if type(seen.slot) is Value and seen.slot.late:  # valid or not: its late tags are to be read
            world.flights.close(flight)
            fresh = yield from look(site, call)
            seen.slot, seen.tokens, seen.known = fresh.slot, fresh.tokens, fresh.known
            seen.late, seen.verdict = fresh.late, fresh.verdict
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


def head_of(slot: Marker | Value | Foreign | Broken) -> bytes:
    raw = slot.pack() if isinstance(slot, Marker) else slot.raw
    return raw[:HEAD]


def token_ttl(ttl: Any, kept: float) -> float:
    """A token's life: long enough that its end is never why a value is missed."""
    return TOKEN_TTL if callable(ttl) else max(TOKEN_TTL, 2 * (float(ttl) + kept))


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


def attempt(site: Site, command: Command) -> Flow[None]:
    """A command whose failure costs time only."""
    try:
        yield command
    except StoreUnavailable:
        site.counts.unavailable += 1


def rest(timeout: float | None, start: float, now: float) -> float | None:
    return None if timeout is None else max(0.001, timeout - (now - start))


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


def prepare(
    site: Site,
    call: Call,
    result: Any,
    payload: bytes | None,
    start: float,
    cost: float,
    expected: bytes,
    seen: Seen,
) -> Flow[Ready | None]:
    """The value that may replace what opens with ``expected``; None when it must not be stored."""
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
        proven = yield from prove(site, call, names, ttl)
        if proven is None:
            counts.late_unproven += 1
            return None
        late = proven
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
        if stored:
            counts.stored += 1
            keep_near(site, ready.call, ready.result, ready.payload, ready.until, ready.late)
        else:
            counts.refused += 1
    return done


def incarnation_of(expected: bytes) -> bytes:
    """A value carries the incarnation under which its load began: the one of its placeholder."""
    return expected[16:24]


def prove(site: Site, call: Call, names: tuple[str, ...], ttl: float) -> Flow[bytes | None]:
    """The late tags with their tokens, if none was invalidated since the load began; else None.

    Their tokens are read after the load and so prove nothing by themselves: only a process that has
    heard of every invalidation since then can tell.
    """
    world = site.world
    if site.witness is None:
        return None
    incarnation = world.incarnation()
    begun: Begun = yield Begin(
        (),
        tuple((world.keys.token(n), new_token(incarnation, world.nonce())) for n in names),
        0.0,
        token_ttl(ttl, site.policy.kept),
    )
    # Asked after the tokens were read: what had rotated them by then will have been heard.
    if not (yield from unmarked(site, names, call.since)) or not all(map(is_token, begun.tokens)):
        return None
    return pack_tags(names, begun.tokens)


def unmarked(site: Site, names: tuple[str, ...], since: int) -> Flow[bool]:
    """Whether this process can show that no tag was invalidated between ``since`` and now."""
    if site.witness is None:
        return False
    heard: bool = yield Confirm(CONFIRM)
    return heard and site.witness.unmarked(names, since)


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
    try:
        holder: bytes | None = yield Lock(lock, nonce, policy.lease_ttl)
    except StoreUnavailable:  # it answers reads and takes no writes: full, or a replica now
        counts.unavailable += 1
        holder = FAILED
        if seen.verdict is Verdict.KEPT:
            with suppress(Exception):
                return ((yield from alone(site, call)),)
    if holder is not None:
        if seen.verdict is Verdict.KEPT and holder != FAILED:
            return None
        count_served(site, seen.verdict)
        return (old,)
    again = yield from look(site, call)
    if type(again.slot) is not Value or again.slot.nonce != value.nonce or again.verdict is Verdict.MISS:
        yield Release(lock, nonce)
        return ((yield from resolve(site, call, again)),)
    renewing = renew(site, call, again, Release(lock, nonce))
    if policy.refresh == "background" and seen.verdict is not Verdict.KEPT:
        yield Spawn(renewing)
        count_served(site, seen.verdict)
        return (old,)
    try:
        renewed = yield from renewing
    except Exception:
        if again.verdict is Verdict.EARLY:
            counts.early += 1
            return (old,)
        if world.clock() - value.soft < policy.kept:
            counts.stale += 1
            return (old,)
        raise
    if renewed is None:  # the soft timeout: it goes on behind our back
        counts.stale += 1
        return (old,)
    return renewed


def count_served(site: Site, verdict: Verdict) -> None:
    if verdict is Verdict.EARLY:
        site.counts.hits_l2 += 1
    else:
        site.counts.stale += 1


def renew(site: Site, call: Call, seen: Seen, release: Release) -> Flow[tuple[Any] | None]:
    """Load and replace the value by compare-and-set; None when the soft timeout came first.

    After an error the lock says so for one lease: until then others are answered with what there is
    instead of asking a source that has just failed.
    """
    world, policy = site.world, site.policy
    start, began = world.clock(), world.tick()
    keep = Renew(((release.key, release.expected),), policy.lease_ttl)
    loaded = yield from holding(
        site, release, ask(Load(call, keep, policy.soft_timeout, policy.hard_timeout))
    )
    if type(loaded) is Pending:
        yield Spawn(finish(site, call, loaded, start, began, seen, release))
        return None
    return ((yield from replace(site, call, loaded, start, seen, release)),)


def finish(
    site: Site, call: Call, pending: Pending, start: float, began: float, seen: Seen, release: Release
) -> Flow[Any]:
    keep = Renew(((release.key, release.expected),), site.policy.lease_ttl)
    left = rest(site.policy.hard_timeout, began, site.world.tick())
    loaded = yield from holding(site, release, ask(Await(pending, left, keep)))
    return (yield from replace(site, call, loaded, start, seen, release))


def replace(site: Site, call: Call, loaded: Loaded, start: float, seen: Seen, release: Release) -> Flow[Any]:
    if loaded.error is not None:
        yield from attempt(site, Hold(((release.key, FAILED),), (), site.policy.lease_ttl, 0))
    result = unwrap(site, loaded)
    storing = settle(site, call, result, start, head_of(seen.slot), seen, None)  # type: ignore[arg-type]
    yield from holding(site, release, storing)
    yield from attempt(site, release)
    return result


def holding(site: Site, release: Release, flow: Flow[T]) -> Flow[T]:
    """Go through ``flow``; cancelled, or failed in a callable of the user's, let go of the lock at once."""
    try:
        return (yield from flow)
    except BaseException:
        yield Spawn(attempt(site, release))
        raise


def ask(command: Command) -> Flow[Any]:
    return (yield command)


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
