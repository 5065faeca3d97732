"""What of HTTP is cached: the decisions, without a framework."""

from __future__ import annotations

from typing import Any

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheaside import ConfigError
from cacheaside.answers import answer, control, forwarded, group_names, groups, hit, matches
from cacheaside.http import (
    Asked,
    ResponsePolicy,
    Stored,
    directives,
    key_of,
    left,
    lifetime,
    plan,
    refusal,
    stored,
    suits,
)


def policy(**options: Any) -> ResponsePolicy:
    return ResponsePolicy.of({"ttl": 60, **options})  # type: ignore[typeddict-item]


def asked(
    method: str = "GET", query: Any = (), params: Any = None, route: str = "/r", **headers: str
) -> Asked:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Asked(method, route, params or {}, tuple(query), named, None)


# ---------------------------------------------------------------------------- requests


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_requests_that_ask_are_answered_from_the_cache(method: str) -> None:
    assert plan(policy(), asked(method), 0.0).why == "method"


@pytest.mark.parametrize("header", ["authorization", "cookie"])
def test_who_says_who_he_is_is_passed_on_unless_told_how_to_tell_users_apart(header: str) -> None:
    request = asked(**{header: "x"})
    assert plan(policy(), request, 0.0).why == "bypass"
    way = plan(policy(identity=lambda _: "ada"), request, 0.0)
    assert way.private
    assert way.key != plan(policy(identity=lambda _: "bob"), request, 0.0).key
    assert not plan(policy(identity=lambda _: None), request, 0.0).private


def test_what_the_client_says_about_caching_is_obeyed() -> None:
    assert plan(policy(), asked(cache_control="no-store"), 0.0).why == "bypass"
    assert plan(policy(), asked(cache_control="No-Cache, max-age=0"), 0.0).anew


def test_a_key_that_could_not_be_stored_is_passed_by_for_a_while() -> None:
    one = policy()
    key = plan(one, asked(), 0.0).key
    one.passes[key] = 10.0
    assert plan(one, asked(), 9.0).why == "bypass"
    assert plan(one, asked(), 10.0).key == key


def test_the_order_of_the_query_does_not_matter_but_that_of_one_name_does() -> None:
    one = policy()
    assert key_of(one, asked(query=[("a", "1"), ("b", "2")]), None) == key_of(
        one, asked(query=[("b", "2"), ("a", "1")]), None
    )
    assert key_of(one, asked(query=[("a", "1"), ("a", "2")]), None) != key_of(
        one, asked(query=[("a", "2"), ("a", "1")]), None
    )


def test_only_what_is_said_to_count_is_part_of_the_key() -> None:
    """Not headers that are not named, nor parameters where some are named."""
    plain = key_of(policy(), asked(), None)
    assert key_of(policy(), asked(x_forwarded_host="evil", accept="x"), None) == plain
    assert key_of(policy(query=["page"]), asked(query=[("utm", "1")]), None) == plain
    assert key_of(policy(vary=["Accept"]), asked(accept="x"), None) != key_of(
        policy(vary=["Accept"]), asked(accept="y"), None
    )


_texts = st.text(max_size=4)
_pairs = st.lists(st.tuples(_texts, _texts), max_size=3)


@given(
    st.tuples(_pairs, st.dictionaries(_texts, _texts, max_size=2), st.none() | _texts, st.none() | _texts),
    st.tuples(_pairs, st.dictionaries(_texts, _texts, max_size=2), st.none() | _texts, st.none() | _texts),
)
def test_two_requests_share_a_key_only_if_all_that_counts_is_the_same(one: Any, other: Any) -> None:
    def key(query: Any, params: Any, header: Any, user: Any) -> str:
        headers = {} if header is None else {"accept": header}
        return key_of(policy(vary=["accept"]), Asked("GET", "/r", params, query, headers, None), user)

    def meaning(query: Any, params: Any, header: Any, user: Any) -> Any:
        return sorted(query, key=lambda pair: pair[0]), params, header, user

    assert (key(*one) == key(*other)) is (meaning(*one) == meaning(*other))


# ---------------------------------------------------------------------------- responses


