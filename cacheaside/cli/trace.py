"""``cacheaside trace``: the spans of one run of a function, in two files that need no stack to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cacheaside.cli.options import ENVIRONMENT, Json
from cacheaside.cli.output import NO, duration, print_json
from cacheaside.cli.pictures import chrome, waterfall
from cacheaside.cli.recorder import recorded
from cacheaside.cli.target import arguments, imported
from cacheaside.errors import ConfigError


def trace(
    target: Annotated[
        str, typer.Argument(help="A function, such as shop.posts:find.", metavar="MODULE:FUNC")
    ],
    args: Annotated[
        list[str] | None,
        typer.Argument(help="What to call it with, by position or as name=value.", metavar="[ARGS]..."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The files are this with .json and .svg at its end.")
    ] = Path("trace"),
    url: Annotated[
        str | None,
        typer.Option(
            help=f"Of the default cache, unless the module configures it; else {ENVIRONMENT}.", metavar="URL"
        ),
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Of the default cache, likewise.")] = None,
    json: Json = False,
) -> None:
    """Call a function and draw its spans.

    One file is for ui.perfetto.dev and chrome://tracing, the other is an SVG. Spans that the application
    makes itself are in there too. A hit in L1 makes none.

    Exit code: 0; 1 if the function raised, with the files written; 2 if it could not be called.
    """
    fn = imported(target, url, prefix)
    if not callable(fn):
        raise ConfigError(f"{target} is no function")
    by_position, by_name = arguments(fn, args or [])
    spans, failure = recorded(lambda: fn(*by_position, **by_name), target)
    files = [Path(f"{output}.json"), Path(f"{output}.svg")]
    try:
        files[0].write_text(chrome(spans), "utf-8")
        files[1].write_text(waterfall(spans, target), "utf-8")
    except OSError as error:
        raise ConfigError(f"--output: {error}") from error
    if json:
        print_json({"spans": spans, "files": [str(file) for file in files]})
    else:
        took = max(span.end for span in spans) - min(span.start for span in spans)
        typer.echo(f"{len(spans)} spans in {duration(took / 1e9)}: {files[0]}, {files[1]}")
    if failure is not None:
        typer.echo(f"{target} raised {type(failure).__name__}: {failure}", err=True)
        raise typer.Exit(NO)
