"""Keys of a Redis grow older without anybody waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from cacheaside import Cache
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.redis import RedisStore
from cacheaside.testing import FakeClock

FAKEREDIS = ("_helpers", "_socket._base", "commands_mixins.server_mixin")
"""The modules of fakeredis that ask for the time."""


def obey(patch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Have every Redis of this process go by ``clock``: what ends there, and what scripts are told."""
    for module in FAKEREDIS:
        patch.setattr(f"fakeredis.{module}.time", SimpleNamespace(time=clock, monotonic=clock))


@contextmanager
def cache_on(store: str, clock: FakeClock) -> Iterator[Cache]:
    """A cache on a new store, ``"embedded"`` or ``"redis"`` of this process, all of it by ``clock``."""
    if store == "embedded":
        with Cache("embedded://", clock=clock) as cache:
            yield cache
        return
    with pytest.MonkeyPatch.context() as patch:
        obey(patch, clock)
        server = fakeredis.FakeServer()
        made = RedisStore(
            RawKeys("cacheaside"), lambda: fakeredis.FakeRedis(server=server), fakeredis.FakeAsyncRedis
        )
        with Cache(store=made, clock=clock) as cache:
            yield cache


def aged(client: Any) -> Callable[[float], None]:
    """Take so many seconds from the life of every key."""

    def wait(seconds: float) -> None:
        for key in client.scan_iter():
            client.pexpire(key, client.pttl(key) - int(seconds * 1000))  # below zero it is deleted

    return wait
