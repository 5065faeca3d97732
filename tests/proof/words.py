"""The store's rows in words, for schedules that people read."""

from __future__ import annotations

from cacheaside.entry import (
    PLACEHOLDER,
    SLOT_HELD,
    TAG_HELD,
    Held,
    Marker,
    Value,
    holds,
    is_hold,
    is_token,
    parse,
    unpack_tags,
)


def words(raw: bytes) -> str:
    """A row of the store, for people: what it is and whose."""
    slot = parse(raw)
    if type(slot) is Value:
        tokens = unpack_tags(slot.known + slot.late) or {}
        under = ", ".join(map(words, tokens.values()))
        return f"value {slot.payload.hex()} of {who(slot.nonce)} under ({under})"
    if type(slot) is Marker:
        return f"{'placeholder' if slot.kind == PLACEHOLDER else 'claim'} of {who(slot.nonce)}"
    if type(slot) is Held or is_hold(raw):
        listed = raw[len(SLOT_HELD if type(slot) is Held else TAG_HELD) :]
        return "held by " + " and ".join(who(name) for name, _ in holds(listed))
    if is_token(raw):
        return f"token of {who(raw[9:])}"
    return repr(raw)


def who(nonce: bytes) -> str:
    return f"{nonce[0] // 16 - 1}.{nonce[0] % 16}/{nonce[1]}.{nonce[2]}"
