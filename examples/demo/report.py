"""What is shown: a table with a column for each phase, live while they run and once more at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .measure import Tally

TITLES: Final = {
    "uncached": "no cache",
    "naive": "GET / SET / DEL",
    "cacheaside": "cacheaside",
    "off": "no cache",
    "l2": "Redis only (L2)",
    "on": "cacheaside",
}


class Report:
    """The phases in their order and what was counted in each."""

    def __init__(
        self, modes: list[str], seconds: float, heading: str, note: str = "", *, http: bool = False
    ) -> None:
        self.modes = modes
        self.seconds = seconds
        self.heading = heading
        self.note = note
        self.rows = [*ROWS, *HTTP_ROWS] if http else ROWS
        self.tallies: dict[str, Tally] = {}

    @property
    def stale(self) -> int:
        return sum(tally.stale for tally in self.tallies.values())

    @property
    def wrong(self) -> int:
        return sum(tally.wrong for tally in self.tallies.values())

    @property
    def failed(self) -> int:
        return sum(tally.failed for tally in self.tallies.values())

    @property
    def reads(self) -> int:
        return sum(tally.reads for tally in self.tallies.values())

    def line(self, mode: str) -> str:
        """One phase in one line, for output that is not a terminal."""
        tally = self.tallies[mode]
        return (
            f"{TITLES[mode]}: {tally.reads_per_second:,.0f} reads/s, "
            f"p50 {ms(tally.times.quantile(0.5))}, p99 {ms(tally.times.quantile(0.99))}, "
            f"stale reads {tally.stale:,}"
        )

    def verdict(self) -> Text:
        """The last line."""
        if self.stale:
            return Text(f"STALE: {self.stale:,} of {self.reads:,} reads returned old data", "bold red")
        if self.wrong:
            return Text(f"WRONG: {self.wrong:,} answers were for another user", "bold red")
        if self.failed:
            return Text(f"{self.failed:,} requests failed", "bold red")
        return Text(f"Stale reads: 0 of {self.reads:,}", "bold green")

    def final(self) -> RenderableType:
        """The table with its heading and note."""
        return Group(Text(self.heading, "bold"), self.table(), Text(self.note, "dim"))

    def live(self) -> RenderableType:
        """The same, with how far the phases have come below it."""
        done = sum(min(self.seconds, tally.elapsed) for tally in self.tallies.values())
        bar = ProgressBar(self.seconds * len(self.modes), done, width=40)
        current = TITLES[[mode for mode in self.modes if mode in self.tallies][-1]] if self.tallies else ""
        how_far = Table.grid(padding=(0, 2))
        how_far.add_row(bar, Text(f"{current}   {done:.0f} of {self.seconds * len(self.modes):.0f} s", "dim"))
        return Group(self.final(), how_far)

    def table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", min_width=26, style="dim")
        for mode in self.modes:
            table.add_column(TITLES[mode], justify="right", min_width=16)
        for label, cell in self.rows:
            style = "bold" if cell is speed else None
            table.add_row(label, *(self._cell(mode, cell) for mode in self.modes), style=style)
        table.add_section()
        table.add_row(Text("stale reads", "bold"), *(self._stale(mode) for mode in self.modes))
        return table

    def _cell(self, mode: str, cell: Callable[[Tally, Tally], str]) -> str:
        tally = self.tallies.get(mode)
        return "" if tally is None else cell(tally, self.tallies[self.modes[0]])

    def _stale(self, mode: str) -> Text:
        tally = self.tallies.get(mode)
        if tally is None:
            return Text("")
        return Text(f"{tally.stale:,}", "bold red" if tally.stale else "bold green")


def ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.2f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def speed(tally: Tally, uncached: Tally) -> str:
    """Reads per second, and how many times those without a cache."""
    if tally is uncached or not uncached.reads:
        return f"{tally.reads_per_second:,.0f}"
    return f"{tally.reads_per_second:,.0f} ({tally.reads_per_second / uncached.reads_per_second:.1f}x)"


def of_reads(count: Callable[[Tally], int]) -> Callable[[Tally, Tally], str]:
    """A count of values, and its share of all that were asked for: a request may ask for many."""

    def cell(tally: Tally, uncached: Tally) -> str:
        if tally.hit_share is None:
            return "-"
        return f"{count(tally):,} ({count(tally) / tally.asked:.1%})"

    return cell


def saved(tally: Tally, uncached: Tally) -> str:
    if tally.hit_share is None or not uncached.queries:
        return "-"
    more = max(0.0, tally.queries_saved(uncached))
    return f"{more:,.0f} ({more / (more + tally.queries or 1):.1%})"


ROWS: Final[list[tuple[str, Any]]] = [
    ("reads", lambda tally, _: f"{tally.reads:,}"),
    ("reads a second", speed),
    ("time of a read, median", lambda tally, _: ms(tally.times.quantile(0.5))),
    ("time of a read, p99", lambda tally, _: ms(tally.times.quantile(0.99))),
    ("posts, edits, friendships", lambda tally, _: f"{tally.writes:,}"),
    ("hits in memory (L1)", of_reads(lambda tally: tally.hits_l1)),
    ("hits in Redis (L2)", of_reads(lambda tally: tally.hits_l2)),
    ("loaded from the database", of_reads(lambda tally: tally.loads)),
    ("database queries", lambda tally, _: f"{tally.queries:,}"),
    ("database queries saved", saved),
]

HTTP_ROWS: Final[list[tuple[str, Any]]] = [
    ("answers less than a second behind", lambda tally, _: f"{tally.lagging:,}"),
    ("answers for another user", lambda tally, _: f"{tally.wrong:,}"),
    ("failed requests", lambda tally, _: f"{tally.failed:,}"),
]
