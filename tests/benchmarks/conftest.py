"""Side by side: contestants take turns in short rounds, and the median of the rounds' ratios counts.

What disturbs a machine for a moment disturbs both sides of a round, and half of the rounds may be
spoilt before a median is.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable
from itertools import repeat
from statistics import median
from typing import Any

import pytest

TURN = 0.01
"""Seconds that a contestant's turn lasts at least."""
ROUNDS = 31

rows: list[tuple[str, ...]] = []


class Times(dict[str, list[float]]):
    """Seconds for one call, by contestant and round."""

    def ratio(self, one: str, other: str) -> float:
        return median(a / b for a, b in zip(self[one], self[other], strict=True))


class Race:
    """Measures and keeps the rows of the table.

    Args of a call:
        title: what is measured.
        calls: by contestant a Python expression, timed in a loop without a function call around it;
            one that begins with ``await`` runs in an event loop. The first one is what the others are
            compared with.
        names: what the expressions refer to.
        each: how many calls an expression stands for.
    """

    async def __call__(
        self, title: str, calls: dict[str, str], names: dict[str, Any], *, each: int = 1
    ) -> Times:
        turns = {name: turn(expression, names) for name, expression in calls.items()}
        counts = {name: await enough(one) for name, one in turns.items()}
        times = Times({name: [] for name in calls})
        gc.collect()
        gc.disable()
        try:
            for _ in range(ROUNDS):
                for name, one in turns.items():
                    times[name].append(await elapsed(one, counts[name]) / counts[name] / each)
        finally:
            gc.enable()
        first = next(iter(calls))
        for name in calls:
            note(title, name, f"{median(times[name]) * 1e6:.2f} us", f"{times.ratio(name, first):.2f}x")
            title = ""
        return times


def turn(expression: str, names: dict[str, Any]) -> Callable[[int], Any]:
    """A function that evaluates the expression so many times and returns the seconds."""
    scope = {**names, "repeat": repeat, "clock": time.perf_counter}
    define = "async def" if expression.startswith("await ") else "def"
    body = ["begin = clock()", f"for _ in repeat(None, n): {expression}", "return clock() - begin"]
    exec("\n ".join([f"{define} turn(n):", *body]), scope)
    return scope["turn"]


async def elapsed(one: Callable[[int], Any], count: int) -> float:
    seconds = one(count)
    return await seconds if inspect.isawaitable(seconds) else seconds


async def enough(one: Callable[[int], Any]) -> int:
    """How many calls fill a turn; they warm everything up as well."""
    count = 1
    while await elapsed(one, count) < TURN:
        count *= 2
    return count


def note(*cells: str) -> None:
    rows.append(cells)


@pytest.fixture
def race() -> Race:
    return Race()


@pytest.fixture
def table() -> Callable[..., None]:
    """Add a row: what, who, how much, and compared with the first."""
    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not rows:
        return
    terminalreporter.section("side by side")
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for what, who, much, ratio in rows:
        terminalreporter.write_line(
            f"{what:{widths[0]}}  {who:{widths[1]}}  {much:>{widths[2]}}  {ratio:>{widths[3]}}"
        )
