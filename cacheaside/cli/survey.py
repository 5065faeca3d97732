"""What stands in Redis under a prefix, from a look at some of the keys: by namespace, and what else there is.

SCAN goes through a table of hashes, so what it brings first is a fair sample. Of each namespace the first
keys are looked at more closely. Nothing is written, and no value is read beyond its first bytes.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import Struct
from redis.exceptions import RedisError, ResponseError

from cacheaside.cli.options import Servers
from cacheaside.entry import GLANCE, VALUE, Glance, glance

BATCH: Final = 1000
CLOSER: Final = 100
"""Keys of a namespace that are looked at closely, of each server."""
HELPERS: Final = ("}:r", "}:w", "}:app", "}:claim")
TOOLKIT: Final = "global"
"""The namespace of what the toolkit keeps."""
CLASHES: Final = 10

Tell = Callable[[int], None]


class Room(Struct):
    """A namespace in Redis; ``keys`` and ``memory`` (bytes) are estimates unless the survey is complete.

    ``ttl``, ``age`` and ``cost`` are seconds, means of those looked at: until the end of what is stored,
    since it was loaded, what that took.
    """

    ns: str
    keys: int = 0
    memory: float = 0.0
    ttl: float = 0.0
    age: float = 0.0
    cost: float = 0.0


class Survey(Struct):
    """What a prefix holds."""

    at: float
    looked: int = 0
    """Keys of whatever kind that SCAN brought."""
    there: int = 0
    """Keys that the servers hold, of whomever."""
    namespaces: list[Room] = []
    tags: int = 0
    toolkit: int = 0
    """Sessions, locks, limits and the like."""
    helpers: int = 0
    """Lists of tags, refresh locks, large values on their way, and who stores in a namespace."""
    foreign: list[str] = []
    """Keys in the place of values that hold something else: some of them."""
    nested: list[str] = []
    """Prefixes of other caches that begin with this one."""

    @property
    def complete(self) -> bool:
        return self.looked >= self.there


class Closer:
    """What was seen of the keys of one namespace."""

    def __init__(self) -> None:
        self.keys = 0.0
        self.memory: list[float] = []
        self.ttls: list[float] = []
        self.ages: list[float] = []
        self.costs: list[float] = []

    def note(self, seen: Glance, memory: float, ttl: float, now: float) -> None:
        self.memory.append(memory)
        self.ttls.append(ttl)
        if seen.kind == VALUE:
            self.ages.append(max(0.0, now - seen.start))
            self.costs.append(seen.cost)

    def room(self, ns: str) -> Room:
        return Room(
            ns=ns,
            keys=round(self.keys),
            memory=mean(self.memory) * self.keys,
            ttl=mean(self.ttls),
            age=mean(self.ages),
            cost=mean(self.costs),
        )


def survey(there: Servers, sample: int, tell: Tell | None = None) -> Survey:
    """Look at so many keys of each server, or all for 0; ``tell`` hears how many it has been."""
    found = Survey(time.time())
    rooms: dict[str, Closer] = {}
    kept: Counter[str] = Counter()
    for node in there.nodes:
        of_node: dict[str, list[str]] = {}
        others: Counter[str] = Counter()
        looked = 0
        for batch in scanned(node, sample):
            looked += len(batch)
            for key in batch:
                kind, rest = classify(there, key)
                if kind == "value":
                    of_node.setdefault(rest.partition(":")[0], []).append(key)
                elif kind == "nested":
                    if rest not in found.nested and len(found.nested) < CLASHES:
                        found.nested.append(rest)
                else:
                    others[kind] += 1
            if tell is not None:
                tell(found.looked + looked)
        size = int(node.dbsize())
        found.looked += looked
        found.there += max(size, looked)
        scale = max(1.0, size / looked) if looked else 1.0
        for ns, keys in of_node.items():
            ours = look_closer(node, ns, keys[:CLOSER], rooms.setdefault(ns, Closer()), found)
            rooms[ns].keys += len(keys) * scale * ours
            kept["toolkit"] += round(len(keys) * scale * (1 - ours)) if ns == TOOLKIT else 0
        for kind, count in others.items():
            kept[kind] += round(count * scale)
    found.namespaces = sorted(
        (closer.room(ns) for ns, closer in rooms.items() if closer.keys), key=lambda room: -room.keys
    )
    found.tags, found.toolkit, found.helpers = kept["tag"], kept["toolkit"], kept["helper"]
    return found


def scanned(node: Any, sample: int) -> Iterator[list[str]]:
    """Names of keys, a batch at a time: what is no text is nobody's of ours."""
    cursor, looked = 0, 0
    while True:
        cursor, raws = node.scan(cursor, count=min(BATCH, sample) if sample else BATCH)
        yield [raw.decode("utf-8", "backslashreplace") for raw in raws]
        looked += len(raws)
        if not int(cursor) or (sample and looked >= sample):
            return


_TAG: Final = re.compile(r"t\.\d+\}:")
_OTHERS: Final = re.compile(r"(.+):t\.\d+\}:")
_BEAT: Final = re.compile(r"\}:hb:[0-9a-f]{16}$")


def classify(there: Servers, key: str) -> tuple[str, str]:
    """What a key is by its name: value, tag, helper, toolkit, nested (of a cache with a longer prefix), or ""
    for somebody else's; and what there is to say about it.
    """
    head = there.keys.value("")
    if not key.startswith("{"):
        return ("value", key[len(head) :]) if key.startswith(head) else ("", "")
    if not key.startswith(head, 1):
        return "", ""
    rest = key[1 + len(head) :]
    if _TAG.match(rest):
        return ("helper" if rest.endswith(":keys") or _BEAT.search(rest) else "tag"), ""
    if nested := _OTHERS.match(rest):
        return "nested", head + nested[1]
    return ("helper" if rest.endswith(HELPERS) else "toolkit"), ""


def look_closer(node: Any, ns: str, keys: list[str], seen: Closer, found: Survey) -> float:
    """Note how keys of a namespace stand; the share of them that are ours."""
    pipe = node.pipeline(transaction=False)
    for key in keys:
        pipe.execute_command("GETRANGE", key, 0, GLANCE - 1)
        pipe.execute_command("PTTL", key)
        pipe.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0)
    replies = pipe.execute(raise_on_error=False)
    now, ours, gone = time.time(), 0, 0
    for key, opening, left, memory in zip(keys, *(replies[n::3] for n in range(3)), strict=True):
        if isinstance(opening, ResponseError) and not str(opening).startswith("WRONGTYPE"):
            raise opening
        if opening == b"":  # it has ended since it was listed; an empty string would be somebody else's
            gone += 1
            continue
        there = None if isinstance(opening, RedisError) else glance(opening)
        if there is None:
            if ns != TOOLKIT and len(found.foreign) < CLASHES:
                found.foreign.append(key)
            continue
        ours += 1
        used = 0 if isinstance(memory, RedisError) else memory or 0  # it may be forbidden
        seen.note(there, float(used), max(0, left) / 1000, now)
    return ours / (len(keys) - gone) if len(keys) > gone else 0.0


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
