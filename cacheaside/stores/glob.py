"""Redis's glob patterns in Python: ``*``, ``?``, ``[abc]``, ``[^a-z]``, and a backslash before any of these.

``fnmatch`` knows no backslash and writes ``[!a]``, so one pattern would drop other keys here than in Redis.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache


@lru_cache(256)
def matcher(pattern: str) -> Callable[[str], object]:
    """A function that is true for the keys that ``pattern`` matches in Redis."""
    pattern = pattern.encode("utf-8", "surrogatepass").decode(
        "latin-1"
    )  # Redis sees bytes: "?" is half of an "é"
    source, at = "", 0
    while at < len(pattern):
        c, at = pattern[at], at + 1
        if c == "*":
            source += ".*"
        elif c == "?":
            source += "."
        elif c == "[":
            part, at = _bracket(pattern, at)
            source += part
        else:
            if c == "\\" and at < len(pattern):
                c, at = pattern[at], at + 1
            source += re.escape(c)
    match = re.compile(source.encode("latin-1"), re.DOTALL).fullmatch
    return lambda key: match(key.encode("utf-8", "surrogatepass"))


def _bracket(pattern: str, at: int) -> tuple[str, int]:
    """The class that opens before ``at``, and where it ends; one without an end goes to the end."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    parts: list[str] = []
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "\\" and at + 1 < len(pattern):
            at += 1
            parts.append(re.escape(pattern[at]))
            at += 1
        elif pattern[at + 1 : at + 2] == "-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]), key=_signed)
            ends = (low, "\xff", "\0", high) if _signed(low) < 0 <= _signed(high) else (low, high)
            parts += [f"{re.escape(a)}-{re.escape(b)}" for a, b in zip(ends[::2], ends[1::2], strict=True)]
            at += 3
        else:
            parts.append(re.escape(pattern[at]))
            at += 1
    inside = "".join(parts)
    if not inside:  # matches nothing, or what is negated: anything
        return ("." if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{inside}]", at + 1


def _signed(byte: str) -> int:
    """A byte as C's char has it, which is how Redis compares the ends of a range."""
    return (ord(byte) + 128) % 256 - 128
