"""Sessions do what they say wherever they live, in both colours."""

from __future__ import annotations

import dataclasses
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from msgspec import Struct

from cacheaside import Cache, CodecError, ConfigError, StoreUnavailable
from cacheaside.engine.commands import Run
from cacheaside.testing.chaos import FailingStore, StoreWrapper
from cacheaside.toolkit import SessionStore
from tests.sessions.conftest import Place, Recorder

DAY = 86400
DATA = {"email": "ann@example.org", "role": "user", "permissions": ["read"], "age": 33}


class Login(Struct, frozen=True):
    """The seed's session data."""

    email: str
    last_seen: datetime
    birthday: date
    role: str = "user"
    permissions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LoginDataclass:
    email: str
    last_seen: datetime
    role: str = "user"


LOGIN = Login("ann@example.org", datetime(2026, 1, 2, 3, 4, 5, 6, UTC), date(1990, 5, 6))

Make = Callable[..., Any]


@pytest.fixture
def make(place: Place, paint: Any) -> Make:
    """A store of sessions in this place and colour."""
    return lambda **options: paint(SessionStore(place.cache, **options))


# ---------------------------------------------------------------------------- create and get


async def test_a_session_is_found_by_its_token_with_what_was_put_into_it(make: Make) -> None:
    store = make()
    made = await store.create("ann", DATA)
    found = await store.get(made.token)
    assert (found.token, found.id, found.user_id, found.data) == (made.token, made.id, "ann", DATA)
    assert found.created_at == made.created_at
    assert found.last_activity >= made.last_activity


async def test_tokens_are_256_random_bits_and_no_two_alike(make: Make) -> None:
    store = make()
    tokens = [(await store.create("ann", {})).token for _ in range(20)]
    secrets = {token[32:] for token in tokens}
    assert len(secrets) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", secret) for secret in secrets)


async def test_what_is_no_token_of_a_live_session_is_none(make: Make) -> None:
    """Unknown ids are never accepted: nobody can bring a session's name along."""
    store = make()
    made = await store.create("ann", DATA)
    other = await store.create("bob", DATA)
    forged = [
        made.id, made.token[:-1], made.token + "A", made.token.swapcase(), made.id + other.token[32:],
        other.id[:16] + made.token[16:], "", "x", " ", "*", "{a}:b", made.token + "\n", "\ud800", "é" * 75,
        "A" * 75, "A" * 100_000, None, 5, b"bytes", made.token.encode(),
    ]  # fmt: skip
    assert [token for token in forged if await store.get(token) is not None] == []
    for token in forged:
        assert await store.update(token, {"role": "admin"}) is None
        assert await store.rotate(token) is None
        assert not await store.extend(token)
        assert token == made.id or not await store.delete(token)
    assert (await store.stats())["misses"] == len(forged)


async def test_a_user_has_many_sessions_and_a_new_login_hides_none(make: Make) -> None:
    store = make()
    made = [await store.create("ann", {"device": n}) for n in range(5)]
    assert [(await store.get(one.token)).data["device"] for one in made] == [0, 1, 2, 3, 4]


async def test_get_begins_the_idle_life_anew_and_moves_last_activity(place: Place, make: Make) -> None:
    store = make(ttl=100, absolute_ttl=1000)
    token = (await store.create("ann", DATA)).token
    seen = []
    for _ in range(3):
        place.wait(90)
        seen.append((await store.get(token)).last_activity)
    assert seen == sorted(seen)
    assert seen[0] < seen[2]
    place.wait(101)
    assert await store.get(token) is None


async def test_no_use_prolongs_a_session_past_its_absolute_life(place: Place, make: Make) -> None:
    store = make(ttl=100, absolute_ttl=250)
    token = (await store.create("ann", DATA)).token
    for _ in range(2):
        place.wait(90)
        assert await store.get(token)
        assert await store.extend(token)
    place.wait(60)
    assert (await store.rotate(token, grace=0)) is not None
    (left,) = await store.list("ann")
    place.wait(11)
    assert await store.list("ann") == []
    assert not await store.delete(left.id)


