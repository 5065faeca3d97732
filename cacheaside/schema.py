"""What a return annotation says of its values: whether they can come back, and what they are made of.

`judge` walks msgspec's description of the type, refuses what could not come back, and says what the codec
has to watch for. `Shape` writes the same type down as a fingerprint: bytes of another one are not decoded.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import types
import typing
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Final, Literal, TypeVar, Union

import msgspec
from msgspec import inspect as described

from cacheaside.errors import CodecError, ConfigError


class Undefined(ConfigError):
    """A name in an annotation means nothing; it may later, when its class is complete."""


class _NoAnnotation:
    def __repr__(self) -> str:
        return "no return annotation"


NO_ANNOTATION: Final = _NoAnnotation()
"""What `return_annotation` answers for a function that declares nothing."""


# --- What msgspec can bring back -------------------------------------------------------------------------

_MODELS_SINCE = (2, 11)  # the first pydantic whose validators accept names where a field has an alias


@dataclasses.dataclass(slots=True)
class Judgement:
    shareable: bool = False
    untyped: bool = False  # somewhere inside, anything may come: compare kind by kind
    models: bool = False
    zoned: bool = False  # a datetime may be inside, in whatever zone


def judge(annotation: Any, shape: Shape) -> Judgement:
    """Say what decoding to ``annotation`` takes; raise `CodecError` when it cannot be done."""
    if annotation is NO_ANNOTATION:
        return Judgement(untyped=True, zoned=True)
    shown = show(annotation)
    if shape.endless is not None:
        raise CodecError(
            f"cannot cache `{shown}`: the alias {shape.endless} contains itself; use a Struct or a dataclass"
        )
    if not isinstance(annotation, type) and (
        isinstance(annotation, TypeVar) or getattr(annotation, "__parameters__", None)
    ):
        raise CodecError(
            f"cannot cache `{shown}`: a type variable stands for no type here; write the one that is meant"
        )
    try:
        root = described.type_info(annotation)
    except NameError as error:
        raise Undefined(
            f"cannot cache `{shown}`: {error}; define it at module level, outside `if TYPE_CHECKING`"
        ) from error
    except Exception as error:
        raise CodecError(
            f"cannot cache `{shown}`: {error}; return one type, give the Structs a tag (`tag=True`), "
            f"or wrap a union of pydantic models in a RootModel"
        ) from error
    walk = _Judge(shown)
    walk.verdict.shareable = walk.visit(root, "the return type")
    return walk.verdict


_PICKLE: Final = '(or name codec="pickle" if Redis is trusted like the program itself)'
_ADVICE: Final[tuple[tuple[Any, str], ...]] = (
    (Awaitable, "make it `async def`, declared to return the awaited type"),
    ((Iterable, AsyncIterable), "return a list, a dict or bytes, which can be read more than once"),
    (Callable, "return data; a function stays where it was made"),
    (object, f"return a dataclass, a msgspec.Struct, a TypedDict or a pydantic model {_PICKLE}"),
)


class _Judge:
    """Walks msgspec's description of a type; `visit` says whether values of that part are immutable."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.verdict = Judgement()
        self.seen: dict[int, bool] = {}

    def visit(self, node: described.Type, where: str) -> bool:
        match node:
            case described.Metadata():
                return self.visit(node.type, where)
            case described.AnyType():
                self.verdict.untyped = self.verdict.zoned = True
                return False
            case described.DateTimeType():
                self.verdict.zoned = True
                return True
            case described.CustomType():
                return self.custom(node.cls, where)
            case described.ListType() | described.SetType():
                self.visit(node.item_type, where)
                return False
            case described.VarTupleType() | described.FrozenSetType():
                return self.visit(node.item_type, where)
            case described.TupleType():
                return self.all((item, where) for item in node.item_types)
            case described.UnionType():
                return self.all((member, where) for member in node.types)
            case described.DictType():
                self.visit(node.key_type, where)
                self.visit(node.value_type, where)
                return False
            case (
                described.StructType()
                | described.DataclassType()
                | described.TypedDictType()
                | described.NamedTupleType()
            ):
                return self.fields(node)
            case (
                described.ByteArrayType()
                | described.MemoryViewType()
                | described.RawType()
                | described.ExtType()
            ):
                return False
            case _:
                return True

    def all(self, parts: Iterator[tuple[described.Type, str]]) -> bool:
        verdicts = [self.visit(node, where) for node, where in parts]  # each of them, for what it refuses
        return all(verdicts)

    def fields(
        self,
        node: described.StructType
        | described.DataclassType
        | described.TypedDictType
        | described.NamedTupleType,
    ) -> bool:
        if id(node) in self.seen:
            return self.seen[id(node)]
        name = show(node.cls)
        if getattr(node.cls, "__parameters__", ()):
            raise CodecError(
                f"cannot cache `{self.shown}`: {name} is generic; write what it holds, as in {name}[int]"
            )
        frozen = _is_frozen(typing.get_origin(node.cls) or node.cls)
        self.seen[id(node)] = frozen  # for a type inside itself: the rest of it decides
        deep = self.all((field.type, f"{name}.{field.name}") for field in node.fields)
        self.seen[id(node)] = frozen and deep
        return frozen and deep

    def custom(self, cls: Any, where: str) -> bool:
        if is_model(cls):
            version = importlib.import_module("pydantic").VERSION
            if tuple(int(part) for part in version.split(".")[:2]) < _MODELS_SINCE:
                raise CodecError(
                    f"cannot cache `{self.shown}`: {show(cls)} needs pydantic 2.11 or later, not {version}"
                )
            self.verdict.models = self.verdict.zoned = True
            return False
        advice = next(better for kinds, better in _ADVICE if issubclass(cls, kinds))
        if cls is object:
            advice = f"write the real type, or Any for builtin values {_PICKLE}"
        raise CodecError(
            f"cannot cache `{self.shown}`: {show(cls)}, in {where}, does not survive the trip to the cache; "
            f"{advice}"
        )


