"""``cacheaside``: the command line. Commands are modules of this package, or of the one they are about."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import typer

NEEDED: Final = ("typer", "rich")
EXTRA: Final = "the command line needs typer and rich: pip install 'cacheaside[cli]'"


def make_app() -> typer.Typer:
    """The command line. Raises ModuleNotFoundError without the extra ``cli``."""
    for needed in NEEDED:
        importlib.import_module(needed)
    from cacheaside.cli.app import app_of_commands

    return app_of_commands()


def main() -> None:
    """What the command ``cacheaside`` runs. Exit code 2: it could not do what it was asked to."""
    try:
        app = make_app()
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        sys.stderr.write(f"cacheaside: {EXTRA}\n")
        sys.exit(2)
    app(prog_name="cacheaside")
