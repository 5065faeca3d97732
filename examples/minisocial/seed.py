"""Fills the database: the graph of ``examples/demo``, posts, reactions, and an account for everybody."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from ..demo.graph import Graph
from ..demo.repository import text
from .database import Database
from .models import Friendship, Notification, Post, Reaction, User, Writes
from .repositories.auth import hash_of

PASSWORD: Final = "correct horse"
"""Of everybody: it is a toy. User 1 is the admin."""
POSTS_EACH: Final = 5
BATCH: Final = 5000


def email_of(user_id: int) -> str:
    return f"user{user_id}@example.org"


def build(database: Database, graph: Graph, seed: int = 1) -> int:
    """Make and fill the tables, users numbered from 1; the number of posts."""
    rng = random.Random(seed)
    password, count = hash_of(PASSWORD), graph.users
    posts = POSTS_EACH * count
    database.create()
    with Session(database.engine) as session, session.begin():
        session.execute(update(Writes).values(number=1))
        add(
            session,
            User,
            (
                {
                    "email": email_of(n),
                    "name": f"user {n}",
                    "bio": text(rng, 30),
                    "password": password,
                    "role": "admin" if n == 1 else "user",
                    "language": "en",
                    "theme": "light",
                }
                for n in range(1, count + 1)
            ),
        )
        pairs = ((a + 1, b + 1) for edge in graph.edges for a, b in (edge, edge[::-1]))
        add(session, Friendship, ({"user_id": a, "friend_id": b} for a, b in pairs))
        add(
            session,
            Post,
            ({"author_id": rng.randint(1, count), "body": text(rng, 140)} for _ in range(posts)),
        )
        chosen = {(rng.randint(1, posts), rng.randint(1, count)) for _ in range(2 * posts)}
        add(session, Reaction, ({"post_id": p, "user_id": u, "kind": "like"} for p, u in sorted(chosen)))
        hello = {"kind": "welcome", "body": "hello", "unread": True}
        add(session, Notification, ({"user_id": n, **hello} for n in range(1, count + 1)))
    return posts


def add(session: Session, table: type, rows: Iterable[dict[str, Any]]) -> None:
    for batch in batches(iter(rows)):
        session.execute(insert(table), batch)


def batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, BATCH)):
        yield batch
