"""``@cached_many``: a function of many ids, cached by single id.

The first parameter that is not ``self`` takes the ids. The key template names one id (``post:{id}``) by
a field that is no parameter of the function; everything else works as for ``@cached``.
"""

from __future__ import annotations

import functools
import string
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import wrapt

from cacheaside.codecs import NO_ANNOTATION
from cacheaside.decorators import ByName, ByReceiver, claim, shape_of, unwrap_kind
from cacheaside.engine.call import Call, Site
from cacheaside.engine.many import read_many
from cacheaside.errors import CodecError, ConfigError
from cacheaside.faces import ManyDecorator
from cacheaside.keys import Kind, Signature, check_namespace
from cacheaside.keyspace import Key, placed
from cacheaside.options import ManyOptions, Options
from cacheaside.plan import Plan, result_codec
from cacheaside.telemetry import NAMESPACE, Attributes, Note
from cacheaside.templates import compile_function
from cacheaside.writers import rebound, whole_args

if TYPE_CHECKING:
    from cacheaside.cache import Cache

Fn = Callable[..., Any]


def cached_many_decorator(
    source: Callable[[], Cache],
    scope: Any,
    *,
    ns: str | None,
    key: str | Key[...],
    options: ManyOptions,
) -> ManyDecorator:
    """The decorator behind ``cached_many`` on the default cache and on a ``Cache``."""
    place, template, given = placed("cached_many", ns, key, options)
    check_namespace(place)
    chosen = Options("cached_many", given, ManyOptions)
    timeout = options.get("load_timeout")
    if isinstance(timeout, tuple) and timeout and timeout[0] is not None:
        raise ConfigError(
            "load_timeout of cached_many has no soft part, for a batch has no stale value to give meanwhile: "
            f"write the hard one alone, not {timeout!r}"
        )

    def decorate(target: Any) -> Any:
        fn, kind = unwrap_kind(target, "cached_many")
        ids, item = id_parameters(fn, kind, template)
        one = single(fn, kind, ids, item)
        plan = Plan(
            one,
            kind,
            ns=place,
            key=template,
            options=chosen,
            source=source,
            codec=lambda: result_codec(fn, chosen, of=of_one),
            like=fn,
        )
        batch = Batch(fn, kind, plan, ids)
        function = CachedMany(batch)
        claim(scope, "cached_many", place, template, shape_of(template), function, fn)
        return function

    return cast(ManyDecorator, decorate)


def id_parameters(fn: Fn, kind: Kind, key: str | None) -> tuple[str, str]:
    """The parameter that takes the ids, and the name that the template gives to one of them."""
    signature = Signature(fn, kind)
    own = [n for n in signature.names if n != signature.receiver]
    if not own or own[0] in (signature.var_positional, signature.var_keyword):
        raise ConfigError(f"@cached_many on {fn.__qualname__}: its first parameter must take the ids")
    if not isinstance(key, str):
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


