"""Blocks around a database transaction: invalidations that wait for it, holds that protect it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Self

from cacheaside.errors import ConfigError

if TYPE_CHECKING:
    from cacheaside.cache import Cache
    from cacheaside.engine.write import Receipt


class Transaction:
    """Collects the invalidations of a block; sends them when it succeeds, drops them when it raises.

    Inside, nothing is stored: what a load sees there may be uncommitted, or a snapshot from before. Calls
    are answered from the cache until the block has invalidated something, then by the functions themselves.
    A transaction inside another one of the same cache hands its invalidations to the outer one.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.outer: Transaction | None = None
        self.receipt: Receipt | None = None
        self._keys: dict[str, None] = {}
        self._tags: dict[str, None] = {}
        self._token: Token[Transaction | None] | None = None
        self.barrier = False
        self._lock = threading.Lock()
        self.dirty = False
        """Whether something was invalidated: what is cached is then older than what the block sees."""
        self._over = False

    @property
    def over(self) -> bool:
        """Tasks started in the block may outlive it: what they invalidate then goes out at once."""
        return self._over

    def add(self, keys: tuple[str, ...], tags: tuple[str, ...], *, barrier: bool = False) -> None:
        with self._lock:
            if not self._over:
                if not self.dirty and self.cache.near is not None:
                    self.cache.near.bypass(True)
                self.dirty = True
                self.barrier = self.barrier or barrier
                self._keys.update(dict.fromkeys(keys))
                self._tags.update(dict.fromkeys(tags))
                return
        # Another thread has ended the block since it was asked for: too late to wait for its end.
        self.cache.invalidate(keys=keys, tags=tags, barrier=barrier)

    def __enter__(self) -> Self:
        if self._token is not None or self._over:
            raise ConfigError("a transaction is for one block: call cache.transaction() for each")
        self.outer = collecting.get()
        self._token = collecting.set(self)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        keys, tags = self._leave(kind)
        if keys or tags:
            self.receipt = self.cache.invalidate(keys=keys, tags=tags, barrier=self.barrier)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        keys, tags = self._leave(kind)
        if keys or tags:
            self.receipt = await self.cache.ainvalidate(keys=keys, tags=tags, barrier=self.barrier)

    def _leave(self, kind: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
        with self._lock:
            self._over = True
        if self.dirty and self.cache.near is not None:
            self.cache.near.bypass(False)
        if self._token is not None:
            with suppress(ValueError):  # ended in another context than begun: nothing to put back there
                collecting.reset(self._token)
            self._token = None
        return ((), ()) if kind is not None else (tuple(self._keys), tuple(self._tags))


recording: ContextVar[list[str] | None] = ContextVar("cacheaside_recording", default=None)
"""Where the tags that are invalidated here are noted, if anybody asks."""

collecting: ContextVar[Transaction | None] = ContextVar("cacheaside_transaction", default=None)


class Mutating:
    """Holds keys and tags while a block runs and invalidates them at its end, error or not.

    The hold has a name of its own, so that neither a put nor an invalidation nor the end of another block
    takes it away.
    """

    def __init__(self, cache: Cache, keys: tuple[str, ...], tags: tuple[str, ...], hold: float) -> None:
        self._cache = cache
        self._what: dict[str, Any] = {"keys": keys, "tags": tags}
        self._name = cache.world.nonce()
        self._hold = hold
        self.receipt: Receipt | None = None

    def __enter__(self) -> Self:
        try:
            self._cache.invalidate_now(**self._what, hold=(self._name, self._hold))
        except (KeyboardInterrupt, SystemExit):  # nobody else would end the hold
            self._cache.invalidate_now(**self._what, release=self._name)
            raise
        return self

    def _again_later(self) -> None:
        """Also invalidate when the transaction around has succeeded, if there is one."""
        transaction = self._cache.collecting()
        if transaction is not None:
            transaction.add(**self._what)

    def __exit__(self, *error: object) -> None:
        self._again_later()
        self.receipt = self._cache.invalidate_now(**self._what, release=self._name)

    async def __aenter__(self) -> Self:
        try:
            await self._cache.ainvalidate_now(**self._what, hold=(self._name, self._hold))
        except asyncio.CancelledError:  # nobody else would end the hold
            await self._cache.ainvalidate_now(**self._what, release=self._name)
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self._again_later()
        self.receipt = await self._cache.ainvalidate_now(**self._what, release=self._name)
