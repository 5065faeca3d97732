"""Keys and tags: what calls are named, and that two different calls never share a name."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cacheaside.errors import ConfigError, KeyTemplateError
from cacheaside.keys import Kind, Signature, check_namespace, compile_key, compile_tags, escape, tag_name
from cacheaside.rawkeys import RawKeys

NAN = float("nan")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    ONE = "1"


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Label(str):
    __slots__ = ()


class Money(int):
    """An int that is more than its number."""


@dataclasses.dataclass
class Post:
    id: object
    author_id: object = 3


class Point(NamedTuple):
    x: int
    y: int


class Packed(msgspec.Struct):
    x: int


@attrs.define
class Attrs:
    x: int


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    x: int


class Repo:
    tenant = "acme"


class OtherRepo(Repo):
    pass


def feed(user_id: object, page: object = 1) -> None: ...


def one(x: object) -> None: ...


def two(x: object, y: object) -> None: ...


def get(self: object, post_id: object) -> None: ...


def key_of(fn: Callable[..., Any], template: str | None, kind: Kind = Kind.FUNCTION) -> Callable[..., str]:
    return compile_key(fn, kind, "posts", template).function(Signature(fn, kind))


def tags_of(fn: Callable[..., Any], tags: Any, kind: Kind = Kind.FUNCTION) -> Callable[..., tuple[str, ...]]:
    return compile_tags(fn, kind, tags).known.function(Signature(fn, kind))


def late_of(fn: Callable[..., Any], tags: Any) -> Callable[..., tuple[str, ...]]:
    late = compile_tags(fn, Kind.FUNCTION, tags).late
    assert late is not None
    return late


def refused(template: Any, fn: Callable[..., Any] = feed, kind: Kind = Kind.FUNCTION) -> str:
    with pytest.raises(KeyTemplateError) as info:
        compile_key(fn, kind, "posts", template)
    return str(info.value)


# Key templates


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        ("feed:{user_id}:page:{page}", (7,), "posts:feed:7:page:1"),
        ("feed:{user_id}:page:{page}", (-7, 10**30), f"posts:feed:-7:page:{10**30}"),
        ("feed:{user_id}", ("anna",), "posts:feed:anna"),
        ("feed:{user_id}", ("b64url_-=@.",), "posts:feed:b64url_-=@."),
        ("trending", (7,), "posts:trending"),
        ("top posts\"'\\é:{page}", (7,), "posts:top posts\"'\\é:1"),
        ("feed:{user_id}", ("",), "posts:feed:"),
    ],
)
def test_ordinary_keys_are_readable(template: str, arguments: tuple[object, ...], expected: str) -> None:
    """A key is its template with the values filled in, literal text as written."""
    assert key_of(feed, template)(*arguments) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a:b", "a%3Ab"),
        ("{x}", "%7Bx%7D"),
        ("100%", "100%25"),
        ("a b\n\x00", "a%20b%0A%00"),
        ("\u00a0", "%C2%A0"),
        ("a~b", "a%7Eb"),
        ("e\u0301", "é"),
        ("\ud800", "%ED%A0%80"),
        ("42", "%342"),
        ("-1.5e-07", "%2D1.5e-07"),
        ("None", "%4Eone"),
        ("True", "%54rue"),
        ("nan", "%6Ean"),
        ("-inf", "%2Dinf"),
        ("2026-11-01", "2026-11-01"),
        ("10:00:00", "10%3A00%3A00"),
        ("42nd", "42nd"),
        pytest.param(Label("42"), "%342", id="str subclass"),
        (42, "42"),
        pytest.param(Money(42), "42", id="int subclass"),
        (True, "True"),
        (None, "None"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (NAN, "nan"),
        (Decimal(1), "%d1"),
        (b"\x01\xff", "%b01ff"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2026, 11, 1), "2026-11-01"),
        (datetime(2026, 11, 1, 10, tzinfo=UTC), "2026-11-01T10%3A00%3A00+00%3A00"),
        (time(10), "10%3A00%3A00"),
        (Color.RED, "%mColor.RED"),
        (Level.ONE, "%mLevel.ONE"),
        (Word.ONE, "%mWord.ONE"),
        (Permission(0), "%mPermission.0"),
        ((1, "1", "a,(b)", ("", None)), "%(1,%31,a%2C%28b%29,%(%-,None))"),
        ([], "%()"),
    ],
)
def test_each_type_has_its_text(value: object, text: str) -> None:
    """Types are told apart by marks and by an escaped first character."""
    assert key_of(one, "{x}")(value) == f"posts:{text}"


TYPED = [
    1, "1", True, "True", None, "None", "", "a:b", ("a", "b"), ("a:b",), ("a,b",), (), ("",), ("", ""), 1.0,
    "1.0", -0.0, 0.0, 0, b"1", b"", "%31", "%b31", Decimal(1), "%d1", Decimal("1.0"), NAN, "nan",
    UUID(int=1), date(2026, 11, 1), datetime(2026, 11, 1), time(10), Color.RED, Color.BLUE, "Color.RED",
    "%mColor.RED", Level.ONE, Word.ONE, Permission(3), Permission(0), ((),), "%()", "()",
    (1, 2), ("1", 2), ((1,), 2), "1,2",
]  # fmt: skip

SPELT = [str(UUID(int=1)), "2026-11-01", "10:00:00"]


def test_no_two_types_share_a_key() -> None:
    """Everything in the list has a key of its own, by template and by default."""
    for template, values in (("{x}", TYPED), (None, [*TYPED, *SPELT])):
        key = key_of(one, template)
        assert len({key(value) for value in values}) == len(values)


def test_an_id_and_its_text_share_a_key_of_a_template() -> None:
    """A UUID or a date finds what was stored under its text, as a URL brings it."""
    key = key_of(one, "{x}")
    for value in (UUID(int=1), date(2026, 11, 1)):
        assert key(value) == key(str(value))
    assert key(str(UUID(int=1))) == "posts:00000000-0000-0000-0000-000000000001"


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), st.uuids(), st.dates(), st.times(),
        st.datetimes(), st.decimals(), st.sampled_from(Color), st.text(),
        st.text("0123456789-+.:%(),~{}TNabdeinfmuos "), st.integers().map(str), st.floats().map(repr),
        st.uuids().map(str), st.dates().map(str), st.datetimes().map(datetime.isoformat),
    ),
    lambda items: st.lists(items, max_size=3).map(tuple),
    max_leaves=4,
)  # fmt: skip


def typed(value: object) -> object:
    """Say what must be equal for two values to share a key."""
    if isinstance(value, tuple):
        return ("tuple", *map(typed, value))
    if isinstance(value, str):
        return ("str", escape(value))
    if isinstance(value, UUID):
        return ("str", str(value))
    if isinstance(value, (date, time)):
        return ("str", escape(value.isoformat()))
    return (type(value), repr(value))


@given(VALUES, VALUES)
def test_values_of_a_template_never_collide(a: object, b: object) -> None:
    """Two values render alike only if they are of one type and equal."""
    key = key_of(one, "{x}")
    assert (key(a) == key(b)) == (typed(a) == typed(b))


NASTY = st.one_of(st.text(":ab%", max_size=5), st.text(":ab%"), VALUES)


@given(st.tuples(NASTY, NASTY), st.tuples(NASTY, NASTY))
def test_fields_never_run_into_each_other(a: tuple[object, object], b: tuple[object, object]) -> None:
    """No pair of values can be cut at another place."""
    assume(typed(a) != typed(b))
    key = key_of(two, "a:{x}:b:{y}")
    assert key(*a) != key(*b)


@pytest.mark.parametrize("gap", [":", ":b:", "-", "|", ", ", ".", ",", "_", "(", "x-x", "+", "--"])
def test_whatever_parts_the_fields_keeps_them_apart(gap: str) -> None:
    """Every short text over the characters of the gap, on both sides of it, has a key of its own."""
    alphabet = sorted({*gap, ":", "1", "%"})
    texts = ["".join(letters) for size in range(4) for letters in itertools.product(alphabet, repeat=size)]
    values = [*texts, 1, -1, 1.5, -1.5, 1e-05, None, (), (1, "1"), b"1", Color.RED, date(2026, 11, 1)]
    key = key_of(two, f"{{x}}{gap}{{y}}")
    assert len({key(x, y) for x in values for y in values}) == len(values) ** 2


def test_three_fields_parted_by_a_dash() -> None:
    """A minus sign is not taken for the dash between two fields."""

    def three(x: object, y: object, z: object) -> None: ...

    key = key_of(three, "{x}-{y}-{z}")
    assert key("", 1, -2) != key(-1, "", 2)


@given(st.text(), st.text())
def test_escaping_is_reversible(a: str, b: str) -> None:
    """Escaped texts are equal only if the texts are, up to Unicode normalisation; nothing unsafe is left."""
    assert not set(escape(a)) & set(":{}~ \n\t\x00")
    assert (escape(a) == escape(b)) == (escape(escape(a)) == escape(escape(b)))


@given(st.text(min_size=190), st.text(min_size=190))
def test_long_keys_end_in_a_hash(a: str, b: str) -> None:
    """However long the values are, the key is at most 200 bytes after its namespace, and still their own."""
    key = key_of(one, "q:{x}")
    rest = key(a).removeprefix("posts:")
    assert len(rest.encode()) <= 200
    assert (key(a) == key(b)) == (escape(a) == escape(b))


def test_a_long_key_keeps_its_beginning() -> None:
    """The hash covers what was cut off, and a user cannot write it."""
    key = key_of(one, "q:{x}")
    long = key("x" * 300)
    assert long.startswith("posts:q:" + "x" * 158 + "~")
    assert key("x" * 198) == "posts:q:" + "x" * 198
    assert key(long.removeprefix("posts:q:")) != long


def test_a_long_literal_key_is_hashed() -> None:
    """A template without fields is shortened once."""
    assert len(key_of(feed, "x" * 300)(1)) < 206


def test_attributes_and_indexes() -> None:
    """Fields walk attributes and indexes as str.format does."""

    def f(self: Any, posts: Any, *ids: Any, **options: Any) -> None: ...

    key = key_of(f, "{self.tenant}:{posts[0].id}:{posts[1][a b]}:{ids}:{ids[0]}:{options[q]}", Kind.METHOD)
    assert key(Repo(), [Post(5), {"a b": "x"}], 1, "2", q=None) == "posts:acme:5:x:%(1,%32):1:None"


def test_keyword_arguments_in_any_order() -> None:
    """``{options}`` names all keyword arguments, sorted."""

    def f(**options: Any) -> None: ...

    key = key_of(f, "{options}")
    assert key(b=1, a=2) == key(a=2, b=1) == "posts:%(%(a,2),%(b,1))"


def test_a_parameter_called_result_may_be_in_a_key() -> None:
    """Only the value returned is out of reach of a key."""

    def f(result: Any) -> None: ...

    assert key_of(f, "{result.id}")(Post(1)) == "posts:1"


@pytest.mark.parametrize("ns", ["", "a:b", "a b", "a{", "}", "50%", "*", "a\n", None, 1])
def test_bad_namespaces_are_refused(ns: Any) -> None:
    """The namespace is one plain segment."""
    with pytest.raises(ConfigError, match="ns must be"):
        compile_key(feed, Kind.FUNCTION, ns, "x")
    assert check_namespace("posts") == "posts"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "key of feed is empty"),
        (7, "key of feed must be a str, not int"),
        ("feed:{user}", r"no parameter 'user': did you mean {user_id}\? The parameters are user_id, page"),
        ("feed:{zzz}", r"no parameter 'zzz'\. The parameters are user_id, page"),
        ("feed:{}", "not numbered"),
        ("feed:{0}", "not numbered"),
        ("feed:{user_id", "braces must be balanced"),
        ("feed:}", "braces must be balanced"),
        ("feed:{user_id!r}", "conversion or format spec"),
        ("feed:{user_id:>3}", "conversion or format spec"),
        ("feed:{user_id:{page}}", "conversion or format spec"),
        ("feed:{result.id}", "before there is a result"),
        ("feed:{user_id.}", "with attributes"),
        ("feed:{user_id.a-b}", "not the name of an attribute"),
        ("feed:{user_id.class}", "not the name of an attribute"),
        ("feed:{user_id[-1]}", "an index is"),
        ("feed:{user_id['a']}", "an index is"),
        ("feed:{{{user_id}}}", "'{' cannot stand in its text"),
        ("100%:{user_id}", "'%' cannot stand in its text"),
        ("a~{user_id}", "'~' cannot stand in its text"),
        ("a\x00", "cannot stand in its text"),
        ("{user_id}{page}", "put ':' between {user_id} and {page}"),
        ("{user_id}x{page}", "put ':' between {user_id} and {page}"),
    ],
)
def test_bad_key_templates_are_refused(template: Any, message: str) -> None:
    """What is wrong with a template is said when the function is decorated."""
    with pytest.raises(KeyTemplateError, match=message):
        compile_key(feed, Kind.FUNCTION, "posts", template)


@pytest.mark.parametrize("kind", [Kind.METHOD, Kind.CLASSMETHOD])
def test_a_bare_receiver_is_refused(kind: Kind) -> None:
    """A repository object is not part of a key, an attribute of it may be."""
    assert "self has no identity: name an attribute, {self.tenant}" in refused("{self}", get, kind)
    assert key_of(get, "{self.tenant}:{post_id}", kind)(Repo, 1) == "posts:acme:1"


@pytest.mark.parametrize("value", [{}, {1}, object(), Post(1), timedelta(1), 1j, bytearray()])
def test_a_value_without_a_text_is_refused(value: object) -> None:
    """A call whose argument cannot be written says which, of what type, and what to do."""
    name = type(value).__name__
    with pytest.raises(KeyTemplateError, match=rf"one\(x\): a {name} cannot .* name an attribute"):
        key_of(one, "q:{x}")(value)
    with pytest.raises(KeyTemplateError, match=rf"one\(x\): a {name}"):
        key_of(one, "q:{x}")([value])


def test_a_list_in_itself_is_refused() -> None:
    """There is no end to its text, nor to its canonical form."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(KeyTemplateError, match="contains itself"):
        key_of(one, "{x}")(endless)
    with pytest.raises(KeyTemplateError, match="contains itself"):
        key_of(one, None)(endless)


