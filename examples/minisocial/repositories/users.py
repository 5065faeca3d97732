"""Profiles, friends, settings, and a search by name."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from cacheaside import cached, invalidates
from examples.seed_keys import UserKeys

from ..database import PAGE, Database, Snapshot, writes
from ..models import Friendship, Post, User
from .changes import Change, changed


@dataclass(frozen=True)
class Profile:
    id: int
    name: str
    bio: str
    version: int


@dataclass(frozen=True)
class Friends:
    user_id: int
    ids: tuple[int, ...]
    version: int


@dataclass(frozen=True)
class UserSettings:
    user_id: int
    language: str
    theme: str
    version: int


@dataclass(frozen=True)
class Found:
    id: int
    name: str


class Users:
    def __init__(self, database: Database) -> None:
        self.database = database

    @cached(key=UserKeys.profile)
    def profile(self, user_id: int) -> Profile | None:
        with self.database.reading() as session:
            user = session.get(User, user_id)
            return None if user is None else Profile(user.id, user.name, user.bio, session.version)

    @cached(key=UserKeys.friends)
    def friends(self, user_id: int) -> Friends:
        with self.database.reading() as session:
            theirs = select(Friendship.friend_id).where(Friendship.user_id == user_id)
            return Friends(user_id, tuple(session.scalars(theirs)), session.version)

    @cached(key=UserKeys.settings)
    def settings(self, user_id: int) -> UserSettings | None:
        with self.database.reading() as session:
            user = session.get(User, user_id)
            if user is None:
                return None
            return UserSettings(user.id, user.language, user.theme, session.version)

    @cached(key=UserKeys.search, ttl=60)
    def search(self, query: str) -> tuple[Found, ...]:
        """Users whose name begins so, as it was a minute ago at most: nothing invalidates a search."""
        with self.database.reading() as session:
            wanted = select(User.id, User.name).where(User.name.istartswith(query, autoescape=True))
            return tuple(Found(*row) for row in session.execute(wanted.order_by(User.id).limit(PAGE)))

    def active(self, count: int = 1000) -> list[int]:
        """Who has posted last: the ids alone, for warming."""
        with self.database.reading() as session:
            last = select(Post.author_id).order_by(Post.id.desc()).limit(10 * count)
            return list(dict.fromkeys(session.scalars(last)))[:count]

    @writes
    @invalidates(tags=changed)
    def edit_profile(self, session: Snapshot, user_id: int, name: str, bio: str) -> Change:
        session.execute(update(User).where(User.id == user_id).values(name=name, bio=bio))
        return Change(session.version, (f"user:{user_id}",))

    @writes
    @invalidates(tags=changed)
    def edit_settings(self, session: Snapshot, user_id: int, language: str, theme: str) -> Change:
        session.execute(update(User).where(User.id == user_id).values(language=language, theme=theme))
        return Change(session.version, (f"user:{user_id}",))

    @writes
    @invalidates(tags=changed)
    def befriend(self, session: Snapshot, user_id: int, other: int) -> Change | None:
        """Both see each other's posts from now on; None if they do already, or if that cannot be."""
        there = session.get(User, other) is not None and user_id != other
        if not there or session.get(Friendship, (user_id, other)) is not None:
            session.rollback()
            return None
        pairs = [
            {"user_id": user_id, "friend_id": other},
            {"user_id": other, "friend_id": user_id},
        ]
        session.execute(insert(Friendship), pairs)
        return Change(session.version, of_both(user_id, other))

    @writes
    @invalidates(tags=changed)
    def unfriend(self, session: Snapshot, user_id: int, other: int) -> Change:
        for one, two in ((user_id, other), (other, user_id)):
            session.execute(delete(Friendship).where(Friendship.user_id == one, Friendship.friend_id == two))
        return Change(session.version, of_both(user_id, other))


def of_both(user_id: int, other: int) -> tuple[str, ...]:
    return (f"user:{user_id}", f"user:{other}", f"feed:{user_id}", f"feed:{other}")