def _is_frozen(cls: Any) -> bool:
    if issubclass(cls, msgspec.Struct):
        return bool(cls.__struct_config__.frozen)
    parameters = getattr(cls, "__dataclass_params__", None)
    return issubclass(cls, tuple) if parameters is None else bool(parameters.frozen)


# --- The fingerprint -------------------------------------------------------------------------------------

_TRANSPARENT: Final = frozenset({"Annotated", "ClassVar", "Final", "NotRequired", "ReadOnly", "Required"})


class Shape:
    """A type as nested builtins that are the same in every process and Python version.

    Classes go by their qualified name, without the module (it is ``__main__`` in one process and not in
    another), into ``table``, so that a type may contain itself. Two classes of one name are told apart by
    their order of appearance.
    """

    def __init__(self) -> None:
        self.table: dict[str, Any] = {}
        self.abstract = False  # names an interface of collections.abc: Sequence, Mapping, Set
        self.endless: str | None = None  # an alias that contains itself
        self._names: dict[Any, str] = {}
        self._aliases: list[Any] = []

    def of(self, hint: Any) -> Any:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is Union or origin is types.UnionType:
            members = {msgspec.msgpack.encode(member): member for member in map(self.of, args)}
            return ["|", *(members[key] for key in sorted(members))]
        if origin is Literal:
            return ["=", *sorted(self.constant(value) for value in args)]
        if origin is not None and origin is not hint:  # Generic is its own origin
            name = getattr(origin, "__name__", None) or getattr(origin, "_name", "")
            if origin is typing.Annotated or name in _TRANSPARENT:
                return self.of(args[0])
            return [self.of(origin), *map(self.of, args)]
        if hint.__class__ is list:  # the parameters of a Callable
            return [self.of(item) for item in hint]
        if hasattr(hint, "__supertype__"):
            return self.of(hint.__supertype__)
        if not isinstance(hint, type) and hasattr(hint, "__value__"):
            return self.alias(hint)
        if isinstance(hint, type):
            return self.cls(hint)
        if hint is Ellipsis:
            return "..."
        return str(getattr(hint, "__forward_arg__", None) or getattr(hint, "__name__", None) or hint)

    def alias(self, hint: Any) -> Any:
        if hint in self._aliases:
            self.endless = str(hint)
            return ["alias", self.endless]
        self._aliases.append(hint)
        try:
            return self.of(hint.__value__)
        finally:
            self._aliases.pop()

    def cls(self, cls: Any) -> Any:
        self.abstract = self.abstract or cls.__module__ == "collections.abc"
        if cls in self._names:
            return self._names[cls]
        fields = fields_of(cls)
        if not fields and not issubclass(cls, Enum):
            return cls.__qualname__
        name = cls.__qualname__
        while name in self.table:
            name += "'"
        self._names[cls] = name
        self.table[name] = None  # taken, while the fields are looked at
        self.table[name] = self.structure(cls, fields) if fields else sorted(map(self.constant, cls))
        return name

    def structure(self, cls: Any, names: tuple[str, ...]) -> Any:
        hints = _hints(cls)
        fields: list[list[Any]] = [[name, self.of(hints.get(name, Any))] for name in names]
        # What a generic base holds is said in the bases, not in the hints: class Posts(Page[Post]).
        bases = [self.of(base) for base in getattr(cls, "__orig_bases__", ()) if typing.get_args(base)]
        if not issubclass(cls, msgspec.Struct):
            ordered = issubclass(cls, tuple)
            return [ordered, bases, fields if ordered else sorted(fields, key=lambda field: field[0])]
        config = cls.__struct_config__
        for field, encoded in zip(fields, cls.__struct_encode_fields__, strict=True):
            field.append(encoded)
        if config.omit_defaults:  # a default is then part of what the bytes mean
            for field, default in zip(reversed(fields), reversed(cls.__struct_defaults__), strict=False):
                field.append(repr(default) if type(default) in SCALARS else None)
        if not config.array_like:
            fields.sort(key=lambda field: field[0])
        return [config.array_like, bases, fields, config.tag_field, config.tag]

    @staticmethod
    def constant(value: Any) -> list[str]:
        if isinstance(value, Enum):
            return [type(value).__qualname__, value.name, repr(value.value)]
        return [type(value).__qualname__, repr(value)]


