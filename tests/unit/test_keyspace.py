"""Keys that a service declares once: for decorators, for direct operations, and never two for one."""

from __future__ import annotations

import base64
import importlib
import itertools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheaside import Cache, ConfigError, Key, Keyspace, KeyTemplateError, toolkit
from cacheaside.keys import Kind, Signature
from cacheaside.overlap import common_key
from cacheaside.templates import Template, compile_function
from examples import seed_keys
from examples.seed_keys import (
    AuthKeys,
    GlobalKeys,
    MediaKeys,
    MessageKeys,
    NotificationKeys,
    PostKeys,
    SearchKeys,
    UserKeys,
)


def by_page(user_id: int, page: int = 1) -> None: ...


def space(ns: str, **keys: Key[...]) -> Any:
    """A keyspace with these keys."""
    return type("Keys", (Keyspace,), keys, ns=ns)


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# ---------------------------------------------------------------------------- a declared key


def test_a_key_is_called_with_its_arguments_and_brings_ttl_and_tags() -> None:
    keys = space(
        "decl", feed=Key("feed:{user_id:int}:page:{page:int}", ttl=900, tags=["feed:{user_id}", "feeds"])
    )
    key = keys.feed(user_id=1, page=2)
    assert key == keys.feed(1, 2) == "decl:feed:1:page:2"
    assert (key.ttl, key.tags) == (900.0, ("feed:1", "feeds"))
    assert (keys.ns, keys.feed.ns, keys.feed.ttl) == ("decl", "decl", 900.0)
    assert repr(keys.feed) == "<Key Keys.feed 'feed:{user_id:int}:page:{page:int}'>"


def test_the_public_names_are_those_of_the_toolkit() -> None:
    assert (toolkit.Key, toolkit.Keyspace) == (Key, Keyspace)


def test_a_function_gives_arguments_their_defaults_and_kinds() -> None:
    keys = space("likes", feed=Key("feed:{user_id}:page:{page}", by_page, tags=["feed:{user_id}"]))
    assert keys.feed(7) == "likes:feed:7:page:1"
    assert keys.feed(page=2, user_id=7).tags == ("feed:7",)
    with pytest.raises(
        KeyTemplateError, match=r"Keys.feed\(user_id\) must be an int, as its key says, not str: '7'"
    ):
        keys.feed("7")


@pytest.mark.parametrize(
    ("template", "value", "rest"),
    [
        ("{v:int}", 42, "42"),
        ("{v:int}", -1, "-1"),
        ("{v:id}", 42, "42"),
        ("{v:id}", "43", "43"),
        ("{v:id}", "a:b", "a%3Ab"),
        ("{v:id}", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("{v:str}", "42", "42"),
        ("{v:str}", "a b:c", "a%20b%3Ac"),
        ("{v:str}", "None", "None"),
        ("{v:text}", "red shoes?", "cmVkIHNob2VzPw=="),
        ("{v:text}", "", ""),
        ("{v}", 42, "42"),
        ("{v}", "42", "%342"),
    ],
)
def test_a_field_renders_by_its_kind(template: str, value: object, rest: str) -> None:
    assert space("kinds", k=Key(template)).k(value) == f"kinds:{rest}"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", True), ("int", "1"), ("int", 1.0), ("int", None),
        ("id", True), ("id", None), ("id", 1.5), ("id", b"x"),
        ("str", 1), ("str", None), ("str", b"x"), ("text", 1), ("text", ["a"]),
        ("hash", object()), ("hash", [object()]),
    ],
)  # fmt: skip
def test_an_argument_of_another_kind_is_refused(kind: str, value: object) -> None:
    with pytest.raises(KeyTemplateError, match=r"Keys.k\(v\)"):
        space("refused", k=Key(f"{{v:{kind}}}")).k(value)


