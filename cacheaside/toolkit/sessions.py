"""Login sessions: many for each user, found by a secret token of which only the hash is stored."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast, overload

import msgspec

from cacheaside.advice import keeping
from cacheaside.codecs import NO_ANNOTATION, codec_for
from cacheaside.engine.commands import Flow
from cacheaside.errors import CodecError, ConfigError, StoreUnavailable
from cacheaside.policy import Seconds, seconds
from cacheaside.schema import type_name
from cacheaside.telemetry import found
from cacheaside.toolkit.grants import Grant, Grants, UserId, check_cache, check_most, grants_name

if TYPE_CHECKING:
    from cacheaside.cache import Cache

D = TypeVar("D")
Changes = Mapping[str, Any] | Callable[[D], D]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COUNTED: Final = ("created", "hits", "misses", "bad_data", "unavailable", "conflicts", "pushed_out")


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Session(Generic[D]):
    """A live session as it was when it was read.

    ``token`` is the secret for the client's cookie; it is empty in what ``list`` returns, since nobody else
    knows it. ``id`` is no secret from the session's user, and ends the session with ``delete(id)``. Times are
    in UTC, by Redis's clock.
    """

    token: str
    id: str
    user_id: UserId
    data: D
    created_at: datetime
    last_activity: datetime

    def __repr__(self) -> str:
        return f"<Session {self.id} of user {self.user_id!r}>"


class SessionStore(Generic[D]):
    """The sessions of a service's users.

    ``get`` answers None for whatever is no live session, and does not raise when Redis is away; all other
    operations raise StoreUnavailable then. The loss of any key, by eviction or a fault, logs out.

    Args:
        cache: where the sessions live. Clearing the cache does not end them.
        ttl: seconds that a session lives without being used.
        absolute_ttl: seconds that it lives at most, used or not.
        type: of the data, such as a Struct or a dataclass: dates and the like come back as what they are.
            None is for dicts of builtin values.
        ns: the namespace of the keys. Two stores of one namespace share their sessions.
        grace: seconds for which a rotated token is still good.
        max_per_user: live sessions of one user; a new one pushes out the oldest.
        on_unavailable: what ``get`` does when Redis is away: ``"deny"`` answers None and counts it,
            ``"raise"`` raises StoreUnavailable.

    Raises ConfigError for an unusable option, CodecError for a type that cannot come back.
    """

    @overload
    def __init__(
        self: SessionStore[dict[str, Any]],
        cache: Cache,
        ttl: Seconds = ...,
        absolute_ttl: Seconds = ...,
        type: None = None,
        *,
        ns: str = ...,
        grace: Seconds = ...,
        max_per_user: int = ...,
        on_unavailable: Literal["deny", "raise"] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        cache: Cache,
        ttl: Seconds = ...,
        absolute_ttl: Seconds = ...,
        *,
        type: builtins.type[D],
        ns: str = ...,
        grace: Seconds = ...,
        max_per_user: int = ...,
        on_unavailable: Literal["deny", "raise"] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        cache: Cache,
        ttl: Seconds,
        absolute_ttl: Seconds,
        type: builtins.type[D],
        *,
        ns: str = ...,
        grace: Seconds = ...,
        max_per_user: int = ...,
        on_unavailable: Literal["deny", "raise"] = ...,
    ) -> None: ...

    def __init__(
        self,
        cache: Cache,
        ttl: Seconds = 86400,
        absolute_ttl: Seconds = 2592000,
        type: Any = None,
        *,
        ns: str = "auth",
        grace: Seconds = 5,
        max_per_user: int = 100,
        on_unavailable: Literal["deny", "raise"] = "deny",
    ) -> None:
        self._cache = check_cache(cache)
        idle, whole = seconds("ttl", ttl), seconds("absolute_ttl", absolute_ttl)
        if idle > whole:
            raise ConfigError(
                f"ttl ({idle:g} s) must not be longer than absolute_ttl ({whole:g} s), which ends a session "
                f"used or not"
            )
        if on_unavailable not in ("deny", "raise"):
            raise ConfigError(f'on_unavailable must be "deny" or "raise", not {on_unavailable!r}')
        self._raises = on_unavailable == "raise"
        self._untyped = type is None
        self._codec = codec_for(NO_ANNOTATION if type is None else type)
        self._grants = Grants(
            cache.world.keys,
            grants_name(ns, "session"),
            ttl=idle,
            whole=whole,
            grace=seconds("grace", grace, zero=True),
            most=check_most(max_per_user),
        )

    def __repr__(self) -> str:
        return f"<SessionStore on {self._cache!r}>"

    # -- of one session

    def create(self, user_id: UserId, data: D) -> Session[D]:
        """Log a user in: a new session with a new token. It never takes a token or id from outside."""
        return self._cache.run(self._create(user_id, data), "session.create")

    async def acreate(self, user_id: UserId, data: D) -> Session[D]:
        return await self._cache.arun(self._create(user_id, data), "session.create")

    def get(self, token: str | None) -> Session[D] | None:
        """The live session of a token, whose idle life begins again; None for anything else."""
        return self._cache.run(self._get(token), "session.get", found)

    async def aget(self, token: str | None) -> Session[D] | None:
        return await self._cache.arun(self._get(token), "session.get", found)

    def update(self, token: str | None, changes: Changes[D]) -> Session[D] | None:
        """Change a session's data; None when there is no such session (any more).

        What others change meanwhile is not lost: the change is made again on what they left.

        Args:
            changes: fields with their new values, or a function from the data to the new data, which may
                be called more than once.

        Raises ConfigError for a field that is not there, CodecError for a value that does not fit.
        """
        return self._cache.run(self._update(token, changes), "session.update", found)

    async def aupdate(self, token: str | None, changes: Changes[D]) -> Session[D] | None:
        return await self._cache.arun(self._update(token, changes), "session.update", found)

    def rotate(self, token: str | None, *, grace: Seconds | None = None) -> Session[D] | None:
        """Give a session a new token; the old one is good for ``grace`` seconds more (default: the store's).

        Do so at a login and whenever rights change, there with ``grace=0``: who knew the old token must not
        come in by it. Who rotates an old token once more within its grace gets the same new one.
        """
        return self._cache.run(self._rotate(token, grace), "session.rotate", found)

    async def arotate(self, token: str | None, *, grace: Seconds | None = None) -> Session[D] | None:
        return await self._cache.arun(self._rotate(token, grace), "session.rotate", found)

    def extend(self, token: str | None) -> bool:
        """Let a session's idle life begin again without any activity; False when there is no such session."""
        return self._cache.run(self._extend(token), "session.extend", found)

    async def aextend(self, token: str | None) -> bool:
        return await self._cache.arun(self._extend(token), "session.extend", found)

    def delete(self, token: str | None) -> bool:
        """Log out: end a session, by its token or its ``id``; False when there is no such session."""
        return self._cache.run(self._grants.drop(token), "session.delete", found)

    async def adelete(self, token: str | None) -> bool:
        return await self._cache.arun(self._grants.drop(token), "session.delete", found)

    # -- of one user

    def delete_all(self, user_id: UserId) -> bool:
        """Log a user out everywhere, in one step; False when there was nothing to end."""
        return self._cache.run(self._grants.clear(user_id), "session.delete_all")

    async def adelete_all(self, user_id: UserId) -> bool:
        return await self._cache.arun(self._grants.clear(user_id), "session.delete_all")

    def list(self, user_id: UserId) -> builtins.list[Session[D]]:
        """A user's live sessions without their tokens, the one active last first. They are not touched."""
        return self._cache.run(self._list(user_id), "session.list")

    async def alist(self, user_id: UserId) -> builtins.list[Session[D]]:
        return await self._cache.arun(self._list(user_id), "session.list")

    # --

    def stats(self) -> dict[str, int]:
        """Counters of this process."""
        return {name: self._grants.counts[name] for name in _COUNTED}

    # -- the flows

    def _create(self, user_id: UserId, data: D) -> Flow[Session[D]]:
        yield from keeping(self._cache, "sessions")
        grant = yield from self._grants.add(user_id, self._encode(data))
        self._grants.counts["created"] += 1
        return self._session(grant, data)

    def _get(self, token: str | None) -> Flow[Session[D] | None]:
        counts = self._grants.counts
        yield from keeping(self._cache, "sessions")
        try:
            grant = yield from self._grants.touch(token)
        except StoreUnavailable:
            counts["unavailable"] += 1
            if self._raises:
                raise
            return None
        session = self._open(grant)
        counts["misses" if session is None else "hits"] += 1
        return session

    def _update(self, token: str | None, changes: Changes[D]) -> Flow[Session[D] | None]:
        grant = yield from self._grants.touch(token)
        while True:
            session = self._open(grant)
            if grant is None or session is None:
                return None
            data = changed(session.data, changes)
            done, grant = yield from self._grants.replace(grant, self._encode(data))
            if done and grant is not None:
                return self._session(grant, data)

    def _rotate(self, token: str | None, grace: Seconds | None) -> Flow[Session[D] | None]:
        wanted = None if grace is None else seconds("grace", grace, zero=True)
        _, grant = yield from self._grants.rotate(token, grace=wanted)
        return self._open(grant)

    def _extend(self, token: str | None) -> Flow[bool]:
        return (yield from self._grants.touch(token, seen=False)) is not None

    def _list(self, user_id: UserId) -> Flow[builtins.list[Session[D]]]:
        grants = yield from self._grants.all(user_id)
        return [session for session in map(self._open, grants) if session is not None]

    # -- data

    def _encode(self, data: D) -> bytes:
        if self._untyped and not isinstance(data, dict):
            raise ConfigError(
                f"data must be a dict, not a {type_name(data)}; for another type make the store "
                f"with SessionStore(cache, type=...)"
            )
        try:
            return self._codec.encode(data)
        except CodecError as error:
            raise CodecError(
                f"session data: {error}" + ("; give SessionStore a type" if self._untyped else "")
            ) from error

    def _open(self, grant: Grant | None) -> Session[D] | None:
        """The session of a grant; what another version of the program wrote may be unreadable to this one."""
        if grant is None:
            return None
        try:
            data = self._codec.decode(grant.payload)
        except CodecError:
            self._grants.counts["bad_data"] += 1
            return None
        return self._session(grant, data)

    def _session(self, grant: Grant, data: D) -> Session[D]:
        born, seen = (_EPOCH + timedelta(microseconds=n) for n in (grant.born, grant.seen))
        return Session(grant.token, grant.id, grant.user_id, data, born, seen)


def changed(data: Any, changes: Any) -> Any:
    """A copy of session data with other values in some fields; the data itself is left as it is."""
    if callable(changes):
        return changes(data)
    if not isinstance(changes, Mapping):
        raise ConfigError(f"changes must be a dict of fields or a function, not a {type_name(changes)}")
    fields = cast("Mapping[str, Any]", changes)
    kind: type[Any] = data.__class__
    if issubclass(kind, dict):
        return {**data, **fields}
    if issubclass(kind, msgspec.Struct):
        replace: Callable[..., Any] = msgspec.structs.replace
    elif dataclasses.is_dataclass(kind):
        replace = dataclasses.replace
    else:
        raise ConfigError(f"changes of a {type_name(data)} must be a function from the data to new data")
    try:
        return replace(data, **fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"changes do not fit {type_name(data)}: {error}") from None
