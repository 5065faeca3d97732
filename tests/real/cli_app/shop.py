"""Functions that test_cli.py warms and traces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from opentelemetry import trace

from cacheaside import cached, cached_many


@cached(ns="shop", key="item:{id}", tags=["items"], ttl=60)
def item(id: int) -> str:
    if id < 0:
        raise LookupError(f"no item {id}")
    return f"item {id}"


@cached_many(ns="shop", key="price:{id}", ttl=60)
async def prices(ids: Sequence[int]) -> dict[int, int]:
    return {id: 100 * id for id in ids}


@cached(ns="shop", key="slow:{id}", ttl=60)
async def slow(id: int) -> int:
    await asyncio.sleep(0.01)
    return id


async def page(id: int, *, fails: bool = False) -> str:
    """Two loads side by side and a span of the application's own."""
    with trace.get_tracer("shop").start_as_current_span("render"):
        await asyncio.gather(slow(id), slow(id + 1))
    if fails:
        raise ValueError("no page")
    return "page"
