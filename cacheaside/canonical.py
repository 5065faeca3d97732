"""Values as parts of keys: escaped text for templates, canonical bytes for default keys.

In a **key** no two different values render alike, but for a UUID, date or time and its own text: text is
percent-escaped, and types are kept apart (42 is ``42``, "42" is ``%342``) with *marks*: a ``%`` before
anything but an upper-case hex digit, which no escaped text holds. In a **tag** 42 and "42" are one on
purpose: to invalidate too much is harmless, while two spellings of one tag would leave a stale entry behind.

The canonical bytes are msgpack that carries the types. What has no canonical form is refused: a ``repr`` may
hold an address, and a key made of it would never be found again, or be found by the wrong call.
"""

from __future__ import annotations

import re
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from typing import Final, cast
from uuid import UUID

import msgspec

from .errors import ConfigError, KeyTemplateError

LONGEST: Final = 200
"""Bytes of a key (after its namespace) or tag above which its end is replaced by a hash."""
_HEAD: Final = 160
_MEMO_LIMIT: Final = 4096

CONTROL: Final = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
_UNSAFE: Final = re.compile(rf"[\s:{{}}%~{CONTROL}]")
_UNSAFE_IN_TAG: Final = re.compile(rf"[\s{{}}{CONTROL}]")
# What the escaped text of an int, float, bool or None looks like. A UUID, date or time is one with its
# text: an id that came as a str must find the entry that the same id as a UUID has stored.
_SPELLS_ANOTHER_TYPE: Final = re.compile(
    r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|-?inf|nan|NaT|True|False|None"
).fullmatch

_pack: Final = msgspec.msgpack.Encoder().encode
_SCALARS: Final[frozenset[type]] = frozenset({int, float, str})


def escape(text: str) -> str:
    """Return *text* as templates render it: NFC, with ``: { } % ~``, whitespace and control as %XX of UTF-8.

    For tags and keys that are put together by hand: ``f"author:{escape(name)}"``.
    """
    return _UNSAFE.sub(_percent, unicodedata.normalize("NFC", text))


def tag_name(text: str) -> str:
    """Return the one stored form of the finished tag *text*; a stored form is returned as it is.

    Raises ConfigError if *text* is not a str.
    """
    if not isinstance(cast(object, text), str):
        raise ConfigError(f"a tag must be a str, not {type_name(text)}: {text!r}")
    name = unicodedata.normalize("NFC", _UNSAFE_IN_TAG.sub(_percent, unicodedata.normalize("NFC", text)))
    if name.endswith(":keys"):
        # NAME:keys is where the index of NAME lives.
        name = name[:-4] + "%6Beys"
    return shorten(name)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def shorten(text: str, start: int = 0) -> str:
    """Return *text*, its part after *start* ending in a hash if that is longer than LONGEST bytes."""
    if len(text) - start <= LONGEST and text.isascii():
        return text
    whole = text[start:].encode()
    if len(whole) <= LONGEST:
        return text
    digest = blake2b(whole, digest_size=16).hexdigest()
    return f"{text[:start]}{whole[:_HEAD].decode(errors='ignore')}~{digest}"


def _key_text(text: str) -> str:
    escaped = escape(text)
    return f"%{ord(escaped[0]):02X}{escaped[1:]}" if _SPELLS_ANOTHER_TYPE(escaped) else escaped


def _base64_text(text: str) -> str:
    # Not NFC: no two texts are one here.
    return b64encode(text.encode("utf-8", "surrogatepass")).decode("ascii")


