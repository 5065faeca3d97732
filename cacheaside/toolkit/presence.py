"""``Presence``: who is online, by connections that end by themselves unless they are kept alive.

Two keys tell of a user, and in a cluster no step reaches both. The user's own connections decide. The
index of all who are online follows with a second command, whose order does not matter: what a user's key
answers carries the times by which the index sees which of two came later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from msgspec import Struct

from cacheaside.canonical import escape, shorten
from cacheaside.engine.commands import Flow, Run
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.policy import Seconds, seconds
from cacheaside.stats import Counts
from cacheaside.stores.program import Program, Room

if TYPE_CHECKING:
    from cacheaside.cache import Cache

T = TypeVar("T")
Id = str | int | UUID

USER: Final = "global:online:"
INDEX: Final = "global:websocket:connections"
MOST_CONNECTIONS: Final = 1000
"""Of one user; beyond that the one that would end first is dropped."""
LONGEST_ID: Final = 512


class Page(Struct, frozen=True):
    """Some of those online, and where the next page begins: None when this was the last."""

    users: list[str]
    """Their ids, as text."""
    cursor: str | None
    """For ``who``, to go on from here; None on the last page."""


class Presence:
    """Who is online.

    Args:
        cache: where it is kept.
        ttl: seconds that a connection counts for after it was last heard of. Send heartbeats three times
            as often.

    Ids are compared as text: 42 and "42" are one user. Every method raises StoreUnavailable when Redis
    does not answer: that somebody is offline cannot be known then.
    """

    def __init__(self, cache: Cache, ttl: Seconds = 60) -> None:
        self.ttl = seconds("ttl", ttl)
        self.cache = cache
        self._lasts = round(self.ttl * 1e6)
        self._index = cache.world.keys.value(INDEX)

    def __repr__(self) -> str:
        return f"<Presence ttl={self.ttl:g}>"

    def online(self, user_id: Id, connection_id: Id = "-") -> bool:
        """A connection has begun, or is still there; True if the user had no other."""
        return self._run(self._online(user_id, connection_id), "online")

    async def aonline(self, user_id: Id, connection_id: Id = "-") -> bool:
        return await self._arun(self._online(user_id, connection_id), "online")

    def heartbeat(self, user_id: Id, connection_id: Id = "-") -> bool:
        """A connection is still there. False if it had ended: it is not revived, call ``online`` for that."""
        return self._run(self._heartbeat(user_id, connection_id), "heartbeat")

    async def aheartbeat(self, user_id: Id, connection_id: Id = "-") -> bool:
        return await self._arun(self._heartbeat(user_id, connection_id), "heartbeat")

    def offline(self, user_id: Id, connection_id: Id | None = None) -> bool:
        """A connection has ended, or all of the user's; True if the user is offline by that."""
        return self._run(self._offline(user_id, connection_id), "offline")

    async def aoffline(self, user_id: Id, connection_id: Id | None = None) -> bool:
        return await self._arun(self._offline(user_id, connection_id), "offline")

    def is_online(self, user_id: Id) -> bool:
        """Whether the user has any connection."""
        return self._run(self._count(self._key(user_id)), "is_online") > 0

    async def ais_online(self, user_id: Id) -> bool:
        return await self._arun(self._count(self._key(user_id)), "is_online") > 0

    def connections(self, user_id: Id) -> list[str]:
        """The user's connections, the first to end first."""
        return self._run(self._connections(self._key(user_id)), "connections")

    async def aconnections(self, user_id: Id) -> list[str]:
        return await self._arun(self._connections(self._key(user_id)), "connections")

    def count(self) -> int:
        """How many users are online."""
        return self._run(self._count(self._index), "count")

    async def acount(self) -> int:
        return await self._arun(self._count(self._index), "count")

    def who(self, cursor: str | None = None, count: int = 100) -> Page:
        """About ``count`` of those online, in no order; pass ``page.cursor`` on for more.

        Who is online from the first page to the last is on one of them, perhaps on two.
        """
        return self._run(self._who(cursor, count), "who")

    async def awho(self, cursor: str | None = None, count: int = 100) -> Page:
        return await self._arun(self._who(cursor, count), "who")

    # -- the flows

    def _run(self, flow: Flow[T], name: str) -> T:
        return self.cache.run(self._counted(flow), f"presence.{name}")

    async def _arun(self, flow: Flow[T], name: str) -> T:
        return await self.cache.arun(self._counted(flow), f"presence.{name}")

    def _counted(self, flow: Flow[T]) -> Flow[T]:
        try:
            return (yield from flow)
        except StoreUnavailable:
            self.cache.counts.setdefault("global", Counts()).unavailable += 1
            raise

    def _online(self, user_id: Id, connection_id: Id) -> Flow[bool]:
        return (yield from self._alive(user_id, connection_id, 0))[1]

    def _heartbeat(self, user_id: Id, connection_id: Id) -> Flow[bool]:
        return (yield from self._alive(user_id, connection_id, 1))[0]

    def _alive(self, user_id: Id, connection_id: Id, known: int) -> Flow[tuple[bool, bool]]:
        args = (text("connection_id", connection_id), self._lasts, known, MOST_CONNECTIONS)
        taken, first, ends = yield Run(ONLINE, (self._key(user_id),), args)
        if taken:
            yield self._indexing(user_id, ends, "")
        return bool(taken), bool(first)

    def _offline(self, user_id: Id, connection_id: Id | None) -> Flow[bool]:
        which = "" if connection_id is None else text("connection_id", connection_id)
        there, last, lowest = yield Run(OFFLINE, (self._key(user_id),), (which, self._lasts))
        # Even if there was none: an earlier call may not have got this far.
        yield self._indexing(user_id, last, lowest)
        return bool(there) and not last

    def _indexing(self, user_id: Id, ends: int, lowest: int | str) -> Run:
        keep = 2 * self._lasts // 1000 + 1
        return Run(INDEXING, (self._index,), (text("user_id", user_id), ends, lowest, keep))

    def _count(self, key: str) -> Flow[int]:
        number: int = yield Run(COUNT, (key,))
        return number

    def _connections(self, key: str) -> Flow[list[str]]:
        found: list[bytes] = yield Run(LIST, (key,))
        return [one.decode("utf-8", "replace") for one in found]

    def _who(self, cursor: str | None, count: int) -> Flow[Page]:
        begin: Any = "0" if cursor is None else cursor
        if not isinstance(begin, str) or not re.fullmatch("[0-9a-f]+", begin):
            raise ConfigError(f"cursor must be that of a page before, or None, not {cursor!r}")
        if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= 10_000:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"count must be a whole number from 1 to 10000, not {count!r}")
        after, users = yield Run(PAGE, (self._index,), (begin, count))
        return Page(
            [user.decode("utf-8", "replace") for user in users], None if after == b"0" else after.decode()
        )

    def _key(self, user_id: Id) -> str:
        key = shorten(USER + escape(text("user_id", user_id)), len(USER))
        return self.cache.world.keys.value(key)


