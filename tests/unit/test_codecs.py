"""Values make the trip to bytes and back as what their function declares, or are refused with a reason."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import enum
import functools
import io
import math
import os
import pathlib
import subprocess
import sys
import time
import types
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence, Set
from decimal import Decimal
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheaside.codecs import NO_ANNOTATION, ValueCodec, codec_for, return_annotation
from cacheaside.errors import CodecError, ConfigError
from tests.ids import named

if TYPE_CHECKING:
    from collections import OrderedDict as Unavailable

T = TypeVar("T")
UserId = NewType("UserId", int)
NOW = dt.datetime(2026, 3, 4, 5, 6, 7, 8, tzinfo=dt.UTC)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Tone(enum.StrEnum):
    DARK = "dark"


class Author(msgspec.Struct):
    id: int
    name: str


class Post(msgspec.Struct):
    id: int
    author: Author
    tags: list[str] = []
    at: dt.datetime | None = None


class Frozen(msgspec.Struct, frozen=True):
    id: int
    at: dt.datetime
    parts: tuple[str, ...] = ()


class FrozenWithList(msgspec.Struct, frozen=True):
    parts: list[str]


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


class Chain(msgspec.Struct, frozen=True):
    value: int
    next: Chain | None = None


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    barks: bool


class Page(msgspec.Struct, Generic[T]):
    items: list[T]
    total: int


class AuthorPage(Page[Author]):
    pass


class Loose(msgspec.Struct):
    id: int
    extra: dict[str, Any]


class AlwaysDifferent(msgspec.Struct, eq=False):
    id: int
    score: float = math.nan


class Senior(Author):
    title: str = ""


@dataclasses.dataclass
class Plain:
    id: int
    when: dt.date


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class PointWithList:
    xs: list[int]


@attrs.define
class Machine:
    id: int
    price: Decimal


class Row(NamedTuple):
    id: int
    name: str


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Orm:
    """Like a mapped class: attributes, and no declared structure."""

    id: int = 1


class Inner(pydantic.BaseModel):
    at: dt.datetime
    amount: Decimal
    key: uuid.UUID
    color: Color = Color.RED


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    id: int = pydantic.Field(alias="Id")
    inner: Inner
    span: dt.timedelta
    names: set[str]
    pair: tuple[int, str]
    raw: bytes
    many: dict[int, Inner]
    where: pathlib.Path = pathlib.Path("a/b")
    hidden: int = pydantic.Field(default=1, exclude=True)
    either: int | str = 1

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.id * 2

    @functools.cached_property
    def heavy(self) -> int:
        return self.id


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    id: int


class Numbers(pydantic.RootModel[list[int]]):
    pass


class ModelPage(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Digested(pydantic.BaseModel):
    """A validator that changes what it validated before."""

    word: str

    @pydantic.field_validator("word")
    @classmethod
    def twice(cls, word: str) -> str:
        return word * 2


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr


def inner() -> Inner:
    return Inner(at=NOW, amount=Decimal("1.50"), key=uuid.UUID(int=7), color=Color.BLUE)


def model() -> Model:
    made = Model(
        Id=3,
        inner=inner(),
        span=dt.timedelta(days=400, microseconds=1),
        names={"a", "b"},
        pair=(1, "x"),
        raw=b"\xff\x00",
        many={1: inner()},
        hidden=5,
        either="5",
    )
    assert made.heavy == 3  # a cached property lives in the instance, and is not data
    return made


ROUND_TRIPS: list[tuple[Any, Any]] = [
    (str, "é"),
    (int, -(2**63)),
    (float, 1.5),
    (bool, True),
    (bytes, b"\xff"),
    (dt.datetime, NOW),
    (dt.datetime, dt.datetime(2026, 3, 4, 5, 6, 7)),
    (dt.date, NOW.date()),
    (dt.time, dt.time(1, 2, 3, 4)),
    (dt.timedelta, dt.timedelta(days=-400, microseconds=1)),
    (uuid.UUID, uuid.UUID(int=5)),
    (Decimal, Decimal("1.10")),
    (Color, Color.RED),
    (Level, Level.LOW),
    (Tone, Tone.DARK),
    (Literal["a", 1, None], 1),
    (UserId, 4),
    (Annotated[int, msgspec.Meta(gt=0)], 4),
    (int | None, None),
    (int | None, 4),
    (Optional[Post], None),  # noqa: UP045
    (list[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[str], {"a", "b"}),
    (frozenset[dt.date], frozenset({NOW.date()})),
    (dict[int, str], {1: "a"}),
    (dict[uuid.UUID, list[Decimal]], {uuid.UUID(int=1): [Decimal("2.0")]}),
    (Mapping[str, int], {"a": 1}),
    (Sequence[int], [1]),
    (Post, Post(1, Author(2, "ann"), ["x"], NOW)),
    (list[Post], [Post(1, Author(2, "ann"))]),
    (dict[int, Post | None], {1: Post(1, Author(2, "ann")), 2: None}),
    (Frozen, Frozen(1, NOW, ("a",))),
    (Node, Node(1, [Node(2), Node(3, [Node(4)])])),
    (Chain, Chain(1, Chain(2))),
    (Cat | Dog, Dog(True)),
    (list[Cat | Dog], [Dog(True), Cat(9)]),
    (Page[Author], Page([Author(1, "a")], 1)),
    (AuthorPage, AuthorPage([Author(1, "a")], 1)),
    (Plain, Plain(1, NOW.date())),
    (Point, Point(1.0, 2.0)),
    (Machine, Machine(1, Decimal("9.99"))),
    (Row, Row(1, "a")),
    (list[Row], [Row(1, "a")]),
    (Movie, {"title": "m"}),
    (Movie, {"title": "m", "year": 1999}),
    (Any, {"a": [1, None, {"b": 1.5}]}),
    (NO_ANNOTATION, {"a": [1, None, True, "x", {"b": 1.5}]}),
    (Loose, Loose(1, {"a": [1, "b"]})),
    (Inner, inner()),
    (list[Inner], [inner()]),
    (dict[str, Inner | None], {"a": inner(), "b": None}),
    (Numbers, Numbers([1, 2])),
    (ModelPage[Inner], ModelPage[Inner](items=[inner()])),
    (Open, Open(id=1, more="x")),  # type: ignore[call-arg]
]


@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle"])
@pytest.mark.parametrize(("annotation", "value"), ROUND_TRIPS, ids=named)
def test_a_value_comes_back_equal_and_of_its_own_type(annotation: Any, value: Any, codec: str) -> None:
    made = codec_for(annotation, codec=codec)
    data = made.encode(value)
    for stored in (data, memoryview(data)):
        back = made.decode(stored)
        assert back == value
        assert type(back) is type(value)


def test_a_pydantic_model_survives_aliases_strictness_exclusions_and_computed_fields() -> None:
    made = codec_for(Model)
    back = made.decode(made.encode(model()))
    assert back == model()
    assert (back.hidden, back.either, back.raw) == (5, "5", b"\xff\x00")
    assert type(back.inner.amount) is Decimal
    assert type(back.where) is type(pathlib.Path())


def test_a_pydantic_value_that_cannot_come_back_is_refused_when_stored() -> None:
    with pytest.raises(CodecError, match=r"value\.password: SecretStr"):
        codec_for(Secretive).encode(Secretive(password=pydantic.SecretStr("hunter2")))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Secretive, Secretive(password=pydantic.SecretStr("hunter2"))),
        (NO_ANNOTATION, {"hunter2@example.org": ("hunter2",)}),
        (NO_ANNOTATION, {"key": {"hunter2"}}),
        (Digested, Digested(word="hunter2")),
    ],
    ids=named,
)
def test_an_error_does_not_print_what_the_value_holds(annotation: Any, value: Any) -> None:
    with pytest.raises(CodecError, match="came back") as caught:
        codec_for(annotation).encode(value)
    assert "hunter2" not in str(caught.value)


BUILTINS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(BUILTINS)
def test_nested_builtins_survive_without_an_annotation(value: Any) -> None:
    made = codec_for(NO_ANNOTATION)
    assert repr(made.decode(made.encode(value))) == repr(value)  # repr, since a NaN equals nothing


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.decimals(allow_nan=False), st.datetimes(timezones=st.timezones() | st.none()))))
def test_datetimes_show_the_same_clock_and_offset_in_any_zone(
    rows: list[tuple[Decimal, dt.datetime]],
) -> None:
    made = codec_for(list[tuple[Decimal, dt.datetime]])
    # Local mean times, before about 1930, have seconds in their offset, which RFC 3339 cannot write.
    rows = [(amount, at) for amount, at in rows if not (at.utcoffset() or dt.timedelta()).seconds % 60]
    back = made.decode(made.encode(rows))
    assert [(str(amount), at.isoformat()) for amount, at in back] == [
        (str(a), at.isoformat()) for a, at in rows
    ]


BERLIN = dt.datetime(
    2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")
)  # the hour that comes twice


class Event(pydantic.BaseModel):
    at: dt.datetime


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (dt.datetime, BERLIN),
        (list[dt.datetime], [NOW, BERLIN]),
        (dict[dt.datetime, int], {BERLIN: 1}),
        (set[dt.datetime], {BERLIN}),
        (dict[str, dt.datetime | None], {"a": BERLIN, "b": None}),
        (Post, Post(1, Author(1, "a"), at=BERLIN)),
        (list[Event], [Event(at=BERLIN)]),
    ],
    ids=named,
)
def test_an_offset_survives_wherever_the_datetime_is(annotation: Any, value: Any) -> None:
    made = codec_for(annotation)
    data = made.encode(value)
    assert data[0] == 0xC1
    for stored in (data, memoryview(data)):
        assert "27, 2, 30, " in repr(made.decode(stored)).replace(", fold=1", "")
        assert type(made.decode(stored)) is type(value)


def test_an_offset_that_would_be_lost_is_refused() -> None:
    with pytest.raises(CodecError, match="datetime came back with another value; annotate"):
        codec_for(NO_ANNOTATION).encode(BERLIN)
    assert codec_for(NO_ANNOTATION).decode(codec_for(NO_ANNOTATION).encode(NOW)) == NOW


def test_types_may_differ_inside_a_value_with_an_offset_as_they_may_without() -> None:
    made = codec_for(tuple[float, str, dict[str, int], dt.datetime])
    value = (1, Tone.DARK, collections.defaultdict(int, a=1), BERLIN)
    assert made.decode(made.encode(value))[:3] == (1.0, "dark", {"a": 1})


def test_keys_may_be_what_msgpack_allows() -> None:
    made = codec_for(dict[tuple[int, int], str])
    assert made.decode(made.encode({(1, 2): "a"})) == {(1, 2): "a"}


def test_a_class_without_equality_and_a_nan_can_be_cached() -> None:
    made = codec_for(list[AlwaysDifferent])
    back = made.decode(made.encode([AlwaysDifferent(4)]))
    assert back[0].id == 4
    assert math.isnan(back[0].score)


# --- Refused at decoration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "parts"),
    [
        (None, ["-> None", "declare what it returns"]),
        (type(None), ["-> None"]),
        (Iterator[int], ["Iterator", "return a list"]),
        (AsyncIterator[Post], ["AsyncIterator", "return a list"]),
        (Callable[[int], str], ["Callable", "return data"]),
        (Awaitable[int], ["Awaitable", "async def"]),
        (io.BytesIO, ["BytesIO", "return a list, a dict or bytes"]),
        (Orm, ["Orm", "the return type", "msgspec.Struct", 'codec="pickle"']),
        (list[Orm], ["list[", "Orm", "dataclass"]),
        (Orm | None, ["Orm"]),
        (pathlib.Path, ["Path"]),
        (object, ["object", "Any"]),
        (dict[str, object], ["object"]),
        (collections.deque[int], ["deque", "list"]),
        (Author | Point, ["Author", "tag"]),
        (str | dt.datetime, ["str-like"]),
        (Inner | Open, ["custom type", "RootModel"]),
        (T, ["T", "type variable"]),
        (list[T], ["type variable"]),  # type: ignore[valid-type]
        (Page, ["Page is generic", "Page[int]"]),
        (list[Page], ["Page", "generic"]),
        (dataclasses.make_dataclass("Holder", [("conn", Orm)]), ["Holder.conn", "Orm"]),
        (dataclasses.make_dataclass("Holder", [("make", Callable[[], int])]), ["Holder.make", "Callable"]),
        (3, ["3"]),
    ],
    ids=named,
)
def test_a_type_that_cannot_come_back_is_refused_with_part_and_fix(annotation: Any, parts: list[str]) -> None:
    with pytest.raises(CodecError) as caught:
        codec_for(annotation)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type` statements")
def test_an_alias_that_contains_itself_is_refused() -> None:
    namespace: dict[str, Any] = {}
    exec("type Tree = dict[str, Tree] | int", namespace)
    with pytest.raises(CodecError, match="Tree contains itself"):
        codec_for(namespace["Tree"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "yaml"}, "codec='yaml'"),
        ({"codec": object()}, "`encode` and `decode`"),
        ({"version": "2"}, "version='2'"),
        ({"version": True}, "version=True"),
        ({"share": "yes"}, "share='yes'"),
    ],
)
def test_an_unusable_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        codec_for(int, **options)


# --- Refused when stored ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), "value: tuple came back as list"),
        ({"a": [(1,)]}, r"value\['a'\]\[0\]: tuple came back as list"),
        ({1, 2}, "set came back as list"),
        ({"at": NOW.replace(tzinfo=None)}, r"value\['at'\]: datetime came back as str"),
        ([Decimal(1)], r"value\[0\]: Decimal came back as str"),
        (uuid.UUID(int=1), "UUID came back as str"),
        (Author(1, "a"), "Author came back as dict"),
        (Point(1, 2), "Point came back as dict"),
        (Row(1, "a"), "Row came back as list"),
        (Tone.DARK, "Tone came back as str"),
        (Level.LOW, "Level came back as int"),
        ({Tone.DARK: 1}, "value key 0: Tone came back as str"),
        (collections.OrderedDict(a=1), "OrderedDict came back as dict"),
        (bytearray(b"a"), "bytearray came back as bytes"),
        (inner(), "Inner cannot be written here"),
        (Orm(), "Orm cannot be written here"),
        ((n for n in [1]), "generator"),
        (1 << 70, "of type int"),
    ],
    ids=named,
)
def test_without_an_annotation_nothing_changes_its_kind_silently(value: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message) as caught:
        codec_for(NO_ANNOTATION).encode(value)
    assert "annotate the return type" in str(caught.value)


def test_a_coroutine_is_to_be_awaited_and_not_to_be_annotated() -> None:
    """As a plain function gives that was handed to get_or_load and is async."""
    held = asyncio.sleep(0)
    with pytest.raises(
        CodecError, match="coroutine cannot be written here; await it first, in an async function"
    ):
        codec_for(NO_ANNOTATION).encode(held)
    held.close()


def test_an_untyped_corner_of_a_typed_value_is_watched_too() -> None:
    with pytest.raises(CodecError, match=r"value\[0\]\.extra\['at'\]: date came back as str"):
        codec_for(list[Loose]).encode([Loose(1, {"at": NOW.date()})])


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Post, {"id": 1}, "type dict under `Post`.*missing required field `author`"),
        (int, "1", "Expected `int`, got `str`"),
        (list[int], (1, 2), "tuple came back as list"),
        (Author, Senior(1, "a", "dr"), "Senior came back as Author"),
        (list[Author], [Senior(1, "a", "dr")], r"value\[0\]: Senior came back as Author"),
        (Annotated[int, msgspec.Meta(gt=0)], 0, ">= 1"),
        (list[Author], [Orm()], "Orm cannot be written here"),
        (Inner, Inner.model_construct(at=NOW), "type Inner"),
    ],
    ids=named,
)
def test_a_value_that_breaks_its_annotation_is_refused(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        codec_for(annotation).encode(value)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 1, 1.0),
        (Sequence[int], (1, 2), [1, 2]),
        (Set[int], frozenset({1}), {1}),
        (dict[str, int], collections.defaultdict(int, a=1), {"a": 1}),
        (dict[str, float], collections.defaultdict(float, a=math.inf), {"a": math.inf}),
    ],
    ids=named,
)
def test_what_the_annotation_allows_is_no_change(annotation: Any, value: Any, expected: Any) -> None:
    made = codec_for(annotation)
    assert made.decode(made.encode(value)) == expected


def test_json_refuses_what_json_cannot_say() -> None:
    assert codec_for(float).decode(codec_for(float).encode(math.inf)) == math.inf
    with pytest.raises(CodecError, match="as json"):
        codec_for(float, codec="json").encode(math.inf)
    with pytest.raises(CodecError, match="tuple cannot be written here"):
        codec_for(dict[tuple[int, int], str], codec="json").encode({(1, 2): "a"})
    with pytest.raises(CodecError, match="int came back as str"):
        codec_for(Any, codec="json").encode({1: 2})


def test_a_value_inside_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(CodecError, match="recursion"):
        codec_for(list[Any]).encode(value)


# --- Bytes from elsewhere --------------------------------------------------------------------------------

READERS = [
    codec_for(annotation, codec=codec)
    for annotation in (
        NO_ANNOTATION,
        Post,
        Model,
        list[Row],
        dict[uuid.UUID, Decimal],
        dt.timedelta,
        set[Frozen],
    )
    for codec in ("msgpack", "json")
]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64))
def test_random_bytes_give_a_value_or_a_codec_error_and_nothing_else(data: bytes) -> None:
    for reader in READERS:
        try:
            reader.decode(data)
        except CodecError:
            continue


@settings(max_examples=100, deadline=None)
@given(BUILTINS)
def test_bytes_of_another_shape_give_a_value_or_a_codec_error_and_nothing_else(value: Any) -> None:
    data = msgspec.msgpack.encode(value)
    for reader in READERS:
        try:
            reader.decode(data)
        except CodecError:
            continue


@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle"])
def test_every_truncation_is_a_codec_error(codec: str) -> None:
    made = codec_for(Post, codec=codec)
    data = made.encode(Post(1, Author(2, "ann"), ["x"], NOW))
    for size in range(len(data)):
        with pytest.raises(CodecError):
            made.decode(data[:size])


@pytest.mark.parametrize("data", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_hostile_nesting_and_lengths_are_codec_errors(data: bytes) -> None:
    with pytest.raises(CodecError):
        codec_for(NO_ANNOTATION).decode(data)


# --- Pickle and serializers of one's own -----------------------------------------------------------------


def test_pickle_takes_any_annotation_but_only_when_named() -> None:
    made = codec_for(Orm, codec="pickle")
    assert type(made.decode(made.encode(Orm()))) is Orm
    assert not made.shareable
    assert codec_for(tuple[int, ...], codec="pickle").shareable


def test_pickle_of_what_cannot_be_pickled_is_a_codec_error() -> None:
    with pytest.raises(CodecError, match="generator"):
        codec_for(Any, codec="pickle").encode(n for n in [1])


class Reversing:
    name = "reversing"

    def encode(self, value: Any, /) -> bytes:
        return str(value)[::-1].encode()

    def decode(self, data: bytes, /) -> Any:
        return data.decode()[::-1]


def test_a_serializer_of_ones_own_is_used_and_named_in_the_schema() -> None:
    made = codec_for(str, codec=Reversing())
    assert made.encode("abc") == b"cba"
    assert made.decode(memoryview(b"cba")) == "abc"
    assert (made.name, made.shareable) == ("reversing", True)
    assert made.schema != codec_for(str).schema
    with pytest.raises(CodecError, match="reversing"):
        made.decode(b"\xff")


# --- Sharing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "shareable"),
    [
        *[
            (kind, True)
            for kind in (str, int, float, bool, bytes, dt.datetime, dt.date, dt.time, dt.timedelta)
        ],
        *[(kind, True) for kind in (uuid.UUID, Decimal, Color, Level, UserId, Literal["a"])],
        (int | None, True),
        (int | str, True),
        (tuple[int, str], True),
        (tuple[Frozen, ...], True),
        (frozenset[str], True),
        (Row, True),
        (Frozen, True),
        (Point, True),
        (Chain, True),
        (tuple[int, list[int]], False),
        (tuple[Any, ...], False),
        (tuple, False),
        (list[int], False),
        (set[int], False),
        (dict[str, int], False),
        (bytearray, False),
        (Post, False),
        (Node, False),
        (FrozenWithList, False),
        (PointWithList, False),
        (Frozen | None, True),
        (FrozenWithList | None, False),
        (Plain, False),
        (Machine, False),
        (Movie, False),
        (Inner, False),
        (Any, False),
        (NO_ANNOTATION, False),
    ],
    ids=named,
)
def test_only_what_is_immutable_all_the_way_down_is_shared(annotation: Any, shareable: bool) -> None:
    assert codec_for(annotation).shareable is shareable


def test_share_overrules_the_annotation() -> None:
    assert codec_for(list[int], share=True).shareable
    assert not codec_for(int, share=False).shareable


# --- The fingerprint -------------------------------------------------------------------------------------


HEADER = """
import attrs, dataclasses, enum, msgspec, pydantic
from typing import *
D, M, S, T = dataclasses.dataclass, pydantic.BaseModel, msgspec.Struct, TypeVar("T")
"""


def codec_of(source: str) -> ValueCodec:
    """The codec of what ``source`` calls C."""
    module = types.ModuleType("made_for_a_test")
    sys.modules[module.__name__] = module
    try:
        exec(compile(HEADER + source, module.__name__, "exec", dont_inherit=True), module.__dict__)
        return codec_for(module.C)
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("class C(S): a: int", "class C(S):\n a: int\n b: int = 1"),
        ("class C(S): a: int", "class C(S): a: str"),
        ("class C(S): a: int", "class C(S): b: int"),
        ("class C(S): a: int", "class C(S): a: int | None"),
        ("class C(S): aB: int", "class C(S, rename='upper'): aB: int"),
        ("class C(S): a: int", "class C(S, tag=True): a: int"),
        ("class C(S):\n a: int\n b: int", "class C(S, array_like=True):\n a: int\n b: int"),
        ("class C(S, array_like=True):\n a: int\n b: int", "class C(S, array_like=True):\n b: int\n a: int"),
        ("class C(S, omit_defaults=True): a: int = 1", "class C(S, omit_defaults=True): a: int = 2"),
        ("class I(S): a: int\nclass C(S): i: list[I]", "class I(S): a: float\nclass C(S): i: list[I]"),
        ("@D\nclass C: a: int", "@D\nclass C:\n a: int\n b: int = 1"),
        ("class C(TypedDict): a: int", "class C(TypedDict): a: str"),
        ("class C(NamedTuple):\n a: int\n b: int", "class C(NamedTuple):\n b: int\n a: int"),
        ("@attrs.define\nclass C: a: int", "@attrs.define\nclass C: a: str"),
        ("class C(enum.Enum): A = 'a'", "class C(enum.Enum):\n A = 'a'\n B = 'b'"),
        ("class C(enum.Enum): A = 'a'", "class C(enum.Enum): A = 'b'"),
        ("class C(M): a: int", "class C(M):\n a: int\n b: int = 1"),
        ("class I(M): a: int\nclass C(M): i: list[I]", "class I(M): a: float\nclass C(M): i: list[I]"),
        ("class I(M): a: int\nclass C(S): i: list[I]", "class I(M): b: int\nclass C(S): i: list[I]"),
        ("class C(S): a: Literal['x']", "class C(S): a: Literal['x', 'y']"),
        ("class C(S): a: Literal['1']", "class C(S): a: Literal[1]"),
        (
            "class P(S, Generic[T]): i: list[T]\nclass C(P[int]): pass",
            "class P(S, Generic[T]): i: list[T]\nclass C(P[str]): pass",
        ),
        ("class C(S):\n a: int\n next: 'C | None' = None", "class C(S):\n a: str\n next: 'C | None' = None"),
    ],
)
def test_a_change_in_the_structure_changes_the_fingerprint(before: str, after: str) -> None:
    assert codec_of(before).schema != codec_of(after).schema


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("class C(S):\n a: int\n b: str", "class C(S):\n b: str\n a: int"),
        ("class C(S): a: Optional[int]", "class C(S): a: int | None"),
        ("class C(S): a: Union[int, str, None]", "class C(S): a: None | str | int"),
        ("class C(S): a: List[int]", "class C(S): a: list[int]"),
        ("class C(S): a: int", "class C(S): a: Annotated[int, 'anything']"),
        ("class C(S): a: int", "class C(S):\n a: int\n k: ClassVar[int] = 1\n def f(self) -> None: ..."),
        ("class C(S): a: Literal['x', 'y']", "class C(S): a: Literal['y', 'x']"),
        ("class C(enum.Enum):\n A = 1\n B = 2", "class C(enum.Enum):\n B = 2\n A = 1"),
        ("class C(M): a: int", "class C(M):\n a: int\n def f(self) -> None: ..."),
    ],
)
def test_a_change_that_the_bytes_do_not_see_keeps_the_fingerprint(one: str, other: str) -> None:
    assert codec_of(one).schema == codec_of(other).schema


def test_optional_is_spelled_in_any_way() -> None:
    spellings = [Optional[Post], Post | None, None | Post, Union[None, Post]]  # noqa: UP007, UP045
    assert len({codec_for(spelling).schema for spelling in spellings}) == 1


def test_codec_and_version_are_part_of_the_fingerprint() -> None:
    made = [
        codec_for(int),
        codec_for(int, version=2),
        codec_for(int, codec="json"),
        codec_for(int, codec="pickle"),
    ]
    assert len({codec.schema for codec in made}) == len(made)
    assert {len(codec.schema) for codec in made} == {8}


def test_two_classes_of_one_name_are_told_apart() -> None:
    source = "class X(S): a: int\nY = X\nclass X(S): b: int\n"
    assert codec_of(source + "C = tuple[Y, X]").schema != codec_of(source + "C = tuple[Y, Y]").schema


def test_many_classes_that_refer_to_each_other_are_described_in_a_moment() -> None:
    source = "\n".join(
        f"class C{n}(S):\n" + "\n".join(f" f{m}: 'C{m} | None' = None" for m in range(12)) for n in range(12)
    )
    assert not codec_of(source + "\nC = C0").shareable


def test_the_fingerprint_is_the_same_in_every_process_and_python() -> None:
    """Pinned: a change here means that an upgrade empties every cache once."""
    everything = dict[
        str, tuple[Post, Point | None, Movie, Row, Machine, Color, Literal["a", 1], Node, Inner]
    ]
    assert codec_for(everything).schema.hex() == "9ed02ce10aca510f"


def test_the_fingerprint_does_not_depend_on_the_hash_seed() -> None:
    source = (
        "import datetime, enum, typing, msgspec\nfrom cacheaside.codecs import codec_for\n"
        "E = enum.Enum('E', 'A B C D')\n"
        "class C(msgspec.Struct):\n"
        " a: typing.Literal['x', 'y', 'z', 1, 2] | None | float | list[int] = None\n"
        "print(codec_for(dict[str, C]).schema.hex())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(answers) == 1


# --- Reading the annotation ------------------------------------------------------------------------------


def annotated(function: Callable[..., Any]) -> Any:
    return return_annotation(function)


def test_string_annotations_are_resolved_in_the_functions_own_module() -> None:
    def load(user: Unavailable) -> list[Post]: ...  # type: ignore[type-arg, empty-body]

    async def aload() -> Annotated[int, "x"]: ...  # type: ignore[empty-body]

    assert annotated(load) == list[Post]
    assert annotated(aload) == Annotated[int, "x"]


def test_a_local_class_is_found_when_the_function_uses_it() -> None:
    class Local(msgspec.Struct):
        id: int

    def load() -> Local:
        return Local(1)

    assert annotated(load) is Local


def test_no_annotation_is_not_the_same_as_none() -> None:
    def silent(): ...  # type: ignore[no-untyped-def]

    def nothing() -> None: ...

    assert annotated(silent) is NO_ANNOTATION
    assert annotated(nothing) is type(None)
    assert annotated(len) is NO_ANNOTATION


def test_methods_partials_and_wrapped_functions_answer_for_what_they_wrap() -> None:
    class Repo:
        def get(self, n: int) -> Post: ...  # type: ignore[empty-body]

        @classmethod
        def make(cls) -> Author: ...  # type: ignore[empty-body]

    @functools.wraps(Repo.get)
    def wrapper(*args: Any) -> Any: ...

    assert annotated(Repo().get) is Post
    assert annotated(Repo.__dict__["make"]) is Author
    assert annotated(functools.partial(Repo.get, n=1)) is Post
    assert annotated(wrapper) is Post


def test_a_name_for_type_checkers_only_is_refused_with_the_fix() -> None:
    def load() -> Unavailable: ...  # type: ignore[type-arg, empty-body]

    with pytest.raises(ConfigError, match=r"'Unavailable' of .*load.* TYPE_CHECKING"):
        annotated(load)


def test_a_name_missing_inside_a_class_is_refused_with_the_fix() -> None:
    class Broken(msgspec.Struct):
        field: Unavailable  # type: ignore[type-arg]

    with pytest.raises(ConfigError, match=r"Broken.*Unavailable.*TYPE_CHECKING"):
        codec_for(Broken)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters")
def test_type_parameters_are_resolved_and_then_refused() -> None:
    namespace: dict[str, Any] = {}
    exec("from __future__ import annotations\ndef first[K](items: list[K]) -> K: ...", namespace)
    with pytest.raises(CodecError, match="type variable"):
        codec_for(annotated(namespace["first"]))


# --- Speed -----------------------------------------------------------------------------------------------


@pytest.mark.benchmark
def test_speed_is_printed_and_not_judged() -> None:
    posts = [Post(n, Author(n, "ann"), ["x", "y"], NOW) for n in range(20)]
    untyped = [{"id": n, "author": {"id": n, "name": "ann"}, "tags": ["x", "y"]} for n in range(20)]
    for name, codec, value in [
        ("20 Structs", codec_for(list[Post]), posts),
        ("20 dicts, no annotation", codec_for(NO_ANNOTATION), untyped),
        ("20 models", codec_for(list[Inner]), [inner() for _ in range(20)]),
    ]:
        data = codec.encode(value)
        micros = []
        for work in (lambda c=codec, v=value: c.encode(v), lambda c=codec, d=data: c.decode(d)):
            start = time.perf_counter()
            for _ in range(300):
                work()
            micros.append((time.perf_counter() - start) / 300 * 1e6)
        assert codec.decode(data) == value
        print(f"\n{name}: encode and check {micros[0]:.0f} us, decode {micros[1]:.0f} us, {len(data)} bytes")
