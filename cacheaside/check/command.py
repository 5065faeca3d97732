"""``cacheaside check``, as the command line has it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cacheaside.check.faults import FAULTS
from cacheaside.check.report import as_json, markdown, verdict, with_table, words
from cacheaside.check.rows import all_rows
from cacheaside.check.run import Result, run
from cacheaside.check.settings import MODES, Settings
from cacheaside.errors import ConfigError

INTERRUPTED = 130
FAULT_HELP = "What goes wrong meanwhile; may be repeated. One of " + ", ".join(FAULTS) + "."
MODE_HELP = (
    f"What is checked: {MODES[0]}, or {', '.join(MODES[1:])}, which are wrong and have to be found out."
)


def check(
    url: Annotated[
        str | None, typer.Argument(help="Where Redis is; without it a server is started.", show_default=False)
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="Which server to start: redis or valkey.", show_default="the first found"),
    ] = None,
    fault: Annotated[list[str], typer.Option(help=FAULT_HELP, show_default="none")] = [],  # noqa: B006
    mode: Annotated[str, typer.Option(help=MODE_HELP)] = "cacheaside",
    seconds: Annotated[float, typer.Option(help="How long to read and write.")] = 10,
    processes: Annotated[int, typer.Option(help="Worker processes.")] = 4,
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = 2,
    tasks: Annotated[int, typer.Option(help="Asyncio tasks of each process.")] = 2,
    keys: Annotated[int, typer.Option(help="Rows of the table.")] = 60,
    writes: Annotated[float, typer.Option(help="Commits a second, of all processes together.")] = 100,
    l1_window: Annotated[
        float, typer.Option(help="Seconds that L1 may lag behind other processes; 0 turns L1 off.")
    ] = 1,
    database: Annotated[
        str | None,
        typer.Option(help="SQLAlchemy URL of the database.", show_default="SQLite in a temporary file"),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Fail if a call takes longer than this, its own loads not counted.", show_default="none"
        ),
    ] = None,
    failover: Annotated[
        str | None,
        typer.Option(
            help="The cache's setting: strict, replay, auto or trust.", show_default="the cache's default"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what the workers and the faults choose.")] = 1,
    everything: Annotated[
        bool, typer.Option("--all", help="Try every fault on every server here; print a Markdown table.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="Put the table of --all into this Markdown file.", show_default="none"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, one line for each check.")] = False,
) -> None:
    """Look for stale answers, while things go wrong.

    Processes read and write a versioned table through the cache, and every answer is held against what had
    been acknowledged when its call began.

    Exit code: 0 if all is well; 1 if an answer was stale, a call raised or took too long, or something was
    left open; 2 if the check could not run or has shown nothing; 130 after Ctrl-C.
    """
    settings = Settings(
        url=url, server=server, faults=tuple(fault), mode=mode, seconds=seconds, processes=processes,
        threads=threads, tasks=tasks, keys=keys, writes=writes, l1_window=l1_window, database=database,
        deadline=deadline, failover=failover, seed=seed,
    )  # fmt: skip
    page = "" if into is None else read_page(into, everything)
    console = Console()
    results: list[Result] = []
    wanted = list(all_rows(settings)) if everything else [settings]
    with suppress(KeyboardInterrupt):
        for each in wanted:
            results.append(watched(each))
            if json:
                console.out(as_json(results[-1]), highlight=False)
            elif not everything:
                console.print(words(results[-1]))
    complete = len(results) == len(wanted)
    if everything and into is not None and complete:
        into.write_text(with_table(page, markdown(results)), "utf-8")
    elif everything and not json:
        console.out(markdown(results), highlight=False)
    codes = {result.code for result in results}
    raise typer.Exit(INTERRUPTED if not complete else 1 if 1 in codes else max(codes))


def read_page(into: Path, everything: bool) -> str:
    """The page that a table is to go into, looked at before an hour is spent on it."""
    if not everything:
        raise ConfigError("--into takes the table that --all makes: give --all as well")
    try:
        page = into.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"--into must be a file that can be read: {error}") from error
    with_table(page, "")
    return page


def watched(settings: Settings) -> Result:
    """Run a check under a progress bar, on standard error."""
    what = ", ".join(settings.faults) or "no fault"
    columns: Any = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} s"))
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(what, total=settings.seconds)
        result = run(settings, progress=lambda done: bar.update(task, completed=done))
    if not screen.is_terminal:
        screen.print(f"{result.server}, {what}: {verdict(result)}", highlight=False, soft_wrap=True)
    return result