@pytest.mark.parametrize(
    ("status", "headers", "why"),
    [
        (200, [], ""),
        (500, [], "status"),
        (404, [], "status"),
        (200, [("Set-Cookie", "session=1")], "set-cookie"),
        (200, [("Cache-Control", "no-store")], "cache-control"),
        (200, [("Cache-Control", "private, max-age=5")], "cache-control"),
        (200, [("Cache-Control", "no-cache")], "cache-control"),
        (200, [("Cache-Control", "public, max-age=5")], ""),
        (200, [("Vary", "*")], "vary"),
        (200, [("Vary", "Accept, Cookie")], "vary"),
        (200, [("Vary", "Accept")], ""),
    ],
)
def test_which_responses_may_be_stored(status: int, headers: Any, why: str) -> None:
    assert refusal(policy(vary=["accept"]), False, status, headers) == why


def test_a_private_response_may_be_stored_for_its_user() -> None:
    assert refusal(policy(), True, 200, [("Cache-Control", "private")]) == ""


@pytest.mark.parametrize(
    ("headers", "life"),
    [
        ([("cache-control", "max-age=5")], 5),
        ([("cache-control", "max-age=5, s-maxage=7")], 7),
        ([("cache-control", "max-age=5"), ("Cache-Control", "s-maxage=7")], 7),
        ([("cache-control", "max-age=500")], 60),
        ([("cache-control", "max-age=x")], 0),
        ([("cache-control", "max-age=²")], 0),
        ([("cache-control", f"max-age={'9' * 5000}")], 60),
        ([("expires", "Thu, 01 Jan 1970 00:02:10 GMT")], 30),
        ([("expires", "Thu, 01 Jan 1970 00:01:10 GMT")], 0),
        ([("expires", "never")], 0),
        ([("expires", "Fri, 99 Foo 99999 99:99:99 GMT")], 0),
    ],
)
def test_a_response_may_shorten_its_life_and_not_lengthen_it(headers: Any, life: float) -> None:
    """Made 100 seconds after 1970 began."""
    assert lifetime(policy(), headers, 100.0) == life


def test_what_is_stored_has_to_be_as_young_as_the_request_says() -> None:
    """Ten seconds old, fresh for fifty."""
    for words, fit in (
        ("max-age=10", True),
        ("max-age=9", False),
        ("min-fresh=50", True),
        ("no-cache", False),
    ):
        assert suits(policy(), plan(policy(), asked(cache_control=words), 0.0), PAGE, 100.0) is fit


# ---------------------------------------------------------------------------- answers


def told(request: Asked, found: Stored, *, made: bool = False, **options: Any) -> Any:
    one = policy(**options)
    status = forwarded("miss", stored=True) if made else hit(left(one, found, 100.0))
    given = answer(one, request, plan(one, request, 0.0), found, 100.0, status, made=made)
    return given.status, dict(given.headers), given.body


PAGE = stored(200, [("Content-Type", "text/plain"), ("Date", "x"), ("Connection", "close")], b"page", 90.0)


def test_a_hit_says_its_age_and_what_it_is() -> None:
    status, headers, body = told(asked(), PAGE)
    assert (status, body) == (200, b"page")
    assert headers == {
        "content-type": "text/plain",
        "etag": dict(PAGE.headers)["etag"],
        "cache-control": "public, no-cache",
        "age": "10",
        "cache-status": "cacheaside; hit; ttl=50",
        "vary": "authorization, cookie",
        "content-length": "4",
    }


def test_what_was_just_made_has_no_age() -> None:
    _, headers, _ = told(asked(), PAGE, made=True)
    assert "age" not in headers
    assert headers["cache-status"] == "cacheaside; fwd=miss; stored"


def test_a_head_request_gets_the_head() -> None:
    status, headers, body = told(asked("HEAD"), PAGE)
    assert (status, headers["content-length"], body) == (200, "4", b"")


def test_who_has_it_already_is_told_so() -> None:
    etag = dict(PAGE.headers)["etag"]
    status, headers, body = told(asked(if_none_match=etag), PAGE)
    assert (status, body) == (304, b"")
    assert headers.keys() == {"etag", "cache-control", "age", "cache-status", "vary"}
    assert told(asked(if_none_match='"other"'), PAGE)[0] == 200


def test_a_precondition_is_nothing_to_an_error() -> None:
    """A stored 404 stays one, whatever the client has."""
    gone = stored(404, [], b"gone", 90.0)
    asking = asked(if_none_match=dict(gone.headers)["etag"])
    assert told(asking, gone, statuses=[200, 404])[0] == 404
    assert told(asked(if_none_match="*"), gone, statuses=[200, 404])[0] == 404


