"""What people do with the small social network, from register to logout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect

from .conftest import PASSWORD, Site, on_both

pytestmark = on_both


def test_an_account_is_registered_once_and_opened_by_its_password(site: Site) -> None:
    """409 for the second, 401 for a wrong password and for nobody, alike."""
    ann = site.person("ann")
    assert ann.get("/me").json()["name"] == "ann"
    twice = {"email": "ANN@example.org", "password": PASSWORD, "name": "other"}
    assert ann.post("/register", json=twice).status_code == 409
    who = site.stranger()
    wrong = who.post("/login", json={"email": "ann@example.org", "password": "not this one"})
    nobody = who.post("/login", json={"email": "bob@example.org", "password": "not this one"})
    assert (wrong.status_code, wrong.json()) == (nobody.status_code, nobody.json())
    assert wrong.status_code == 401
    assert who.get("/me").status_code == 401


def test_a_profile_is_as_its_owner_has_just_left_it(site: Site) -> None:
    """A read after a write has at least its version; a repeated read is a hit of the same version."""
    ann, bob = site.person("ann"), site.person("bob")
    path = f"/users/{ann.id}"
    before = bob.get(path).json()
    change = ann.put("/me", json={"name": "ann", "bio": "likes tea"}).json()
    after = bob.get(path).json()
    assert before["version"] < change["version"] <= after["version"]
    assert after["bio"] == "likes tea"
    assert f"user:{ann.id}" in change["tags"]
    bob.put("/me", json={"name": "bob", "bio": "another write"})
    assert bob.get(path).json() == after


def test_settings_are_ones_own(site: Site) -> None:
    """There is no path to another's."""
    ann, bob = site.person("ann"), site.person("bob")
    ann.put("/me/settings", json={"language": "fr", "theme": "dark"})
    assert ann.get("/me/settings").json()["language"] == "fr"
    assert bob.get("/me/settings").json()["language"] == "en"


def test_a_feed_has_the_posts_of_friends_and_follows_them(site: Site) -> None:
    """New posts, edits, deletions, new friends and lost ones."""
    ann, bob = site.person("ann"), site.person("bob")
    first = bob.post("/posts", json={"body": "one"}).json()["id"]
    assert ann.get("/feed").json()["posts"] == []
    assert ann.put(f"/me/friends/{bob.id}").status_code == 200
    assert ann.put(f"/me/friends/{bob.id}").status_code == 404  # they are already

    def feed() -> list[str]:
        return [post["body"] for post in ann.get("/feed").json()["posts"]]

    assert feed() == ["one"]
    second = bob.post("/posts", json={"body": "two"}).json()["id"]
    assert feed() == ["two", "one"]
    bob.put(f"/posts/{first}", json={"body": "uno"})
    assert feed() == ["two", "uno"]
    bob.delete(f"/posts/{second}")
    assert feed() == ["uno"]
    assert ann.get(f"/users/{bob.id}/friends").json()["ids"] == [ann.id]
    ann.delete(f"/me/friends/{bob.id}")
    assert feed() == []


def test_a_feed_has_pages(site: Site) -> None:
    """Ten posts each, newest first; a page that cannot be is refused."""
    ann, bob = site.person("ann"), site.person("bob")
    ann.put(f"/me/friends/{bob.id}")
    for n in range(12):
        bob.post("/posts", json={"body": str(n)})
    pages = [[post["body"] for post in ann.get(f"/feed?page={n}").json()["posts"]] for n in (1, 2, 3)]
    assert pages == [[str(n) for n in range(11, 1, -1)], ["1", "0"], []]
    assert ann.get("/feed?page=0").status_code == 422


def test_only_authors_change_their_posts(site: Site) -> None:
    """404 for the others, as for posts that are not there; the post stays."""
    ann, bob = site.person("ann"), site.person("bob")
    post = ann.post("/posts", json={"body": "mine"}).json()["id"]
    assert bob.put(f"/posts/{post}", json={"body": "his"}).status_code == 404
    assert bob.delete(f"/posts/{post}").status_code == 404
    assert site.stranger().post("/posts", json={"body": "x"}).status_code == 401
    assert bob.get(f"/posts/{post}").json()["body"] == "mine"
    assert bob.get("/posts/999").status_code == 404


