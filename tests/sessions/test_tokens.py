"""Refresh tokens are good once and show their theft; a blacklist refuses until a token ends."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from cacheaside import Cache, ConfigError, StoreUnavailable
from cacheaside.testing.chaos import FailingStore
from cacheaside.toolkit import Blacklist, RefreshToken, RefreshTokens
from tests.sessions.conftest import Place, Recorder

DAY = 86400
Make = Callable[..., Any]


@pytest.fixture
def make(place: Place, paint: Any) -> Make:
    """Refresh tokens in this place and colour."""
    return lambda **options: paint(RefreshTokens(place.cache, **options))


# ---------------------------------------------------------------------------- refresh tokens


async def test_each_token_is_good_once_and_gives_the_next(place: Place, make: Make) -> None:
    tokens = make()
    token = await tokens.issue("ann")
    seen = {token}
    for _ in range(4):
        place.wait(DAY)
        token = await tokens.rotate(token)
        assert token.user_id == "ann"
        assert token not in seen
        seen.add(token)


async def test_a_replayed_token_revokes_its_whole_line_and_no_other(place: Place, make: Make) -> None:
    """Whoever was first: the thief and the user hold tokens of one line."""
    told: list[Any] = []
    tokens = make(on_replay=told.append)
    other = await tokens.issue("ann")
    stolen = await tokens.issue("ann")
    second = await tokens.rotate(stolen)
    place.wait(11)
    third = await tokens.rotate(second)
    place.wait(11)
    assert await tokens.rotate(stolen) is None
    assert told == ["ann"]
    assert await tokens.rotate(third) is None, "the newest token of the line ended with it"
    assert await tokens.rotate(second) is None
    assert await tokens.rotate(other), "another login of the user goes on"
    counts = await tokens.stats()
    assert (counts["replayed"], counts["refused"], counts["rotated"]) == (1, 2, 3)
    assert told == ["ann"]


async def test_a_line_of_which_the_thief_was_first_ends_too(place: Place, make: Make) -> None:
    tokens = make()
    token = await tokens.issue("ann")
    thief_s = await tokens.rotate(token)
    place.wait(11)
    assert await tokens.rotate(token) is None
    assert await tokens.rotate(thief_s) is None


async def test_a_token_sent_twice_at_once_gives_the_same_successor(place: Place, make: Make) -> None:
    tokens = make(grace=10)
    token = await tokens.issue("ann")
    first = await tokens.rotate(token)
    place.wait(9)
    assert await tokens.rotate(token) == first
    assert (await tokens.stats())["repeated"] == 1
    place.wait(11)
    assert await tokens.rotate(first), "nothing was revoked"


async def test_a_token_two_generations_old_is_a_copy_in_its_grace_too(place: Place, make: Make) -> None:
    """Its successor was used, so the answer with that was not lost: who asks again is somebody else."""
    told: list[Any] = []
    tokens = make(grace=10, on_replay=told.append)
    stolen = await tokens.issue("ann")
    first = await tokens.rotate(stolen)
    second = await tokens.rotate(first)
    assert await tokens.rotate(first) == second, "one generation old, it may be sent twice"
    assert await tokens.rotate(stolen) is None
    assert told == ["ann"]
    assert await tokens.rotate(second) is None, "the whole line has ended"


async def test_a_thief_within_the_grace_shares_the_line_and_is_found_out(place: Place, make: Make) -> None:
    tokens = make()
    token = await tokens.issue("ann")
    user_s = await tokens.rotate(token)
    thief_s = await tokens.rotate(token)
    place.wait(DAY)
    assert await tokens.rotate(user_s)
    place.wait(DAY)
    assert await tokens.rotate(thief_s) is None
    assert (await tokens.stats())["replayed"] == 1


async def test_without_grace_the_second_use_revokes(make: Make) -> None:
    tokens = make(grace=0)
    token = await tokens.issue("ann")
    following = await tokens.rotate(token)
    assert await tokens.rotate(token) is None
    assert await tokens.rotate(following) is None


async def test_a_token_ends_after_thirty_days_and_its_successor_has_thirty_more(
    place: Place, make: Make
) -> None:
    tokens = make()
    token = await tokens.issue("ann")
    for _ in range(2):
        place.wait(29 * DAY)
        token = await tokens.rotate(token)
        assert token
    place.wait(30 * DAY + 1)
    assert await tokens.rotate(token) is None
    assert (await tokens.stats())["replayed"] == 0


async def test_revoke_ends_one_line_and_revoke_all_each_of_the_user(make: Make) -> None:
    tokens = make()
    one, two, three, bob_s = [await tokens.issue(user) for user in ("ann", "ann", "ann", "bob")]
    assert await tokens.revoke(one) is True
    assert await tokens.revoke(one) is False
    assert await tokens.rotate(one) is None
    two = await tokens.rotate(two)
    assert await tokens.revoke_all("ann") is True
    assert await tokens.revoke_all("ann") is False
    assert [token for token in (two, three) if await tokens.rotate(token)] == []
    assert await tokens.rotate(bob_s)


async def test_revoking_all_is_one_step_whatever_there_is(place: Place, make: Make) -> None:
    tokens = make()
    for _ in range(50):
        await tokens.issue("ann")
    place.cache.store = recorder = Recorder(place.cache.store)
    assert await tokens.revoke_all("ann")
    assert [len(command.keys) for command in recorder.asked] == [1]


async def test_what_is_no_token_is_refused_and_revokes_nothing(make: Make) -> None:
    tokens = make()
    token = await tokens.issue("ann")
    other = await tokens.issue("bob")
    foreign = RefreshTokens(Cache("embedded://")).issue("ann")
    for forged in (None, "", "x", token[:-1], token + "A", foreign, token[:16] + other[16:], 7, b"x" * 75):
        assert await tokens.rotate(forged) is None
        assert await tokens.revoke(forged) is False
    assert (await tokens.stats())["refused"] == 9
    assert await tokens.rotate(token)


async def test_the_oldest_line_makes_room_for_one_too_many(make: Make) -> None:
    tokens = make(max_per_user=2)
    issued = [await tokens.issue("ann") for _ in range(3)]
    assert [bool(await tokens.rotate(token)) for token in issued] == [False, True, True]


async def test_a_rotation_whose_answer_is_lost_can_be_repeated(place: Place, make: Make) -> None:
    tokens = make()
    token = await tokens.issue("ann")
    inner, place.cache.store = place.cache.store, FailingStore(place.cache.store, late=True)
    with pytest.raises(StoreUnavailable):
        await tokens.rotate(token)
    place.cache.store = inner
    following = await tokens.rotate(token)
    place.wait(11)
    assert await tokens.rotate(following)


async def test_every_operation_raises_when_the_store_is_away(place: Place, make: Make) -> None:
    tokens = make()
    token = await tokens.issue("ann")
    inner, place.cache.store = place.cache.store, FailingStore(place.cache.store)
    for name, argument in (("issue", "ann"), ("rotate", token), ("revoke", token), ("revoke_all", "ann")):
        with pytest.raises(StoreUnavailable):
            await getattr(tokens, name)(argument)
    place.cache.store = inner
    assert await tokens.rotate(token)


async def test_the_loss_of_any_key_logs_out_and_never_in(place: Place, make: Make) -> None:
    tokens = make()
    token = await tokens.issue("ann")
    following = await tokens.rotate(token)
    (left,) = [key for key in place.names() if not key.endswith("}")]
    place.lose(left)
    assert await tokens.rotate(token) is None, "without its grace it is a replay"
    assert await tokens.rotate(following) is None
    token = await tokens.issue("ann")
    for key in place.names():
        place.lose(key)
    assert await tokens.rotate(token) is None


async def test_clearing_the_cache_revokes_nothing_and_pardons_nothing(place: Place, paint: Any) -> None:
    tokens, blacklist = paint(RefreshTokens(place.cache)), paint(Blacklist(place.cache))
    token = await tokens.issue("ann")
    await blacklist.add("jwt", 60)
    place.cache.clear()
    place.cache.clear("auth")
    assert await tokens.rotate(token)
    assert await blacklist.contains("jwt")


async def test_no_refresh_token_reaches_the_store_a_log_or_a_repr(
    place: Place, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    place.cache.store = recorder = Recorder(place.cache.store)
    tokens = make()
    token = await tokens.issue("ann")
    following = await tokens.rotate(token)
    await tokens.rotate(token)
    place.wait(11)
    await tokens.rotate(token)
    assert "used again" in caplog.text
    said = repr([token, following, tokens.thing, *recorder.asked]) + caplog.text
    if place.client is not None:
        said += "".join(repr(place.client.dump(key)) + key for key in place.names())
    for secret in (token.token, following.token):
        assert secret not in said
        assert secret[32:] not in said


def test_a_refresh_token_is_a_str_that_knows_its_user() -> None:
    token = RefreshTokens(Cache("embedded://")).issue(42)
    assert type(token.token) is str
    assert token == token.token
    assert json.loads(json.dumps({"t": token})) == {"t": token.token}
    for again in (copy.copy(token), pickle.loads(pickle.dumps(token))):
        assert (type(again), again, again.user_id) == (RefreshToken, token, 42)
    assert repr(token) == "<RefreshToken of user 42>"


# ---------------------------------------------------------------------------- the blacklist


async def test_a_blacklisted_token_is_refused_until_it_ends_by_itself(place: Place, paint: Any) -> None:
    blacklist = paint(Blacklist(place.cache))
    assert not await blacklist.contains("a.b.c")
    await blacklist.add("a.b.c", 100)
    place.wait(99)
    assert await blacklist.contains("a.b.c")
    assert await blacklist.contains(b"a.b.c"), "text and its bytes are one token"
    for other in ("a.b.C", "\ud800", "x" * 100_000):
        assert not await blacklist.contains(other)
    place.wait(1.1)
    assert not await blacklist.contains("a.b.c")
    assert place.names() == []
    assert await blacklist.stats() == {"added": 1, "refused": 2, "passed": 5, "unavailable": 0}


async def test_adding_a_token_again_never_shortens_its_mark(place: Place, paint: Any) -> None:
    blacklist = paint(Blacklist(place.cache))
    await blacklist.add("t", 100)
    await blacklist.add("t", 5)
    place.wait(50)
    assert await blacklist.contains("t")
    await blacklist.add("t", 200)
    place.wait(150)
    assert await blacklist.contains("t")


async def test_only_the_hash_of_a_token_is_stored(place: Place, paint: Any) -> None:
    """As the seed names it: auth:blacklist:{tokenHash}."""
    place.cache.store = recorder = Recorder(place.cache.store)
    await paint(Blacklist(place.cache)).add("secret.jwt", 60)
    hashed = sha256(b"secret.jwt").hexdigest()
    assert place.names() == [f"{{cacheaside:auth:blacklist:{hashed}}}"]
    assert "secret.jwt" not in repr(recorder.asked)


async def test_whatever_lies_there_is_a_mark(place: Place, paint: Any) -> None:
    blacklist = paint(Blacklist(place.cache))
    if place.client is not None:
        await blacklist.add("t", 60)
        (key,) = place.names()
        place.client.delete(key)
        place.client.rpush(key, "somebody else's")
        assert await blacklist.contains("t")
        await blacklist.add("t", 60)
        assert place.client.lrange(key, 0, -1) == [b"somebody else's"]


@pytest.mark.parametrize("policy", ["deny", "allow"])
async def test_what_contains_answers_when_the_store_is_away_is_said(
    place: Place, paint: Any, policy: Any
) -> None:
    blacklist = paint(Blacklist(place.cache, on_unavailable=policy))
    inner, place.cache.store = place.cache.store, FailingStore(place.cache.store)
    assert await blacklist.contains("t") is (policy == "deny")
    assert await paint(Blacklist(place.cache)).contains("t"), "denying is the default"
    with pytest.raises(StoreUnavailable):
        await blacklist.add("t", 60)
    place.cache.store = inner
    assert await blacklist.stats() == {"added": 0, "refused": 0, "passed": 0, "unavailable": 1}


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda cache: Blacklist(cache).add("t", 0), "ttl must be more than 0"),
        (lambda cache: Blacklist(cache).add("t", -5), "ttl must be more than 0"),
        (lambda cache: Blacklist(cache).add("t", 1.8e9), "at most ten years"),
        (lambda cache: Blacklist(cache).add("", 5), "token must be"),
        (lambda cache: Blacklist(cache).contains(None), "token must be .*, not NoneType"),
        (lambda cache: Blacklist(cache, on_unavailable="maybe"), 'on_unavailable must be "deny" or "allow"'),
        (lambda cache: Blacklist(cache, ns=""), "ns must be"),
        (lambda cache: Blacklist(None), "cache must be a Cache"),
        (lambda cache: RefreshTokens(cache, ttl=0), "ttl must be more than 0"),
        (lambda cache: RefreshTokens(cache, grace=-1), "grace must be 0 or more"),
        (lambda cache: RefreshTokens(cache, max_per_user=1001), "max_per_user must be"),
        (lambda cache: RefreshTokens(cache, on_replay=5), "on_replay must be a function"),
        (lambda cache: RefreshTokens(cache).issue(None), "user_id must be"),
        (lambda cache: RefreshTokens(cache).revoke_all(""), "user_id must be"),
    ],
    ids=map(str, range(14)),
)
def test_an_unusable_argument_is_refused(call: Callable[[Cache], Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        call(Cache("embedded://"))
