"""The race of the comparison page, run against other libraries: no timing, but a claim that must hold.

A reader misses and loads the old row; a writer changes it and invalidates; the reader stores what it loaded.
Then somebody else asks. All in memory: what is tried is the order of steps, which no server changes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cacheaside import Cache

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]
PATIENCE = 10.0


class Row:
    """A row, and a load of it that is overtaken: the first one returns when it may."""

    def __init__(self) -> None:
        self.value = "old"
        self.has_read, self.may_return = threading.Event(), threading.Event()

    def load(self, n: int) -> str:
        value = self.value
        if not self.has_read.is_set():
            self.has_read.set()
            assert self.may_return.wait(PATIENCE)
        return value

    async def aload(self, n: int) -> str:
        value = self.value
        if not self.has_read.is_set():
            self.has_read.set()
            while not self.may_return.is_set():
                await asyncio.sleep(0)
        return value


def after(row: Row, read: Callable[[], str], invalidate: Callable[[], object]) -> str:
    """What a call that starts after the invalidation is answered with."""
    answers: list[str] = []
    reader = threading.Thread(target=lambda: answers.append(read()))
    reader.start()
    assert row.has_read.wait(PATIENCE)
    row.value = "new"
    invalidate()
    row.may_return.set()
    reader.join(PATIENCE)
    assert answers == ["old"]
    return read()


async def aafter(
    row: Row, read: Callable[[], Awaitable[str]], invalidate: Callable[[], Awaitable[object]]
) -> str:
    reader = asyncio.ensure_future(read())
    while not row.has_read.is_set():
        await asyncio.sleep(0)
    row.value = "new"
    await invalidate()
    row.may_return.set()
    assert await reader == "old"
    return await read()


@pytest.mark.parametrize("how", ["key", "tag"])
def test_cacheaside_answers_with_the_new_row(how: str) -> None:
    row = Row()
    with Cache("embedded://") as cache:

        @cache.cached(ns="race", key="{n}", tags=["t:{n}"])
        def read(n: int) -> str:
            return row.load(n)

        drop = {"keys": ["race:1"]} if how == "key" else {"tags": ["t:1"]}
        assert after(row, lambda: read(1), lambda: cache.invalidate(**drop)) == "new"


@pytest.mark.parametrize("how", ["invalidate of a key", "invalidate of the region", "soft, of the region"])
def test_dogpile_cache_keeps_the_old_row(how: str) -> None:
    dogpile = pytest.importorskip("dogpile.cache")
    row = Row()
    region = dogpile.make_region().configure("dogpile.cache.memory", expiration_time=300)
    read = region.cache_on_arguments()(lambda n: row.load(n))
    drops: dict[str, Callable[[], object]] = {
        "invalidate of a key": lambda: read.invalidate(1),
        "invalidate of the region": lambda: region.invalidate(hard=True),
        "soft, of the region": lambda: region.invalidate(hard=False),
    }
    assert after(row, lambda: read(1), drops[how]) == "old"


@pytest.mark.parametrize(("arguments", "answer"), [((1,), "old"), ((), "new")])
def test_flask_caching_keeps_it_for_one_call_and_not_for_a_whole_function(
    arguments: tuple[Any, ...], answer: str
) -> None:
    flask_caching = pytest.importorskip("flask_caching")
    from flask import Flask

    row = Row()
    app = Flask("race")
    cache = flask_caching.Cache(app, config={"CACHE_TYPE": "SimpleCache"})
    read = cache.memoize(300)(row.load)

    def within(call: Callable[..., Any], *args: Any) -> Any:
        with app.app_context():
            return call(*args)

    drop = lambda: within(cache.delete_memoized, read, *arguments)  # noqa: E731
    assert after(row, lambda: within(read, 1), drop) == answer


@pytest.mark.parametrize("how", ["plain", "lock", "early", "soft"])
async def test_cashews_keeps_the_old_row(how: str) -> None:
    cashews = pytest.importorskip("cashews")
    row = Row()
    cache = cashews.Cache()
    cache.setup("mem://")
    options: dict[str, Any] = {"ttl": "5m", "key": "race:{n}", "tags": ["t:{n}"]}
    decorate = {"early": cache.early, "soft": cache.soft}.get(how, cache)

    @decorate(**options | ({"lock": True} if how == "lock" else {}))
    async def read(n: int) -> str:
        return await row.aload(n)

    assert await aafter(row, lambda: read(1), lambda: cache.delete_tags("t:1")) == "old"
    await cache.close()


@pytest.mark.parametrize("decorator", ["cached", "cached_stampede"])
async def test_aiocache_keeps_the_old_row(decorator: str) -> None:
    aiocache = pytest.importorskip("aiocache")
    row = Row()

    @getattr(aiocache, decorator)(ttl=300, key="race")
    async def read() -> str:
        return await row.aload(1)

    assert await aafter(row, read, lambda: read.cache.delete("race")) == "old"
