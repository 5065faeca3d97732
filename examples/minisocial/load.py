"""Load for the running app, and a check of every answer.

**Open loop.** Requests have times at which they are due, at random around a rate, whether the app is ready or
not; how long one took is counted from then on. A closed loop would ask less while the app is slow, and so
not see it. Without a rate a request is due whenever a connection is free.

**Stale.** A write has returned with its number and the tags of what it changed; then they are acknowledged.
A later read of something with such a tag must have at least that version, also from another worker whose
memory may lag by ``window`` seconds, once so many have passed since. What lags less is counted apart.

**Wrong.** An answer that names its user names the one whose cookie was sent.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..demo.measure import Tally
from ..demo.repository import text
from ..demo.workload import Zipf
from .client import Answer, Connection

Ask = tuple[str, str, Any]
"""Method, path, body."""


@dataclass(frozen=True)
class Plan:
    ports: Sequence[int]
    cookies: dict[int, str]
    """Of those who ask, by their ids; the most popular first."""
    users: Sequence[int]
    """All there are, the most popular first."""
    posts: int
    write_share: float = 0.05
    window: float = 0.0
    connections: int = 16
    skew: float = 1.2
    seed: int = 1


@dataclass
class LoadTally(Tally):
    cpu: float = 0.0
    """Seconds that the workers' processors worked, whatever else the machine did."""
    unserved: int = 0
    """Were due, and not begun when time was up."""
    first_problem: str = ""


class Acknowledged:
    """The versions that writes have returned, by tag and time."""

    def __init__(self) -> None:
        self.versions: dict[str, list[tuple[float, int]]] = {}

    def note(self, now: float, change: dict[str, Any]) -> None:
        for tag in change["tags"]:
            known = self.versions.setdefault(tag, [(0.0, 0)])
            known.append((now, max(known[-1][1], change["version"])))

    def least(self, tag: str, at: float) -> int:
        """The version that had been acknowledged by then."""
        for when, version in reversed(self.versions.get(tag, ())):
            if when <= at:
                return version
        return 0


