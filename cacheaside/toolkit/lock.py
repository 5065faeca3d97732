"""``cache.lock(name)``: one holder at a time among all processes, with a number that fences off late ones.

It is as good as one Redis primary is: a failover that forgets the lock, or a holder that sleeps past its
ttl, makes two holders. Nothing that only waits can prevent that. What the lock protects can, if it refuses
a smaller ``fence`` than the largest it has seen.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cacheaside.advice import keeping
from cacheaside.canonical import escape, shorten
from cacheaside.engine.commands import Commit, Expect, Flow, Renew, Run, Sleep, Spawn
from cacheaside.errors import ConfigError, LockTimeout, StoreUnavailable
from cacheaside.policy import Seconds, seconds
from cacheaside.stats import Counts
from cacheaside.stores.program import Program, Room

if TYPE_CHECKING:
    from cacheaside.cache import Cache

log = logging.getLogger("cacheaside")

PLACE: Final = "global:lock:"
POLL_FIRST: Final = 0.01
POLL_LAST: Final = 0.1
"""Seconds between two tries at most, where nobody tells when a lock is free."""
NOTICED: Final = 1.0
"""The same where somebody does: a notice may be lost."""
FENCE_MS: Final = 7 * 86_400_000
"""How long the last number is remembered; what comes after it is larger by the clock alone."""


def take(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> list[int]:
    """Twin of lock_take.lua."""
    lock, number = keys
    left = room.left(lock)
    if left is not None:
        room.get(lock)["wanted"] = 1
        return [0, int(left * 1000)]
    fence = max(time.time_ns() // 1000, int(room.get(number) or 0) + 1)
    room.set(lock, {"token": args[0], "fence": fence}, args[1] / 1000)
    room.set(number, b"%d" % fence, args[2] / 1000)
    return [1, fence]


def renew(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> int:
    """Twin of lock_renew.lua."""
    held = room.get(keys[0])
    if held is None or held["token"] != args[0]:
        return 0
    room.set(keys[0], held, args[1] / 1000)
    return 1


def release(room: Room, keys: tuple[str, ...], args: tuple[Any, ...]) -> int:
    """Twin of lock_release.lua."""
    held = room.get(keys[0])
    if held is None or held["token"] != args[0]:
        return 0
    room.delete(keys[0])
    return 2 if "wanted" in held else 1


TAKE: Final = Program("cacheaside.toolkit", "lock_take", take)
RENEW: Final = Program("cacheaside.toolkit", "lock_renew", renew)
RELEASE: Final = Program("cacheaside.toolkit", "lock_release", release)


class Held:
    """A lock that was taken; it is renewed every third of its ttl until it is released."""

    def __init__(self, lock: Lock, token: str, fence: int, since: float) -> None:
        self.fence = fence
        """Larger than that of every holder before. Hand it to what the lock protects, and have that
        refuse a smaller one."""
        self._lock = lock
        self._token = token
        self._until = since + lock.ttl
        self._lost = self._released = False
        self._pid = os.getpid()
        self._stop: Callable[[], None] = _nothing
        self.owner = whoever()

    def __repr__(self) -> str:
        state = "released" if self._released else "lost" if self.lost else "held"
        return f"<Held {self._lock.name!r} fence={self.fence} {state}>"

    @property
    def lost(self) -> bool:
        """Whether somebody else may hold it: a renewal found it gone, or none was answered for its ttl."""
        if not self._lost and not self._released:
            self._lost = self._lock.cache.world.tick() >= self._until or self._pid != os.getpid()
        return self._lost

    def release(self) -> bool:
        """Give it back; False if it was not ours any more, or Redis does not answer and it ends by itself."""
        return self._lock.cache.run(self._release(), "lock.release")

    async def arelease(self) -> bool:
        return await self._lock.cache.arun(self._release(), "lock.release")

    # -- what the driver renews it by: a store, of which it wants one thing only

    def perform(self, command: Any) -> None:
        cache = self._lock.cache
        cache.driver.run(self._renewal(), cache.store)

    async def aperform(self, command: Any) -> None:
        cache = self._lock.cache
        await cache.driver.arun(self._renewal(), cache.store)

    def keep(self) -> None:
        self._stop = self._lock.cache.driver.keep(self._renew_command(), self)

    def akeep(self) -> None:
        self._stop = self._lock.cache.driver.akeep(self._renew_command(), self)

    def _renew_command(self) -> Renew:
        return Renew(((self._lock.key, self._token.encode()),), self._lock.ttl)

    def _renewal(self) -> Flow[None]:
        lock = self._lock
        sent = lock.cache.world.tick()
        try:
            ours: int = yield Run(RENEW, (lock.key,), (self._token, lock.ms))
        except StoreUnavailable as error:
            lock.count()
            log.warning("the lock %s was not renewed: %s", lock.name, error)
            return
        if ours:
            self._until = sent + lock.ttl
        elif not self._released:
            self._lost = True
            self._stop()
            log.warning("the lock %s is lost: its time ended before it was renewed", lock.name)

    def _release(self) -> Flow[bool]:
        self._stop()
        self._lock.forget(self)
        lost, self._released = self.lost, True
        if self._pid != os.getpid():  # a fork has copied it: it is the parent's
            return False
        lock = self._lock
        try:
            ours = bool((yield from lock.give_back(self._token)))
        except StoreUnavailable as error:
            lock.count()
            log.warning("the lock %s was not released and ends by itself: %s", lock.name, error)
            return False
        if not ours and not lost:
            log.warning("the lock %s was lost before it was released", lock.name)
        self._lost = lost or not ours
        return ours


class Lock:
    """A lock by name; ``cache.lock(name)`` makes it.

    ``with lock as held:`` or ``async with`` waits until it is ours, at most ``timeout`` seconds, and
    gives it back at the end of the block. Not re-entrant. Waiting is not fair: of those that wait
    anyone may be next.
    """

    def __init__(self, cache: Cache, name: str, ttl: Seconds, timeout: Seconds) -> None:
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f'name must be what is locked, such as "reports", not {name!r}')
        self.name = name
        self.ttl = seconds("ttl", ttl)
        if self.ttl < 0.1:
            raise ConfigError(f"ttl must be at least 0.1 s, for it is renewed every third of it; not {ttl!r}")
        self.timeout = seconds("timeout", timeout, zero=True)
        self.cache = cache
        self.ms = int(self.ttl * 1000)
        self._key = shorten(PLACE + escape(name), len(PLACE))
        self.key = cache.world.keys.value(self._key)
        self._fence = cache.world.keys.companion(self._key, "fence")
        self._held: list[Held] = []

    def __repr__(self) -> str:
        return f"<Lock {self.name!r} ttl={self.ttl:g}>"

    def acquire(self, timeout: Seconds | None = None) -> Held | None:
        """Wait until it is ours, at most ``timeout`` seconds (0: try once); None if it is not by then.

        Raises StoreUnavailable when Redis does not answer; what it may have taken then ends by itself.
        """
        held = self.cache.run(self._acquire(timeout), "lock.acquire")
        if held is not None:
            held.keep()
            self._held.append(held)
        return held

    async def aacquire(self, timeout: Seconds | None = None) -> Held | None:
        held = await self.cache.arun(self._acquire(timeout), "lock.acquire")
        if held is not None:
            held.akeep()
            self._held.append(held)
        return held

    def release(self) -> bool:
        """Give back what was acquired by this object; False if nothing is, see ``Held.release``."""
        held = self._mine()
        return held is not None and held.release()

    async def arelease(self) -> bool:
        held = self._mine()
        return held is not None and await held.arelease()

    def __enter__(self) -> Held:
        return self._got(self.acquire())

    def __exit__(self, *exc: object) -> None:
        self.release()

    async def __aenter__(self) -> Held:
        return self._got(await self.aacquire())

    async def __aexit__(self, *exc: object) -> None:
        await self.arelease()

    # -- the flows

    def _acquire(self, timeout: Seconds | None) -> Flow[Held | None]:
        within = self.timeout if timeout is None else seconds("timeout", timeout, zero=True)
        yield from keeping(self.cache, "locks")
        world = self.cache.world
        token = secrets.token_hex(16)
        asked = world.tick()
        until, delay = asked + within, POLL_FIRST
        while True:
            expected: Any = yield Expect(self._key)
            asked = world.tick()
            try:
                ours, number = yield Run(TAKE, (self.key, self._fence), (token, self.ms, FENCE_MS))
            except GeneratorExit:
                raise
            except BaseException as error:  # failed or cancelled: whether it was taken is not known
                if isinstance(error, StoreUnavailable):
                    self.count()
                yield Spawn(self._give_back_if_taken(token), "lock")
                raise
            if ours:
                return Held(self, token, number, asked)
            left = until - world.tick()
            if left <= 0:
                return None
            pause = delay * (0.5 + world.random() / 2) if expected is None else NOTICED
            ends = number / 1000 if number > 0 else pause
            yield Sleep(min(pause, ends, left), expected)
            delay = min(delay * 2, POLL_LAST)

    def give_back(self, token: str) -> Flow[int]:
        ours: int = yield Run(RELEASE, (self.key,), (token,))
        if ours == 2 and self.cache.driver.notices is not None:  # else nobody here listens for it either
            yield Commit((), notify=(self._key,))
        return ours

    def _give_back_if_taken(self, token: str) -> Flow[None]:
        try:
            yield from self.give_back(token)
        except StoreUnavailable as error:
            log.debug("the lock %s may have to end by itself: %s", self.name, error)

    def count(self) -> None:
        self.cache.counts.setdefault("global", Counts()).unavailable += 1

    # -- who holds it

    def _got(self, held: Held | None) -> Held:
        if held is None:
            raise LockTimeout(
                f"the lock {self.name!r} was held for all of {self.timeout:g} s; if by its own caller: it is "
                "not re-entrant"
            )
        return held

    def _mine(self) -> Held | None:
        """What this caller holds; a thread pool may have another thread end a block than began it."""
        held, me = list(self._held), whoever()
        return next((one for one in held if one.owner == me), held[0] if held else None)

    def forget(self, held: Held) -> None:
        with suppress(ValueError):
            self._held.remove(held)


def whoever() -> object:
    """The running task, or else the thread."""
    try:
        task: object = asyncio.current_task()
    except RuntimeError:
        task = None
    return task or threading.get_ident()


def _nothing() -> None:
    return None
