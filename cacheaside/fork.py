"""A lock that another thread held at the moment of a fork would stay locked in the child for ever."""

from __future__ import annotations

import os
import weakref
from typing import Any, Final, Protocol


class Forked(Protocol):
    def after_fork(self) -> None:
        """Make what threads of the parent may have held anew."""


_alive: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def renew_after_fork(thing: Forked) -> None:
    """Have ``thing.after_fork()`` called in every forked child, as long as it lives."""
    _alive.add(thing)


def _after_in_child() -> None:
    for thing in list(_alive):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
