"""Transactions: a load is one snapshot, and every write has a number.

Writes are numbered in the order of their commits. Whatever is read carries the number of the last write that
its snapshot contained, its *version*: so anybody can tell from outside how old an answer is. An answer about
something that write 7 has changed, loaded after that write was committed, has at least version 7.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from cacheaside_sqlalchemy import bind
from sqlalchemy import Engine, create_engine, event, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from cacheaside import Cache

from .models import Base, Writes

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Base)

PAGE: Final = 10


class Snapshot(Session):
    """A session whose ``version`` is the number of the last write that it sees, or its own."""

    version: int = 0

    def made(self, row: M) -> M:
        """Add a row and have it numbered; what it looks like now."""
        self.add(row)
        self.flush()
        return row


class Database:
    """An engine and its two kinds of transactions.

    Args:
        url: of SQLAlchemy's.
        delay: seconds added to every load.
    """

    def __init__(self, url: str, delay: float = 0.0) -> None:
        self.delay = delay
        self.queries = 0
        self._counting = threading.Lock()
        self.engine = create_engine(url, pool_size=40, pool_timeout=60)
        # SQLite's transactions are snapshots; PostgreSQL's are when they are asked to be.
        self._reading: dict[str, Any] = {"isolation_level": "REPEATABLE READ"}
        if self.engine.dialect.name == "sqlite":
            listen_to_sqlite(self.engine)
            self._reading = {}
        event.listen(self.engine, "before_cursor_execute", self._count)
        self._sessions = sessionmaker(self.engine, class_=Snapshot, autoflush=False)

    def follow(self, cache: Cache, hold: float | None) -> None:
        """Have what is invalidated in a transaction go out after its commit.

        With ``hold``, in seconds, it is held before that: a writer that dies in between leaves misses.
        """
        bind(self._sessions, cache, hold=hold)

    def create(self) -> None:
        """Make the tables that are not there."""
        with self._sessions.begin() as session:
            if self.engine.dialect.name == "postgresql":  # where workers that start together would collide
                session.execute(select(func.pg_advisory_xact_lock(1)))
            Base.metadata.create_all(session.connection())
            if session.get(Writes, 1) is None:
                session.add(Writes(id=1, number=0))

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Snapshot]:
        """One snapshot for all queries of a load; the answer then takes its time to arrive."""
        with self._sessions() as session:
            session.connection(execution_options=self._reading)
            session.version = session.scalars(select(Writes.number)).one()
            yield session
        if self.delay:
            time.sleep(self.delay)

    @contextmanager
    def writing(self) -> Iterator[Snapshot]:
        """A transaction with a number, committed at the end of the block.

        The number comes first: its row is what writers queue for, so that their order is that of the numbers.
        """
        with self._sessions.begin() as session:
            numbered = update(Writes).values(number=Writes.number + 1).returning(Writes.number)
            session.version = session.scalars(numbered).one()
            yield session

    def _count(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement != "BEGIN":
            with self._counting:
                self.queries += 1


def writes(method: Callable[Concatenate[Any, Snapshot, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Run a repository's method in a transaction, whose session it is given, committed at its end.

    Goes above ``@invalidates``, which then stands inside: what it says waits for the commit.
    """

    @wraps(method)
    def within(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.database.writing() as session:
            return method(self, session, *args, **kwargs)

    return within


def listen_to_sqlite(engine: Engine) -> None:
    """Readers go on while a writer writes; a transaction begins where it is said to."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "busy_timeout = 30000",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")
