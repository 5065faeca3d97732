"""``@cached``: what a decorated function is at run time.

Each is a class of its own, whose ``__call__`` its plan compiles when the first call binds it to a cache.
"""

from __future__ import annotations

import copy
import functools
import inspect
import string
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self, cast

import wrapt

from cacheaside.errors import ConfigError
from cacheaside.faces import CacheDecorator
from cacheaside.keys import Kind, check_namespace
from cacheaside.keyspace import Key, placed
from cacheaside.options import CachedOptions, Options
from cacheaside.plan import Fn, Plan

if TYPE_CHECKING:
    from cacheaside.cache import Cache

if TYPE_CHECKING:

    class _Proxy(wrapt.ObjectProxy[Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...  # made for each function

else:
    _Proxy = wrapt.ObjectProxy


def unwrap_kind(fn: Any, decorator: str) -> tuple[Fn, Kind]:
    """The function inside ``fn``, and how it is bound; ConfigError for what cannot be decorated."""
    if isinstance(fn, staticmethod):
        return checked(cast(Any, fn).__func__, decorator), Kind.STATICMETHOD
    if isinstance(fn, classmethod):
        return checked(cast(Any, fn).__func__, decorator), Kind.CLASSMETHOD
    checked(fn, decorator)
    outer = fn.__qualname__.rpartition(".")[0]
    if not outer or outer.endswith("<locals>"):
        return fn, Kind.FUNCTION
    first = next(iter(inspect.signature(fn).parameters), None)
    if first == "cls":
        raise ConfigError(
            f"@{decorator} on {fn.__qualname__}: put @{decorator} above @classmethod, not below it"
        )
    return fn, Kind.METHOD if first == "self" else Kind.FUNCTION


def checked(fn: Any, decorator: str) -> Fn:
    if isinstance(fn, property) or not callable(fn) or not hasattr(fn, "__qualname__"):
        raise ConfigError(f"@{decorator} goes on a function or method, not on {fn!r}")
    if inspect.isclass(fn):
        raise ConfigError(f"@{decorator} goes on a function or method, not on the class {fn.__qualname__}")
    inner = inspect.unwrap(fn)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(
            f"@{decorator} on {fn.__qualname__}: it is a generator, which can be consumed only once; "
            "return a list"
        )
    return cast(Fn, fn)


class Handle:
    """A method of the plan, offered by the function and by what binding makes of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        plan, bound = instance._cacheaside()
        return functools.partial(getattr(plan, self.name), bound)


class Handles:
    """What can be asked of a cached function or method beside calling it; see ``faces.Cached``."""

    # No annotations here: they would become the function's own and hide those that it has.
    __slots__ = ()

    key = Handle("key")
    tags = Handle("tags")
    peek = Handle("peek")
    refresh = Handle("refresh")
    invalidate = Handle("invalidate")
    put = Handle("put")
    explain = Handle("explain")
    uncached = Handle("uncached")
    warm = Handle("warm")


# A cached method of one object or class: a partial, for Python binds nothing faster. A comment, for a
# docstring would stand in the place of the method's.
class ByName:
    """Copied as itself and pickled by its name, as functions are."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return cast(str, cast(Any, self).__qualname__)

    def __reduce_ex__(self, protocol: Any) -> str:
        return self.__reduce__()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


class ByReceiver:
    """Copied and pickled as its object and its name, as methods are."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return getattr, (cast(Any, self).__self__, cast(Any, self).__name__)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(copy.deepcopy(cast(Any, self).__self__, memo), cast(Any, self).__name__)


class Bound(Handles, ByReceiver, functools.partial[Any]):
    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        doc: str | None = self._function.__doc__
        return doc

    @property
    def _function(self) -> CachedFunction:
        return cast(CachedFunction, self.func)

    def _cacheaside(self) -> tuple[Plan, tuple[Any, ...]]:
        # wrapt keeps an attribute of its own only under such a name.
        return self._function._self_plan, self.args  # pyright: ignore[reportPrivateUsage]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    @property
    def __wrapped__(self) -> Any:
        return self._function.__wrapped__.__get__(self.args[0])

    @property
    def __self__(self) -> Any:
        return self.args[0]

    def __repr__(self) -> str:
        return f"<cached method {self._function.__qualname__} of {self.args[0]!r}>"


class CachedFunction(Handles, ByName, _Proxy):
    """A cached function; each has a subclass of its own, whose ``__call__`` is compiled for it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.fn)
        self._self_plan = plan

    def _cacheaside(self) -> tuple[Plan, tuple[Any, ...]]:
        return self._self_plan, ()

    @property
    def cache(self) -> Any:
        """The cache that this function is bound to."""
        return self._self_plan.bound()[0]

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else Bound(self, instance)

    def __repr__(self) -> str:
        return f"<cached {self._self_plan.fn!r}>"


def make_cached(plan: Plan) -> CachedFunction:
    """The decorated function: binds and compiles itself at its first call, and again when unbound."""
    own: Any = type("cached", (CachedFunction,), BINDING.get(plan.kind, {}))

    def first(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        bound = plan.bound()
        compiled = plan.compile()
        with plan.lock:
            if plan.is_bound(bound):
                own.__call__ = compiled
        return compiled(self, *args, **kwargs)

    def unbound() -> None:
        own.__call__ = first

    own.__call__ = first
    plan.on_unbind = unbound
    function: CachedFunction = own(plan)
    return function


def bind_class(self: Any, instance: Any, owner: Any = None) -> Any:
    return Bound(self, type(instance) if owner is None else owner)


def bind_nothing(self: Any, instance: Any, owner: Any = None) -> Any:
    return self


BINDING: Final = {Kind.CLASSMETHOD: {"__get__": bind_class}, Kind.STATICMETHOD: {"__get__": bind_nothing}}
"""How what is no method binds: chosen once, since a method call pays for every branch."""


# Which function owns a key template, so that two cannot write each other's entries unawares.
_claims: weakref.WeakValueDictionary[tuple[Any, str, str, str], Any] = weakref.WeakValueDictionary()


def claim(scope: Any, role: str, ns: str, key: str | None, shape: str, function: Any, fn: Fn) -> None:
    """Refuse a second function of this role with the same keys; reloading the same one is fine."""
    if key is None:
        return
    name = (scope, role, ns, shape)
    owner = _claims.get(name)
    mine = (fn.__module__, fn.__qualname__)
    if owner is not None:
        there = owner._self_plan.fn
        if (there.__module__, there.__qualname__) != mine:
            raise ConfigError(
                f"key={key!r} in ns={ns!r} belongs to {there.__module__}.{there.__qualname__} already: two "
                "functions with one key would answer for each other; change the key, or call the other one"
            )
    _claims[name] = function


def cached_decorator(
    source: Callable[[], Cache],
    scope: Any,
    *,
    ns: str | None,
    key: str | Key[...] | None,
    options: CachedOptions,
) -> CacheDecorator:
    """The decorator behind ``cached`` on the default cache and on a ``Cache``."""
    place, template, given = placed("cached", ns, key, options)
    check_namespace(place)
    chosen = Options("cached", given, CachedOptions)

    def decorate(target: Any) -> Any:
        fn, kind = unwrap_kind(target, "cached")
        plan = Plan(fn, kind, ns=place, key=template, options=chosen, source=source)
        function = make_cached(plan)
        claim(scope, "cached", place, template, shape_of(template), function, fn)
        return function

    return cast(CacheDecorator, decorate)


def shape_of(key: str | None) -> str:
    """A template with its fields unnamed: ``post:{id}`` and ``post:{post.id}`` write the same keys."""
    if key is None:
        return ""
    return "".join(
        literal + ("{}" if field is not None else "")
        for literal, field, _, _ in string.Formatter().parse(key)
    )
