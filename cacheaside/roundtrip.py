"""Did a value survive the trip to bytes and back? Compared once, when it is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cacheaside.schema import SCALARS, instance_fields, type_name

_INTERFACES: Final[tuple[Any, ...]] = (Sequence, Set, Mapping)


def is_plain(value: Any) -> bool:
    """Is this nothing but lists, dicts and scalars, so that comparing it by equality is enough?"""
    waiting = [value]
    while waiting:
        item: Any = waiting.pop()
        kind: Any = item.__class__
        if kind is list:
            waiting.extend(item)
        elif kind is dict:
            waiting.extend(item)
            waiting.extend(item.values())
        elif kind not in SCALARS:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Comparison:
    """Finds what a trip has changed.

    ``trusting`` takes equal values for unchanged. ``exact`` wants equal types even where values are equal, as
    a StrEnum and its str are; it is for untyped parts. ``loose`` lets a tuple be a list, for Sequence.
    """

    exact: bool
    loose: bool
    trusting: bool

    def change(self, before: Any, after: Any) -> str | None:
        """Where and how ``after`` differs, as ``.items[0].at: datetime came back as str``, or None."""
        kind: Any = before.__class__
        if kind in SCALARS and kind is type(after) and before == after:
            return None
        if self.trusting and _equal(before, after):
            return None
        if kind is not type(after) and not self.stands_in(before, after):
            return f": {kind.__qualname__} came back as {type_name(after)}"
        if issubclass(kind, Mapping):
            # Order is kept, and a key that changed its type could not be looked up.
            keys = self.sequence(list(before), list(after), lambda index: f" key {index}")
            return keys or self.sequence(
                list(before.values()),
                list(after.values()),
                lambda index: f"[{_show_key(list(before)[index])}]",
            )
        if issubclass(kind, (list, tuple)):
            return self.sequence(before, after, lambda index: f"[{index}]")
        if issubclass(kind, Set):
            return None if _same_members(before, after) else f": {kind.__qualname__} has other members"
        for name in (names := instance_fields(before)):
            found = self.change(getattr(before, name, None), getattr(after, name, None))
            if found is not None:
                return f".{name}{found}"
        if names or _same_leaf(before, after):
            return None
        return f": {kind.__qualname__} came back with another value"

    def sequence(self, before: Sequence[Any], after: Sequence[Any], show: Callable[[int], str]) -> str | None:
        if len(before) != len(after):
            return f": {len(before)} items came back as {len(after)}"
        for index, (item, new_item) in enumerate(zip(before, after, strict=True)):
            found = self.change(item, new_item)
            if found is not None:
                return f"{show(index)}{found}"
        return None

    def stands_in(self, before: Any, after: Any) -> bool:
        """Is ``after``, of another type, what was declared? An int is a float, a defaultdict a dict."""
        if type(before) is int and type(after) is float:
            return _equal(before, after)
        if self.loose and any(isinstance(before, kind) and isinstance(after, kind) for kind in _INTERFACES):
            return True
        if self.exact:
            return False
        return _equal(before, after) or (
            type(after) in (dict, list, tuple) and isinstance(before, type(after))
        )


def _show_key(key: Any) -> str:
    # Errors reach logs, and keys may be e-mail addresses; what looks like a field's name is worth showing.
    return repr(key) if isinstance(key, str) and key.isidentifier() else "..."


def _equal(before: Any, after: Any) -> bool:
    try:
        return bool(before == after)
    except Exception:  # a user's own __eq__, or a signalling NaN
        return False


def _same_leaf(before: Any, after: Any) -> bool:
    return _equal(_face(before), _face(after)) or not (_equal(before, before) or _equal(after, after))


def _same_members(before: Set[Any], after: Set[Any]) -> bool:
    faces = set(map(_face, after))
    # A NaN equals nothing, itself included, and is no loss.
    lost = any(_face(member) not in faces and _equal(member, member) for member in before)
    return not lost and len(before) == len(after)


def _face(value: Any) -> Any:
    # A datetime by clock and offset: equality ignores the offset, and fails in the hour that autumn repeats.
    return value.isoformat() if isinstance(value, datetime) else value
