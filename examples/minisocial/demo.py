"""The app under load, without a cache and with one: what ``make demo`` shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from ..demo.graph import Graph
from .client import Connection
from .database import Database
from .load import Generator, LoadTally, Plan
from .seed import POSTS_EACH, build, email_of
from .services import Login, Services
from .settings import Mode, Settings
from .workers import serving

ASKERS: Final = 500
"""So many users are logged in, those with most friends."""
ADMIN: Final = 1


def settings_for(database: str, redis: str, prefix: str, delay: float) -> Settings:
    """Limits are not measured here, nor is warming, nor who gives up on Redis while a machine is busy."""
    return Settings(
        database,
        redis,
        prefix,
        delay=delay,
        warm=0.0,
        timeout=5.0,
        logins_per_minute=100_000,
        posts_per_minute=100_000,
    )


def fill(settings: Settings, graph: Graph) -> None:
    database = Database(settings.database)
    try:
        build(database, graph)
    finally:
        database.close()


def in_mode(settings: Settings, mode: Mode) -> Settings:
    """With keys of its own: no phase finds what another has left."""
    return replace(settings, mode=mode, prefix=f"{settings.prefix}-{mode}")


def log_in(settings: Settings, users: Sequence[int]) -> dict[int, str]:
    """The cookie of each user, from the store of sessions itself: hashing passwords is not measured."""
    services = Services(settings)
    try:
        name, cookies = services.cookie.plan.name, {}
        for user in users:
            role = "admin" if user == ADMIN else "user"
            login = Login(email_of(user), f"user {user}", role, ("read", "write"), "", "load")
            cookies[user] = f"{name}={services.sessions.create(user, login).token}"
        return cookies
    finally:
        services.cache.close()
        services.database.close()


def phase(
    settings: Settings,
    graph: Graph,
    seconds: float,
    *,
    workers: int = 2,
    write_share: float = 0.05,
    progress: Callable[[LoadTally], None] | None = None,
) -> LoadTally:
    """Serve the app, put it under load, end it; what was counted."""
    with served(settings, graph, workers, write_share) as (plan, admin):
        return asyncio.run(loaded(Generator(plan), admin, seconds, progress=progress))


@contextmanager
def served(settings: Settings, graph: Graph, workers: int, write_share: float) -> Iterator[tuple[Plan, str]]:
    """The app, serving as long as the block: how to put it under load, and the admin's cookie."""
    users = [user + 1 for user in graph.by_degree()]
    cookies = log_in(settings, sorted({*users[:ASKERS], ADMIN}))
    with serving(settings, workers) as ports:
        plan = Plan(
            ports,
            {user: cookies[user] for user in users[:ASKERS]},
            users,
            POSTS_EACH * graph.users,
            write_share,
            settings.l1_window if settings.mode == "on" else 0.0,
        )
        yield plan, cookies[ADMIN]


async def loaded(
    generator: Generator,
    admin: str,
    seconds: float,
    rate: float | None = None,
    progress: Callable[[LoadTally], None] | None = None,
) -> LoadTally:
    tally, plan = generator.tally, generator.plan
    before = await counted(plan.ports, admin)

    def tick() -> None:
        if progress is not None:
            progress(tally)

    await generator.run(seconds, rate, tick)
    after = await counted(plan.ports, admin)
    tally.queries = after["queries"] - before["queries"]
    tally.cpu = (after["cpu"] - before["cpu"]) / 1e6
    hits = after["hits_l1"] + after["hits_l2"]
    for name in (
        ("hits_l1", "hits_l2", "loads") if hits else ()
    ):  # without a cache there are no shares to show
        setattr(tally, name, after[name] - before[name])
    tick()
    return tally


async def counted(ports: Sequence[int], admin: str) -> dict[str, int]:
    """What the workers have counted, together."""
    sums: dict[str, int] = {}
    for port in ports:
        connection = Connection(port)
        answer = await connection.ask("GET", "/stats", admin)
        await connection.aclose()
        for name, count in answer.json().items():
            sums[name] = sums.get(name, 0) + count
    return sums
