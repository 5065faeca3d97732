"""Policy: the options of one decorated function, validated once and frozen. All times in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal, cast

from msgspec import Struct

from cacheaside.errors import ConfigError

Seconds = float | int | timedelta
Ttl = Seconds | Callable[[Any], Seconds]

MAX_TTL: Final = 10 * 365 * 86400.0
"""Ten years: what is longer is taken for a mistake (milliseconds, a date) and refused."""

FOREVER: Final = MAX_TTL
"""The ttl of what has none: ten years, if there is room so long. Nothing is stored without an end."""


class Policy(Struct, frozen=True, kw_only=True):
    """How one function is cached; ``make_policy`` makes it, and has the defaults."""

    ns: str
    ttl: float | Callable[[Any], Seconds]
    l1: bool
    l1_ttl: float
    l2: bool
    stale_while_revalidate: float
    stale_if_error: float
    jitter: float
    early_refresh: float | None
    negative_ttl: float | None
    cache_if: Callable[[Any], bool] | None
    refresh: Literal["inline", "background"]
    soft_timeout: float | None
    hard_timeout: float | None
    lease_ttl: float
    wait_timeout: float

    @property
    def kept(self) -> float:
        """How long past its ttl a value is kept for stale answers."""
        return max(self.stale_while_revalidate, self.stale_if_error)

    def ttl_of(self, result: Any) -> float:
        """The ttl of a result; 0 when it is not to be stored."""
        if result is None and self.negative_ttl is not None:
            return self.negative_ttl
        if callable(self.ttl):
            return seconds("ttl", self.ttl(result), zero=True)
        return self.ttl


def seconds(name: str, value: Any, *, zero: bool = False) -> float:
    """``value`` as seconds, or a ConfigError that names the parameter.

    Args:
        zero: whether 0 is allowed.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigError(f"{name} must be seconds (a number or a timedelta), not {value!r}")
    if value < 0 or (value == 0 and not zero):
        wanted = "0 or more" if zero else "more than 0"
        raise ConfigError(f"{name} must be {wanted} seconds, not {value!r}")
    if value > MAX_TTL:
        raise ConfigError(
            f"{name} must be at most ten years ({MAX_TTL:.0f} s), not {value!r}; is it in milliseconds?"
        )
    return float(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """``value`` as a number in [low, high], or a ConfigError that names the parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
    return float(value)


def make_policy(
    *,
    ns: str,
    ttl: Ttl,
    l1: bool | Seconds = True,
    l2: bool = True,
    stale_while_revalidate: Seconds = 0,
    stale_if_error: Seconds = 0,
    jitter: float = 0.05,
    early_refresh: float | None = None,
    negative_ttl: Seconds | None = None,
    cache_if: Callable[[Any], bool] | None = None,
    refresh: str = "inline",
    load_timeout: Seconds | tuple[Seconds | None, Seconds | None] | None = None,
    lease_ttl: Seconds = 3,
    wait_timeout: Seconds = 5,
) -> Policy:
    """Check every option of a decorator; raises ConfigError naming the one that is wrong."""
    if not isinstance(l2, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"l2 must be True or False, not {l2!r}")
    if l1 is False and not l2:
        raise ConfigError("l1=False and l2=False leave nothing to cache in; drop the decorator instead")
    if refresh not in ("inline", "background"):
        raise ConfigError(f'refresh must be "inline" or "background", not {refresh!r}')
    if cache_if is not None and not callable(cache_if):
        raise ConfigError(f"cache_if must be a function of the result, not {cache_if!r}")
    soft, hard = _timeouts(load_timeout)
    return Policy(
        ns=ns,
        ttl=ttl if callable(ttl) else seconds("ttl", ttl),
        l1=l1 is not False,
        l1_ttl=math.inf if isinstance(l1, bool) else seconds("l1", l1),
        l2=l2,
        stale_while_revalidate=seconds("stale_while_revalidate", stale_while_revalidate, zero=True),
        stale_if_error=seconds("stale_if_error", stale_if_error, zero=True),
        jitter=number("jitter", jitter, 0, 0.9),
        early_refresh=None if early_refresh is None else number("early_refresh", early_refresh, 0, 100),
        negative_ttl=None if negative_ttl is None else seconds("negative_ttl", negative_ttl, zero=True),
        cache_if=cache_if,
        refresh="background" if refresh == "background" else "inline",
        soft_timeout=soft,
        hard_timeout=hard,
        lease_ttl=seconds("lease_ttl", lease_ttl),
        wait_timeout=seconds("wait_timeout", wait_timeout, zero=True),
    )


def _timeouts(value: Any) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    if not isinstance(value, tuple):
        return None, seconds("load_timeout", value)
    pair = cast("tuple[object, ...]", value)
    if len(pair) != 2:
        raise ConfigError(f"load_timeout must be seconds or (soft, hard), not {value!r}")
    soft = None if pair[0] is None else seconds("load_timeout soft", pair[0])
    hard = None if pair[1] is None else seconds("load_timeout hard", pair[1])
    if soft is not None and hard is not None and soft >= hard:
        raise ConfigError(f"load_timeout: the soft one ({soft:g}) must be below the hard one ({hard:g})")
    return soft, hard
