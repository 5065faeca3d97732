"""``Keyspace`` and ``Key``: the keys of a service, declared once with their ttl and tags.

A declaration serves decorators (``@cached(key=PostKeys.feed)``) and direct operations
(``cache.get(PostKeys.feed(user_id=1, page=2))``). Two that could produce one key are refused where the second
one stands.
"""

from __future__ import annotations

import keyword
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any, ClassVar, Final, Generic, ParamSpec, overload
from weakref import WeakValueDictionary

from cacheaside.errors import ConfigError, KeyTemplateError
from cacheaside.keys import Kind, Signature, check_namespace, compile_key, compile_tags
from cacheaside.names import names
from cacheaside.overlap import common_key
from cacheaside.policy import Seconds, seconds
from cacheaside.templates import Template, compile_function

P = ParamSpec("P")
Fn = Callable[..., Any]

_SOURCE: Final = re.compile(r"\w+(\.\w+|\[[^\[\]{}:!]+\])*")


class DeclaredKey(str):
    """A finished key, ``ns:rest``, with the ttl and the tags that its declaration gives to what it names."""

    __slots__ = ("tags", "ttl")

    ttl: float | None
    tags: tuple[str, ...]


class Key(Generic[P]):
    """A key of a ``Keyspace``, or rather a family of them; called with its arguments, it is one.

    Args:
        template: what follows the namespace, such as ``"feed:{user_id:id}:page:{page:int}"``. The *kind* of a
            field says what its argument must be: ``id``, an int, a str or a UUID, where 42 and "42" are one;
            ``int``; ``str``; ``text``, a str that is written in base64; ``hash``, any value with a canonical
            form, written as a hash. Without one a field takes anything, and keeps types apart.
        like: a function with these arguments, never called: for type checkers, for defaults, and for the
            kind of those that it annotates as ``int`` or ``str``.
        ttl: seconds for what is stored under it; None is the cache's.
        tags: templates over the same arguments.

    Raises ConfigError and KeyTemplateError where its keyspace is defined.
    """

    @overload
    def __init__(
        self: Key[...], template: str, /, *, ttl: Seconds | None = None, tags: Iterable[str] = ()
    ) -> None: ...
    @overload
    def __init__(
        self,
        template: str,
        like: Callable[P, object],
        /,
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
    ) -> None: ...
    def __init__(
        self,
        template: str,
        like: Fn | None = None,
        /,
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        if callable(tags):
            raise ConfigError("tags of a Key are templates; a function of the call goes to the decorator")
        self.template = template
        self.ttl = None if ttl is None else seconds("ttl", ttl)
        self.tags = names("tags", tags)
        self._like = like
        self._place = ""
        self._ns = ""
        self._parsed: Template | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> DeclaredKey:
        """The key of these arguments, by position or by name, with its ttl and its tags."""
        self._declared()
        key = DeclaredKey(self._key_of(*args, **kwargs))
        key.ttl, key.tags = self.ttl, self._tags_of(*args, **kwargs)
        return key

    def __repr__(self) -> str:
        return f"<Key {self._place or '(not in a Keyspace)'} {self.template!r}>"

    @property
    def ns(self) -> str:
        """The namespace of its keyspace."""
        self._declared()
        return self._ns

    def of(self, **sources: str) -> Key[...]:
        """The same key for functions whose arguments have other names.

        ``PostKeys.post.of(post_id="post.id")`` takes ``post_id`` from the attribute of an argument ``post``.
        """
        known = self._declared().signature.names
        for name, source in sources.items():
            if name not in known:
                raise KeyTemplateError(f"{self!r} has no argument {name!r}; it has {', '.join(known)}")
            if not _SOURCE.fullmatch(source):
                raise KeyTemplateError(f"{self!r}.of({name}={source!r}): write where it is, as in 'post.id'")
        key = Key(
            _rewritten(self.template, lambda field, kind: (_renamed(field, sources), kind)),
            ttl=self.ttl,
            tags=[_rewritten(t, lambda field, kind: (_renamed(field, sources), kind)) for t in self.tags],
        )
        key.declare(self._ns, self._place)
        return key

    def _declared(self) -> Template:
        if self._parsed is None:
            raise ConfigError(f"{self!r} has no namespace: assign it to a name in the body of a Keyspace")
        return self._parsed

    def declare(self, ns: str, place: str) -> None:
        """Give it its namespace; ``Keyspace`` does so, and all that is wrong with it is said then."""
        if self._place:
            raise ConfigError(f"{place} is {self._place} already: give it a Key of its own")
        if self._like is None:
            parameters, namespace = ", ".join(_roots(self.template)), {}
        else:
            like = Signature(self._like, Kind.FUNCTION)
            parameters, namespace = like.parameters, like.namespace
            self.template = _rewritten(self.template, _kinds_of(self._like))
        stub = compile_function(parameters, ["return None"], namespace)
        stub.__qualname__, stub.__annotations__ = place, dict(getattr(self._like, "__annotations__", {}))
        signature = Signature(stub, Kind.FUNCTION)
        self._key_of = compile_key(stub, Kind.FUNCTION, ns, self.template).function(signature)
        tags = compile_tags(stub, Kind.FUNCTION, self.tags)
        if tags.late is not None:
            raise KeyTemplateError(f"tags of {place}: {{result}} is for the tags of a decorator")
        self._tags_of = tags.known.function(signature)
        self._key_of.__qualname__ = self._tags_of.__qualname__ = place  # what Python calls it in a TypeError
        parsed = Template(self.template, signature, stub, "key")
        unused = set(signature.names) - {field.root for field in parsed.fields}
        if unused:
            raise KeyTemplateError(
                f"key {self.template!r} of {place} does not name {', '.join(sorted(unused))}"
            )
        self._ns, self._place, self._parsed = ns, place, parsed

    def meets(self, other: Key[...]) -> str | None:
        """What both could produce, after their namespace; None if they never produce one key."""
        return common_key(self._declared(), other._declared()) if self.ns == other.ns else None


class Keyspace:
    """The keys of one service: a class whose attributes are ``Key``.

    ``class PostKeys(Keyspace, ns="posts"): post = Key("post:{post_id:int}", ttl=1800)``

    Raises ConfigError where two keys of a namespace, of this keyspace or another one, could be one.
    """

    ns: ClassVar[str]

    def __init_subclass__(cls, *, ns: str) -> None:
        super().__init_subclass__()
        if cls.__bases__ != (Keyspace,):
            raise ConfigError(f"{cls.__qualname__} must be a subclass of Keyspace, and of nothing else")
        mine: dict[str, Key[...]] = {n: v for n, v in vars(cls).items() if isinstance(v, Key)}
        if "ns" in mine:
            raise ConfigError(f"{cls.__qualname__}.ns is its namespace: call the key something else")
        cls.ns = check_namespace(ns)
        taken = [key for place, space in _spaces.items() if place != _place_of(cls) for key in keys_of(space)]
        for name, key in mine.items():
            key.declare(ns, f"{cls.__qualname__}.{name}")
            for other in taken:
                if (both := key.meets(other)) is not None:
                    raise ConfigError(
                        f"{key!r} and {other!r} could both produce {ns + ':' + both!r}: "
                        "change a word of one, or hold a field to a kind, as in {id:int}"
                    )
            taken.append(key)
        _spaces[_place_of(cls)] = cls


def keys_of(space: type[Keyspace]) -> list[Key[...]]:
    """The keys of a keyspace, in the order of their declaration."""
    return [value for value in vars(space).values() if isinstance(value, Key)]


# By module and name, so that a module can be loaded again.
_spaces: WeakValueDictionary[tuple[str, str], type[Keyspace]] = WeakValueDictionary()


def _place_of(space: type[Keyspace]) -> tuple[str, str]:
    return space.__module__, space.__qualname__


def _roots(template: str) -> list[str]:
    """The arguments that a template names, in its order; what is none is refused by ``Template``."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name]
    except (ValueError, TypeError):
        return []
    found = dict.fromkeys(re.split(r"[.\[]", field, maxsplit=1)[0] for field in fields)
    return [root for root in found if root.isidentifier() and not keyword.iskeyword(root)]


def _rewritten(template: str, change: Callable[[str, str], tuple[str, str]]) -> str:
    """The template with each field and its kind as ``change`` gives them."""
    parts: list[str] = []
    for literal, field, kind, _ in Formatter().parse(template):
        parts.append(literal)
        if field is not None:
            name, kind = change(field, kind or "")
            parts.append(f"{{{name}:{kind}}}" if kind else f"{{{name}}}")
    return "".join(parts)


def _renamed(field: str, sources: Mapping[str, str]) -> str:
    root = re.split(r"[.\[]", field, maxsplit=1)[0]
    return sources.get(root, root) + field[len(root) :]


def _kinds_of(like: Fn) -> Callable[[str, str], tuple[str, str]]:
    """Give fields the kind that the annotations of ``like`` say."""
    try:
        hints: dict[str, Any] = typing.get_type_hints(like)
    except Exception:  # a name that is for type checkers only
        hints = getattr(like, "__annotations__", {})
    said = {int: "int", "int": "int", str: "str", "str": "str"}
    kinds = {name: said[hint] for name, hint in hints.items() if hint in (int, "int", str, "str")}
    return lambda field, kind: (field, kind or kinds.get(field, ""))


# What decorators make of a Key


def places(ns: str | None, keys: Iterable[str | Key[...]]) -> list[tuple[str, str]]:
    """The namespaces and the templates of keys to drop."""
    found: list[tuple[str, str]] = []
    for key in names("keys", keys) if isinstance(keys, (str, bytes)) else keys:
        if isinstance(key, Key):
            found.append((key.ns, key.template))
        elif ns is None:
            raise ConfigError('@invalidates with keys=[...] needs their namespace: ns="posts"')
        else:
            found += [(check_namespace(ns), template) for template in names("keys", [key])]
    return list(dict.fromkeys(found))


def placed(
    decorator: str, ns: str | None, key: str | Key[...] | None, options: Mapping[str, Any]
) -> tuple[str, str | None, dict[str, Any]]:
    """The namespace, the template and the options of a decorator: a Key brings those that are not given.

    Raises ConfigError where the namespace is missing, or is not that of the Key.
    """
    chosen = dict(options)
    if not isinstance(key, Key):
        if ns is None:
            raise ConfigError(f'@{decorator} needs a namespace, such as ns="posts", or a Key of a Keyspace')
        return ns, key, chosen
    if ns not in (None, key.ns):
        raise ConfigError(f"@{decorator}: {key!r} is in ns={key.ns!r}, not in {ns!r}; leave ns out")
    if chosen.get("ttl") is None and key.ttl is not None:
        chosen["ttl"] = key.ttl
    chosen.setdefault("tags", key.tags)
    return key.ns, key.template, chosen
