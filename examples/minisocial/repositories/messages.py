"""Conversations and their messages, by page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import insert, select

from cacheaside import cached, invalidates
from examples.seed_keys import MessageKeys

from ..database import PAGE, Database, Snapshot, writes
from ..models import Conversation, Message, Participant
from .changes import Change, changed


@dataclass(frozen=True)
class ConversationView:
    id: int
    title: str
    participants: tuple[int, ...]
    version: int


@dataclass(frozen=True)
class MessageView:
    id: int
    sender_id: int
    body: str


@dataclass(frozen=True)
class MessagePage:
    conversation_id: int
    page: int
    messages: tuple[MessageView, ...]
    version: int


@dataclass(frozen=True)
class Conversations:
    user_id: int
    ids: tuple[int, ...]
    version: int


class Messages:
    def __init__(self, database: Database) -> None:
        self.database = database

    @cached(key=MessageKeys.conversation)
    def conversation(self, conversation_id: int) -> ConversationView | None:
        with self.database.reading() as session:
            found = session.get(Conversation, conversation_id)
            people = select(Participant.user_id).where(Participant.conversation_id == conversation_id)
            if found is None:
                return None
            return ConversationView(found.id, found.title, tuple(session.scalars(people)), session.version)

    @cached(key=MessageKeys.messages)
    def messages(self, conversation_id: int, page: int) -> MessagePage:
        """The newest first; pages count from 1."""
        with self.database.reading() as session:
            rows = session.execute(
                select(Message.id, Message.sender_id, Message.body)
                .where(Message.conversation_id == conversation_id)
                .order_by(Message.id.desc())
                .limit(PAGE)
                .offset(PAGE * (page - 1))
            )
            views = tuple(MessageView(*row) for row in rows)
            return MessagePage(conversation_id, page, views, session.version)

    @cached(key=MessageKeys.of_user)
    def of_user(self, user_id: int) -> Conversations:
        with self.database.reading() as session:
            theirs = select(Participant.conversation_id).where(Participant.user_id == user_id)
            ids = tuple(session.scalars(theirs.order_by(Participant.conversation_id.desc())))
            return Conversations(user_id, ids, session.version)

    @writes
    @invalidates(tags=changed)
    def start(self, session: Snapshot, title: str, people: Collection[int]) -> Change:
        conversation = session.made(Conversation(title=title))
        number = conversation.id
        rows = [{"conversation_id": number, "user_id": user} for user in sorted(set(people))]
        session.execute(insert(Participant), rows)
        return Change(session.version, shown_to(number, people), number)

    @writes
    @invalidates(tags=changed)
    def send(self, session: Snapshot, conversation_id: int, sender_id: int, body: str) -> Change | None:
        """None for who takes no part."""
        people = select(Participant.user_id).where(Participant.conversation_id == conversation_id)
        participants = list(session.scalars(people))
        if sender_id not in participants:
            session.rollback()
            return None
        message = session.made(Message(conversation_id=conversation_id, sender_id=sender_id, body=body))
        return Change(session.version, shown_to(conversation_id, participants), message.id)


def shown_to(conversation_id: int, people: Collection[int]) -> tuple[str, ...]:
    """The conversation with all of its pages, and the list of everybody who takes part."""
    return (f"conversation:{conversation_id}", *(f"conversations:{user}" for user in people))
