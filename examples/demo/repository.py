"""The repository: users, friendships and posts in SQLite, its methods cached by cacheaside.

This is the file to read for how cacheaside is used. Nothing in it knows where the cache is: the decorators
are on the default cache, which each worker configures for itself.

Everything carries a version, so that a reader can tell how old it is. Writes are numbered in the order of
their commits (``writes.number``). A row's version is the number of the write that made it what it is. A feed
is made of many rows, so its version is the number of the last write that its database snapshot contained.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from cacheaside import cached, invalidates

from .graph import Graph

PAGES: Final = 3
PAGE: Final = 10

SCHEMA: Final = """
CREATE TABLE writes (number INTEGER NOT NULL);
INSERT INTO writes VALUES (0);
CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, bio TEXT, posts INTEGER, version INTEGER);
CREATE TABLE friendships (a INTEGER, b INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID;
CREATE TABLE posts (id INTEGER PRIMARY KEY, author INTEGER, body TEXT, version INTEGER);
CREATE INDEX posts_by_author ON posts (author, id DESC);
"""


class Profile(Struct, frozen=True):
    id: int
    name: str
    bio: str
    posts: int
    version: int


class Friends(Struct, frozen=True):
    ids: tuple[int, ...]
    version: int


class Post(Struct, frozen=True):
    id: int
    author: int
    body: str
    version: int


class Feed(Struct, frozen=True):
    posts: tuple[Post, ...]
    version: int


class Change(Struct, frozen=True):
    """What a write has changed: its number, and the ids of all that looks different from now on."""

    version: int
    profiles: tuple[int, ...] = ()
    friends: tuple[int, ...] = ()
    posts: tuple[int, ...] = ()
    feeds: tuple[int, ...] = ()


def shown(change: Change) -> list[str]:
    """The tags of everything that shows a post.

    A feed could carry a tag for each of its authors, and a post would drop one tag; but then every read
    of a feed would compare a thousand tokens. Posts are read far more often than written, so the writer
    pays: a feed carries one tag, its reader's, and a post drops those of its author's friends, a thousand
    in one step. The friends are read in the transaction of the post. Who becomes a friend later drops the
    feeds of both, so nobody is missed in between.
    """
    return [
        *(f"profile:{user}" for user in change.profiles),
        *(f"post:{post}" for post in change.posts),
        *(f"feed:{user}" for user in change.feeds),
    ]


class Repository:
    """One connection to the database; ``delay`` seconds are added to every load.

    SQLite answers from this process's own memory. A database server is a network away, and slower when
    many ask: ``delay`` stands for that.
    """

    def __init__(self, file: Path, delay: float = 0.0) -> None:
        self.db = sqlite3.connect(file, timeout=30, isolation_level=None)
        self.db.execute("PRAGMA synchronous = OFF")  # it is thrown away at the end
        self.delay = delay
        self.queries = 0

    # -- reads

    @cached(ns="profiles", key="{user_id}", ttl=7200, tags=["profile:{user_id}"])
    def profile(self, user_id: int) -> Profile:
        with self._loading():
            return Profile(
                *self._one("SELECT id, name, bio, posts, version FROM users WHERE id = ?", user_id)
            )

    @cached(ns="friends", key="{user_id}", ttl=1800, tags=["friends:{user_id}"])
    def friends(self, user_id: int) -> Friends:
        with self._loading():
            (version,) = self._one("SELECT version FROM users WHERE id = ?", user_id)
            return Friends(self._friends_of(user_id), version)

    @cached(ns="posts", key="{post_id}", ttl=1800, tags=["post:{post_id}"])
    def post(self, post_id: int) -> Post:
        with self._loading():
            return Post(*self._one("SELECT id, author, body, version FROM posts WHERE id = ?", post_id))

    @cached(ns="feeds", key="{user_id}:page:{page}", ttl=900, tags=["feed:{user_id}"])
    def feed(self, user_id: int, page: int) -> Feed:
        """What the friends of ``user_id`` have posted, newest first."""
        with self._loading():
            (version,) = self._one("SELECT number FROM writes")
            rows = self._all(
                "SELECT posts.id, author, body, version FROM friendships JOIN posts ON author = b"
                " WHERE a = ? ORDER BY posts.id DESC LIMIT ? OFFSET ?",
                user_id, PAGE, PAGE * page,
            )  # fmt: skip
            return Feed(tuple(Post(*row) for row in rows), version)

    # -- writes

    @invalidates(tags=shown)
    def create_post(self, author: int, body: str) -> Change:
        with self._writing() as version:
            (post,) = self._one(
                "INSERT INTO posts (author, body, version) VALUES (?, ?, ?) RETURNING id",
                author, body, version,
            )  # fmt: skip
            self._all("UPDATE users SET posts = posts + 1, version = ? WHERE id = ?", version, author)
            return Change(version, profiles=(author,), posts=(post,), feeds=self._friends_of(author))

    @invalidates(tags=shown)
    def edit_post(self, post_id: int, body: str) -> Change:
        with self._writing() as version:
            (author,) = self._one(
                "UPDATE posts SET body = ?, version = ? WHERE id = ? RETURNING author",
                body, version, post_id,
            )  # fmt: skip
            return Change(version, posts=(post_id,), feeds=self._friends_of(author))

    @invalidates(tags=["profile:{user_id}"])
    def edit_profile(self, user_id: int, bio: str) -> Change:
        with self._writing() as version:
            self._all("UPDATE users SET bio = ?, version = ? WHERE id = ?", bio, version, user_id)
            return Change(version, profiles=(user_id,))

    @invalidates(tags=["profile:{a}", "profile:{b}", "friends:{a}", "friends:{b}", "feed:{a}", "feed:{b}"])
    def befriend(self, a: int, b: int) -> Change:
        with self._writing() as version:
            self._all("INSERT OR IGNORE INTO friendships VALUES (?, ?), (?, ?)", a, b, b, a)
            self._all("UPDATE users SET version = ? WHERE id IN (?, ?)", version, a, b)
            return Change(version, profiles=(a, b), friends=(a, b), feeds=(a, b))

    # -- SQLite

    def close(self) -> None:
        self.db.close()

    def _friends_of(self, user_id: int) -> tuple[int, ...]:
        return tuple(b for (b,) in self._all("SELECT b FROM friendships WHERE a = ?", user_id))

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """One snapshot for all queries of a load; the answer then takes its time to arrive."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.execute("COMMIT")
        if self.delay:
            time.sleep(self.delay)

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """A transaction, committed at the end of the block, with its number."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self._one("UPDATE writes SET number = number + 1 RETURNING number")[0]
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def _all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        self.queries += 1
        return self.db.execute(sql, values).fetchall()

    def _one(self, sql: str, *values: Any) -> tuple[Any, ...]:
        rows = self._all(sql, *values)
        if not rows:
            raise LookupError(f"nothing there: {sql} with {values}")
        return rows[0]


def build(file: Path, graph: Graph, posts: int, seed: int = 1) -> None:
    """Make the database: the graph, and ``posts`` posts of users chosen at random."""
    rng = random.Random(seed)
    authors = [rng.randrange(graph.users) for _ in range(posts)]
    written = [0] * graph.users
    for author in authors:
        written[author] += 1
    db = sqlite3.connect(file, isolation_level=None)
    try:
        # Readers go on while a writer writes, which makes every race possible that there is.
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(SCHEMA)
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO users VALUES (?, ?, ?, ?, 0)",
            ((n, f"user {n}", text(rng, 30), written[n]) for n in range(graph.users)),
        )
        for edges in (graph.edges, ((b, a) for a, b in graph.edges)):
            db.executemany("INSERT INTO friendships VALUES (?, ?)", edges)
        db.executemany(
            "INSERT INTO posts (author, body, version) VALUES (?, ?, 0)",
            ((author, text(rng, 140)) for author in authors),
        )
        db.execute("COMMIT")
    finally:
        db.close()


def text(rng: random.Random, length: int) -> str:
    """Words that mean nothing."""
    return " ".join(rng.choices(WORDS, k=length // 5))


WORDS: Final = ["tea", "rain", "moon", "bread", "river", "night", "garden", "music", "train", "sea", "home"]
