"""How a value becomes bytes and comes back as the type its function declares.

The return annotation is the schema. It is judged once, when the function is decorated: what could not come
back is refused there, naming the part that stands in the way. At each store the bytes are decoded again and
compared with the value, so that nothing is kept that a later hit would answer differently (a tuple as a list,
a subclass cut down to its base). Stores are rare beside hits, and a hit pays for one decode and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pickle
import sys
import types
import typing
import zlib
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from datetime import datetime
from enum import Enum
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar, Union

import msgspec
from msgspec import inspect as described

from .errors import CodecError, ConfigError

__all__ = [
    "NO_ANNOTATION",
    "RAW",
    "ZLIB",
    "ZSTD",
    "Serializer",
    "Undefined",
    "ValueCodec",
    "codec_for",
    "pack",
    "return_annotation",
    "unpack",
]


class Undefined(ConfigError):
    """A name in an annotation means nothing; it may later, when its class is complete."""


class _NoAnnotation:
    def __repr__(self) -> str:
        return "no return annotation"


NO_ANNOTATION: Final = _NoAnnotation()
"""What `return_annotation` answers for a function that declares nothing."""

_MODELS_SINCE = (2, 11)  # the first pydantic whose validators accept names where a field has an alias


class Serializer(Protocol):
    """What ``codec=`` accepts besides a name: bytes out, an equal value back.

    ``name`` becomes part of the schema, so entries of another serializer are misses. ``decode`` may raise
    anything on bytes it cannot read; that is a miss too.
    """

    @property
    def name(self) -> str: ...
    def encode(self, value: Any, /) -> bytes: ...
    def decode(self, data: bytes, /) -> Any: ...


@dataclasses.dataclass(frozen=True, slots=True)
class ValueCodec:
    """The two ways between a function's value and its bytes; made once per function by `codec_for`.

    ``schema`` is an 8-byte fingerprint of the codec, the structure of the type and the version: bytes written
    under another one must not be decoded. ``shareable`` says that values are immutable all the way down, so
    that one object may be handed to all callers.
    """

    name: str
    schema: bytes
    shareable: bool
    _encode: Callable[[Any], bytes] = dataclasses.field(repr=False)
    _decode: Callable[[bytes | memoryview], Any] = dataclasses.field(repr=False)

    def encode(self, value: Any) -> bytes:
        """Return the bytes of ``value``; raise `CodecError` if they would not come back as the same value."""
        try:
            return self._encode(value)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"cannot cache a value of type {_type_name(value)}: {error}") from error

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the value of ``data``; raise `CodecError`, and nothing else, on bytes that do not fit."""
        try:
            return self._decode(data)
        except Exception as error:
            raise CodecError(f"these bytes are not a value of this {self.name} codec: {error}") from error


def _without_none(hint: Any) -> Any:
    """None is a flag of the entry: a function that may return it writes what one that may not does.

    So `get(id) -> Post | None` and `find(ids) -> dict[int, Post]` can share their entries.
    """
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) not in (typing.Union, types.UnionType) or types.NoneType not in arguments:
        return hint
    return typing.Union[tuple(one for one in arguments if one is not types.NoneType)]  # noqa: UP007


def codec_for(
    annotation: Any, *, codec: str | Serializer = "msgpack", version: int = 1, share: bool | None = None
) -> ValueCodec:
    """Return the codec for values of ``annotation``, or say why there is none.

    Args:
        annotation: A return annotation with its names resolved, as `return_annotation` gives it.
        codec: ``"msgpack"``, ``"json"``, ``"pickle"`` or a `Serializer`. The first two follow the annotation.
            Pickle takes any type, and **lets whoever can write to Redis run code in this process**: name it
            only where Redis is as trusted as the program itself.
        version: Raise it when the meaning of a value changes and its type does not.
        share: True or False overrules ``shareable``.

    Raises:
        CodecError: The annotation has a part that cannot make the trip and back.
        ConfigError: An option is unusable, or a name inside a class is not defined (yet).
    """
    if not isinstance(version, int) or isinstance(version, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"version={version!r}: give an int")
    if share not in (None, True, False):
        raise ConfigError(f"share={share!r}: give True, False or None (decide from the annotation)")
    if annotation is None or annotation is type(None):
        raise CodecError("a function declared `-> None` has nothing to cache: declare what it returns")
    hint = Any if annotation is NO_ANNOTATION else annotation
    shape = _Shape()
    structure = shape.of(_without_none(hint))

    if isinstance(codec, str) and codec in ("msgpack", "json"):
        name = codec
        judgement = _judge(annotation, shape)
        encode, decode = _typed(annotation, name, judgement, loose=shape.abstract)
        shareable = judgement.shareable
    else:
        serializer = _serializer(codec)
        name = serializer.name
        encode, decode = serializer.encode, functools.partial(_decode_bytes, serializer)
        try:
            shareable = _judge(annotation, shape).shareable
        except (CodecError, ConfigError):
            shareable = False

    contents = msgspec.msgpack.encode([name, version, structure, sorted(shape.table.items())])
    return ValueCodec(
        name=name,
        schema=blake2b(contents, digest_size=8).digest(),
        shareable=shareable if share is None else share,
        _encode=encode,
        _decode=decode,
    )


