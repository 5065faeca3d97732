"""Invalidations that follow SQLAlchemy's transactions: sync, async, savepoints, writers that die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cacheaside_sqlalchemy import bind, invalidate, tags_of
from sqlalchemy import ForeignKey, create_engine, delete, event, insert, select, text, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from cacheaside import MISSING, Cache, ConfigError


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    posts: Mapped[list[Post]] = relationship(back_populates="author")


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author] = relationship(back_populates="posts")


class Note(Base):
    __tablename__ = "notes"
    place: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "note"}


class Pinned(Note):
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "pinned"}


def transactional(engine: Any) -> None:
    """SQLite's driver begins transactions late and breaks savepoints unless told not to."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


class Blog:
    """Posts in a database, the titles of posts in a cache."""

    def __init__(self, cache: Cache, factory: sessionmaker[Session]) -> None:
        self.cache = cache
        self.factory = factory
        self.loads: list[int] = []
        blog = self

        @cache.cached(ns="posts", key="title:{id}", tags=["Post:{id}", "posts"])
        def title(id: int, session: Any = None) -> str | None:
            blog.loads.append(id)
            if session is not None:
                return session.scalar(select(Post.title).where(Post.id == id))  # type: ignore[no-any-return]
            with factory() as own:
                return own.scalar(select(Post.title).where(Post.id == id))

        @cache.invalidates(tags=["posts"])
        def touch() -> None:
            return None

        self.title, self.touch = title, touch


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = create_engine(f"sqlite:///{tmp_path}/blog.sqlite")
    transactional(engine)
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with factory.begin() as session:
        session.add(Author(id=1, name="ada", posts=[Post(id=i, title=f"title {i}") for i in (1, 2, 3)]))
    yield factory
    engine.dispose()


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache("embedded://") as made:
        yield made


@pytest.fixture
def blog(cache: Cache, factory: sessionmaker[Session]) -> Blog:
    bind(factory, cache, models=Base)
    made = Blog(cache, factory)
    for id in (1, 2, 3):
        made.title(id)
    made.loads.clear()
    return made


def cached(blog: Blog) -> list[int]:
    return [id for id in (1, 2, 3) if blog.title.peek(id) is not MISSING]


# ---------------------------------------------------------------------------- tags


def test_tags_are_class_and_primary_key() -> None:
    assert tags_of(Post) == ("Post",)
    assert tags_of(Post(id=42)) == ("Post", "Post:42")
    assert tags_of(Post()) == ("Post",), "no key yet"
    assert tags_of(Note(place="a", number=1)) == ("Note", "Note:a:1")
    assert tags_of(Pinned(place="a", number=1)) == ("Pinned", "Pinned:a:1", "Note", "Note:a:1")


# ---------------------------------------------------------------------------- commit and rollback


def test_what_a_flush_writes_is_invalidated_when_it_is_committed(blog: Blog) -> None:
    with blog.factory() as session:
        session.get(Post, 1).title = "new"  # type: ignore[union-attr]
        session.flush()
        assert blog.title.peek(1) == "title 1", "not before"
        session.commit()
        assert blog.title.peek(1) is MISSING
    assert blog.title(1) == "new"
    assert cached(blog) == [1, 2, 3], "and nothing else was"


@pytest.mark.parametrize("how", ["rollback", "close", "error"])
def test_what_is_rolled_back_is_not_invalidated(blog: Blog, how: str) -> None:
    before = blog.cache.stats()["invalidations"]
    session = blog.factory()
    session.get(Post, 1).title = "new"  # type: ignore[union-attr]
    session.flush()
    blog.touch()
    if how == "error":
        with pytest.raises(ZeroDivisionError), session:
            raise ZeroDivisionError
    else:
        getattr(session, how)()
    session.close()
    assert blog.cache.stats()["invalidations"] == before
    assert cached(blog) == [1, 2, 3]
    assert blog.title(1) == "title 1"


