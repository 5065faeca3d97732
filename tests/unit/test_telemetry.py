"""Spans: what leaves the process or runs the user's code is seen, and nothing of a hit in L1."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cacheaside import Cache, telemetry
from cacheaside.errors import StoreUnavailable
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import FailingStore
from cacheaside.toolkit import Presence, RateLimiter

SECRET = "4242"


class Trace:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self.exporter = exporter

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        """In the order of their beginnings, short."""
        spans = sorted(self.spans, key=lambda span: span.start_time or 0)
        return [span.name.removeprefix("cacheaside.") for span in spans]

    def one(self, name: str) -> ReadableSpan:
        (span,) = [s for s in self.spans if s.name == f"cacheaside.{name}"]
        return span

    def clear(self) -> None:
        self.exporter.clear()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Trace:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("cacheaside"))
    return Trace(exporter)


def post(cache: Cache, paint: Any = lambda fn: fn, **options: Any) -> Any:
    @cache.cached(ns="posts", key="post:{id}", tags=["post:{id}"], **options)
    @paint
    def find(id: int) -> int:
        return id

    return find


async def test_a_miss_and_a_hit_in_the_store(any_cache: Cache, traced: Trace, paint: Any, ask: Any) -> None:
    """A miss is a read around a load and a commit; a hit in L2 one span; a hit in L1 none."""
    find = post(any_cache, paint, l1=False)
    await ask(find(4242))
    assert traced.names == ["read", "load", "commit"]
    read, load = traced.one("read"), traced.one("load")
    assert read.context is not None
    assert [load.parent, traced.one("commit").parent] == [read.context] * 2
    assert read.attributes == {
        "cacheaside.namespace": "posts",
        "cacheaside.outcome": "miss",
        "cacheaside.tier": "origin",
        "cache.hit": False,
    }
    assert load.attributes == {"cacheaside.namespace": "posts"}
    traced.clear()
    await ask(find(4242))
    assert traced.names == ["read"]
    assert dict(traced.one("read").attributes or {}) == {
        "cacheaside.namespace": "posts",
        "cacheaside.outcome": "hit",
        "cacheaside.tier": "l2",
        "cache.hit": True,
    }


def test_a_hit_in_l1_makes_no_span(cache: Cache, traced: Trace) -> None:
    find = post(cache)
    find(1)
    traced.clear()
    assert find(1) == 1
    assert traced.names == []


async def test_a_span_is_a_child_of_its_callers(
    any_cache: Cache, traced: Trace, paint: Any, ask: Any
) -> None:
    """And the user's own spans in the function are children of the load."""
    tracer = telemetry.tracer()
    assert tracer is not None
    inner: list[Any] = []

    @any_cache.cached(ns="posts", key="k", l1=False, load_timeout=(5.0, 9.0))
    @paint
    def find() -> int:
        inner.append(trace.get_current_span().get_span_context().span_id)
        return 1

    with tracer.start_as_current_span("request") as request:
        await ask(find())
    read, load = traced.one("read"), traced.one("load")
    assert read.parent == request.get_span_context()
    assert load.context is not None
    assert inner == [load.context.span_id], "in whatever thread or task it ran"


async def test_a_background_refresh_is_a_trace_of_its_own_with_a_link(
    cache: Cache, clock: Any, traced: Trace
) -> None:
    @cache.cached(ns="posts", key="k", ttl=10, stale_while_revalidate=60, refresh="background", l1=False)
    async def find() -> int:
        return 1

    await find()
    clock.tick(15)
    traced.clear()
    await find()
    read = traced.one("read")
    assert dict(read.attributes or {})["cacheaside.outcome"] == "stale"
    while "refresh" not in traced.names:
        await asyncio.sleep(0)
    refresh = traced.one("refresh")
    assert refresh.parent is None
    assert [link.context for link in refresh.links] == [read.context]
    assert traced.one("load").parent == refresh.context