def return_annotation(fn: Callable[..., Any]) -> Any:
    """Return what ``fn`` declares to return (for ``async def``: what awaiting it gives), or `NO_ANNOTATION`.

    Only the return annotation is looked at: parameters may name what is imported for type checkers alone.

    Raises:
        ConfigError: The annotation names something that is not defined. A class that is still being defined
            will be later, so the caller may try again.
    """
    if isinstance(fn, functools.partial):
        fn = fn.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    fn = getattr(fn, "__func__", fn)  # pyright: ignore[reportUnknownArgumentType]
    name, source = getattr(fn, "__qualname__", repr(fn)), "return"
    try:
        annotations: dict[str, Any] = getattr(fn, "__annotations__", {})
        if "return" not in annotations:
            return NO_ANNOTATION
        source = annotations["return"]
        holder: Any = types.SimpleNamespace(__annotations__={"return": source})
        hints = typing.get_type_hints(holder, *_namespaces(fn), include_extras=True)
    except (NameError, AttributeError) as error:
        raise Undefined(
            f"the return annotation {source!r} of {name} cannot be resolved: {error}; the cache decodes to "
            f"that type, so import it at module level, outside `if TYPE_CHECKING`"
        ) from error
    except (SyntaxError, TypeError) as error:
        raise ConfigError(f"the return annotation {source!r} of {name} is not a type: {error}") from error
    return hints["return"]


