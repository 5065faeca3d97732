"""Functions of many ids keep their signature; handles of one id take one, and know the type of its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_type

from cacheaside import MISSING, Cache, Receipt, cached_many

cache = Cache("embedded://")


@cached_many(ns="names", key="name:{id}", ttl=60, tags=["name:{id}"], l1=False)
def names(ids: Sequence[int], lang: str = "en") -> Mapping[int, str]:
    return dict.fromkeys(ids, lang)


class Repository:
    @cache.cached_many(ns="posts", key="post:{id}")
    def posts(self, ids: Sequence[int]) -> dict[int, str]:
        return {one: str(one) for one in ids}

    @cache.namespace("users").cached_many(key="user:{id}")
    async def users(self, ids: list[str], *, active: bool = True) -> dict[str, float]:
        return {one: float(active) for one in ids}


repository = Repository()


def a_function() -> None:
    assert_type(names([1, 2], lang="fr"), dict[int, str])
    assert_type(names.key(1), str)
    assert_type(names.uncached([1]), Mapping[int, str])


def a_method() -> None:
    assert_type(repository.posts([1, 2]), dict[int, str])
    assert_type(repository.posts.key(1), str)
    assert_type(repository.posts.tags(1), tuple[str, ...])
    assert_type(repository.posts.refresh([1, 2]), dict[int, str])
    assert_type(repository.posts.invalidate([1, 2]), Receipt)
    assert_type(repository.posts.put("x", 1), bool)
    assert_type(repository.posts.put(None, 1), bool)
    assert_type(repository.posts.warm(range(3)), int)
    kept = repository.posts.peek(1)
    if kept is not MISSING:
        assert_type(kept, str | None)


async def a_coroutine() -> None:
    assert_type(await repository.users(["a"], active=False), dict[str, float])
    assert_type(repository.users.key("a", active=False), str)
    assert_type(await repository.users.invalidate(["a"]), Receipt)
    assert_type(await repository.users.put(1.5, "a"), bool)
    kept = await repository.users.peek("a")
    if kept is not MISSING:
        assert_type(kept, float | None)