def test_a_time_without_an_offset_is_refused() -> None:
    """A time in Paris has no offset without a date, and would read like a naive one."""
    paris = time(10, tzinfo=ZoneInfo("Europe/Paris"))
    with pytest.raises(KeyTemplateError, match="offset"):
        key_of(one, "{x}")(paris)
    with pytest.raises(KeyTemplateError, match="offset"):
        key_of(one, None)(paris)


# Default keys


def test_a_default_key_binds_its_arguments() -> None:
    """f(1), f(a=1) and f() with the default 1 are one call."""

    def f(a: int = 1, *, b: int = 2) -> None: ...

    key = key_of(f, None)
    assert key(1) == key(a=1) == key() == key(b=2) == key(1, b=2)
    assert key() != key(2)
    assert key(2, b=1) != key(1, b=2)


def test_a_default_key_names_the_function() -> None:
    """The module and qualified name are readable, the arguments are a hash of 128 bits."""
    head, _, digest = key_of(feed, None)(7).rpartition(":")
    assert head == f"posts:{__name__}.feed"
    assert len(digest) == 32

    def inner() -> None: ...

    assert ".%3Clocals%3E.inner:" in key_of(inner, None)()


def test_a_default_key_of_a_method_has_its_class() -> None:
    """Two instances share their entries, two classes do not."""
    key = key_of(get, None, Kind.METHOD)
    assert key(Repo(), 1) == key(Repo(), 1)
    assert key(Repo(), 1) != key(OtherRepo(), 1)
    key = key_of(get, None, Kind.CLASSMETHOD)
    assert key(Repo, 1) == key(Repo, post_id=1)
    assert key(Repo, 1) != key(OtherRepo, 1)


