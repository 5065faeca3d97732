"""What cannot work is refused where it is written, by name and with what to write instead."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from datetime import timedelta
from typing import Any

import pytest

import cacheaside
from cacheaside import Cache, CacheasideError, CodecError, ConfigError, KeyTemplateError
from tests.ids import named


def refused(
    error: type[CacheasideError], *parts: str, decorator: Callable[[Any], Any], fn: Any = None
) -> None:
    """Decorating raises the error, and its text holds every part."""

    def plain(a: int, b: int = 1) -> int:
        return a

    with pytest.raises(error) as caught:
        decorator(plain if fn is None else fn)
    for part in parts:
        assert part in str(caught.value)


# ---------------------------------------------------------------------------- options


SECONDS = [
    "stale_while_revalidate",
    "stale_if_error",
    "negative_ttl",
    "wait_timeout",
    "ttl",
    "lease_ttl",
    "load_timeout",
    "l1",
]


@pytest.mark.parametrize(
    "value",
    [-1, -0.5, math.nan, math.inf, 1e12, "60", [60], timedelta(seconds=-1), timedelta(days=9999)],
    ids=named,
)
@pytest.mark.parametrize("option", SECONDS)
def test_seconds_are_checked_where_the_decorator_stands(cache: Cache, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        cache.cached(ns="n", key="{a}", **{option: value})(lambda a: a)


@pytest.mark.parametrize("option", [name for name in SECONDS if name != "l1"])
def test_true_is_no_number_of_seconds(cache: Cache, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}.*True"):
        cache.cached(ns="n", key="{a}", **{option: True})(lambda a: a)


@pytest.mark.parametrize("option", ["ttl", "lease_ttl", "load_timeout", "l1"])
def test_0_seconds_is_refused_where_it_means_nothing(cache: Cache, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be more than 0"):
        cache.cached(ns="n", key="{a}", **{option: 0})(lambda a: a)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"ttl": 10**10}, ["ttl", "ten years", "milliseconds?"]),
        ({"jitter": -0.1}, ["jitter", "0 to 0.9"]),
        ({"jitter": 1.5}, ["jitter", "0 to 0.9"]),
        ({"jitter": math.nan}, ["jitter"]),
        ({"jitter": True}, ["jitter"]),
        ({"jitter": "10%"}, ["jitter"]),
        ({"early_refresh": -1}, ["early_refresh"]),
        ({"early_refresh": "yes"}, ["early_refresh"]),
        ({"load_timeout": (5, 1)}, ["load_timeout", "soft", "5", "below", "1"]),
        ({"load_timeout": (5, 5)}, ["load_timeout", "soft"]),
        ({"load_timeout": (1, 2, 3)}, ["load_timeout", "(soft, hard)"]),
        ({"load_timeout": (-1, 2)}, ["load_timeout soft"]),
        ({"load_timeout": (1, math.nan)}, ["load_timeout hard"]),
        ({"l1": False, "l2": False}, ["l1=False", "l2=False", "nothing to cache in"]),
        ({"l2": 0}, ["l2 must be True or False"]),
        ({"l2": None}, ["l2 must be True or False"]),
        ({"refresh": "x"}, ["refresh", '"inline"', '"background"', "'x'"]),
        ({"cache_if": True}, ["cache_if", "function of the result"]),
        ({"codec": "x"}, ["codec", "'x'"]),
        ({"codec": object()}, ["codec"]),
        ({"version": "2"}, ["version"]),
        ({"share": "yes"}, ["share"]),
        ({"tll": 60}, ["tll", "ttl"]),
        ({"ns": ""}, ["ns", "not empty"]),
        ({"ns": "a:b"}, ["ns", "':'"]),
        ({"ns": "a b"}, ["ns", "whitespace"]),
        ({"ns": "a*"}, ["ns"]),
        ({"ns": "a?"}, ["ns"]),
        ({"ns": "[a]"}, ["ns", "brackets"]),
        ({"ns": 5}, ["ns"]),
    ],
    ids=named,
)
def test_an_option_that_cannot_work_is_named(cache: Cache, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        cache.cached(**{"ns": "n", "key": "{a}"} | options)(lambda a: a)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("option", ["stale_while_revalidate", "early_refresh", "refresh"])
def test_a_batch_has_no_options_of_single_values(cache: Cache, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        cache.cached_many(ns="n", key="{id}", **{option: 1})(lambda ids: {})


# ---------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("{c}", ["no parameter 'c'", "a, b"]),
        ("{bb}", ["'bb'", "did you mean {b}?"]),
        ("{}", ["numbered", "a, b"]),
        ("{0}", ["numbered"]),
        ("{a", ["braces"]),
        ("a}", ["braces"]),
        ("{a!r}", ["conversion"]),
        ("{a:>5}", ["format spec"]),
        ("{a}{b}", ["put ':' between {a} and {b}"]),
        ("{result.id}", ["before there is a result"]),
        ("", ["empty"]),
        ("a%{a}", ["'%'"]),
        (5, ["must be a str"]),
    ],
    ids=named,
)
def test_a_key_template_that_cannot_work_is_shown(cache: Cache, key: Any, parts: list[str]) -> None:
    refused(KeyTemplateError, *parts, decorator=cache.cached(ns="n", key=key))


@pytest.mark.parametrize(
    ("tags", "parts"),
    [
        ("feed", ["list of strings", "'feed'"]),
        (b"feed", ["list of strings"]),
        (5, ["list of strings"]),
        (["feed", 5], ["tags[1]", "int"]),
        (["feed", None], ["tags[1]"]),
        (["{c}"], ["no parameter 'c'"]),
        (["my feed"], ["whitespace"]),
        ([""], ["empty"]),
        (lambda c, d: ["x"], ["'c'", "a, b"]),
        (lambda *everything: ["x"], ["*everything"]),
    ],
    ids=named,
)
def test_tags_that_cannot_work_are_shown(cache: Cache, tags: Any, parts: list[str]) -> None:
    for decorator in (
        cache.cached(ns="n", key="{a}", tags=tags),
        cache.invalidates(tags=tags),
        cache.updates(ns="n", key="{a}", tags=tags),
    ):
        refused(KeyTemplateError, *parts, decorator=decorator)


@pytest.mark.parametrize("returned", ["feed", None, [5], 5], ids=named)
def test_a_function_of_tags_must_return_a_list_of_strings(cache: Cache, returned: Any) -> None:
    @cache.cached(ns="n", key="{a}", tags=lambda a: returned)
    def f(a: int) -> int:
        return a

    with pytest.raises(KeyTemplateError, match=r"tags of .*f: the callable must return"):
        f(1)


def test_self_has_no_identity_of_its_own(cache: Cache) -> None:
    class Repo:
        def get(self, a: int) -> int:
            return a

    for decorator in (
        cache.cached(ns="n", key="{self}:{a}"),
        cache.cached(ns="n", key="{a}", tags=["{self}"]),
        cache.invalidates(tags=["{self}"]),
    ):
        refused(KeyTemplateError, "self has no identity", "{self.tenant}", decorator=decorator, fn=Repo.get)


# ---------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("value", [object(), len, iter([]), {1: 2}.items()], ids=lambda v: type(v).__name__)
def test_an_argument_without_a_canonical_form_is_refused_by_name(cache: Cache, value: Any) -> None:
    @cache.cached(ns="n")
    def by_default(post: Any) -> int:
        return 1

    @cache.cached(ns="n", key="{post}")
    def by_template(post: Any) -> int:
        return 1

    for f in (by_default, by_template):
        with pytest.raises(KeyTemplateError, match=r"post.*\{post.id\}|post\.id"):
            f(value)


def test_arguments_that_cannot_be_hashed_are_keys_where_they_have_a_form(cache: Cache) -> None:
    loads: list[Any] = []

    @cache.cached(ns="n")
    def f(ids: Any) -> int:
        loads.append(ids)
        return len(ids)

    for value in ([1, 2], {"a": [1]}, {1, 2}, [1, 2]):
        assert f(value) == len(value)
    assert loads == [[1, 2], {"a": [1]}, {1, 2}]


def test_a_call_that_does_not_fit_is_a_type_error_as_ever(cache: Cache) -> None:
    @cache.cached(ns="n", key="{a}")
    def f(a: int, *, b: int = 1) -> int:
        return a

    for call in (lambda: f(), lambda: f(1, 2), lambda: f(1, c=2), lambda: f.peek()):
        with pytest.raises(TypeError):
            call()
    f(1)
    with pytest.raises(TypeError):
        f(1, 2)


# ---------------------------------------------------------------------------- what is decorated


def test_generators_are_refused(cache: Cache) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def agenerator() -> AsyncIterator[int]:
        yield 1

    for fn in (generator, agenerator):
        for decorator in (
            cache.cached(ns="n", key="k"),
            cache.invalidates(tags=["t"]),
            cache.updates(ns="n", key="k"),
        ):
            refused(ConfigError, fn.__name__, "generator", "return a list", decorator=decorator, fn=fn)


@pytest.mark.parametrize("decorate", ["cached", "invalidates", "updates", "cached_many"])
def test_only_functions_and_methods_are_decorated(cache: Cache, decorate: str) -> None:
    class Thing:
        @property
        def size(self) -> int:
            return 1

    options: dict[str, Any] = {
        "cached": {"ns": "n", "key": "k"},
        "updates": {"ns": "n", "key": "k"},
        "cached_many": {"ns": "n", "key": "{id}"},
        "invalidates": {"tags": ["t"]},
    }[decorate]
    decorator = getattr(cache, decorate)(**options)
    for fn in (Thing, Thing.__dict__["size"], 5, "f", None):
        refused(ConfigError, f"@{decorate}", "function or method", decorator=decorator, fn=fn or ())


def test_a_classmethod_goes_below(cache: Cache) -> None:
    with pytest.raises(ConfigError, match="put @cached above @classmethod"):

        class Repo:
            @classmethod
            @cache.cached(ns="n", key="{a}")
            def get(cls, a: int) -> int:
                return a


class Opaque:
    """A class without declared fields."""


@pytest.mark.parametrize(
    "annotation",
    [Opaque, list[Opaque], Iterator[int], Generator[int, None, None], Callable[[], int], None, object],
    ids=str,
)
def test_a_return_type_that_cannot_come_back_is_refused(cache: Cache, annotation: Any) -> None:
    def f():  # type: ignore[no-untyped-def]
        return None

    f.__annotations__["return"] = annotation
    refused(CodecError, "@cached on", "f:", decorator=cache.cached(ns="n", key="k"), fn=f)


# ---------------------------------------------------------------------------- claims


def test_two_functions_of_one_cache_cannot_claim_one_key(cache: Cache) -> None:
    @cache.cached(ns="posts", key="post:{id}")
    def first(id: int) -> int:
        return id

    def second(post_id: int) -> int:
        return post_id

    for key in ("post:{post_id}", "post:{post_id.real}"):
        refused(
            ConfigError,
            f"key='{key}'",
            "ns='posts'",
            "first",
            "change the key",
            decorator=cache.cached(ns="posts", key=key),
            fn=second,
        )
    cache.cached(ns="posts", key="comment:{post_id}")(second)
    cache.cached(ns="users", key="post:{post_id}")(second)


def test_a_claim_is_of_one_cache_and_ends_with_its_function(cache: Cache, clock: Any) -> None:
    def first(a: int) -> int:
        return a

    def second(a: int) -> int:
        return a

    mine = cache.cached(ns="n", key="{a}")(first)
    with Cache("embedded://", clock=clock) as other:
        other.cached(ns="n", key="{a}")(second)
    del mine
    cache.cached(ns="n", key="{a}")(second)


def test_a_function_that_is_loaded_again_keeps_its_claim(cache: Cache) -> None:
    def define() -> Any:
        @cache.cached(ns="n", key="{a}")
        def get(a: int) -> int:
            return a

        return get

    before = define()
    after = define()
    assert before(1) == after(1) == 1
    with pytest.raises(ConfigError, match="belongs to"):
        cache.cached(ns="n", key="{a}")(lambda a: a)


def test_claims_hold_on_the_default_cache_too() -> None:
    @cacheaside.cached(ns="claims", key="{a}")
    def first(a: int) -> int:
        return a

    def second(a: int) -> int:
        return a

    refused(
        ConfigError, "belongs to", "first", decorator=cacheaside.cached(ns="claims", key="{a}"), fn=second
    )


# ---------------------------------------------------------------------------- batches and writers


def test_a_batch_needs_ids_and_a_key_of_one(cache: Cache) -> None:
    def find(ids: list[int], tenant: str = "a") -> dict[int, int]:
        return {}

    def none() -> dict[int, int]:
        return {}

    def listing(ids: list[int]) -> list[int]:
        return []

    for key, parts in (
        ("all", ["{id}", "it names none"]),
        ("{ids}", ["no parameter", "it names none"]),
        ("{id}:{other}", ["id, other"]),
        (None, ["needs key="]),
    ):
        refused(
            ConfigError,
            "find",
            *parts,
            decorator=lambda fn, key=key: cache.cached_many(ns="n", key=key)(fn),
            fn=find,
        )
    refused(ConfigError, "first parameter", decorator=cache.cached_many(ns="n", key="{id}"), fn=none)
    refused(CacheasideError, "dict[id, value]", decorator=cache.cached_many(ns="n", key="{id}"), fn=listing)


def test_invalidates_must_drop_something(cache: Cache) -> None:
    with pytest.raises(ConfigError, match="would drop nothing"):
        cache.invalidates()
    with pytest.raises(ConfigError, match="ns="):
        cache.invalidates(keys=["{a}"])
    with pytest.raises(ConfigError, match="keys must be a list of strings, not the string 'post'"):
        cache.invalidates(keys="post", ns="n")
    refused(KeyTemplateError, "no parameter 'c'", decorator=cache.invalidates(keys=["{c}"], ns="n"))


# ---------------------------------------------------------------------------- direct operations


@pytest.mark.parametrize("key", ["k", ":k", "", 5, None, b"n:k", ("n:k",)], ids=named)
def test_a_key_without_a_namespace_is_refused_everywhere(cache: Cache, key: Any) -> None:
    for operation in (
        lambda: cache.get(key),
        lambda: cache.set(key, 1),
        lambda: cache.exists(key),
        lambda: cache.ttl(key),
        lambda: cache.expire(key, 5),
        lambda: cache.delete(key),
        lambda: cache.get_or_load(key, lambda: 1),
        lambda: cache.get_many([key]),
        lambda: cache.set_many({key: 1}),
        lambda: cache.invalidate(keys=[key]),
        lambda: cache.mutating(keys=[key]),
        lambda: cache.explain(key),
    ):
        with pytest.raises(ConfigError, match=r"ns:rest|non-empty strings"):
            operation()


@pytest.mark.parametrize("operation", ["aget", "aset", "adelete", "ainvalidate", "aget_many"])
async def test_the_a_twins_refuse_the_same(cache: Cache, operation: str) -> None:
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "aset": (("k", 1), {}),
        "aget_many": ((["k"],), {}),
        "ainvalidate": ((), {"keys": ["k"]}),
    }
    args, kwargs = arguments.get(operation, (("k",), {}))
    with pytest.raises(ConfigError, match="ns:rest"):
        await getattr(cache, operation)(*args, **kwargs)


def test_a_bare_string_is_no_list(cache: Cache) -> None:
    for parameter, operation in (
        ("keys", lambda: cache.invalidate(keys="n:k")),
        ("tags", lambda: cache.invalidate(tags="feed")),
        ("keys", lambda: cache.mutating(keys="n:k")),
        ("tags", lambda: cache.mutating(tags="feed")),
        ("tags", lambda: cache.set("n:k", 1, tags="feed")),
        ("tags", lambda: cache.get_or_load("n:k", lambda: 1, tags="feed")),
        ("keys", lambda: cache.get_many("n:k")),
    ):
        with pytest.raises(ConfigError, match=f"{parameter} must be a list of strings, not the string"):
            operation()


def test_names_that_are_no_strings_are_refused(cache: Cache) -> None:
    for operation in (
        lambda: cache.invalidate(tags=[5]),
        lambda: cache.invalidate(tags=[""]),
        lambda: cache.invalidate(keys=[None]),
        lambda: cache.mutating(tags=[5]),
        lambda: cache.set("n:k", 1, tags=[5]),
    ):
        with pytest.raises(ConfigError, match="list of non-empty strings"):
            operation()


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, True, "60", 10**12], ids=named)
def test_a_ttl_of_a_direct_operation_is_checked(cache: Cache, ttl: Any) -> None:
    for operation in (
        lambda: cache.set("n:k", 1, ttl=ttl),
        lambda: cache.set_many({"n:k": 1}, ttl=ttl),
        lambda: cache.expire("n:k", ttl),
        lambda: cache.get_or_load("n:k", lambda: 1, ttl=ttl),
    ):
        with pytest.raises(ConfigError, match="ttl must be"):
            operation()


@pytest.mark.parametrize("hold", [0, -1, math.nan, True, "30"], ids=named)
def test_a_hold_is_checked(cache: Cache, hold: Any) -> None:
    with pytest.raises(ConfigError, match="hold must be"):
        cache.mutating(tags=["t"], hold=hold)
    with pytest.raises(ConfigError, match="hold must be"):
        cache.invalidate(tags=["t"], hold=hold)


def test_patterns_and_namespaces_are_checked(cache: Cache) -> None:
    for pattern in ("", None, 5):
        with pytest.raises(ConfigError, match="pattern"):
            cache.delete_matching(pattern)  # type: ignore[arg-type]
    for ns in ("", "*", "posts:feed", "p?sts", 5):
        with pytest.raises(ConfigError, match="ns must be"):
            cache.clear(ns)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="ns must be"):
            cache.namespace(ns)  # type: ignore[arg-type]


@pytest.mark.parametrize("ttl", [-1, math.nan, True, "60", 10**12], ids=named)
def test_a_loader_cannot_set_a_ttl_that_is_none(cache: Cache, ttl: Any) -> None:
    @cache.cached(ns="n", key="k")
    def f() -> int:
        load = cacheaside.current_load()
        assert load is not None
        load.ttl = ttl
        return 1

    with pytest.raises(ConfigError, match="ttl must be"):
        f()


def test_a_ttl_function_is_checked_when_it_answers(cache: Cache) -> None:
    @cache.cached(ns="n", key="k", ttl=lambda result: -5)
    def f() -> int:
        return 1

    with pytest.raises(ConfigError, match="ttl must be 0 or more seconds, not -5"):
        f()


# ---------------------------------------------------------------------------- the cache itself


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"prefix": "a b"}, ["prefix", "whitespace"]),
        ({"prefix": "{a}"}, ["prefix", "braces"]),
        ({"prefix": None}, ["prefix"]),
        ({"ttl": 0}, ["ttl"]),
        ({"ttl": -1}, ["ttl"]),
        ({"ttl": True}, ["ttl"]),
        ({"l1_entries": -1}, ["l1_entries", "at least 0"]),
        ({"l1_entries": 1.5}, ["l1_entries", "whole number"]),
        ({"l1_max_bytes": 0}, ["l1_max_bytes", "at least 1"]),
        ({"l1_max_value": 0}, ["l1_max_value"]),
        ({"max_bytes": -5}, ["max_bytes"]),
        ({"max_value": True}, ["max_value"]),
        ({"compress_above": -1}, ["compress_above"]),
        ({"index_limit": -1}, ["index_limit"]),
        ({"reclaim_every": 0}, ["reclaim_every"]),
        ({"invalidation_timeout": 0}, ["invalidation_timeout"]),
        ({"on_unacknowledged": "explode"}, ["on_unacknowledged", '"return"', '"raise"']),
        ({"l1_policy": "x"}, ["l1_policy", "'x'"]),
        ({"clock": 5}, ["clock"]),
    ],
    ids=named,
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Cache("embedded://", **settings)
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_setting_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="prefx"):
        Cache("embedded://", prefx="a")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:6379",
        "http://localhost",
        "redis://",
        "redis://h:port",
        "embedded://x",
        "embedded",
        5,
    ],
    ids=named,
)
def test_a_url_that_cannot_work_is_refused(url: Any) -> None:
    with pytest.raises(ConfigError):
        Cache(url)


def test_an_error_about_a_url_does_not_show_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        Cache("http://user:s3cret@host/0")
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(Cache("redis://user:s3cret@host/0"))


def test_every_error_is_of_one_family_and_of_its_builtin_kind() -> None:
    for error in (ConfigError, KeyTemplateError, CodecError):
        assert issubclass(error, CacheasideError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(CodecError, TypeError)


def test_a_message_of_an_argument_shows_its_type_and_not_its_value(cache: Cache) -> None:
    """It may be a password on its way to a log."""

    @dataclasses.dataclass
    class Login:
        password: Any

    @cache.cached(ns="n", key="{login}")
    def f(login: Login) -> int:
        return 1

    with pytest.raises(KeyTemplateError) as caught:
        f(Login("s3cret"))
    assert "Login" in str(caught.value)
    assert not re.search("s3cret", str(caught.value))


def test_a_key_that_names_none_of_its_parameters_is_warned_of(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    @cache.cached(ns="n", key="post", ttl=60)
    def post(post_id: int, session: object = None) -> int:
        return post_id

    (record,) = caplog.records
    assert "key='post' names none of its parameters" in record.getMessage()
    assert "whatever post_id is; write key='post:{post_id}'" in record.getMessage()
    caplog.clear()

    @cache.cached(ns="n", key="other:{post_id}", ttl=60)
    def other(post_id: int) -> int:
        return post_id

    @cache.cached(ns="n", key="everything", ttl=60)
    def everything(session: object, refresh: bool = False) -> int:
        return 1

    assert not caplog.records