def _namespaces(fn: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The globals and the locals (type parameters, closure) in which ``fn`` was written."""
    inner = fn
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    local: dict[str, Any] = {p.__name__: p for p in getattr(inner, "__type_params__", ())}
    code = getattr(inner, "__code__", None)
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(inner, "__closure__", None) or (), strict=False
    ):
        try:
            local[name] = cell.cell_contents
        except ValueError:  # assigned further down in the enclosing function
            continue
    return getattr(inner, "__globals__", {}), local


# --- Codecs ----------------------------------------------------------------------------------------------


class _Pickle:
    name = "pickle"

    def encode(self, value: Any, /) -> bytes:
        return pickle.dumps(value, protocol=5)

    def decode(self, data: bytes, /) -> Any:
        return pickle.loads(data)  # noqa: S301  the user has named it


def _serializer(codec: str | Serializer) -> Serializer:
    if codec == "pickle":
        return _Pickle()
    if isinstance(codec, str):
        raise ConfigError(
            f'codec={codec!r}: give "msgpack", "json", "pickle" or an object with name, encode, decode'
        )
    if (
        isinstance(getattr(codec, "name", None), str)
        and callable(getattr(codec, "encode", None))
        and callable(getattr(codec, "decode", None))
    ):
        return codec
    raise ConfigError(f"codec={codec!r}: a serializer has a str `name` and the methods `encode` and `decode`")


def _decode_bytes(serializer: Serializer, data: bytes | memoryview) -> Any:
    return serializer.decode(bytes(data))


_SPELLED: Final = 0xC1  # the one byte that msgpack never writes: what follows is JSON


def _typed(
    annotation: Any, codec: str, judgement: _Judgement, *, loose: bool
) -> tuple[Callable[[Any], bytes], Callable[[bytes | memoryview], Any]]:
    """The two directions of a msgspec codec; the encoder reads back what it wrote.

    Msgpack has timestamps in UTC only, so values with a datetime in another zone are written as JSON, which
    keeps the offset: a hit must not show another hour than the miss before it.
    """
    untyped = annotation is NO_ANNOTATION or annotation is Any
    subject = f"under `{_show(annotation)}` as {codec}" if annotation is not NO_ANNOTATION else f"as {codec}"
    advice = "annotate the return type" if untyped else "make the return annotation and the value agree"
    enc_hook = _model_to_builtins if judgement.models else _refuse_value
    dec_hook = _builtins_to_model if judgement.models else None
    hint = Any if untyped else annotation
    spell = msgspec.json.Encoder(enc_hook=enc_hook).encode
    read_spelled: Callable[[Any], Any] = msgspec.json.Decoder(hint, dec_hook=dec_hook).decode
    if codec == "json":
        write, read = spell, read_spelled
    else:
        write = msgspec.msgpack.Encoder(enc_hook=enc_hook).encode
        read = msgspec.msgpack.Decoder(hint, dec_hook=dec_hook).decode
    zoned = judgement.zoned and codec == "msgpack"

    def change(value: Any, back: Any) -> str | None:
        exact = judgement.untyped and not _is_plain(value)
        # Equality does not see offsets, their spelling does.
        trusting = not exact and (not zoned or _equal_spelling(spell, value, back))
        return _Comparison(exact=exact, loose=loose, trusting=trusting).change(value, back)

    def encode(value: Any) -> bytes:
        try:
            data = write(value)
            problem = change(value, read(data))
            if problem is not None and zoned:
                spelled = spell(value)
                if change(value, read_spelled(spelled)) is None:
                    return bytes([_SPELLED]) + spelled
        except Exception as error:
            raise CodecError(
                f"cannot cache a value of type {_type_name(value)} {subject}: {error}; {advice}"
            ) from error
        if problem is not None:
            raise CodecError(
                f"cannot cache a value of type {_type_name(value)} {subject}: value{problem}; {advice}"
            )
        return data

    def decode(data: bytes | memoryview) -> Any:
        return read_spelled(memoryview(data)[1:]) if data[0] == _SPELLED else read(data)

    return encode, decode if zoned else read


def _equal_spelling(spell: Callable[[Any], bytes], value: Any, back: Any) -> bool:
    try:
        return spell(value) == spell(back)
    except Exception:  # JSON cannot say it; the slow comparison will tell
        return False


def _refuse_value(value: Any) -> Any:
    raise NotImplementedError(f"{_type_name(value)} cannot be written here")


def _model_to_builtins(value: Any) -> Any:
    """Take a pydantic model apart, one level: msgspec comes back for the models inside.

    Not ``model_dump``: a user's serializers, exclusions and computed fields are for readers of the output and
    need not be readable by the validators.
    """
    pydantic = importlib.import_module("pydantic")
    if isinstance(value, pydantic.RootModel):
        return value.root
    if isinstance(value, pydantic.BaseModel):
        return {name: getattr(value, name) for name in _instance_fields(value)}
    try:
        return importlib.import_module("pydantic_core").to_jsonable_python(value)
    except ValueError:
        return _refuse_value(value)


def _builtins_to_model(model: Any, data: Any) -> Any:
    return model.model_validate(data, strict=False, by_name=True, by_alias=False)


def _is_model(cls: Any) -> bool:
    # A class can only be a model when somebody has imported pydantic.
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)


# --- What msgspec can bring back -------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Judgement:
    shareable: bool = False
    untyped: bool = False  # somewhere inside, anything may come: compare kind by kind
    models: bool = False
    zoned: bool = False  # a datetime may be inside, in whatever zone


def _judge(annotation: Any, shape: _Shape) -> _Judgement:
    """Say what decoding to ``annotation`` takes; raise `CodecError` when it cannot be done."""
    if annotation is NO_ANNOTATION:
        return _Judgement(untyped=True, zoned=True)
    shown = _show(annotation)
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
    judge = _Judge(shown)
    judge.verdict.shareable = judge.visit(root, "the return type")
    return judge.verdict


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
        self.verdict = _Judgement()
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
        name = _show(node.cls)
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
        if _is_model(cls):
            version = importlib.import_module("pydantic").VERSION
            if tuple(int(part) for part in version.split(".")[:2]) < _MODELS_SINCE:
                raise CodecError(
                    f"cannot cache `{self.shown}`: {_show(cls)} needs pydantic 2.11 or later, not {version}"
                )
            self.verdict.models = self.verdict.zoned = True
            return False
        advice = next(better for kinds, better in _ADVICE if issubclass(cls, kinds))
        if cls is object:
            advice = f"write the real type, or Any for builtin values {_PICKLE}"
        raise CodecError(
            f"cannot cache `{self.shown}`: {_show(cls)}, in {where}, does not survive the trip to the cache; "
            f"{advice}"
        )


def _is_frozen(cls: Any) -> bool:
    if issubclass(cls, msgspec.Struct):
        return bool(cls.__struct_config__.frozen)
    parameters = getattr(cls, "__dataclass_params__", None)
    return issubclass(cls, tuple) if parameters is None else bool(parameters.frozen)


# --- Did it survive? -------------------------------------------------------------------------------------

_SCALARS: Final = frozenset[Any]({str, int, float, bool, bytes, type(None)})
_INTERFACES: Final[tuple[Any, ...]] = (Sequence, Set, Mapping)


def _is_plain(value: Any) -> bool:
    """Is this nothing but lists, dicts and scalars, so that comparing it by equality is enough?"""
    waiting = [value]
    while waiting:
        item: Any = waiting.pop()
        kind: Any = item.__class__
        if kind is list:
            waiting.extend(item)
        elif kind is dict:
            waiting.extend(item)
            waiting.extend(item.values())
        elif kind not in _SCALARS:
            return False
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Comparison:
    """Finds what a trip has changed.

    ``trusting`` takes equal values for unchanged. ``exact`` wants equal types even where values are equal, as
    a StrEnum and its str are; it is for untyped parts. ``loose`` lets a tuple be a list, for Sequence.
    """

    exact: bool
    loose: bool
    trusting: bool

    def change(self, before: Any, after: Any) -> str | None:
        """Where and how ``after`` differs, as ``.items[0].at: datetime came back as str``, or None."""
        kind: Any = before.__class__
        if kind in _SCALARS and kind is type(after) and before == after:
            return None
        if self.trusting and _equal(before, after):
            return None
        if kind is not type(after) and not self.stands_in(before, after):
            return f": {kind.__qualname__} came back as {_type_name(after)}"
        if issubclass(kind, Mapping):
            # Order is kept, and a key that changed its type could not be looked up.
            keys = self.sequence(list(before), list(after), lambda index: f" key {index}")
            return keys or self.sequence(
                list(before.values()),
                list(after.values()),
                lambda index: f"[{_show_key(list(before)[index])}]",
            )
        if issubclass(kind, (list, tuple)):
            return self.sequence(before, after, lambda index: f"[{index}]")
        if issubclass(kind, Set):
            return None if _same_members(before, after) else f": {kind.__qualname__} has other members"
        for name in (names := _instance_fields(before)):
            found = self.change(getattr(before, name, None), getattr(after, name, None))
            if found is not None:
                return f".{name}{found}"
        if names or _same_leaf(before, after):
            return None
        return f": {kind.__qualname__} came back with another value"

    def sequence(self, before: Sequence[Any], after: Sequence[Any], show: Callable[[int], str]) -> str | None:
        if len(before) != len(after):
            return f": {len(before)} items came back as {len(after)}"
        for index, (item, new_item) in enumerate(zip(before, after, strict=True)):
            found = self.change(item, new_item)
            if found is not None:
                return f"{show(index)}{found}"
        return None

    def stands_in(self, before: Any, after: Any) -> bool:
        """Is ``after``, of another type, what was declared? An int is a float, a defaultdict a dict."""
        if type(before) is int and type(after) is float:
            return _equal(before, after)
        if self.loose and any(isinstance(before, kind) and isinstance(after, kind) for kind in _INTERFACES):
            return True
        if self.exact:
            return False
        return _equal(before, after) or (
            type(after) in (dict, list, tuple) and isinstance(before, type(after))
        )


def _show_key(key: Any) -> str:
    # Errors reach logs, and keys may be e-mail addresses; what looks like a field's name is worth showing.
    return repr(key) if isinstance(key, str) and key.isidentifier() else "..."


def _equal(before: Any, after: Any) -> bool:
    try:
        return bool(before == after)
    except Exception:  # a user's own __eq__, or a signalling NaN
        return False


def _same_leaf(before: Any, after: Any) -> bool:
    return _equal(_face(before), _face(after)) or not (_equal(before, before) or _equal(after, after))


def _same_members(before: Set[Any], after: Set[Any]) -> bool:
    faces = set(map(_face, after))
    # A NaN equals nothing, itself included, and is no loss.
    lost = any(_face(member) not in faces and _equal(member, member) for member in before)
    return not lost and len(before) == len(after)


def _face(value: Any) -> Any:
    # A datetime by clock and offset: equality ignores the offset, and fails in the hour that autumn repeats.
    return value.isoformat() if isinstance(value, datetime) else value


def _instance_fields(value: Any) -> tuple[str, ...]:
    names = _fields(value.__class__)
    # Extra fields are data of the model; its private attributes are not.
    return (*names, *(getattr(value, "__pydantic_extra__", None) or ()))


@functools.lru_cache(maxsize=1024)
def _fields(cls: Any) -> tuple[str, ...]:
    """The names of a class's fields, empty for what has no declared structure."""
    if issubclass(cls, msgspec.Struct):
        return tuple(cls.__struct_fields__)
    if _is_model(cls):
        return tuple(cls.model_fields)
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(attribute.name for attribute in cls.__attrs_attrs__)
    if typing.is_typeddict(cls):
        return tuple(sorted(cls.__annotations__))
    names: Any = getattr(cls, "_fields", ())
    return tuple(names) if issubclass(cls, tuple) else ()


# --- The fingerprint -------------------------------------------------------------------------------------

_TRANSPARENT: Final = frozenset({"Annotated", "ClassVar", "Final", "NotRequired", "ReadOnly", "Required"})


class _Shape:
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
        fields = _fields(cls)
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
                field.append(repr(default) if type(default) in _SCALARS else None)
        if not config.array_like:
            fields.sort(key=lambda field: field[0])
        return [config.array_like, bases, fields, config.tag_field, config.tag]

    @staticmethod
    def constant(value: Any) -> list[str]:
        if isinstance(value, Enum):
            return [type(value).__qualname__, value.name, repr(value.value)]
        return [type(value).__qualname__, repr(value)]


def _hints(cls: Any) -> dict[str, Any]:
    if _is_model(cls):
        if not cls.__pydantic_complete__:
            cls.model_rebuild(raise_errors=False)
        return {name: field.annotation for name, field in cls.model_fields.items()}
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError):
        # A name that is not there: msgspec will say so; for pickle the text of the annotation will do.
        return dict(getattr(cls, "__annotations__", {}))


