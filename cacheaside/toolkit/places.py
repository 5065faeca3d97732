"""Where brokers work: which connection, which store, which event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cacheaside.connection import connect
from cacheaside.errors import ConfigError
from cacheaside.stores.embedded import EmbeddedStore
from cacheaside.stores.redis import RedisStore

if TYPE_CHECKING:
    from cacheaside.cache import Cache

CLOSE_WITHIN: Final = 5.0
"""Seconds that closing waits for a handler at work."""
FORKED: Final = 0.05
"""Seconds that the thread of a forked child waits, so that whatever else a fork concerns is ready."""


def running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigError(
            "an async handler runs on the event loop it is subscribed from, and none is running here: "
            "`await asubscribe(...)` on it, or give a handler that is not async"
        ) from None


def innermost(store: Any) -> Any:
    """The store within its wrappers."""
    while hasattr(store, "inner"):
        store = store.inner
    return store


def connector(cache: Cache, timeout: float = 0.0) -> Callable[[], Any] | None:
    """Makes clients for threads whose replies may take ``timeout`` seconds; None on the embedded store.

    Raises ConfigError for another store.
    """
    endpoint = cache.endpoint
    if endpoint is not None:
        patient = replace(endpoint, timeout=endpoint.wait + timeout)
        return lambda: connect(patient, lambda _: None)
    store = innermost(cache.store)
    if isinstance(store, EmbeddedStore):
        return None
    if isinstance(store, RedisStore):
        return store.connect
    raise ConfigError(f"a broker needs Redis or the embedded store, not {type(store).__name__}")