def test_wrong_arguments_are_a_type_error_as_of_any_function() -> None:
    keys = space("calls", post=Key("post:{post_id:int}"))
    with pytest.raises(TypeError, match=r"Keys.post\(\) missing 1 required positional argument: 'post_id'"):
        keys.post()
    with pytest.raises(TypeError, match=r"Keys.post\(\) got an unexpected keyword argument 'id'"):
        keys.post(id=1)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (Key("post:{a"), "braces must be balanced"),
        (Key("post:{}"), "fields are not numbered"),
        (Key(""), "is empty"),
        (Key("post:{a:float}"), "may be id, int, str, text, hash"),
        (Key("post:{a!r}"), "conversion"),
        (Key("post:{a}{b}"), "put ':' between"),
        (Key("a b%"), "cannot stand in its text"),
        (Key("post:{class}"), "no parameter 'class'"),
        (Key("post:{a}", tags=["post:{b}"]), "no parameter 'b'"),
        (Key("post:{a}", tags=["post:{result.id}"]), "for the tags of a decorator"),
        (Key("post:{a:int}", tags=["post:{a:int}"]), "conversion or format spec"),
        (Key("post:{user_id}", by_page), "does not name page"),
        (Key("post:{user_id:text}:{page}", by_page), "for an argument of type str, not int"),
    ],
)
def test_a_key_that_cannot_work_is_refused_where_it_is_declared(key: Key[...], message: str) -> None:
    with pytest.raises(KeyTemplateError, match=re.escape(message)):
        space("bad", key=key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Key("a", ttl=0), "ttl must be more than 0"),
        (lambda: Key("a", tags="feed"), "tags must be a list"),
        (lambda: Key("a", tags=lambda a: [a]), "goes to the decorator"),
        (lambda: Key("a")(), "assign it to a name in the body of a Keyspace"),
        (lambda: Key("a").ns, "assign it to a name"),
        (lambda: space("a:b"), "ns must be"),
        (lambda: type("Keys", (Keyspace,), {"ns": Key("a")}, ns="x"), "call the key something else"),
        (
            lambda: type("More", (seed_keys.PostKeys,), {}, ns="more"),
            "a subclass of Keyspace, and of nothing else",
        ),
        (lambda: space("x", a=(one := Key("a")), b=one), "give it a Key of its own"),
        (lambda: PostKeys.post.of(id="post.id"), "has no argument 'id'; it has post_id"),
        (lambda: PostKeys.post.of(post_id="post.id}{x"), "write where it is"),
    ],
)
def test_misuse_is_refused_with_what_to_do_instead(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


# ---------------------------------------------------------------------------- two keys are never one


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("post:{id}", "post:{name}", "post:"),
        ("post:{id:id}", "post:me", "post:me"),
        ("post:{id:int}", "post:7", "post:7"),
        ("post:{id:int}", "post:-7", "post:-7"),
        ("post:{id:int}", "post:{id:str}", "post:1"),
        ("post:{id:int}:x", "post:{id:id}:{what:str}", "post:1:x"),
        ("q:{q:text}", "q:YQ==", "q:YQ=="),
        ("q:{q:hash}", "q:{q:text}", "q:" + "1" * 32),
        ("a-{x:int}", "a{y}", "a-1"),
        ("{a:int}-{b:int}", "{a:int}-7", "1-7"),
        ("a", "a", "a"),
        ("é{x:str}", "{y:str}", "é"),
    ],
)
def test_two_declarations_that_could_produce_one_key_are_refused(one: str, other: str, both: str) -> None:
    with pytest.raises(ConfigError, match=f"could both produce 'twins:{re.escape(both)}'"):
        space("twins", one=Key(one), other=Key(other))
    with pytest.raises(ConfigError, match="could both produce"):
        space("twins", other=Key(other), one=Key(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("post:{id}", "post:{id}:comments"),
        ("post:{id}", "comments:{id}"),
        ("post:{id:int}", "post:me"),
        ("post:{id:int}", "post:1x"),
        ("q:{q:text}", "q:{q:text}:{f:hash}"),
        ("q:{q:text}", "q:a-b"),
        ("q:{q:hash}", "q:{n:int}x"),
        ("conversation:{id}", "conversation:{id}:messages:page:{page}"),
        ("a", "a:"),
        ("post:{id:str}", "post:a b"),
    ],
)
def test_declarations_that_never_meet_are_accepted(one: str, other: str) -> None:
    assert space("apart", one=Key(one), other=Key(other)).ns == "apart"


