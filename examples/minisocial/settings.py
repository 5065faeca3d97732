"""What the app is told, by arguments or by ``MINISOCIAL_...`` in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, cast

Mode = Literal["on", "l2", "off"]


@dataclass(frozen=True)
class Settings:
    """All of it; ``environment`` and ``read`` are each other's inverse."""

    database: str = "sqlite:///minisocial.db"
    """A URL of SQLAlchemy's: SQLite, or ``postgresql+psycopg://...``, for which psycopg must be installed."""
    redis: str = "embedded://"
    prefix: str = "mini"
    mode: Mode = "on"
    """``on``: L1 and L2; ``l2``: Redis only; ``off``: every read goes to the database."""
    l1_window: float = 1.0
    """Seconds that one process's memory may lag behind what another has changed."""
    delay: float = 0.0
    """Seconds added to each load, for SQLite is nearer than a database server is."""
    timeout: float = 1.0
    """Seconds that a call waits for Redis."""
    hold: float = 30.0
    """Seconds for which a writer that dies between its commit and its invalidation leaves misses; 0: no hold,
    and a round trip less for each write."""
    warm: float = 1800.0
    """Seconds between two rounds of warming; 0: none."""
    refresh_grace: float = 10.0
    """Seconds in which a refresh token that was used gives the same successor once more."""
    logins_per_minute: int = 20
    """From one address; an account has five."""
    posts_per_minute: int = 30
    """Of one user."""

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        given: dict[str, Any] = {}
        for field in fields(cls):
            text = environment.get(f"MINISOCIAL_{field.name.upper()}")
            if text is not None:
                given[field.name] = type(cast(Any, field.default))(text)
        return cls(**given)

    def environment(self) -> dict[str, str]:
        return {f"MINISOCIAL_{name.upper()}": str(value) for name, value in asdict(self).items()}