async def test_a_session_near_its_end_takes_no_other_with_it(place: Place, make: Make) -> None:
    store = make(ttl=100, absolute_ttl=150)
    old = await store.create("ann", DATA)
    place.wait(90)
    young = await store.create("ann", DATA)
    assert await store.get(old.token)
    place.wait(50)
    assert await store.get(young.token)
    assert await store.get(old.token), "which has ten seconds left"
    place.wait(20)
    assert await store.get(old.token) is None
    assert await store.get(young.token)


async def test_dates_are_dates_of_the_world(make: Make, place: Place) -> None:
    store = make()
    made = await store.create("ann", DATA)
    now = datetime.fromtimestamp(place.cache.world.clock(), UTC)
    assert abs(made.created_at - now) < timedelta(seconds=60)
    assert made.created_at == made.last_activity
    assert made.created_at.tzinfo is UTC


async def test_nothing_lives_for_ever_in_the_store(make: Make, place: Place) -> None:
    store = make()
    made = await store.create("ann", DATA)
    await store.rotate(made.token)
    if place.client is not None:
        lives = {key: place.client.ttl(key) for key in place.names()}
        assert sorted(life > 0 for life in lives.values()) == [True, True]
        assert max(lives.values()) in (DAY - 1, DAY)


# ---------------------------------------------------------------------------- types


async def test_typed_data_comes_back_as_its_type_dates_as_dates(make: Make) -> None:
    store = make(type=Login)
    token = (await store.create("ann", LOGIN)).token
    data = (await store.get(token)).data
    assert type(data) is Login
    assert data == LOGIN


async def test_typed_data_changes_by_field_and_stays_typed(make: Make) -> None:
    store = make(type=Login)
    token = (await store.create("ann", LOGIN)).token
    later = LOGIN.last_seen + timedelta(days=1)
    changed = await store.update(token, {"last_seen": later, "permissions": ("write",)})
    assert changed.data == Login(LOGIN.email, later, LOGIN.birthday, "user", ("write",))
    assert (await store.get(token)).data == changed.data


async def test_a_dataclass_changes_by_field_too(make: Make) -> None:
    store = make(type=LoginDataclass)
    token = (await store.create("ann", LoginDataclass("a@b", LOGIN.last_seen))).token
    await store.update(token, {"role": "admin"})
    assert (await store.get(token)).data == LoginDataclass("a@b", LOGIN.last_seen, "admin")


async def test_other_types_change_by_a_function(make: Make) -> None:
    store = make(type=tuple[str, int])
    token = (await store.create("ann", ("a", 1))).token
    with pytest.raises(ConfigError, match="changes of a tuple must be a function"):
        await store.update(token, {"x": 1})
    assert (await store.update(token, lambda data: (data[0], data[1] + 1))).data == ("a", 2)
    assert (await store.get(token)).data == ("a", 2)


async def test_a_change_that_does_not_fit_is_refused_and_changes_nothing(make: Make) -> None:
    store = make(type=Login)
    token = (await store.create("ann", LOGIN)).token
    with pytest.raises(ConfigError, match=r"changes do not fit Login.*'rolle'"):
        await store.update(token, {"rolle": "admin"})
    with pytest.raises(CodecError, match="session data"):
        await store.update(token, {"role": 5})
    with pytest.raises(ConfigError, match="changes must be a dict of fields or a function, not a str"):
        await store.update(token, "role")
    assert (await store.get(token)).data == LOGIN


async def test_a_new_field_with_a_default_logs_nobody_out(make: Make) -> None:
    """A deploy changes the type; the sessions of before go on."""

    class Before(Struct):
        email: str

    token = (await make(type=Before).create("ann", Before("a@b"))).token

    class After(Struct):
        email: str
        role: str = "user"

    assert (await make(type=After).get(token)).data == After("a@b", "user")


