"""Flows of the direct operations: find, put, expire, reclaim. Same slots, same rules, no call site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from cacheaside.engine.call import Call, Near, Site, World
from cacheaside.engine.commands import (
    Announce,
    Commit,
    Fetch,
    Fill,
    Flow,
    Forget,
    Members,
    Scan,
    Sleep,
    Sweep,
)
from cacheaside.engine.fill import Ready, commit, encode, prepare, token_ttl
from cacheaside.engine.look import Seen
from cacheaside.engine.renew import holding
from cacheaside.engine.tokens import dead, living
from cacheaside.engine.write import claimed, deliver, greet, invalidate, invalidation
from cacheaside.entry import (
    CLAIM,
    HEAD,
    Foreign,
    Held,
    Marker,
    Slot,
    Value,
    is_hold,
    is_token,
    pack_tags,
    pack_value,
    parse,
    unpack_tags,
)
from cacheaside.errors import StoreUnavailable

BATCH: Final = 500


class Found:
    """A key as it stands in the store, with the tokens of whatever tags it carries."""

    __slots__ = ("accepted", "doubted", "key", "slot", "stored", "tokens")

    def __init__(self, key: str, slot: Slot) -> None:
        self.key = key
        self.slot = slot
        self.stored: dict[str, bytes] | None = {}
        self.tokens: dict[str, bytes | None] = {}
        self.accepted = False
        self.doubted = False
        """Whether this process has invalidated it, and the store has not confirmed that."""
        if type(slot) is Value:
            self.stored = unpack_tags(slot.known + slot.late)

    @property
    def value(self) -> Value | None:
        return self.slot if type(self.slot) is Value else None

    @property
    def believed(self) -> bool:
        """Whether every tag still has the token that the value was stored with."""
        return (
            self.accepted
            and not self.doubted
            and self.stored is not None
            and all(
                is_token(self.tokens.get(name)) and self.tokens[name] == t for name, t in self.stored.items()
            )
        )

    def words(self, now: float) -> str:
        """What there is and why a read would hit or miss."""
        slot = self.slot
        if slot is None:
            return "holds nothing: a read would miss and load"
        if type(slot) is Marker:
            kind = "a put" if slot.kind == CLAIM else "a load"
            return f"holds {kind} under way, since {now - slot.start:.1f} s"
        if type(slot) is Held:
            return "is held: reads load for themselves and store nothing"
        if type(slot) is Foreign:
            return "holds something cacheaside did not write: reads load and store nothing"
        if type(slot) is not Value or self.stored is None:
            return "holds a damaged entry: a read would miss and replace it"
        parts = [f"holds a value {now - slot.start:.1f} s old"]
        if now < slot.soft:
            parts.append(f"fresh for {slot.soft - now:.1f} s")
        else:
            parts.append(f"stale since {now - slot.soft:.1f} s, kept for {slot.hard - now:.1f} s")
        parts.append(f"it took {slot.cost * 1000:.1f} ms to load")
        if not self.accepted:
            parts.append("from another incarnation of the server: a miss")
        if self.doubted:
            parts.append("invalidated here, which Redis has not confirmed: a miss")
        for name, token in self.stored.items():
            there = self.tokens.get(name)
            state = "valid" if there == token else "held" if is_hold(there) else "invalidated"
            parts.append(f"tag {name} {'lost' if there is None else state} ({token[-4:].hex()})")
        return ", ".join(parts)


def find(world: World, keys: Sequence[str]) -> Flow[list[Found]]:
    """The slots of ``keys`` and the tokens of their tags: one round trip, two where there are tags."""
    journal, since = world.journal, world.journal.change
    raws: list[bytes | None] = yield Fetch(tuple(map(world.keys.value, keys)))
    entries = [Found(key, parse(raw)) for key, raw in zip(keys, raws, strict=True)]
    names = tuple(dict.fromkeys(name for e in entries for name in e.stored or ()))
    tokens: dict[str, bytes | None] = {}
    if names:
        replies: list[bytes | None] = yield Fetch(tuple(map(world.keys.token, names)))
        tokens = {
            n: None if dead(world, n, token) else token for n, token in zip(names, replies, strict=True)
        }
    for entry in entries:
        entry.tokens = tokens
        entry.accepted = entry.value is not None and world.accepts(entry.value.incarnation, entry.key)
        entry.doubted = journal.doubts(entry.key, entry.stored or (), since)
    return entries


def put_values(
    site: Site, calls: Sequence[tuple[Call, Any]], timeout: float, near: Near | None
) -> Flow[list[bool]]:
    """Store values that the caller has: claim the slots, then commit over the claims."""
    if not calls:
        return []
    world = site.world
    names = tuple(call.key for call, _ in calls)
    yield from greet(world, names)
    world.journal.note(names, ())
    start = world.clock()
    claims = [
        Marker(CLAIM, world.nonce(), world.incarnation(c.key), start, b"\0" * 8).pack() for c, _ in calls
    ]
    slots = tuple((world.keys.value(c.key), claim) for (c, _), claim in zip(calls, claims, strict=True))
    filling = fill_claimed(site, calls, slots, start, near)
    stored = yield from holding(site, Sweep(slots), filling)
    world.journal.confirm(stored, ())
    lost = tuple(call.key for call, _ in calls if call.key not in stored)
    if lost:
        yield from invalidate(world, near, lost, (), timeout=timeout)
    return [call.key in stored for call, _ in calls]


def fill_claimed(
    site: Site,
    calls: Sequence[tuple[Call, Any]],
    slots: tuple[tuple[str, bytes], ...],
    start: float,
    near: Near | None,
) -> Flow[set[str]]:
    """Claim the slots, then commit over the claims; the keys that were stored."""
    world = site.world
    names = tuple(dict.fromkeys(t for call, _ in calls for t in call.tags))
    try:
        held, proofs = yield from claimed(site, slots, names)
        if near is not None:  # what was read before the claims stood may settle no more
            near.mark(tuple(call.key for call, _ in calls), ())
        tokens = dict(zip(names, proofs, strict=True))
        batch: list[Ready] = []
        if living(world, names, proofs):
            for (call, value), (_, claim), there in zip(calls, slots, held, strict=True):
                if there is not None:
                    continue
                seen = Seen(None, ())
                seen.known = pack_tags(call.tags, [tokens[t] for t in call.tags])
                payload = encode(site, call, value)
                ready = yield from prepare(site, call, value, payload, start, 0.0, claim, seen)
                if ready is not None:
                    batch.append(ready)
        done = (yield from commit(site, batch)) if batch else ()
        return {ready.call.key for ready, ok in zip(batch, done, strict=True) if ok}
    except StoreUnavailable:
        site.counts.unavailable += 1
        return set()


def expire(world: World, key: str, ttl: float) -> Flow[bool]:
    """Give a value another ttl, by compare-and-set; False when it is not there or changed meanwhile."""
    (entry,) = yield from find(world, (key,))
    value, now = entry.value, world.clock()
    if value is None or not entry.believed or value.soft <= now:
        return False
    raw = pack_value(
        world.nonce(), value.incarnation, start=value.start, cost=value.cost, soft=now + ttl,
        hard=now + ttl, schema=value.schema, flags=value.flags, known=value.known, late=value.late,
        payload=value.payload,
    )  # fmt: skip
    keys = world.keys
    fill = Fill(keys.value(key), keys.staging(key), value.raw[:HEAD], raw, ttl)
    life = token_ttl(ttl, 0)
    tokens = [keys.token(name) for name in entry.stored or ()]
    extend = tuple((t, life) for t in tokens if world.extend(t, now + ttl, now + life))
    done: tuple[bool, ...] = yield Commit((fill,), extend)
    yield Announce((key,))
    return done[0]


def announced(pattern: str) -> Flow[StoreUnavailable | None]:
    """Tell every L1 to drop what matches; what to say if somebody cannot be told."""
    try:
        yield Announce(patterns=(pattern,))
    except StoreUnavailable as error:
        if not error.unheard:
            raise
        return error
    return None


def drop_matching(
    world: World,
    near: Near | None,
    pattern: str,
    *,
    timeout: float = 2.0,
    progress: Callable[[int], None] | None = None,
) -> Flow[tuple[int, StoreUnavailable | None]]:
    """Drop all keys that match a glob pattern, in batches: how many, and what ended it before the end.

    Then the pattern is owed, unless all are dropped and only the announcement was not heard.
    """
    journal, dropped = world.journal, 0
    failure: StoreUnavailable | None = None
    done = False
    if near is not None:
        near.clear(pattern)
    journal.note((), (), (pattern,))
    try:
        failure = yield from announced(pattern)
        cursor: object = None
        while True:
            cursor, found = yield Scan(world.keys.value(pattern), cursor, BATCH)
            # Companions and tokens begin with a brace: they are not values.
            keys = [world.keys.strip(k) for k in dict.fromkeys(found) if not k.startswith("{")]
            for batch in (tuple(keys[n : n + BATCH]) for n in range(0, len(keys), BATCH)):
                drop = partial(invalidation, world, batch, ())
                _, gone, _ = yield from deliver(world, drop, timeout)
                if not gone:
                    raise StoreUnavailable("the store stopped answering")
                dropped += len(batch)
                if progress is not None:
                    progress(dropped)
            if cursor is None:
                break
            yield Sleep(0)
        # Again: an L1 may have been given meanwhile what stood in L2 until just now.
        failure = yield from announced(pattern)
        done = True
    except StoreUnavailable as error:
        failure = error
    finally:
        (journal.confirm if done else journal.owe)((), (), (pattern,))
        if near is not None:
            near.clear(pattern)
    return dropped, failure


def reclaim(world: World, tag: str) -> Flow[int]:
    """Delete what a tag has invalidated, by compare-and-delete, in bounded batches."""
    index = world.keys.tag_index(tag)
    deleted, start = 0, 0
    while True:
        keys: list[str] = yield Members(index, start, BATCH)
        if not keys:
            return deleted
        entries = yield from find(world, keys)
        gone: list[str] = []
        swept: list[tuple[str, bytes]] = []
        for entry in entries:
            value = entry.value
            if value is None or entry.stored is None or tag not in entry.stored:
                gone.append(entry.key)
            elif entry.tokens.get(tag) != entry.stored[tag]:
                swept.append((world.keys.value(entry.key), value.raw[:HEAD]))
                gone.append(entry.key)
        if swept:
            deleted += yield Sweep(tuple(swept))
        if gone:
            yield Forget(index, tuple(gone))
        start += len(keys) - len(gone)
        yield Sleep(0)
