"""``python -m examples.minisocial.proof``: rising load in three modes, a table and a plot for docs."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cacheaside.testing import Server

from ..demo.graph import choose
from ..demo.report import TITLES, ms
from .demo import fill, in_mode, loaded, served, settings_for
from .load import Acknowledged, Generator, LoadTally, Plan
from .settings import Mode

MODES: Final[tuple[Mode, ...]] = ("off", "l2", "on")
COLOURS: Final = {"off": "#c2410c", "l2": "#7c3aed", "on": "#15803d"}
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Row:
    mode: Mode
    rate: float | None
    tally: LoadTally


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.minisocial.proof")
    parser.add_argument("--rates", type=float, nargs="*", default=[50, 100, 200, 300, 400])
    parser.add_argument("--seconds", type=float, default=6.0, help="at each rate (default: 6)")
    parser.add_argument("--load-delay", type=float, default=2.0, help="milliseconds, as in the demo")
    parser.add_argument("--into", type=Path, help="a page whose figures are replaced, and its plot")
    options = parser.parse_args(argv)
    graph, before = choose(None), os.getloadavg()[0]
    with ExitStack() as stack:
        url = stack.enter_context(Server()).url
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sites: list[Site] = []
        for mode in MODES:  # a database of its own for each, since writes make it grow
            settings = settings_for(
                f"sqlite:///{directory / mode}.db", url, "proof", options.load_delay / 1000
            )
            fill(settings, graph)
            plan, admin = stack.enter_context(served(in_mode(settings, mode), graph, 2, 0.05))
            sites.append(Site(mode, plan, admin))
        rows = [
            site.ask(number, rate, options.seconds)
            for number, rate in enumerate((None, *options.rates, None))
            for site in sites  # in turn, for a machine's other work comes and goes
        ][len(sites) :]
        rows.sort(key=lambda row: MODES.index(row.mode))
    machine = f"{os.cpu_count()} cores, load average {before:.0f} at the start"
    head = f"{graph.users:,} users ({graph.name}); {machine}; {options.seconds:g} s at each rate."
    told = f"{head}\n\n{table(rows)}"
    print(told)
    if options.into is not None:
        page = options.into.read_text("utf-8")
        kept, _, rest = page.partition(BEGIN)
        after = rest.partition(END)[2]
        options.into.write_text(f"{kept}{BEGIN}\n{told}\n{END}{after}", "utf-8")
        options.into.with_suffix(".svg").write_text(plot(rows), "utf-8")
    return 1 if any(row.tally.stale or row.tally.wrong for row in rows) else 0


@dataclass
class Site:
    """The app in one mode, and what it has acknowledged so far."""

    mode: Mode
    plan: Plan
    admin: str
    acknowledged: Acknowledged = field(default_factory=Acknowledged)

    def ask(self, number: int, rate: float | None, seconds: float) -> Row:
        generator = Generator(replace(self.plan, seed=number), acknowledged=self.acknowledged)
        tally = asyncio.run(loaded(generator, self.admin, seconds, rate))
        print(self.mode, rate, f"{tally.reads_per_second:.0f}", tally.first_problem, file=sys.stderr)
        return Row(self.mode, rate, tally)


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| | due, a second | reads answered, a second | p50 | p99 | CPU a request | hits | queries a read | "
        "within the window | stale | wrong user | failed |",
        "| --- " + "| ---: " * 11 + "|",
    ]
    for row in rows:
        it = row.tally
        cells = [
            TITLES[row.mode],
            "all it can" if row.rate is None else f"{row.rate:g}",
            f"{it.reads_per_second:,.0f}",
            ms(it.times.quantile(0.5)),
            ms(it.times.quantile(0.99)),
            ms(it.cpu / max(1, it.reads + it.writes)),
            "-" if row.mode == "off" or it.hit_share is None else f"{it.hit_share:.0%}",
            f"{it.queries_per_read:.2f}",
            f"{it.lagging:,}",
            f"{it.stale:,}",
            f"{it.wrong:,}",
            f"{it.failed:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], width: int = 640, height: int = 320) -> str:
    """The median time of an answer against the rate asked for, on a logarithmic scale of time."""

    left, right, top, bottom = 70, 130, 20, 45
    points = [(row.mode, row.rate, row.tally.times.quantile(0.5)) for row in rows if row.rate is not None]
    most = max((rate for _, rate, _ in points), default=1.0)
    slowest = max((p50 or 0.0 for _, _, p50 in points), default=1.0)
    low, high = 0, max(1, math.ceil(math.log10(max(slowest, 1e-3) * 1000)))  # from 1 ms on
    ends: list[tuple[float, float, Mode]] = []

    def x(rate: float) -> float:
        return left + rate / most * (width - left - right)

    def y(seconds: float) -> float:
        power = min(high, max(low, math.log10(max(seconds, 1e-6) * 1000)))
        return height - bottom - (power - low) / (high - low) * (height - top - bottom)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="Median time of an answer against requests a second">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for power in range(low, high + 1):
        line = y(10**power / 1000)
        label = f"{10**power} ms" if power < 3 else f"{10 ** (power - 3)} s"
        out.append(f'<path d="M{left} {line:.1f}H{width - right}" stroke="#e5e7eb"/>')
        out.append(f'<text x="{left - 8}" y="{line + 4:.1f}" text-anchor="end" fill="#374151">{label}</text>')
    for rate in sorted({rate for _, rate, _ in points}):
        out.append(
            f'<text x="{x(rate):.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#374151">'
            f"{rate:g}</text>"
        )
    out.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle" fill="#374151">'
        "requests a second that were due; median time until answered</text>"
    )
    for mode in MODES:
        dots = [(x(rate), y(p50)) for m, rate, p50 in points if m == mode and p50 is not None]
        if not dots:
            continue
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in dots)
        out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[mode]}" stroke-width="2"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{COLOURS[mode]}"/>' for a, b in dots]
        ends.append((dots[-1][1], dots[-1][0], mode))
    lowest = -math.inf
    for b, a, mode in sorted(ends):  # names of lines that end together stand below each other
        lowest = max(b + 4, lowest + 15)
        out.append(f'<text x="{a + 8:.1f}" y="{lowest:.1f}" fill="{COLOURS[mode]}">{TITLES[mode]}</text>')
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    sys.exit(main())