async def test_data_of_another_type_is_a_miss_that_is_counted(make: Make) -> None:
    token = (await make().create("ann", DATA)).token
    store = make(type=Login)
    assert await store.get(token) is None
    assert await store.update(token, {"role": "admin"}) is None
    assert await store.list("ann") == []
    assert (await store.stats())["bad_data"] == 3
    assert (await make().get(token)).data == DATA, "and it is left to the version that wrote it"


async def test_data_that_cannot_come_back_is_refused(make: Make) -> None:
    with pytest.raises(CodecError, match=r"session data: .*give SessionStore a type"):
        await make().create("ann", {"day": date(2026, 1, 1)})
    with pytest.raises(ConfigError, match="data must be a dict, not a list"):
        await make().create("ann", [1])
    with pytest.raises(CodecError, match="at most 1048576"):
        await make().create("ann", {"photo": b"x" * 2**20})


# ---------------------------------------------------------------------------- update


async def test_update_changes_some_fields_and_leaves_the_rest(make: Make) -> None:
    store = make()
    token = (await store.create("ann", DATA)).token
    changed = await store.update(token, {"role": "admin", "new": [1, 2]})
    assert changed.data == {**DATA, "role": "admin", "new": [1, 2]}
    assert (await store.get(token)).data == changed.data
    assert (await store.update(token, lambda data: {"n": data["age"] + 1})).data == {"n": 34}
    assert (await store.get(token)).data == {"n": 34}


async def test_updates_of_different_fields_at_once_both_survive(place: Place, make: Make) -> None:
    """The second writer comes between the first one's read and write."""
    store = make()
    token = (await store.create("ann", {"n": 0})).token
    between = [{"b": 2}, {"c": 3}]
    plain = SessionStore(place.cache)

    class Meanwhile(StoreWrapper):
        def around(self, command: Any) -> Any:
            if command.args[0] == "replace" and between:
                change = between.pop()
                place.cache.store, wrapper = self.inner, place.cache.store
                plain.update(token, change)
                place.cache.store = wrapper
            return (yield command)

    place.cache.store = Meanwhile(place.cache.store)
    changed = await store.update(token, {"a": 1})
    place.cache.store = place.cache.store.inner
    assert changed.data == (await store.get(token)).data == {"n": 0, "a": 1, "b": 2, "c": 3}
    assert (await store.stats())["conflicts"] == 2


@pytest.mark.parametrize("end", ["delete", "delete by id", "delete_all", "expiry"])
async def test_no_step_revives_a_session_that_ends_meanwhile(place: Place, make: Make, end: str) -> None:
    store = make(ttl=100, absolute_ttl=100)
    made = await store.create("ann", DATA)
    plain = SessionStore(place.cache)

    class Meanwhile(StoreWrapper):
        def around(self, command: Any) -> Any:
            if command.args[0] == "replace":
                place.cache.store, wrapper = self.inner, place.cache.store
                if end == "expiry":
                    place.wait(101)
                elif end == "delete_all":
                    assert plain.delete_all("ann")
                else:
                    assert plain.delete(made.token if end == "delete" else made.id)
                place.cache.store = wrapper
            return (yield command)

    place.cache.store = Meanwhile(place.cache.store)
    assert await store.update(made.token, {"role": "admin"}) is None
    place.cache.store = place.cache.store.inner
    assert await store.get(made.token) is None
    assert await store.list("ann") == []


async def test_an_update_by_a_token_that_is_rotated_meanwhile_is_refused(place: Place, make: Make) -> None:
    store = make()
    made = await store.create("ann", DATA)
    plain = SessionStore(place.cache)
    rotated: list[Any] = []

    class Meanwhile(StoreWrapper):
        def around(self, command: Any) -> Any:
            if command.args[0] == "replace":
                place.cache.store, wrapper = self.inner, place.cache.store
                rotated.append(plain.rotate(made.token, grace=0))
                place.cache.store = wrapper
            return (yield command)

    place.cache.store = Meanwhile(place.cache.store)
    assert await store.update(made.token, {"role": "admin"}) is None
    place.cache.store = place.cache.store.inner
    assert (await store.get(rotated[0].token)).data == DATA