def test_new_and_deleted_rows(blog: Blog) -> None:
    assert blog.title(9) is None
    with blog.factory.begin() as session:
        session.add(Post(id=9, title="nine", author_id=1))
        session.delete(session.get(Post, 2))
    assert blog.title(9) == "nine", "its absence was remembered, under its tag"
    assert blog.title(2) is None


def test_rows_that_a_statement_matches(blog: Blog) -> None:
    """The statement names no rows: they are asked for before it runs."""
    with blog.factory.begin() as session:
        session.execute(update(Post).where(Post.id > 1).values(title="many"))
    assert cached(blog) == [1]
    assert blog.title(2) == blog.title(3) == "many"
    with blog.factory.begin() as session:
        session.execute(delete(Post).where(Post.title == "many"))
    assert cached(blog) == [1]
    with blog.factory.begin() as session:
        session.execute(update(Post), [{"id": 1, "title": "by key"}])
    assert blog.title(1) == "by key"
    with blog.factory.begin() as session:
        assert blog.title(8) is None
        session.execute(insert(Post), [{"id": 8, "title": "eight", "author_id": 1}])
    assert blog.title(8) == "eight"


@pytest.mark.parametrize(
    ("statement", "gone"),
    [
        (insert(Post).values(id=9, title="x", author_id=1), [9]),
        (insert(Post).values([{"id": i, "title": "x", "author_id": 1} for i in (8, 9)]), [8, 9]),
        (
            upsert(Post)
            .values(id=1, title="x", author_id=1)
            .on_conflict_do_update(index_elements=["id"], set_={"title": "x"}),
            [1],
        ),
        (update(Post).where(Post.id == 1).values(id=9), [1, 9]),
        (
            select(Post).from_statement(update(Post).where(Post.id == 1).values(title="x").returning(Post)),
            [1],
        ),
        (insert(Post).from_select(["title", "author_id"], select(Post.title, Post.author_id)), []),
    ],
    ids=["insert", "several", "upsert", "another key", "returning", "from a select"],
)
def test_rows_that_a_statement_names(blog: Blog, statement: Any, gone: list[int]) -> None:
    """Those that are there, and the absence of those that are not yet."""
    known = (1, 2, 8, 9)
    for id in known:
        blog.title(id)
    with blog.factory.begin() as session:
        session.execute(statement)
    assert [id for id in known if blog.title.peek(id) is MISSING] == gone


@pytest.mark.parametrize("models", [(), Base], ids=["by hand", "by models"])
@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.bulk_update_mappings(Post, [{"id": 1, "title": "new"}]),
        lambda session: session.connection().execute(update(Post).where(Post.id == 1).values(title="new")),
        lambda session: session.connection().exec_driver_sql("update posts set title = 'new' where id = 1"),
        lambda session: session.execute(text("with one as (select 1) update posts set title = 'new'")),
        lambda session: session.execute(
            select(Post).from_statement(update(Post).values(title="new").returning(Post))
        ),
        lambda session: session.execute(update(Post.__table__).values(title="new")),
    ],
    ids=["bulk", "connection", "driver", "text", "returning", "table"],
)
def test_an_invalidation_waits_however_the_session_has_written(
    cache: Cache, factory: sessionmaker[Session], models: Any, write: Any
) -> None:
    """What another one loads before the commit is the old row, and must not stay."""
    bind(factory, cache, models=models)
    blog = Blog(cache, factory)
    with factory() as session:
        write(session)
        assert cache.invalidate(tags=["posts"]).deferred
        with ThreadPoolExecutor(1) as other:
            assert other.submit(blog.title, 1).result(10) == "title 1"
        session.commit()
    assert blog.title(1) == "new"


