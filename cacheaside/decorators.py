"""``@cached``: what a decorated function is at run time.

All that is known about the function is compiled when its first call binds it to a cache: a class of its
own whose ``__call__`` has the function's signature, computes the key, looks into L1 and returns. Only
what L1 does not answer reaches the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import inspect
import string
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Self, cast

import wrapt

from cacheaside.codecs import Undefined, ValueCodec, codec_for, return_annotation
from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import Flow
from cacheaside.engine.read import alone, peek, read, read_only
from cacheaside.engine.write import put
from cacheaside.errors import CacheasideError, ConfigError
from cacheaside.faces import CacheDecorator
from cacheaside.keys import KeyCode, Kind, Signature, Tags, check_namespace, compile_key, compile_tags
from cacheaside.missing import MISSING
from cacheaside.options import CachedOptions, Options
from cacheaside.policy import Policy, make_policy
from cacheaside.templates import compile_function

if TYPE_CHECKING:
    from cacheaside.cache import Cache

Fn = Callable[..., Any]

WARMING: Final = 32
"""Calls that ``warm`` of an async function makes side by side."""

if TYPE_CHECKING:

    class _Proxy(wrapt.ObjectProxy[Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...  # made for each function

else:
    _Proxy = wrapt.ObjectProxy


def unwrap_kind(fn: Any, decorator: str) -> tuple[Fn, Kind]:
    """The function inside ``fn``, and how it is bound; ConfigError for what cannot be decorated."""
    if isinstance(fn, staticmethod):
        return checked(cast(Any, fn).__func__, decorator), Kind.STATICMETHOD
    if isinstance(fn, classmethod):
        return checked(cast(Any, fn).__func__, decorator), Kind.CLASSMETHOD
    checked(fn, decorator)
    outer = fn.__qualname__.rpartition(".")[0]
    if not outer or outer.endswith("<locals>"):
        return fn, Kind.FUNCTION
    first = next(iter(inspect.signature(fn).parameters), None)
    if first == "cls":
        raise ConfigError(
            f"@{decorator} on {fn.__qualname__}: put @{decorator} above @classmethod, not below it"
        )
    return fn, Kind.METHOD if first == "self" else Kind.FUNCTION


def checked(fn: Any, decorator: str) -> Fn:
    if isinstance(fn, property) or not callable(fn) or not hasattr(fn, "__qualname__"):
        raise ConfigError(f"@{decorator} goes on a function or method, not on {fn!r}")
    if inspect.isclass(fn):
        raise ConfigError(f"@{decorator} goes on a function or method, not on the class {fn.__qualname__}")
    inner = inspect.unwrap(fn)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(
            f"@{decorator} on {fn.__qualname__}: it is a generator, which can be consumed only once; "
            "return a list"
        )
    return cast(Fn, fn)


def is_async(fn: Fn) -> bool:
    """Whether calls are to be awaited; a plain decorator in between may hide that they are."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(inspect.unwrap(fn))


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
        self.lock = threading.Lock()
        self._options = options
        self._bound: tuple[Cache, Site] | None = None
        self.on_unbind: Callable[[], object] = lambda: None
        # Everything wrong with an option is said where the decorator stands, not at the first call.
        make_policy(ns=ns, ttl=1 if options.ttl is None else options.ttl, **options.policy)
        # A name in an annotation may not be defined yet: `-> "Post"` in the body of class Post.
        with contextlib.suppress(Undefined):
            self._codec = self._make_codec()

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
                        bound = self._bound = (cache, cache.site(self.policy(cache), self.codec))
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
            return self.drive(cache, site, alone(site, call))
        if mode is None and site.near is not None:
            entry = site.near.get(call.key, site.world.tick())
            if entry is not None:
                site.counts.hits_l1 += 1
                return self.finished(self.open(site, entry.value))
        return self.drive(cache, site, (read if transaction is None else read_only)(site, call))

    def drive(self, cache: Cache, site: Site, flow: Flow[Any]) -> Any:
        run = cache.driver.arun if self.is_async else cache.driver.run
        return run(flow, cache.store_of(site))

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
        return self.drive(cache, site, (read if transaction is None else alone)(site, call))

    def peek(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        cache, site = self.bound()
        call = self.call(bound + args, kwargs)
        if site.near is not None:
            entry = site.near.get(call.key, site.world.tick())
            if entry is not None:
                return self.finished(self.open(site, entry.value))
        return self.drive(cache, site, peek(site, call, MISSING))

    def invalidate(self, bound: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        cache, _ = self.bound()
        keys = (self.compute_key(*bound, *args, **kwargs),)
        if self.is_async:
            return cache.ainvalidate(keys=keys)
        return cache.invalidate(keys=keys)

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

        return self.drive(cache, site, store())

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


def as_arguments(one: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call to warm: a tuple of arguments, a dict of named ones, or a lone argument."""
    if isinstance(one, tuple):
        return cast("tuple[object, ...]", one), {}
    if isinstance(one, dict):
        return (), cast("dict[str, Any]", one)
    return (one,), {}


class Handle:
    """A method of the plan, offered by the function and by what binding makes of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        plan, bound = instance._cacheaside()
        return functools.partial(getattr(plan, self.name), bound)


class Handles:
    """What can be asked of a cached function or method beside calling it; see ``faces.Cached``."""

    # No annotations here: they would become the function's own and hide those that it has.
    __slots__ = ()

    key = Handle("key")
    tags = Handle("tags")
    peek = Handle("peek")
    refresh = Handle("refresh")
    invalidate = Handle("invalidate")
    put = Handle("put")
    uncached = Handle("uncached")
    warm = Handle("warm")


# A cached method of one object or class: a partial, for Python binds nothing faster. A comment, for a
# docstring would stand in the place of the method's.
class ByName:
    """Copied as itself and pickled by its name, as functions are."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return cast(str, cast(Any, self).__qualname__)

    def __reduce_ex__(self, protocol: Any) -> str:
        return self.__reduce__()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


class ByReceiver:
    """Copied and pickled as its object and its name, as methods are."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return getattr, (cast(Any, self).__self__, cast(Any, self).__name__)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(copy.deepcopy(cast(Any, self).__self__, memo), cast(Any, self).__name__)


class Bound(Handles, ByReceiver, functools.partial[Any]):
    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        doc: str | None = self._function.__doc__
        return doc

    @property
    def _function(self) -> CachedFunction:
        return cast(CachedFunction, self.func)

    def _cacheaside(self) -> tuple[Plan, tuple[Any, ...]]:
        # wrapt keeps an attribute of its own only under such a name.
        return self._function._self_plan, self.args  # pyright: ignore[reportPrivateUsage]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    @property
    def __wrapped__(self) -> Any:
        return self._function.__wrapped__.__get__(self.args[0])

    @property
    def __self__(self) -> Any:
        return self.args[0]

    def __repr__(self) -> str:
        return f"<cached method {self._function.__qualname__} of {self.args[0]!r}>"


class CachedFunction(Handles, ByName, _Proxy):
    """A cached function; each has a subclass of its own, whose ``__call__`` is compiled for it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.fn)
        self._self_plan = plan

    def _cacheaside(self) -> tuple[Plan, tuple[Any, ...]]:
        return self._self_plan, ()

    @property
    def cache(self) -> Any:
        """The cache that this function is bound to."""
        return self._self_plan.bound()[0]

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else Bound(self, instance)

    def __repr__(self) -> str:
        return f"<cached {self._self_plan.fn!r}>"


def make_cached(plan: Plan) -> CachedFunction:
    """The decorated function: binds and compiles itself at its first call, and again when unbound."""
    own: Any = type("cached", (CachedFunction,), BINDING.get(plan.kind, {}))

    def first(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        bound = plan.bound()
        compiled = plan.compile()
        with plan.lock:
            if plan.is_bound(bound):
                own.__call__ = compiled
        return compiled(self, *args, **kwargs)

    def unbound() -> None:
        own.__call__ = first

    own.__call__ = first
    plan.on_unbind = unbound
    function: CachedFunction = own(plan)
    return function


def bind_class(self: Any, instance: Any, owner: Any = None) -> Any:
    return Bound(self, type(instance) if owner is None else owner)


def bind_nothing(self: Any, instance: Any, owner: Any = None) -> Any:
    return self


BINDING: Final = {Kind.CLASSMETHOD: {"__get__": bind_class}, Kind.STATICMETHOD: {"__get__": bind_nothing}}
"""How what is no method binds: chosen once, since a method call pays for every branch."""


# Which function owns a key template, so that two cannot write each other's entries unawares.
_claims: weakref.WeakValueDictionary[tuple[Any, str, str, str], Any] = weakref.WeakValueDictionary()


def claim(scope: Any, role: str, ns: str, key: str | None, shape: str, function: Any, fn: Fn) -> None:
    """Refuse a second function of this role with the same keys; reloading the same one is fine."""
    if key is None:
        return
    name = (scope, role, ns, shape)
    owner = _claims.get(name)
    mine = (fn.__module__, fn.__qualname__)
    if owner is not None:
        there = owner._self_plan.fn
        if (there.__module__, there.__qualname__) != mine:
            raise ConfigError(
                f"key={key!r} in ns={ns!r} belongs to {there.__module__}.{there.__qualname__} already: two "
                "functions with one key would answer for each other; change the key, or call the other one"
            )
    _claims[name] = function


def cached_decorator(
    source: Callable[[], Cache],
    scope: Any,
    *,
    ns: str,
    key: str | None,
    options: CachedOptions,
) -> CacheDecorator:
    """The decorator behind ``cached`` on the default cache and on a ``Cache``."""
    check_namespace(ns)
    chosen = Options("cached", options, CachedOptions)

    def decorate(target: Any) -> Any:
        fn, kind = unwrap_kind(target, "cached")
        plan = Plan(fn, kind, ns=ns, key=key, options=chosen, source=source)
        function = make_cached(plan)
        claim(scope, "cached", ns, key, shape_of(key), function, fn)
        return function

    return cast(CacheDecorator, decorate)


def result_codec(
    fn: Fn, options: Options, of: Callable[[Any], Any] = lambda annotation: annotation
) -> ValueCodec:
    """The codec of a function's results, or of the part of them that ``of`` takes from the annotation."""
    try:
        return codec_for(of(return_annotation(fn)), **options.codec)
    except CacheasideError as error:
        raise type(error)(f"@{options.decorator} on {fn.__qualname__}: {error}") from error


def shape_of(key: str | None) -> str:
    """A template with its fields unnamed: ``post:{id}`` and ``post:{post.id}`` write the same keys."""
    if key is None:
        return ""
    return "".join(
        literal + ("{}" if field is not None else "")
        for literal, field, _, _ in string.Formatter().parse(key)
    )
