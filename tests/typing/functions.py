"""Cached functions keep their signature, and their handles take the same arguments."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from cacheaside import MISSING, Cache, Receipt, cached
from cacheaside.faces import AsyncCached, Cached

cache = Cache("embedded://")
posts = cache.namespace("posts", ttl=60)


@cached(ns="posts", ttl=1800)
def get_post(post_id: int, *, draft: bool = False) -> dict[str, int]:
    return {"id": post_id, "draft": draft}


@cache.cached(ns="posts", key="a:{post_id}", ttl=timedelta(minutes=1), tags=["post:{post_id}"])
async def aget_post(post_id: int, *, draft: bool = False) -> dict[str, int] | None:
    return {"id": post_id, "draft": draft}


@posts.cached(key="n:{number}", ttl=lambda result: result, load_timeout=(0.5, 5), refresh="background")
def count(number: int) -> int:
    return number


class Upper:
    name = "upper"

    def encode(self, value: Any, /) -> bytes:
        return str(value).upper().encode()

    def decode(self, data: bytes, /) -> str:
        return data.decode().lower()


@cached(ns="words", codec=Upper(), l1=30, share=True, cache_if=lambda result: len(result) > 2)
def word(number: int) -> str:
    return "word" * number


def a_function() -> None:
    assert_type(get_post(1, draft=True), dict[str, int])
    assert_type(get_post.key(1, draft=True), str)
    assert_type(get_post.tags(1), tuple[str, ...])
    assert_type(get_post.refresh(1), dict[str, int])
    assert_type(get_post.uncached(1), dict[str, int])
    assert_type(get_post.invalidate(post_id=1), Receipt)
    assert_type(get_post.put({"id": 2}, 1, draft=True), bool)
    assert_type(get_post.warm([1, (2,), {"post_id": 3, "draft": True}]), int)
    assert_type(get_post.cache, Cache)
    assert_type(get_post.__name__, str)
    kept = get_post.peek(1)
    if kept is not MISSING:
        assert_type(kept, dict[str, int])
    assert_type(count(1), int)
    assert_type(word(1), str)


async def an_async_function() -> None:
    assert_type(await aget_post(1, draft=True), dict[str, int] | None)
    assert_type(aget_post.key(1), str)
    assert_type(await aget_post.refresh(1), dict[str, int] | None)
    assert_type(await aget_post.uncached(1), dict[str, int] | None)
    assert_type(await aget_post.invalidate(1), Receipt)
    assert_type(await aget_post.put(None, 1), bool)
    assert_type(await aget_post.warm([1, 2]), int)
    kept = await aget_post.peek(1)
    if kept is not MISSING:
        assert_type(kept, dict[str, int] | None)


one: Cached[[int], int] = count


def pass_on(fn: AsyncCached[[int], str]) -> None:
    assert_type(fn.key(3), str)