# ---------------------------------------------------------------------------- rotate


async def test_rotate_gives_a_new_token_and_the_old_one_a_short_grace(place: Place, make: Make) -> None:
    store = make(grace=5)
    old = await store.create("ann", DATA)
    new = await store.rotate(old.token)
    assert new.token != old.token
    assert (new.id, new.user_id, new.data, new.created_at) == (old.id, "ann", DATA, old.created_at)
    assert (await store.get(old.token)).id == (await store.get(new.token)).id
    place.wait(5.1)
    assert await store.get(old.token) is None
    assert await store.update(old.token, {"role": "admin"}) is None
    assert await store.rotate(old.token) is None
    assert not await store.extend(old.token)
    assert not await store.delete(old.token), "an old token is no token"
    assert (await store.get(new.token)).data == DATA


async def test_without_grace_the_old_token_is_unknown_at_once(place: Place, make: Make) -> None:
    store = make()
    old = await store.create("ann", DATA)
    new = await store.rotate(old.token, grace=0)
    assert await store.get(old.token) is None
    assert await store.rotate(old.token) is None
    none = make(grace=0)
    newer = await none.rotate(new.token)
    assert await none.get(new.token) is None
    assert await none.get(newer.token)


async def test_who_rotates_an_old_token_in_its_grace_gets_the_same_new_one(make: Make) -> None:
    """Two requests of one browser: neither of them may be logged out by the other."""
    store = make()
    old = await store.create("ann", DATA)
    first = await store.rotate(old.token)
    assert (await store.rotate(old.token)).token == first.token
    second = await store.rotate(first.token)
    assert (await store.rotate(old.token)).token == second.token
    assert (await store.rotate(first.token)).token == second.token


async def test_a_token_in_its_grace_ends_with_its_session(make: Make) -> None:
    store = make()
    old = await store.create("ann", DATA)
    new = await store.rotate(old.token)
    assert await store.delete(old.token), "logging out with it logs out"
    assert await store.get(new.token) is None
    assert await store.get(old.token) is None
    old = await store.create("ann", DATA)
    await store.rotate(old.token)
    await store.delete_all("ann")
    await store.create("ann", DATA)
    assert await store.get(old.token) is None


async def test_a_rotation_whose_answer_is_lost_can_be_repeated(place: Place, make: Make) -> None:
    store = make()
    old = await store.create("ann", DATA)
    inner = place.cache.store
    place.cache.store = FailingStore(inner, late=True)
    with pytest.raises(StoreUnavailable):
        await store.rotate(old.token)
    place.cache.store = inner
    new = await store.rotate(old.token)
    assert new.token != old.token
    place.wait(10)
    assert await store.get(new.token)
    assert await store.get(old.token) is None


# ---------------------------------------------------------------------------- extend, delete, list


async def test_extend_begins_the_idle_life_anew_without_activity(place: Place, make: Make) -> None:
    store = make(ttl=100)
    made = await store.create("ann", DATA)
    place.wait(90)
    assert await store.extend(made.token) is True
    place.wait(90)
    (listed,) = await store.list("ann")
    assert listed.last_activity == made.created_at
    assert await store.get(made.token)
    place.wait(101)
    assert await store.extend(made.token) is False


async def test_delete_ends_one_session_and_no_other(make: Make) -> None:
    store = make()
    one, two = await store.create("ann", DATA), await store.create("ann", DATA)
    assert await store.delete(one.token) is True
    assert await store.delete(one.token) is False
    assert await store.get(one.token) is None
    assert await store.get(two.token)


