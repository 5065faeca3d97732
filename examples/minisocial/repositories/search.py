"""Searches over posts. Nothing invalidates them: they are a minute old at most."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from cacheaside import cached
from examples.seed_keys import SearchKeys

from ..database import PAGE, Database
from ..models import Post, User

TTL = 60


@dataclass(frozen=True)
class Hit:
    post_id: int
    author_id: int
    body: str


class Search:
    def __init__(self, database: Database) -> None:
        self.database = database

    @cached(key=SearchKeys.suggestions, ttl=TTL)
    def suggestions(self, query: str) -> tuple[str, ...]:
        with self.database.reading() as session:
            names = select(User.name).where(User.name.istartswith(query, autoescape=True)).distinct()
            return tuple(session.scalars(names.order_by(User.name).limit(PAGE)))

    @cached(key=SearchKeys.results, ttl=TTL)
    def results(self, query: str) -> tuple[Hit, ...]:
        return self._find(query, {})

    @cached(key=SearchKeys.filtered, ttl=TTL)
    def filtered(self, query: str, filters: dict[str, int]) -> tuple[Hit, ...]:
        """Filters: ``author``, and ``after``, a post's id."""
        return self._find(query, filters)

    def _find(self, query: str, filters: dict[str, int]) -> tuple[Hit, ...]:
        with self.database.reading() as session:
            wanted = select(Post.id, Post.author_id, Post.body).where(
                Post.body.icontains(query, autoescape=True)
            )
            if "author" in filters:
                wanted = wanted.where(Post.author_id == filters["author"])
            if "after" in filters:
                wanted = wanted.where(Post.id > filters["after"])
            rows = session.execute(wanted.order_by(Post.id.desc()).limit(PAGE))
            return tuple(Hit(*row) for row in rows)
