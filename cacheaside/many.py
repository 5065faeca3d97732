"""``@cached_many``: a function of many ids, cached by single id.

The first parameter that is not ``self`` takes the ids. The key template names one id (``post:{id}``) by
a field that is no parameter of the function; everything else works as for ``@cached``.
"""

from __future__ import annotations

import functools
import string
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import wrapt

from cacheaside.codecs import NO_ANNOTATION, Serializer, ValueCodec, codec_for, return_annotation
from cacheaside.decorators import Plan, claim, shape_of, unwrap_kind
from cacheaside.engine.call import Call
from cacheaside.engine.many import read_many
from cacheaside.errors import CacheasideError, ConfigError
from cacheaside.faces import CacheDecorator
from cacheaside.keys import Kind, Signature, check_namespace
from cacheaside.policy import Seconds, Ttl
from cacheaside.templates import compile_function
from cacheaside.writers import rebound, whole_args

if TYPE_CHECKING:
    from cacheaside.cache import Cache

Fn = Callable[..., Any]


def cached_many_decorator(
    source: Callable[[], Cache],
    scope: Any,
    *,
    ns: str,
    key: str,
    ttl: Ttl | None = None,
    tags: Iterable[str] | Callable[..., Iterable[str]] = (),
    l1: bool | Seconds = True,
    l2: bool = True,
    stale_if_error: Seconds = 0,
    jitter: float = 0.05,
    negative_ttl: Seconds | None = None,
    cache_if: Callable[[Any], bool] | None = None,
    load_timeout: Seconds | tuple[Seconds | None, Seconds | None] | None = None,
    lease_ttl: Seconds = 3,
    wait_timeout: Seconds = 5,
    codec: str | Serializer = "msgpack",
    version: int = 1,
    share: bool | None = None,
) -> CacheDecorator:
    """The decorator behind ``cached_many`` on the default cache and on a ``Cache``."""
    check_namespace(ns)
    options = {
        "l1": l1, "l2": l2, "stale_if_error": stale_if_error, "jitter": jitter,
        "negative_ttl": negative_ttl, "cache_if": cache_if, "load_timeout": load_timeout,
        "lease_ttl": lease_ttl, "wait_timeout": wait_timeout,
    }  # fmt: skip

    def decorate(target: Any) -> Any:
        fn, kind = unwrap_kind(target, "cached_many")
        ids, item = id_parameters(fn, kind, key)
        one = single(fn, kind, ids, item)
        plan = Plan(
            one,
            kind,
            ns=ns,
            key=key,
            tags=tags,
            ttl=ttl,
            codec=lambda: item_codec(fn, codec, version, share),
            options=options,
            source=source,
            like=fn,
        )
        batch = Batch(fn, kind, plan, ids)
        function = CachedMany(rebound(fn, kind), batch.run)
        function._self_batch = batch
        function._self_plan = plan
        claim(scope, "cached_many", ns, key, shape_of(key), function, fn)
        return function

    return cast(CacheDecorator, decorate)


def id_parameters(fn: Fn, kind: Kind, key: str) -> tuple[str, str]:
    """The parameter that takes the ids, and the name that the template gives to one of them."""
    signature = Signature(fn, kind)
    own = [n for n in signature.names if n != signature.receiver]
    if not own or own[0] in (signature.var_positional, signature.var_keyword):
        raise ConfigError(f"@cached_many on {fn.__qualname__}: its first parameter must take the ids")
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f'@cached_many on {fn.__qualname__} needs key="...{{id}}", the key of one item')
    fields = {f.split(".")[0].split("[")[0] for _, f, _, _ in string.Formatter().parse(key) if f}
    items = sorted(fields - set(signature.names))
    if len(items) != 1:
        raise ConfigError(
            f"@cached_many on {fn.__qualname__}: key={key!r} must name one id by one field that is no "
            f"parameter, such as {{id}}; it names {', '.join(items) or 'none'}"
        )
    return own[0], items[0]