async def test_delete_all_ends_every_session_of_the_user_and_nobody_else_s(make: Make) -> None:
    store = make()
    mine = [await store.create("ann", DATA) for _ in range(5)]
    others = [await store.create(user, DATA) for user in ("bob", "an", "ann:x", "*", "ann*", "session:*")]
    assert await store.delete_all("ann") is True
    assert [one for one in mine if await store.get(one.token)] == []
    assert [one for one in others if await store.get(one.token) is None] == []
    assert await store.delete_all("ann") is False
    again = await store.create("ann", DATA)
    assert await store.get(again.token)


async def test_list_shows_live_sessions_without_tokens(place: Place, make: Make) -> None:
    store = make(ttl=100)
    gone = await store.create("ann", {"device": "old"})
    place.wait(60)
    phone = await store.create("ann", {"device": "phone"})
    laptop = await store.create("ann", {"device": "laptop"})
    await store.create("bob", {"device": "bob's"})
    place.wait(60)
    assert (await store.get(phone.token)).data["device"] == "phone"
    listed = await store.list("ann")
    assert [one.data["device"] for one in listed] == ["phone", "laptop"], "the one active last first"
    assert [one.token for one in listed] == ["", ""]
    assert [one.id for one in listed] == [phone.id, laptop.id]
    assert await store.get(gone.token) is None
    place.wait(50)
    assert [one.id for one in await store.list("ann")] == [phone.id], "listing touches nothing"


async def test_a_device_is_logged_out_by_the_id_that_list_shows(make: Make) -> None:
    store = make()
    phone, laptop = await store.create("ann", {"n": 1}), await store.create("ann", {"n": 2})
    shown = {one.data["n"]: one.id for one in await store.list("ann")}
    assert await store.delete(shown[1]) is True
    assert await store.get(phone.token) is None
    assert await store.get(laptop.token)
    assert await store.delete(shown[1]) is False


async def test_the_oldest_session_makes_room_for_one_too_many(make: Make) -> None:
    store = make(max_per_user=3)
    made = [await store.create("ann", {"n": n}) for n in range(3)]
    assert await store.get(made[0].token), "using it does not make it younger"
    other = await store.create("bob", {})
    made += [await store.create("ann", {"n": n}) for n in (3, 4)]
    live = [bool(await store.get(one.token)) for one in made]
    assert live == [False, False, True, True, True]
    assert len(await store.list("ann")) == 3
    assert await store.get(other.token)
    assert (await store.stats())["pushed_out"] == 2


async def test_ended_sessions_count_for_nothing_and_leave_nothing(place: Place, make: Make) -> None:
    store = make(ttl=100, max_per_user=3)
    for n in range(3):
        await store.create("ann", {"n": n})
    place.wait(60)
    keeps = await store.create("ann", {"n": 3})
    place.wait(60)
    await store.create("ann", {"n": 4})
    assert (await store.stats())["pushed_out"] == 1
    assert await store.get(keeps.token)
    if place.client is not None:
        (key,) = place.names()
        assert place.client.hlen(key) == 4


@pytest.mark.parametrize("user", [42, UUID(int=42)], ids=["int", "UUID"])
async def test_a_user_and_his_text_are_one(make: Make, user: Any) -> None:
    """A path knows only the text: logging out user "42" must not miss the sessions of user 42."""
    store = make()
    one = await store.create(user, DATA)
    two = await store.create(str(user), DATA)
    assert ((await store.get(one.token)).user_id, (await store.get(two.token)).user_id) == (user, str(user))
    assert len(await store.list(user)) == len(await store.list(str(user))) == 2
    assert await store.delete_all(str(user))
    assert await store.get(one.token) is None


@pytest.mark.parametrize(
    "user", ["a:b", "{a}", "a}b", "%", "*", "a b", "é", "\x00", "x" * 5000, 0, -1, 2**63]
)
async def test_any_text_and_number_can_be_a_user(make: Make, user: Any) -> None:
    store = make()
    token = (await store.create(user, DATA)).token
    other = await store.create("a", DATA)
    assert (await store.get(token)).user_id == user
    assert len(await store.list(user)) == 1
    assert await store.delete_all(user)
    assert await store.get(other.token)


