"""``cacheaside``: the commands, each of which lives in the package that it is about."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cacheaside.errors import CacheasideError

if TYPE_CHECKING:
    import typer

EXTRA = "the command line needs typer and rich: pip install 'cacheaside[cli]'"


def make_app() -> typer.Typer:
    """The command line. Raises ModuleNotFoundError without the extra ``cli``."""
    import typer

    from cacheaside.check.command import check

    app = typer.Typer(
        name="cacheaside", no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.callback()(about)
    app.command()(check)
    return app


def about() -> None:
    """Look into caches, and check them."""


def main() -> None:
    """What the command ``cacheaside`` runs. Exit code 2: it could not do what it was asked to."""
    try:
        make_app()(prog_name="cacheaside")
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        fail(EXTRA)
    except CacheasideError as error:
        fail(str(error))


def fail(why: str) -> None:
    sys.stderr.write(f"cacheaside: {why}\n")
    sys.exit(2)
