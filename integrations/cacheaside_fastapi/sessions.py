"""Sessions as a dependency: who is logged in, by a cookie that only this host's pages can have."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from fastapi import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from cacheaside import ConfigError, StoreUnavailable
from cacheaside.policy import Seconds
from cacheaside.toolkit import Session, SessionStore
from cacheaside.toolkit.grants import UserId
from cacheaside.web import AWAY, COOKIE, CookiePlan, SameSite

D = TypeVar("D")


class SessionCookie(Generic[D]):
    """The sessions of a store, each known to its client by a cookie: ``__Host-``, Secure, HttpOnly, SameSite.

    ``Depends(cookie)`` gives the request's ``ClientSession``, logged in or not; ``Depends(cookie.required)``
    answers 401 to who is not. When Redis does not answer a login, a change or a logout is a 503, and so is
    a look if the store was made with ``on_unavailable="raise"``.

    Args:
        store: keeps the sessions.
        name: of the cookie; it begins with ``__Host-``.
        same_site: ``"lax"``, or ``"strict"``, which links from other sites come without as well.
        max_age: seconds that the browser keeps the cookie; None: until it is closed.

    Raises ConfigError for a wrong option.
    """

    def __init__(
        self,
        store: SessionStore[D],
        *,
        name: str = COOKIE,
        same_site: SameSite = "lax",
        max_age: Seconds | None = None,
    ) -> None:
        if not isinstance(store, SessionStore):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"store must be a SessionStore, not {store!r}")
        self.store = store
        self.plan = CookiePlan(name, same_site, max_age)

    async def __call__(self, connection: HTTPConnection, response: Response) -> ClientSession[D]:
        async with answering():
            found = await self.store.aget(connection.cookies.get(self.plan.name))
        return ClientSession(self, found, response)

    async def required(self, connection: HTTPConnection, response: Response) -> ClientSession[D]:
        """The request's session, as a dependency; raises the 401 when nobody is logged in."""
        session = await self(connection, response)
        if session.found is None:
            raise HTTPException(401, "log in first")
        return session


class ClientSession(Generic[D]):
    """The session of one request, or that there is none.

    Methods that change the cookie do so on FastAPI's own response. An endpoint that returns a Response it
    has made must name it: ``await session.login(7, data, response=redirect)``.
    """

    def __init__(self, cookie: SessionCookie[D], found: Session[D] | None, response: Response) -> None:
        self.cookie = cookie
        self.found = found
        self._response = response

    def __bool__(self) -> bool:
        return self.found is not None

    @property
    def user_id(self) -> UserId:
        """Who is logged in. Raises the 401 that ``required`` would."""
        return self._live().user_id

    @property
    def data(self) -> D:
        """What the session holds. Raises the 401 that ``required`` would."""
        return self._live().data

    async def login(self, user_id: UserId, data: D, *, response: Response | None = None) -> Session[D]:
        """Log a user in under a new token, whatever the client has sent; the session it had ends."""
        before = self.found
        async with answering():
            if before is not None:
                await self.cookie.store.adelete(before.token)
            self.found = await self.cookie.store.acreate(user_id, data)
        return self._give(self.found, response)

    async def rotate(self, *, response: Response | None = None) -> Session[D]:
        """A new token, and the old one is good no more: when rights change."""
        async with answering():
            self.found = await self.cookie.store.arotate(self._live().token, grace=0)
        return self._give(self._live(), response)

    async def update(self, changes: Any) -> Session[D]:
        """Change the data, as ``SessionStore.update`` does."""
        async with answering():
            self.found = await self.cookie.store.aupdate(self._live().token, changes)
        return self._live()

    async def logout(self, *, everywhere: bool = False, response: Response | None = None) -> None:
        """End the session, or all of its user's, and take the cookie back."""
        if self.found is not None:
            async with answering():
                if everywhere:
                    await self.cookie.store.adelete_all(self.found.user_id)
                else:
                    await self.cookie.store.adelete(self.found.token)
        self.found = None
        plan, target = self.cookie.plan, response or self._response
        target.delete_cookie(plan.name, secure=True, httponly=True, samesite=plan.same_site)
        target.headers["Cache-Control"] = "no-store"

    def _live(self) -> Session[D]:
        if self.found is None:
            raise HTTPException(401, "log in first")
        return self.found

    def _give(self, session: Session[D], response: Response | None) -> Session[D]:
        plan, target = self.cookie.plan, response or self._response
        target.set_cookie(
            plan.name, session.token, plan.max_age, secure=True, httponly=True, samesite=plan.same_site
        )
        target.headers["Cache-Control"] = "no-store"
        return session


@asynccontextmanager
async def answering() -> AsyncGenerator[None]:
    """A Redis that does not answer is no fault of the request: 503."""
    try:
        yield
    except StoreUnavailable as error:
        raise HTTPException(503, "sessions are not available", AWAY) from error
