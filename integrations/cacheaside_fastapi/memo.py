"""One request, one value for each key: ``memo(posts.get, 7)``, for whoever asks for the memo."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, ParamSpec, TypeVar, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from cacheaside import ConfigError
from cacheaside.decorators import Handles

P = ParamSpec("P")
T = TypeVar("T")

PLACE: Final = "cacheaside.memo"


class Memo:
    """What cached functions have answered in one request; it ends with the request.

    A key that was asked for through it has the same value until the end of the request, whatever others
    invalidate meanwhile, so that a check and what follows from it speak of the same thing. What this request
    writes itself is seen after ``forget()``. An error is not remembered.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, str], Any] = {}

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a cached function or method, sync or async, once for each key.

        Raises ConfigError for what is no function that ``cached`` has decorated.
        """
        if not isinstance(function, Handles):
            raise ConfigError(f"memo calls functions that cached has decorated, and {function!r} is none")
        cached: Any = function
        plan, _ = cached._cacheaside()
        place = (id(plan.bound()[0]), cached.key(*args, **kwargs))
        values, shared = self._values, plan.codec.shareable
        answer = self._alater if plan.is_async else self._at_once
        return cast(T, answer(values, place, shared, lambda: cached(*args, **kwargs)))

    def forget(self) -> None:
        """Ask the cache again from now on: after a write of this request."""
        self._values = {}

    def _at_once(self, values: dict[Any, Any], place: Any, shared: bool, ask: Callable[[], Any]) -> Any:
        if place not in values:
            values.setdefault(place, ask())  # who was first, if another thread of the request was
        return own(values[place], shared)

    async def _alater(
        self, values: dict[Any, Any], place: Any, shared: bool, ask: Callable[[], Awaitable[Any]]
    ) -> Any:
        if place not in values:
            values.setdefault(place, await ask())
        return own(values[place], shared)


def own(value: Any, shared: bool) -> Any:
    """What callers may change is each caller's own."""
    return value if shared else copy.deepcopy(value)


# Async, for FastAPI would send a plain function to a thread. In the scope, which is the request's alone: a
# context variable would be seen by tasks that outlive it.
async def request_memo(connection: HTTPConnection) -> Memo:
    """The memo of this request or websocket."""
    memo: Memo = connection.scope.setdefault(PLACE, Memo())
    return memo


MemoDep = Annotated[Memo, Depends(request_memo)]
"""The type of an endpoint's, or a dependency's, parameter that takes the request's memo."""
