"""The three ways to count hits for a rate limit: a script each, and its twin for the embedded store.

Each program has one key, and as arguments 1 to count the hit or 0 to look, its cost, and each limit with
its window in microseconds. It returns whether the hit is let in, then for each limit what is left, the
microseconds until all of it is, and those to wait for a hit of this cost. A hit is counted under all
limits or, if one refuses it, under none.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from cacheaside.stores.program import Program, Room

SLACK: Final = 1e-9
"""What the rounding of floats may cost, in hits; as in the scripts."""


def micro(room: Room) -> int:
    return int(room.now() * 1_000_000)


def pairs(args: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Each limit and its window."""
    return zip(args[2::2], args[3::2], strict=True)


def log(room: Room, keys: tuple[str, ...], args: tuple[int, ...]) -> list[int]:
    """Twin of limit_log.lua; the log is a list of times, in order."""
    (key,) = keys
    counting, cost = args[:2]
    times: list[int] = room.get(key) or []
    now = micro(room)
    rows: list[tuple[int, int, int]] = []
    allowed = True
    for limit, window in pairs(args):
        used = len(times) - bisect_right(times, now - window)
        wait = 0
        if used + cost > limit:
            wait = times[cost - limit - 1] + window - now
            allowed = False
        rows.append((limit - used, times[-1] + window - now if used else 0, wait))
    if allowed and counting:
        longest = max(window for _, window in pairs(args))
        del times[: bisect_right(times, now - longest)]
        at = bisect_right(times, now)  # at the end, unless the clock was set back
        times[at:at] = [now] * cost
        room.set(key, times, longest / 1e6)
        rows = [(left - cost, window, 0) for (left, _, _), (_, window) in zip(rows, pairs(args), strict=True)]
    return answer(allowed, rows)


def counter(room: Room, keys: tuple[str, ...], args: tuple[int, ...]) -> list[int]:
    """Twin of limit_counter.lua; by window: when the current one began, its count, the count before."""
    (key,) = keys
    counting, cost = args[:2]
    counted: dict[int, tuple[int, int, int]] = room.get(key) or {}
    fresh: dict[int, tuple[int, int, int]] = {}
    now = micro(room)
    rows: list[tuple[int, int, int]] = []
    allowed = True
    for limit, window in pairs(args):
        start, current, before = now - now % window, 0, 0
        began, count, previous = counted.get(window, (-1, 0, 0))
        if began >= start:
            start, current, before = began, count, previous
        elif began == start - window:
            before = count
        elapsed = max(0, now - start)
        used = before * (window - elapsed) / window + current
        wait = 0
        if used + cost > limit + SLACK:
            allowed = False
            if current + cost <= limit:
                wait = math.ceil(window * (1 - (limit - cost - current) / before) - elapsed)
            else:
                wait = window - elapsed + math.ceil(window * (1 - (limit - cost) / current))
        left = math.floor(limit - used + SLACK)
        reset = 2 * window - elapsed if current else window - elapsed if before else 0
        if counting and allowed:
            left, reset = left - cost, 2 * window - elapsed
            fresh[window] = start, current + cost, before
        rows.append((left, reset, wait))
    if allowed and counting:
        room.set(key, fresh, max(fresh) * 2 / 1e6)
    return answer(allowed, rows)


def gcra(room: Room, keys: tuple[str, ...], args: tuple[int, ...]) -> list[int]:
    """Twin of limit_gcra.lua; when it was filled last, and by limit and window how full it was."""
    (key,) = keys
    counting, cost = args[:2]
    kept: tuple[int, dict[tuple[int, int], float]] = room.get(key) or (0, {})
    at, levels = kept
    now = max(micro(room), at)
    rows: list[tuple[int, int, int]] = []
    filled: dict[tuple[int, int], float] = {}
    allowed = True
    for limit, window in pairs(args):
        level = max(0.0, levels.get((limit, window), 0.0) - (now - at) * limit / window)
        wait = 0
        if level + cost > limit + SLACK:
            wait = math.ceil((level + cost - limit) * window / limit)
            allowed = False
        if counting and allowed:
            level += cost
        filled[limit, window] = level
        rows.append((math.floor(limit - level + SLACK), math.ceil(level * window / limit), wait))
    if allowed and counting:
        room.set(key, (now, filled), max(window for _, window in filled) / 1e6)
    return answer(allowed, rows)


def answer(allowed: bool, rows: list[tuple[int, int, int]]) -> list[int]:
    return [int(allowed), *(number for row in rows for number in row)]


PROGRAMS: Final = {
    "sliding-log": Program("cacheaside.toolkit", "limit_log", log),
    "sliding-counter": Program("cacheaside.toolkit", "limit_counter", counter),
    "gcra": Program("cacheaside.toolkit", "limit_gcra", gcra),
}