async def test_stores_of_two_namespaces_know_nothing_of_each_other(make: Make) -> None:
    staff, shop = make(ns="staff"), make(ns="shop")
    made = await staff.create("ann", DATA)
    assert await shop.get(made.token) is None
    assert not await shop.delete_all("ann")
    assert await staff.get(made.token)


async def test_clearing_the_cache_logs_nobody_out(place: Place, make: Make) -> None:
    store = make()
    made = await store.create("ann", DATA)
    place.cache.set("auth:user:1", "cached")
    assert place.cache.clear("auth") == 1
    place.cache.delete_matching("*")
    place.cache.clear()
    assert await store.get(made.token)


# ---------------------------------------------------------------------------- cost


async def test_how_many_steps_each_operation_takes(place: Place, make: Make) -> None:
    """One atomic step each, two for an update, whatever the number of sessions."""
    store = make()
    made = [await store.create("ann", DATA) for _ in range(60)]
    place.cache.store = recorder = Recorder(place.cache.store)
    steps = {}
    for name, arguments in {
        "create": ("ann", DATA), "get": (made[1].token,), "update": (made[1].token, {"a": 1}),
        "extend": (made[1].token,), "rotate": (made[1].token,), "delete": (made[2].token,),
        "list": ("ann",), "delete_all": ("ann",),
    }.items():  # fmt: skip
        recorder.asked.clear()
        assert await getattr(store, name)(*arguments)
        steps[name] = [(type(c), len(c.keys)) for c in recorder.asked]
    assert {name: len(asked) for name, asked in steps.items()} == dict.fromkeys(steps, 1) | {"update": 2}
    assert steps["delete_all"] == [(Run, 1)]


# ---------------------------------------------------------------------------- secrets


