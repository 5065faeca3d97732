"""Renewing a value that is still there: load, and replace it by compare-and-set, under a lock that is let go.

Who is answered with what meanwhile is decided in read.py.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from cacheaside.engine.call import Call, Site
from cacheaside.engine.commands import (
    Await,
    Begin,
    Command,
    Flow,
    Load,
    Loaded,
    Pending,
    Place,
    Release,
    Renew,
    Spawn,
    Sweep,
)
from cacheaside.engine.fill import attempt, settle, unwrap
from cacheaside.engine.look import Seen, head_of

T = TypeVar("T")

FAILED: Final = b"failed"
"""What stands in a refresh lock after a failed load."""


def rest(timeout: float | None, start: float, now: float) -> float | None:
    return None if timeout is None else max(0.001, timeout - (now - start))


def renew(site: Site, call: Call, seen: Seen, release: Release) -> Flow[tuple[Any] | None]:
    """Load and replace the value by compare-and-set; None when the soft timeout came first.

    After an error the lock says so for one lease: until then others are answered with what there is
    instead of asking a source that has just failed.
    """
    world, policy = site.world, site.policy
    start, began = world.clock(), world.tick()
    keep = Renew(((release.key, release.expected),), policy.lease_ttl)
    loaded = yield from holding(
        site, release, ask(Load(call, keep, policy.soft_timeout, policy.hard_timeout))
    )
    if type(loaded) is Pending:
        yield Spawn(finish(site, call, loaded, start, began, seen, release), "refresh")
        return None
    return ((yield from replace(site, call, loaded, start, seen, release)),)


def finish(
    site: Site, call: Call, pending: Pending, start: float, began: float, seen: Seen, release: Release
) -> Flow[Any]:
    keep = Renew(((release.key, release.expected),), site.policy.lease_ttl)
    left = rest(site.policy.hard_timeout, began, site.world.tick())
    loaded = yield from holding(site, release, ask(Await(pending, left, keep)))
    return (yield from replace(site, call, loaded, start, seen, release))


def replace(site: Site, call: Call, loaded: Loaded, start: float, seen: Seen, release: Release) -> Flow[Any]:
    if loaded.error is not None:
        said = Place(release.key, FAILED, release.expected)
        yield from attempt(site, Begin((said,), (), site.policy.lease_ttl, 0))
    result = unwrap(site, loaded)
    storing = settle(site, call, result, start, head_of(seen.slot), seen, None)  # type: ignore[arg-type]
    yield from holding(site, release, storing)
    yield from let_go(site, release)
    return result


def holding(site: Site, release: Release | Sweep, flow: Flow[T]) -> Flow[T]:
    """Go through ``flow``; cancelled, or failed in a callable of the user's, let go of the lock at once."""
    try:
        return (yield from flow)
    except BaseException:
        yield Spawn(attempt(site, release))
        raise


def let_go(site: Site, release: Release) -> Flow[None]:
    return holding(site, release, attempt(site, release))


def ask(command: Command) -> Flow[Any]:
    return (yield command)