def _show(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def _type_name(value: Any) -> str:
    return type(value).__qualname__


# --- Compression -----------------------------------------------------------------------------------------

RAW: Final = 0
ZLIB: Final = 1
ZSTD: Final = 2


_Data = TypeVar("_Data", bound=bytes | memoryview)


class _Zstd(NamedTuple):
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes | memoryview, int], bytes]


def pack(data: bytes, threshold: int) -> tuple[int, bytes]:
    """Return flags and ``data``, compressed if it is longer than ``threshold`` bytes and that helps.

    Zstandard where it is installed (Python 3.14, or the extra ``cacheaside[zstd]``), else zlib.
    """
    if len(data) <= threshold:
        return RAW, data
    zstd = _zstd()
    flags, packed = (ZSTD, zstd.compress(data)) if zstd is not None else (ZLIB, zlib.compress(data, 1))
    return (flags, packed) if len(packed) < len(data) else (RAW, data)


def unpack(flags: int, data: _Data, limit: int) -> _Data | bytes:
    """Return what `pack` was given; never inflates to more than ``limit`` bytes.

    Raises:
        CodecError: Damaged, larger than ``limit``, or compressed in a way this process cannot read: a miss.
    """
    if flags == RAW:
        return data
    try:
        if flags == ZLIB:
            return _inflate(zlib.decompressobj(), data, limit)
        if flags == ZSTD and (zstd := _zstd()) is not None:
            return zstd.decompress(data, limit)
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"a compressed value is damaged: {error}") from error
    if flags == ZSTD:
        raise CodecError("a value is compressed with zstandard: install cacheaside[zstd] in this process too")
    raise CodecError(
        f"a value has unknown compression flags {flags}: it was written by another version of cacheaside"
    )


def _inflate(decompressor: Any, data: bytes | memoryview, limit: int) -> bytes:
    value: bytes = decompressor.decompress(data, limit + 1)
    if len(value) > limit:
        raise CodecError(f"a compressed value is larger than the limit of {limit} bytes")
    if not decompressor.eof:
        raise CodecError("a compressed value is cut short")
    return value


@functools.cache
def _zstd() -> _Zstd | None:
    try:
        standard = importlib.import_module("compression.zstd")
    except ImportError:
        pass
    else:

        def inflate(data: bytes | memoryview, limit: int) -> bytes:
            return _inflate(standard.ZstdDecompressor(), data, limit)

        return _Zstd(standard.compress, inflate)
    try:
        package = importlib.import_module("zstandard")
    except ImportError:
        return None

    def decompress(data: bytes | memoryview, limit: int) -> bytes:
        # The package allocates whatever size the frame claims; a frame that claims none reads as 2**64 - 1.
        if package.get_frame_parameters(data).content_size > limit:
            raise CodecError(f"a compressed value is larger than the limit of {limit} bytes")
        value: bytes = package.ZstdDecompressor().decompress(data)
        return value

    return _Zstd(package.compress, decompress)
