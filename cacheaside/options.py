"""The options of the decorators: typed once for all of them, and checked by name.

What each means is said by ``cacheaside.cached``; its default stands in ``make_policy`` and ``codec_for``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypedDict, cast

from cacheaside.codecs import Serializer
from cacheaside.errors import ConfigError
from cacheaside.policy import Seconds, Ttl

TagTemplates = Iterable[str] | Callable[..., Iterable[str]]


class UpdatesOptions(TypedDict, total=False):
    """How a result is stored: what every decorator that stores has."""

    ttl: Ttl | None
    tags: TagTemplates
    jitter: float
    negative_ttl: Seconds | None
    cache_if: Callable[[Any], bool] | None
    codec: Literal["msgpack", "json", "pickle"] | Serializer
    version: int


class ManyOptions(UpdatesOptions, total=False):
    """How a function is read through the cache: what ``cached_many`` has as well."""

    l1: bool | Seconds
    l2: bool
    stale_if_error: Seconds
    load_timeout: Seconds | tuple[Seconds | None, Seconds | None] | None
    lease_ttl: Seconds
    wait_timeout: Seconds
    share: bool | None


class CachedOptions(ManyOptions, total=False):
    """How one value is renewed before it is missed: what ``cached`` alone has."""

    stale_while_revalidate: Seconds
    early_refresh: float | None
    refresh: Literal["inline", "background"]


CODEC: Final = ("codec", "version", "share")
PLACE: Final = ("ns", "key")


class Options:
    """What one decorator was given, sorted by who takes it; nothing is in here that was not given.

    Raises ConfigError for an option that ``known`` does not have.
    """

    def __init__(self, decorator: str, given: Mapping[str, Any], known: type) -> None:
        check_names(decorator, given, tuple(known.__annotations__))
        self.decorator = decorator
        self.ttl: Ttl | None = given.get("ttl")
        self.tags = kept(given.get("tags", ()))
        self.codec = {name: value for name, value in given.items() if name in CODEC}
        others = {"ttl", "tags", *CODEC}
        self.policy = {name: value for name, value in given.items() if name not in others}


def kept(tags: Any) -> TagTemplates:
    """The tags as they can be read again: they may come from a generator, and the decorator be used twice."""
    listed = isinstance(tags, Iterable) and not isinstance(tags, (str, bytes))
    return tuple(cast("Iterable[str]", tags)) if listed else cast(TagTemplates, tags)


def refuse_bare(decorator: str, given: tuple[object, ...]) -> None:
    """Refuse a decorator without parentheses, and options without names."""
    if given:
        raise ConfigError(
            f"@{decorator} takes its options by name, in parentheses: "
            f'@{decorator}(ns="posts", key="post:{{post_id}}"), not {given[0]!r}'
        )


def check_names(decorator: str, given: Iterable[str], known: tuple[str, ...]) -> None:
    """Refuse options that do not exist, naming the one that was probably meant."""
    for name in given:
        if name not in known:
            meant = difflib.get_close_matches(name, PLACE + known, 1)
            advice = f"did you mean {meant[0]}=?" if meant else f"it has {', '.join(PLACE + known)}"
            raise ConfigError(f"@{decorator} has no option {name}=; {advice}")