def test_keys_of_two_keyspaces_of_one_namespace_must_not_meet_either() -> None:
    class First(Keyspace, ns="shared"):
        post = Key("post:{id:int}")

    with pytest.raises(
        ConfigError, match=r"Second.mine .* and .*First.post .* could both produce 'shared:post:1'"
    ):

        class Second(Keyspace, ns="shared"):
            mine = Key("post:{id:str}")

    class Third(Keyspace, ns="shared"):
        other = Key("other:{id:int}")

    class Elsewhere(Keyspace, ns="unshared"):
        post = Key("post:{id:int}")

    assert (First.post(1), Third.other(1), Elsewhere.post(1)) == (
        "shared:post:1",
        "shared:other:1",
        "unshared:post:1",
    )


def test_a_module_of_keys_can_be_loaded_again() -> None:
    importlib.reload(seed_keys)
    assert seed_keys.PostKeys.post(1) == "posts:post:1"


KINDS = ["", "id", "int", "str", "text"]
VALUES: dict[str, list[object]] = {
    "": ["", "1", "a", "YQ==", "-", 1, -1, None, True, 1.5, (1, "a")],
    "id": ["", "1", "a", "a1", "-", 1, -1, 11],
    "int": [0, 1, -1, 11],
    "str": ["", "1", "a", "a1", "-", "-1", ":"],
    "text": ["", "a", "1", "a1"],
}
LITERALS = ["", "a", "1", "-", "YQ==", "a1"]


@st.composite
def templates(draw: st.DrawFn) -> str:
    text, names = "", iter("vwx")
    for n in range(draw(st.integers(1, 3))):
        text += ":" if n and draw(st.booleans()) else ("-" if n else "")
        text += draw(st.sampled_from(LITERALS))
        if draw(st.booleans()):
            kind = draw(st.sampled_from(KINDS))
            text += f"{{{next(names)}{':' if kind else ''}{kind}}}"
            text += draw(st.sampled_from(LITERALS))
    return text or "a"


def parsed(template: str) -> Template:
    names = re.findall(r"\{(\w)", template)
    stub = compile_function(", ".join(names), ["return None"], {})
    return Template(template, Signature(stub, Kind.FUNCTION), stub, "key")


def produced(template: str) -> set[str]:
    key = space("maybe", k=Key(template)).k
    kinds = [kind for _, kind in re.findall(r"\{(\w):?(\w*)\}", template)]
    return {key(*values) for values in itertools.product(*(VALUES[kind] for kind in kinds))}


LANGUAGE = {"": "[^:]*", "id": "[^:]*", "str": "[^:]*", "int": "[-%2D]*[0-9]+", "text": "[A-Za-z0-9+/=%]*"}


def language(template: str) -> str:
    """A regular expression for what a template produces, written without the code under test."""
    parts = re.split(r"\{\w:?(\w*)\}", template)
    return "".join(LANGUAGE[part] if n % 2 else re.escape(part) for n, part in enumerate(parts))


@given(templates(), templates())
@settings(deadline=None, max_examples=300)
def test_templates_that_do_produce_one_key_are_never_called_apart(one: str, other: str) -> None:
    both = common_key(parsed(one), parsed(other))
    if both is None:
        assert not produced(one) & produced(other)
    else:
        assert re.fullmatch(language(one), both)
        assert re.fullmatch(language(other), both)


# ---------------------------------------------------------------------------- in decorators


def test_a_cached_function_takes_namespace_ttl_and_tags_from_its_key(cache: Cache) -> None:
    @cache.cached(key=PostKeys.feed, jitter=0)
    def feed(user_id: int, page: int = 1) -> list[int]:
        return [user_id, page]

    assert feed(7) == [7, 1]
    assert feed.key(7) == PostKeys.feed(7, 1) == "posts:feed:7:page:1"
    assert feed.tags(7) == ("feeds", "feed:7")
    assert cache.ttl(PostKeys.feed(7, 1)) == 900
    assert cache.get(PostKeys.feed(7, 1)) == [7, 1]
    cache.invalidate(tags=["feed:7"])
    assert not cache.exists(PostKeys.feed(7, 1))