class _Memo(dict[str, str]):
    """A bounded memory of a pure function of a str; a hit is one dictionary look-up, without a lock."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function

    def __missing__(self, text: str) -> str:
        rendered = self._function(text)
        if len(text) <= LONGEST:
            if len(self) >= _MEMO_LIMIT:
                self.clear()
            self[text] = rendered
        return rendered


key_texts = _Memo(_key_text)
escaped_texts = _Memo(escape)
base64_texts = _Memo(_base64_text)
tag_names = _Memo(tag_name)


# Text of values in templates

_SEQUENCE_SYNTAX: Final = str.maketrans({",": "%2C", "(": "%28", ")": "%29"})


def key_part(value: object, label: str) -> str:
    return _render(value, label, key=True)


def tag_part(value: object, label: str) -> str:
    return _render(value, label, key=False)


def key_part_without(value: object, label: str, kind: str, *separators: int) -> str:
    """Render for a template whose fields are parted by characters that values may hold: mark them there."""
    text = typed_part(value, label, kind) if kind else _render(value, label, key=True)
    return text.translate({code: f"%%{code:02X}" for code in separators})


def typed_part(value: object, label: str, kind: str) -> str:
    """Render for a field of one kind, whose values need not be told from those of another type.

    ``id``: an int, a str or a UUID, where 42 and "42" are one. ``int``: a whole number. ``str``: a text,
    escaped. ``text``: free text, in base64. ``hash``: whatever has a canonical form, as a hash of it. Raises
    KeyTemplateError, naming the argument, for anything else.
    """
    if kind == "hash":
        return blake2b(_one(value, label), digest_size=16).hexdigest()
    if kind in ("id", "int") and isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    if kind != "int" and isinstance(value, str):
        return (base64_texts if kind == "text" else escaped_texts)[str.__str__(value)]
    if kind == "id" and isinstance(value, UUID):
        return str(value)
    wanted = {"id": "an int, a str or a UUID", "int": "an int"}.get(kind, "a str")
    raise KeyTemplateError(f"{label} must be {wanted}, as its key says, not {type_name(value)}: {value!r}")


def _one(value: object, label: str) -> bytes:
    try:
        return _pack(_tree(value))
    except RecursionError:
        raise KeyTemplateError(f"{label} contains itself or is nested too deeply") from None
    except _NoForm as refused:
        raise KeyTemplateError(f"{label} {refused}: give what identifies it") from None


def _render(value: object, label: str, *, key: bool) -> str:
    if isinstance(value, Enum):
        if not key:
            return _render(value.value, label, key=False)
        name = cast("str | None", value.name)
        # A composite flag has no name; its number can't be the name of a member.
        return f"%m{escape(f'{type(value).__name__}.{value.value if name is None else name}')}"
    if isinstance(value, str):
        return (key_texts if key else escaped_texts)[str.__str__(value)]
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        return f"%d{value}" if key else str(value)
    if isinstance(value, bytes):
        return f"%b{value.hex()}"
    if isinstance(value, (date, time)):
        try:
            return escape(clock_text(value))
        except ValueError as error:
            raise KeyTemplateError(f"{label}: {value!r} cannot be part of a key or tag: {error}") from None
    if isinstance(value, (tuple, list)):
        items = cast("Sequence[object]", value)
        try:
            return f"%({','.join([_render_item(item, label, key=key) for item in items])})"
        except RecursionError:
            raise KeyTemplateError(f"{label}: a {type_name(items)} contains itself") from None
    raise KeyTemplateError(
        f"{label}: a {type_name(value)} cannot be part of a key or tag: name an attribute of it, as in "
        f"{{post.id}}, or convert it to a str, int or tuple before the call"
    )


def _render_item(item: object, label: str, *, key: bool) -> str:
    text = _render(item, label, key=key)
    if isinstance(item, (tuple, list)):
        return text
    # () and ("",) differ.
    return text.translate(_SEQUENCE_SYNTAX) if text else "%-"


def type_name(value: object) -> str:
    """Return the name of the type of *value*, for messages."""
    return type(value).__name__


# Canonical bytes


def encode(arguments: Mapping[str, object], *, owner: str = "") -> bytes:
    """Return the canonical bytes of *arguments* (name to value), whatever the order of the names.

    *owner* is what else tells calls apart, such as the class of a method. Raises KeyTemplateError, naming the
    argument, for a value without a canonical form.
    """
    tree: list[object] = [owner]
    for name in sorted(arguments):
        try:
            tree += (name, _pack(_tree(arguments[name])))
        except RecursionError:
            raise _refusal(name, "contains itself or is nested too deeply") from None
        except _NoForm as refused:
            raise _refusal(name, str(refused)) from None
    return _pack(tree)


def qualified_name(cls: type) -> str:
    """Return ``module.QualifiedName`` of *cls*."""
    return f"{cls.__module__}.{cls.__qualname__}"


def clock_text(value: date | time) -> str:
    """Return the ISO text of a date, time or datetime; raise ValueError if it leaves the moment open."""
    if isinstance(value, (time, datetime)) and value.tzinfo is not None and value.utcoffset() is None:
        # Its text would be that of the naive value.
        raise ValueError("its UTC offset depends on a date it does not have")
    return value.isoformat()


class _NoForm(Exception):
    """A value without a canonical form; the text completes "argument 'x' ..."."""


def _refusal(name: str, problem: str) -> KeyTemplateError:
    return KeyTemplateError(
        f"argument {name!r} {problem}, so the default key cannot name it: give a key template that says what "
        f'identifies the call, such as key="...:{{{name}.id}}"'
    )


def _tree(value: object) -> object:
    cls = type(value)
    if isinstance(value, Enum):
        # A composite flag has no name.
        member: object = value.name if cast("str | None", value.name) is not None else [_tree(value.value)]
        return [qualified_name(cls), member]
    if value is None or isinstance(value, bool) or cls is bytes:
        return value
    if isinstance(value, (int, float, str)):
        if getattr(value, "__dict__", None):
            raise _NoForm(f"is a {qualified_name(cls)}, a value with attributes of its own")
        return _scalar(value) if cls in _SCALARS else [qualified_name(cls), _scalar(value)]
    if cls is tuple or cls is list:
        return [cls.__name__, *map(_tree, cast("Iterable[object]", value))]
    if cls is set or cls is frozenset:
        return [cls.__name__, *sorted(_pack(_tree(item)) for item in cast("Iterable[object]", value))]
    if cls is dict:
        items = cast("dict[object, object]", value).items()
        return ["dict", *sorted((_pack(_tree(key)), _pack(_tree(item))) for key, item in items)]
    if (standard := _standard(value)) is not None:
        return standard
    if (names := _field_names(value)) is not None:
        return [qualified_name(cls), *((name, _tree(getattr(value, name))) for name in names)]
    raise _NoForm(f"is a {qualified_name(cls)}, which has no canonical form")


def _scalar(value: int | float | str) -> object:
    if isinstance(value, int):
        plain = int.__pos__(value)
        # msgpack stops at 64 bits.
        return plain if -(2**63) <= plain < 2**63 else ["int", hex(plain)]
    if isinstance(value, float):
        # All NaNs are one; their bits differ between machines.
        return float.__pos__(value) if value == value else ["float", "nan"]
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return ["str", text.encode("utf-8", "surrogatepass")]
    return text


def _standard(value: object) -> list[object] | None:
    if isinstance(value, (date, time)):
        kind = "datetime" if isinstance(value, datetime) else "time" if isinstance(value, time) else "date"
        try:
            # fold and the zone tell apart what isoformat() does not.
            zone = getattr(getattr(value, "tzinfo", None), "key", None)
            return [
                kind,
                clock_text(value),
                getattr(value, "fold", 0),
                zone if isinstance(zone, str) else None,
            ]
        except ValueError as error:
            raise _NoForm(f"is a {kind} without a canonical form ({error})") from None
    if isinstance(value, UUID):
        return ["UUID", value.bytes]
    if isinstance(value, Decimal):
        return ["Decimal", str(value)]
    if type(value) is timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    return None


def _field_names(value: object) -> Iterable[str] | None:
    """Return the names of all fields of an instance of a record type, None for anything else."""
    cls = type(value)
    if (declared := getattr(cls, "__dataclass_fields__", None)) is not None:
        return cast("Iterable[str]", declared)
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if isinstance(value, tuple):
        return getattr(cls, "_fields", None)
    if (attributes := getattr(cls, "__attrs_attrs__", None)) is not None:
        return [attribute.name for attribute in attributes]
    if hasattr(cls, "__pydantic_validator__"):
        return [*getattr(cls, "model_fields", ()), "model_extra"]
    return None
