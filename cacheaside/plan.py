"""The plan of a cached function: what is known about it, what its handles do, its compiled hit path.

All that is known is compiled when the first call binds the function to a cache: a ``__call__`` that has
the function's signature, computes the key, looks into L1 and returns. Only what L1 does not answer
reaches the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, cast

from cacheaside.advice import app_of, binding, key_names_nothing
from cacheaside.codecs import Undefined, ValueCodec, codec_for, return_annotation
from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import Flow
from cacheaside.engine.read import alone, peek, read, read_only
from cacheaside.engine.write import put
from cacheaside.errors import CacheasideError
from cacheaside.fork import renew_after_fork
from cacheaside.keys import KeyCode, Kind, Signature, Tags, compile_key, compile_tags
from cacheaside.missing import MISSING
from cacheaside.options import Options
from cacheaside.policy import Policy, make_policy
from cacheaside.telemetry import tracer
from cacheaside.templates import compile_function

if TYPE_CHECKING:
    from cacheaside.cache import Cache

Fn = Callable[..., Any]

WARMING: Final = 32
"""Calls that ``warm`` of an async function makes side by side."""


class Plan:
    """All that is known about one decorated function; bound to its cache by the first call."""

    def __init__(
        self,
        fn: Fn,
        kind: Kind,
        *,
        ns: str,
        key: str | None,
        options: Options,
        source: Callable[[], Cache],
        codec: Callable[[], ValueCodec] | None = None,
        like: Fn | None = None,
    ) -> None:
        self.fn = fn
        self.kind = kind
        self.is_async = is_async(fn if like is None else like)
        self.signature = Signature(fn, kind)
        self.key_code: KeyCode[str] = compile_key(fn, kind, ns, key)
        key_names_nothing(fn, self.signature, key)
        self.tag_code: Tags = compile_tags(fn, kind, options.tags)
        self.compute_key = self.key_code.function(self.signature)
        self.compute_tags = self.tag_code.known.function(self.signature)
        # A template can name nothing of None; a function may have something to say about it.
        self.tags_of_none = callable(options.tags)
        self._make_codec = codec or functools.partial(result_codec, fn, options)
        self._codec: ValueCodec | None = None
        self.ns = ns
        self.source = source
        self.default = source.__name__ == "default_cache"
        self.after_fork()
        renew_after_fork(self)
        self._options = options
        self._bound: tuple[Cache, Site] | None = None
        self.on_unbind: Callable[[], object] = lambda: None
        # Everything wrong with an option is said where the decorator stands, not at the first call.
        make_policy(ns=ns, ttl=1 if options.ttl is None else options.ttl, **options.policy)
        # A name in an annotation may not be defined yet: `-> "Post"` in the body of class Post.
        with contextlib.suppress(Undefined):
            self._codec = self._make_codec()

    def after_fork(self) -> None:
        self.lock = threading.Lock()

    @property
    def codec(self) -> ValueCodec:
        if self._codec is None:
            self._codec = self._make_codec()
        return self._codec

    def policy(self, cache: Cache) -> Policy:
        ttl = cache.ttl_default if self._options.ttl is None else self._options.ttl
        return make_policy(ns=self.ns, ttl=ttl, **self._options.policy)

    def bound(self) -> tuple[Cache, Site]:
        """The cache and the call site; bound now if this is the first call."""
        bound = self._bound
        if bound is None:
            with self.lock:
                bound = self._bound
                while bound is None:
                    cache = self.source()
                    cache.bound_here.add(self)
                    if self.source() is cache:  # else configure() came in between, and may have missed us
                        site = cache.site(self.policy(cache), self.codec, app_of(self.fn))
                        bound = self._bound = (cache, site)
                        binding(cache, self.fn, self._options.policy.get("l1"), site)
        return bound

    def is_bound(self, bound: object) -> bool:
        return self._bound is bound

    def unbind(self) -> None:
        """Have the next call bind anew: the default cache is another one now."""
        with self.lock:
            self._bound = None
            self.on_unbind()

    # -- calls

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, forced: bool = False) -> Call:
        late = self.tag_code.late

        def tags_of(result: Any) -> tuple[str, ...]:
            if late is None or (result is None and not self.tags_of_none):
                return ()
            return late(result, *args, **kwargs)

        return Call(
            self.compute_key(*args, **kwargs),
            self.compute_tags(*args, **kwargs),
            functools.partial(self.fn, *args, **kwargs),
            None if late is None else tags_of,
            forced=forced,
        )

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What L1's compiled path could not answer; a coroutine for an async function."""
        cache, site = self.bound()
        cache.listen()
        mode, transaction = cache.mode, cache.collecting()
        call = self.call(args, kwargs, forced=mode == "refresh")
        if mode == "bypass" or (transaction is not None and (transaction.dirty or call.forced)):
            site.counts.bypassed += 1
            call.outcome = "bypass"
            return self.drive(cache, site, alone(site, call), call, "read")
        if mode is None and site.near is not None:
            entry = site.near.get(call.key, site.world.tick())
            if entry is not None:
                site.counts.hits_l1 += 1
                return self.finished(self.open(site, entry.value))
        return self.drive(cache, site, (read if transaction is None else read_only)(site, call), call, "read")

    def drive(self, cache: Cache, site: Site, flow: Flow[Any], call: Call, name: str) -> Any:
        """Run a flow about one call; ``name`` is its span's, if anybody traces."""
        driver, store = cache.driver, cache.store_of(site)
        if tracer() is None:
            return (driver.arun if self.is_async else driver.run)(flow, store)
        span = cache.telemetry.call(name, site, call)
        if self.is_async:
            return within(span, driver.arun(flow, store))
        with span:
            return driver.run(flow, store)

    def open(self, site: Site, kept: Any) -> Any:
        return kept if kept is None or site.codec.shareable else site.codec.decode(kept)

    def finished(self, value: Any) -> Any:
        return finished(value) if self.is_async else value

    # -- handles; ``bound`` is what binding put in front of the arguments

    def key(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> str:
        return self.compute_key(*bound, *args, **kwargs)

    def tags(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        return self.compute_tags(*bound, *args, **kwargs)

    def uncached(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        return self.fn(*bound, *args, **kwargs)

    def refresh(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        cache, site = self.bound()
        call = self.call(bound + args, kwargs, forced=True)
        transaction = cache.collecting()
        if transaction is not None:
            transaction.add((call.key,), ())
        return self.drive(cache, site, (read if transaction is None else alone)(site, call), call, "refresh")

    def peek(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        cache, site = self.bound()
        call = self.call(bound + args, kwargs)
        if site.near is not None:
            entry = site.near.get(call.key, site.world.tick())
            if entry is not None:
                return self.finished(self.open(site, entry.value))
        return self.drive(cache, site, peek(site, call, MISSING), call, "peek")

    def invalidate(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        cache, _ = self.bound()
        keys = (self.compute_key(*bound, *args, **kwargs),)
        if self.is_async:
            return cache.ainvalidate(keys=keys)
        return cache.invalidate(keys=keys)

    def explain(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        cache, _ = self.bound()
        key = self.compute_key(*bound, *args, **kwargs)
        return cache.aexplain(key) if self.is_async else cache.explain(key)

    def put(self, bound: tuple[Any, ...], value: Any, /, *args: Any, **kwargs: Any) -> Any:
        cache, site = self.bound()
        call = self.call(bound + args, kwargs)
        transaction = cache.collecting()
        if transaction is not None:  # not committed yet: dropped when it is, and loaded then
            transaction.add((call.key,), ())
            return self.finished(False)
        call.load = functools.partial(finished, value) if self.is_async else lambda: value

        def store() -> Flow[bool]:
            return (yield from put(site, call, cache.invalidation_timeout))[1]

        return self.drive(cache, site, store(), call, "put")

    def warm(self, bound: tuple[Any, ...], calls: Iterable[Any], /) -> Any:
        made = [as_arguments(one) for one in calls]
        if self.is_async:
            return self._awarm(bound, made)
        for args, kwargs in made:
            self.answer(bound + args, kwargs)
        return len(made)

    async def _awarm(self, bound: tuple[Any, ...], made: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> int:
        turn = asyncio.Semaphore(WARMING)

        async def one(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            async with turn:
                await self.answer(bound + args, kwargs)

        await asyncio.gather(*(one(args, kwargs) for args, kwargs in made))
        return len(made)

    # -- the hit path

    def compile(self) -> Fn:
        """``__call__`` for this function: its own signature, one look into L1, else ``answer``.

        Freshness, coherence and tags are compared in line; no lock, no generator, no formatting. A
        value that callers must not share is decoded here.
        """
        cache, site = self.bound()
        p, forward = self.signature.private, self.signature.forward
        near = None if site.near is None else cache.near
        names: dict[str, Any] = {f"{p}answer": self.forwarded}
        wait = "await " if self.is_async else ""
        miss = f"return {wait}{p}answer({forward})"
        lines = [miss]
        if near is not None:
            value = f"{p}entry.value"
            if not site.codec.shareable:
                value = f"None if {value} is None else {p}decode({value})"
                names[f"{p}decode"] = site.codec.decode
            names |= {
                f"{p}find": near.entries.get,
                f"{p}recent": near.recent.append,
                f"{p}near": near,
                f"{p}clock": site.world.tick,
                f"{p}counts": site.counts,
            }
            lines = [
                f"{p}key = {self.key_code.expression}",
                f"{p}entry = {p}find({p}key)",
                f"if {p}entry is not None:",
                f"    {p}now = {p}clock()",
                f"    if {p}now < {p}entry.until and {p}now < {p}near.limit:",
                f"        for {p}tag in {p}entry.tags:",
                f"            if {p}tag.dead: break",
                "        else:",
                f"            {p}recent({p}key)",
                f"            {p}counts.hits_l1 += 1",
                f"            return {value}",
                miss,
            ]
        parameters = f"{p}self, {self.signature.parameters}"
        namespace = self.signature.namespace | self.key_code.namespace | names
        return compile_function(parameters, lines, namespace, is_async=self.is_async)

    def forwarded(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.answer(args, kwargs)


async def finished(value: Any) -> Any:
    return value


async def within(span: AbstractContextManager[Any], work: Awaitable[Any]) -> Any:
    with span:
        return await work


def as_arguments(one: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call to warm: a tuple of arguments, a dict of named ones, or a lone argument."""
    if isinstance(one, tuple):
        return cast("tuple[object, ...]", one), {}
    if isinstance(one, dict):
        return (), cast("dict[str, Any]", one)
    return (one,), {}


def is_async(fn: Fn) -> bool:
    """Whether calls are to be awaited; a plain decorator in between may hide that they are."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(inspect.unwrap(fn))


def result_codec(
    fn: Fn, options: Options, of: Callable[[Any], Any] = lambda annotation: annotation
) -> ValueCodec:
    """The codec of a function's results, or of the part of them that ``of`` takes from the annotation."""
    try:
        return codec_for(of(return_annotation(fn)), **options.codec)
    except CacheasideError as error:
        raise type(error)(f"@{options.decorator} on {fn.__qualname__}: {error}") from error
