"""Three ways to use the repository: without a cache, with a hand-made one, with cacheaside."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import redis

from cacheaside import Cache

from .repository import PAGES, Change, Feed, Friends, Post, Profile, Repository

TYPES: Final = {"profile": Profile, "friends": Friends, "post": Post, "feed": Feed}
TTL: Final = 900


class Uncached:
    """The methods themselves, without what the decorators add."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def read(self, method: str, *args: Any) -> Any:
        return getattr(self.repository, method).uncached(*args)

    def write(self, method: str, *args: Any) -> Change:
        change: Change = getattr(self.repository, method).__wrapped__(*args)
        return change

    def counts(self) -> dict[str, int]:
        return {}


class Naive(Uncached):
    """What is written by hand nearly everywhere: GET, on a miss load and SET, after a write DEL.

    It is wrong. Between a reader's load and its SET, a writer may commit and DEL: the reader then stores
    what is no longer true, and it stays until its ttl or the next write.
    """

    def __init__(self, repository: Repository, client: redis.Redis, prefix: str) -> None:
        super().__init__(repository)
        self.client: Any = client
        self.prefix = prefix
        self.hits = self.loads = 0

    def read(self, method: str, *args: Any) -> Any:
        key = self.key(method, *args)
        stored = self.client.get(key)
        if stored is not None:
            self.hits += 1
            return msgspec.msgpack.decode(stored, type=TYPES[method])
        self.loads += 1
        loaded = super().read(method, *args)
        self.client.set(key, msgspec.msgpack.encode(loaded), ex=TTL)
        return loaded

    def write(self, method: str, *args: Any) -> Change:
        change = super().write(method, *args)
        self.client.delete(
            *(self.key("profile", user) for user in change.profiles),
            *(self.key("friends", user) for user in change.friends),
            *(self.key("post", post) for post in change.posts),
            *(self.key("feed", user, page) for user in change.feeds for page in range(PAGES)),
        )
        return change

    def counts(self) -> dict[str, int]:
        return {"hits_l2": self.hits, "loads": self.loads}

    def key(self, method: str, *args: Any) -> str:
        return f"{self.prefix}:{getattr(self.repository, method).key(*args)}"


class Cacheaside(Uncached):
    """The repository as it is meant to be used: its methods are called."""

    def __init__(self, repository: Repository, cache: Cache) -> None:
        super().__init__(repository)
        self.cache = cache

    def read(self, method: str, *args: Any) -> Any:
        return getattr(self.repository, method)(*args)

    def write(self, method: str, *args: Any) -> Change:
        change: Change = getattr(self.repository, method)(*args)
        return change

    def counts(self) -> dict[str, int]:
        """Hits by tier and loads."""
        spaces = self.cache.stats()["namespaces"].values()
        return {name: sum(space[name] for space in spaces) for name in ("hits_l1", "hits_l2", "loads")}
