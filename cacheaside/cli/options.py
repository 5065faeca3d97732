"""The options that several commands have, and the cache or the servers that they name."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from redis.exceptions import RedisError

from cacheaside.cache import BUCKETS, EMBEDDED, Cache
from cacheaside.connection import connect
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.link import endpoint_within
from cacheaside.rawkeys import RawKeys
from cacheaside.redaction import in_words
from cacheaside.urls import Endpoint, parse_url

ENVIRONMENT: Final = "CACHEASIDE_URL"
PATIENCE: Final = 5.0
"""Seconds that a command waits for an answer where the URL says nothing else: people are more patient than
calls."""

Url = Annotated[
    str | None,
    typer.Option(help="Where Redis is.", envvar=ENVIRONMENT, show_default=False, metavar="URL"),
]
Prefix = Annotated[str, typer.Option(help="What comes before every key of the cache.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
Limit = Annotated[int, typer.Option(min=1, help="Show so many at most.")]
Sample = Annotated[int, typer.Option(min=0, help="Look at so many keys of each server at most; 0 is all.")]

PREFIX: Final = "cacheaside"


def endpoint_of(url: str | None) -> Endpoint:
    """Where Redis is. Raises ConfigError where no other process could be reached."""
    if not url:
        raise ConfigError(f"which cache? Give --url, or set {ENVIRONMENT}")
    if url == EMBEDDED:
        raise ConfigError(
            "an embedded cache is in the memory of its process: the command line sees Redis only"
        )
    return endpoint_within(parse_url(url), PATIENCE)


@contextmanager
def opened(url: str | None, prefix: str, **settings: Any) -> Generator[Cache]:
    """The cache at a URL, as a process without L1 has it; what goes wrong is said once, by the command."""
    endpoint_of(url)
    log = logging.getLogger("cacheaside")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        settings = {"l1_window": None, "reclaim_every": None, "timeout": PATIENCE} | settings
        with Cache(url, prefix=prefix, **settings) as cache:
            yield cache
    finally:
        log.setLevel(level)


@contextmanager
def servers(url: str | None, prefix: str) -> Generator[Servers]:
    """Plain clients of the servers at a URL: the primaries, where there are several. Raises StoreUnavailable
    for what they raise."""
    endpoint = endpoint_of(url)
    client: Any = None
    try:
        client = connect(endpoint, lambda facts: None)
        nodes = [client]
        if endpoint.cluster:
            nodes = [client.get_redis_connection(node) for node in client.get_primaries()]
        yield Servers(endpoint, RawKeys(prefix, BUCKETS if endpoint.cluster else 1), client, nodes)
    except RedisError as error:
        raise StoreUnavailable(
            f"{endpoint.safe} could not be asked: {in_words(error, endpoint.secrets)}"
        ) from None
    finally:
        if client is not None:
            client.close()


class Servers:
    """The servers of a cache, and the names that it gives to keys.

    ``client`` finds the server of a key; ``nodes`` are clients of one server each.
    """

    def __init__(self, endpoint: Endpoint, keys: RawKeys, client: Any, nodes: list[Any]) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self.client = client
        self.nodes = nodes