def test_a_remembered_key_is_told_apart_by_type() -> None:
    """Equal arguments of other types do not find each other's remembered key."""
    values = [1, True, 1.0, Decimal(1), "1", b"1", Level.ONE, Money(1), (1,), (True,)]
    for order in (values, values[::-1]):
        key = key_of(one, None)
        assert len({key(value) for value in order * 2}) == len(values)

    def many(*ids: object, **options: object) -> None: ...

    key = key_of(many, None)
    calls = [key(1), key(True), key((1,)), key(a=1), key(a=True), key(a=1.0), key(1, a=1), key(1.0)]
    assert len(set(calls)) == len(calls)
    assert key(1, a=1, b="x") == key(1, b="x", a=1)


def test_remembered_keys_are_bounded() -> None:
    """A scan over many ids gives right keys before and after the memory was cleared."""
    key = key_of(one, None)
    first = [key(n) for n in range(3000)]
    assert len(set(first)) == 3000
    assert [key(n) for n in range(3000)] == first


def test_default_keys_under_threads() -> None:
    """Threads that fill and clear the memory at once still agree."""
    key = key_of(one, None)
    expected = [key_of(one, None)(n) for n in range(2000)]
    wrong: list[int] = []

    def run() -> None:
        wrong.extend(n for n in range(2000) if key(n) != expected[n])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(VALUES, VALUES)
