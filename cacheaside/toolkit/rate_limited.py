"""``@rate_limited``: a call counts as a hit, and what the limiter refuses raises ``RateLimited``."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from cacheaside.decorators import unwrap_kind
from cacheaside.errors import ConfigError, RateLimited
from cacheaside.faces import SameDecorator
from cacheaside.keys import Signature, compile_key
from cacheaside.plan import is_async
from cacheaside.toolkit.ratelimit import Decision, RateLimiter
from cacheaside.writers import Writer, rebound, whole_args

NS = "rate_limit"
"""In the place of the namespace that keys begin with; taken off again."""


def rate_limited(limiter: RateLimiter, *, key: str, cost: int = 1) -> SameDecorator:
    """Let a function or method be called only so often; the function keeps its type.

    Args:
        limiter: counts the calls.
        key: what is limited, a template over the arguments as ``cached`` has: ``"login:{ip}"``. The
            limiter's own methods take the same as ``("login", ip)``.
        cost: how many hits a call counts for.

    A refused call raises RateLimited, whose ``decision`` says when to come back, and does not reach the
    function. Raises ConfigError and KeyTemplateError where the decorator stands.
    """
    if not isinstance(limiter, RateLimiter):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"limiter must be a RateLimiter, not {limiter!r}")
    limiter.check_cost(cost)

    def decorate(target: Any) -> Any:
        fn, kind = unwrap_kind(target, "rate_limited")
        compute = compile_key(fn, kind, NS, key).function(Signature(fn, kind))

        def rendered(instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
            return compute(*whole_args(kind, instance, args), **kwargs).removeprefix(f"{NS}:")

        def refuse(decision: Decision) -> NoReturn:
            raise RateLimited(
                f"{fn.__qualname__} is called too often: {decision.limit} in {decision.window:g} s; "
                f"again in {decision.retry_after:.3g} s",
                decision,
            )

        def sync(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            decision = limiter.hit_rendered(rendered(instance, args, kwargs), cost)
            return wrapped(*args, **kwargs) if decision else refuse(decision)

        async def asynchronous(
            wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            decision = await limiter.ahit_rendered(rendered(instance, args, kwargs), cost)
            return await wrapped(*args, **kwargs) if decision else refuse(decision)

        return Writer(rebound(fn, kind), asynchronous if is_async(fn) else sync)

    return cast(SameDecorator, decorate)
