"""Looking at a slot: what stands there, and what that means for a call.

Here is the rule that keeps an answer from being stale: a value is believed only if it is of this schema and
this incarnation, and every one of its tags has a token now, the very one that was stored with the value. A
missing token is a miss, for Redis may drop anything at any time. Nor is anything believed that this process
has invalidated and that the store has not confirmed: it is loaded, and not stored, until it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import (
    Fetch,
    Flow,
)
from cacheaside.engine.flights import Name
from cacheaside.engine.tokens import living
from cacheaside.entry import (
    CLAIM,
    HEAD,
    NEGATIVE,
    Broken,
    Foreign,
    Held,
    Marker,
    Slot,
    Value,
    digest,
    is_hold,
    is_token,
    pack_tags,
    parse,
    unpack_tags,
)


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

    __slots__ = ("known", "late", "since", "slot", "tokens", "verdict")

    def __init__(self, slot: Slot, tokens: Sequence[bytes | None], since: int = 0) -> None:
        self.slot = slot
        self.tokens = tokens
        self.since = since
        """The state of the journal when the store was asked."""
        self.known = b""
        self.late: dict[str, bytes | None] = {}
        self.verdict = Verdict.MISS


def look(site: Site, call: Call) -> Flow[Seen]:
    """Read the slot and the tokens of its tags: one round trip, one more for unforeseen late tags."""
    keys = site.world.keys
    names = call.tags
    foreseen = site.late_names.get(call.key, ())
    wanted = (keys.value(call.key), *map(keys.token, names), *map(keys.token, foreseen))
    since = site.world.journal.change
    replies: list[bytes | None] = yield Fetch(wanted)
    seen = Seen(parse(replies[0]), replies[1 : 1 + len(names)], since)
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
    call.found = seen.verdict
    return seen


def judge(site: Site, call: Call, seen: Seen) -> None:
    """Decide what the slot means, and note the tag block that a load would store."""
    slot, world = seen.slot, site.world
    tokens = seen.tokens
    proven = all(map(is_token, tokens))
    if proven and world.spread:
        proven = living(world, call.tags, tokens)
    seen.known = pack_tags(call.tags, tokens) if proven and tokens else b""  # type: ignore[arg-type]
    seen.verdict = Verdict.MISS
    journal = world.journal
    if (journal.owing or journal.change != seen.since) and journal.doubts(
        call.key, (*call.tags, *seen.late), seen.since
    ):
        seen.verdict = Verdict.UNSTORABLE
        return
    if type(slot) is Value:
        if proven and valid(site, call, seen, slot):
            seen.verdict = freshness(site, slot)
    elif type(slot) is Marker:
        if slot.kind == CLAIM:
            seen.verdict = Verdict.UNSTORABLE
        elif proven and slot.digest == digest(seen.known) and world.accepts(slot.incarnation, call.key):
            seen.verdict = Verdict.FILLING
    elif type(slot) is Held:
        seen.verdict = Verdict.UNSTORABLE
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
    if value.schema != site.codec.schema or not site.world.accepts(value.incarnation, call.key):
        return False
    if value.known != seen.known:
        return False
    if not value.late:
        return True
    stored = unpack_tags(value.late)
    if stored is None:
        return False
    if not all(is_token(seen.late.get(name)) and seen.late[name] == t for name, t in stored.items()):
        return False
    return not site.world.spread or living(site.world, tuple(stored), tuple(stored.values()))


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


def flight_name(call: Call, placeholder: Marker) -> Name:
    return (call.key, placeholder.digest, placeholder.nonce)


def head_of(slot: Marker | Held | Value | Foreign | Broken) -> bytes:
    raw = slot.pack() if isinstance(slot, Marker) else slot.raw
    return raw[:HEAD]


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