def test_default_keys_never_collide(a: object, b: object) -> None:
    """Two values have one default key only if they are of one type and equal."""

    def exact(value: object) -> object:
        if isinstance(value, tuple):
            return ("tuple", *map(exact, value))
        return (type(value), repr(value), getattr(value, "fold", 0))

    key = key_of(one, None)
    assert (key(a) == key(b)) == (exact(a) == exact(b))


STRUCTURED = [
    [1, 2], (1, 2), Point(1, 2), {1: 2}, {"1": 2}, {1, 2}, frozenset({1, 2}), [[1], 2], [1, [2]], {},
    set(), frozenset(), [], (), Post(1), Post(1, 4), Post("1"), Packed(1), Attrs(1), Model(x=1),
    Model.model_validate({"x": 1, "y": 2}), {"x": 1}, timedelta(1), timedelta(0, 86401), Color.RED, Level.ONE,
    Word.ONE, "1", Label("1"), 1, Permission(3), Permission(0), 2**63, -(2**63), 2**64, hex(2**64), "\ud800",
    b"\xed\xa0\x80", datetime(2026, 10, 25, 2), datetime(2026, 10, 25, 2, fold=1),
    datetime(2026, 10, 25, 2, tzinfo=ZoneInfo("Europe/Paris")),
    datetime(2026, 10, 25, 2, tzinfo=ZoneInfo("Europe/Berlin")), 1e300, 0.1,
]  # fmt: skip