@dataclass
class Generator:
    """One run's requests; ``tally`` grows meanwhile."""

    plan: Plan
    tally: LoadTally = field(default_factory=LoadTally)
    acknowledged: Acknowledged = field(default_factory=lambda: Acknowledged())
    """Of earlier runs on the same database as well."""

    def __post_init__(self) -> None:
        plan, self.rng = self.plan, random.Random(self.plan.seed)
        self.askers = Zipf(list(plan.cookies), plan.skew, self.rng)
        self.users = Zipf(plan.users, plan.skew, self.rng)
        posts = list(range(1, plan.posts + 1))
        random.Random(plan.seed).shuffle(posts)
        self.posts = Zipf(posts, plan.skew, self.rng)
        self.own: dict[int, int] = {}

    async def run(
        self, seconds: float, rate: float | None = None, tick: Callable[[], Any] | None = None
    ) -> LoadTally:
        """Ask for so long; ``tick`` is called four times a second."""
        self.begin = time.perf_counter()
        due = self._due(self.begin, self.begin + seconds, rate)
        ports = self.plan.ports
        asking = [
            asyncio.create_task(self._ask_on(Connection(ports[n % len(ports)]), due, self.begin + seconds))
            for n in range(self.plan.connections)
        ]
        everything = asyncio.gather(*asking)
        try:
            while not (await asyncio.wait([everything], timeout=0.25))[0]:
                self.tally.elapsed = time.perf_counter() - self.begin
                if tick is not None:
                    tick()
            await everything
        finally:
            everything.cancel()
        self.tally.unserved = sum(1 for _ in due) if rate is not None else 0
        self.tally.elapsed = time.perf_counter() - self.begin
        return self.tally

    def _due(self, begin: float, end: float, rate: float | None) -> Iterator[float]:
        at = begin
        while at < end:
            at = time.perf_counter() if rate is None else at + self.rng.expovariate(rate)
            if at < end:
                yield at

    async def _ask_on(self, connection: Connection, due: Iterator[float], end: float) -> None:
        try:
            while time.perf_counter() < end and (at := next(due, None)) is not None:
                early = at - time.perf_counter()
                if early > 0:
                    await asyncio.sleep(early)
                await self._one(connection, at)
        finally:
            await connection.aclose()

    async def _one(self, connection: Connection, due: float) -> None:
        asker = self.askers.draw()
        writes = self.rng.random() < self.plan.write_share
        ask, tags = (self.a_write(asker), []) if writes else self.a_read(asker)
        begun, tally = time.perf_counter(), self.tally
        try:
            answer = await connection.ask(ask[0], ask[1], self.plan.cookies[asker], ask[2])
        except (OSError, EOFError, TimeoutError) as error:
            self.problem("failed", f"{ask[:2]}: {error!r}")
            return
        now = time.perf_counter()
        if answer.status not in (200, 201):
            self.problem("failed", f"{ask[:2]}: {answer.status} {answer.body[:200]!r}")
        elif writes:
            tally.writes += 1
            change = answer.json()
            self.acknowledged.note(now, change)
            if ask[:2] == ("POST", "/posts"):
                self.own[asker] = change["id"]
        else:
            tally.reads += 1
            tally.times.add(now - due)
            self.check(ask[1], asker, tags, answer, begun)

    def check(self, path: str, asker: int, tags: Sequence[str], answer: Answer, begun: float) -> None:
        """``begun``: when the request was sent; what was acknowledged by then must be seen."""
        body = answer.json()
        mine = path.startswith(("/me", "/feed", "/notifications", "/conversations"))
        if mine and body.get("user_id", body.get("id")) != asker:
            self.problem("wrong", f"{path} for {asker} answered {answer.body[:200]!r}")
        seen = [(tag, body["version"]) for tag in tags]
        seen += [(f"post:{post['id']}", post["version"]) for post in body.get("posts", ())]
        for tag, version in seen:
            if version < self.acknowledged.least(tag, begun - self.plan.window):
                self.problem("stale", f"{path}: {tag} of version {version}")
                return
        if any(version < self.acknowledged.least(tag, begun) for tag, version in seen):
            self.tally.lagging += 1

    def problem(self, kind: str, text: str) -> None:
        setattr(self.tally, kind, getattr(self.tally, kind) + 1)
        self.tally.first_problem = self.tally.first_problem or f"{kind}: {text}"

    def a_read(self, asker: int) -> tuple[Ask, list[str]]:
        kind = self.rng.random()
        if kind < 0.35:
            page = 1 + min(int(self.rng.expovariate(1.5)), 2)
            return ("GET", f"/feed?page={page}", None), [f"feed:{asker}"]
        if kind < 0.6:
            user = self.users.draw()
            return ("GET", f"/users/{user}", None), [f"user:{user}"]
        if kind < 0.75:
            post = self.posts.draw()
            path = self.rng.choice(("", "/comments", "/reactions"))
            return ("GET", f"/posts/{post}{path}", None), [f"post:{post}"]
        if kind < 0.8:
            user = self.users.draw()
            return ("GET", f"/users/{user}/friends", None), [f"user:{user}"]
        if kind < 0.9:
            return ("GET", "/notifications/unread", None), [f"notifications:{asker}"]
        if kind < 0.95:
            return ("GET", "/conversations", None), [f"conversations:{asker}"]
        return ("GET", "/me", None), [f"user:{asker}"]

    def a_write(self, asker: int) -> Ask:
        kind = self.rng.random()
        if kind < 0.25:
            return "POST", "/posts", {"body": text(self.rng, 140)}
        if kind < 0.45 and asker in self.own:
            return "PUT", f"/posts/{self.own[asker]}", {"body": text(self.rng, 140)}
        if kind < 0.6:
            body = {"kind": self.rng.choice(("like", "love", "laugh"))}
            return "PUT", f"/posts/{self.posts.draw()}/reaction", body
        if kind < 0.7:
            return "POST", f"/posts/{self.posts.draw()}/comments", {"body": text(self.rng, 60)}
        return "PUT", "/me", {"name": f"user {asker}", "bio": text(self.rng, 60)}
