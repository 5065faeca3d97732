"""``python -m examples.demo``: a social network with and without the cache, and a count of stale reads.

By default it is the app of ``examples/minisocial``, asked over HTTP; with ``--direct`` processes call a small
repository of their own, which is also there with a cache made by hand.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.live import Live

from cacheaside.testing import Server

from .graph import Graph, choose
from .measure import Tally
from .report import Report
from .repository import build
from .workload import MORE_POSTS, Acknowledged, Crew, Phase, Plan, WorkerDied

POSTS_EACH = 5

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FINE, STALE, BROKEN, INTERRUPTED = 0, 1, 2, 130


class Unusable(Exception):
    """Something the demonstration needs is not there; the message says what."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="A social network on SQLite is read and written, without a cache and with one; reads "
        "that returned what an acknowledged write had replaced are counted.",
        epilog="Exit code: 0; 1 if a read was stale, or for another user; 2 if something went wrong; 130 "
        "after Ctrl-C.",
    )
    parser.add_argument(
        "--direct",
        action="store_true",
        help="processes call a repository, instead of an app over HTTP",
    )
    parser.add_argument(
        "--mode",
        choices=("cacheaside", "naive"),
        default="cacheaside",
        help="naive, with --direct: GET, SET and DEL by hand instead of cacheaside, to see that stale reads "
        "are seen",
    )
    parser.add_argument("--graph", type=Path, help="an edge list, 'a b' a line, plain or .gz")
    parser.add_argument("--redis", metavar="URL", help="a Redis or Valkey to use; default: start one")
    parser.add_argument("--seconds", type=above(0.0), default=10.0, help="of each phase (default: 10)")
    parser.add_argument("--workers", type=above(0), help="processes (default: 2, with --direct 4)")
    parser.add_argument("--writes", type=share, default=2.0, help="per cent of the calls (default: 2)")
    parser.add_argument(
        "--load-delay",
        type=above(0.0, or_equal=True),
        default=2.0,
        help="milliseconds added to each load in all phases, for SQLite is nearer than a database server is "
        "(default: 2)",
    )
    options = parser.parse_args(argv)
    if options.mode == "naive" and not options.direct:
        parser.error("--mode naive needs --direct")
    options.workers = options.workers or (4 if options.direct else 2)
    return options


def above(limit: Any, *, or_equal: bool = False) -> Any:
    """A parser of numbers of the type of ``limit`` that are above it."""

    def number(text: str) -> Any:
        value = type(limit)(text)
        if not (value > limit or (or_equal and value == limit)) or value > 1_000_000:
            raise ValueError
        return value

    return number


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise ValueError
    return value


def main(argv: list[str] | None = None) -> int:
    """Run it; the exit code."""
    options = arguments(argv)
    console = Console()
    report: Report | None = None
    for number in ENDS:
        signal.signal(number, interrupted)
    try:
        with ExitStack() as stack:
            graph = choose(options.graph)
            url = stack.enter_context(server(options.redis))
            prefix = f"cacheaside-demo-{secrets.token_hex(4)}"
            stack.enter_context(swept(url, prefix))
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="cacheaside-demo-"))
            database = Path(directory) / "network.db"
            modes = ["uncached", options.mode] if options.direct else ["off", "on"]
            report = Report(modes, options.seconds, *describe(options, graph), http=not options.direct)
            run(options, phases(options, graph, database, url, prefix), report, console)
    except KeyboardInterrupt:
        if report is not None and report.tallies:
            console.print(report.final())
        console.print("Interrupted.")
        return INTERRUPTED
    except (Unusable, WorkerDied, OSError, ValueError) as error:
        print(f"python -m examples.demo: {error}", file=sys.stderr)
        return BROKEN
    console.print(report.final())
    console.print(report.verdict())
    if report.stale or report.wrong:
        return STALE
    return BROKEN if report.failed else FINE


