"""What a durable broker does with a stream, as flows; and how a consumer waits for what is new in it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, Protocol

from msgspec import Struct
from redis.exceptions import RedisError

from cacheaside.canonical import shorten
from cacheaside.engine.commands import Flow, Run
from cacheaside.errors import StoreUnavailable
from cacheaside.keys import escape
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.encoding import ms
from cacheaside.stores.program import Program, Twin
from cacheaside.toolkit import local_streams as local

MOST_DEAD: Final = 10_000
"""Dead letters that a group keeps, about."""


def program(name: str, twin: Twin) -> Program:
    return Program("cacheaside.toolkit", f"stream_{name}", twin)


ADD: Final = program("add", local.add)
OPEN: Final = program("open", local.open_)
CLAIM: Final = program("claim", local.claim)
ACK: Final = program("ack", local.ack)
KEEP: Final = program("keep", local.keep)
BURY: Final = program("bury", local.bury)
LEAVE: Final = program("leave", local.leave)
DEAD: Final = program("dead", local.dead)
REVIVE: Final = program("revive", local.revive)
READ: Final = SimpleNamespace(twin=local.read)
"""In this process alone: Redis is asked for new messages by a command that waits."""


class Entry(Struct, frozen=True):
    """A message that was given to a consumer."""

    id: bytes
    tries: int
    raw: bytes
    group: str
    """The only group that it is for, or ""."""


class Claimed(Struct, frozen=True):
    """What came of claiming once; ``more`` says where to go on, "" at the end."""

    more: str
    entries: list[Entry]
    died: int
    lost: int
    behind: bool


class NoGroup(Exception):
    """The group is not there: the server has forgotten it, or never had it."""


class Log:
    """A stream as one group sees it."""

    def __init__(self, keys: RawKeys, stream: str, group: str) -> None:
        self.stream = stream
        self.group = group
        key = shorten(f"stream:{escape(stream)}", len("stream:"))
        self.key = keys.companion(key, "log")
        self.dead_key = keys.companion(key, shorten(f"dead:{escape(group)}"))

    def add(self, raw: bytes, most: int) -> Flow[int]:
        """Append a message; how many were lost to a group for it."""
        _, lost = yield Run(ADD, (self.key,), (most, raw, ""))
        return int(lost)

    def open(self, start: str) -> Flow[bool]:
        """Make the group, if it is not there; whether it was made."""
        return bool((yield Run(OPEN, (self.key,), (self.group, start))))

    def claim(self, consumer: str, idle: float, more: str, count: int, most_tries: int) -> Flow[Claimed]:
        """Take over some of what nobody has acknowledged for so long."""
        args = (self.group, consumer, ms(idle), more or "0-0", count, most_tries, MOST_DEAD)
        next_, found, died, lost, behind = yield Run(CLAIM, (self.key, self.dead_key), args)
        entries = [Entry(id, int(tries), raw, text(only)) for id, tries, raw, only in found]
        return Claimed("" if next_ == b"0-0" else text(next_), entries, died, lost, bool(behind))

    def ack(self, id: bytes) -> Flow[bool]:
        return bool((yield Run(ACK, (self.key,), (self.group, id))))

    def keep(self, consumer: str, idle: float, ids: tuple[bytes, ...], *, untried: bool = False) -> Run:
        """Has messages of this consumer idle for so long; the reply has those that are still its own."""
        return Run(KEEP, (self.key,), (self.group, consumer, int(idle * 1000), int(untried), *ids))

    def bury(self, entry: Entry, why: str, consumer: str) -> Flow[bool]:
        args = (self.group, entry.id, entry.raw, why, entry.tries, consumer, MOST_DEAD)
        return bool((yield Run(BURY, (self.key, self.dead_key), args)))

    def leave(self, consumer: str, silence: float) -> Flow[None]:
        yield Run(LEAVE, (self.key,), (self.group, consumer, ms(silence)))

    def dead(self, after: str, count: int) -> Flow[list[list[Any]]]:
        found: list[list[Any]] = yield Run(DEAD, (self.dead_key,), (after, count))
        return found

    def revive(self, ids: tuple[str, ...], *, again: bool) -> Flow[int]:
        """Take messages out of the dead letters, and publish them again or not; how many there were."""
        return int((yield Run(REVIVE, (self.key, self.dead_key), (self.group, int(again), *ids))))


def text(raw: bytes | str) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw


class Reader(Protocol):
    """Waits for new messages; used by one thread."""

    def read(self, log: Log, consumer: str, count: int, block: float) -> list[Entry]: ...
    def close(self) -> None: ...


class RedisReader:
    """By a client of its own, whose replies may take longer than ``block``."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._client = connect()

    def read(self, log: Log, consumer: str, count: int, block: float) -> list[Entry]:
        call = ("XREADGROUP", "GROUP", log.group, consumer, "COUNT", count, "BLOCK", ms(block))
        try:
            reply: Any = self._client.execute_command(*call, "STREAMS", log.key, ">")
        except (RedisError, OSError) as error:
            if str(error).startswith("NOGROUP"):
                raise NoGroup from error
            raise StoreUnavailable(f"Redis gave no messages: {type(error).__name__}: {error}") from error
        streams: dict[bytes, list[tuple[bytes, dict[bytes, bytes]]]] = dict(reply or ())
        found = [row for rows in streams.values() for row in rows]
        return [Entry(id, 1, row.get(b"m", b""), text(row.get(b"g", b""))) for id, row in found]

    def close(self) -> None:
        self._client.close()


class LocalReader:
    """On the embedded store."""

    def __init__(self, perform: Callable[[Any], Any], store: Any, key: str) -> None:
        self._perform = perform
        self._store = store
        self._key = key
        self._added = threading.Event()
        local.wait_for(store, key, self._added)

    def read(self, log: Log, consumer: str, count: int, block: float) -> list[Entry]:
        self._added.clear()
        found = self._perform(Run(READ, (log.key,), (log.group, consumer, count)))
        if found is None:
            raise NoGroup
        if not found:
            self._added.wait(block)
        return [Entry(*row) for row in found]

    def close(self) -> None:
        local.wait_no_more(self._store, self._key, self._added)
