"""The versioned table that is read through the cache: SQLite by itself, or any URL that SQLAlchemy takes."""

from __future__ import annotations

import functools
import random
import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from cacheaside.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Connection, Engine

OWNERS: Final = 7
PATIENCE: Final = 30.0
"""Seconds that a writer waits for another one, who may have been stopped while he wrote."""


class Row(Struct, frozen=True):
    """A row as the cached functions return it."""

    id: int
    version: int
    owner: int
    text: str


def make_row(id: int, version: int) -> Row:
    return Row(id, version, owner_of(id), text_of(id))


def owner_of(id: int) -> int:
    """Who shares his tag with other rows."""
    return id % OWNERS


@functools.cache
def text_of(id: int) -> str:
    """Long for some rows, even when compressed, so that each way to store a value is walked."""
    return random.Random(id).randbytes(5000).hex() if id % 5 == 0 else ""


class Table(Protocol):
    """Rows 0 to ``rows - 1``, each beginning with version 1."""

    def create(self, rows: int) -> None: ...
    def read(self, id: int) -> Row: ...
    def write(self, id: int) -> int:
        """Give a row its next version, committed when this returns: that version."""
        ...

    def drop(self) -> None: ...
    def close(self) -> None: ...


def open_table(database: str, name: str) -> Table:
    """The table ``name`` of a database: a URL of SQLAlchemy, or the path of a file for SQLite."""
    return SqlTable(database, name) if "://" in database else SqliteTable(Path(database))


class SqliteTable:
    """A file in WAL mode: many readers, and one writer at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._here = threading.local()
        self._all: list[sqlite3.Connection] = []

    @property
    def _connection(self) -> sqlite3.Connection:
        """This thread's own; closed by whoever closes the table."""
        connection: sqlite3.Connection | None = getattr(self._here, "connection", None)
        if connection is None:
            connection = self._here.connection = sqlite3.connect(
                self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA synchronous = OFF")
            self._all.append(connection)
        return connection

    def create(self, rows: int) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, version INTEGER NOT NULL)")
        self._connection.executemany("INSERT INTO rows VALUES (?, 1)", [(id,) for id in range(rows)])

    def read(self, id: int) -> Row:
        ((version,),) = self._connection.execute("SELECT version FROM rows WHERE id = ?", (id,))
        return make_row(id, version)

    def write(self, id: int) -> int:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute("UPDATE rows SET version = version + 1 WHERE id = ?", (id,))
            ((version,),) = connection.execute("SELECT version FROM rows WHERE id = ?", (id,))
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return int(version)

    def drop(self) -> None:
        self.close()

    def close(self) -> None:
        while self._all:
            self._all.pop().close()
        self._here = threading.local()


class SqlTable:
    """A table of its own in a database that others use as well; dropped at the end."""

    def __init__(self, url: str, name: str) -> None:
        try:
            import sqlalchemy
            from sqlalchemy.exc import ArgumentError
        except ModuleNotFoundError as error:
            raise ConfigError(
                "--database needs SQLAlchemy (pip install 'cacheaside[sqlalchemy]') and the driver of the "
                "database; without it a temporary SQLite file is used"
            ) from error
        try:
            self._engine: Engine = sqlalchemy.create_engine(url, pool_size=32, max_overflow=64)
        except (ArgumentError, ModuleNotFoundError, TypeError) as error:
            raise ConfigError(f"--database is no URL that SQLAlchemy can open: {error}") from error
        self._text = sqlalchemy.text
        self._name = name

    @contextmanager
    def _reading(self) -> Generator[Connection]:
        """A connection whose every query sees what is committed by then."""
        with self._engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def create(self, rows: int) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                self._text(f"CREATE TABLE {self._name} (id INTEGER PRIMARY KEY, version INTEGER NOT NULL)")
            )
            connection.execute(
                self._text(f"INSERT INTO {self._name} VALUES (:id, 1)"),  # noqa: S608
                [{"id": id} for id in range(rows)],
            )

    def read(self, id: int) -> Row:
        with self._reading() as connection:
            return make_row(id, self._version(connection, id))

    def write(self, id: int) -> int:
        with self._engine.begin() as connection:
            update = f"UPDATE {self._name} SET version = version + 1 WHERE id = :id"  # noqa: S608
            connection.execute(self._text(update), {"id": id})
            return self._version(connection, id)

    def _version(self, connection: Connection, id: int) -> int:
        select = f"SELECT version FROM {self._name} WHERE id = :id"  # noqa: S608
        return int(connection.execute(self._text(select), {"id": id}).scalar_one())

    def drop(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(self._text(f"DROP TABLE {self._name}"))
        self.close()

    def close(self) -> None:
        self._engine.dispose()