def test_comments_and_reactions_show_at_once_and_notify_the_author(site: Site) -> None:
    """One reaction each; the unread count follows."""
    ann, bob = site.person("ann"), site.person("bob")
    post = ann.post("/posts", json={"body": "tea?"}).json()["id"]
    assert bob.get(f"/posts/{post}/comments").json()["comments"] == []
    assert bob.get(f"/posts/{post}/reactions").json()["counts"] == []
    assert ann.get("/notifications/unread").json()["count"] == 0
    assert bob.post(f"/posts/{post}/comments", json={"body": "yes"}).status_code == 201
    for kind in ("like", "love"):
        bob.put(f"/posts/{post}/reaction", json={"kind": kind})
    assert bob.get(f"/posts/{post}/comments").json()["comments"][0]["body"] == "yes"
    assert bob.get(f"/posts/{post}/reactions").json()["counts"] == [["love", 1]]
    bob.delete(f"/posts/{post}/reaction")
    assert bob.get(f"/posts/{post}/reactions").json()["counts"] == []
    assert ann.get("/notifications/unread").json()["count"] == 1
    assert ann.get("/notifications").json()["notifications"][0]["kind"] == "comment"
    ann.post("/notifications/read")
    assert ann.get("/notifications/unread").json() | {"version": 0} == {
        "user_id": ann.id,
        "count": 0,
        "version": 0,
    }


def test_trending_shows_posts_as_they_are_now(site: Site) -> None:
    """Which ones may be a minute old; what they say is not."""
    ann, bob = site.person("ann"), site.person("bob")
    one, two = (ann.post("/posts", json={"body": body}).json()["id"] for body in ("one", "two"))
    bob.put(f"/posts/{one}/reaction", json={"kind": "like"})
    assert [post["id"] for post in bob.get("/trending").json()] == [one, two]
    ann.put(f"/posts/{one}", json={"body": "uno"})
    assert bob.get("/trending").json()[0]["body"] == "uno"
    ann.delete(f"/posts/{one}")
    assert [post["id"] for post in bob.get("/trending").json()] == [two]


def test_a_conversation_is_open_to_its_people_only(site: Site) -> None:
    """Others get 404; a message drops every page and the lists of all who take part."""
    ann, bob, eve = (site.person(name) for name in ("ann", "bob", "eve"))
    assert bob.get("/conversations").json()["ids"] == []
    started = ann.post("/conversations", json={"title": "tea", "with_users": [bob.id]}).json()["id"]
    assert bob.get("/conversations").json()["ids"] == [started]
    path = f"/conversations/{started}/messages"
    assert bob.get(path).json()["messages"] == []
    for n in range(11):
        ann.post(path, json={"body": str(n)})
    assert [message["body"] for message in bob.get(path).json()["messages"]][:2] == ["10", "9"]
    assert [message["body"] for message in bob.get(f"{path}?page=2").json()["messages"]] == ["0"]
    assert bob.get("/notifications/unread").json()["count"] == 11
    for answer in (eve.get(path), eve.get(f"/conversations/{started}"), eve.post(path, json={"body": "x"})):
        assert answer.status_code == 404
    assert ann.post("/conversations", json={"title": "", "with_users": [999]}).status_code == 422


def test_files_and_collections_follow_each_other(site: Site) -> None:
    """A file of a collection shows in it, until it is removed by its owner."""
    ann, bob = site.person("ann"), site.person("bob")
    album = ann.post("/collections", json={"title": "moths"}).json()["id"]
    assert ann.get(f"/collections/{album}").json()["file_ids"] == []
    picture = {"name": "a.png", "kind": "image/png", "size": 9, "collection_id": album}
    assert bob.post("/files", json=picture).status_code == 404
    file = ann.post("/files", json=picture).json()["id"]
    assert ann.get(f"/collections/{album}").json()["file_ids"] == [file]
    assert bob.get(f"/files/{file}").json()["kind"] == "image/png"
    assert bob.get(f"/users/{ann.id}/files").json()["ids"] == [file]
    assert bob.delete(f"/files/{file}").status_code == 404
    assert ann.delete(f"/files/{file}").status_code == 200
    assert ann.get(f"/collections/{album}").json()["file_ids"] == []
    assert bob.get(f"/files/{file}").status_code == 404


