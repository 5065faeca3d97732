"""Register, log in, refresh, log out here or everywhere."""

from dataclasses import dataclass
from typing import Annotated, Any

from cacheaside_fastapi import ClientSession, rate_limit
from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from ..repositories.changes import Change
from ..services import Login, Services
from .common import done


class Credentials(BaseModel):
    email: str = Field(min_length=3, max_length=200)
    password: str = Field(min_length=8, max_length=200)


class Registration(Credentials):
    name: str = Field(min_length=1, max_length=100)


class Refresh(BaseModel):
    refresh_token: str = Field(max_length=200)


@dataclass
class LoggedIn:
    user_id: int
    refresh_token: str


@dataclass
class Device:
    id: str
    user_agent: str
    last_activity: str


async def account(request: Request) -> str:
    """Whose password is tried; FastAPI has read the body as JSON already."""
    body = await request.json()
    return str(body.get("email", "")).lower() if isinstance(body, dict) else ""


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["auth"])
    auth, sessions, tokens = services.repositories.auth, services.sessions, services.refresh_tokens
    Anybody = Annotated[ClientSession[Login], Depends(services.cookie)]
    User = Annotated[ClientSession[Login], Depends(services.cookie.required)]

    async def enter(session: Any, user_id: int, request: Request) -> None:
        """A new session under a new token, whatever the client came with."""
        found = await run_in_threadpool(auth.account, user_id)
        if found is None:
            raise HTTPException(401, "wrong address or password")
        may = ("read", "write", "admin") if found.role == "admin" else ("read", "write")
        address = request.client.host if request.client else ""
        agent = request.headers.get("user-agent", "")[:200]
        await session.login(user_id, Login(found.email, found.name, found.role, may, address, agent))

    @router.post("/register", status_code=201, dependencies=[Depends(rate_limit(services.by_address))])
    def register(new: Registration) -> Change:
        return done(auth.register(new.email.lower(), new.name, new.password), 409)

    @router.post(
        "/login",
        dependencies=[
            Depends(rate_limit(services.by_address)),
            Depends(rate_limit(services.by_account, key=account)),
        ],
    )
    async def login(who: Credentials, session: Anybody, request: Request) -> LoggedIn:
        user_id = await run_in_threadpool(auth.check, who.email.lower(), who.password)
        if user_id is None:
            raise HTTPException(401, "wrong address or password")
        await enter(session, user_id, request)
        return LoggedIn(user_id, (await tokens.aissue(user_id)).token)

    @router.post("/refresh")
    async def refresh(sent: Refresh, session: Anybody, request: Request) -> LoggedIn:
        """A session for who has a refresh token; one that is used again ends all that came of it."""
        following = await tokens.arotate(sent.refresh_token)
        if following is None:
            raise HTTPException(401, "log in again")
        user_id = int(str(following.user_id))
        await enter(session, user_id, request)
        return LoggedIn(user_id, following.token)

    @router.post("/logout")
    async def logout(session: Anybody, sent: Refresh | None = None) -> None:
        await session.logout()
        if sent is not None:
            await tokens.arevoke(sent.refresh_token)

    @router.post("/logout/everywhere")
    async def logout_everywhere(session: User) -> None:
        await tokens.arevoke_all(session.user_id)
        await session.logout(everywhere=True)

    @router.get("/sessions")
    async def devices(session: User) -> list[Device]:
        found = await sessions.alist(session.user_id)
        return [Device(one.id, one.data.user_agent, one.last_activity.isoformat()) for one in found]

    return router
