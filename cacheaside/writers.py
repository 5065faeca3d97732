"""``@invalidates`` and ``@updates``: functions that write."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import wrapt

from cacheaside.decorators import ByName, ByReceiver, unwrap_kind
from cacheaside.engine.write import put
from cacheaside.errors import ConfigError
from cacheaside.faces import SameDecorator
from cacheaside.keys import Kind, Signature, check_namespace, compile_key, compile_tags
from cacheaside.keyspace import Key, placed, places
from cacheaside.options import Options, TagTemplates, UpdatesOptions, kept
from cacheaside.plan import Plan, is_async
from cacheaside.templates import name_of

if TYPE_CHECKING:
    from cacheaside.cache import Cache

Fn = Callable[..., Any]


if TYPE_CHECKING:  # wrapt's classes are generic in its stubs only
    _Function = wrapt.FunctionWrapper[..., Any]
    _Bound = wrapt.BoundFunctionWrapper[..., Any]
else:
    _Function, _Bound = wrapt.FunctionWrapper, wrapt.BoundFunctionWrapper


class BoundWriter(ByReceiver, _Bound):
    """A method that writes, of one object."""


class Writer(ByName, _Function):
    """A function that writes, at run time."""

    __bound_function_wrapper__ = BoundWriter


def rebound(fn: Fn, kind: Kind) -> Any:
    """The function as it was given, for wrapt to bind."""
    if kind is Kind.STATICMETHOD:
        return staticmethod(fn)
    return classmethod(fn) if kind is Kind.CLASSMETHOD else fn


def whole_args(kind: Kind, instance: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with the receiver that wrapt took off."""
    return (instance, *args) if kind in (Kind.METHOD, Kind.CLASSMETHOD) and instance is not None else args


def invalidates_decorator(
    source: Callable[[], Cache],
    *,
    tags: TagTemplates,
    keys: Iterable[str | Key[...]],
    ns: str | None,
    on_error: bool,
) -> SameDecorator:
    """The decorator behind ``invalidates`` on the default cache and on a ``Cache``."""
    templates = places(ns, keys)
    tags = kept(tags)
    if not tags and not templates:
        raise ConfigError("@invalidates needs tags=[...] or keys=[...]: it would drop nothing")
    if ns is not None:
        check_namespace(ns)

    def decorate(target: Any) -> Any:
        fn, kind = unwrap_kind(target, "invalidates")
        signature = Signature(fn, kind)
        compute_keys = [compile_key(fn, kind, *place).function(signature) for place in templates]
        compiled = compile_tags(fn, kind, tags)
        compute_tags = compiled.known.function(signature)
        late = compiled.late

        def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[str], list[str]]:
            return [k(*args, **kwargs) for k in compute_keys], list(compute_tags(*args, **kwargs))

        def affected(
            before: tuple[list[str], list[str]], args: tuple[Any, ...], kwargs: dict[str, Any], *result: Any
        ) -> tuple[dict[str, None], dict[str, None], Exception | None]:
            """What to drop, and what went wrong in naming it: the rest is dropped before that is raised."""
            keys, tags = dict.fromkeys(before[0]), dict.fromkeys(before[1])
            try:
                # The function may change what the templates look at: an author's feeds, old and new.
                keys_after, tags_after = named(args, kwargs)
                keys.update(dict.fromkeys(keys_after))
                tags.update(dict.fromkeys(tags_after))
                if late is not None and result:
                    tags.update(dict.fromkeys(late(*result, *args, **kwargs)))
            except Exception as error:
                error.add_note(
                    f"in naming what @invalidates on {name_of(fn)} drops: it has run, and the rest is dropped"
                )
                return keys, tags, error
            return keys, tags, None

        def sync(wrapped: Fn, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            everything = whole_args(kind, instance, args)
            before = named(everything, kwargs)
            try:
                result = wrapped(*args, **kwargs)
            except BaseException:  # interrupted, it may have written all the same
                if on_error:
                    keys, tags, _ = affected(before, everything, kwargs)
                    source().invalidate(keys=keys, tags=tags)
                raise
            keys, tags, wrong = affected(before, everything, kwargs, result)
            source().invalidate(keys=keys, tags=tags)
            if wrong is not None:
                raise wrong
            return result

        async def asynchronous(
            wrapped: Fn, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            everything = whole_args(kind, instance, args)
            before = named(everything, kwargs)
            try:
                result = await wrapped(*args, **kwargs)
            except BaseException:
                if on_error:
                    keys, tags, _ = affected(before, everything, kwargs)
                    await source().ainvalidate(keys=keys, tags=tags)
                raise
            keys, tags, wrong = affected(before, everything, kwargs, result)
            await source().ainvalidate(keys=keys, tags=tags)
            if wrong is not None:
                raise wrong
            return result

        return Writer(rebound(fn, kind), asynchronous if is_async(fn) else sync)

    return cast(SameDecorator, decorate)


def updates_decorator(
    source: Callable[[], Cache],
    *,
    ns: str | None,
    key: str | Key[...],
    options: UpdatesOptions,
) -> SameDecorator:
    """The decorator behind ``updates`` on the default cache and on a ``Cache``."""
    place, template, given = placed("updates", ns, key, options)
    check_namespace(place)
    chosen = Options("updates", given, UpdatesOptions)

    def decorate(target: Any) -> Any:
        fn, kind = unwrap_kind(target, "updates")
        plan = Plan(fn, kind, ns=place, key=template, options=chosen, source=source)

        def run(wrapped: Fn, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            cache, site = plan.bound()
            transaction = cache.collecting()
            if transaction is not None:
                # Not committed yet: what others may read is dropped when it is, and loaded then.
                transaction.add((plan.compute_key(*whole_args(kind, instance, args), **kwargs),), ())
                return wrapped(*args, **kwargs)
            call = plan.call(whole_args(kind, instance, args), kwargs)
            call.load = functools.partial(wrapped, *args, **kwargs)

            def flow() -> Any:
                return (yield from put(site, call, cache.invalidation_timeout))[0]

            return plan.drive(cache, site, flow(), call, "update")

        return Writer(rebound(fn, kind), run)

    return cast(SameDecorator, decorate)
