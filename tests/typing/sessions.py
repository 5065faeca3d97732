"""Sessions keep the type of their data; refresh tokens are strings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

from cacheaside import Cache
from cacheaside.toolkit import Blacklist, RefreshToken, RefreshTokens, Session, SessionStore


@dataclass(frozen=True)
class Login:
    email: str


def sessions(cache: Cache, cookie: str | None) -> None:
    store = SessionStore(cache, ttl=3600, type=Login)
    assert_type(store, SessionStore[Login])
    assert_type(SessionStore(cache, 3600, timedelta(days=1), Login), SessionStore[Login])
    assert_type(store.create("ann", Login("a@b")), Session[Login])
    assert_type(store.get(cookie), Session[Login] | None)
    assert_type(store.update(cookie, {"email": "c@d"}), Session[Login] | None)
    assert_type(store.update(cookie, lambda login: Login(login.email.lower())), Session[Login] | None)
    assert_type(store.rotate(cookie, grace=0), Session[Login] | None)
    assert_type(store.list(UUID(int=1)), list[Session[Login]])
    assert_type(store.delete(cookie), bool)
    assert_type(store.delete_all(5), bool)
    assert_type(store.extend(cookie), bool)
    session = store.get(cookie)
    if session is not None:
        assert_type(session.data, Login)
        assert_type(session.last_activity, datetime)
        assert_type(session.user_id, str | int | UUID)


def untyped_sessions(cache: Cache) -> None:
    store = SessionStore(cache)
    assert_type(store, SessionStore[dict[str, Any]])
    assert_type(store.create(5, {"email": "a@b"}).data, dict[str, Any])


async def async_sessions(cache: Cache, cookie: str | None) -> None:
    store = SessionStore(cache, type=Login)
    assert_type(await store.acreate("ann", Login("a@b")), Session[Login])
    assert_type(await store.aget(cookie), Session[Login] | None)
    assert_type(await store.aupdate(cookie, {"email": "c@d"}), Session[Login] | None)
    assert_type(await store.arotate(cookie), Session[Login] | None)
    assert_type(await store.alist("ann"), list[Session[Login]])
    assert_type(await store.adelete(cookie), bool)
    assert_type(await store.adelete_all("ann"), bool)
    assert_type(await store.aextend(cookie), bool)


async def tokens(cache: Cache, body: str | None) -> None:
    refresh = RefreshTokens(cache, on_replay=print)
    issued = refresh.issue("ann")
    assert_type(issued, RefreshToken)
    header: str = issued
    assert_type(refresh.rotate(header), RefreshToken | None)
    assert_type(await refresh.arotate(body), RefreshToken | None)
    assert_type(refresh.revoke(issued), bool)
    assert_type(await refresh.arevoke_all("ann"), bool)
    blacklist = Blacklist(cache, on_unavailable="allow")
    blacklist.add(b"jwt", timedelta(minutes=5))
    assert_type(await blacklist.acontains("jwt"), bool)
