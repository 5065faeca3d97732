"""Refresh tokens that show when one was stolen, and a blacklist for tokens that others issue."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal

from cacheaside.advice import keeping
from cacheaside.engine.commands import Flow, Run
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.keys import check_namespace
from cacheaside.policy import MAX_TTL, Seconds, seconds
from cacheaside.stores.program import Program, Room
from cacheaside.telemetry import found
from cacheaside.toolkit.grants import Grants, UserId, check_cache, check_most, grants_name

if TYPE_CHECKING:
    from cacheaside.cache import Cache

log = logging.getLogger("cacheaside")

_COUNTED: Final = ("issued", "rotated", "repeated", "refused", "replayed", "bad_data", "pushed_out")


class RefreshToken(str):
    """A refresh token, ready to be sent to its client; it knows whose it is. Its repr does not show it."""

    __slots__ = ("user_id",)

    user_id: UserId

    def __new__(cls, token: str, user_id: UserId) -> RefreshToken:
        made = super().__new__(cls, token)
        made.user_id = user_id
        return made

    @property
    def token(self) -> str:
        """The same as a plain str."""
        return str(self)

    def __repr__(self) -> str:
        return f"<RefreshToken of user {self.user_id!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RefreshToken, (str(self), self.user_id)


class RefreshTokens:
    """Refresh tokens that are good once: each use gives the next one of its line.

    Who uses one again that was rotated has a copy, or somebody else has: the whole line is revoked, and both
    must log in. Within ``grace`` seconds of the first use a second one is taken for the same client's, sent
    twice or asked again because the answer was lost, and is answered with the same successor. Once that
    successor was used, its answer was not lost: an older token is then a copy, however young.

    All operations raise StoreUnavailable when Redis is away. The loss of any key logs out.

    Args:
        cache: where the hashes of the tokens live. Clearing the cache does not revoke them.
        ttl: seconds that a token is good for; its successor gets as many again.
        ns: the namespace of the keys.
        grace: seconds in which the last token that was used may be used once more.
        max_per_user: lines of one user; a new one pushes out the oldest.
        on_replay: told the user's id when a line was revoked because a token was used again.
    """

    def __init__(
        self,
        cache: Cache,
        ttl: Seconds = 2592000,
        *,
        ns: str = "auth",
        grace: Seconds = 10,
        max_per_user: int = 100,
        on_replay: Callable[[UserId], object] | None = None,
    ) -> None:
        self._cache = check_cache(cache)
        if on_replay is not None and not callable(on_replay):
            raise ConfigError(f"on_replay must be a function of a user's id, not {on_replay!r}")
        self._on_replay = on_replay
        self._grants = Grants(
            cache.world.keys,
            grants_name(ns, "refresh"),
            ttl=seconds("ttl", ttl),
            whole=MAX_TTL,
            grace=seconds("grace", grace, zero=True),
            most=check_most(max_per_user),
        )

    def __repr__(self) -> str:
        return f"<RefreshTokens on {self._cache!r}>"

    def issue(self, user_id: UserId) -> RefreshToken:
        """The first token of a new line: at a login."""
        return self._cache.run(self._issue(user_id), "refresh_token.issue")

    async def aissue(self, user_id: UserId) -> RefreshToken:
        return await self._cache.arun(self._issue(user_id), "refresh_token.issue")

    def rotate(self, token: str | None) -> RefreshToken | None:
        """Use a token: its successor, or None when it is not (or no longer) good."""
        return self._cache.run(self._rotate(token), "refresh_token.rotate", found)

    async def arotate(self, token: str | None) -> RefreshToken | None:
        return await self._cache.arun(self._rotate(token), "refresh_token.rotate", found)

    def revoke(self, token: str | None) -> bool:
        """End the line of a token: at a logout. False when there is no such line."""
        return self._cache.run(self._grants.drop(token), "refresh_token.revoke", found)

    async def arevoke(self, token: str | None) -> bool:
        return await self._cache.arun(self._grants.drop(token), "refresh_token.revoke", found)

    def revoke_all(self, user_id: UserId) -> bool:
        """End all lines of a user, in one step; False when there was nothing to end."""
        return self._cache.run(self._grants.clear(user_id), "refresh_token.revoke_all")

    async def arevoke_all(self, user_id: UserId) -> bool:
        return await self._cache.arun(self._grants.clear(user_id), "refresh_token.revoke_all")

    def stats(self) -> dict[str, int]:
        """Counters of this process."""
        return {name: self._grants.counts[name] for name in _COUNTED}

    # -- the flows

    def _issue(self, user_id: UserId) -> Flow[RefreshToken]:
        yield from keeping(self._cache, "refresh tokens")
        grant = yield from self._grants.add(user_id, b"")
        self._grants.counts["issued"] += 1
        return RefreshToken(grant.token, grant.user_id)

    def _rotate(self, token: str | None) -> Flow[RefreshToken | None]:
        counts = self._grants.counts
        what, grant = yield from self._grants.rotate(token, strict=True)
        if what == "replayed":
            counts["replayed"] += 1
            log.warning("a refresh token was used again: all tokens of its line are revoked")
            if self._on_replay is not None and grant is not None:
                self._on_replay(grant.user_id)
            return None
        if grant is None:
            counts["refused"] += 1
            return None
        counts["rotated" if what == "rotated" else "repeated"] += 1
        return RefreshToken(grant.token, grant.user_id)


class Blacklist:
    """Tokens that are refused though they have not ended, such as JSON Web Tokens of who has logged out.

    Only their SHA-256 is stored.

    Args:
        cache: where the marks live. A Redis that evicts keys can lose one, and its token is good again:
            give the blacklist a server of its own or ``maxmemory-policy noeviction``.
        on_unavailable: what ``contains`` answers when Redis is away: ``"deny"`` takes every token for
            blacklisted, ``"allow"`` none. Either is counted.
        ns: the namespace of the keys.
    """

    def __init__(
        self, cache: Cache, *, on_unavailable: Literal["deny", "allow"] = "deny", ns: str = "auth"
    ) -> None:
        self._cache = check_cache(cache)
        if on_unavailable not in ("deny", "allow"):
            raise ConfigError(f'on_unavailable must be "deny" or "allow", not {on_unavailable!r}')
        self._denies = on_unavailable == "deny"
        self._name = f"{check_namespace(ns)}:blacklist"
        self._counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Blacklist on {self._cache!r}>"

    def add(self, token: str | bytes, ttl: Seconds) -> None:
        """Refuse a token from now on.

        Args:
            ttl: seconds until the token ends by itself, and the leeway that its verifiers allow.

        Raises StoreUnavailable when that could not be stored.
        """
        self._cache.run(self._add(token, seconds("ttl", ttl)), "blacklist.add")

    async def aadd(self, token: str | bytes, ttl: Seconds) -> None:
        await self._cache.arun(self._add(token, seconds("ttl", ttl)), "blacklist.add")

    def contains(self, token: str | bytes) -> bool:
        """Whether a token is to be refused."""
        return self._cache.run(self._contains(token), "blacklist.contains", found)

    async def acontains(self, token: str | bytes) -> bool:
        return await self._cache.arun(self._contains(token), "blacklist.contains", found)

    def stats(self) -> dict[str, int]:
        """Counters of this process."""
        return {name: self._counts[name] for name in ("added", "refused", "passed", "unavailable")}

    # -- the flows

    def _add(self, token: str | bytes, ttl: float) -> Flow[None]:
        yield Run(MARK, (self._key(token),), (max(1, round(ttl * 1000)),))
        self._counts["added"] += 1

    def _contains(self, token: str | bytes) -> Flow[bool]:
        key = self._key(token)
        try:
            there = bool((yield Run(MARK, (key,))))
        except StoreUnavailable:
            self._counts["unavailable"] += 1
            return self._denies
        self._counts["refused" if there else "passed"] += 1
        return there

    def _key(self, token: Any) -> str:
        if not isinstance(token, (str, bytes)) or not token:
            raise ConfigError(f"token must be a str or bytes that is not empty, not {type(token).__name__}")
        raw = token.encode("utf-8", "surrogatepass") if isinstance(token, str) else token
        return self._cache.world.keys.record(f"{self._name}:{sha256(raw).hexdigest()}")


def _mark(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> int:
    """``blacklist.lua``."""
    (key,) = keys
    left = room.left(key)
    if args and (left is None or left < args[0] / 1000):
        room.set(key, b"1", args[0] / 1000)
    return int(room.left(key) is not None)


MARK: Final = Program("cacheaside.toolkit", "blacklist", _mark)
