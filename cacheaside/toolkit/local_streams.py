"""Streams with consumer groups in this process: the twins of the scripts ``stream_*.lua``.

They live beside the rows of an embedded store, under its lock, so that nothing evicts them.
"""

from __future__ import annotations

import threading
from typing import Any, Final
from weakref import WeakKeyDictionary

from msgspec import Struct

from cacheaside.stores.program import Room

Args = tuple[Any, ...]
Keys = tuple[str, ...]


class Pending(Struct):
    """A message that was given to a consumer and is not acknowledged."""

    consumer: str
    since: float
    tries: int


class Group(Struct):
    """What a group has been given: all messages up to the one numbered ``read``."""

    read: int
    pending: dict[bytes, Pending] = {}


class Stream(Struct):
    """Messages by id, in order, each with the group that it is for ("" for all)."""

    entries: dict[bytes, tuple[Any, ...]] = {}
    added: int = 0
    groups: dict[str, Group] = {}
    waiting: set[threading.Event] = set()

    def append(self, *entry: Any) -> bytes:
        self.added += 1
        id = b"%d-0" % self.added
        self.entries[id] = entry
        for event in tuple(self.waiting):
            event.set()
        return id

    def trim(self, most: int) -> int:
        """Take the oldest away; how many."""
        trimmed = max(0, len(self.entries) - most)
        for id in list(self.entries)[:trimmed]:
            del self.entries[id]
        return trimmed

    @property
    def gone(self) -> int:
        """The number of the last message that is not there any more."""
        return self.added - len(self.entries)


_streams: Final[WeakKeyDictionary[Any, dict[str, Stream]]] = WeakKeyDictionary()


def at(room: Any, key: str) -> Stream:
    streams = _streams.setdefault(room, {})
    stream = streams.get(key)
    if stream is None:
        stream = streams[key] = Stream()
    return stream


def add(room: Room, keys: Keys, args: Args) -> list[Any]:
    stream, (most, message, only) = at(room, keys[0]), args
    id = stream.append(message, only)
    trimmed = stream.trim(most)
    behind = (min(trimmed, stream.gone - group.read) for group in stream.groups.values())
    return [id, max(0, 0, *behind)]


def open_(room: Room, keys: Keys, args: Args) -> int:
    stream, (group, start) = at(room, keys[0]), args
    if group in stream.groups:
        return 0
    stream.groups[group] = Group(stream.added if start == "$" else 0)
    return 1


def read(room: Room, keys: Keys, args: Args) -> list[list[Any]] | None:
    """Messages that the group has not been given; None when there is no such group."""
    stream, (name, consumer, count) = at(room, keys[0]), args
    group = stream.groups.get(name)
    if group is None:
        return None
    after = max(0, group.read - stream.gone)
    found = list(stream.entries.items())[after : after + count]
    if found:
        group.read = max(group.read, stream.gone) + len(found)
    for id, _ in found:
        group.pending[id] = Pending(consumer, room.now(), 1)
    return [[id, 1, message, only] for id, (message, only) in found]


def claim(room: Room, keys: Keys, args: Args) -> list[Any]:
    name, consumer, idle, _, count, most_tries, most_dead = args
    stream, dead = at(room, keys[0]), at(room, keys[1])
    group = stream.groups[name]
    behind = int(group.read < stream.gone)
    taken: list[list[Any]] = []
    died = lost = 0
    for id, pending in list(group.pending.items()):
        if (room.now() - pending.since) * 1000 < idle or len(taken) >= count:
            continue
        entry = stream.entries.get(id)
        if entry is None:
            del group.pending[id]
            lost += 1
        elif pending.tries >= most_tries:
            del group.pending[id]
            dead.append(entry[0], b"its consumer died", b"%d" % pending.tries, b"")
            dead.trim(most_dead)
            died += 1
        else:
            group.pending[id] = Pending(consumer, room.now(), pending.tries + 1)
            taken.append([id, pending.tries + 1, *entry])
    return [b"0-0", taken, died, lost, behind]


def ack(room: Room, keys: Keys, args: Args) -> int:
    group = at(room, keys[0]).groups.get(args[0])
    return 0 if group is None or group.pending.pop(args[1], None) is None else 1


def keep(room: Room, keys: Keys, args: Args) -> list[bytes]:
    name, consumer, idle, back, *ids = args
    group = at(room, keys[0]).groups.get(name)
    mine: list[bytes] = []
    for id in ids:
        pending = group.pending.get(id) if group is not None else None
        if pending is not None and pending.consumer == consumer:
            pending.since = room.now() - idle / 1000
            pending.tries = max(0, pending.tries - back)
            mine.append(id)
    return mine


def bury(room: Room, keys: Keys, args: Args) -> int:
    name, id, message, error, tries, consumer, most = args
    if not ack(room, keys, (name, id)):
        return 0
    dead = at(room, keys[1])
    dead.append(message, error.encode(), b"%d" % tries, consumer.encode())
    dead.trim(most)
    return 1


def leave(room: Room, keys: Keys, args: Args) -> int:
    """A group in this process does not list its consumers."""
    return 0


def dead(room: Room, keys: Keys, args: Args) -> list[list[Any]]:
    after, count = args
    letters = at(room, keys[0]).entries
    first = int(after.partition("-")[0] or 0)
    return [[id, *entry] for id, entry in letters.items() if int(id.partition(b"-")[0]) > first][:count]


def revive(room: Room, keys: Keys, args: Args) -> int:
    name, again, *ids = args
    stream, letters = at(room, keys[0]), at(room, keys[1])
    revived = 0
    for id in ids:
        entry = letters.entries.pop(id.encode(), None)
        if entry is not None:
            revived += 1
            if again:
                stream.append(entry[0], name)
    return revived


def wait_for(room: Any, key: str, event: threading.Event) -> None:
    """Have ``event`` set when a message is added."""
    at(room, key).waiting.add(event)


def wait_no_more(room: Any, key: str, event: threading.Event) -> None:
    at(room, key).waiting.discard(event)
