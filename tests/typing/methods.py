"""Cached methods of every kind lose their receiver when they are bound, and their handles do too."""

from __future__ import annotations

from typing import assert_type

from cacheaside import Receipt, cached


class Repository:
    @cached(ns="one")
    def one(self, post_id: int) -> str:
        return str(post_id)

    @cached(ns="aone")
    async def aone(self, post_id: int, lang: str = "en") -> str:
        return f"{post_id}{lang}"

    @cached(ns="static")
    @staticmethod
    def static(x: int) -> str:
        return str(x)

    @cached(ns="astatic")
    @staticmethod
    async def astatic(x: int) -> str:
        return str(x)

    @staticmethod
    @cached(ns="static_inside")
    def static_inside(x: int) -> str:
        return str(x)

    @cached(ns="of_class")
    @classmethod
    def of_class(cls, x: int) -> str:
        return cls.__name__ * x

    @cached(ns="aof_class")
    @classmethod
    async def aof_class(cls, x: int) -> str:
        return cls.__name__ * x


class Child(Repository):
    pass


repository = Repository()


def methods() -> None:
    assert_type(repository.one(1), str)
    assert_type(repository.one.key(post_id=1), str)
    assert_type(repository.one.refresh(1), str)
    assert_type(repository.one.invalidate(1), Receipt)
    assert_type(repository.one.put("x", 1), bool)
    assert_type(Repository.one(repository, 1), str)
    assert_type(Child().one(1), str)


def staticmethods() -> None:
    assert_type(repository.static(1), str)
    assert_type(Repository.static(1), str)
    assert_type(Repository.static.key(1), str)
    assert_type(repository.static.invalidate(1), Receipt)
    assert_type(repository.static_inside(1), str)
    assert_type(Repository.static_inside(1), str)


def classmethods() -> None:
    assert_type(repository.of_class(1), str)
    assert_type(Repository.of_class(1), str)
    assert_type(Child.of_class(1), str)
    assert_type(Repository.of_class.key(1), str)
    assert_type(repository.of_class.invalidate(1), Receipt)


async def coroutines() -> None:
    assert_type(await repository.aone(1, lang="fr"), str)
    assert_type(repository.aone.key(1), str)
    assert_type(await repository.aone.invalidate(1, lang="fr"), Receipt)
    assert_type(await repository.astatic(1), str)
    assert_type(await Repository.astatic(1), str)
    assert_type(await repository.aof_class(1), str)
    assert_type(await Repository.aof_class.refresh(1), str)
