"""What several routers need."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import HTTPException, Path, Query

from ..repositories.changes import Change

T = TypeVar("T")

Id = Annotated[int, Path(ge=1, le=2**31 - 1)]
Page = Annotated[int, Query(ge=1, le=1000)]
Words = Annotated[str, Query(min_length=1, max_length=100)]


def there(value: T | None) -> T:
    """The value; 404 for None."""
    if value is None:
        raise HTTPException(404, "not there")
    return value


def done(change: Change | None, status: int = 404) -> Change:
    """What a write changed: its version is what every later answer about its tags has at least."""
    if change is None:
        raise HTTPException(status, "not there, or not yours" if status == 404 else "taken")
    return change
