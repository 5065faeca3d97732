"""What a session's events do to a cache: collect, hold, send, drop."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, Select, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, sessionmaker
from sqlalchemy.util.concurrency import await_only, in_greenlet

from cacheaside import Cache, ConfigError
from cacheaside.names import key_names, tag_names
from cacheaside.policy import Seconds, seconds
from cacheaside.transactions import Transaction, collecting
from cacheaside_sqlalchemy.tags import flushed, matched

Factory = sessionmaker[Any] | async_sessionmaker[Any] | type[Session]

KEY: Final = "cacheaside"
READS: Final = re.compile(
    r"\s*(select|values|show|explain|pragma\s+\w+\s*$|savepoint|release|rollback)\b", re.IGNORECASE
)


def bind(
    factory: Factory,
    cache: Cache,
    *,
    models: Iterable[type] | type = (),
    hold: Seconds | None = None,
) -> None:
    """Have the invalidations of this factory's sessions follow their transactions.

    Args:
        factory: a ``sessionmaker``, an ``async_sessionmaker``, or a class of sessions.
        models: mapped classes, or a base of theirs, whose rows are invalidated by their tags.
        hold: seconds for which a commit holds what it invalidates, in case the writer dies before it could
            say so; one round trip more for each commit. None: no hold.

    Raises ConfigError for what is no factory.
    """
    several = (models,) if isinstance(models, (type, str)) else tuple(models)  # pyright: ignore[reportUnnecessaryIsInstance]
    wrong = [one for one in several if not isinstance(one, type)]  # pyright: ignore[reportUnnecessaryIsInstance]
    if wrong:
        raise ConfigError(f"models must be mapped classes, or a base of theirs, not {wrong[0]!r}")
    life = None if hold is None else seconds("hold", hold)
    Listener(cache, several, life).listen(target_of(factory))


def target_of(factory: Any) -> Any:
    """What SQLAlchemy's events listen to."""
    if isinstance(factory, async_sessionmaker):
        # The events are those of the sync session inside, of which this factory gets a class of its own.
        made: async_sessionmaker[Any] = factory  # pyright: ignore[reportUnknownVariableType]
        inner = made.kw.get("sync_session_class") or made.class_.sync_session_class
        own = type(inner.__name__, (inner,), {})
        made.configure(sync_session_class=own)
        return own
    if isinstance(factory, sessionmaker) or (isinstance(factory, type) and issubclass(factory, Session)):
        return cast(Any, factory)
    raise ConfigError(
        f"bind takes a sessionmaker, an async_sessionmaker or a class of sessions, not {factory!r}"
    )


def invalidate(
    session: Session | AsyncSession, *, keys: Iterable[str] = (), tags: Iterable[str] = ()
) -> None:
    """Drop keys and everything under tags when the session commits; nothing if it rolls back.

    For what no event tells, such as statements of SQLAlchemy Core. Raises ConfigError for a session whose
    factory was not given to ``bind``.
    """
    inner = session.sync_session if isinstance(session, AsyncSession) else session
    if not inner.in_transaction():
        inner.begin()
    work = inner.info.get(KEY)
    if not isinstance(work, Work):
        raise ConfigError("the session's factory has no cache: call bind(factory, cache) first")
    work.add(key_names(keys), tag_names(tags))


class Level:
    """What a transaction or a savepoint has invalidated."""

    def __init__(self, transaction: SessionTransaction) -> None:
        self.transaction = transaction
        self.committed = False
        self.keys: dict[str, None] = {}
        self.tags: dict[str, None] = {}


class Work(Transaction):
    """The invalidations of one session's transaction, by savepoint.

    It collects while there is something to commit: a session that has only read caches like any other code.
    """

    def __init__(self, cache: Cache, session: Session, transaction: SessionTransaction) -> None:
        super().__init__(cache)
        self.session = session
        self.levels = [Level(transaction)]
        self.wrote = False
        self.committing = False
        self.hold = b""

    @property
    def over(self) -> bool:
        return self._over or not self.changed

    @property
    def changed(self) -> bool:
        """Whether the session has something that its commit would write."""
        session = self.session
        return self.wrote or self.dirty or bool(session.new or session.deleted or session.dirty)

    def add(self, keys: tuple[str, ...], tags: tuple[str, ...], *, barrier: bool = False) -> None:
        level = self.levels[-1]
        with self._lock:
            if not self.dirty and self.cache.near is not None:
                self.cache.near.bypass(True)
            self.dirty = True
            self.barrier = self.barrier or barrier
            level.keys.update(dict.fromkeys(keys))
            level.tags.update(dict.fromkeys(tags))
        # With two sessions open, whose write it was can't be known: each that commits says so.
        outer = self.outer
        if isinstance(outer, Work) and outer.cache is self.cache and not outer.over:
            outer.add(keys, tags, barrier=barrier)

    def end(self) -> None:
        with self._lock:
            self._over = True
        if self.dirty and self.cache.near is not None:
            self.cache.near.bypass(False)
        if collecting.get() is self:
            collecting.set(self.outer)

    def send(self, **holding: Any) -> None:
        """Invalidate what the root has collected, whether this runs under an event loop or not."""
        level = self.levels[0]
        what: dict[str, Any] = {"keys": tuple(level.keys), "tags": tuple(level.tags), **holding}
        if not level.keys and not level.tags:
            return
        if in_greenlet():  # an AsyncSession
            self.receipt = await_only(self.cache.ainvalidate_now(**what))
        else:
            self.receipt = self.cache.invalidate_now(**what)


