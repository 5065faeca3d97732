"""The same repositories under Flask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from cacheaside import default
from examples.minisocial.flask_app import create_app
from examples.minisocial.repositories import Repositories
from examples.minisocial.settings import Settings

PASSWORD = "a long password"
BASE = {"base_url": "https://localhost"}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    before = default._replace(None)
    app = create_app(Settings(f"sqlite:///{tmp_path / 'site.db'}", posts_per_minute=2))
    repositories = Repositories(app.extensions["minisocial"])
    for name in ("ann", "bob"):
        repositories.auth.register(f"{name}@example.org", name, PASSWORD)
    repositories.users.befriend(1, 2)
    yield app
    app.extensions["cacheaside"].close()
    app.extensions["minisocial"].close()
    default._replace(before)


def client_of(app: Flask, name: str) -> FlaskClient:
    client = app.test_client()
    account: Any = {"email": f"{name}@example.org", "password": PASSWORD}
    assert client.post("/login", json=account, **BASE).status_code == 200
    return client


def test_a_feed_follows_friends_and_their_edits(app: Flask) -> None:
    """A post shows at once; a repeated read is of the same version."""
    ann, bob = client_of(app, "ann"), client_of(app, "bob")
    assert ann.get("/feed", **BASE).json == {"user_id": 1, "posts": [], "version": 3}
    made = bob.post("/posts", json={"body": "hello"}, **BASE)
    assert made.status_code == 201
    feed = ann.get("/feed", **BASE).json
    assert feed is not None
    assert [post["body"] for post in feed["posts"]] == ["hello"]
    bob.put("/me", json={"name": "bob", "bio": "moths"}, **BASE)
    assert ann.get("/users/2", **BASE).json["bio"] == "moths"  # type: ignore[index]
    assert ann.get("/feed", **BASE).json == feed
    assert ann.get("/posts/1", **BASE).json == feed["posts"][0]


def test_who_is_not_logged_in_sees_what_is_public_only(app: Flask) -> None:
    """Nor after a logout; the console is for admins."""
    stranger, ann = app.test_client(), client_of(app, "ann")
    assert stranger.get("/me", **BASE).status_code == 401
    assert stranger.get("/users/1", **BASE).status_code == 200
    assert stranger.get("/users/99", **BASE).status_code == 404
    assert ann.get("/me", **BASE).json["name"] == "ann"  # type: ignore[index]
    assert ann.get("/cache/", **BASE).status_code == 403
    ann.post("/logout", **BASE)
    assert ann.get("/me", **BASE).status_code == 401
    wrong = stranger.post("/login", json={"email": "ann@example.org", "password": "wrong"}, **BASE)
    assert wrong.status_code == 401


def test_posts_are_limited_by_user(app: Flask) -> None:
    """And a body that is none is refused."""
    ann, bob = client_of(app, "ann"), client_of(app, "bob")
    assert [ann.post("/posts", json={"body": "x"}, **BASE).status_code for _ in range(3)] == [201, 201, 429]
    assert bob.post("/posts", json=["x"], **BASE).status_code == 422
