"""Where the numbers of ``stats`` and ``top`` come from: what stands in Redis, or one process's own counters.

Counters of calls are in the memory of the processes that make them; nothing is published anywhere. A process
that mounts the console answers for itself over HTTP.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final, Protocol
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from msgspec import Struct

from cacheaside.cli.options import PATIENCE, Servers, servers
from cacheaside.cli.output import Tell, count, duration, rate, share, size
from cacheaside.cli.servers import Health, health
from cacheaside.cli.survey import Room, Survey, survey
from cacheaside.errors import ConfigError, StoreUnavailable

MOST: Final = 16 * 2**20
NO_CONSOLE: Final = "does not answer as a console of cacheaside does"
ANSWERS: Final = ("hits_l1", "hits_l2", "stale", "misses", "alone", "coalesced", "bypassed")
"""The counters that together are all calls."""


class Column(Struct, frozen=True):
    """A number of each row, and how people read it."""

    name: str
    show: Callable[[float], str]


class Frame(Struct):
    """What is shown at one moment: a heading, and a row of numbers for each namespace."""

    heading: list[str]
    columns: tuple[Column, ...]
    rows: dict[str, list[float]]
    raw: Any = None
    """All that is known, for programs."""

    def sorted(self, by: int) -> list[tuple[str, list[float]]]:
        """The rows, those with most in a column first."""
        return sorted(self.rows.items(), key=lambda row: (-row[1][by], row[0]))


class Source(Protocol):
    def look(self, tell: Tell | None = None) -> Frame:
        """What there is now; rates are since the last look."""
        ...


@contextmanager
def source_of(url: str | None, prefix: str, sample: int, headers: Iterable[str] = ()) -> Generator[Source]:
    """A console for an HTTP URL, and Redis for what else there is."""
    if url is not None and urlsplit(url).scheme in ("http", "https"):
        yield Process(url, headers)
        return
    if tuple(headers):
        raise ConfigError("--header is for the URL of a console, and Redis takes none")
    with servers(url, prefix) as there:
        yield Keys(there, sample)


# -- Redis


def shown_duration(value: float) -> str:
    return duration(value) if value else "-"


OF_KEYS: Final = (
    Column("keys", count),
    Column("share", lambda value: share(value, 1)),
    Column("memory", size),
    Column("each", size),
    Column("ends in", shown_duration),
    Column("age", shown_duration),
    Column("load", shown_duration),
)


class InRedis(Struct):
    """What there is to know of a cache from Redis."""

    url: str
    prefix: str
    survey: Survey
    health: Health
    rates: dict[str, float] = {}


class Keys:
    """The keys of a cache in Redis, by namespace, from a sample; and how its servers are."""

    def __init__(self, there: Servers, sample: int) -> None:
        self._there = there
        self._sample = sample
        self._before: InRedis | None = None

    def look(self, tell: Tell | None = None) -> Frame:
        seen = InRedis(
            self._there.endpoint.safe,
            self._there.keys.prefix,
            survey(self._there, self._sample, tell),
            health(self._there),
        )
        before, self._before = self._before, seen
        if before is not None and (passed := seen.survey.at - before.survey.at) > 0:
            for name in ("hits", "misses", "evicted", "expired"):
                change = getattr(seen.health, name) - getattr(before.health, name)
                seen.rates[name] = max(0, change) / passed
        keys = sum(room.keys for room in seen.survey.namespaces)
        rows = {room.ns: row_of(room, keys) for room in seen.survey.namespaces}
        return Frame(heading_of(seen), OF_KEYS, rows, seen)


def row_of(room: Room, all_keys: int) -> list[float]:
    each = room.memory / room.keys if room.keys else 0.0
    part = room.keys / all_keys if all_keys else 0.0
    return [room.keys, part, room.memory, each, room.ttl, room.age, room.cost]


def heading_of(seen: InRedis) -> list[str]:
    found, how = seen.survey, seen.health
    limit = f" of {size(how.maxmemory)} ({how.policy})" if how.maxmemory else ""
    extent = f"{count(found.there)} keys, all looked at"
    if not found.complete:
        extent = f"{count(found.looked)} of {count(found.there)} keys looked at: what follows are estimates"
    rates = seen.rates
    asked = rates.get("hits", 0) + rates.get("misses", 0)
    lines = [
        f"{how.version} at {seen.url}, prefix {seen.prefix}"
        + (f", {how.servers} servers" if how.servers > 1 else ""),
        extent,
        f"memory {size(how.used_memory)}{limit}, clients {how.clients}, processes with L1 {how.listeners}, "
        f"commands {rate(how.ops_per_second)}/s"
        + (f", keys found {share(rates['hits'], asked)}" if asked else "")
        + (f", evicted {rate(rates['evicted'])}/s" if rates.get("evicted") else ""),
        f"tags {count(found.tags)}, of the toolkit {count(found.toolkit)}, helpers {count(found.helpers)}",
    ]
    if not found.namespaces:
        lines.append("nothing is cached under this prefix: is --prefix that of the cache?")
    if found.foreign:
        lines.append(f"not written by cacheaside: {', '.join(found.foreign[:3])}; see `cacheaside doctor`")
    return lines


# -- a process


OF_CALLS: Final = (
    Column("calls/s", rate),
    Column("calls", count),
    Column("L1", lambda value: share(value, 1)),
    Column("L2", lambda value: share(value, 1)),
    Column("stale", lambda value: share(value, 1)),
    Column("loaded", lambda value: share(value, 1)),
    Column("load", shown_duration),
    Column("saved/s", shown_duration),
    Column("errors", count),
    Column("refused", count),
)


class Stay(HTTPRedirectHandler):
    """Follows nobody elsewhere: what is sent may be a password."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Process:
    """The counters of one process, asked over HTTP: its console.

    Args:
        url: where the console is mounted, with or without ``/stats``; a user name and a password in it are
            sent as the basic scheme has it.
        headers: ``Name: value``, such as a cookie that the guard wants.
    """

    def __init__(self, url: str, headers: Iterable[str] = ()) -> None:
        parts = urlsplit(url)
        login, at, place = parts.netloc.rpartition("@")
        path = parts.path.rstrip("/")
        path = path if path.endswith("/stats") else f"{path}/stats"
        self.safe = urlunsplit((parts.scheme, place, path, "", ""))
        self._request = Request(urlunsplit((parts.scheme, place, path, parts.query, "")))  # noqa: S310
        if at:
            self._request.add_header("Authorization", f"Basic {b64encode(unquote(login).encode()).decode()}")
        for header in headers:
            name, colon, value = header.partition(":")
            if not colon or not name.strip():
                raise ConfigError('--header must be "Name: value"')
            self._request.add_header(name.strip(), value.strip())
        self._open = build_opener(Stay).open
        self._before: dict[str, Any] | None = None

    def look(self, tell: Tell | None = None) -> Frame:
        seen = self._ask()
        before, self._before = self._before, seen
        try:
            rows = {
                ns: calls_of(counts, *since(before, seen, ns)) for ns, counts in seen["namespaces"].items()
            }
            return Frame(self._heading(seen), OF_CALLS, rows, seen)
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreUnavailable(f"{self.safe} {NO_CONSOLE}") from error

    def _ask(self) -> dict[str, Any]:
        try:
            with self._open(self._request, timeout=PATIENCE) as answer:
                seen: dict[str, Any] = json.loads(answer.read(MOST))
        except HTTPError as error:
            error.close()
            raise StoreUnavailable(
                f"{self.safe} answered {error.code}: does its guard let you in?"
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"{self.safe} did not answer: {error}") from error
        except ValueError as error:
            raise StoreUnavailable(f"{self.safe} {NO_CONSOLE}") from error
        return seen

    def _heading(self, seen: dict[str, Any]) -> list[str]:
        near = seen["l1"]
        state = "coherent" if near["coherent"] else "not to be believed now"
        l1 = f"L1 {count(near['entries'])} entries, {size(near['bytes'])}, {state}"
        l1 += f", {count(near['evictions'])} evicted"
        return [
            f"{seen['cache']} in the process that answers {self.safe}",
            l1 if near["on"] else "L1 is off",
            f"loads under way {seen['flights']}, invalidations {count(seen['invalidations'])}, "
            f"unacknowledged {count(seen['unacknowledged'])}",
            stored(seen.get("store") or {}),
            *(f"bad data in {what}: {count(n)}" for what, n in seen["bad_data"].items()),
        ]


