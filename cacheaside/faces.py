"""What type checkers see of a decorated function: its own signature, and the handles beside it.

A ``Protocol`` each for functions and for coroutine functions; the overloads of ``__get__`` take the
receiver off a method's parameters, as Python's own binding does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from cacheaside.cache import Cache
    from cacheaside.engine.write import Receipt

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)


class Cached(Protocol[P, R_co]):
    """A cached function: call it as before, or ask it about its cache with the same arguments."""

    @property
    def cache(self) -> Cache: ...
    @property
    def __wrapped__(self) -> Callable[P, R_co]: ...
    @property
    def __name__(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of this call, ``ns:rest``, without the cache's prefix."""
        ...

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
        """The tags that the arguments determine."""
        ...

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The cached value if there is a fresh one, else ``MISSING``; never calls the function."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function now, store its result and return it."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Drop the entry of this call everywhere."""
        ...

    def put(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store ``value`` as the result of this call; False if it was not stored."""
        ...

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function itself: nothing is read and nothing stored."""
        ...

    def warm(self, calls: Iterable[Any], /) -> int:
        """Make each call, given as a tuple of arguments, a dict of them or a lone argument; how many."""
        ...

    @overload  # a method, through an instance
    def __get__(
        self: Cached[Concatenate[S, Q], T], instance: S, owner: type[Any] | None = None, /
    ) -> Cached[Q, T]: ...
    @overload  # a classmethod, through the class
    def __get__(
        self: Cached[Concatenate[type[S], Q], T], instance: None, owner: type[S], /
    ) -> Cached[Q, T]: ...
    @overload  # a classmethod, through an instance
    def __get__(
        self: Cached[Concatenate[type[S], Q], T], instance: S, owner: type[Any] | None = None, /
    ) -> Cached[Q, T]: ...
    @overload  # a method through the class, a staticmethod through either
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> Cached[P, R_co]: ...


class AsyncCached(Protocol[P, R_co]):
    """A cached ``async def`` function: as ``Cached``, with awaitable answers."""

    @property
    def cache(self) -> Cache: ...
    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, R_co]]: ...
    @property
    def __name__(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def tags(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Any]: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Receipt]: ...
    def put(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, bool]: ...
    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...
    def warm(self, calls: Iterable[Any], /) -> Coroutine[Any, Any, int]: ...

    @overload
    def __get__(
        self: AsyncCached[Concatenate[S, Q], T], instance: S, owner: type[Any] | None = None, /
    ) -> AsyncCached[Q, T]: ...
    @overload
    def __get__(
        self: AsyncCached[Concatenate[type[S], Q], T], instance: None, owner: type[S], /
    ) -> AsyncCached[Q, T]: ...
    @overload
    def __get__(
        self: AsyncCached[Concatenate[type[S], Q], T], instance: S, owner: type[Any] | None = None, /
    ) -> AsyncCached[Q, T]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> AsyncCached[P, R_co]: ...


class CacheDecorator(Protocol):
    """What ``cached(...)`` returns: give it the function."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCached[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Cached[P, R]: ...


class SameDecorator(Protocol):
    """What ``invalidates(...)`` and ``updates(...)`` return: the function keeps its type."""

    def __call__(self, fn: Callable[P, R], /) -> Callable[P, R]: ...
