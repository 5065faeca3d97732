"""The app of ``examples/minisocial`` with a database of its own, embedded or on a real server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cacheaside import default
from examples.minisocial.app import create_app
from examples.minisocial.settings import Settings

from .postgres import Postgres, binaries

PASSWORD = "a long password"


class Person(TestClient):
    """Somebody's browser: keeps cookies, and knows who they are."""

    id: int
    refresh_token: str


class Site:
    def __init__(self, running: TestClient) -> None:
        self.running = running
        self.services = running.app.state.services  # type: ignore[attr-defined]

    def stranger(self) -> Person:
        """Another client of the same running app, on its event loop."""
        who = Person(self.running.app, base_url="https://testserver")
        who.app_state.update(self.running.app_state)
        who.portal = self.running.portal
        return who

    def person(self, name: str) -> Person:
        """Registered, and logged in."""
        who = self.stranger()
        account = {"email": f"{name}@example.org", "password": PASSWORD}
        made = who.post("/register", json={**account, "name": name})
        assert made.status_code == 201, made.text
        answer = who.post("/login", json=account)
        assert answer.status_code == 200, answer.text
        who.id, who.refresh_token = answer.json()["user_id"], answer.json()["refresh_token"]
        return who


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    where = binaries()
    if where is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no PostgreSQL: apt-get install postgresql")
    with Postgres(where) as started:
        yield started


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty one: SQLite, or what an indirect parameter names."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path / 'site.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


on_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def open_site(database: str) -> Iterator[Callable[..., Site]]:
    """Start an app; it ends with the test."""
    with ExitStack() as stack:
        stack.callback(default._replace, default._replace(None))

        def opened(**settings: Any) -> Site:
            given = {"database": database, "warm": 0.0, **settings}
            return Site(stack.enter_context(TestClient(create_app(Settings(**given)))))

        yield opened


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    return open_site(logins_per_minute=1000)
