"""The memo of a request: one value for each key, sync and async, and nothing of it in another request.

Annotations are values here, for they name what each app has made for itself.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from cacheaside_fastapi import Memo, MemoDep, lifespan
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from cacheaside import Cache, ConfigError


class Site:
    """An app whose values change with each load, and are invalidated in the middle of each request."""

    def __init__(self) -> None:
        self.cache = cache = Cache("embedded://")
        self.loads = 0

        class Values:
            @cache.cached(ns="values", key="later:{name}", tags=["values"])
            async def later(_, name: str) -> list[int]:
                self.loads += 1
                return [self.loads]

            @cache.cached(ns="values", key="now:{name}", tags=["values"])
            def now(_, name: str) -> list[int]:
                self.loads += 1
                return [self.loads]

        self.values = values = Values()
        self.app = app = FastAPI(lifespan=lifespan(cache))

        async def checked(memo: MemoDep) -> list[int]:
            found = await memo(values.later, "a")
            await cache.ainvalidate(tags=["values"])
            return found

        def checked_now(memo: MemoDep) -> list[int]:
            found = memo(values.now, "a")
            cache.invalidate(tags=["values"])
            return found

        first, first_now = Depends(checked), Depends(checked_now)

        @app.get("/later")
        async def later(memo: MemoDep, seen: list[int] = first) -> list[Any]:
            again = await memo(values.later, name="a")
            again.append(0)  # one's own
            return [seen, await memo(values.later, "a"), await values.later("a")]

        @app.get("/now")
        def now(memo: MemoDep, seen: list[int] = first_now) -> list[Any]:
            memo(values.now, name="a").append(0)
            return [seen, memo(values.now, "a"), values.now("a")]

        @app.get("/written")
        async def written(memo: MemoDep, seen: list[int] = first) -> list[Any]:
            memo.forget()
            return [seen, await memo(values.later, "a")]

        @app.get("/together")
        async def together(memo: MemoDep) -> list[Any]:
            return await asyncio.gather(*(memo(values.later, name) for name in "aabb"))


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    with TestClient(site.app) as made:
        yield made


@pytest.mark.parametrize("path", ["/later", "/now"])
def test_a_request_sees_one_value_for_a_key(client: TestClient, path: str) -> None:
    """The dependency's, though it was invalidated since; a call beside the memo sees what is new."""
    assert client.get(path).json() == [[1], [1], [2]]


@pytest.mark.parametrize("path", ["/later", "/now"])
def test_nothing_is_left_for_the_next_request(client: TestClient, path: str) -> None:
    """It asks the cache, whose promise it has."""
    client.get(path)
    assert client.get(path).json()[0] == [2]


def test_what_a_request_has_written_it_sees_after_forgetting(client: TestClient) -> None:
    assert client.get("/written").json() == [[1], [2]]


def test_calls_at_once_have_one_answer_for_each_key(client: TestClient) -> None:
    a, same, b, also = client.get("/together").json()
    assert (a, b) == (same, also)
    assert a != b


async def test_an_error_is_not_remembered(site: Site) -> None:
    @site.cache.cached(ns="values", key="shaky")
    async def shaky() -> int:
        site.loads += 1
        if site.loads == 1:
            raise ZeroDivisionError
        return site.loads

    memo = Memo()
    with pytest.raises(ZeroDivisionError):
        await memo(shaky)
    assert await memo(shaky) == 2


async def test_what_others_invalidate_while_it_loads_changes_nothing_that_was_told(site: Site) -> None:
    """Two tasks of a request load one key, and a forget comes between: neither mixes old and new."""
    memo = Memo()
    first = asyncio.create_task(memo(site.values.later, "a"))
    await asyncio.sleep(0)
    memo.forget()
    await site.cache.ainvalidate(tags=["values"])
    assert await memo(site.values.later, "a") == await memo(site.values.later, "a")
    await first


def test_openapi_shows_nothing_of_it(client: TestClient) -> None:
    assert "parameters" not in client.get("/openapi.json").json()["paths"]["/later"]["get"]


def test_what_is_not_cached_is_refused() -> None:
    with pytest.raises(ConfigError, match="is none"):
        Memo()(len, "abc")