@pytest.mark.parametrize("where", ["session", "connection"])
def test_a_session_that_only_reads_is_no_writer(
    cache: Cache, factory: sessionmaker[Session], where: str
) -> None:
    """Whatever its question begins with, and in a savepoint too."""
    bind(factory, cache, models=Base)
    wide = select(Post.id).where(Post.id == 1).cte("wide")
    with factory() as session, session.begin_nested():
        asked: Any = session if where == "session" else session.connection()
        asked.execute(select(wide.c.id))
        asked.execute(text("select 1"))
        assert cache.invalidate(tags=["posts"]).acknowledged


def test_rows_that_were_only_read_are_not_invalidated(blog: Blog) -> None:
    before = blog.cache.stats()["invalidations"]
    with blog.factory.begin() as session:
        post = session.get(Post, 1)
        assert post is not None
        post.title = post.title
        assert session.scalars(select(Post)).all()
        assert session.execute(text("select 1")).scalar() == 1
    assert blog.cache.stats()["invalidations"] == before


def test_models_chooses_the_classes(cache: Cache, factory: sessionmaker[Session]) -> None:
    bind(factory, cache, models=[Author])
    blog = Blog(cache, factory)
    blog.title(1)
    with factory.begin() as session:
        session.get(Post, 1).title = "new"  # type: ignore[union-attr]
    assert blog.title(1) == "title 1"


# ---------------------------------------------------------------------------- what the block invalidates


def test_invalidations_of_all_kinds_wait_for_the_commit(blog: Blog) -> None:
    with blog.factory.begin() as session:
        session.add(Post(id=9, title="nine", author_id=1))
        blog.touch()
        assert blog.cache.invalidate(keys=["n:k"]).deferred
        blog.title.invalidate(2)
        assert blog.cache.get("posts:title:1") == "title 1"
    assert cached(blog) == []


def test_an_invalidation_outside_of_any_change_goes_out_at_once(blog: Blog) -> None:
    """A session that has only read is no transaction to wait for."""
    with blog.factory() as session:
        session.get(Post, 1)
        assert blog.cache.invalidate(tags=["posts"]).acknowledged
        assert cached(blog) == []
        assert blog.title(1, session) == "title 1"
        assert blog.title.peek(1) == "title 1", "and stores like anybody else"


def test_nothing_uncommitted_is_stored(blog: Blog) -> None:
    blog.cache.invalidate(tags=["posts"])
    with blog.factory() as session:
        session.get(Post, 1).title = "uncommitted"  # type: ignore[union-attr]
        session.flush()
        assert blog.title(1, session) == "uncommitted"
        assert blog.title.peek(1) is MISSING
        session.rollback()
    assert blog.title(1) == "title 1"


def test_a_block_sees_what_it_has_written(blog: Blog) -> None:
    with blog.factory.begin() as session:
        session.get(Post, 1).title = "mine"  # type: ignore[union-attr]
        session.flush()
        assert blog.title(1, session) == "mine"
    assert blog.title(1) == "mine"


def test_statements_of_core_are_told_by_hand(blog: Blog) -> None:
    with blog.factory() as session:
        invalidate(session, tags=["Post:1"])
        session.execute(text("update posts set title = 'core' where id = 1"))
        assert blog.title.peek(1) == "title 1"
        session.commit()
        assert blog.title(1) == "core"
        invalidate(session, keys=["posts:title:2"])
        session.rollback()
    assert cached(blog) == [1, 2, 3]


# ---------------------------------------------------------------------------- savepoints


def test_a_savepoint_that_is_rolled_back_takes_its_own_with_it(blog: Blog) -> None:
    with blog.factory.begin() as session:
        session.get(Post, 1).title = "kept"  # type: ignore[union-attr]
        point = session.begin_nested()
        session.get(Post, 2).title = "dropped"  # type: ignore[union-attr]
        session.flush()
        point.rollback()
        with session.begin_nested():
            with session.begin_nested():
                session.get(Post, 3).title = "deep"  # type: ignore[union-attr]
            assert blog.title.peek(3) == "title 3"
        assert cached(blog) == [1, 2, 3]
    assert cached(blog) == [2]
    assert [blog.title(i) for i in (1, 2, 3)] == ["kept", "title 2", "deep"]