def interrupted(number: int, frame: object) -> None:
    """Clean up and end, whether by Ctrl-C, by `kill` or with the terminal; once, however often it is said."""
    for each in ENDS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def prepare(options: argparse.Namespace, graph: Graph, database: Path, url: str, prefix: str) -> Plan:
    """Build the database; what the workers must know."""
    posts = POSTS_EACH * graph.users
    build(database, graph, posts)
    # Who has many friends is also looked at often.
    return Plan(
        database, url, prefix, graph.by_degree(), posts, options.load_delay / 1000, options.writes / 100
    )


def describe(options: argparse.Namespace, graph: Graph) -> tuple[str, str]:
    """The table's heading and the note below it."""
    heading = (
        f"{graph.users:,} users, {len(graph.edges):,} friendships ({graph.name}); "
        f"{options.workers} processes, {options.writes:g} % writes"
    )
    notes = [] if options.direct else ["Hits are of calls of cached functions; a read makes several."]
    if options.load_delay:
        notes.append(f"Each load takes {options.load_delay:g} ms more than SQLite does.")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        notes.append(
            f"This machine is busy (load average {load:.0f}, {cores} cores): rates and times say little."
        )
    return heading, " ".join(notes)


Phases = AbstractContextManager[Callable[[str, Callable[[Tally], None]], Any]]


def phases(options: argparse.Namespace, graph: Graph, database: Path, url: str, prefix: str) -> Phases:
    """What does a phase, by its mode, and tells its counts meanwhile."""
    if options.direct:
        return direct(options, prepare(options, graph, database, url, prefix))
    return over_http(options, graph, database, url, prefix)


@contextmanager
def direct(options: argparse.Namespace, plan: Plan) -> Iterator[Any]:
    acknowledged = Acknowledged(len(plan.users), plan.posts + MORE_POSTS)
    with Crew(plan, options.workers, acknowledged) as crew:
        crew.ready()
        yield lambda mode, progress: crew.run(Phase(mode, options.seconds), progress)


@contextmanager
def over_http(
    options: argparse.Namespace, graph: Graph, database: Path, url: str, prefix: str
) -> Iterator[Any]:
    from ..minisocial import demo  # which needs FastAPI and SQLAlchemy

    settings = demo.settings_for(f"sqlite:///{database}", url, prefix, options.load_delay / 1000)
    demo.fill(settings, graph)
    share = options.writes / 100

    def phase(mode: Any, progress: Any) -> None:
        chosen = demo.in_mode(settings, mode)
        demo.phase(
            chosen, graph, options.seconds, workers=options.workers, write_share=share, progress=progress
        )

    yield phase


def run(options: argparse.Namespace, phases: Phases, report: Report, console: Console) -> None:
    """Do the phases, showing them live on a terminal, else with a line for each."""
    with phases as do, ExitStack() as stack:
        live: Live | None = None
        if not console.is_terminal:
            console.print(f"{len(report.modes)} phases of {options.seconds:g} s")
        else:
            live = stack.enter_context(
                Live(report.live(), console=console, transient=True, refresh_per_second=8)
            )
        for mode in report.modes:

            def progress(tally: Tally, mode: str = mode) -> None:
                report.tallies[mode] = tally
                if live is not None:
                    live.update(report.live())

            do(mode, progress)
            if live is None:
                console.print(report.line(mode))


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """The URL of a Redis that answers: the given one, or one that runs as long as the block."""
    if url is not None:
        check(url)
        yield url
        return
    try:
        started = Server().start()
    except (ValueError, RuntimeError) as error:
        raise Unusable(f"{error}; or name one: --redis redis://localhost:6379/0") from error
    with started:
        yield started.url


def check(url: str) -> None:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise Unusable(f"the Redis of --redis does not answer: {error}") from error


@contextmanager
def swept(url: str, prefix: str) -> Iterator[None]:
    """Whatever the block leaves in Redis under ``prefix`` is deleted at its end."""
    try:
        yield
    finally:
        with redis.Redis.from_url(url) as client:
            found = list(client.scan_iter(f"*{prefix}*", count=1000))
            for begin in range(0, len(found), 1000):
                client.unlink(*found[begin : begin + 1000])


if __name__ == "__main__":
    sys.exit(main())