def test_structured_arguments_never_collide() -> None:
    """Containers and records are part of a default key, each type apart."""
    key = key_of(one, None)
    assert len({key(value) for value in STRUCTURED}) == len(STRUCTURED)


def test_order_does_not_count_where_there_is_none() -> None:
    """Dictionaries and sets that are equal have one key, and so do all NaNs."""
    key = key_of(one, None)
    assert key({"a": 1, 2: "b"}) == key({2: "b", "a": 1})
    assert key(set("abcdefgh")) == key(set("hgfedcba"))
    assert key({"b", 1, None}) == key({None, 1, "b"})
    assert key(NAN) == key(-NAN)


def test_a_default_key_is_the_same_in_every_process() -> None:
    """The bytes are pinned: another release that changes them makes every default key cold."""
    assert key_of(one, None)({"a": [1, None, "x"]}).endswith("2afbff2e6634f270b575f825bcb70b48")


@pytest.mark.parametrize("value", [object(), OrderedDict(a=1), one, int, [object()], {"a": {1j}}, range(3)])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    """Never a repr: the error names the argument and the cure."""
    with pytest.raises(KeyTemplateError, match=r"argument 'x' is a .*give a key template .*\{x\.id\}"):
        key_of(one, None)(value)


def test_a_number_with_attributes_is_refused() -> None:
    """A subclass that carries more than its number is not named by its number."""
    money = Money(5)
    money.currency = "EUR"  # type: ignore[attr-defined]
    with pytest.raises(KeyTemplateError, match="attributes of its own"):
        key_of(one, None)(money)