def stored(store: dict[str, Any]) -> str:
    away = f"away for {duration(store['away'])}" if store.get("away") else "there"
    return f"Redis is {away}, invalidations that it has not confirmed {count(store.get('owed', 0))}"


def since(before: dict[str, Any] | None, now: dict[str, Any], ns: str) -> tuple[dict[str, float], float]:
    """The counters of a namespace at the last look, and the seconds since; zeros after a restart."""
    if before is None:
        return {}, 0.0
    then, here = before["namespaces"].get(ns, {}), now["namespaces"][ns]
    passed = max(0.0, float(now["at"]) - float(before["at"]))
    return ({}, passed) if any(here.get(name, 0) < n for name, n in then.items()) else (then, passed)


def calls_of(counts: dict[str, float], before: dict[str, float], passed: float) -> list[float]:
    """A row: what happened since the last look, or from the beginning if nothing did or there was none."""
    change = {name: n - before.get(name, 0) for name, n in counts.items()}
    calls = sum(change[name] for name in ANSWERS)
    total = sum(counts[name] for name in ANSWERS)
    part, whole = (change, calls) if calls else (counts, total)
    seconds, loads = part["load_seconds"], part["loads"]
    average = counts["load_seconds"] / counts["loads"] if counts["loads"] else 0.0
    saved = change["saved_seconds"] + change["hits_l1"] * average
    loaded = whole - part["hits_l1"] - part["hits_l2"] - part["stale"]
    shares = [n / whole if whole else 0.0 for n in (part["hits_l1"], part["hits_l2"], part["stale"], loaded)]
    return [
        calls / passed if passed else 0.0,
        total,
        *shares,
        seconds / loads if loads else 0.0,
        saved / passed if passed else 0.0,
        counts["errors"],
        counts["refused"],
    ]
