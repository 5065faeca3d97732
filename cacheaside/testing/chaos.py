"""Trouble on demand: stores that fail, linger and forget; for the network, see ``ChaosProxy``.

A wrapper is a store itself: ``Cache(store=FailingStore(EmbeddedStore(2**20, time.time), 0.1))``, or
``cache.store = FailingStore(cache.store)`` for a cache that has one already. Wrappers may be nested.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from cacheaside.engine.commands import (
    Begin,
    Claim,
    Commit,
    Fetch,
    Flow,
    Forget,
    Invalidate,
    Lock,
    Members,
    Release,
    Renew,
    Run,
    Sizes,
    Sleep,
    Sweep,
)
from cacheaside.engine.drive import Driver, Store
from cacheaside.errors import StoreUnavailable
from cacheaside.testing.proxy import ChaosProxy

__all__ = ["ChaosProxy", "DelayingStore", "EvictingStore", "FailingStore", "StoreWrapper", "keys_of"]


class StoreWrapper:
    """A store around another one; what it does about a command is a flow, written once for both worlds."""

    def __init__(self, store: Store, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.inner = store
        self._driver = Driver(sleep)

    def around(self, command: Any) -> Flow[Any]:
        """Yield ``command`` to carry it out, other commands to do something else beside it."""
        return (yield command)

    def perform(self, command: Any) -> Any:
        return self._driver.run(self.around(command), self.inner)

    async def aperform(self, command: Any) -> Any:
        return await self._driver.arun(self.around(command), self.inner)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the store can do, such as ``close``."""
        if name == "inner":  # a copy that is not made yet
            raise AttributeError(name)
        return getattr(self.inner, name)


def unavailable() -> Exception:
    return StoreUnavailable("the store fails because a test says so")


class FailingStore(StoreWrapper):
    """A store that fails: always, with a probability, or when ``fail(command)`` says so.

    Args:
        fail: may be changed at any time.
        error: makes what is raised; what stores raise is StoreUnavailable.
        late: the command is carried out and its answer is lost, as with a timeout.
        seed: of the probability.
    """

    def __init__(
        self,
        store: Store,
        fail: float | Callable[[Any], object] = 1.0,
        error: Callable[[], Exception] = unavailable,
        *,
        late: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(store)
        self.fail = fail
        self.error = error
        self.late = late
        self.failed = 0
        """Commands that have failed so far."""
        self._random = random.Random(seed)

    def around(self, command: Any) -> Flow[Any]:
        fail = self.fail
        if not (fail(command) if callable(fail) else self._random.random() < fail):
            return (yield command)
        self.failed += 1
        if self.late:
            yield command
        raise self.error()


class DelayingStore(StoreWrapper):
    """A store that takes its time: ``delay`` seconds before each command, or ``delay(command)``.

    ``sleep`` is how a thread waits; on an event loop the time passes for real.
    """

    def __init__(
        self,
        store: Store,
        delay: float | Callable[[Any], float],
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(store, sleep=sleep)
        self.delay = delay

    def around(self, command: Any) -> Flow[Any]:
        delay = self.delay(command) if callable(self.delay) else self.delay
        if delay > 0:
            yield Sleep(delay)
        return (yield command)


class EvictingStore(StoreWrapper):
    """A store short of memory: with ``probability``, a key is gone just before a command that names it.

    Values, placeholders, tokens, holds and locks, without a word to anybody: that is what Redis does
    under ``maxmemory``. The same ``seed`` and commands lose the same keys.
    """

    def __init__(self, store: Store, probability: float, seed: int = 0) -> None:
        super().__init__(store)
        self.probability = probability
        self.evicted = 0
        """Keys that were there and are gone."""
        self._random = random.Random(seed)

    def around(self, command: Any) -> Flow[Any]:
        doomed = tuple(key for key in keys_of(command) if self._random.random() < self.probability)
        if doomed:
            there: list[bytes | None] = yield Fetch(doomed)
            gone = tuple((key, raw) for key, raw in zip(doomed, there, strict=True) if raw is not None)
            if gone:
                self.evicted += yield Sweep(gone)
        return (yield command)


def keys_of(command: Any) -> tuple[str, ...]:
    """The keys in the store that a command reads or writes."""
    match command:
        case Fetch(keys=keys) | Run(keys=keys):
            return keys
        case Begin(slots=places, tokens=tokens, dead=dead):
            return (*(p.slot for p in places), *(key for key, _ in tokens), *(key for key, _, _ in dead))
        case Commit(fills=fills, extend=extend):
            return (*(fill.slot for fill in fills), *(key for key, _ in extend))
        case Claim(slots=slots, tokens=tokens):
            return tuple(key for key, _ in (*slots, *tokens))
        case Invalidate(slots=slots, tokens=tokens):
            return (*(key for slot in slots for key in slot), *(key for key, _, _ in tokens))
        case Renew(keys=pairs) | Sweep(keys=pairs):
            return tuple(key for key, _ in pairs)
        case Release(key=key) | Lock(key=key):
            return (key,)
        case Members(index=index) | Forget(index=index):
            return (index,)
        case Sizes(indexes=indexes):
            return indexes
        case _:
            return ()