@pytest.mark.parametrize("fn", [lambda x: x, functools.partial(one, 1)])
def test_a_function_without_a_name_needs_a_template(fn: Callable[..., Any]) -> None:
    """All lambdas of a module would share their entries."""
    assert "give a key template" in refused(None, fn)


# Tags


def test_tags_from_arguments() -> None:
    """Known tags come in order, each once."""
    tags = tags_of(two, ["feed", "feed:{x}", "feed:{y}", "feed"])
    assert tags(7, 8) == ("feed", "feed:7", "feed:8")
    assert tags(7, "7") == ("feed", "feed:7")
    assert tags_of(two, [])(1, 2) == ()
    assert compile_tags(two, Kind.FUNCTION, ["feed"]).late is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (42, "42"), (Word.ONE, "1"), (Color.RED, 1), (Decimal("1.5"), 1.5), (UUID(int=1), str(UUID(int=1))),
        ("e\u0301", "é"), (None, "None"), ((1, 2), ["1", "2"]), (Money(5), Label("5")),
    ],
)  # fmt: skip
def test_two_spellings_are_one_tag(a: object, b: object) -> None:
    """To invalidate too much is harmless; to miss an entry is not."""
    tags = tags_of(one, ["post:{x}"])
    assert tags(a) == tags(b)


def test_tags_from_the_result() -> None:
    """Tags that name the result come apart, from a function that takes it first."""
    compiled = compile_tags(feed, Kind.FUNCTION, ["feed:{user_id}", "author:{result.author_id}:{page}"])
    assert compiled.known.function(Signature(feed, Kind.FUNCTION))(7) == ("feed:7",)
    assert compiled.late is not None
    assert compiled.late(Post(1, "a b"), 7, page=2) == ("author:a%20b:2",)


def test_late_tags_of_any_signature() -> None:
    """The result comes before parameters of every kind."""

    def only(a: int, /, *, b: int) -> None: ...

    def none() -> None: ...

    assert late_of(only, ["{result}:{a}:{b}"])("r", 1, b=2) == ("r:1:2",)
    assert late_of(none, ["{result}"])(1) == ("1",)


@given(st.text(), st.sampled_from(["author:{x}", "{x}", "e{x}", "a:{x}:b"]))
def test_a_hand_made_tag_is_the_rendered_one(text: str, template: str) -> None:
    """What `escape` and `tag_name` give for a tag put together by hand is what the template gives."""
    rendered = tags_of(one, [template])(text)
    assert rendered == (tag_name(template.format(x=escape(text))),)
    assert tag_name(rendered[0]) == rendered[0]
    assert len(rendered[0].encode()) <= 200


def test_no_tag_is_the_index_of_another() -> None:
    """A user called "keys" does not write where the index of "author" lives."""
    space = RawKeys("p")
    (tag,) = tags_of(one, ["author:{x}"])("keys")
    assert tag == tag_name("author:keys") == "author:%6Beys"
    assert space.token(tag) != space.tag_index("author")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("feed", "tags of feed must be a list of strings"),
        (b"feed", "must be a list of strings"),
        (7, "must be a list of strings"),
        (["feed", 7], r"tags\[1\] of feed must be a str, not int"),
        ([""], "tag of feed is empty"),
        (["a b"], "' ' cannot stand"),
        (["a\n"], "cannot stand"),
        (["a{{"], "cannot stand"),
        (["{user}"], r"did you mean {user_id}"),
        (["{resul.id}"], "no parameter 'resul'"),
        (["{user_id!s}"], "conversion"),
    ],
)
def test_bad_tags_are_refused(tags: Any, message: str) -> None:
    """What is wrong with tags is said when the function is decorated."""
    with pytest.raises(KeyTemplateError, match=message):
        compile_tags(feed, Kind.FUNCTION, tags)


