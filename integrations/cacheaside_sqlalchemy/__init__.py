"""Invalidations that follow SQLAlchemy's transactions: sent after a commit, dropped by a rollback.

``bind(Session, cache)`` is all there is to call. From then on, for sessions of that factory:

- What is invalidated while a session has changes that are not committed waits for its commit, savepoints
  included: ``cache.invalidate``, ``@invalidates``, ``f.invalidate``, and ``invalidate(session, ...)``.
- Cached functions store nothing meanwhile, for what they load may be rolled back; once something was
  invalidated they are not answered from the cache either.
- With ``models`` the tags come by themselves: ``Post`` and ``Post:42`` for every row that a flush writes, and
  for every row that an ``update(Post)`` or ``delete(Post)`` matches.
- With ``hold`` a writer that dies between its commit and its invalidation leaves misses, no old rows.
"""

from __future__ import annotations

try:
    import sqlalchemy
except ModuleNotFoundError as error:
    raise ImportError(
        "cacheaside_sqlalchemy needs SQLAlchemy: pip install 'cacheaside[sqlalchemy]'"
    ) from error

from cacheaside_sqlalchemy.binding import bind, invalidate
from cacheaside_sqlalchemy.tags import tags_of

__all__ = ["bind", "invalidate", "tags_of"]

del sqlalchemy