def test_a_savepoint_in_a_transaction_that_is_rolled_back(blog: Blog) -> None:
    with blog.factory() as session:
        with session.begin_nested():
            session.get(Post, 1).title = "x"  # type: ignore[union-attr]
        session.rollback()
    assert cached(blog) == [1, 2, 3]


# ---------------------------------------------------------------------------- several sessions


def test_two_sessions_open_at_once_each_say_what_was_invalidated(
    cache: Cache, factory: sessionmaker[Session]
) -> None:
    """Whose write it was cannot be known, so neither's rollback may lose it."""
    bind(factory, cache)
    cache.set("n:k", 1)
    first, second = factory(), factory()
    first.begin(), second.begin()
    for session in (first, second):
        session.add(Author(id=hash(session) % 1000 + 10, name="x"))
    cache.invalidate(keys=["n:k"])
    second.rollback()
    assert cache.exists("n:k")
    first.commit()
    assert not cache.exists("n:k")
    assert cache.set("n:k", 2)
    assert cache.get("n:k") == 2, "nothing is left of the blocks"


def test_a_session_that_is_used_again_begins_anew(blog: Blog) -> None:
    with blog.factory() as session:
        for number in range(3):
            session.get(Post, 1).title = str(number)  # type: ignore[union-attr]
            session.commit()
            assert blog.title(1) == str(number)
            assert blog.title.peek(1) == str(number)


# ---------------------------------------------------------------------------- writers that die


