"""``cacheaside bench``: what a hit, a miss and an invalidation cost here, beside a bare GET."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Annotated, Any, Final

import typer
from msgspec import Struct

from cacheaside.cache import Cache
from cacheaside.cli.options import PREFIX, Json, Prefix, Url, opened, servers
from cacheaside.cli.output import console, count, duration, print_json, progress, table
from cacheaside.engine.commands import Confirm, Flow
from cacheaside.errors import StoreUnavailable

AT_ONCE: Final = 1000
"""L1 hits that are timed together: a clock is too slow for one."""
SLICES: Final = 20
WARM: Final = 0.05
KEYS: Final = 100
PATIENCE: Final = 5.0


class Cost(Struct):
    """How long something takes; seconds. ``gets`` is in the medians of bare GETs."""

    what: str
    median: float
    p99: float
    gets: float
    calls: int


def bench(
    url: Url = None,
    prefix: Prefix = PREFIX,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure each of them.")] = 1,
    size: Annotated[int, typer.Option(min=0, max=2**20, help="Bytes of the value.")] = 100,
    json: Json = False,
) -> None:
    """Measure hits, misses and invalidations from this machine.

    One call after the other, beside a bare GET of redis-py for the same value. It works under a
    prefix of its own, which begins with the given one, and clears that at the end.

    Exit code: 0, or 2 if it could not be measured.
    """
    own = f"{prefix}-bench-{secrets.token_hex(4)}" if prefix else f"bench-{secrets.token_hex(4)}"
    with opened(url, own, l1_window=1) as cache, servers(url, own) as there:
        try:
            costs = measured(cache, there.client, "x" * size, seconds)
        finally:
            cache.clear()
    if json:
        print_json(costs)
        return
    console().print(table(["", "median", "99 %", "bare GETs", "calls"], map(cells, costs)))


def measured(cache: Cache, client: Any, value: str, seconds: float) -> list[Cost]:
    """All of them, in slices that take turns: what disturbs this machine disturbs all alike."""

    @cache.cached(ns="bench", key="near:{n}", ttl=3600)
    def near(n: int) -> str:
        return value

    @cache.cached(ns="bench", key="far:{n}", ttl=3600, tags=["bench:{n}"], l1=False)
    def far(n: int) -> str:
        return value

    @cache.cached(ns="bench", key="missed:{n}", ttl=60, tags=["missed"], l1=False)
    def missed(n: int) -> str:
        return value

    raw = cache.world.keys.value("bench:raw")
    client.set(raw, value, ex=3600)
    cache.listen()
    until = time.monotonic() + PATIENCE
    while not cache.stats()["l1"]["coherent"]:
        if time.monotonic() > until:
            raise StoreUnavailable("the channel that L1 needs cannot be had: see `cacheaside doctor`")
        time.sleep(0.01)
    cache.run(heard(), "confirm")
    for n in range(KEYS):
        near(n)
        far(n)
    turn = iter(range(10**12))

    def hits() -> None:
        for _ in range(AT_ONCE):
            near(1)

    works: dict[str, tuple[Callable[[], object], int]] = {
        "a bare GET": (lambda: client.get(raw), 1),
        "L1 hit": (hits, AT_ONCE),
        "L2 hit, one tag": (lambda: far(next(turn) % KEYS), 1),
        "miss, one tag": (lambda: missed(next(turn)), 1),
        "invalidate a tag": (lambda: cache.invalidate(tags=["bench:1"]), 1),
    }
    took: dict[str, list[float]] = {what: [] for what in works}
    with progress("measuring", SLICES * len(works)) as tell:
        for work, _ in works.values():
            sample(work, WARM)
        for part in range(SLICES):
            for n, (what, (work, at_once)) in enumerate(works.items()):
                took[what] += [t / at_once for t in sample(work, seconds / SLICES)]
                tell(part * len(works) + n + 1)
    get = median(took["a bare GET"])
    return [cost(what, times, get, works[what][1]) for what, times in took.items()]


def sample(work: Callable[[], object], seconds: float) -> list[float]:
    took: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until or not took:
        work()
        took.append(time.perf_counter() - began)
    return took


def cost(what: str, took: list[float], get: float, at_once: int) -> Cost:
    p99 = quantiles(took, n=100)[98] if len(took) > 1 else took[0]
    return Cost(what, median(took), p99, median(took) / get, len(took) * at_once)


def cells(one: Cost) -> list[str]:
    return [one.what, duration(one.median), duration(one.p99), f"{one.gets:.3g}", count(one.calls)]


def heard() -> Flow[bool]:
    come: bool = yield Confirm(PATIENCE)
    return come
