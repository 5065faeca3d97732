"""The seconds that one flow may wait for its store, and the moment at which whoever waits for it gives up."""

from __future__ import annotations

import math
from contextvars import ContextVar, Token
from time import monotonic
from typing import Final

from cacheaside.errors import StoreUnavailable

give_up: Final[ContextVar[float]] = ContextVar("cacheaside_give_up", default=math.inf)
"""When waiting for the store ends here, by ``time.monotonic()``; sockets and event loops obey it."""


class Budget:
    """What is left of the seconds that a flow may wait for its store: a context around each command.

    Loads are not charged, and after a wait for somebody else's load there is all of it again. A flow that
    has spent it is refused: StoreUnavailable.
    """

    __slots__ = ("_began", "_token", "_whole", "left")

    def __init__(self, seconds: float) -> None:
        self._whole = self.left = seconds

    def renew(self) -> None:
        self.left = self._whole

    def __enter__(self) -> None:
        if self.left <= 0:
            raise StoreUnavailable(f"Redis has used up the {self._whole:g} s that a call waits for it")
        self._began = now = monotonic()
        self._token: Token[float] = give_up.set(now + self.left)

    def __exit__(self, *error: object) -> None:
        self.left -= monotonic() - self._began
        try:
            give_up.reset(self._token)
        except ValueError:  # closed from elsewhere, as what a dead loop leaves behind is
            pass
