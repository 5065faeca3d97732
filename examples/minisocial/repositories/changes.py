"""What a write returns: its number, and the tags of all that looks different from now on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    version: int
    tags: tuple[str, ...]
    id: int | None = None
    """Of what was made."""


def changed(change: Change | None) -> Iterable[str]:
    """For ``@invalidates``; a write that found nothing to change has changed nothing."""
    return change.tags if change is not None else ()