def test_a_commit_that_raises_may_have_been_done(blog: Blog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection broke while it was committed: nobody knows, so the entries go."""
    with blog.factory() as session:
        session.get(Post, 1).title = "maybe"  # type: ignore[union-attr]
        session.flush()
        monkeypatch.setattr(session.connection().dialect, "do_commit", fails)
        with pytest.raises(ZeroDivisionError):
            session.commit()
    assert cached(blog) == [2, 3]


def test_with_a_hold_a_writer_that_dies_leaves_misses(
    redis_url: str, factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache(redis_url, l1_window=None) as dying, Cache(redis_url, l1_window=None) as living:
        bind(factory, dying, models=Base, hold=30)
        blog = Blog(living, factory)
        assert blog.title(1) == "title 1"
        with factory() as session:
            session.get(Post, 1).title = "new"  # type: ignore[union-attr]
            with monkeypatch.context() as patch:
                patch.setattr("cacheaside_sqlalchemy.binding.Work.send", dies_after_the_hold)
                session.commit()
        assert [blog.title(1), blog.title(1)] == ["new", "new"]
        assert blog.title.peek(1) is MISSING, "held"


def test_a_hold_ends_with_the_commit_or_the_rollback(
    redis_url: str, factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache(redis_url, l1_window=None) as cache:
        bind(factory, cache, models=Base, hold=30)
        blog = Blog(cache, factory)
        with factory() as session:
            session.get(Post, 1).title = "new"  # type: ignore[union-attr]
            session.commit()
            blog.title(1)
            assert blog.title.peek(1) == "new"
            session.get(Post, 1).title = "newer"  # type: ignore[union-attr]
            monkeypatch.setattr(session.connection().dialect, "do_commit", fails)
            with pytest.raises(ZeroDivisionError):
                session.commit()
        blog.title(1)
        assert blog.title.peek(1) is not MISSING


def dies_after_the_hold(work: Any, **holding: Any) -> None:
    if "hold" in holding:
        work.cache.invalidate_now(keys=(), tags=tuple(work.levels[0].tags), **holding)


def fails(connection: Any) -> None:
    connection.rollback()
    raise ZeroDivisionError


# ---------------------------------------------------------------------------- async


@pytest.fixture
async def async_factory(tmp_path: Path) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/blog.sqlite")
    transactional(engine.sync_engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    factory = async_sessionmaker(engine)
    async with factory.begin() as session:
        session.add(Author(id=1, name="ada", posts=[Post(id=i, title=f"title {i}") for i in (1, 2)]))
    yield factory
    await engine.dispose()


@pytest.mark.parametrize("hold", [None, 30], ids=["plain", "hold"])
async def test_async_sessions(
    redis_url: str, async_factory: async_sessionmaker[AsyncSession], hold: float | None
) -> None:
    """Commit, rollback, savepoints, statements, and the invalidation that does not block the loop."""
    async with Cache(redis_url, l1_window=None) as cache:
        bind(async_factory, cache, models=Base, hold=hold)

        @cache.cached(ns="posts", key="title:{id}", tags=["Post:{id}"])
        async def title(id: int) -> str | None:
            async with async_factory() as session:
                return await session.scalar(select(Post.title).where(Post.id == id))

        assert [await title(i) for i in (1, 2)] == ["title 1", "title 2"]
        async with async_factory() as session:
            (await session.get_one(Post, 1)).title = "rolled back"
            await session.flush()
            await session.rollback()
            assert await title.peek(1) == "title 1"
            async with session.begin_nested():
                (await session.get_one(Post, 1)).title = "new"
            assert await title.peek(1) == "title 1"
            await session.commit()
        assert [await title(1), await title.peek(1)] == ["new", "new"]
        async with async_factory.begin() as session:
            await session.execute(update(Post).where(Post.id == 2).values(title="second"))
            receipt = await cache.ainvalidate(tags=["Post:1"])
            assert receipt.deferred
        assert await title.peek(1) is MISSING
        assert await title(2) == "second"
        assert getattr(cache.store, "_lines", 0) is None, "nothing went over a connection for threads"


async def test_what_is_written_by_the_connection_of_an_async_session_is_waited_for(
    async_factory: async_sessionmaker[AsyncSession],
) -> None:
    async with Cache("embedded://") as cache:
        bind(async_factory, cache)
        async with async_factory.begin() as session:
            connection = await session.connection()
            assert (await cache.ainvalidate(tags=["posts"])).acknowledged
            await connection.execute(update(Post).where(Post.id == 1).values(title="new"))
            assert (await cache.ainvalidate(tags=["posts"])).deferred


async def test_tasks_have_sessions_of_their_own(async_factory: async_sessionmaker[AsyncSession]) -> None:
    """One task's open transaction does not keep another's invalidation waiting."""
    async with Cache("embedded://") as cache:
        bind(async_factory, cache)
        cache.set("n:k", 1)
        open_, go_on = asyncio.Event(), asyncio.Event()

        async def writer() -> None:
            async with async_factory.begin() as session:
                session.add(Author(id=5, name="x"))
                open_.set()
                await go_on.wait()

        task = asyncio.create_task(writer())
        await open_.wait()
        assert (await cache.ainvalidate(keys=["n:k"])).acknowledged
        go_on.set()
        await task


# ---------------------------------------------------------------------------- bad input


def test_what_cannot_be_bound_is_refused(cache: Cache, factory: sessionmaker[Session]) -> None:
    with pytest.raises(ConfigError, match="sessionmaker"):
        bind(object(), cache)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="models"):
        bind(factory, cache, models=["Post"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"models .* not 'Post'"):
        bind(factory, cache, models="Post")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hold"):
        bind(factory, cache, hold=0)
    with factory() as session, pytest.raises(ConfigError, match="bind"):
        invalidate(session, tags=["t"])


def test_other_factories_are_left_alone(cache: Cache, factory: sessionmaker[Session]) -> None:
    bind(factory, cache, models=Base)
    other = sessionmaker(factory.kw["bind"])
    with other.begin() as session:
        session.get(Author, 1).name = "x"  # type: ignore[union-attr]
        assert cache.invalidate(tags=["Post"]).acknowledged
    assert cache.stats()["invalidations"] == 1
