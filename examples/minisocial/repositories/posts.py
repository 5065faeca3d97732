"""Posts, comments, reactions, feeds by page, and what is trending.

A feed holds the ids of posts, and the posts come from where each is cached once: an edit drops one entry,
not the feeds of a thousand friends. A new post drops those, a tag each, in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update

from cacheaside import cached, cached_many, invalidates
from examples.seed_keys import PostKeys

from ..database import PAGE, Database, Snapshot, writes
from ..models import Comment, Friendship, Post, Reaction
from .changes import Change, changed


@dataclass(frozen=True)
class PostView:
    id: int
    author_id: int
    body: str
    version: int


@dataclass(frozen=True)
class CommentView:
    id: int
    author_id: int
    body: str


@dataclass(frozen=True)
class Comments:
    post_id: int
    comments: tuple[CommentView, ...]
    version: int


@dataclass(frozen=True)
class Reactions:
    post_id: int
    counts: tuple[tuple[str, int], ...]
    version: int


@dataclass(frozen=True)
class FeedPage:
    user_id: int
    page: int
    post_ids: tuple[int, ...]
    version: int


class Posts:
    def __init__(self, database: Database) -> None:
        self.database = database

    @cached(key=PostKeys.post)
    def get(self, post_id: int) -> PostView | None:
        return self._load([post_id]).get(post_id)

    @cached_many(key=PostKeys.post)
    def find(self, post_ids: Sequence[int]) -> dict[int, PostView]:
        """Several at once, from the entries of ``get``; what is missing is loaded by one query."""
        return self._load(post_ids)

    def _load(self, post_ids: Sequence[int]) -> dict[int, PostView]:
        with self.database.reading() as session:
            rows = session.execute(select(Post.id, Post.author_id, Post.body).where(Post.id.in_(post_ids)))
            return {row.id: PostView(*row, session.version) for row in rows}

    @cached(key=PostKeys.comments)
    def comments(self, post_id: int) -> Comments:
        with self.database.reading() as session:
            rows = session.execute(
                select(Comment.id, Comment.author_id, Comment.body)
                .where(Comment.post_id == post_id)
                .order_by(Comment.id)
            )
            return Comments(post_id, tuple(CommentView(*row) for row in rows), session.version)

    @cached(key=PostKeys.reactions)
    def reactions(self, post_id: int) -> Reactions:
        with self.database.reading() as session:
            rows = session.execute(
                select(Reaction.kind, func.count())
                .where(Reaction.post_id == post_id)
                .group_by(Reaction.kind)
                .order_by(Reaction.kind)
            )
            return Reactions(post_id, tuple((kind, count) for kind, count in rows), session.version)

    @cached(key=PostKeys.feed)
    def feed(self, user_id: int, page: int) -> FeedPage:
        """What the friends of a user have posted, newest first; pages count from 1."""
        with self.database.reading() as session:
            ids = session.scalars(
                select(Post.id)
                .join(Friendship, Friendship.friend_id == Post.author_id)
                .where(Friendship.user_id == user_id)
                .order_by(Post.id.desc())
                .limit(PAGE)
                .offset(PAGE * (page - 1))
            )
            return FeedPage(user_id, page, tuple(ids), session.version)

    @cached(key=PostKeys.trending, ttl=60)
    def trending(self) -> tuple[int, ...]:
        """The ids of what had most reactions a minute ago at most, of the last thousand posts."""
        return tuple(self.trending_now())

    def trending_now(self) -> list[int]:
        """The same, for warming."""
        with self.database.reading() as session:
            newest = session.scalar(select(func.max(Post.id))) or 0
            reactions = func.count(Reaction.user_id)
            return list(
                session.scalars(
                    select(Post.id)
                    .outerjoin(Reaction, Reaction.post_id == Post.id)
                    .where(Post.id > newest - 1000)
                    .group_by(Post.id)
                    .order_by(reactions.desc(), Post.id.desc())
                    .limit(100)
                )
            )

    @writes
    @invalidates(tags=changed)
    def create(self, session: Snapshot, author_id: int, body: str) -> Change:
        post = session.made(Post(author_id=author_id, body=body))
        return Change(session.version, (f"post:{post.id}", *feeds_with(session, author_id)), post.id)

    @writes
    @invalidates(tags=changed)
    def edit(self, session: Snapshot, post_id: int, author_id: int, body: str) -> Change | None:
        """None if the post is not there, or not the author's."""
        mine = Post.id == post_id, Post.author_id == author_id
        edited = session.scalar(update(Post).where(*mine).values(body=body).returning(Post.id))
        if edited is None:
            session.rollback()
            return None
        return Change(session.version, (f"post:{post_id}",), post_id)

    @writes
    @invalidates(tags=changed, keys=[PostKeys.trending])
    def delete(self, session: Snapshot, post_id: int, author_id: int) -> Change | None:
        mine = Post.id == post_id, Post.author_id == author_id
        if session.scalar(select(Post.id).where(*mine)) is None:
            session.rollback()
            return None
        for table in (Comment, Reaction):
            session.execute(delete(table).where(table.post_id == post_id))
        session.execute(delete(Post).where(*mine))
        return Change(session.version, (f"post:{post_id}", *feeds_with(session, author_id)), post_id)

    @writes
    @invalidates(tags=changed)
    def comment(self, session: Snapshot, post_id: int, author_id: int, body: str) -> Change | None:
        if session.get(Post, post_id) is None:
            session.rollback()
            return None
        comment = session.made(Comment(post_id=post_id, author_id=author_id, body=body))
        return Change(session.version, (f"post:{post_id}",), comment.id)

    @writes
    @invalidates(tags=changed)
    def react(self, session: Snapshot, post_id: int, user_id: int, kind: str | None) -> Change | None:
        """One reaction a user, the last one; None takes it back."""
        if session.get(Post, post_id) is None:
            session.rollback()
            return None
        if kind is not None:
            session.merge(Reaction(post_id=post_id, user_id=user_id, kind=kind))
        else:
            theirs = Reaction.post_id == post_id, Reaction.user_id == user_id
            session.execute(delete(Reaction).where(*theirs))
        return Change(session.version, (f"post:{post_id}",), post_id)


def feeds_with(session: Snapshot, author_id: int) -> list[str]:
    """The tags of the feeds that show an author's posts, as of the transaction of the post.

    Who becomes a friend later drops the feeds of both, so nobody is missed in between.
    """
    friends = select(Friendship.friend_id).where(Friendship.user_id == author_id)
    return [f"feed:{friend}" for friend in session.scalars(friends)]
