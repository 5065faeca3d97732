"""What the endpoints work with, made once for each process."""

from __future__ import annotations

from dataclasses import dataclass

from cacheaside_fastapi import SessionCookie
from starlette.requests import HTTPConnection

from cacheaside import Cache
from cacheaside.toolkit import Broker, Presence, RateLimiter, RefreshTokens, SessionStore, Warmer

from .database import Database
from .repositories import Repositories
from .settings import Settings


@dataclass(frozen=True)
class Login:
    """What a session holds. When it was last active, the store knows."""

    email: str
    username: str
    role: str
    permissions: tuple[str, ...]
    ip_address: str
    user_agent: str


class Services:
    """The repositories, and what of the toolkit they need beside them.

    Sessions and limits outlive the cache's values: they are there in every mode.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database, settings.delay)
        self.repositories = Repositories(self.database)
        shared = not settings.redis.startswith("embedded")
        window = settings.l1_window if settings.mode == "on" and shared else None
        # An invalidation that Redis did not acknowledge is an error, since the writer is told that it was.
        self.cache = Cache(
            settings.redis,
            prefix=settings.prefix,
            l1_window=window,
            timeout=settings.timeout,
            on_unacknowledged="raise",
        )
        self.database.follow(self.cache, settings.hold or None)
        self.sessions = SessionStore(self.cache, ttl=86400, absolute_ttl=2592000, type=Login)
        self.cookie = SessionCookie(self.sessions)
        self.refresh_tokens = RefreshTokens(self.cache, ttl=2592000, grace=settings.refresh_grace)
        self.presence = Presence(self.cache, ttl=60)
        self.broker = Broker(self.cache)
        # A limit that protects passwords refuses when it cannot count; one that protects from load does not.
        self.by_address = RateLimiter(
            self.cache, settings.logins_per_minute, 60, name="login-address", on_unavailable="deny"
        )
        self.by_account = RateLimiter(self.cache, 5, 60, name="login-account", on_unavailable="deny")
        self.posting = RateLimiter(self.cache, settings.posts_per_minute, 60, name="post")
        self.warmer = Warmer(self.cache)
        self.warms = bool(settings.warm) and settings.mode != "off"
        if self.warms:
            posts, users = self.repositories.posts, self.repositories.users
            self.warmer.add(posts.find, posts.trending_now, every=settings.warm)
            self.warmer.add(users.profile, users.active, every=settings.warm)

    async def is_admin(self, connection: HTTPConnection) -> bool:
        """The guard of the console."""
        session = await self.sessions.aget(connection.cookies.get(self.cookie.plan.name))
        return session is not None and session.data.role == "admin"