def test_a_parameter_called_result_makes_tags_ambiguous() -> None:
    """A template or callable that names it is refused; a callable may call the value returned otherwise."""

    def f(result: object) -> None: ...

    for tags in (["{result.id}"], lambda result: [result.id]):
        with pytest.raises(KeyTemplateError, match="result is a parameter and the value returned"):
            compile_tags(f, Kind.FUNCTION, tags)
    assert late_of(f, lambda post: [f"post:{post.id}"])(Post(1), None) == ("post:1",)


def test_callable_tags() -> None:
    """A callable takes what it names: parameters, the result, or the result alone under any name."""
    assert tags_of(feed, lambda page, user_id: (f"{user_id}", f"{page}", "1"))(7) == ("7", "1")
    assert tags_of(feed, lambda: ["all"])(7) == ("all",)
    late = late_of(feed, lambda result, user_id, sep=":": [f"{result.id}{sep}{user_id}"])
    assert late(Post(1), 7) == ("1:7",)
    assert late_of(feed, lambda post: {f"post:{post.id} é": 1})(Post(1), 7) == ("post:1%20é",)

    def positional(user_id: object, /) -> list[str]:
        return [f"u:{user_id}"]

    assert tags_of(feed, positional)(7) == ("u:7",)


@pytest.mark.parametrize(
    "tags",
    [lambda user_id, other: [], lambda *names: [], lambda **names: []],
    ids=["unknown", "args", "kwargs"],
)
def test_callables_that_want_something_else_are_refused(tags: Any) -> None:
    """A name that is neither a parameter nor result is found at decoration."""
    with pytest.raises(KeyTemplateError, match="tags of feed: the callable takes"):
        compile_tags(feed, Kind.FUNCTION, tags)


@pytest.mark.parametrize("returned", ["feed", b"bytes", None, 7, ["feed", 7]])
def test_what_a_callable_returns_is_checked(returned: Any) -> None:
    """Tags are strings; anything else is an error of the call."""
    with pytest.raises(KeyTemplateError, match="tags of feed: the callable must return"):
        tags_of(feed, lambda: returned)(7)


def test_a_tag_without_a_text_is_refused() -> None:
    """An object is not a tag, an attribute of it may be."""
    with pytest.raises(KeyTemplateError, match=r"one\(x\): a Post cannot"):
        tags_of(one, ["post:{x}"])(Post(1))


def test_a_tag_must_be_text() -> None:
    """A number that someone passes as a finished tag is refused."""
    with pytest.raises(ConfigError, match="a tag must be a str, not int"):
        tag_name(7)  # type: ignore[arg-type]


# Signatures


def positional_only(a: int, b: int = 2, /) -> None: ...
def mixed(a: int, /, b: int = 2, *, c: int, d: object = object) -> None: ...
def variadic(a: int, *args: int, b: int = 3, **kwargs: int) -> None: ...
def shadowing(int: int, type: int = 1, _k: int = 2, __v: int = 3, sorted: int = 4) -> None: ...
def nothing() -> None: ...


@pytest.mark.parametrize(
    ("fn", "arguments", "keywords"),
    [
        (positional_only, (1,), {}),
        (mixed, (1,), {"c": 3}),
        (mixed, (1, 5), {"c": 3, "d": None}),
        (variadic, (1, 2, 3), {"b": 4, "z": 5}),
        (variadic, (1,), {}),
        (shadowing, (7,), {}),
        (nothing, (), {}),
        (feed, (), {"page": 2, "user_id": 1}),
    ],
)
def test_generated_functions_are_called_like_their_own(
    fn: Callable[..., Any], arguments: tuple[object, ...], keywords: dict[str, object]
) -> None:
    """Parameters, defaults and forwarding survive, whatever their kind and name."""
    signature = Signature(fn, Kind.FUNCTION)
    seen: list[dict[str, object]] = []

    def target(*args: object, **kwargs: object) -> None:
        bound = inspect.signature(fn).bind(*args, **kwargs)
        seen.append(bound.arguments)

    scope: dict[str, Any] = {**signature.namespace, "TARGET": target}
    exec(f"def f({signature.parameters}): return TARGET({signature.forward})", scope)
    scope["f"](*arguments, **keywords)
    expected = inspect.signature(fn).bind(*arguments, **keywords)
    expected.apply_defaults()
    assert {name: value for name, value in expected.arguments.items() if value not in ((), {})} == seen[0]
    assert inspect.signature(scope["f"]).replace(
        return_annotation=inspect.Signature.empty
    ) == inspect.Signature([p.replace(annotation=p.empty) for p in inspect.signature(fn).parameters.values()])


