"""``RateLimiter``: so many hits in so much time for each identifier, over all processes together."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from msgspec import Struct
from msgspec.structs import replace

from cacheaside.canonical import key_part, shorten
from cacheaside.engine.commands import Flow, Run
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.fork import renew_after_fork
from cacheaside.keys import check_namespace
from cacheaside.policy import Seconds, seconds
from cacheaside.stats import Counts, Tally
from cacheaside.stores.program import Program, Room
from cacheaside.toolkit.counting import PROGRAMS

if TYPE_CHECKING:
    from cacheaside.cache import Cache

log = logging.getLogger("cacheaside")

Algorithm = Literal["sliding-log", "sliding-counter", "gcra"]

MOST_HITS: Final = 1_000_000
MOST_LIMITS: Final = 16
UNKNOWN: Final = 1.0
"""Seconds after which to ask again when the store did not answer and that is a refusal."""
EXACT: Final = 1e-6
"""Added to times, which then are never too short: floats of seconds since 1970 end in microseconds."""


class Decision(Struct, frozen=True):
    """Whether a hit is let in; false if it is not. All times in seconds.

    Of several limits it tells of the one to wait longest for or, if the hit is let in, of the one with
    the least left.
    """

    allowed: bool
    """Whether the hit is let in."""
    limit: int
    """The most hits in a window."""
    remaining: int
    """Hits that are left, this one counted."""
    reset_after: float
    """Until all of the limit is there again, if nobody hits."""
    retry_after: float
    """Until a hit of this cost is let in, if nobody hits meanwhile; 0 if this one is."""
    window: float = 0.0
    """The seconds that ``limit`` is for."""
    known: bool = True
    """False when the store did not answer and ``on_unavailable`` decided."""

    def __bool__(self) -> bool:
        return self.allowed


class Denial(Struct, frozen=True, gc=False):
    """A refusal that is known without asking until it ends."""

    cost: int
    asked: float
    told: float
    decision: Decision


class RateLimiter:
    """Limits hits by identifier: at most ``limit`` in any ``window``.

    Args:
        cache: where the hits are counted.
        limit: the most hits in a window.
        window: its length in seconds, or a timedelta.
        algorithm: ``"sliding-log"`` is exact and remembers each hit that it let in; ``"sliding-counter"``
            and ``"gcra"`` remember a few numbers and let up to twice the limit into some windows.
        limits: pairs of a limit and a window, in the place of ``limit`` and ``window``: a hit must be
            let in by all of them, or counts for none.
        name: of what is limited, such as ``"login"``. Limiters with one name count together; without a
            name, those with the same limits do.
        on_unavailable: what becomes of a hit when Redis does not answer: ``"allow"`` or ``"deny"``.
        remember: the most refusals that this process remembers, so as not to ask about them again
            before they end; 0 asks every time.

    Raises ConfigError for what cannot work.
    """

    def __init__(
        self,
        cache: Cache,
        limit: int = 100,
        window: Seconds = 60,
        algorithm: Algorithm = "sliding-log",
        *,
        limits: Iterable[tuple[int, Seconds]] | None = None,
        name: str | None = None,
        on_unavailable: Literal["allow", "deny"] = "allow",
        remember: int = 10_000,
    ) -> None:
        if algorithm not in PROGRAMS:
            raise ConfigError(f"algorithm must be one of {', '.join(PROGRAMS)}, not {algorithm!r}")
        if on_unavailable not in ("allow", "deny"):
            raise ConfigError(f'on_unavailable must be "allow" or "deny", not {on_unavailable!r}')
        if limits is None:
            limits = ((limit, window),)
        elif (limit, window) != (100, 60):
            raise ConfigError("give limit and window, or limits=[(limit, window), ...], not both")
        self.limits = checked(limits)
        self.algorithm = algorithm
        self.on_unavailable = on_unavailable
        if name is None:
            name = "+".join(f"{limit}per{window:.12g}" for limit, window in self.limits)
        self.name = check_namespace(name)
        self.allowed = self.denied = self.unavailable = 0
        self._tally = cache.limits.setdefault(self.name, Tally(("allowed", "denied")))
        self.remembered = 0
        """Refusals that cost no command."""
        self.cache = cache
        self._program = PROGRAMS[algorithm]
        self._rates = tuple(n for limit, window in self.limits for n in (limit, round(window * 1e6)))
        self._least = min(limit for limit, _ in self.limits)
        self._head = f"global:rate_limit:{self.name}:"
        self._tick = cache.world.tick
        self._denials = Denials(remember)

    def __repr__(self) -> str:
        rates = ", ".join(f"{limit} in {window:g} s" for limit, window in self.limits)
        return f"<RateLimiter {self.name!r}: {rates}, {self.algorithm}>"

    def hit(self, identifier: object, cost: int = 1) -> Decision:
        """Count a hit if it is let in; one that is refused counts for nothing.

        Args:
            identifier: who hits, such as a user's id or an address: what a field of a key template may
                be, or a tuple of such for several fields, ``("login", address)``.
            cost: how many hits it counts for, at most the smallest limit.

        Raises ConfigError for an identifier or cost that cannot be; nothing when Redis does not answer.
        """
        return self.hit_rendered(self._render(identifier), self.check_cost(cost))

    async def ahit(self, identifier: object, cost: int = 1) -> Decision:
        return await self.ahit_rendered(self._render(identifier), self.check_cost(cost))

    def peek(self, identifier: object, cost: int = 1) -> Decision:
        """What a hit would be told now; ``remaining`` is what is left before it."""
        return self.cache.run(
            self._ask(0, self._key(identifier), self.check_cost(cost)), "rate_limit.peek", verdict
        )

    async def apeek(self, identifier: object, cost: int = 1) -> Decision:
        asking = self._ask(0, self._key(identifier), self.check_cost(cost))
        return await self.cache.arun(asking, "rate_limit.peek", verdict)

    def reset(self, identifier: object) -> None:
        """Forget all hits of an identifier. Other processes may refuse it until what they remember ends.

        Raises StoreUnavailable when Redis does not answer.
        """
        self.cache.run(self._reset(self._key(identifier)), "rate_limit.reset")

    async def areset(self, identifier: object) -> None:
        await self.cache.arun(self._reset(self._key(identifier)), "rate_limit.reset")

    def stats(self) -> dict[str, int]:
        """What became of the hits in this process; ``unavailable`` ones are among the first two."""
        return {
            "allowed": self.allowed,
            "denied": self.denied,
            "remembered": self.remembered,
            "unavailable": self.unavailable,
        }

    def hit_rendered(self, rendered: str, cost: int) -> Decision:
        """``hit`` for an identifier that a template has rendered."""
        key = self._place(rendered)
        known = self._recall(key, cost)
        return self.cache.run(self._hit(key, cost), "rate_limit.hit", verdict) if known is None else known

    async def ahit_rendered(self, rendered: str, cost: int) -> Decision:
        key = self._place(rendered)
        known = self._recall(key, cost)
        return (
            await self.cache.arun(self._hit(key, cost), "rate_limit.hit", verdict) if known is None else known
        )

    # -- the flows

    def _recall(self, key: str, cost: int) -> Decision | None:
        """A refusal that needs no flow."""
        known = self._denials.recall(key, cost, self._tick())
        if known is not None:
            self.remembered += 1
            self._deny()
        return known

    def _hit(self, key: str, cost: int) -> Flow[Decision]:
        era, asked = self._denials.era, self._tick()
        decision = yield from self._ask(1, key, cost)
        if decision.allowed:
            self.allowed += 1
            self._tally.count("allowed")
            return decision
        self._deny()
        if decision.known:
            self._denials.remember(key, Denial(cost, asked, self._tick(), decision), era)
        return decision

    def _deny(self) -> None:
        self.denied += 1
        self._tally.count("denied")

    def _ask(self, counting: int, key: str, cost: int) -> Flow[Decision]:
        try:
            reply: list[int] = yield Run(self._program, (key,), (counting, cost, *self._rates))
        except StoreUnavailable as error:
            return self._undecided(error)
        return self._decide(reply)

    def _decide(self, reply: list[int]) -> Decision:
        told = [
            Decision(
                allowed=bool(reply[0]),
                limit=limit,
                remaining=max(0, left),
                reset_after=reset / 1e6 + EXACT if reset else 0.0,
                retry_after=wait / 1e6 + EXACT if wait else 0.0,
                window=window,
            )
            for (limit, window), left, reset, wait in zip(
                self.limits, reply[1::3], reply[2::3], reply[3::3], strict=True
            )
        ]
        if reply[0]:
            return min(told, key=lambda one: (one.remaining, -one.reset_after))
        return max(told, key=lambda one: one.retry_after)

    def _undecided(self, error: StoreUnavailable) -> Decision:
        self.unavailable += 1
        self.cache.counts.setdefault("global", Counts()).unavailable += 1
        allowed = self.on_unavailable == "allow"
        log.debug("the limiter %s decides by on_unavailable=%r: %s", self.name, self.on_unavailable, error)
        limit, window = self.limits[0]
        wait = 0.0 if allowed else UNKNOWN
        return Decision(allowed, limit, limit if allowed else 0, wait, wait, window, known=False)

    def _reset(self, key: str) -> Flow[None]:
        try:
            yield Run(DROP, (key,))
        finally:
            self._denials.forget(key)

    # -- what the hits are counted under

    def _key(self, identifier: object) -> str:
        return self._place(self._render(identifier))

    def _render(self, identifier: object) -> str:
        if not isinstance(identifier, tuple):
            identifier = (identifier,)
        parts = cast("tuple[object, ...]", identifier)
        if not parts or None in parts or "" in parts:
            raise ConfigError(f"identifier must be who hits, such as a user's id, not {identifier!r}")
        return ":".join([key_part(part, "identifier") for part in parts])

    def _place(self, rendered: str) -> str:
        key = shorten(self._head + rendered, len(self._head))
        names = self.cache.world.keys
        # Each keeps something else there, and a limiter may be given another algorithm while it is in use.
        return names.value(key) if self.algorithm == "sliding-log" else names.companion(key, self.algorithm)

    def check_cost(self, cost: Any) -> int:
        """The cost, if such a hit can be let in at all; else ConfigError."""
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 1:
            raise ConfigError(
                f"cost must be a whole number from 1, not {cost!r}; peek() looks without counting"
            )
        if cost > self._least:
            raise ConfigError(
                f"cost is {cost}, more than the limit of {self._least}: such a hit is never let in"
            )
        return cost


class Denials:
    """The refusals that one process remembers, at most so many; reading takes no lock."""

    def __init__(self, most: Any) -> None:
        if isinstance(most, bool) or not isinstance(most, int) or most < 0:
            raise ConfigError(f"remember must be a whole number of refusals, 0 for none, not {most!r}")
        self._most = most
        self._known: dict[str, Denial] = {}
        self.era = 0
        """Counts what was forgotten: a refusal from before that is not to be remembered after it."""
        renew_after_fork(self)
        self.after_fork()

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def recall(self, key: str, cost: int, now: float) -> Decision | None:
        """The refusal of such a hit, if it has not ended; another cost has to wait for another time."""
        denial = self._known.get(key)
        if denial is None or denial.cost != cost:
            return None
        was = denial.decision
        # It began somewhere between the question and the answer: it is over when it may be over, and
        # whoever waits for it waits until it must be.
        if now - denial.asked >= was.retry_after - EXACT:
            self._known.pop(key, None)
            return None
        passed = now - denial.told
        return replace(was, retry_after=was.retry_after - passed, reset_after=was.reset_after - passed)

    def remember(self, key: str, denial: Denial, era: int) -> None:
        with self._lock:
            if era != self.era or not self._most:
                return
            self._known.pop(key, None)
            while len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            self._known[key] = denial

    def forget(self, key: str) -> None:
        with self._lock:
            self.era += 1
            self._known.pop(key, None)


def verdict(decision: Decision) -> str:
    return "allowed" if decision.allowed else "denied"


def drop(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> int:
    """Twin of drop.lua."""
    return int(room.delete(keys[0]))


DROP: Final = Program("cacheaside.toolkit", "drop", drop)


def checked(limits: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of a limit and its window in seconds; ConfigError for what is none, or too much."""
    example = "limits must be pairs of a limit and a window in seconds, such as [(10, 1), (100, 60)]"
    try:
        pairs = [(limit, seconds("window", window)) for limit, window in limits]
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{example}, not {limits!r}") from None
    if not 0 < len(pairs) <= MOST_LIMITS:
        raise ConfigError(f"{example}: one at least and {MOST_LIMITS} at most, not {len(pairs)}")
    for limit, window in pairs:
        if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= MOST_HITS:
            raise ConfigError(f"limit must be a whole number from 1 to {MOST_HITS}, not {limit!r}")
        if window < 0.001:
            raise ConfigError(f"window must be at least a millisecond (0.001), not {window!r}")
    if len({window for _, window in pairs}) < len(pairs):
        raise ConfigError(f"limits has two of one window, of which only the smaller can matter: {limits!r}")
    return tuple(pairs)
