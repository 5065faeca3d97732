"""What other libraries take for the same hits: for the table only."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import cachetools
import pytest

from cacheaside import Cache

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Post:
    id: int
    title: str
    body: str
    author: int


def make(n: int) -> Post:
    return Post(n, f"post {n}", "What a day it was. " * 8, n % 7)


async def amake(n: int) -> Post:
    return make(n)


def named(*packages: str) -> Iterator[str]:
    return (f"{package} {version(package)}" for package in packages)


@pytest.fixture(params=["memory", "redis"])
async def peers(request, one_redis_url):
    """The same function under each library, in the memory of this process or in Redis."""
    aiocache = pytest.importorskip("aiocache")
    cashews = pytest.importorskip("cashews")
    dogpile = pytest.importorskip("dogpile.cache")
    near = request.param == "memory"
    url = urlsplit(one_redis_url)

    cache = Cache("embedded://" if near else one_redis_url)
    shared = {"ns": "peers", "key": "post:{n}", "tags": ["post:{n}"], "l1": near}

    @cache.cached(**shared)
    def ours(n: int) -> Post:
        return make(n)

    @cache.cached(**shared | {"ns": "apeers"})
    async def aours(n: int) -> Post:
        return make(n)

    region = dogpile.make_region()
    if near:
        region.configure("dogpile.cache.memory", expiration_time=300)
    else:
        region.configure("dogpile.cache.redis", expiration_time=300, arguments={"url": one_redis_url})
    of_dogpile = region.cache_on_arguments()(make)

    of_cachetools = cachetools.cached(cachetools.TTLCache(1024, 300), lock=Lock())(make)

    their_cache = cashews.Cache()
    their_cache.setup("mem://" if near else one_redis_url)
    of_cashews = their_cache(ttl="5m", key="post:{n}")(amake)

    def key_of(function: Any, n: int) -> str:
        return f"post:{n}"

    backend = (
        functools.partial(aiocache.cached, cache=aiocache.SimpleMemoryCache)
        if near
        else functools.partial(
            aiocache.cached,
            cache=aiocache.RedisCache,
            endpoint=url.hostname,
            port=url.port,
            serializer=aiocache.serializers.PickleSerializer(),
        )
    )
    of_aiocache = backend(ttl=300, key_builder=key_of)(amake)

    assert ours(42) == of_dogpile(42) == of_cachetools(42) == make(42)
    assert await aours(42) == await of_cashews(42) == await of_aiocache(42) == make(42)
    yield request.param, locals()
    await their_cache.close()
    await of_aiocache.cache.close()
    await cache.aclose()


async def test_hits(race, peers):
    where, names = peers
    dogpile, tools, cashews, aiocache = named("dogpile.cache", "cachetools", "cashews", "aiocache")
    calls = {"cacheaside": "ours(42)", dogpile: "of_dogpile(42)"}
    if where == "memory":
        calls[f"{tools}, TTLCache"] = "of_cachetools(42)"
    await race(f"Hit in {where}", calls, names)
    calls = {
        "cacheaside": "await aours(42)",
        cashews: "await of_cashews(42)",
        aiocache: "await of_aiocache(42)",
    }
    await race(f"Hit in {where}, asyncio", calls, names)