def test_parameters_may_shadow_anything() -> None:
    """Code for a key uses no name that a parameter can have."""
    key = key_of(shadowing, "{int}:{type}:{_k}:{__v}:{sorted}")
    assert key(7, "x" * 10) == "posts:7:xxxxxxxxxx:2:3:4"
    assert key_of(shadowing, None)(7) == key_of(shadowing, None)(7, 1, 2, 3, 4)
    assert tags_of(shadowing, ["{int}", "{type}"])(7, (1,)) == ("7", "%(1)")


def test_a_method_needs_its_receiver() -> None:
    """A METHOD without self, or a callable without a signature, is refused."""
    with pytest.raises(ConfigError, match="first parameter must be self or cls"):
        Signature(nothing, Kind.METHOD)
    with pytest.raises(ConfigError, match="no signature"):
        Signature(type, Kind.FUNCTION)


def test_a_static_method_has_no_receiver() -> None:
    """All its parameters are part of the default key."""
    key = key_of(get, None, Kind.STATICMETHOD)
    assert key("a", 1) != key("b", 1)


# Raw Redis keys


def test_the_layout_in_redis() -> None:
    """Companions share the slot of their value, a tag that of its channel."""
    space = RawKeys("mini")
    assert space.value("posts:post:1") == "mini:posts:post:1"
    assert space.refresh_lock("posts:post:1") == "{mini:posts:post:1}:r"
    assert space.staging("posts:post:1") == "{mini:posts:post:1}:w"
    assert space.token("feed:7") == "{mini:t.0}:feed:7"
    assert space.tag_index("feed:7") == "{mini:t.0}:feed:7:keys"
    assert space.channel(0) == "{mini:t.0}"
    assert space.strip("mini:posts:post:1") == "posts:post:1"  # noqa: B005


def test_an_empty_prefix_leaves_no_colon() -> None:
    """Keys may live at the top."""
    space = RawKeys("")
    assert space.value("posts:1") == space.strip("posts:1") == "posts:1"  # noqa: B005
    assert space.staging("posts:1") == "{posts:1}:w"
    assert space.token("feed") == "{t.0}:feed"


def test_tags_spread_over_buckets() -> None:
    """The bucket of a tag is fixed by its text, in every process."""
    space = RawKeys("p", 64)
    assert space.bucket("feed") == 43
    assert space.token("feed") == "{p:t.43}:feed"
    assert len({space.bucket(f"feed:{n}") for n in range(1000)}) == 64
    assert RawKeys("p").bucket("feed") == 0


@pytest.mark.parametrize("prefix", ["a{b", "a b", "*", "5%", None])
def test_bad_prefixes_are_refused(prefix: Any) -> None:
    """Braces would move keys to other slots."""
    with pytest.raises(ConfigError, match="prefix must be"):
        RawKeys(prefix)


@pytest.mark.parametrize("buckets", [0, -1, 1.5, True])
def test_bad_buckets_are_refused(buckets: Any) -> None:
    """There is at least one."""
    with pytest.raises(ConfigError, match="buckets must be"):
        RawKeys("p", buckets)


def test_a_foreign_key_is_not_stripped() -> None:
    """A key under another prefix is a mistake, not a key."""
    with pytest.raises(ConfigError, match="not under the prefix"):
        RawKeys("p").strip("q:posts:1")  # noqa: B005
