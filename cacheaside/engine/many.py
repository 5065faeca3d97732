"""Batches: what is there, and one load of what is missing.

The rules are those of read.py, for many keys at a time: one round trip reads all slots and tokens,
one takes the missing slots, one load fetches them, one commit stores them. Keys that others are
loading are looked at again after our own load, and loaded with what is left if they do not come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import Begin, Begun, Fetch, Flow, Load, Place, Renew, Sleep, Spawn, Sweep
from cacheaside.engine.fill import (
    Ready,
    attempt,
    commit,
    encode,
    keep_only_near,
    land,
    prepare,
    prove,
    token_ttl,
)
from cacheaside.engine.flights import Flight, Landed
from cacheaside.engine.look import Seen, Verdict, flight_name, head_of, judge, open_value, undecodable
from cacheaside.engine.read import POLL_FIRST, POLL_LAST, hit, patience
from cacheaside.engine.tokens import dead, fresh
from cacheaside.entry import (
    PLACEHOLDER,
    Marker,
    Value,
    digest,
    pack_tags,
    parse,
    unpack_tags,
)
from cacheaside.errors import CodecError, StoreUnavailable

Loader = Callable[[list[int]], Call]
"""Makes the call that loads the items at these positions; it answers with their results in order."""


class Item:
    """One key of a batch, and how far it has come."""

    __slots__ = ("answered", "call", "flight", "ours", "placeholder", "result", "seen", "stale")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.seen = Seen(None, ())
        self.answered = False
        self.result: Any = None
        self.stale: tuple[Any] | None = None
        self.flight: Flight | None = None
        self.placeholder = b""
        self.ours = False
        """Whether our placeholder stands in the slot, as far as we know."""

    def answer(self, result: Any) -> None:
        self.answered, self.result = True, result


def read_many(site: Site, calls: Sequence[Call], loader: Loader, *, forced: bool = False) -> Flow[list[Any]]:
    """The results of ``calls``, in order; None for what the source does not have.

    ``forced`` loads all of them, whatever is there.
    """
    items = [Item(call) for call in calls]
    if not site.keeps:
        start = site.world.clock()
        for item in items:
            item.call.since = site.near.now() if site.near is not None else 0
        yield from load_many(site, items, items, loader, keep=False)
        if site.near is not None:
            for item in items:
                yield from keep_only_near(site, item.call, item.result, start)
        return [item.result for item in items]
    if site.witness is not None:
        since = site.witness.now()
        for item in items:
            item.call.since = since
    mine: list[Item] = []
    try:
        yield from look_many(site, items)
        if forced:
            for item in items:
                if item.seen.verdict is not Verdict.UNSTORABLE:
                    item.seen.verdict = Verdict.MISS
        else:
            take_ready(site, items)
        mine = yield from begin_many(site, [i for i in items if wants_slot(i)])
        take_ready(site, items)
        waiting = [i for i in items if not i.answered and i.seen.verdict is Verdict.FILLING and i not in mine]
        rest = [i for i in items if not i.answered and i not in waiting]
        yield from load_many(site, items, rest, loader)
        yield from follow_many(site, waiting)
    except StoreUnavailable:
        site.counts.unavailable += 1
    finally:
        # What was not stored and nobody takes over: cancelled, or a callable of the user's has raised.
        left = [i for i in mine if i.ours and i.flight and (i.flight.done.done() or not i.flight.waiters)]
        for item in mine:
            site.world.flights.close(item.flight)  # type: ignore[arg-type]
        if left:
            yield Spawn(release(site, left))
    yield from load_many(site, items, [i for i in items if not i.answered], loader, keep=False)
    return [item.result for item in items]


def release(site: Site, items: Sequence[Item]) -> Flow[None]:
    """Take the placeholders of these items away, in one round trip."""
    yield from attempt(site, Sweep(tuple((site.world.keys.value(i.call.key), i.placeholder) for i in items)))
    for item in items:
        item.ours = False


def wants_slot(item: Item) -> bool:
    return not item.answered and item.seen.verdict is Verdict.MISS


def look_many(site: Site, items: Sequence[Item]) -> Flow[None]:
    """Read all slots and all tokens in one round trip; one more for late tags."""
    keys = site.world.keys
    names = list(dict.fromkeys(t for i in items for t in i.call.tags))
    wanted = [keys.value(i.call.key) for i in items] + [keys.token(n) for n in names]
    since = site.world.journal.change
    replies: list[bytes | None] = yield Fetch(tuple(wanted))
    tokens = dict(zip(names, replies[len(items) :], strict=True))
    late: dict[str, None] = {}
    for item, raw in zip(items, replies, strict=False):
        item.seen = Seen(parse(raw), [tokens[t] for t in item.call.tags], since)
        if type(item.seen.slot) is Value and item.seen.slot.late:
            late.update(dict.fromkeys(unpack_tags(item.seen.slot.late) or ()))
    if late:
        fetched: list[bytes | None] = yield Fetch(tuple(keys.token(n) for n in late))
        for item in items:
            item.seen.late = dict(zip(late, fetched, strict=True))
    for item in items:
        judge(site, item.call, item.seen)


def take_ready(site: Site, items: Sequence[Item]) -> None:
    """Answer what can be answered; note what may be served if the load fails."""
    for item in items:
        if item.answered or type(item.seen.slot) is not Value:
            continue
        try:
            if item.seen.verdict in (Verdict.FRESH, Verdict.EARLY):
                item.answer(hit(site, item.call, item.seen))
            elif item.seen.verdict in (Verdict.STALE, Verdict.KEPT) and item.stale is None:
                item.stale = (open_value(site, item.seen.slot),)
        except CodecError:
            undecodable(site, item.call)
            item.seen.verdict = Verdict.MISS


def begin_many(site: Site, items: Sequence[Item]) -> Flow[list[Item]]:
    """Take the slots that are to be had, in one round trip; those are ours to load."""
    if not items:
        return []
    world, policy = site.world, site.policy
    keys = world.keys
    known: dict[str, bytes | None] = {}
    for item in items:
        known.update(zip(item.call.tags, item.seen.tokens, strict=True))
    missing = {n: fresh(world, n) for n, t in known.items() if t is None}
    gone = {n: (fresh(world, n), t) for n, t in known.items() if dead(world, n, t)} if world.spread else {}
    known.update(missing)
    known.update({n: token for n, (token, _) in gone.items()})
    for item in items:
        tokens = [known[t] for t in item.call.tags]
        block = pack_tags(item.call.tags, tokens)  # type: ignore[arg-type]
        incarnation = world.incarnation(item.call.key)
        marker = Marker(PLACEHOLDER, world.nonce(), incarnation, world.clock(), digest(block))
        item.placeholder = marker.pack()
        item.flight = world.flights.open(flight_name(item.call, marker))
        item.seen.since = world.journal.change
    mine: list[Item] = []
    try:
        begun: Begun = yield Begin(
            tuple(
                Place(
                    keys.value(i.call.key),
                    i.placeholder,
                    None if i.seen.slot is None else head_of(i.seen.slot),
                )
                for i in items
            ),
            tuple((keys.token(n), t) for n, t in missing.items()),
            policy.lease_ttl,
            token_ttl(policy.ttl, policy.kept),
            tuple((keys.token(n), token, there) for n, (token, there) in gone.items()),  # type: ignore[misc]
        )
        known.update(zip((*missing, *gone), begun.tokens, strict=True))
        for item, there in zip(items, begun.slots, strict=True):
            item.seen.tokens = [known[t] for t in item.call.tags]
            item.seen.slot = parse(item.placeholder if there is None else there)
            judge(site, item.call, item.seen)
            # A token that changed under us leaves a placeholder nobody can use: loaded, not stored.
            if there is None and item.seen.verdict is Verdict.FILLING:
                item.ours = True
                mine.append(item)
    except BaseException:
        # The answer is lost, perhaps not the command: nobody should wait for these placeholders.
        yield Spawn(release(site, items))
        raise
    finally:
        for item in items:
            if item not in mine and item.flight is not None:
                world.flights.close(item.flight)
                item.flight = None
    return mine


def load_many(
    site: Site, items: Sequence[Item], wanted: Sequence[Item], loader: Loader, *, keep: bool = True
) -> Flow[None]:
    """Load ``wanted`` in one call; store what is ours and what replaces a stale value."""
    if not wanted:
        return
    world, counts, policy = site.world, site.counts, site.policy
    place = {id(item): n for n, item in enumerate(items)}
    start = world.clock()
    call = loader([place[id(item)] for item in wanted])
    call.keys = frozenset(item.call.key for item in wanted)
    led = [i for i in wanted if keep and i.flight is not None]
    renew = None
    if led:
        kept = tuple((world.keys.value(i.call.key), i.placeholder) for i in led)
        renew = Renew(kept, policy.lease_ttl)
    loaded = yield Load(call, renew, hard=policy.hard_timeout)
    counts.loads += 1
    if loaded.error is not None:
        counts.errors += 1
        for item in led:
            world.flights.land(item.flight, Landed(error=loaded.error))  # type: ignore[arg-type]
        if led:
            yield from release(site, led)
        for item in wanted:
            if item.stale is None:
                raise loaded.error
            counts.stale += 1
            item.call.outcome = "stale"
            item.answer(item.stale[0])
        return
    cost = world.clock() - start
    counts.load_seconds += cost
    counts.misses += len(wanted)
    storing: list[tuple[Item, bytes, bytes | None]] = []
    for item, result in zip(wanted, loaded.value, strict=True):
        item.call.outcome = "miss"
        item.answer(result)
        item.call.told(call)
        expected = item.placeholder if item.flight is not None else b""
        if not expected and item.stale is not None:
            expected = head_of(item.seen.slot)  # type: ignore[arg-type]
        if not keep or not expected:
            continue
        payload = encode(site, item.call, result)
        if payload is not None and item.flight is not None:
            land(site, item.call, item.flight, payload, result)
        storing.append((item, expected, payload))
    yield from store_many(site, led, storing, start, cost)


def store_many(
    site: Site,
    led: Sequence[Item],
    storing: list[tuple[Item, bytes, bytes | None]],
    start: float,
    cost: float,
) -> Flow[None]:
    """Store what may be stored, in one commit; late tags are proven for all of them at once."""
    late = tuple(dict.fromkeys(name for i, _, _ in storing for name in i.call.late_tags(i.result)))
    proven = yield from prove(site, late, storing[0][0].call.since if storing else 0)
    ready: list[Ready] = []
    unstored: list[Item] = []
    for item, expected, payload in storing:
        one = yield from prepare(
            site, item.call, item.result, payload, start, cost, expected, item.seen, proven
        )
        if one is not None:
            ready.append(one)
        elif item.flight is not None:
            unstored.append(item)
    if unstored:
        yield from release(site, unstored)
    if ready:
        try:
            yield from commit(site, ready)
        except StoreUnavailable:
            site.counts.unavailable += 1
        else:
            for item in led:
                item.ours = False


def follow_many(site: Site, waiting: list[Item]) -> Flow[None]:
    """Look again, with growing pauses, at what others are loading, until it is there or patience ends."""
    delay = POLL_FIRST
    waiting = [i for i in waiting if not i.call.nested()]
    while waiting:
        yield from look_many(site, waiting)
        take_ready(site, waiting)
        waiting = [i for i in waiting if not i.answered and i.seen.verdict is Verdict.FILLING]
        left = min((patience(site, i.call) for i in waiting), default=0.0)
        if not left:
            return
        yield Sleep(min(delay, left))
        delay = min(delay * 1.5, POLL_LAST)
