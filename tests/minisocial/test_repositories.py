"""The repositories: every method is decorated, under the keys and for the times of the services' table."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from cacheaside import Cache
from cacheaside.writers import Writer
from examples.minisocial.repositories import Repositories

PLAIN = {
    "auth.check",  # a password is compared with what the database has now
    "auth.register",  # hashes the password, then calls the one that writes
    "posts.trending_now",  # for warming, which must not be answered from the cache that it fills
    "users.active",
}

TABLE: list[tuple[str, tuple[Any, ...], str, float]] = [
    ("auth.account", (7,), "auth:user:7", 3600),
    ("users.profile", (7,), "users:profile:7", 7200),
    ("users.friends", (7,), "users:friends:7", 1800),
    ("users.settings", (7,), "users:settings:7", 3600),
    ("users.search", ("ann",), "users:search:YW5u", 60),
    ("posts.get", (7,), "posts:post:7", 1800),
    ("posts.comments", (7,), "posts:comments:7", 600),
    ("posts.reactions", (7,), "posts:reactions:7", 1800),
    ("posts.feed", (7, 2), "posts:feed:7:page:2", 900),
    ("posts.trending", (), "posts:trending", 60),
    ("messages.conversation", (7,), "messages:conversation:7", 3600),
    ("messages.messages", (7, 2), "messages:conversation:7:messages:page:2", 1800),
    ("messages.of_user", (7,), "messages:user:7:conversations", 900),
    ("media.file", (7,), "media:file:7", 3600),
    ("media.of_user", (7, 2), "media:user:7:page:2", 900),
    ("media.collection", (7,), "media:collection:7", 3600),
    ("notifications.of_user", (7,), "notifications:user:7", 300),
    ("notifications.unread", (7,), "notifications:unread:7", 300),
    ("notifications.preferences", (7,), "notifications:preferences:7", 3600),
    ("search.suggestions", ("ann",), "search:suggestions:YW5u", 60),
    ("search.results", ("ann",), "search:results:YW5u", 60),
]


def methods() -> dict[str, Any]:
    """What a repository has for others, by ``service.method``, as its class has it."""
    nothing: Any = None
    repositories = Repositories(nothing)
    return {
        f"{service}.{name}": inspect.getattr_static(type(repository), name)
        for service, repository in vars(repositories).items()
        if type(repository).__module__.startswith("examples.minisocial.repositories.")
        for name in vars(type(repository))
        if not name.startswith("_")
    }


def test_every_method_is_decorated() -> None:
    """Cached, or a writer that says what it has changed."""
    found = methods()
    assert len(found) > 30
    cached_ = {name for name, method in found.items() if hasattr(method, "peek")}
    writing = {name for name, method in found.items() if is_writer(inspect.unwrap(method, stop=is_writer))}
    assert cached_ | writing | PLAIN == found.keys()
    assert cached_ - {"posts.find", "search.filtered"} == {name for name, *_ in TABLE}


def is_writer(function: Any) -> bool:
    return isinstance(function, Writer)


@pytest.mark.parametrize(("name", "args", "key", "ttl"), TABLE, ids=[name for name, *_ in TABLE])
def test_keys_and_times_are_those_of_the_table(name: str, args: Any, key: str, ttl: float) -> None:
    method = methods()[name]
    assert method.key(None, *args) == key
    plan = method._self_plan
    assert plan.policy(Cache("embedded://", ttl=300)).ttl_of(None) == ttl


def test_several_posts_are_the_entries_of_one() -> None:
    """What ``find`` has loaded ``get`` need not."""
    assert methods()["posts.find"].key(None, 7) == "posts:post:7"
