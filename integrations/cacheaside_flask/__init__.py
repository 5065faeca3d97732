"""The cache in a Flask app: configured by it, at hand in its context, and cleared from its command line."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, cast
from weakref import ref

from cacheaside import Cache, CacheasideError, ConfigError, configure
from cacheaside.stores.embedded import EmbeddedStore

try:
    import click
    from flask import Flask
    from flask.cli import AppGroup
    from werkzeug.local import LocalProxy

    from cacheaside_flask import groups as cache_groups
    from cacheaside_flask.console import console
    from cacheaside_flask.limits import limited
    from cacheaside_flask.responses import app_cache, cache_response
    from cacheaside_flask.sessions import StoreSessions
    from cacheaside_flask.signals import AppCache, invalidated, response_hit, response_missed
except ModuleNotFoundError as error:
    raise ImportError("cacheaside_flask needs Flask: pip install 'cacheaside[flask]'") from error

__all__ = [
    "CacheAside",
    "StoreSessions",
    "cache_response",
    "console",
    "current_cache",
    "invalidated",
    "limited",
    "response_hit",
    "response_missed",
]

NAME: Final = "cacheaside"
PREFIX: Final = "CACHEASIDE_"
SETTINGS: Final = frozenset(inspect.signature(Cache).parameters)


class CacheAside:
    """The extension: gives each app a ``Cache`` of its own, made from the app's configuration.

    ``CACHEASIDE_URL``, ``CACHEASIDE_PREFIX``, ``CACHEASIDE_TTL`` and so on are the settings of ``Cache``.
    The cache is ``app.extensions["cacheaside"]``, and ``current_cache`` inside the app's context.

    Args:
        app: as a call of ``init_app``.
        default: make it the cache of ``cacheaside.cached`` and the other module-level decorators too;
            with several apps, of the last one.
        groups: whether answers to requests that change something tell clients the tags that were
            invalidated, in ``Cache-Group-Invalidation``. Such a header from a view is always obeyed.
    """

    def __init__(self, app: Flask | None = None, *, default: bool = False, groups: bool = False) -> None:
        self.default = default
        self.groups = groups
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> Cache:
        """Make the app's cache, which connects when it is first used, and add its commands.

        Raises ConfigError for a wrong setting, and for an app that has a cache already.
        """
        if NAME in app.extensions:
            raise ConfigError(f"the app {app.name!r} has a cache already: call init_app once")
        settings = app.config.get_namespace(PREFIX)
        unknown = sorted(settings.keys() - SETTINGS)
        if unknown:
            raise ConfigError(
                f"{PREFIX}{unknown[0].upper()} is no setting of Cache; those are "
                + ", ".join(PREFIX + name.upper() for name in sorted(SETTINGS))
            )
        cache = app.extensions[NAME] = AppCache(**settings)
        cache.app = ref(app)
        cache_groups.follow(app, tell=self.groups)
        if self.default:
            configure(cache)
        app.cli.add_command(commands)
        return cache


# A proxy is no Cache to a type checker, and is one to everybody else.
current_cache: Cache = cast(Cache, LocalProxy(app_cache))
"""The cache of the app in whose context this is used. ConfigError if that has none; RuntimeError outside."""


# An AppGroup runs its commands in the app's context.
commands: Final = AppGroup(NAME, help="Look into the app's cache, or clear it.")


@commands.command("clear")
@click.argument("ns", required=False)
def clear(ns: str | None) -> None:
    """Drop everything of the namespace NS, or of the whole prefix."""
    with reachable() as cache:
        dropped = cache.clear(ns)
        if not dropped.complete:
            raise click.ClickException(f"Redis stopped answering; dropped until then: {dropped}")
        click.echo(f"dropped: {dropped}")


@commands.command("invalidate")
@click.option("--tag", "tags", multiple=True, help="A tag, such as post:42; may be repeated.")
@click.option("--key", "keys", multiple=True, help="A key, such as posts:post:42; may be repeated.")
def invalidate(tags: tuple[str, ...], keys: tuple[str, ...]) -> None:
    """Drop keys, and everything under tags, in every process."""
    if not tags and not keys:
        raise click.UsageError("nothing to invalidate: give --tag or --key")
    with reachable() as cache:
        if not cache.invalidate(tags=tags, keys=keys).acknowledged:
            raise click.ClickException("Redis has not acknowledged it: other processes may not know")
        click.echo("acknowledged")


@commands.command("explain")
@click.argument("key")
def explain(key: str) -> None:
    """Say where KEY, such as posts:post:42, is held and why a read of it would hit or miss."""
    with reachable() as cache:
        click.echo(cache.explain(key))


@contextmanager
def reachable() -> Generator[Cache]:
    """The app's cache, unless it is in the memory of processes that a command cannot see."""
    try:
        cache = app_cache()
        if isinstance(cache.store, EmbeddedStore):
            raise ConfigError(f"the cache is in each process's own memory: set {PREFIX}URL to share one")
        yield cache
    except CacheasideError as error:
        raise click.ClickException(str(error)) from error
