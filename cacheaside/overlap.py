"""Whether two key templates can produce one key: their languages of keys, walked side by side.

A template is a row of *steps*, each a set of characters that is taken once, at most once, or any number of
times. Sets may be too large, never too small: what is called disjoint is, what is called common may not be.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Final, NamedTuple

from cacheaside.canonical import CONTROL
from cacheaside.templates import Template

_NEVER_IN_VALUES: Final = re.compile(rf"[\s:{{}}~{CONTROL}]")
_DIGITS: Final = frozenset(string.digits)
_BASE64: Final = frozenset(string.ascii_letters + string.digits + "+/=")
_PLEASANT: Final = "1a-" + string.ascii_letters


class _Step(NamedTuple):
    """Characters, and whether they may be left out and taken again."""

    characters: frozenset[str]
    optional: bool = False
    again: bool = False


def common_key(one: Template, other: Template) -> str | None:
    """A text that both templates may produce, a short one; None if there is none."""
    alphabet = {*string.printable, *"".join(one.texts), *"".join(other.texts)}
    anything = frozenset(c for c in alphabet if not _NEVER_IN_VALUES.match(c))
    left, right = list(_steps(one, anything)), list(_steps(other, anything))
    reached = {(0, 0): ""}
    row = [(0, 0)]
    for at in row:  # it grows: a breadth-first walk
        i, j = at
        if i == len(left) and j == len(right):
            return reached[at]
        moves: list[tuple[tuple[int, int], str]] = []
        if i < len(left) and left[i].optional:
            moves.append(((i + 1, j), ""))
        if j < len(right) and right[j].optional:
            moves.append(((i, j + 1), ""))
        if i < len(left) and j < len(right) and (both := left[i].characters & right[j].characters):
            taken = (i if left[i].again else i + 1, j if right[j].again else j + 1)
            moves.append((taken, next((c for c in _PLEASANT if c in both), min(both))))
        for there, character in moves:
            if there not in reached:
                reached[there] = reached[at] + character
                row.append(there)
    return None


def _steps(template: Template, anything: frozenset[str]) -> Iterable[_Step]:
    marks = frozenset("".join(f"%{code:02X}" for code in template.separators()))
    yield from _literal(template.texts[0])
    for field, text in zip(template.fields, template.texts[1:], strict=True):
        yield from _values(field.kind, anything, marks)
        yield from _literal(text)


def _literal(text: str) -> Iterable[_Step]:
    return (_Step(frozenset(c)) for c in text)


def _values(kind: str, anything: frozenset[str], marks: frozenset[str]) -> Iterable[_Step]:
    """What a field may hold; ``marks`` stand in its values for what parts it from the next field."""
    if kind == "int":
        yield _Step(marks | {"-"}, optional=True, again=bool(marks))
        yield _Step(_DIGITS)
        yield _Step(_DIGITS, optional=True, again=True)
    elif kind == "hash":
        yield from (_Step(marks | frozenset("0123456789abcdef"), optional=bool(marks)),) * 32
    else:
        yield _Step(_BASE64 | marks if kind == "text" else anything, optional=True, again=True)
