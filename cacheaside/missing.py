"""The one sentinel: what stands for "nothing there" where None may be a value."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal


class Missing(Enum):
    """Falsy, single, and equal to nothing else."""

    MISSING = "MISSING"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING
"""Nothing is there: falsy, single, and equal to nothing else, so that a cached None is no miss."""