def test_what_the_decorator_is_given_goes_before_what_the_key_brings(cache: Cache) -> None:
    @cache.cached(ns="posts", key=PostKeys.post, ttl=5, tags=["mine"], jitter=0)
    def post(post_id: int) -> int:
        return post_id

    assert post(1) == 1
    assert (cache.ttl("posts:post:1"), post.tags(1)) == (5, ("mine",))


def test_a_cached_function_must_fit_its_key(cache: Cache) -> None:
    with pytest.raises(ConfigError, match="is in ns='posts', not in 'users'; leave ns out"):
        cache.cached(ns="users", key=PostKeys.post)
    with pytest.raises(KeyTemplateError, match="there is no parameter 'post_id'"):

        @cache.cached(key=PostKeys.post)
        def unnamed(x: int) -> int:
            return x

    with pytest.raises(KeyTemplateError, match="for an argument of type int, not str"):

        @cache.cached(key=PostKeys.feed)
        def paged(user_id: int, page: str) -> int:
            return 1

    with pytest.raises(ConfigError, match=r"@cached needs a namespace, such as ns=\"posts\", or a Key"):
        cache.cached()  # type: ignore[call-overload]


@dataclass
class Post:
    id: int
    text: str = ""


def test_batches_updates_and_invalidations_take_keys_too(cache: Cache) -> None:
    @cache.cached_many(key=PostKeys.post)
    def find(ids: list[int]) -> dict[int, Post]:
        return {n: Post(n) for n in ids}

    @cache.updates(key=PostKeys.post.of(post_id="post.id"))
    def save(post: Post) -> Post:
        return post

    @cache.invalidates(
        keys=[PostKeys.post, PostKeys.comments.of(post_id="post_id"), AuthKeys.user.of(user_id="by")]
    )
    def drop(post_id: int, by: int) -> None: ...

    assert find([1, 2]) == {1: Post(1), 2: Post(2)}
    assert find.key(1) == PostKeys.post(1)
    assert find.tags(1) == ("post:1",)
    save(Post(1, "new"))
    assert find.peek(1) == Post(1, "new")
    cache.set(AuthKeys.user(5), "ada")
    drop(1, by=5)
    assert not find.peek(1)
    assert not cache.exists(AuthKeys.user(5))
    assert find.peek(2) == Post(2)


def test_a_key_of_other_arguments_is_the_same_key() -> None:
    key = PostKeys.feed.of(user_id="author.id")
    assert key(author=Post(7), page=1) == PostKeys.feed(7, 1)
    assert key(Post(7), 1).tags == PostKeys.feed(7, 1).tags
    assert key.ttl == 900


# ---------------------------------------------------------------------------- in direct operations


@pytest.mark.parametrize("twin", ["", "a"], ids=["sync", "async"])
async def test_what_is_set_under_a_declared_key_has_its_ttl_and_tags(
    any_cache: Cache, twin: str, ask: Any
) -> None:
    async def do(name: str, *args: Any, **kwargs: Any) -> Any:
        return await ask(getattr(any_cache, twin + name)(*args, **kwargs))

    async def load() -> str:
        return "loaded"

    await do("set", UserKeys.profile(1), "ada")
    await do("set_many", {UserKeys.friends(1): [2], UserKeys.settings(1): {}, "users:other": 0})
    loader = load if twin else lambda: "loaded"
    assert await do("get_or_load", UserKeys.profile(2), loader) == "loaded"
    keys = [
        UserKeys.profile(1),
        UserKeys.friends(1),
        UserKeys.settings(1),
        "users:other",
        UserKeys.profile(2),
    ]
    assert [await do("ttl", key) for key in keys] == [7200, 1800, 3600, 300, 7200]
    await do("invalidate", tags=["user:1"])
    assert await do("get_many", keys) == {"users:other": 0, "users:profile:2": "loaded"}
    await do("set", UserKeys.profile(1), "ada", ttl=5, tags=["else"])
    assert await do("ttl", UserKeys.profile(1)) == 5
    await do("invalidate", tags=["user:1"])
    assert await do("exists", UserKeys.profile(1))


