"""What the coherence channel carries, as bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec


class Announcement(msgspec.Struct, array_like=True, frozen=True):
    """Keys, tags and key patterns that an L1 must drop, and keys that a follower may find filled."""

    keys: list[str] = []
    tags: list[str] = []
    patterns: list[str] = []
    filled: list[str] = []


read_announcement: Final = msgspec.msgpack.Decoder(Announcement).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def announcement(
    keys: Iterable[str] = (),
    tags: Iterable[str] = (),
    patterns: Iterable[str] = (),
    filled: Iterable[str] = (),
) -> bytes:
    return _encode(Announcement(list(keys), list(tags), list(patterns), list(filled)))
