"""What a user should hear of, how much of it is unread, and what they want to hear of at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update

from cacheaside import cached, invalidates
from examples.seed_keys import NotificationKeys

from ..database import Database, Snapshot, writes
from ..models import Notification, Preferences
from .changes import Change, changed

MOST = 50


@dataclass(frozen=True)
class NotificationView:
    id: int
    kind: str
    body: str
    unread: bool


@dataclass(frozen=True)
class Inbox:
    user_id: int
    notifications: tuple[NotificationView, ...]
    version: int


@dataclass(frozen=True)
class Unread:
    user_id: int
    count: int
    version: int


@dataclass(frozen=True)
class PreferencesView:
    user_id: int
    by_mail: bool
    muted: str
    version: int


class Notifications:
    def __init__(self, database: Database) -> None:
        self.database = database

    @cached(key=NotificationKeys.of_user)
    def of_user(self, user_id: int) -> Inbox:
        with self.database.reading() as session:
            rows = session.execute(
                select(Notification.id, Notification.kind, Notification.body, Notification.unread)
                .where(Notification.user_id == user_id)
                .order_by(Notification.id.desc())
                .limit(MOST)
            )
            return Inbox(user_id, tuple(NotificationView(*row) for row in rows), session.version)

    @cached(key=NotificationKeys.unread)
    def unread(self, user_id: int) -> Unread:
        with self.database.reading() as session:
            theirs = Notification.user_id == user_id, Notification.unread
            count = session.scalars(select(func.count()).select_from(Notification).where(*theirs)).one()
            return Unread(user_id, count, session.version)

    @cached(key=NotificationKeys.preferences, ttl=3600, tags=["preferences:{user_id}"])
    def preferences(self, user_id: int) -> PreferencesView:
        with self.database.reading() as session:
            it = session.get(Preferences, user_id) or Preferences(by_mail=True, muted="")
            return PreferencesView(user_id, it.by_mail, it.muted, session.version)

    @writes
    @invalidates(tags=changed)
    def notify(self, session: Snapshot, user_ids: Iterable[int], kind: str, body: str) -> Change:
        users = sorted(set(user_ids))
        if users:
            rows = [{"user_id": user, "kind": kind, "body": body, "unread": True} for user in users]
            session.execute(insert(Notification), rows)
        return Change(session.version, tuple(f"notifications:{user}" for user in users))

    @writes
    @invalidates(tags=changed)
    def read_all(self, session: Snapshot, user_id: int) -> Change:
        theirs = update(Notification).where(Notification.user_id == user_id, Notification.unread)
        session.execute(theirs.values(unread=False))
        return Change(session.version, (f"notifications:{user_id}",))

    @writes
    @invalidates(tags=changed)
    def prefer(self, session: Snapshot, user_id: int, by_mail: bool, muted: str) -> Change:
        session.merge(Preferences(user_id=user_id, by_mail=by_mail, muted=muted))
        return Change(session.version, (f"preferences:{user_id}",))
