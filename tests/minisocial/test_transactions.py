"""What the small social network writes and invalidates at once: neither without the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from cacheaside import MISSING, InvalidationNotAcknowledged, default
from examples.minisocial.models import User
from examples.minisocial.services import Services
from examples.minisocial.settings import Settings

from .conftest import on_both

pytestmark = on_both


@pytest.fixture
def opened(database: str) -> Iterator[Any]:
    """Services with a user, by settings; their cache is the default one."""
    made: list[Services] = []
    before = default._replace(None)

    def open_with(**settings: Any) -> Services:
        services = Services(Settings(database, **settings))
        made.append(services)
        default._replace(services.cache)
        services.database.create()
        services.repositories.auth._register("ann@example.org", "ann", "no hash")
        return services

    yield open_with
    for services in made:
        services.cache.close()
        services.database.close()
    default._replace(before)


def dies_after_the_hold(work: Any, **holding: Any) -> None:
    if "hold" in holding:
        work.cache.invalidate_now(keys=(), tags=tuple(work.levels[0].tags), **holding)


def test_a_writer_that_dies_after_its_commit_leaves_misses(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was committed, and nobody was told: the profile is loaded at each call, and not stored."""
    users = opened(hold=30.0).repositories.users
    assert users.profile(1).bio == ""
    with monkeypatch.context() as patch:
        patch.setattr("cacheaside_sqlalchemy.binding.Work.send", dies_after_the_hold)
        users.edit_profile(1, "ann", "new")
    assert [users.profile(1).bio for _ in range(2)] == ["new", "new"]
    assert users.profile.peek(1) is MISSING, "held"


def test_what_cannot_be_told_is_not_committed(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is away: the write is refused, not done without its invalidation."""
    services = opened()
    away = Services(Settings(services.settings.database, redis="redis://127.0.0.1:1", timeout=0.1))
    away.cache.invalidation_timeout = 0.1
    default._replace(away.cache)
    try:
        with pytest.raises(InvalidationNotAcknowledged):
            away.repositories.users.edit_profile(1, "ann", "new")
    finally:
        away.cache.close()
        away.database.close()
    with services.database.reading() as session:
        assert session.get_one(User, 1).bio == ""


def test_a_write_that_fails_invalidates_nothing(opened: Any) -> None:
    """A second user of that address; what is cached stays."""
    repositories = opened().repositories
    profile = repositories.users.profile(1)
    assert repositories.auth._register("ann@example.org", "other", "no hash") is None
    assert repositories.users.befriend(1, 99) is None
    assert repositories.users.profile.peek(1) == profile


def test_a_load_is_one_snapshot(opened: Any) -> None:
    """What is written meanwhile is not in it, so that its version is that of all it holds."""
    services = opened()
    with services.database.reading() as session:
        version = session.version
        change = services.repositories.users.edit_profile(1, "ann", "new")
        assert session.scalars(select(User.bio).where(User.id == 1)).one() == ""
        assert version < change.version
    with services.database.reading() as session:
        assert session.version == change.version
        assert session.scalars(select(User.bio).where(User.id == 1)).one() == "new"
