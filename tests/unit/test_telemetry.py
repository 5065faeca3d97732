"""Spans: what leaves the process or runs the user's code is seen, and nothing of a hit in L1."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cacheaside import Cache, telemetry
from cacheaside.engine.commands import Flow, Sleep
from cacheaside.errors import StoreUnavailable
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import FailingStore
from cacheaside.testing.servers import wait_until
from cacheaside.toolkit import Blacklist, Presence, RateLimiter, RefreshTokens, SessionStore, Warmer

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

    def of(self, name: str) -> dict[str, Any]:
        """The attributes of the one span of this name."""
        return dict(self.one(name).attributes or {})

    def clear(self) -> None:
        self.exporter.clear()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Trace:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("cacheaside"))
    return Trace(exporter)


def tracer_of() -> trace.Tracer:
    tracer = telemetry.tracer()
    assert tracer is not None
    return tracer


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
    assert traced.of("commit") == {"cacheaside.entries": 1, "cacheaside.outcome": "stored"}
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


async def test_a_hit_in_l1_makes_no_span(cache: Cache, traced: Trace, paint: Any, ask: Any) -> None:
    """Nor does a batch that is all in L1."""
    find = post(cache, paint)

    @cache.cached_many(ns="many", key="{id}")
    @paint
    def many(ids: list[int]) -> dict[int, int]:
        return {id: id for id in ids}

    await ask(find(1)), await ask(many([1, 2]))
    traced.clear()
    assert await ask(find(1)) == 1
    assert await ask(many([2, 1])) == {2: 2, 1: 1}
    assert cache.stats()["namespaces"]["many"]["hits_l1"] == 2
    assert traced.names == []


async def test_a_span_is_a_child_of_its_callers(
    any_cache: Cache, traced: Trace, paint: Any, ask: Any
) -> None:
    """And the user's own spans in the function are children of the load."""
    inner: list[Any] = []

    @any_cache.cached(ns="posts", key="k", l1=False, load_timeout=(5.0, 9.0))
    @paint
    def find() -> int:
        inner.append(trace.get_current_span().get_span_context().span_id)
        return 1

    with tracer_of().start_as_current_span("request") as request:
        await ask(find())
    read, load = traced.one("read"), traced.one("load")
    assert read.parent == request.get_span_context()
    assert load.context is not None
    assert inner == [load.context.span_id], "in whatever thread or task it ran"


def test_loads_in_threads_are_children_of_the_one_who_asked(cache: Cache, traced: Trace) -> None:
    threads: set[int] = set()
    find = post(cache, lambda fn: seen(fn, threads), l1=False)
    warmer = Warmer(cache, concurrency=4)
    warmer.add(find, range(20))
    warmer.run()
    warm = traced.one("warm")
    loads = [span for span in traced.spans if span.name == "cacheaside.load"]
    assert [span.parent for span in loads] == [warm.context] * 20
    assert threads - {threading.get_ident()}


def seen(fn: Callable[..., Any], threads: set[int]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.get_ident())
        return fn(*args, **kwargs)

    return wrapper


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


def test_a_background_refresh_in_a_thread_is_linked_too(
    cache: Cache, clock: FakeClock, traced: Trace
) -> None:
    find = post(cache, ttl=10, stale_while_revalidate=60, refresh="background", l1=False)
    find(1)
    clock.tick(15)
    traced.clear()
    with tracer_of().start_as_current_span("request") as request:
        find(1)
    assert wait_until(lambda: "refresh" in traced.names)
    read, refresh, load = map(traced.one, ("read", "refresh", "load"))
    assert read.parent == request.get_span_context()
    assert (refresh.parent, load.parent) == (None, refresh.context)
    assert [link.context for link in refresh.links] == [read.context]


async def test_a_forced_refresh_is_a_span(any_cache: Cache, traced: Trace, paint: Any, ask: Any) -> None:
    find = post(any_cache, paint, l1=False)
    await ask(find.refresh(1))
    assert traced.names == ["refresh", "load", "commit"]
    assert traced.of("refresh")["cacheaside.outcome"] == "miss"


def test_a_result_that_comes_too_late_is_a_refused_commit(cache: Cache, traced: Trace) -> None:
    @cache.cached(ns="n", key="k", tags=["t"], l1=False)
    def find() -> int:
        cache.invalidate(keys=["n:k"])
        return 1

    find()
    assert traced.of("commit")["cacheaside.outcome"] == "refused"


