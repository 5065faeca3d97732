"""Threads of a cache that nobody closed must not keep it alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod


class Weakly:
    """A method for threads to call that must not keep its object alive; None once that is gone.

    Threads ask ``alive`` between their rounds. A finalizer could not tell them: it may run in any of them,
    with whatever lock that thread holds.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._ref = WeakMethod(method)

    def alive(self) -> bool:
        return self._ref() is not None

    def __call__(self, *args: Any) -> Any:
        method = self._ref()
        return None if method is None else method(*args)
