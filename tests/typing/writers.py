"""Functions that write keep their type, whatever they are."""

from __future__ import annotations

from typing import assert_type

from cacheaside import Cache, invalidates, updates

cache = Cache("embedded://")
posts = cache.namespace("posts")


@invalidates(tags=["post:{post_id}"])
def delete_post(post_id: int, *, soft: bool = True) -> bool:
    return soft and post_id > 0


def tags_of(post_id: int) -> list[str]:
    return [f"post:{post_id}"]


@cache.invalidates(tags=tags_of, keys=["post:{post_id}"], ns="posts", on_error=True)
async def adelete_post(post_id: int) -> bool:
    return post_id > 0


class Repository:
    @updates(ns="posts", key="post:{post_id}", ttl=1800, negative_ttl=5)
    def save(self, post_id: int, text: str) -> dict[str, str]:
        return {str(post_id): text}

    @posts.updates(key="post:{post_id}")
    async def asave(self, post_id: int, text: str) -> dict[str, str]:
        return {str(post_id): text}

    @posts.invalidates(keys=["post:{post_id}"])
    @staticmethod
    def drop(post_id: int) -> int:
        return post_id

    @posts.invalidates(tags=["all"])
    @classmethod
    def drop_all(cls, reason: str) -> str:
        return reason


repository = Repository()


def calls() -> None:
    assert_type(delete_post(1, soft=False), bool)
    assert_type(repository.save(1, text="x"), dict[str, str])
    assert_type(repository.drop(1), int)
    assert_type(Repository.drop(1), int)
    assert_type(Repository.drop_all("x"), str)
    assert_type(repository.drop_all("x"), str)


async def coroutines() -> None:
    assert_type(await adelete_post(1), bool)
    assert_type(await repository.asave(1, "x"), dict[str, str])
