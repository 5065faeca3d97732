"""Conversations, messages by page, notifications and how many are unread; what is written now, as it is."""

from asyncio import Queue
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from cacheaside_fastapi import ClientSession
from fastapi import APIRouter, Depends, HTTPException
from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse

from cacheaside import StoreUnavailable
from cacheaside.toolkit import Message

from ..repositories.changes import Change
from ..repositories.messages import Conversations, ConversationView, MessagePage
from ..repositories.notifications import Inbox, PreferencesView, Unread
from ..services import Login, Services
from .common import Id, Page, done, there
from .posts import Body


class NewConversation(BaseModel):
    title: str = Field(max_length=100)
    with_users: list[int] = Field(min_length=1, max_length=50)


class NewPreferences(BaseModel):
    by_mail: bool
    muted: str = Field(max_length=200)


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["messages"])
    messages, notifications = services.repositories.messages, services.repositories.notifications
    users = services.repositories.users
    User = Annotated[ClientSession[Login], Depends(services.cookie.required)]

    def open_to(conversation_id: int, user_id: object) -> ConversationView:
        """The conversation; for who takes no part there is none."""
        found = messages.conversation(conversation_id)
        return there(found if found is not None and user_id in found.participants else None)

    @router.get("/conversations")
    def conversations(session: User) -> Conversations:
        return messages.of_user(int(session.user_id))

    @router.post("/conversations", status_code=201)
    def start(new: NewConversation, session: User) -> Change:
        if any(users.profile(one) is None for one in new.with_users):
            raise HTTPException(422, "with_users: not all of them are there")
        return messages.start(new.title, [int(session.user_id), *new.with_users])

    @router.get("/conversations/{conversation_id}")
    def conversation(conversation_id: Id, session: User) -> ConversationView:
        return open_to(conversation_id, session.user_id)

    @router.get("/conversations/{conversation_id}/messages")
    def page_of(conversation_id: Id, session: User, page: Page = 1) -> MessagePage:
        open_to(conversation_id, session.user_id)
        return messages.messages(conversation_id, page)

    @router.post("/conversations/{conversation_id}/messages", status_code=201)
    def send(conversation_id: Id, new: Body, session: User) -> Change:
        change = done(messages.send(conversation_id, int(session.user_id), new.body))
        others = set(open_to(conversation_id, session.user_id).participants) - {session.user_id}
        notifications.notify([int(one) for one in others], "message", f"conversation {conversation_id}")
        with suppress(StoreUnavailable):  # the message is written, and who is told late reads it all the same
            for one in others:
                services.broker.publish(f"user:{one}", "message.sent", conversation_id)
        return change

    @router.get("/notifications")
    def inbox(session: User) -> Inbox:
        return notifications.of_user(int(session.user_id))

    @router.get("/notifications/unread")
    def unread(session: User) -> Unread:
        return notifications.unread(int(session.user_id))

    async def told(session: User) -> AsyncIterator[Queue[Message[int]]]:
        """What other workers tell this user from now on, until the response has ended."""
        queue: Queue[Message[int]] = Queue()
        subscription = await services.broker.asubscribe(f"user:{session.user_id}", queue.put, type=int)
        try:
            yield queue
        finally:
            await subscription.aclose()

    @router.get("/notifications/live")
    async def live(queue: Annotated[Queue[Message[int]], Depends(told)]) -> StreamingResponse:
        """Server-sent events: in which conversation somebody has just written."""

        async def events() -> AsyncIterator[str]:
            while True:
                message = await queue.get()
                yield f"event: {message.type}\ndata: {message.data}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @router.post("/notifications/read")
    def read_all(session: User) -> Change:
        return notifications.read_all(int(session.user_id))

    @router.get("/notifications/preferences")
    def preferences(session: User) -> PreferencesView:
        return notifications.preferences(int(session.user_id))

    @router.put("/notifications/preferences")
    def prefer(new: NewPreferences, session: User) -> Change:
        return notifications.prefer(int(session.user_id), new.by_mail, new.muted)

    return router