def writes(statement: str, context: Any) -> bool:
    """Whether a statement that is about to be sent may change something."""
    # A select may begin with something else, such as a common table expression.
    known: Any = getattr(context.compiled, "statement", None)
    return READS.match(statement) is None and not isinstance(known, Select)


class Listener:
    """The events of one factory's sessions."""

    def __init__(self, cache: Cache, models: tuple[type, ...], hold: float | None) -> None:
        self.cache = cache
        self.models = models
        self.hold = hold
        self.engines: WeakSet[Engine] = WeakSet()
        self.works: WeakKeyDictionary[Connection, Work] = WeakKeyDictionary()

    def listen(self, target: Any) -> None:
        for name in (
            "after_transaction_create",
            "after_begin",
            "after_flush",
            "do_orm_execute",
            "before_commit",
            "after_commit",
            "after_transaction_end",
        ):
            event.listen(target, name, getattr(self, name))

    def after_transaction_create(self, session: Session, transaction: SessionTransaction) -> None:
        work = session.info.get(KEY)
        if transaction.parent is None:
            work = session.info[KEY] = Work(self.cache, session, transaction)
            work.outer = collecting.get()
            collecting.set(work)
        elif transaction.nested and isinstance(work, Work):
            work.levels.append(Level(transaction))

    def after_begin(self, session: Session, _: SessionTransaction, connection: Connection) -> None:
        work = session.info.get(KEY)
        if not isinstance(work, Work):
            return
        self.works[connection] = work
        if connection.engine not in self.engines:
            self.engines.add(connection.engine)
            for heard in (connection.engine, connection):  # which was made before and hears of no engine's
                event.listen(heard, "before_cursor_execute", self.told)

    def told(
        self, connection: Connection, _: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        """Hear of everything that a session's connection is told, however it got there."""
        work = self.works.get(connection)
        if work is not None and not work.wrote:
            work.wrote = writes(statement, context)

    def after_flush(self, session: Session, _: Any) -> None:
        work: Work = session.info[KEY]
        tags = tag_names(dict.fromkeys(flushed(session, self.models))) if self.models else ()
        if tags:
            work.add((), tags)

    def do_orm_execute(self, asked: ORMExecuteState) -> None:
        if not self.models or not (asked.is_update or asked.is_delete or asked.is_insert):
            return
        if not asked.session.in_transaction():
            asked.session.begin()
        tags = tag_names(dict.fromkeys(matched(asked, self.models)))
        if tags:
            work: Work = asked.session.info[KEY]
            work.add((), tags)

    def before_commit(self, session: Session) -> None:
        work: Work = session.info[KEY]
        if session.get_nested_transaction() is not None:
            return
        session.flush()
        work.committing = work.dirty
        if work.dirty and self.hold is not None and not work.hold:
            work.hold = self.cache.world.nonce()
            work.send(hold=(work.hold, self.hold))

    def after_commit(self, session: Session) -> None:
        work: Work = session.info[KEY]
        work.levels[-1].committed = True
        if len(work.levels) == 1:
            work.committing = False
            work.end()
            work.send(release=work.hold, barrier=work.barrier)

    def after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        work = session.info.get(KEY)
        if not isinstance(work, Work) or work.levels[-1].transaction is not transaction:
            return
        level = work.levels[-1]
        if len(work.levels) > 1:
            work.levels.pop()
            if level.committed:
                work.levels[-1].keys.update(level.keys)
                work.levels[-1].tags.update(level.tags)
        elif not level.committed:
            work.end()
            # A commit that raised may have been done all the same.
            if work.committing or work.hold:
                work.send(release=work.hold)
        if transaction.parent is None:
            session.info.pop(KEY, None)
