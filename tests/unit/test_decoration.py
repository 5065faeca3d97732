"""What is wrong with a codec option is said where the decorator stands, though its type may come later."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cacheaside import Cache, ConfigError


@pytest.mark.parametrize("option", [{"codec": "yaml"}, {"version": "2"}, {"share": "no"}], ids=str)
def test_a_wrong_codec_option_is_refused_at_decoration(option: dict[str, Any]) -> None:
    cache = Cache("embedded://")
    with pytest.raises(ConfigError, match=f"@cached .*{next(iter(option))}="):

        @cache.cached(ns="posts", key="{id}", **option)
        def get(id: int) -> str: ...


def test_a_class_may_be_named_before_it_is_complete() -> None:
    cache = Cache("embedded://")

    class Post(msgspec.Struct, frozen=True):
        id: int

        @staticmethod
        @cache.cached(ns="posts", key="post:{id}")
        def get(id: int) -> Later:
            return Later(id)

    Later = Post
    assert Post.get(1) == Post.get(1) == Post(1)
