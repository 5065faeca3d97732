"""What type checkers see of a decorated function: its own signature, and the handles beside it.

A ``Protocol`` each for functions and for coroutine functions, of one value and of many; the overloads of
``__get__`` take the receiver off a method's parameters, as Python's own binding does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast, overload

from cacheaside.missing import Missing

if TYPE_CHECKING:
    from cacheaside.cache import Cache
    from cacheaside.engine.write import Receipt

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
U = TypeVar("U")
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
K = TypeVar("K")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])


class Bindable(Protocol[S_contra, Q, R_co]):
    """A function whose first parameter takes a receiver."""

    def __call__(self, receiver: S_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...


class Cached(Protocol[P, R]):
    """A cached function: call it as before, or ask it about its cache with the same arguments."""

    @property
    def cache(self) -> Cache: ...
    @property
    def __wrapped__(self) -> Callable[P, R]: ...
    @property
    def __name__(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of this call, ``ns:rest``, without the cache's prefix."""
        ...

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
        """The tags that the arguments determine."""
        ...

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R | Missing:
        """The cached value if there is a fresh one, else ``MISSING``; never calls the function."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now, store its result and return it."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Drop the entry of this call everywhere."""
        ...

    def put(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store ``value`` as the result of this call; False if it was not stored."""
        ...

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """In words: which tier holds this call's entry, its age, and why a read would hit or miss."""
        ...

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself: nothing is read and nothing stored."""
        ...

    def warm(self, calls: Iterable[Any], /) -> int:
        """Make each call, given as a tuple of arguments, a dict of them or a lone argument; how many."""
        ...

    @overload  # a method, through an instance
    def __get__(self: Bindable[S, Q, T], instance: S, owner: type[Any] | None = None, /) -> Cached[Q, T]: ...
    @overload  # a classmethod, through the class
    def __get__(self: Bindable[type[S], Q, T], instance: None, owner: type[S], /) -> Cached[Q, T]: ...
    @overload  # a classmethod, through an instance
    def __get__(
        self: Bindable[type[S], Q, T], instance: S, owner: type[Any] | None = None, /
    ) -> Cached[Q, T]: ...
    @overload  # a method through the class, a staticmethod through either
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> Cached[P, R]: ...


class AsyncCached(Protocol[P, R]):
    """A cached ``async def`` function: as ``Cached``, with awaitable answers."""

    @property
    def cache(self) -> Cache: ...
    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @property
    def __name__(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def tags(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R | Missing]: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Receipt]: ...
    def put(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, bool]: ...
    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, str]: ...
    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    def warm(self, calls: Iterable[Any], /) -> Coroutine[Any, Any, int]: ...

    @overload
    def __get__(
        self: Bindable[S, Q, Coroutine[Any, Any, T]],
        instance: S,
        owner: type[Any] | None = None,
        /,
    ) -> AsyncCached[Q, T]: ...
    @overload
    def __get__(
        self: Bindable[type[S], Q, Coroutine[Any, Any, T]], instance: None, owner: type[S], /
    ) -> AsyncCached[Q, T]: ...
    @overload
    def __get__(
        self: Bindable[type[S], Q, Coroutine[Any, Any, T]],
        instance: S,
        owner: type[Any] | None = None,
        /,
    ) -> AsyncCached[Q, T]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> AsyncCached[P, R]: ...


class CachedMany(Protocol[P, K, V]):
    """A function of many ids, cached by single id. Handles take one id, or all that the function takes."""

    @property
    def cache(self) -> Cache: ...
    @property
    def __wrapped__(self) -> Callable[P, Mapping[K, V]]: ...
    @property
    def __name__(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]: ...
    def key(self, one: K, /, *args: Any, **kwargs: Any) -> str:
        """The key of one id."""
        ...

    def tags(self, one: K, /, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """The tags of one id."""
        ...

    def peek(self, one: K, /, *args: Any, **kwargs: Any) -> V | Missing | None:
        """The cached value of one id; None if it is remembered as absent, ``MISSING`` if nothing is known."""
        ...

    def explain(self, one: K, /, *args: Any, **kwargs: Any) -> str:
        """In words, where the value of one id is and why a read would hit or miss."""
        ...

    def put(self, value: V | None, one: K, /, *args: Any, **kwargs: Any) -> bool:
        """Store the value of one id, or None if there is none."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Drop the entries of the ids."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Load the ids now and store what comes."""
        ...

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Mapping[K, V]:
        """Call the function itself: nothing is read and nothing stored."""
        ...

    def warm(self, ids: Iterable[K], /) -> int:
        """Read the ids, loading what is missing; how many there are."""
        ...

    @overload
    def __get__(
        self: Bindable[S, Q, dict[T, U]], instance: S, owner: type[Any] | None = None, /
    ) -> CachedMany[Q, T, U]: ...
    @overload
    def __get__(
        self: Bindable[type[S], Q, dict[T, U]], instance: None, owner: type[S], /
    ) -> CachedMany[Q, T, U]: ...
    @overload
    def __get__(
        self: Bindable[type[S], Q, dict[T, U]], instance: S, owner: type[Any] | None = None, /
    ) -> CachedMany[Q, T, U]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> CachedMany[P, K, V]: ...


class AsyncCachedMany(Protocol[P, K, V]):
    """An ``async def`` function of many ids: as ``CachedMany``, with awaitable answers."""

    @property
    def cache(self) -> Cache: ...
    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, Mapping[K, V]]]: ...
    @property
    def __name__(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, dict[K, V]]: ...
    def key(self, one: K, /, *args: Any, **kwargs: Any) -> str: ...
    def tags(self, one: K, /, *args: Any, **kwargs: Any) -> tuple[str, ...]: ...
    def peek(self, one: K, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, V | Missing | None]: ...
    def explain(self, one: K, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, str]: ...
    def put(self, value: V | None, one: K, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, bool]: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Receipt]: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, dict[K, V]]: ...
    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Mapping[K, V]]: ...
    def warm(self, ids: Iterable[K], /) -> Coroutine[Any, Any, int]: ...

    @overload
    def __get__(
        self: Bindable[S, Q, Coroutine[Any, Any, dict[T, U]]],
        instance: S,
        owner: type[Any] | None = None,
        /,
    ) -> AsyncCachedMany[Q, T, U]: ...
    @overload
    def __get__(
        self: Bindable[type[S], Q, Coroutine[Any, Any, dict[T, U]]],
        instance: None,
        owner: type[S],
        /,
    ) -> AsyncCachedMany[Q, T, U]: ...
    @overload
    def __get__(
        self: Bindable[type[S], Q, Coroutine[Any, Any, dict[T, U]]],
        instance: S,
        owner: type[Any] | None = None,
        /,
    ) -> AsyncCachedMany[Q, T, U]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> AsyncCachedMany[P, K, V]: ...


class CacheDecorator(Protocol):
    """What ``cached(...)`` returns: give it the function."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCached[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Cached[P, R]: ...


class ManyDecorator(Protocol):
    """What ``cached_many(...)`` returns: give it the function."""

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, Mapping[K, V]]], /
    ) -> AsyncCachedMany[P, K, V]: ...
    @overload
    def __call__(self, fn: Callable[P, Mapping[K, V]], /) -> CachedMany[P, K, V]: ...


class Configure(Protocol[P]):
    """``configure``: a ready cache, or what makes one."""

    @overload
    def __call__(self, cache: Cache, /) -> Cache: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Cache: ...


def as_made_by(make: Callable[P, Cache]) -> Callable[[Callable[..., Cache]], Configure[P]]:
    """Type ``configure`` by the parameters of ``make``, which so are written once."""
    return lambda configure: cast("Configure[P]", configure)


class SameDecorator(Protocol):
    """What ``invalidates(...)`` and ``updates(...)`` return: the function keeps its type."""

    def __call__(self, fn: F, /) -> F: ...
