"""The steps on a user's grants, each atomic: ``grants.lua`` for Redis, its twin for the embedded store."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from cacheaside.stores.program import Program, Room

MICRO: Final = 1_000_000
_SUCCESSOR: Final = re.compile(rb"(\d+) (\d+) ([0-9a-f]{64}) ([0-9a-f]{64})")


class Row(Struct):
    """A grant; ``born`` and ``seen`` are dates, ``idle`` and ``last`` ends by the room's own clock."""

    born: int
    seen: int
    idle: float
    last: float
    hash: str
    data: bytes


class Wallet:
    """The grants of a user in the embedded store, by id; as long as they cost there."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def __len__(self) -> int:
        return sum(4 + len(row.data) // 128 for row in self.rows.values())


class _Step(Struct):
    """A step at a table: the room, the user's key and grants, and the grant with the token in hand."""

    room: Room
    keys: tuple[str, ...]
    wallet: Wallet
    id: str
    hash: str

    def row(self) -> Row | None:
        row = self.wallet.rows.get(self.id)
        return row if row is not None and is_live(row, self.room.now()) else None

    def save(self) -> None:
        now = self.room.now()
        ends = [row.idle - now for row in self.wallet.rows.values()]
        if ends:
            self.room.set(self.keys[0], self.wallet, max(ends))
        else:
            self.room.delete(self.keys[0])

    def drop(self) -> None:
        del self.wallet.rows[self.id]
        self.save()

    def successor(self) -> bytes | None:
        """What the token in hand left when it was rotated, if that was a moment ago: masked."""
        left = self.left()
        return left and left[0]

    def left(self) -> tuple[bytes, str] | None:
        """The successor, masked, and its hash."""
        there = self.room.get(self.keys[1])
        match = _SUCCESSOR.fullmatch(there) if isinstance(there, bytes) else None
        if match is None or match[1] != match[2] or self.room.now() * MICRO >= int(match[1]):
            return None
        return match[3], match[4].decode()

    def use(self, row: Row, ttl: int, seen: bool) -> None:
        if seen:
            row.seen = micros(self.room.clock())
        if ttl:
            row.idle = min(self.room.now() + ttl / MICRO, row.last)
            self.save()


def _twin(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> Any:
    name, id, hash, *more = args
    there = room.get(keys[0])
    if name == "clear":
        return int(room.delete(keys[0]))
    foreign = there is not None and not isinstance(there, Wallet)
    wallet = there if isinstance(there, Wallet) else Wallet()
    step = _Step(room, keys, wallet, id, hash)
    if name == "add":
        return _add(step, *more)
    if name == "list":
        return [int(foreign), *_live(step)]
    row = step.row()
    if name == "drop":
        return _drop(step, row)
    if row is None:
        return -1 if foreign else None
    return _STEPS[name](step, row, *more)


def _add(step: _Step, data: bytes, ttl: int, whole: int, most: int) -> Any:
    now, born = step.room.now(), micros(step.room.clock())
    rows = step.wallet.rows
    live = sorted((row.born, id) for id, row in rows.items() if is_live(row, now))
    if live:
        born = max(born, live[-1][0] + 1)
    gone = max(0, len(live) - most + 1)
    step.wallet.rows = {id: rows[id] for _, id in live[gone:]}
    last = now + whole / MICRO
    step.wallet.rows[step.id] = Row(born, born, min(now + ttl / MICRO, last), last, step.hash, data)
    step.save()
    return [born, gone]


def _live(step: _Step) -> list[Any]:
    now = step.room.now()
    rows = step.wallet.rows.items()
    return [[id.encode(), row.born, row.seen, row.data] for id, row in rows if is_live(row, now)]


def _drop(step: _Step, row: Row | None) -> int:
    if row is None or (step.hash not in ("", row.hash) and not step.successor()):
        return 0
    step.drop()
    return 1


def _touch(step: _Step, row: Row, ttl: int, seen: int) -> Any:
    successor = None if step.hash == row.hash else step.successor()
    if step.hash != row.hash and successor is None:
        return None
    step.use(row, ttl, bool(seen))
    reply = [row.born, row.seen, row.data]
    return reply if successor is None else [*reply, successor]


def _replace(step: _Step, row: Row, before: bytes, data: bytes) -> Any:
    if step.hash != row.hash and step.successor() is None:
        return None
    if not row.data.startswith(before):
        return [0, row.born, row.seen, row.data]
    row.data = data
    step.save()
    return [1, row.born, row.seen]


def _rotate(step: _Step, row: Row, new_hash: str, masked: str, grace: int, ttl: int, strict: int) -> Any:
    if step.hash == row.hash:
        if grace:
            till = micros(step.room.now()) + grace
            step.room.set(step.keys[1], f"{till} {till} {masked} {new_hash}".encode(), grace / MICRO)
        row.hash = new_hash
        step.use(row, ttl, True)
        return [b"rotated", row.born, row.seen, row.data]
    left = step.left()
    if left is not None and (not strict or left[1] == row.hash):
        return [b"before", row.born, row.seen, row.data, left[0]]
    if not strict:
        return None
    step.drop()
    return [b"replayed", row.born, row.seen, row.data]


_STEPS: Final[dict[str, Callable[..., Any]]] = {"touch": _touch, "replace": _replace, "rotate": _rotate}
GRANTS: Final = Program("cacheaside.toolkit", "grants", _twin)


def is_live(row: Row, now: float) -> bool:
    return now < row.idle  # which never comes after last


def micros(seconds: float) -> int:
    return round(seconds * MICRO)
