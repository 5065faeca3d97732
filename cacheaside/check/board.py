"""What the processes of a check are doing right now, in memory that they share.

Faults aim by it: at a process that is loading, at one that invalidates. Each thread and task has a byte of
its own, so nobody waits for anybody.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any, Final

CONTEXT: Final = multiprocessing.get_context("forkserver")

ABSENT, IDLE, READING, LOADING, WRITING = range(5)


class Board:
    """A row of bytes for each place in which a process runs, and when all of them begin and end."""

    def __init__(self, places: int, slots: int) -> None:
        self.slots = slots
        self._doing = CONTEXT.RawArray("b", places * slots)
        self._times: Any = CONTEXT.RawArray("d", [0.0, 0.0])

    @property
    def begin(self) -> float:
        """When all may begin, by the clock of the history; 0 while they have to wait."""
        return float(self._times[0])

    @property
    def end(self) -> float:
        return float(self._times[1])

    def start(self, begin: float, end: float) -> None:
        self._times[1] = end
        self._times[0] = begin

    def marker(self, place: int, slot: int) -> Callable[[int], None]:
        """Sets what one thread or task is doing."""
        doing, at = self._doing, place * self.slots + slot

        def mark(what: int) -> None:
            doing[at] = what

        return mark

    def doing(self, place: int) -> bytes:
        """What the threads and tasks of a process are doing."""
        return bytes(self._doing[place * self.slots : (place + 1) * self.slots])

    def clear(self, place: int, what: int = ABSENT) -> None:
        for slot in range(self.slots):
            self._doing[place * self.slots + slot] = what
