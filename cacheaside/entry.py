"""What stands in a value slot of Redis: a placeholder, a claim, holds or a value, as bytes.

A slot opens with 24 bytes, its *head*: magic, kind, nonce, incarnation. The nonce is new for every fill,
so two slots with one head are one and the same; compare-and-set compares heads. Only holds have none:
nothing is ever stored over them.

    placeholder, claim  head | start f64 | digest 8
    holds               magic, kind | for each: name 12 | end, milliseconds in 13 digits
    value               head | crc32 of what follows u32 | start f64 | cost f32 | soft f64 | hard f64
                             | schema 8 | flags u8 | length of the known tags u32 | of the late tags u32
                             | known tags | late tags | payload

A tag is ``length u16 | name | token``. Times are seconds since the epoch. The known tags are those
that the arguments determine, in the order of the call site: a reader builds the same bytes from the
tokens it has just read and compares them in one go. Holds of a tag stand in its token's place: "H", then
the same list.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from msgspec import Struct

MAGIC: Final = b"\xcaC\x01"
PLACEHOLDER: Final = ord("P")
CLAIM: Final = ord("U")
HOLD: Final = ord("H")
VALUE: Final = ord("V")

HEAD: Final = 24
TOKEN: Final = 21
NONCE: Final = 12
NO_INCARNATION: Final = b"\0" * 8

SLOT_HELD: Final = MAGIC + b"H"
TAG_HELD: Final = b"H"
"""What the holds of a slot, and of a tag, begin with."""
_HELD: Final = NONCE + 13

NEGATIVE: Final = 0x80
"""Flag: the value is ``None`` and has no payload. The low bits belong to the codecs."""

_marker = struct.Struct(">3sB12s8sd8s")
_value = struct.Struct(">3sB12s8sIdfdd8sBII")
_opening = struct.Struct(">3sB12s8sI")
_rest = struct.Struct(">dfdd8sBII")
_length = struct.Struct(">H")

GLANCE: Final = _value.size
"""So many bytes of a slot tell when it was made and when it ends."""


class Marker(NamedTuple):
    """A placeholder (somebody is loading) or a claim (somebody puts a value of his own)."""

    kind: int
    nonce: bytes
    incarnation: bytes
    start: float
    digest: bytes

    def pack(self) -> bytes:
        return _marker.pack(MAGIC, *self)


class Value(Struct, frozen=True, gc=False):
    """A stored result; ``raw`` is the whole slot and ``body`` where its payload begins."""

    nonce: bytes
    incarnation: bytes
    start: float
    cost: float
    soft: float
    hard: float
    schema: bytes
    flags: int
    known: bytes
    late: bytes
    raw: bytes
    body: int

    @property
    def payload(self) -> bytes:
        return self.raw[self.body :]


class Held(NamedTuple):
    """Holds: nothing may be stored here until the last of them ends or is released."""

    raw: bytes


class Foreign(NamedTuple):
    """Bytes that this library did not write: never answered from, never overwritten by a read."""

    raw: bytes


class Broken(NamedTuple):
    """Bytes that this library wrote and that do not parse any more: a miss, and replaced."""

    raw: bytes


Slot = Marker | Held | Value | Foreign | Broken | None


def parse(raw: bytes | None) -> Slot:
    """The slot in ``raw``; never raises."""
    if not raw:
        return None
    if raw[:3] != MAGIC:
        return Foreign(raw)
    try:
        if raw[3] == VALUE:
            (_, _, nonce, inc, crc, start, cost, soft, hard, schema, flags, known, late) = _value.unpack_from(
                raw
            )
            # A payload cut short or changed may still decode, to a wrong answer.
            if crc32(memoryview(raw)[_opening.size :]) != crc:
                return Broken(raw)
            tags = _value.size + known
            body = tags + late
            return Value(
                nonce, inc, start, cost, soft, hard, schema, flags,
                raw[_value.size : tags], raw[tags:body] if late else b"", raw, body,
            )  # fmt: skip
        if raw[3] == HOLD:
            return Held(raw) if holds(raw[len(SLOT_HELD) :]) else Broken(raw)
        _, kind, nonce, inc, start, digest = _marker.unpack(raw)
    except (struct.error, IndexError, ValueError):
        return Broken(raw)
    if kind != PLACEHOLDER and kind != CLAIM:
        return Broken(raw)
    return Marker(kind, nonce, inc, start, digest)


class Glance(NamedTuple):
    """What the first bytes of a slot tell, without tags and payload; times are 0 where it has none."""

    kind: int
    start: float = 0.0
    cost: float = 0.0
    soft: float = 0.0
    hard: float = 0.0


def glance(opening: bytes) -> Glance | None:
    """What stands in a slot that begins with these bytes, ``GLANCE`` of them; None: nothing of ours."""
    if opening[:3] != MAGIC or len(opening) < 4:
        return None
    if opening[3] == VALUE and len(opening) >= GLANCE:
        _, kind, _, _, _, start, cost, soft, hard, *_ = _value.unpack_from(opening)
        return Glance(kind, start, cost, soft, hard)
    if opening[3] in (PLACEHOLDER, CLAIM) and len(opening) >= _marker.size:
        return Glance(opening[3], _marker.unpack_from(opening)[4])
    return Glance(opening[3])


def pack_value(
    nonce: bytes,
    incarnation: bytes,
    *,
    start: float,
    cost: float,
    soft: float,
    hard: float,
    schema: bytes,
    flags: int,
    known: bytes,
    late: bytes,
    payload: bytes,
) -> bytes:
    """The bytes of a value slot."""
    rest = _rest.pack(start, cost, soft, hard, schema, flags, len(known), len(late))
    crc = 0
    for part in (rest, known, late, payload):
        crc = crc32(part, crc)
    return b"".join((_opening.pack(MAGIC, VALUE, nonce, incarnation, crc), rest, known, late, payload))


def pack_tags(names: Sequence[str], tokens: Iterable[bytes]) -> bytes:
    """Tags with their tokens, in order."""
    parts: list[bytes] = []
    for name, token in zip(names, tokens, strict=True):
        text = name.encode()
        parts += (_length.pack(len(text)), text, token)
    return b"".join(parts)


def unpack_tags(block: bytes) -> dict[str, bytes] | None:
    """The tags in ``block`` with their tokens; None when it does not parse."""
    tags: dict[str, bytes] = {}
    at = 0
    try:
        while at < len(block):
            (length,) = _length.unpack_from(block, at)
            at += _length.size
            name, token = block[at : at + length], block[at + length : at + length + TOKEN]
            at += length + TOKEN
            if len(token) != TOKEN:
                return None
            tags[name.decode()] = token
    except (struct.error, UnicodeDecodeError):
        return None
    return tags


def digest(known: bytes) -> bytes:
    """Eight bytes that stand for a set of tags and tokens in a placeholder."""
    return blake2b(known, digest_size=8).digest()


def new_token(incarnation: bytes, nonce: bytes) -> bytes:
    """A tag token: never a counter, never a time, so that a lost one can never come again."""
    return b"T" + incarnation + nonce


def token_incarnation(token: bytes) -> bytes:
    """The incarnation of the server that a token was made for."""
    return token[1:9]


def holds(listed: bytes) -> list[tuple[bytes, int]]:
    """Names and ends (milliseconds) in a list of holds; raises ValueError when it does not parse."""
    if len(listed) % _HELD:
        raise ValueError("cut short")
    return [
        (listed[at : at + NONCE], int(listed[at + NONCE : at + _HELD])) for at in range(0, len(listed), _HELD)
    ]


def pack_holds(those: Iterable[tuple[bytes, int]]) -> bytes:
    """The list that ``holds`` reads."""
    return b"".join(b"%s%013d" % one for one in those)


def is_token(raw: bytes | None) -> bool:
    """Whether ``raw`` is a token that a value may carry: there, ours, and no hold."""
    return raw is not None and len(raw) == TOKEN and raw[:1] == b"T"


def is_hold(raw: bytes | None) -> bool:
    """Whether holds stand in a token's place."""
    return raw is not None and raw[:1] == b"H"
