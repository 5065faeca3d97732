"""Declared keys: called as the function that they are like, and taken by decorators."""

from __future__ import annotations

from typing import Any, assert_type

from cacheaside import Cache, Key, Keyspace, cached, cached_many, invalidates, updates
from cacheaside.toolkit import DeclaredKey

cache = Cache("embedded://")


def by_page(user_id: int, page: int = 1) -> None: ...


class PostKeys(Keyspace, ns="posts"):
    post = Key("post:{post_id:int}", ttl=1800, tags=["post:{post_id}"])
    feed = Key("feed:{user_id}:page:{page}", by_page, ttl=900, tags=["feed:{user_id}"])


assert_type(PostKeys.ns, str)
assert_type(PostKeys.feed(1), DeclaredKey)
assert_type(PostKeys.feed(user_id=1, page=2), DeclaredKey)
assert_type(PostKeys.post(post_id=1).tags, tuple[str, ...])
assert_type(PostKeys.post.ttl, float | None)
assert_type(cache.get(PostKeys.post(1)), Any)
assert_type(cache.set(PostKeys.feed(1), []), bool)


@cached(key=PostKeys.feed)
def feed(user_id: int, page: int = 1) -> list[str]:
    return []


@cache.cached(key=PostKeys.post, ttl=5)
async def post(post_id: int) -> str:
    return ""


@cached_many(key=PostKeys.post)
def posts(ids: list[int]) -> dict[int, str]:
    return {}


@updates(key=PostKeys.post.of(post_id="post.id"))
def save(post: dict[str, str]) -> str:
    return ""


@invalidates(keys=[PostKeys.post, "other:{post_id}"], ns="posts")
def drop(post_id: int) -> None: ...


async def results() -> None:
    assert_type(feed(1, page=2), list[str])
    assert_type(await post(1), str)
    assert_type(posts([1]), dict[int, str])