# ---------------------------------------------------------------------------- the seed's keys


@pytest.mark.parametrize("one", [42, "42", "u-7f", "6a2f41a3-c54c-fce8-32d2-0324e1c32e22"], ids=repr)
def test_ordinary_ids_make_the_keys_of_the_seed_byte_for_byte(one: Any) -> None:
    query = "red shoes?"
    assert [
        AuthKeys.user(one), AuthKeys.session(one), AuthKeys.refresh(one), AuthKeys.blacklist("9f86d081"),
        UserKeys.profile(one), UserKeys.friends(one), UserKeys.settings(one), UserKeys.search(query),
        PostKeys.post(one), PostKeys.comments(one), PostKeys.reactions(one), PostKeys.feed(one, 3),
        PostKeys.trending(),
        MessageKeys.conversation(one), MessageKeys.messages(one, 3), MessageKeys.of_user(one),
        MediaKeys.file(one), MediaKeys.of_user(one, 3), MediaKeys.collection(one),
        NotificationKeys.of_user(one), NotificationKeys.unread(one), NotificationKeys.preferences(one),
        SearchKeys.suggestions(query), SearchKeys.results(query),
        GlobalKeys.rate_limit("login", one), GlobalKeys.lock("report"), GlobalKeys.online(one),
        GlobalKeys.connections(),
    ] == [
        f"auth:user:{one}", f"auth:session:{one}", f"auth:refresh:{one}", "auth:blacklist:9f86d081",
        f"users:profile:{one}", f"users:friends:{one}", f"users:settings:{one}",
        f"users:search:{base64_of(query)}",
        f"posts:post:{one}", f"posts:comments:{one}", f"posts:reactions:{one}", f"posts:feed:{one}:page:3",
        "posts:trending",
        f"messages:conversation:{one}", f"messages:conversation:{one}:messages:page:3",
        f"messages:user:{one}:conversations",
        f"media:file:{one}", f"media:user:{one}:page:3", f"media:collection:{one}",
        f"notifications:user:{one}", f"notifications:unread:{one}", f"notifications:preferences:{one}",
        f"search:suggestions:{base64_of(query)}", f"search:results:{base64_of(query)}",
        f"global:rate_limit:login:{one}", "global:lock:report", f"global:online:{one}",
        "global:websocket:connections",
    ]  # fmt: skip


def test_ttls_are_those_of_the_seed() -> None:
    keys = [
        AuthKeys.session, AuthKeys.refresh, AuthKeys.blacklist, UserKeys.profile, UserKeys.friends,
        UserKeys.settings, PostKeys.post, PostKeys.reactions, PostKeys.feed, PostKeys.comments,
        MessageKeys.conversation, MessageKeys.messages, MessageKeys.of_user,
    ]  # fmt: skip
    assert [key.ttl for key in keys] == [
        86400, 2592000, 86400, 7200, 1800, 3600, 1800, 1800, 900, 600, 3600, 1800, 900,
    ]  # fmt: skip


def test_an_id_cannot_forge_another_key() -> None:
    """The seed's ``posts:feed:{userId}:page:{page}`` takes "7:page:1" for a user, and answers for page 1."""
    assert MessageKeys.conversation("7:messages:page:1") != MessageKeys.messages(7, 1)
    assert PostKeys.feed("7:page:1", 2) == "posts:feed:7%3Apage%3A1:page:2"


filters = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.tuples(st.text(), filters), st.tuples(st.text(), filters))
@settings(deadline=None)
def test_two_searches_never_share_a_key(one: tuple[str, Any], other: tuple[str, Any]) -> None:
    assert (SearchKeys.filtered(*one) == SearchKeys.filtered(*other)) == (canonical(one) == canonical(other))