async def test_no_token_reaches_the_store_a_log_a_repr_or_an_error(
    place: Place, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    place.cache.store = recorder = Recorder(place.cache.store)
    store = make()
    made = await store.create("ann", DATA)
    new = await store.rotate(made.token)
    newer = await store.rotate(made.token)
    await store.get(made.token)
    await store.update(new.token, {"role": "admin"})
    await store.extend(new.token)
    (listed,) = await store.list("ann")
    said = [repr(x) for x in (made, new, newer, listed, store.thing, *recorder.asked)]
    if place.client is not None:
        for key in place.names():
            hashed = place.client.type(key) == b"hash"
            said.append(repr((key, place.client.hgetall(key) if hashed else place.client.get(key))))
    place.cache.store = FailingStore(recorder.inner)
    for name in ("create", "update", "rotate", "extend", "delete"):
        with pytest.raises(StoreUnavailable) as failed:
            await getattr(store, name)(new.token, *([{}] if name in ("create", "update") else []))
        said.append(repr(failed.value))
    everything = "\n".join([*said, caplog.text])
    for secret in (made.token, new.token):
        assert secret not in everything
        assert secret[32:] not in everything
    assert sha256(new.token.encode()).hexdigest() in everything, "the hash is what the store is asked for"
    assert DATA["email"] not in "\n".join(map(repr, (made, new, listed)))


async def test_what_a_grace_leaves_opens_nothing_without_the_old_token(place: Place, make: Make) -> None:
    """Nothing that the store was told is the pad that hides the successor."""
    place.cache.store = recorder = Recorder(place.cache.store)
    store = make()
    old = await store.create("ann", DATA)
    new = await store.rotate(old.token)
    told = " ".join(map(repr, recorder.asked))
    known = [bytes.fromhex(text) for text in set(re.findall(r"[0-9a-f]{64}", told))]
    assert len(known) == 3, "two hashes, and the successor under its mask"
    for one in known:
        for other in (*known, bytes(32)):
            mixed = bytes(a ^ b for a, b in zip(one, other, strict=True))
            assert urlsafe_b64encode(mixed).rstrip(b"=").decode() != new.token[32:]


# ---------------------------------------------------------------------------- when Redis is away


async def test_get_denies_when_the_store_is_away_and_counts_it(place: Place, make: Make) -> None:
    store, asking = make(), make(on_unavailable="raise")
    token = (await store.create("ann", DATA)).token
    inner, place.cache.store = place.cache.store, FailingStore(place.cache.store)
    assert await store.get(token) is None
    with pytest.raises(StoreUnavailable):
        await asking.get(token)
    place.cache.store = inner
    for one in (store, asking):
        assert (await one.stats())["unavailable"] == 1
    assert await store.get(token), "and nothing has been forgotten"


@pytest.mark.parametrize("late", [False, True])
async def test_whatever_else_cannot_be_done_raises(place: Place, make: Make, late: bool) -> None:
    """A login, a change or a logout is never reported when it may not have happened."""
    store = make()
    token = (await store.create("ann", DATA)).token
    inner, place.cache.store = place.cache.store, FailingStore(place.cache.store, late=late)
    for name, arguments in {
        "create": ("ann", DATA), "update": (token, {"a": 1}), "rotate": (token,), "extend": (token,),
        "list": ("ann",), "delete": (token,), "delete_all": ("ann",),
    }.items():  # fmt: skip
        with pytest.raises(StoreUnavailable):
            await getattr(store, name)(*arguments)
    place.cache.store = inner
    assert (await store.get(token) is None) is late


async def test_the_loss_of_any_key_logs_out_and_never_in(place: Place, make: Make) -> None:
    """Redis may evict whatever it likes."""
    store = make()
    for victim in ("the user's key", "a grace"):
        await store.delete_all("ann")
        place.wait(10)
        old = await store.create("ann", DATA)
        new = await store.rotate(old.token)
        ended = await store.create("ann", DATA)
        await store.delete(ended.token)
        left = await store.create("bob", DATA)
        await store.delete_all("bob")
        (key,) = [key for key in place.names() if key.endswith("}") is (victim == "the user's key")]
        place.lose(key)
        dead = (old, ended, left) if victim == "a grace" else (old, new, ended, left)
        assert [one for one in dead if await store.get(one.token) is not None] == []
        assert await store.create("ann", DATA), "and a new login works"


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"ttl": 0}, "ttl must be more than 0"),
        ({"ttl": 3000000}, r"ttl \(3e\+06 s\) must not be longer than absolute_ttl"),
        ({"absolute_ttl": -1}, "absolute_ttl must be more than 0"),
        ({"grace": -1}, "grace must be 0 or more"),
        ({"max_per_user": 0}, "max_per_user must be a whole number from 1 to 1000"),
        ({"max_per_user": True}, "max_per_user"),
        ({"ns": "a:b"}, "ns must be"),
        ({"on_unavailable": "allow"}, 'on_unavailable must be "deny" or "raise"'),
        ({"type": Any}, None),
        ({"type": Callable[[], int]}, "does not survive the trip"),
    ],
)
def test_an_unusable_option_is_refused(options: dict[str, Any], complaint: str | None) -> None:
    cache = Cache("embedded://")
    if complaint is None:
        assert SessionStore(cache, **options)
    else:
        with pytest.raises((ConfigError, CodecError), match=complaint):
            SessionStore(cache, **options)


@pytest.mark.parametrize("user", [None, "", True, 1.5, b"ann", "\ud800", 2**70])
async def test_an_unusable_user_is_refused(user: Any) -> None:
    with pytest.raises(ConfigError, match="user_id must be"):
        SessionStore(Cache("embedded://")).create(user, {})


def test_a_url_in_the_place_of_a_cache_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="cache must be a Cache") as refused:
        SessionStore("redis://:hunter2@localhost")  # type: ignore[call-overload]
    assert "hunter2" not in str(refused.value)
