"""Test ids that are the same in every process: parallel workers must collect the same tests."""

from __future__ import annotations

import re


def named(value: object) -> str:
    """The repr of a parameter, without addresses and with sets in order."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(repr, value))}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