def test_waiting_for_somebody_elses_load_is_a_span(cache: Cache, traced: Trace) -> None:
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
    assert traced.of("wait") == {"cacheaside.outcome": "ended"}


def test_a_wait_that_patience_ends_says_so(cache: Cache, traced: Trace) -> None:
    with tracer_of().start_as_current_span("request"):
        cache.driver.run(expecting(), cache.store)
    assert traced.of("wait") == {"cacheaside.outcome": "timeout"}


def expecting() -> Flow[None]:
    yield Sleep(0.001, Future())


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
    assert traced.of("read_many") == {
        "cacheaside.namespace": "posts",
        "cacheaside.keys": 2,
        "cacheaside.outcome": "miss",
    }
    assert dict(traced.one("commit").attributes or {}) == {
        "cacheaside.entries": 2,
        "cacheaside.outcome": "stored",
    }
    for ids, outcome in (([1, 2], "hit"), ([1, 3], "miss")):
        traced.clear()
        await ask(many(ids))
        assert traced.of("read_many")["cacheaside.outcome"] == outcome
    traced.clear()
    any_cache.invalidate(tags=["a", "b"], keys=["n:k"])
    assert dict(traced.one("invalidate").attributes or {}) == {
        "cacheaside.keys": 1, "cacheaside.tags": 2, "cacheaside.acknowledged": True,
    }  # fmt: skip
    traced.clear()
    any_cache.set("n:k", None), any_cache.get("n:k", None), any_cache.expire("n:k", 5), any_cache.ttl("n:k")
    assert traced.of("get") == {"cacheaside.outcome": "hit"}, "None is a value"
    any_cache.delete_matching("n:*")
    assert [n for n in traced.names if n not in ("commit", "invalidate")] == [
        "set", "get", "expire", "ttl", "delete_matching",
    ]  # fmt: skip
    traced.clear()
    any_cache.get("n:k")
    assert traced.of("get") == {"cacheaside.outcome": "miss"}
    any_cache.get_or_load("n:k", lambda: 1)
    assert traced.of("get_or_load") == {"cacheaside.outcome": "miss"}


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
    hits = [dict(s.attributes or {}) for s in traced.spans if s.name == "cacheaside.rate_limit.hit"]
    assert hits == [{"cacheaside.outcome": "allowed"}, {"cacheaside.outcome": "denied"}]


def test_no_token_is_in_a_span(cache: Cache, traced: Trace) -> None:
    """Of sessions, refresh tokens and a blacklist; not even where spans carry keys."""
    cache.telemetry = telemetry.Telemetry(keys=True)
    sessions = SessionStore(cache, type=dict[str, str])
    one = sessions.create(SECRET, {"secret": SECRET})
    two = sessions.rotate(one.token)
    assert two is not None
    sessions.get(two.token), sessions.get(f"{SECRET}nobody"), sessions.update(two.token, {"secret": "x"})
    sessions.extend(two.token), sessions.list(SECRET), sessions.delete(two.token), sessions.delete_all(SECRET)
    refresh = RefreshTokens(cache)
    first = refresh.issue(SECRET)
    second = refresh.rotate(first.token)
    assert second is not None
    refresh.revoke(second.token), refresh.revoke_all(SECRET)
    blacklist = Blacklist(cache)
    blacklist.add(f"{SECRET}jwt", 60)
    assert blacklist.contains(f"{SECRET}jwt")
    assert traced.names == [
        *("session.create", "session.rotate", "session.get", "session.get", "session.update"),
        *("session.extend", "session.list", "session.delete", "session.delete_all"),
        *("refresh_token.issue", "refresh_token.rotate", "refresh_token.revoke", "refresh_token.revoke_all"),
        *("blacklist.add", "blacklist.contains"),
    ]
    told = " ".join(span.to_json() for span in traced.spans)
    tokens = (one.token, two.token, first.token, second.token)
    assert not any(secret in told for secret in (SECRET, *tokens, *(token[:32] for token in tokens)))
    gets = [dict(s.attributes or {}) for s in traced.spans if s.name == "cacheaside.session.get"]
    assert gets == [{"cacheaside.outcome": "found"}, {"cacheaside.outcome": "missing"}]


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