def _hints(cls: Any) -> dict[str, Any]:
    if is_model(cls):
        if not cls.__pydantic_complete__:
            cls.model_rebuild(raise_errors=False)
        return {name: field.annotation for name, field in cls.model_fields.items()}
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError):
        # A name that is not there: msgspec will say so; for pickle the text of the annotation will do.
        return dict(getattr(cls, "__annotations__", {}))


# --- What a class is made of -----------------------------------------------------------------------------

SCALARS: Final = frozenset[Any]({str, int, float, bool, bytes, type(None)})


def instance_fields(value: Any) -> tuple[str, ...]:
    names = fields_of(value.__class__)
    # Extra fields are data of the model; its private attributes are not.
    return (*names, *(getattr(value, "__pydantic_extra__", None) or ()))


@functools.lru_cache(maxsize=1024)
def fields_of(cls: Any) -> tuple[str, ...]:
    """The names of a class's fields, empty for what has no declared structure."""
    if issubclass(cls, msgspec.Struct):
        return tuple(cls.__struct_fields__)
    if is_model(cls):
        return tuple(cls.model_fields)
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(attribute.name for attribute in cls.__attrs_attrs__)
    if typing.is_typeddict(cls):
        return tuple(sorted(cls.__annotations__))
    names: Any = getattr(cls, "_fields", ())
    return tuple(names) if issubclass(cls, tuple) else ()


def is_model(cls: Any) -> bool:
    # A class can only be a model when somebody has imported pydantic.
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)


def show(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def type_name(value: Any) -> str:
    return type(value).__qualname__
