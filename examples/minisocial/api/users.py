"""Profiles, friends, settings, search, and who of one's friends is online."""

import asyncio
import secrets
from contextlib import suppress
from typing import Annotated

from cacheaside_fastapi import ClientSession, cache_response
from fastapi import APIRouter, Depends, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from ..repositories.changes import Change
from ..repositories.search import Hit
from ..repositories.users import Found, Friends, Profile, UserSettings
from ..services import Login, Services
from .common import Id, Words, done, there


class NewProfile(BaseModel):
    name: str = Field(min_length=1, max_length=100)
    bio: str = Field(max_length=2000)


class NewSettings(BaseModel):
    language: str = Field(max_length=10)
    theme: str = Field(max_length=20)


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["users"])
    users, search = services.repositories.users, services.repositories.search
    User = Annotated[ClientSession[Login], Depends(services.cookie.required)]

    @router.get("/me")
    def me(session: User) -> Profile:
        return there(users.profile(int(session.user_id)))

    @router.put("/me")
    def edit(new: NewProfile, session: User) -> Change:
        return users.edit_profile(int(session.user_id), new.name, new.bio)

    @router.get("/me/settings")
    def settings(session: User) -> UserSettings:
        return there(users.settings(int(session.user_id)))

    @router.put("/me/settings")
    def edit_settings(new: NewSettings, session: User) -> Change:
        return users.edit_settings(int(session.user_id), new.language, new.theme)

    @router.get("/users")
    def find(q: Words) -> tuple[Found, ...]:
        return users.search(q)

    @router.get("/users/{user_id}")
    def profile(user_id: Id) -> Profile:
        return there(users.profile(user_id))

    @router.get("/users/{user_id}/friends")
    def friends(user_id: Id) -> Friends:
        return users.friends(user_id)

    @router.put("/me/friends/{user_id}")
    def befriend(user_id: Id, session: User) -> Change:
        return done(users.befriend(int(session.user_id), user_id))

    @router.delete("/me/friends/{user_id}")
    def unfriend(user_id: Id, session: User) -> Change:
        return users.unfriend(int(session.user_id), user_id)

    # The same for everybody, so the whole response is cached, whatever cookie comes with the request.
    @router.get("/search/suggestions")
    @cache_response(ttl=60, ns="suggestions", query=["q"], identity=lambda request: None)
    def suggestions(q: Words) -> tuple[str, ...]:
        return search.suggestions(q)

    @router.get("/search")
    def results(q: Words, author: int | None = None, after: int | None = None) -> tuple[Hit, ...]:
        given = {"author": author, "after": after}
        filters = {name: value for name, value in given.items() if value is not None}
        return search.filtered(q, filters) if filters else search.results(q)

    @router.websocket("/online")
    async def online(socket: WebSocket) -> None:
        """Online as long as this is open; whatever is sent is answered with the friends who are online."""
        session = await services.sessions.aget(socket.cookies.get(services.cookie.plan.name))
        origin = socket.headers.get("origin", "")
        foreign = origin and origin.partition("://")[2] != socket.headers.get("host")
        if session is None or foreign:  # another site's page may open a socket with the user's cookie
            await socket.close(1008)
            return
        user_id, connection, presence = int(session.user_id), secrets.token_hex(8), services.presence

        async def beat() -> None:
            while True:
                await asyncio.sleep(presence.ttl / 3)
                if not await presence.aheartbeat(user_id, connection):
                    await presence.aonline(user_id, connection)

        await socket.accept()
        await presence.aonline(user_id, connection)
        beating = asyncio.create_task(beat())
        try:
            while True:
                await socket.receive_text()
                ids = (await run_in_threadpool(users.friends, user_id)).ids[:100]
                there_are = await asyncio.gather(*(presence.ais_online(one) for one in ids))
                await socket.send_json(
                    [one for one, is_there in zip(ids, there_are, strict=True) if is_there]
                )
        except WebSocketDisconnect:
            pass
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
            await presence.aoffline(user_id, connection)

    @router.get("/users/{user_id}/online")
    async def is_online(user_id: Id) -> bool:
        return await services.presence.ais_online(user_id)

    return router
