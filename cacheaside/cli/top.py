"""``cacheaside top``: the table of ``stats``, again and again."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from cacheaside.cli.keyboard import keyboard
from cacheaside.cli.options import PREFIX, Json, Prefix, Sample, Url
from cacheaside.cli.output import console, print_json
from cacheaside.cli.sources import Frame, Source, source_of
from cacheaside.cli.stats import Header, rows
from cacheaside.errors import ConfigError, StoreUnavailable


def top(
    url: Url = None,
    prefix: Prefix = PREFIX,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2,
    sample: Sample = 10_000,
    header: Header = None,
    json: Json = False,
) -> None:
    """Watch a cache, by namespace.

    What it holds in Redis; or, with the http:// URL of a process's console, what calls are answered with
    there.

    Keys: q ends, s sorts by the next column, p pauses. With --json a line is printed for each look, until the
    command is interrupted.

    Exit code: 0, or 2 if nothing could be asked.
    """
    with source_of(url, prefix, sample, header or ()) as source:
        if json:
            while True:
                print_json(source.look().raw)
                time.sleep(every)
        screen = console()
        if not screen.is_terminal:
            raise ConfigError("top needs a terminal: use `stats`, or --json")
        watch(source, every, screen)


def watch(source: Source, every: float, screen: object) -> None:
    """Show one frame after the other until q is pressed."""
    by, paused = 0, False
    frame = source.look()
    with keyboard() as keys, Live(console=screen, screen=True, auto_refresh=False) as live:  # type: ignore[arg-type]
        due = time.monotonic() + every
        trouble = ""
        while True:
            live.update(picture(frame, by, paused, trouble), refresh=True)
            pressed = keys.key(max(0.0, due - time.monotonic()))
            if pressed == "q":
                return
            if pressed == "s":
                by = (by + 1) % len(frame.columns)
            elif pressed == "p":
                paused = not paused
            if time.monotonic() < due:
                continue
            due = time.monotonic() + every
            if not paused:
                try:
                    frame, trouble = source.look(), ""
                except StoreUnavailable as error:  # it may come back
                    trouble = str(error)


def picture(frame: Frame, by: int, paused: bool, trouble: str) -> Group:
    state = "paused" if paused else f"sorted by {frame.columns[by].name}"
    return Group(
        *(Text(line) for line in frame.heading),
        Text(trouble, style="bold red") if trouble else Text(""),
        rows(frame, by),  # type: ignore[arg-type]
        Text(f"\nq quit   s sort   p pause   -- {state}", style="dim"),
    )