def canonical(value: Any) -> Any:
    """Equal only for values of equal types, whatever the order of a dict."""
    if isinstance(value, dict):
        return "dict", frozenset((canonical(k), canonical(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(map(canonical, value))
    return type(value).__name__, value


@given(st.text(), st.text(), st.text(), st.text())
@settings(deadline=None)
def test_text_and_filters_that_only_add_up_to_the_same_do_not_meet(a: str, b: str, c: str, d: str) -> None:
    """The seed encodes ``query + filters`` as one: "ab" + "" and "a" + "b" are one search there."""
    assert (SearchKeys.filtered(a + b, c) == SearchKeys.filtered(a, b + c)) == (b == "")
    assert (SearchKeys.results(a) == SearchKeys.results(b)) == (a == b)
    assert SearchKeys.results(a + d) != SearchKeys.filtered(a, d)


# ---------------------------------------------------------------------------- what tags cure in the seed


def test_one_users_feeds_go_without_a_scan_and_without_anybody_elses(cache: Cache) -> None:
    cache.set_many({PostKeys.feed(user, page): user for user in (7, 77) for page in (1, 2)})
    cache.invalidate(tags=["feed:7"])
    assert [cache.exists(PostKeys.feed(user, page)) for user in (7, 77) for page in (1, 2)] == [
        False,
        False,
        True,
        True,
    ]


def test_a_conversation_goes_with_its_pages_and_the_list_of_every_participant(cache: Cache) -> None:
    """The seed leaves the pages, and deletes the key that is spelled ``messages:user:*:conversations``."""
    keys = [
        MessageKeys.conversation(5),
        MessageKeys.messages(5, 1),
        MessageKeys.of_user(1),
        MessageKeys.of_user(2),
    ]
    others = [MessageKeys.conversation(6), MessageKeys.messages(6, 1), MessageKeys.of_user(3)]
    cache.set_many(dict.fromkeys(keys + others, 1))
    cache.invalidate(tags=["conversation:5", "conversations:1", "conversations:2"])
    assert set(cache.get_many(keys + others)) == set(others)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    seed_keys.main()
    assert capsys.readouterr().out.splitlines()[0] == "posts:feed:7:page:1"


# ---------------------------------------------------------------------------- whatever the arguments


class AnyKeys(Keyspace, ns="fuzz"):
    ids = Key("ids:{a:id}:of:{b:id}")
    texts = Key("texts:{a:str}-{b:str}")
    numbers = Key("numbers:{a:int}-{b:int}")
    searches = Key("searches:{a:text}+{b:text}")


def nfc(*texts: object) -> list[str]:
    return [unicodedata.normalize("NFC", str(text)) for text in texts]


@given(*[st.one_of(st.text(max_size=5), st.text("%:-~3A2D +=", max_size=6), st.integers(-99, 99))] * 4)
@settings(deadline=None)
def test_other_arguments_make_another_key(a: Any, b: Any, c: Any, d: Any) -> None:
    """Two calls share a key only if their ids are spelled alike; no argument ends its part of the key."""
    keys = AnyKeys
    assert (keys.ids(a, b) == keys.ids(c, d)) == (nfc(a, b) == nfc(c, d))
    assert keys.ids(a, b).count(":") == 4
    assert not re.search(r"[\s{}\x00-\x1f]", keys.ids(a, b))
    a, b, c, d = map(str, (a, b, c, d))
    assert (keys.texts(a, b) == keys.texts(c, d)) == (nfc(a, b) == nfc(c, d))
    assert (keys.searches(a, b) == keys.searches(c, d)) == ((a, b) == (c, d))


@given(*[st.integers()] * 4)
def test_other_numbers_make_another_key(a: int, b: int, c: int, d: int) -> None:
    assert (AnyKeys.numbers(a, b) == AnyKeys.numbers(c, d)) == ((a, b) == (c, d))
    assert (AnyKeys.numbers(a, -b) == AnyKeys.numbers(-a, b)) == (a == b == 0)
