"""A result in words for a terminal, as JSON, and as a row of a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cacheaside.check.run import Result
from cacheaside.check.settings import Settings
from cacheaside.errors import ConfigError

HEADINGS: Final = (
    "`cacheaside check ...`",
    "Server",
    "Seconds",
    "Answers",
    "from L1",
    "from L2",
    "Invalidations",
    "Strikes",
    "**Stale**",
    "L1 behind, at most",
    "**L1 beyond the window**",
    "Lost in a failover",
    "Loads a generation",
    "p99.9",
    "Errors",
    "Leaks",
)


def verdict(result: Result) -> str:
    """The result in one line."""
    found = result.findings
    if result.code == 2:
        return f"nothing shown: {result.nothing}"
    if result.code == 0 and found.excused:
        return f"fine: a server was believed that had lost something in a failover, {found.excused:,} times"
    if result.code == 0:
        return "fine: nothing that was acknowledged was served in an older version"
    wrong = {
        "stale answers": found.stale,
        "answers from L1 beyond its window": found.beyond,
        "calls that raised": found.failed,
        "calls over the deadline": found.late,
        "things left open": len(found.leaks),
    }
    return "FAILED: " + ", ".join(f"{count:,} {what}" for what, count in wrong.items() if count)


def words(result: Result) -> RenderableType:
    """The result for a terminal."""
    found, settings = result.findings, result.settings
    heading = (
        f"{result.server}, {settings.seconds:g} s, {settings.processes} processes of {settings.threads} "
        f"threads and {settings.tasks} tasks, {settings.keys} rows"
    )
    if settings.mode != "cacheaside":
        heading += f", the protocol {settings.mode}"
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in lines(result):
        table.add_row(*row)
    parts: list[RenderableType] = [heading, "", table]
    if found.trace:
        steps = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for step in found.trace:
            steps.add_row(f"{step.at:.4f} s", step.who, Text(step.what))
        parts += ["", "The shortest way to a wrong answer:", steps]
    return Group(*parts, "", Text(verdict(result), style="bold " + ("green" if result.code == 0 else "red")))


def lines(result: Result) -> Iterator[tuple[str, str, str]]:
    """What was counted: of what, how much, and a word about it."""
    found, settings, times = result.findings, result.settings, result.findings.times
    each, most = found.loads_per_generation, found.most_loads
    yield "answers", f"{found.gets:,}", ", ".join(f"{n:,} {tier}" for tier, n in sorted(found.tiers.items()))
    yield "commits", f"{found.commits:,}", ""
    yield "invalidations", f"{found.acknowledged:,}", f"{found.unacknowledged:,} more were not acknowledged"
    yield "loads", f"{found.loads:,}", f"{each:.2f} a generation, {most} at most"
    yield "stale", f"{found.stale:,}", f"the oldest by {time(found.oldest)}" if found.stale else ""
    yield "L1 behind", f"{found.behind:,}", f"by {time(found.oldest_behind)} at most" if found.behind else ""
    yield "L1 beyond its window", f"{found.beyond:,}", f"of {settings.l1_window:g} s"
    if found.excused:
        allowed = f"allowed by failover={settings.failover or 'auto'}"
        yield (
            "lost in a failover",
            f"{found.excused:,}",
            f"by {time(found.oldest_excused)} at most; {allowed}",
        )
    shares = (
        f"p50 {time(times.p50)}, p99 {time(times.p99)}, p99.9 {time(times.p999)}, most {time(times.most)}"
    )
    yield "call time", "", shares
    if settings.deadline is not None:
        yield "over the deadline", f"{found.late:,}", f"of {time(settings.deadline)}"
    yield "calls that raised", f"{found.failed:,}", "; ".join(found.errors)
    yield "left open", f"{len(found.leaks)}", "; ".join(found.leaks)
    for name in settings.faults:
        yield f"fault {name}", f"{found.strikes.get(name, 0):,}", "strikes"


def time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def as_json(result: Result) -> str:
    """The result as one line of JSON."""
    settings = result.settings
    endpoint = settings.endpoint
    hidden = replace(  # both may carry a password
        settings,
        url=None if endpoint is None else endpoint.safe,
        database=None if settings.database is None else "...",
    )
    content: dict[str, Any] = msgspec.to_builtins(replace(result, settings=hidden))
    return msgspec.json.encode({"code": result.code, "verdict": verdict(result), **content}).decode()


def markdown(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    rows = [HEADINGS, ["---"] * 3 + ["---:"] * (len(HEADINGS) - 3), *map(cells, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_table(page: str, table: str) -> str:
    """The page with this table in the place of the one it has. Raises ConfigError if it has none."""
    begin = page.find(f"| {HEADINGS[0]} |")
    if begin < 0:
        raise ConfigError(
            f"the page has no table that begins with {HEADINGS[0]} to put another one in its place"
        )
    end = begin
    while page.startswith("|", end):
        end = page.find("\n", end) + 1 or len(page)
    return page[:begin] + table + "\n" + page[end:]


def cells(result: Result) -> list[str]:
    found = result.findings
    return [
        f"`{options(result.settings)}`",
        result.server,
        f"{result.settings.seconds:g}",
        f"{found.gets:,}",
        f"{found.tiers.get('l1', 0):,}",
        f"{found.tiers.get('l2', 0) + found.tiers.get('mixed', 0):,}",
        f"{found.acknowledged:,}",
        f"{sum(found.strikes.values()):,}",
        f"**{found.stale:,}**",
        time(found.oldest_behind) if found.behind else "0",
        f"**{found.beyond:,}**",
        f"{found.excused:,}, {time(found.oldest_excused)} at most" if found.excused else "0",
        f"{found.loads_per_generation:.2f}",
        time(found.times.p999),
        f"{found.failed:,}",
        f"{len(found.leaks):,}",
    ]


def options(settings: Settings) -> str:
    """The part of the command that makes this row what it is."""
    failover = [f"--failover {settings.failover}"] if settings.failover else []
    return " ".join(
        [f"--server {settings.server}", *(f"--fault {name}" for name in settings.faults), *failover]
    )