def text(name: str, value: Any) -> str:
    """An id as text; ConfigError for what is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, UUID)) or value == "":
        raise ConfigError(f"{name} must be a str, an int or a UUID, not {value!r}")
    written = str(value)
    if len(written) > LONGEST_ID:
        raise ConfigError(f"{name} is longer than {LONGEST_ID} characters")
    return written


# -- the twins; a user's connections are a dictionary by when they end, and so is the index


def micro(room: Room) -> int:
    return int(room.now() * 1_000_000)


def living(room: Room, key: str) -> dict[str, int]:
    """What has not ended, in a dictionary of its own."""
    now = micro(room)
    there: dict[str, int] = room.get(key) or {}
    return {name: ends for name, ends in there.items() if ends > now}


def keep(room: Room, key: str, kept: dict[str, int], ttl: float) -> None:
    if kept:
        room.set(key, kept, ttl)
    else:
        room.delete(key)


def online(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> list[int]:
    """Twin of presence_online.lua."""
    connection, lasts, known, most = args
    there = living(room, keys[0])
    if known and connection not in there:
        return [0, 0, 0]
    first = not there
    there[connection] = ends = micro(room) + lasts
    while len(there) > most:
        del there[min(there, key=lambda one: there[one])]
    keep(room, keys[0], there, lasts / 1e6)
    return [1, int(first), ends]


def offline(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> list[int]:
    """Twin of presence_offline.lua."""
    connection, lasts = args
    there = living(room, keys[0])
    before = len(there)
    if connection:
        there.pop(connection, None)
    else:
        there.clear()
    keep(room, keys[0], there, lasts / 1e6)
    return [int(len(there) < before), max(there.values(), default=0), micro(room) + lasts]


def indexing(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> int:
    """Twin of presence_index.lua."""
    user, ends, lowest, ms = args
    there = living(room, keys[0])
    if lowest == "":
        there[user] = max(ends, there.get(user, 0))
    elif user in there and there[user] <= lowest:
        if ends:
            there[user] = ends
        else:
            del there[user]
    keep(room, keys[0], there, max(room.left(keys[0]) or 0.0, ms / 1000))
    return 1


def count(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> int:
    """Twin of presence_count.lua."""
    return len(living(room, keys[0]))


def listed(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> list[bytes]:
    """Twin of presence_list.lua."""
    there = living(room, keys[0])
    return [name.encode() for name in sorted(there, key=lambda one: (there[one], one))]


def page(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> list[Any]:
    """Twin of presence_page.lua; the cursor is the last name."""
    cursor, most = args
    after = b"" if cursor == "0" else bytes.fromhex(cursor)
    left = sorted(name for name in map(str.encode, living(room, keys[0])) if name > after)
    users = left[:most]
    return [users[-1].hex().encode() if len(left) > most else b"0", users]


def program(name: str, twin: Callable[..., Any]) -> Program:
    return Program("cacheaside.toolkit", f"presence_{name}", twin)


ONLINE: Final = program("online", online)
OFFLINE: Final = program("offline", offline)
INDEXING: Final = program("index", indexing)
COUNT: Final = program("count", count)
LIST: Final = program("list", listed)
PAGE: Final = program("page", page)
