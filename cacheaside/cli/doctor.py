"""``cacheaside doctor``: what is wrong with the place where the cache is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import typer
from rich.markup import escape

from cacheaside.cli.findings import EXAMINATIONS, Finding, examined
from cacheaside.cli.options import PREFIX, Json, Prefix, Url, endpoint_of, opened, servers
from cacheaside.cli.output import Tell, console, print_json, progress
from cacheaside.cli.probes import Level
from cacheaside.errors import ConfigError, StoreUnavailable

CODES: Final[dict[Level, int]] = {"ok": 0, "note": 0, "warning": 1, "error": 2}
STYLES: Final[dict[Level, str]] = {
    "ok": "green", "note": "cyan", "warning": "bold yellow", "error": "bold red"
}  # fmt: skip


def doctor(url: Url = None, prefix: Prefix = PREFIX, json: Json = False) -> None:
    """Look for what is wrong with the servers of a cache.

    The URL, version and role, memory, persistence, replicas, what the user may do, clocks, the channel of L1,
    and whose keys there are. It writes a few keys under the prefix, and drops them.

    Exit code: that of the worst finding: 0 for notes, 1 for a warning, 2 for an error.
    """
    endpoint_of(url)
    with progress("examinations", len(EXAMINATIONS)) as tell:
        found = list(findings(url, prefix, tell))
    if json:
        print_json(found)
    else:
        screen = console()
        after = [one.remedy for one in found[1:]] + [""]
        for one, next_remedy in zip(found, after, strict=True):
            screen.print(
                f"[{STYLES[one.level]}]{one.level:>7}[/]  [bold]{one.about}[/] {escape(one.what)}",
                highlight=False,
            )
            if one.remedy and one.remedy != next_remedy:
                screen.print(f"         → {escape(one.remedy)}", highlight=False)
    raise typer.Exit(max(CODES[one.level] for one in found))


def findings(url: str | None, prefix: str, tell: Tell) -> Iterator[Finding]:
    try:
        with servers(url, prefix) as there, opened(url, prefix, l1_window=1) as cache:
            yield from examined(there, cache, tell)
    except StoreUnavailable as error:
        refused = "Authentication" in str(error)
        yield Finding(
            "error", "url", str(error),
            "check the user name and the password in the URL" if refused else
            "see whether the server runs, and whether a firewall or TLS stands in between",
        )  # fmt: skip
    except (
        ConfigError
    ) as error:  # told by the first connection: too old, or of another kind than the URL says
        old = "needs Redis" in str(error)
        yield Finding("error", "server", str(error), "use a newer server" if old else "correct the URL")
