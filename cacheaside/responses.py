"""Responses in the cache: the cached function behind an endpoint, and what came of one request to it.

What may be stored, and what is said of it, is decided in http.py. Here it is stored, and shared with those
who wait for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from cacheaside.answers import Answer, answer, forwarded, hit
from cacheaside.engine.call import Call, current_load
from cacheaside.engine.look import Verdict
from cacheaside.http import (
    Asked,
    Pairs,
    Plan,
    ResponsePolicy,
    Stored,
    left,
    lifetime,
    refusal,
    stored,
    suits,
)
from cacheaside.missing import MISSING

if TYPE_CHECKING:
    from cacheaside.cache import Cache

PASS_FOR: Final = 10.0
"""Seconds for which a key whose response could not be stored is not asked for again, so that nobody waits."""
PASSES: Final = 4096


class NotStored(Exception):
    """The response may not be stored, so nobody else may have it either: each waiter asks for himself."""


class Own:
    """What came of this caller's own run of the endpoint, if it ran.

    Args:
        began: when the request came.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.call: Call | None = None
        self.response: Any = None
        self.status = 0
        self.error: Exception | None = None
        self.kept = False
        self.failed = False
        self.why = ""

    def begins(self) -> None:
        """The cache has had the endpoint run: its loader says so."""
        self.call = current_load()

    @property
    def ran(self) -> bool:
        return self.response is not None or self.error is not None

    def reason(self, plan: Plan) -> str:
        """Why the endpoint ran, in a word of RFC 9211."""
        found = None if self.call is None else self.call.found
        if found in (Verdict.STALE, Verdict.KEPT):
            return "stale"
        return "request" if plan.anew and found in (Verdict.FRESH, Verdict.EARLY) else "miss"

    def passed(self, plan: Plan) -> str:
        """The Cache-Status when no stored response is sent: it was the own run's, or one after waiting."""
        return forwarded(self.reason(plan), collapsed=None if self.call is not None else False)


class Responses:
    """The cached function behind the responses of one policy in one cache."""

    def __init__(self, cache: Cache, policy: ResponsePolicy) -> None:
        self.cache = cache
        self.policy = policy
        options: Any = {
            "ns": policy.ns,
            "key": "{key}",
            "ttl": policy.ttl,
            "tags": given_tags,
            "stale_while_revalidate": policy.stale_while_revalidate,
            "stale_if_error": policy.stale_if_error,
        }

        def respond(key: str, tags: tuple[str, ...], load: Callable[[], Stored]) -> Stored:
            return load()

        async def arespond(key: str, tags: tuple[str, ...], load: Callable[[], Awaitable[Stored]]) -> Stored:
            return await load()

        # Both by one name: they share their entries, as one endpoint may be served by either.
        arespond.__qualname__ = respond.__qualname__
        self.respond = cache.cached(**options)(respond)
        self.arespond: Any = cache.cached(**options)(arespond)

    def own(self) -> Own:
        """What is to come of a request that has just come."""
        return Own(self.cache.world.clock())

    def keep(
        self,
        own: Own,
        private: bool,
        status: int,
        headers: Pairs,
        body: bytes | None,
        besides: Pairs = (),
    ) -> Stored:
        """A response of the endpoint as it is stored; raises NotStored when it may not be.

        ``body`` None is one that streams or is too large. ``besides`` are headers that others add for this
        request alone, such as dependencies: they may forbid that it is stored, and are not stored with it.
        """
        policy, now = self.policy, self.cache.world.clock()
        said = [*headers, *besides]
        why, life = refusal(policy, private, status, said), lifetime(policy, said, now)
        own.status = status
        if not why and (body is None or len(body) > policy.max_body):
            why = "body"
        if not why and life <= 0:
            why = "cache-control"
        if why:
            own.why, own.failed = why, status >= 500
            raise NotStored(why)
        load = current_load()
        if load is not None and life < policy.ttl:
            load.ttl = life
        own.kept = True
        return stored(status, headers, body or b"", now)

    def broke(self, own: Own, error: Exception, status: int) -> NotStored:
        """The endpoint has raised: that is this caller's alone, too."""
        own.error, own.status, own.failed, own.why = error, status, status >= 500, "status"
        return NotStored("error")

    def pass_by(self, key: str, seconds: float = PASS_FOR) -> None:
        """Let those who ask for this key next run the endpoint at once, side by side."""
        passes = self.policy.passes
        if len(passes) >= PASSES:
            passes.clear()
        passes[key] = self.cache.world.tick() + seconds

    def usable(self, plan: Plan, seen: Any) -> Stored | None:
        """What a look has found, if the request allows it."""
        if seen is MISSING:
            return None
        found: Stored = seen
        return found if suits(self.policy, plan, found, self.cache.world.clock()) else None

    def resolve(self, own: Own, plan: Plan, found: Stored | None) -> Stored | None:
        """What to answer with; None: this caller's own response, or a run of his own if there was none.

        The engine may have answered with an old one although his own run brought something: that wins,
        unless it is an error of the server.
        """
        if own.kept or not own.ran or own.failed:
            return found  # an old one, perhaps, instead of an error
        if own.why != "status":
            self.pass_by(plan.key)
        return None

    def answer(self, own: Own, plan: Plan, asked: Asked, found: Stored) -> Answer:
        """What to send, with a Cache-Status that says how it came about."""
        now = self.cache.world.clock()
        fresh = left(self.policy, found, now)
        if own.kept:
            status = forwarded(own.reason(plan), stored=own.call is not None and own.call.stored)
        elif own.ran:
            status = forwarded(own.reason(plan), status=own.status, left=fresh)
        elif found.at > own.began:  # it was made while this request waited
            status = forwarded("miss", collapsed=True)
        else:
            status = hit(fresh)
        return answer(self.policy, asked, plan, found, now, status, made=own.kept)


def given_tags(key: str, tags: tuple[str, ...], load: object) -> tuple[str, ...]:
    return tags


_made: WeakKeyDictionary[Any, dict[int, Responses]] = WeakKeyDictionary()


def responses(cache: Cache, policy: ResponsePolicy) -> Responses:
    """The cached function of a policy in a cache; made once."""
    there = _made.setdefault(cache, {})
    known = there.get(id(policy))
    if known is None:
        known = there[id(policy)] = Responses(cache, policy)
    return known
