"""Keys and tags that callers write out, checked before anything is done with them."""

from __future__ import annotations

from typing import Any

from cacheaside.errors import ConfigError
from cacheaside.keys import check_namespace, tag_name


def check_key(key: Any) -> str:
    if not isinstance(key, str) or key.find(":") < 1:
        raise ConfigError(f'key must be a string "ns:rest", such as "posts:post:42", not {key!r}')
    return key if type(key) is str else str.__str__(key)


def names(parameter: str, given: Any) -> tuple[str, ...]:
    """A list of names; a bare string is a mistake that would otherwise be taken letter by letter."""
    if isinstance(given, (str, bytes)):
        raise ConfigError(f"{parameter} must be a list of strings, not the string {given!r}")
    found = tuple(given)
    for name in found:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{parameter} must be a list of non-empty strings; {name!r} is not one")
    return tuple(dict.fromkeys(found))


def key_names(given: Any) -> tuple[str, ...]:
    """Whole keys; one without its namespace would drop nothing, and nobody would notice."""
    return tuple(map(check_key, names("keys", given)))


def everything(ns: str | None) -> str:
    """The pattern of all keys, or of those of a namespace."""
    return "*" if ns is None else f"{check_namespace(ns)}:*"


def tag_names(given: Any) -> tuple[str, ...]:
    """Finished tags, written as the templates of decorators write them."""
    return tuple(dict.fromkeys(map(tag_name, names("tags", given))))