def single(fn: Fn, kind: Kind, ids: str, item: str) -> Fn:
    """A function with the signature of ``fn``, but of one id: what keys and tags are compiled for."""
    signature = Signature(fn, kind)
    parameters = [p.strip() for p in signature.parameters.split(",")]
    renamed = [
        item if p == ids else item + p[len(ids) :] if p.startswith(f"{ids}=") else p for p in parameters
    ]
    if renamed == parameters:
        raise ConfigError(f"@cached_many on {fn.__qualname__}: {ids!r} must be an ordinary parameter")
    stub = compile_function(", ".join(renamed), ["return None"], signature.namespace)
    stub.__name__, stub.__qualname__, stub.__module__ = fn.__name__, fn.__qualname__, fn.__module__
    return stub


def item_codec(fn: Fn, codec: str | Serializer, version: int, share: bool | None) -> ValueCodec:
    """The codec of one item: of ``V`` in ``-> dict[K, V]``."""
    annotation = return_annotation(fn)
    if annotation is not NO_ANNOTATION and annotation is not Any:
        origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
        plain = annotation in (dict, Mapping)
        if not plain and not (isinstance(origin, type) and issubclass(origin, Mapping) and len(inner) == 2):
            raise ConfigError(
                f"@cached_many on {fn.__qualname__}: it must return dict[id, value], not {annotation!r}"
            )
        annotation = NO_ANNOTATION if plain else inner[1]
    try:
        return codec_for(annotation, codec=codec, version=version, share=share)
    except CacheasideError as error:
        raise type(error)(f"@cached_many on {fn.__qualname__}: {error}") from error


class Batch:
    """Turns a call of the function into the calls of its items, and their results into its answer."""

    def __init__(self, fn: Fn, kind: Kind, plan: Plan, ids: str) -> None:
        self.fn = fn
        self.kind = kind
        self.plan = plan
        self.ids = ids
        signature = Signature(fn, kind)
        # (ids, every argument in the order of the signature), whatever way they were passed.
        self.split = compile_function(
            signature.parameters,
            [f"return {ids}, lambda {signature.private}ids: ({self._packed(signature)})"],
            signature.namespace,
        )

    def _packed(self, signature: Signature) -> str:
        parts = [p.strip() for p in signature.forward.split(",") if p.strip()]
        mine = f"{signature.private}ids"
        positional = [mine if p == self.ids else p for p in parts if "=" not in p and not p.startswith("**")]
        named = [p for p in parts if "=" in p]
        named = [f"{self.ids}={mine}" if p == f"{self.ids}={self.ids}" else p for p in named]
        extra = "".join(f", **{p[2:]}" for p in parts if p.startswith("**"))
        return f"({''.join(p + ', ' for p in positional)}), dict({', '.join(named)}{extra})".replace(
            "dict(, ", "dict("
        )

    def run(self, wrapped: Fn, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.answer(whole_args(self.kind, instance, args), kwargs)

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, forced: bool = False) -> Any:
        cache, site = self.plan.bound()
        cache.listen()
        given, with_ids = self.split(*args, **kwargs)
        wanted = self.listed(given)
        if cache.mode == "bypass":
            site.counts.bypassed += 1
            own_args, own_kwargs = with_ids(wanted)
            return self.fn(*own_args, **own_kwargs)
        calls = [self.plan.call(*with_ids(one)) for one in wanted]
        found: dict[int, Any] = {}
        if site.near is not None and cache.mode is None and not forced:
            now = site.world.tick()
            for place, call in enumerate(calls):
                entry = site.near.get(call.key, now)
                if entry is not None:
                    found[place] = self.plan.open(site, entry.value)
            site.counts.hits_l1 += len(found)
        rest = [n for n in range(len(wanted)) if n not in found]
        if not rest:
            return self.plan.finished(answered(wanted, found))
        load = functools.partial(self.load, wanted, rest, with_ids)
        flow = read_many(site, [calls[n] for n in rest], load, forced=forced or cache.mode == "refresh")
        if self.plan.is_async:
            return self.arun(cache, site, flow, wanted, found, rest)
        return answered(
            wanted, found | dict(zip(rest, cache.driver.run(flow, cache.store_of(site)), strict=True))
        )

    async def arun(
        self, cache: Cache, site: Any, flow: Any, wanted: list[Any], found: dict[int, Any], rest: list[int]
    ) -> Any:
        results = await cache.driver.arun(flow, cache.store_of(site))
        return answered(wanted, found | dict(zip(rest, results, strict=True)))

    def listed(self, given: Any) -> list[Any]:
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise ConfigError(f"{self.ids} of {self.fn.__qualname__} must be a list of ids, not {given!r}")
        return list(dict.fromkeys(cast("Iterable[Any]", given)))

    def load(
        self, wanted: list[Any], rest: list[int], with_ids: Callable[[Any], Any], places: list[int]
    ) -> Call:
        """The call that loads the items at these places of ``rest``."""
        ids = [wanted[rest[place]] for place in places]
        args, kwargs = with_ids(ids)

        def picked(result: Any) -> list[Any]:
            if not isinstance(result, Mapping):
                raise ConfigError(
                    f"@cached_many on {self.fn.__qualname__}: it must return a dict by id, not {type(result).__name__}"
                )
            return [cast("Mapping[Any, Any]", result).get(one) for one in ids]

        async def aload() -> list[Any]:
            return picked(await self.fn(*args, **kwargs))

        return Call("", (), aload if self.plan.is_async else lambda: picked(self.fn(*args, **kwargs)))


