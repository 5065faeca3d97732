"""The default cache, and the decorators on it: repositories import freely, ``configure`` comes later."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final, Unpack, overload

from cacheaside.cache import Cache
from cacheaside.decorators import cached_decorator
from cacheaside.faces import CacheDecorator, ManyDecorator, SameDecorator, as_made_by
from cacheaside.fork import renew_after_fork
from cacheaside.keyspace import Key
from cacheaside.many import cached_many_decorator
from cacheaside.options import CachedOptions, ManyOptions, TagTemplates, UpdatesOptions, refuse_bare
from cacheaside.writers import invalidates_decorator, updates_decorator

_cache: Cache | None = None

SCOPE: Final = "default"


class _Turn:
    """Whose turn it is to change the default cache."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self.lock = threading.Lock()


_turn: Final = _Turn()


def default_cache() -> Cache:
    """The cache of the module-level decorators; made from ``CACHEASIDE_URL`` if nobody configured one.

    Raises ConfigError for a wrong URL there.
    """
    global _cache
    cache = _cache
    if cache is None:
        with _turn.lock:
            if _cache is None:
                _cache = Cache()
            cache = _cache
    return cache


@as_made_by(Cache)
def configure(url: str | Cache | None = None, **settings: Any) -> Cache:
    """Make the default cache: a URL and the settings of ``Cache``, or a ready ``Cache``.

    Functions that were called before are bound anew at their next call. The cache that was the default
    until now is not closed: its owner may be using it still. Raises ConfigError as ``Cache`` does.
    """
    if isinstance(url, Cache) and settings:
        raise TypeError(f"a ready Cache takes no settings: {', '.join(settings)}")
    cache = url if isinstance(url, Cache) else Cache(url, **settings)
    _replace(cache)
    return cache


@contextmanager
def as_default(cache: Cache) -> Generator[Cache]:
    """Make it the default cache for a block, as a test does; then the one before is, or there is none."""
    old = _replace(cache)
    try:
        yield cache
    finally:
        _replace(old)


def _replace(cache: Cache | None) -> Cache | None:
    """Make another cache, or none yet, the default; the one that was."""
    global _cache
    with _turn.lock:
        old, _cache = _cache, cache
    if old is not None:
        for plan in list(old.bound_here):
            if plan.default:
                plan.unbind()
    return old


@overload
def cached(*, ns: str, key: str | None = None, **options: Unpack[CachedOptions]) -> CacheDecorator: ...
@overload
def cached(*, ns: str | None = None, key: Key[...], **options: Unpack[CachedOptions]) -> CacheDecorator: ...
def cached(
    *bare: object,
    ns: str | None = None,
    key: str | Key[...] | None = None,
    **options: Unpack[CachedOptions],
) -> CacheDecorator:
    """Cache what the decorated function returns. All times are seconds, numbers or timedelta.

    Args:
        ns: the namespace, first part of the key.
        key: the rest of the key, a template over the arguments such as ``"feed:{user_id}"``; without
            one, the function's qualified name and a hash of all arguments. A ``Key`` of a ``Keyspace``
            brings its namespace, ttl and tags, unless others are given.
        ttl: how long a result is fresh, or a function of the result; default: the cache's.
        tags: templates over the arguments and ``{result...}``, or a function of them; an
            ``invalidates`` of any tag drops the entry.
        l1: False keeps the results out of this process's memory; a number caps their stay there.
        l2: False keeps them out of Redis: each process loads and keeps its own, in L1.
        stale_while_revalidate: how long past its ttl a value is still served while one caller renews it.
        stale_if_error: how long past its ttl a value is served when the function raises.
        jitter: up to this share of the ttl is taken off at random, so that entries do not end together.
        early_refresh: XFetch's beta; renews a value before its end, the sooner the costlier it is.
        negative_ttl: the ttl of None; 0 does not cache it. Default: as any result.
        cache_if: results for which this is false are returned and not stored.
        refresh: ``"inline"``: the caller chosen to renew a stale value does it before it returns;
            ``"background"``: in a worker; its loader must bring its own session.
        load_timeout: the hard limit, or (soft, hard): after the soft one a stale value is served.
        lease_ttl: how long a loader that died keeps others waiting; renewed while it lives.
        wait_timeout: how long a caller waits for another one's load before it loads for itself.
        codec: ``"msgpack"``, ``"json"``, ``"pickle"`` or a serializer.
        version: raise it when the meaning of the results changes and their type does not.
        share: overrules whether L1 may hand the same object to all callers.

    Raises ConfigError, KeyTemplateError or CodecError where the decorator stands.
    """
    refuse_bare("cached", bare)
    return cached_decorator(default_cache, SCOPE, ns=ns, key=key, options=options)


@overload
def cached_many(*, ns: str, key: str, **options: Unpack[ManyOptions]) -> ManyDecorator: ...
@overload
def cached_many(*, ns: str | None = None, key: Key[...], **options: Unpack[ManyOptions]) -> ManyDecorator: ...
def cached_many(
    *, ns: str | None = None, key: str | Key[...], **options: Unpack[ManyOptions]
) -> ManyDecorator:
    """Cache a function of many ids by single id: partial hits, one load of what is missing.

    The first parameter takes the ids; the function returns a dict by id; ids that it leaves out are
    remembered as absent. ``key`` names one id: ``"post:{id}"``. Other options as for ``cached``, without
    ``stale_while_revalidate``, ``early_refresh`` and ``refresh``.

    Raises ConfigError, KeyTemplateError or CodecError where the decorator stands.
    """
    return cached_many_decorator(default_cache, SCOPE, ns=ns, key=key, options=options)


def invalidates(
    *,
    tags: TagTemplates = (),
    keys: Iterable[str | Key[...]] = (),
    ns: str | None = None,
    on_error: bool = False,
) -> SameDecorator:
    """Invalidate after the decorated function has succeeded; in a transaction, when that has.

    Args:
        tags: templates over the arguments and ``{result...}``, or a function of them.
        keys: key templates in ``ns``, over the arguments, or ``Key`` objects with their own namespace.
        on_error: also when the function raises; what names the result is left out then.

    Raises KeyTemplateError or ConfigError where the decorator stands. A call raises
    InvalidationNotAcknowledged where the cache was made with ``on_unacknowledged="raise"``.
    """
    return invalidates_decorator(default_cache, tags=tags, keys=keys, ns=ns, on_error=on_error)


@overload
def updates(*, ns: str, key: str, **options: Unpack[UpdatesOptions]) -> SameDecorator: ...
@overload
def updates(*, ns: str | None = None, key: Key[...], **options: Unpack[UpdatesOptions]) -> SameDecorator: ...
def updates(
    *, ns: str | None = None, key: str | Key[...], **options: Unpack[UpdatesOptions]
) -> SameDecorator:
    """Run the decorated function and make its result the value of ``key``.

    ``ns``, ``key``, ``ttl``, ``tags``, ``jitter``, ``negative_ttl``, ``cache_if``, ``codec`` and
    ``version`` as for ``cached``; tags, annotation and version must be those of the function that reads
    the key, or it will not believe the entry.

    Raises ConfigError, KeyTemplateError or CodecError where the decorator stands.
    """
    return updates_decorator(default_cache, ns=ns, key=key, options=options)
