"""``cacheaside stats``: what a cache holds, or what a process has done with it, once."""

from __future__ import annotations

from typing import Annotated

import typer

from cacheaside.cli.options import PREFIX, Json, Prefix, Sample, Url
from cacheaside.cli.output import console, print_json, progress, table
from cacheaside.cli.sources import Frame, source_of

Header = Annotated[
    list[str] | None,
    typer.Option("--header", help="Sent to a console, as in 'Cookie: a=b'; may be repeated.", metavar="TEXT"),
]


def stats(
    url: Url = None,
    prefix: Prefix = PREFIX,
    sample: Sample = 100_000,
    header: Header = None,
    json: Json = False,
) -> None:
    """Show what a cache holds, by namespace.

    What it holds in Redis; or, with the http:// URL of a process's console, what calls were answered with
    there.

    Exit code: 0, or 2 if nothing could be asked.
    """
    with (
        source_of(url, prefix, sample, header or ()) as source,
        progress("keys looked at") as tell,
    ):
        frame = source.look(tell)
    if json:
        print_json(frame.raw)
        return
    screen = console()
    for line in frame.heading:
        screen.print(line, markup=False, highlight=False)
    screen.print()
    screen.print(rows(frame, 0))


def rows(frame: Frame, by: int) -> object:
    """The table of a frame, sorted by a column."""
    titles = ["namespace", *(column.name for column in frame.columns)]
    return table(
        titles,
        (
            [ns, *(column.show(n) for column, n in zip(frame.columns, numbers, strict=True))]
            for ns, numbers in frame.sorted(by)
        ),
    )
