"""What happens to a cache's connection to Redis, said once each: in the log, and to who wants to hear."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Literal

from msgspec import Struct

from cacheaside.errors import ConfigError

log = logging.getLogger("cacheaside")

EventName = Literal[
    "connect",
    "disconnect",
    "error",
    "unacknowledged",
    "failover",
    "replayed",
    "coherent",
    "incoherent",
    "degraded",
]
LEVELS: Final[dict[EventName, int]] = {
    "connect": logging.INFO,
    "disconnect": logging.WARNING,
    "error": logging.WARNING,
    "unacknowledged": logging.ERROR,
    "failover": logging.WARNING,
    "replayed": logging.INFO,
    "coherent": logging.INFO,
    "incoherent": logging.WARNING,
    "degraded": logging.WARNING,
}
SILENCE: Final = 60.0
"""Seconds for which the same trouble is not spoken of again."""
REMEMBERED: Final = 256


class Event(Struct, frozen=True):
    """Something that happened between this process and Redis; ``message`` says it in words, without
    secrets."""

    name: EventName
    message: str


class Events:
    """Tells the log and one listener. What the listener raises is logged and goes nowhere else."""

    def __init__(self, listener: Callable[[Event], Any] | None) -> None:
        if listener is not None and not callable(listener):
            raise ConfigError(f"on_event must be a function of one event, not {listener!r}")
        self._listener = listener
        self._said: dict[str, float] = {}

    def tell(self, name: EventName, message: str) -> None:
        log.log(LEVELS[name], "%s: %s", name, message)
        if self._listener is not None:
            try:
                self._listener(Event(name, message))
            except Exception:
                log.exception("on_event failed on %r", name)

    def complain(self, kind: str, name: EventName, message: str) -> None:
        """``tell``, unless the same ``kind`` was told less than a minute ago."""
        now = monotonic()
        if now < self._said.get(kind, 0.0):
            return
        if len(self._said) >= REMEMBERED:
            self._said.clear()
        self._said[kind] = now + SILENCE
        self.tell(name, message)