def answered(wanted: Sequence[Any], found: dict[int, Any]) -> dict[Any, Any]:
    """What was found, by id, in the order asked for; None is absent."""
    return {one: found[place] for place, one in enumerate(wanted) if found.get(place) is not None}


class ManyHandles:
    """The handles of a batch function: for one id each, except ``refresh``, ``uncached`` and ``warm``."""

    def _cacheaside(self) -> tuple[Batch, tuple[Any, ...]]:
        parent = getattr(self, "_self_parent", None)  # which wrapt has set to None on the function itself
        parent = self if parent is None else parent
        batch: Batch = parent._self_batch  # type: ignore[union-attr]
        instance = getattr(self, "_self_instance", None)
        bound = (instance,) if batch.kind in (Kind.METHOD, Kind.CLASSMETHOD) and instance is not None else ()
        return batch, bound

    @property
    def cache(self) -> Any:
        return self._cacheaside()[0].plan.bound()[0]

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key of one id."""
        batch, bound = self._cacheaside()
        return batch.plan.key(bound, *args, **kwargs)

    def tags(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """The tags of one id."""
        batch, bound = self._cacheaside()
        return batch.plan.tags(bound, *args, **kwargs)

    def peek(self, *args: Any, **kwargs: Any) -> Any:
        """The cached value of one id."""
        batch, bound = self._cacheaside()
        return batch.plan.peek(bound, *args, **kwargs)

    def put(self, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Store the value of one id."""
        batch, bound = self._cacheaside()
        return batch.plan.put(bound, value, *args, **kwargs)

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        """Drop the entries of the ids."""
        batch, bound = self._cacheaside()
        given, with_ids = batch.split(*bound, *args, **kwargs)
        keys = [batch.plan.compute_key(*a, **k) for a, k in map(with_ids, batch.listed(given))]
        cache, _ = batch.plan.bound()
        return cache.ainvalidate(keys=keys) if batch.plan.is_async else cache.invalidate(keys=keys)

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Load the ids now and store what comes."""
        batch, bound = self._cacheaside()
        return batch.answer((*bound, *args), kwargs, forced=True)

    def uncached(self, *args: Any, **kwargs: Any) -> Any:
        batch, bound = self._cacheaside()
        return batch.fn(*bound, *args, **kwargs)

    def warm(self, ids: Iterable[Any], /) -> Any:
        """Read the ids, loading what is missing; how many there are."""
        batch, bound = self._cacheaside()
        wanted = list(ids)
        answer = batch.answer((*bound, wanted), {})

        async def counted() -> int:
            return len(await answer)

        return counted() if batch.plan.is_async else len(answer)


class BoundMany(ManyHandles, wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    """A batch method of one object."""


class CachedMany(ManyHandles, wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """A batch function at run time."""

    __bound_function_wrapper__ = BoundMany

    def __reduce__(self) -> str:
        return cast(str, self._self_batch.fn.__qualname__)  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> str:
        return self.__reduce__()
