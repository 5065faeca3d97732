"""What commands print: tables, JSON, progress on standard error, and a question before something is lost."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

FINE: Final = 0
NO: Final = 1
"""The answer is no: nothing there, not acknowledged, something is wrong."""
CANNOT: Final = 2

Tell = Callable[[int], None]


def console() -> Console:
    """Where results go. Made anew: tests and shells change what standard output is."""
    return Console(soft_wrap=False)


def print_json(what: Any) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps(msgspec.to_builtins(what), default=str) + "\n")


def say(text: str) -> None:
    """Something for people, on standard error."""
    sys.stderr.write(f"{text}\n")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[int] = (0,)) -> Table:
    """A table of numbers, but for the columns that hold words."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for n, title in enumerate(titles):
        made.add_column(title, justify="left" if n in words else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


@contextmanager
def progress(what: str, total: float | None = None) -> Generator[Tell]:
    """A bar on standard error while something takes its time; what is yielded is told how far it is."""
    columns: Any = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def sure(question: str, yes: bool) -> None:
    """Ask before something is lost. Ends with exit code 2 where nobody can answer, 1 for a no."""
    if yes:
        return
    if not somebody():
        say(f"cacheaside: {question} Nobody is here to ask: say --yes")
        raise typer.Exit(CANNOT)
    if not typer.confirm(question, err=True):
        raise typer.Exit(NO)


def somebody() -> bool:
    """Whether people are at hand."""
    return sys.stdin.isatty()


def count(value: float) -> str:
    return f"{round(value):,}"


def size(value: float) -> str:
    """Bytes, as people say them."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds, as people say them."""
    if seconds == 0:
        return "0"
    for unit, part in (("ns", 1e-6), ("µs", 1e-3), ("ms", 1.0)):
        if seconds < part:
            return f"{seconds / part * 1000:.3g} {unit}"
    for unit, length in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < length:
            return f"{seconds:.3g} {unit}"
        seconds /= length if unit != "h" else 24
    return f"{seconds:,.0f} days"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def rate(value: float) -> str:
    """So many a second."""
    if not value or not math.isfinite(value):
        return "0"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