def test_searches_find_users_and_posts(site: Site) -> None:
    """By name, by words, by words of one author; suggestions are cached as a response, cookie or not."""
    ann, bob = site.person("ann"), site.person("bob")
    ann.post("/posts", json={"body": "green tea"})
    bob.post("/posts", json={"body": "black tea"})
    assert ann.get("/users?q=AN").json() == [{"id": ann.id, "name": "ann"}]
    assert [hit["author_id"] for hit in ann.get("/search?q=tea").json()] == [bob.id, ann.id]
    assert [hit["body"] for hit in ann.get(f"/search?q=tea&author={ann.id}").json()] == ["green tea"]
    assert ann.get("/search?q=%25").json() == []
    assert ann.get("/search/suggestions?q=b").json() == ["bob"]
    assert "hit" in bob.get("/search/suggestions?q=b").headers["cache-status"]


def test_who_holds_a_socket_open_is_online(site: Site) -> None:
    """And sees which friends are; strangers and other sites' pages are refused."""
    ann, bob = site.person("ann"), site.person("bob")
    ann.put(f"/me/friends/{bob.id}")
    assert ann.get(f"/users/{bob.id}/online").json() is False
    with bob.websocket_connect("wss://testserver/online"):
        assert ann.get(f"/users/{bob.id}/online").json() is True
        with ann.websocket_connect("wss://testserver/online") as socket:
            socket.send_text("who?")
            assert socket.receive_json() == [bob.id]
    assert ann.get(f"/users/{bob.id}/online").json() is False
    for who, headers in ((site.stranger(), {}), (ann, {"origin": "https://evil.example"})):
        with (
            pytest.raises(WebSocketDisconnect) as refused,
            who.websocket_connect("wss://testserver/online", headers=headers),
        ):
            pass
        assert refused.value.code == 1008


def test_a_logout_ends_this_device_and_everywhere_all_of_them(site: Site) -> None:
    """Refresh tokens end with it."""
    ann = site.person("ann")
    account = {"email": "ann@example.org", "password": PASSWORD}
    phone = site.stranger()
    theirs = phone.post("/login", json=account).json()["refresh_token"]
    assert len(ann.get("/sessions").json()) == 2
    ann.post("/logout", json={"refresh_token": ann.refresh_token})
    assert ann.get("/me").status_code == 401
    assert ann.post("/refresh", json={"refresh_token": ann.refresh_token}).status_code == 401
    assert phone.get("/me").status_code == 200
    ann.post("/login", json=account)
    ann.post("/logout/everywhere")
    assert phone.get("/me").status_code == 401
    assert phone.post("/refresh", json={"refresh_token": theirs}).status_code == 401


def test_a_refresh_token_opens_a_new_session(site: Site) -> None:
    """After the cookie is gone."""
    ann = site.person("ann")
    ann.cookies.clear()
    assert ann.get("/me").status_code == 401
    answer = ann.post("/refresh", json={"refresh_token": ann.refresh_token}).json()
    assert answer["user_id"] == ann.id
    assert ann.get("/me").json()["id"] == ann.id


@pytest.mark.parametrize("mode", ["on", "off"])
def test_warming_and_a_switched_off_cache(open_site: Callable[..., Site], mode: Any) -> None:
    """With the cache a repeated read asks the database nothing; without it, always."""
    site = open_site(mode=mode, warm=1800.0)
    ann = site.person("ann")
    site.services.database.queries = 0
    for _ in range(3):
        assert ann.get("/me").json()["name"] == "ann"
    assert (site.services.database.queries <= 2) is (mode == "on")


def test_what_is_trending_and_who_is_active_is_warmed(open_site: Callable[..., Site]) -> None:
    """A round of the warmer leaves posts and profiles in the cache."""
    site = open_site(warm=1800.0)
    ann = site.person("ann")
    post = ann.post("/posts", json={"body": "warm me"}).json()["id"]
    services = site.services
    report = services.warmer.run()
    assert report, report.error
    services.database.queries = 0
    assert ann.get(f"/posts/{post}").json()["body"] == "warm me"
    assert ann.get(f"/users/{ann.id}").json()["name"] == "ann"
    assert services.database.queries == 0