def of_one(annotation: Any) -> Any:
    """The annotation of one item: ``V`` of ``dict[K, V]``."""
    if annotation in (NO_ANNOTATION, Any):
        return annotation
    if annotation in (dict, Mapping):
        return NO_ANNOTATION
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if not (isinstance(origin, type) and issubclass(origin, Mapping) and len(inner) == 2):
        raise CodecError(f"it must return dict[id, value], not {annotation!r}")
    return inner[1]


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
        if cache.mode == "bypass" or cache.collecting() is not None:
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
        asked = [calls[n] for n in rest]
        flow = read_many(site, asked, load, forced=forced or cache.mode == "refresh")
        span = cache.telemetry.operation("read_many", about(site, asked), lambda _: whole(asked))
        if self.plan.is_async:
            return self.arun(cache, site, flow, span, wanted, found, rest)
        with span as note:
            results = note(cache.driver.run(flow, cache.store_of(site)))
        return answered(wanted, found | dict(zip(rest, results, strict=True)))

    async def arun(
        self,
        cache: Cache,
        site: Site,
        flow: Any,
        span: AbstractContextManager[Note],
        wanted: list[Any],
        found: dict[int, Any],
        rest: list[int],
    ) -> Any:
        with span as note:
            results = note(await cache.driver.arun(flow, cache.store_of(site)))
        return answered(wanted, found | dict(zip(rest, results, strict=True)))

    def listed(self, given: Any) -> list[Any]:
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise ConfigError(f"{self.ids} of {self.fn.__qualname__} must be a list of ids, not {given!r}")
        try:
            return list(dict.fromkeys(cast("Iterable[object]", given)))
        except TypeError as error:
            raise ConfigError(f"{self.ids} of {self.fn.__qualname__} must be hashable ids: {error}") from None

    def load(
        self, wanted: list[Any], rest: list[int], with_ids: Callable[[Any], Any], places: list[int]
    ) -> Call:
        """The call that loads the items at these places of ``rest``."""
        ids = [wanted[rest[place]] for place in places]
        args, kwargs = with_ids(ids)

        def picked(result: Any) -> list[Any]:
            if not isinstance(result, Mapping):
                raise ConfigError(
                    f"@cached_many on {self.fn.__qualname__}: it must return a dict by id, "
                    f"not {type(result).__name__}"
                )
            found = cast("Mapping[object, Any]", result)
            absent = [one for one in ids if one not in found]
            if absent and found:
                named = {str(one): one for one in found}
                for one in absent:  # they would be remembered as absent, all of them
                    if str(one) in named:
                        raise ConfigError(
                            f"@cached_many on {self.fn.__qualname__}: asked for {one!r} it returned "
                            f"{named[str(one)]!r}; its dict must be by the ids as they were given"
                        )
            return [found.get(one) for one in ids]

        async def aload() -> list[Any]:
            return picked(await self.fn(*args, **kwargs))

        return Call("", (), aload if self.plan.is_async else lambda: picked(self.fn(*args, **kwargs)))


def about(site: Site, asked: list[Call]) -> Attributes:
    return {NAMESPACE: site.policy.ns, "cacheaside.keys": len(asked)}


def whole(asked: list[Call]) -> str:
    """How a batch was answered: a miss if one of its keys was loaded."""
    outcomes = {call.outcome for call in asked}
    return next((outcome for outcome in ("miss", "stale") if outcome in outcomes), "hit")


def answered(wanted: Sequence[Any], found: dict[int, Any]) -> dict[Any, Any]:
    """What was found, by id, in the order asked for; None is absent."""
    return {one: found[place] for place, one in enumerate(wanted) if found.get(place) is not None}


if TYPE_CHECKING:  # wrapt's classes are generic in its stubs only
    _Function = wrapt.FunctionWrapper[..., Any]
    _Bound = wrapt.BoundFunctionWrapper[..., Any]

    class _Face:
        __wrapped__: Fn
        _self_batch: Batch
else:
    _Function, _Bound, _Face = wrapt.FunctionWrapper, wrapt.BoundFunctionWrapper, object


class ManyHandles(_Face):
    """The handles of a batch function: for one id each, except ``refresh``, ``uncached`` and ``warm``."""

    def _cacheaside(self) -> tuple[Batch, tuple[Any, ...]]:
        batch = self._self_batch  # of the function, where wrapt looks for what a bound one does not have
        if batch.kind not in (Kind.METHOD, Kind.CLASSMETHOD):  # one that is bound may have been decorated
            return batch, ()
        receiver = getattr(self.__wrapped__, "__self__", None)
        return batch, () if receiver is None else (receiver,)

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

    def explain(self, *args: Any, **kwargs: Any) -> Any:
        """In words, where the value of one id is and why a read would hit or miss."""
        batch, bound = self._cacheaside()
        return batch.plan.explain(bound, *args, **kwargs)

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


class BoundMany(ManyHandles, ByReceiver, _Bound):
    """A batch method of one object."""


class CachedMany(ManyHandles, ByName, _Function):
    """A batch function at run time."""

    __bound_function_wrapper__ = BoundMany

    def __init__(self, batch: Batch) -> None:
        super().__init__(rebound(batch.fn, batch.kind), batch.run)
        self._self_batch = batch
        self._self_plan = batch.plan
