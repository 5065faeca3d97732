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
import types
import typing
from collections.abc import Callable
from hashlib import blake2b
from inspect import isawaitable
from typing import Any, Final, Protocol

import msgspec

from cacheaside.errors import CodecError, ConfigError
from cacheaside.roundtrip import Comparison, is_plain
from cacheaside.schema import (
    NO_ANNOTATION,
    Judgement,
    Shape,
    Undefined,
    instance_fields,
    judge,
    show,
    type_name,
)

__all__ = [
    "NO_ANNOTATION",
    "Serializer",
    "Undefined",
    "ValueCodec",
    "codec_for",
    "return_annotation",
]


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
            raise CodecError(f"cannot cache a value of type {type_name(value)}: {error}") from error

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
    shape = Shape()
    structure = shape.of(_without_none(hint))

    if isinstance(codec, str) and codec in ("msgpack", "json"):
        name = codec
        judgement = judge(annotation, shape)
        encode, decode = _typed(annotation, name, judgement, loose=shape.abstract)
        shareable = judgement.shareable
    else:
        serializer = _serializer(codec)
        name = serializer.name
        encode, decode = serializer.encode, functools.partial(_decode_bytes, serializer)
        try:
            shareable = judge(annotation, shape).shareable
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
    annotation: Any, codec: str, judgement: Judgement, *, loose: bool
) -> tuple[Callable[[Any], bytes], Callable[[bytes | memoryview], Any]]:
    """The two directions of a msgspec codec; the encoder reads back what it wrote.

    Msgpack has timestamps in UTC only, so values with a datetime in another zone are written as JSON, which
    keeps the offset: a hit must not show another hour than the miss before it.
    """
    untyped = annotation is NO_ANNOTATION or annotation is Any
    subject = f"under `{show(annotation)}` as {codec}" if annotation is not NO_ANNOTATION else f"as {codec}"
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
        exact = judgement.untyped and not is_plain(value)
        # Equality does not see offsets, their spelling does.
        trusting = not exact and (not zoned or _equal_spelling(spell, value, back))
        return Comparison(exact=exact, loose=loose, trusting=trusting).change(value, back)

    def encode(value: Any) -> bytes:
        try:
            data = write(value)
            problem = change(value, read(data))
            if problem is not None and zoned:
                spelled = spell(value)
                if change(value, read_spelled(spelled)) is None:
                    return bytes([_SPELLED]) + spelled
        except Exception as error:
            remedy = "await it first, in an async function" if isawaitable(value) else advice
            raise CodecError(
                f"cannot cache a value of type {type_name(value)} {subject}: {error}; {remedy}"
            ) from error
        if problem is not None:
            raise CodecError(
                f"cannot cache a value of type {type_name(value)} {subject}: value{problem}; {advice}"
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
    raise NotImplementedError(f"{type_name(value)} cannot be written here")


def _model_to_builtins(value: Any) -> Any:
    """Take a pydantic model apart, one level: msgspec comes back for the models inside.

    Not ``model_dump``: a user's serializers, exclusions and computed fields are for readers of the output and
    need not be readable by the validators.
    """
    pydantic = importlib.import_module("pydantic")
    if isinstance(value, pydantic.RootModel):
        return value.root
    if isinstance(value, pydantic.BaseModel):
        return {name: getattr(value, name) for name in instance_fields(value)}
    try:
        return importlib.import_module("pydantic_core").to_jsonable_python(value)
    except ValueError:
        return _refuse_value(value)


def _builtins_to_model(model: Any, data: Any) -> Any:
    return model.model_validate(data, strict=False, by_name=True, by_alias=False)
