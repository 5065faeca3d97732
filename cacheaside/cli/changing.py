"""``cacheaside invalidate`` and ``warm``: what changes a cache."""

from __future__ import annotations

import asyncio
import inspect
import sys
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, cast

import msgspec
import typer

from cacheaside.cache import Cache
from cacheaside.cli.options import ENVIRONMENT, PREFIX, Json, Prefix, Url, Yes, opened
from cacheaside.cli.output import NO, console, count, print_json, progress, sure, table
from cacheaside.cli.target import argument, from_json, imported, parameters_of
from cacheaside.engine.write import Dropped
from cacheaside.errors import ConfigError
from cacheaside.names import key_names, tag_names
from cacheaside.toolkit import Warmer, WarmReport
from cacheaside.toolkit.warm_round import Job

Several = list[str] | None


def invalidate(
    key: Annotated[Several, typer.Option("--key", "-k", help="A key, such as posts:post:42.")] = None,
    tag: Annotated[Several, typer.Option("--tag", "-t", help="A tag: all that was stored under it.")] = None,
    pattern: Annotated[Several, typer.Option(help="All keys of a pattern, such as 'posts:feed:*'.")] = None,
    url: Url = None,
    prefix: Prefix = PREFIX,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Drop keys, all under a tag, or keys that match a pattern.

    Each option may be repeated. Every process's L1 hears of it.

    Exit code: 0 if it was acknowledged; 1 if it was not, or not all of it, or the question was answered with
    no; 2 if it could not be asked for.
    """
    keys, tags, patterns = key_names(key or ()), tag_names(tag or ()), tuple(pattern or ())
    if not (keys or tags or patterns):
        raise ConfigError("what? Give --key, --tag or --pattern")
    with opened(url, prefix) as cache:
        named = [f"{len(n)} {what}{'s' * (len(n) > 1)}" for n, what in
                 ((keys, "key"), (tags, "tag"), (patterns, "pattern")) if n]  # fmt: skip
        sure(f"Invalidate {' and '.join(named)} of {cache!r}?", yes)
        receipt = cache.invalidate(keys=keys, tags=tags)
        dropped = [matching(cache, one) for one in patterns]
    fine = bool(receipt) and all(one.complete for one in dropped)
    if json:
        print_json(
            {
                "acknowledged": fine,
                "keys": keys,
                "tags": tags,
                "patterns": {p: int(n) for p, n in zip(patterns, dropped, strict=True)},
            }
        )
    else:
        told = "acknowledged" if fine else "NOT acknowledged: entries may be served until their ttl"
        for one, n in zip(patterns, dropped, strict=True):
            typer.echo(f"{one}: {count(n)} keys dropped")
        typer.echo(told)
    raise typer.Exit(0 if fine else NO)


def matching(cache: Cache, pattern: str) -> Dropped:
    with progress(f"keys of {pattern} dropped") as tell:
        return cache.delete_matching(pattern, progress=tell)


def warm(
    target: Annotated[
        str,
        typer.Argument(
            help="A decorated function, such as shop.posts:find, or a Warmer.", metavar="MODULE:FUNC"
        ),
    ],
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to call it with: ids, or JSON lists and objects of arguments. - reads lines of them.",
            metavar="[IDS]...",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help=f"Of the default cache, unless the module configures it; else {ENVIRONMENT}.", metavar="URL"
        ),
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Of the default cache, likewise.")] = None,
    json: Json = False,
) -> None:
    """Load what is missing.

    Of a decorated function the calls that are named, of a Warmer all that it was given.

    Exit code: 0; 1 if something failed; 2 if it could not be begun.
    """
    found = imported(target, url, prefix)
    if isinstance(found, Warmer):
        if ids:
            raise ConfigError(f"{target} is a Warmer, and knows what to warm with")
        warmer, job = found, None
    else:
        job = Job(found, [], None, None)
        warmer = Warmer(found.cache)
        warmer.add(found, calls(found, job, lines(ids or [])))
    if warmer.cache.endpoint is None and not json:
        typer.echo("note: this cache is in the memory of this process, and ends with it", err=True)
    report = asyncio.run(warmed(warmer, progress=sys.stdout.isatty() and not json))
    told = report.jobs or (report,)
    if json:
        print_json({"url": repr(warmer.cache), "jobs": [as_json(one) for one in told], "fine": bool(report)})
    else:
        titles = ["function", "warmed", "already warm", "not stored", "failed", "seconds"]
        console().print(table(titles, map(cells, told)))
        for one in told:
            if one.error is not None:
                typer.echo(f"{one.name}: {type(one.error).__name__}: {one.error}", err=True)
    raise typer.Exit(0 if report else NO)


async def warmed(warmer: Warmer, *, progress: bool) -> WarmReport:
    try:
        return await warmer.arun(progress=progress)
    finally:
        await warmer.cache.aclose()


def lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if text == "-":
            yield from filter(None, (line.strip() for line in sys.stdin))
        else:
            yield text


def calls(fn: Any, job: Job, texts: Iterable[str]) -> list[Any]:
    """Calls as ``f.warm`` takes them: ids, tuples or dicts of arguments."""
    annotations = [parameter.annotation for parameter in parameters_of(fn).values()]
    wanted: Any = annotations[0] if annotations else inspect.Parameter.empty
    if job.batch is not None:
        wanted = next(iter(typing.get_args(wanted)), inspect.Parameter.empty)
    made: list[Any] = []
    for text in texts:
        given = from_json(text)
        if type(given) is list:
            made.append(tuple(cast("list[object]", given)))
        else:
            made.append(given if isinstance(given, dict) else argument(text, wanted))
    if not made:
        raise ConfigError("with what? Give ids, or - and a line for each on standard input")
    return made


def as_json(report: WarmReport) -> dict[str, Any]:
    error = None if report.error is None else f"{type(report.error).__name__}: {report.error}"
    told: dict[str, Any] = {
        name: getattr(report, name)
        for name in ("name", "warmed", "already_warm", "not_stored", "failed", "seconds")
    }
    return {**msgspec.to_builtins(told), "error": error}


def cells(report: WarmReport) -> list[str]:
    numbers = (report.warmed, report.already_warm, report.not_stored, report.failed)
    return [report.name, *map(count, numbers), f"{report.seconds:.1f}"]
