"""Names of options: all are taken by somebody, and what is not one is refused with advice."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import cacheaside
from cacheaside import Cache, ConfigError
from cacheaside.codecs import codec_for
from cacheaside.options import CODEC, CachedOptions
from cacheaside.policy import make_policy


def keywords(fn: Any) -> set[str]:
    return {p.name for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY}


def test_every_option_is_taken_by_the_policy_the_codec_or_the_plan() -> None:
    assert keywords(codec_for) == set(CODEC)
    taken = (keywords(make_policy) - {"ns"}) | keywords(codec_for) | {"tags"}
    assert set(CachedOptions.__annotations__) == taken


@pytest.mark.parametrize(
    ("decorator", "options", "said"),
    [
        ("cached", {"tll": 5}, r"@cached has no option tll=; did you mean ttl=\?"),
        ("cached", {"kee": "x"}, r"@cached has no option kee=; did you mean key=\?"),
        ("cached", {"zzz": 5}, "@cached has no option zzz=; it has ns, key, ttl, tags, "),
        ("cached_many", {"early_refresh": 1.0}, "@cached_many has no option early_refresh="),
        ("cached_many", {"stale_if_eror": 5}, r"did you mean stale_if_error=\?"),
        ("updates", {"share": True}, "@updates has no option share="),
    ],
)
@pytest.mark.parametrize("where", [cacheaside, Cache("embedded://")], ids=["default", "cache"])
def test_an_unknown_option_is_refused_where_the_decorator_stands(
    where: Any, decorator: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        getattr(where, decorator)(ns="options", key="{id}", **options)


@pytest.mark.parametrize("where", [cacheaside, Cache("embedded://")], ids=["default", "cache"])
def test_a_decorator_without_parentheses_or_names_says_what_to_write(where: Any) -> None:
    said = r'options by name, in parentheses: @cached\(ns="posts", key="post:{post_id}"\), not '
    with pytest.raises(ConfigError, match=said + "<function"):

        @where.cached
        def bare() -> None: ...

    with pytest.raises(ConfigError, match=said + "'posts'"):
        where.cached("posts", key="{id}")


def test_a_namespace_gives_its_ttl_to_functions_that_name_none() -> None:
    cache = Cache("embedded://", clock=lambda: 1_000.0)
    names = cache.namespace("names", ttl=30)

    @names.cached(key="a:{id}")
    def a(id: int) -> int:
        return id

    @names.cached(key="b:{id}", ttl=5)
    def b(id: int) -> int:
        return id

    a(1), b(1)
    assert (cache.ttl(a.key(1)), cache.ttl(b.key(1))) == (
        pytest.approx(30, rel=0.06),
        pytest.approx(5, rel=0.06),
    )


def test_a_decorator_is_used_twice_though_its_tags_come_from_a_generator() -> None:
    cache = Cache("embedded://")
    tagged = cache.cached(ns="twice", tags=(f"tag:{n}" for n in (1, 2)))

    def first(id: int) -> int:
        return id

    def second(id: int) -> int:
        return id

    assert [tagged(fn).tags(7) for fn in (first, second)] == [("tag:1", "tag:2")] * 2


class Shelf:
    prefix = "shelf"

    @Cache("embedded://").cached_many(ns="books", key="{cls.prefix}:{id}")
    @classmethod
    def books(cls, ids: list[int]) -> dict[int, str]:
        return dict.fromkeys(ids, cls.prefix)


@pytest.mark.parametrize("through", [Shelf, Shelf()], ids=["class", "instance"])
def test_handles_of_a_batch_classmethod_know_their_class(through: Any) -> None:
    assert through.books([1]) == {1: "shelf"}
    assert through.books.key(1) == "books:shelf:1"
    assert through.books.peek(1) == "shelf"
