"""Advice: a line in the log for a setting that hurts, once in a process for each kind.

Nothing here changes what is done. What has to be asked of Redis is asked beside the work that gave rise to
it, once.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from cacheaside.engine.commands import Flow, Lock, Renew, Run, Spawn
from cacheaside.errors import StoreUnavailable
from cacheaside.stores.program import Program

if TYPE_CHECKING:
    from cacheaside.cache import Cache
    from cacheaside.engine.call import Site, World
    from cacheaside.templates import Signature

log = logging.getLogger("cacheaside")

SOME: Final = 256
"""Results stored in a namespace, after which it is asked who else stores there."""
MANY: Final = 8192
"""Results stored in a namespace that make it a big one. Both are powers of two."""
REMEMBERED: Final = 86_400.0
"""Seconds for which it is known who stores in a namespace."""

L1_WITHOUT_CHANNEL: Final = "l1-without-channel"
TIMEOUT_ABOVE_LEASE: Final = "load-timeout-above-lease"
NO_JITTER: Final = "no-jitter"
SHARED_PREFIX: Final = "shared-prefix"
EVICTING: Final = "evicting"

KINDS: Final = (L1_WITHOUT_CHANNEL, TIMEOUT_ABOVE_LEASE, NO_JITTER, SHARED_PREFIX, EVICTING)

# Where the server has no INFO for scripts there is no advice.
MEMORY: Final = Program("cacheaside.stores", "memory", lambda room, keys, args: None)

TELLS_APART: Final = re.compile(r"(int|str|(uuid\.)?UUID)( \| None)?$")
"""Types, as they are written, of parameters by which calls of one function differ."""

_said: set[str] = set()
_asked: WeakSet[Any] = WeakSet()


def advise(kind: str, message: str, *args: object) -> None:
    """Say it, unless one of its kind was said."""
    if kind not in _said:
        _said.add(kind)
        log.warning(message, *args)


# -- when a function is decorated


def key_names_nothing(fn: Callable[..., Any], signature: Signature, key: str | None) -> None:
    """Look at a key without fields: of a function that is told of one thing or another, that is a slip."""
    if key is None or "{" in key:
        return
    tell_apart = [name for name, kind in signature.annotations.items() if TELLS_APART.match(in_source(kind))]
    if tell_apart:
        log.warning(
            "%s.%s: key=%r names none of its parameters, so all calls have one entry, whatever %s is; "
            "write key=%r, or no key at all",
            fn.__module__, fn.__qualname__, key, " or ".join(tell_apart),
            ":".join([key, *(f"{{{name}}}" for name in tell_apart)]),
        )  # fmt: skip


def in_source(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


# -- when a function meets its cache


def binding(cache: Cache, fn: Callable[..., Any], wanted: Any, site: Site) -> None:
    """Look at the settings of a function. ``wanted`` is the ``l1`` that it was given, None for none."""
    if cache.endpoint is None:
        return
    name, policy = f"{fn.__module__}.{fn.__qualname__}", site.policy
    if cache.near is None and wanted is not None and wanted is not False:
        advise(
            L1_WITHOUT_CHANNEL,
            "%s asks for l1=%r, and %r has none: beside Redis, L1 needs the cache's l1_window=",
            name, wanted, cache,
        )  # fmt: skip
    hard = policy.hard_timeout
    if hard is not None and hard > policy.lease_ttl:
        advise(
            TIMEOUT_ABOVE_LEASE,
            "%s may load for %g s (load_timeout) on a lease of %g s (lease_ttl): if its process stalls, "
            "another load begins beside its own; give lease_ttl as much as load_timeout",
            name, hard, policy.lease_ttl,
        )  # fmt: skip


# -- when a namespace grows


def grown(world: World, site: Site, stored: int) -> Flow[None] | None:
    """Look at a namespace in which so many results were stored; what is to be asked about it."""
    if stored == MANY and site.policy.jitter == 0 and site.app:
        advise(
            NO_JITTER,
            "%d results of %r are stored with jitter=0: what is stored at once ends at once, and is loaded "
            "again all together; the default is 0.05",
            stored, site.policy.ns,
        )  # fmt: skip
    return shared(world, site) if stored == SOME and site.app else None


def shared(world: World, site: Site) -> Flow[None]:
    """Ask who stores in this namespace: the first to ask is remembered for a day."""
    key, here = world.keys.companion(site.policy.ns, "app"), site.app.encode()
    with suppress(StoreUnavailable):
        there: bytes | None = yield Lock(key, here, REMEMBERED)
        if there is None or there == here:
            yield Renew(((key, here),), REMEMBERED)
            return
        advise(
            SHARED_PREFIX,
            "functions of %r store in the namespace %r, and of %r do in another process with the prefix %r: "
            "two applications are answered with each other's values; give each a prefix of its own",
            site.app, site.policy.ns, there.decode("utf-8", "replace"), world.keys.prefix,
        )  # fmt: skip


def app_of(fn: Callable[..., Any]) -> str:
    """Whose function it is: its top package, or the file of a script; "" where that is not known."""
    top = fn.__module__.partition(".")[0]
    if top != "__main__":
        return top
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m shop.worker
        return str(spec.name).partition(".")[0]
    return str(getattr(main, "__file__", "") or "").rpartition("/")[2].removesuffix(".py")


# -- when something is kept that must not be lost


def keeping(cache: Cache, what: str) -> Flow[None]:
    """Look once, beside the first use of it, whether the server may evict what must not be lost."""
    if cache.endpoint is not None and cache not in _asked:
        _asked.add(cache)
        yield Spawn(evicting(cache, what))


def evicting(cache: Cache, what: str) -> Flow[None]:
    with suppress(StoreUnavailable):
        said: bytes | str | None = yield Run(MEMORY, (cache.world.keys.value("global:memory"),))
        lines = (said.decode("utf-8", "replace") if isinstance(said, bytes) else said or "").splitlines()
        memory = dict(line.split(":", 1) for line in lines if ":" in line)
        policy = memory.get("maxmemory_policy", "noeviction")
        if int(memory.get("maxmemory", 0)) and policy != "noeviction":
            advise(
                EVICTING,
                "%r keeps %s on a server that evicts when it is full (maxmemory-policy %s): that logs users "
                "out and frees locks; keep them on a server with noeviction",
                cache, what, policy,
            )  # fmt: skip