def test_waiting_for_somebody_elses_load_is_a_span(cache: Cache, traced: Trace) -> None:
    find = post(cache, l1=False)

    async def main() -> None:
        @cache.cached(ns="n", key="k", l1=False)
        async def slow() -> int:
            await go_on.wait()
            return 1

        go_on = asyncio.Event()
        calls = [asyncio.create_task(slow()) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(*calls)

    asyncio.run(main())
    assert sorted(traced.names) == ["commit", "load", "read", "read", "wait"]
    outcomes = {dict(s.attributes or {}).get("cacheaside.outcome") for s in traced.spans}
    assert {"miss", "coalesced"} <= outcomes
    assert find.key(1) == "posts:post:1"


@pytest.mark.parametrize("keys", [False, True])
def test_no_key_is_in_a_span_unless_asked_for(clock: FakeClock, traced: Trace, keys: bool) -> None:
    """Nor a tag, a value, or the words of an error."""
    with Cache("embedded://", clock=clock, trace_keys=keys) as cache:
        find = post(cache)
        find(4242)
        find.refresh(4242)
        find.put(4242, 4242)
        find.invalidate(4242)
        cache.set("posts:4242", "4242", tags=["t:4242"])
        cache.get("posts:4242")
        cache.invalidate(tags=["t:4242"])

        @cache.cached(ns="n", key="{a}")
        def fails(a: str) -> int:
            raise ZeroDivisionError(a)

        with pytest.raises(ZeroDivisionError):
            fails(SECRET)
    told = [s for s in traced.spans if SECRET in s.to_json()]
    assert bool(told) is keys
    assert all("cache.key" in (s.attributes or {}) for s in told)


def test_an_error_of_the_function_is_a_status(cache: Cache, traced: Trace) -> None:
    @cache.cached(ns="n", key="k")
    def fails() -> int:
        raise ZeroDivisionError(SECRET)

    with pytest.raises(ZeroDivisionError):
        fails()
    for span in (traced.one("read"), traced.one("load")):
        assert span.status.status_code is trace.StatusCode.ERROR
        assert dict(span.attributes or {})["error.type"] == "ZeroDivisionError"
        assert span.events == ()


async def test_operations_and_batches_have_spans(
    any_cache: Cache, traced: Trace, paint: Any, ask: Any
) -> None:
    @any_cache.cached_many(ns="posts", key="{id}", l1=False)
    @paint
    def many(ids: list[int]) -> dict[int, int]:
        return {id: id for id in ids}

    await ask(many([1, 2]))
    assert dict(traced.one("read_many").attributes or {}) == {
        "cacheaside.namespace": "posts",
        "cacheaside.keys": 2,
    }
    assert dict(traced.one("commit").attributes or {}) == {
        "cacheaside.entries": 2,
        "cacheaside.outcome": "stored",
    }
    traced.clear()
    any_cache.invalidate(tags=["a", "b"], keys=["n:k"])
    assert dict(traced.one("invalidate").attributes or {}) == {
        "cacheaside.keys": 1, "cacheaside.tags": 2, "cacheaside.acknowledged": True,
    }  # fmt: skip
    traced.clear()
    any_cache.set("n:k", 1), any_cache.get("n:k"), any_cache.expire("n:k", 5), any_cache.ttl("n:k")
    any_cache.delete_matching("n:*")
    assert [n for n in traced.names if n not in ("commit", "invalidate")] == [
        "set", "get", "expire", "ttl", "delete_matching",
    ]  # fmt: skip


def test_the_toolkit_s_spans_tell_nothing_of_who_it_was(cache: Cache, traced: Trace) -> None:
    """A hit, a lock and a presence are spans; a refusal that is remembered is none."""
    limiter = RateLimiter(cache, 1, 60)
    for _ in range(5):
        limiter.hit(SECRET)
    limiter.peek(SECRET)
    limiter.reset(SECRET)
    with cache.lock(SECRET) as held:
        held.perform(None)
    presence = Presence(cache)
    presence.online(SECRET, SECRET)
    presence.who()
    assert traced.names == [
        *("rate_limit.hit", "rate_limit.hit", "rate_limit.peek", "rate_limit.reset"),
        *("lock.acquire", "lock.release", "presence.online", "presence.who"),
    ]
    assert not any(SECRET in span.to_json() for span in traced.spans)


def test_an_invalidation_that_is_not_acknowledged_says_so(clock: FakeClock, traced: Trace) -> None:
    inner = Cache("embedded://", clock=clock).store
    with Cache(store=FailingStore(inner, 1.0), clock=clock) as cache:
        cache.driver._sleep = clock.tick
        assert not cache.invalidate(tags=["t"])
    assert dict(traced.one("invalidate").attributes or {})["cacheaside.acknowledged"] is False
    assert StoreUnavailable.__name__ not in traced.one("invalidate").to_json()


def test_a_provider_that_is_set_later_is_found() -> None:
    """And before that no span is begun."""
    code = """
from cacheaside import Cache, telemetry
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
cache, exporter = Cache("embedded://"), InMemorySpanExporter()
assert cache.set("n:k", 1) and telemetry.tracer() is None
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
for _ in range(telemetry.EVERY):
    cache.get("n:k")
print(sorted({span.name for span in exporter.get_finished_spans()}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "['cacheaside.get']\n"