def test_the_life_that_is_left_is_the_responses_own() -> None:
    """Of its max-age, if that is shorter; less than nothing once it is stale."""
    own = stored(200, [("Cache-Control", "max-age=12")], b"", 90.0)
    assert told(asked(), own)[1]["cache-status"] == "cacheaside; hit; ttl=2"
    old = stored(200, [("Cache-Control", "max-age=9")], b"", 90.5)
    assert told(asked(), old)[1]["cache-status"] == "cacheaside; hit; ttl=-1"


@pytest.mark.parametrize(
    ("wanted", "etag", "same"),
    [
        ('"a"', '"a"', True),
        ('W/"a"', '"a"', True),
        ('"a"', 'W/"a"', True),
        ('"b", W/"a"', '"a"', True),
        ("*", '"a"', True),
        ('"b"', '"a"', False),
        ("a", '"a"', False),
        ("", '"a"', False),
        ('"a', '"a"', False),
        ('"a"', "a", False),
    ],
)
def test_etags_are_compared_weakly(wanted: str, etag: str, same: bool) -> None:
    assert matches(wanted, etag) is same


def test_an_etag_of_the_endpoint_is_kept() -> None:
    found = stored(200, [("ETag", '"mine"')], b"", 0.0)
    assert dict(found.headers)["etag"] == '"mine"'


def test_what_clients_may_keep() -> None:
    assert control(policy(), False) == "public, no-cache"
    assert control(policy(max_age=5, stale_while_revalidate=7), True) == (
        "private, max-age=5, stale-while-revalidate=7"
    )
    assert (
        told(asked(), stored(200, [("Cache-Control", "max-age=3")], b"", 0.0))[1]["cache-control"]
        == "max-age=3"
    )


def test_other_caches_are_told_what_a_response_depends_on() -> None:
    """Also who asks: what strangers share is not what a proxy may answer a user with."""
    assert told(asked(), PAGE, vary=["Accept"])[1]["vary"] == "accept, authorization, cookie"
    assert told(asked(), PAGE, identity=lambda _: "ada")[1]["vary"] == "authorization, cookie"
    assert told(asked(), PAGE, identity=lambda _: None, max_age=60)[1]["vary"] == "authorization, cookie"


_strings = st.text(alphabet=st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=5)


@given(st.lists(_strings, max_size=4))
def test_groups_are_read_as_they_are_written(names: list[str]) -> None:
    assert group_names(groups(names)) == names
    assert http_sf.parse(groups(names).encode(), tltype="list") == [(name, {}) for name in names]


_bare = (
    st.booleans() | st.integers(-999, 999) | st.binary(max_size=3) | _strings | st.just(http_sf.Token("t"))
)


@given(
    st.lists(
        st.tuples(_strings, st.dictionaries(st.sampled_from(["revalidate", "*a", "q"]), _bare)), max_size=3
    )
)
def test_parameters_of_groups_are_passed_over(members: list[Any]) -> None:
    """Whatever another parser writes (RFC 9875 has ``revalidate``)."""
    header = http_sf.ser(members) if members else ""
    assert group_names(header) == [name for name, _ in members]


@given(st.text(max_size=10))
def test_what_is_no_list_of_groups_is_refused_or_read(text: str) -> None:
    """Never an error of another kind; names have no quote or control character that was not escaped."""
    try:
        names = group_names(text)
    except ValueError:
        return
    assert all(isinstance(name, str) for name in names)


def test_directives_are_read_leniently() -> None:
    assert directives('Max-Age="5", , no-cache=x, =y') == {"max-age": "5", "no-cache": "x"}


# ---------------------------------------------------------------------------- bad input


async def later(request: Any) -> Any: ...


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "ttl"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": 1, "tags": "t"}, "tags"),
        ({"ttl": 1, "vary": "Accept"}, "vary"),
        ({"ttl": 1, "vary": ["a b"]}, "vary"),
        ({"ttl": 1, "vary": ["*"]}, "vary"),
        ({"ttl": 1, "statuses": [200, 206]}, "statuses"),
        ({"ttl": 1, "query": "q"}, "query"),
        ({"ttl": 1, "identity": "x"}, "identity"),
        ({"ttl": 1, "identity": later}, "identity must be a plain function"),
        ({"ttl": 1, "tags": later}, "tags must be a plain function"),
        ({"ttl": 1, "max_body": 0}, "max_body"),
        ({"ttl": 1, "ns": "a:b"}, "ns"),
        ({"ttl": 1, "stale_if_error": -1}, "stale_if_error"),
        ({"ttl": 1, "max_age": -1}, "max_age"),
        ({"ttl": 1, "tagz": []}, "tagz"),
    ],
)
def test_wrong_options_are_refused_by_name(options: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ResponsePolicy.of(options)
