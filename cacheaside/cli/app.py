"""All commands in one app, and what becomes of their errors: words on standard error, exit code 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import typer
from typer.core import TyperGroup

from cacheaside.check.command import check
from cacheaside.cli.bench import bench
from cacheaside.cli.changing import invalidate, warm
from cacheaside.cli.doctor import doctor
from cacheaside.cli.looking import explain, get, keys, tag
from cacheaside.cli.stats import stats
from cacheaside.cli.top import top
from cacheaside.cli.trace import trace
from cacheaside.errors import CacheasideError

COMMANDS: Final = (
    top, stats, keys, tag, explain, get, invalidate, warm, check, doctor, trace, bench
)  # fmt: skip
_LOGIN: Final = re.compile(r"(?<=://)\S*@")


def app_of_commands() -> typer.Typer:
    app = typer.Typer(
        name="cacheaside",
        cls=Group,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        # A traceback with the values of variables would show the password of a URL.
        pretty_exceptions_enable=False,
    )
    app.callback()(about)
    for command in COMMANDS:
        app.command()(command)
    return app


def about() -> None:
    """Look into caches, change them, and check them.

    --url or CACHEASIDE_URL says where the cache is.
    """


class Group(TyperGroup):
    """A group of commands whose errors are said in words, without passwords."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with said():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with said():
            return super().invoke(ctx)


@contextmanager
def said() -> Generator[None]:
    """End with exit code 2 and the reason, where the reason is not a fault of the program."""
    try:
        yield
    except CacheasideError as error:
        sys.stderr.write(f"cacheaside: {without_logins(str(error))}\n")
        raise typer.Exit(2) from error
    except Exception as error:
        # A usage error shows what was typed, which may be a URL in the wrong place.
        if isinstance(message := getattr(error, "message", None), str):
            error.message = without_logins(message)  # type: ignore[attr-defined]
        raise


def without_logins(text: str) -> str:
    """The text with no user name and no password in the URLs that it shows."""
    return _LOGIN.sub("***@", text)
