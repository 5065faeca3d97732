"""The tags of mapped objects: ``Post`` and ``Post:42``, from class and primary key."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapper, ORMExecuteState, Session

log = logging.getLogger("cacheaside")


def tags_of(entity: Any) -> tuple[str, ...]:
    """The tags of a mapped object, or of a mapped class: ``("Post", "Post:42")``, ``("Post",)``.

    Several columns of a primary key are joined by colons. A class that inherits from a mapped class has its
    tags too.
    """
    state: Any = inspect(entity)
    if isinstance(state, Mapper):
        return tuple(names(state))  # pyright: ignore[reportUnknownArgumentType]
    mapper: Mapper[Any] = state.mapper
    keys = {tuple(mapper.primary_key_from_instance(entity))}
    if state.identity is not None:  # the key that the row had when it was loaded
        keys.add(tuple(state.identity))
    return tuple(dict.fromkeys(rows(mapper, keys)))


def names(mapper: Mapper[Any]) -> list[str]:
    """The class and the mapped classes that it inherits from."""
    return [one.class_.__name__ for one in mapper.iterate_to_root()]


def rows(mapper: Mapper[Any], keys: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """The tags of rows with these primary keys."""
    texts = [":".join(map(str, key)) for key in keys if None not in key]
    for name in names(mapper):
        yield name
        for text in texts:
            yield f"{name}:{text}"


def flushed(session: Session, models: tuple[type, ...]) -> Iterator[str]:
    """The tags of what a flush is writing."""
    written = (*session.new, *session.deleted, *(one for one in session.dirty if session.is_modified(one)))
    for entity in written:
        if isinstance(entity, models):
            yield from tags_of(entity)


def matched(asked: ORMExecuteState, models: tuple[type, ...]) -> Iterator[str]:
    """The tags of the rows that a statement about a mapped class is about to write."""
    mapper = asked.bind_mapper
    if mapper is None or not issubclass(mapper.class_, models):
        return
    if isinstance(asked.parameters, list) or (asked.is_insert and asked.parameters):  # a dict for each row
        columns = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        given: Any = asked.parameters if isinstance(asked.parameters, list) else [asked.parameters]
        yield from rows(mapper, [tuple(row.get(column) for column in columns) for row in given])
        return
    statement: Any = getattr(asked.statement, "element", asked.statement)  # of select().from_statement()
    columns = [str(column.key) for column in mapper.primary_key]
    said = parameters(statement, asked.session.get_bind(mapper).dialect)
    if asked.is_insert:
        yield from rows(mapper, inserted(columns, said))
        return
    asking = select(*mapper.primary_key)
    if statement.whereclause is not None:
        asking = asking.where(statement.whereclause)
    found = asked.session.execute(asking, asked.parameters or {}, bind_arguments={"mapper": mapper})
    for row in found:
        key = tuple(row)
        yield from rows(mapper, {key, tuple(map(newer, map(said.get, columns), key))})


def parameters(statement: Any, dialect: Any) -> Mapping[str, Any]:
    """What stands in a statement; nothing if it cannot be said without running it: an insert of defaults."""
    try:
        said: dict[str, Any] = statement.compile(dialect=dialect).params
    except (KeyError, SQLAlchemyError):
        return {}
    return said


def inserted(columns: list[str], said: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The primary keys among the parameters of an insert, of one row or of several."""
    yield tuple(map(said.get, columns))
    for number in count():
        several = [f"{column}_m{number}" for column in columns]
        if said.keys().isdisjoint(several):
            return
        yield tuple(map(said.get, several))


def newer(given: Any, before: Any) -> Any:
    """A part of a primary key, which an update may have set."""
    return before if given is None else given
