"""Single keys from a terminal, as they are pressed."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager


class Keyboard:
    """Args:
    number: the terminal's file; None has no keys.
    """

    def __init__(self, number: int | None) -> None:
        self._number = number

    def key(self, seconds: float) -> str:
        """The key that is pressed within so many seconds; "" for none."""
        if self._number is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._number], [], [], seconds)
        # An end of the input is a terminal that was closed.
        return (os.read(self._number, 1).decode("ascii", "replace") or "q") if ready else ""


@contextmanager
def keyboard() -> Generator[Keyboard]:
    """The keyboard while the block runs; one without keys where standard input is no terminal."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield Keyboard(None)
        return
    if not sys.stdin.isatty():
        yield Keyboard(None)
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        yield Keyboard(number)
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
