"""What an attacker would try with the small social network, and gets nothing by."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import PASSWORD, Site

COOKIE = "__Host-session"


def test_a_session_planted_before_a_login_is_worth_nothing_after_it(site: Site) -> None:
    """Session fixation: the thief's own session, put into the victim's browser."""
    eve, ann = site.person("eve"), site.person("ann")
    planted = eve.cookies[COOKIE]
    ann.cookies.clear()
    account = {"email": "ann@example.org", "password": PASSWORD}
    answer = ann.post("/login", json=account, headers={"cookie": f"{COOKIE}={planted}"})
    assert answer.status_code == 200
    assert planted not in answer.headers["set-cookie"]
    thief = site.stranger()
    assert thief.get("/me", headers={"cookie": f"{COOKIE}={planted}"}).status_code == 401


def test_a_refresh_token_used_again_ends_what_came_of_it(open_site: Callable[..., Site]) -> None:
    """Token replay, its grace over: the thief gets nothing, and the user must log in again."""
    site = open_site(refresh_grace=0.0)
    ann, thief = site.person("ann"), site.stranger()
    stolen = ann.refresh_token
    mine = ann.post("/refresh", json={"refresh_token": stolen}).json()["refresh_token"]
    assert thief.post("/refresh", json={"refresh_token": stolen}).status_code == 401
    assert ann.post("/refresh", json={"refresh_token": mine}).status_code == 401
    assert site.services.refresh_tokens.stats()["replayed"] == 1


def test_a_session_that_was_logged_out_cannot_be_replayed(site: Site) -> None:
    """Nor one whose user has logged out everywhere."""
    ann = site.person("ann")
    kept = {"cookie": f"{COOKIE}={ann.cookies[COOKIE]}"}
    ann.post("/logout/everywhere")
    assert site.stranger().get("/me", headers=kept).status_code == 401


@pytest.mark.parametrize("path", ["/me", "/feed", "/sessions", "/notifications", "/cache/", "/stats"])
def test_oversized_cookies_open_nothing(site: Site, path: str) -> None:
    """A hundred kilobytes of them."""
    huge = "; ".join([f"{COOKIE}={'x' * 50_000}", f"other={'y' * 50_000}"])
    assert site.stranger().get(path, headers={"cookie": huge}).status_code in (401, 403)


def test_oversized_bodies_are_refused_before_they_are_stored(site: Site) -> None:
    """Each field has its limit."""
    ann = site.person("ann")
    assert ann.post("/posts", json={"body": "x" * 100_000}).status_code == 422
    assert ann.put("/me", json={"name": "x" * 101, "bio": ""}).status_code == 422
    assert site.stranger().post("/refresh", json={"refresh_token": "x" * 100_000}).status_code == 422


def test_passwords_cannot_be_tried_without_end(open_site: Callable[..., Site]) -> None:
    """Five times a minute for an account, whoever asks, and a right one is refused then as well."""
    site = open_site(logins_per_minute=1000)
    ann, eve = site.person("ann"), site.stranger()  # the login counts as the first
    account = {"email": "ann@example.org"}
    codes = [eve.post("/login", json={**account, "password": f"wrong {n:04}"}).status_code for n in range(5)]
    assert codes == [401, 401, 401, 401, 429]
    refused = eve.post("/login", json={"email": "ANN@example.org", "password": PASSWORD})
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit-policy"] == '"login-account";q=5;w=60'
    assert ann.get("/me").status_code == 200


def test_an_address_cannot_try_many_accounts(open_site: Callable[..., Site]) -> None:
    """Registrations count too."""
    eve = open_site(logins_per_minute=3).stranger()
    codes = [
        eve.post("/login", json={"email": f"{n}@example.org", "password": PASSWORD}).status_code
        for n in range(4)
    ]
    assert codes == [401, 401, 401, 429]


def test_nobody_posts_more_than_so_often(open_site: Callable[..., Site]) -> None:
    """Each user for themselves."""
    site = open_site(posts_per_minute=2)
    ann, bob = site.person("ann"), site.person("bob")
    assert [ann.post("/posts", json={"body": "x"}).status_code for _ in range(3)] == [201, 201, 429]
    allowed = bob.post("/posts", json={"body": "x"})
    assert (allowed.status_code, allowed.headers["ratelimit"]) == (201, '"post";r=1;t=60')


def test_the_console_is_for_admins(site: Site) -> None:
    """Neither strangers nor users see it, or what the processes count."""
    ann = site.person("ann")
    for path in ("/cache/", "/stats"):
        assert site.stranger().get(path).status_code == 403
        assert ann.get(path).status_code == 403
    session = site.services.sessions.list(ann.id)[0]
    assert site.services.sessions.update(ann.cookies[COOKIE], {"role": "admin"}).id == session.id
    assert "cacheaside" in ann.get("/cache/").text
    assert ann.get("/stats").json()["loads"] >= 1


def test_no_answer_is_for_another_user(site: Site) -> None:
    """What is told by a cookie differs by it, also when it has just been told to somebody else."""
    people = [site.person(name) for name in ("ann", "bob")]
    for _ in range(2):
        for who in people:
            assert who.get("/me").json()["id"] == who.id
            for path in ("/feed", "/notifications", "/notifications/unread", "/me/settings"):
                assert who.get(path).json()["user_id"] == who.id
