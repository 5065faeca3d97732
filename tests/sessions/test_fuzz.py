"""Garbage in Redis and garbage for tokens: a miss and a counter, never an exception or a login."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheaside import Cache
from cacheaside.toolkit import Blacklist, RefreshTokens, SessionStore
from cacheaside.toolkit.grants import is_token
from tests.sessions.conftest import fake_store

DATA = {"email": "ann@example.org", "role": "user"}
QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)


class Scene:
    """Sessions and refresh tokens, live and dead, of two users."""

    def __init__(self, cache: Cache, client: Any) -> None:
        self.client = client
        client.flushall()
        self.sessions = SessionStore(cache, ttl=60)
        self.refresh = RefreshTokens(cache)
        create = self.sessions.create
        one, two, gone, old = [create("ann", DATA) for _ in range(4)]
        bob_s = create("bob", DATA | {"role": "admin"})
        new = self.sessions.rotate(old.token)
        new = self.sessions.rotate(new.token) if new else None
        assert new is not None
        self.sessions.delete(gone.token)
        ended = self.sessions.rotate(two.token, grace=0)
        assert ended is not None
        self.live = {
            token: (user, DATA if user == "ann" else DATA | {"role": "admin"})
            for token, user in (
                (one.token, "ann"), (new.token, "ann"), (old.token, "ann"), (bob_s.token, "bob"),
            )
        }  # fmt: skip
        self.dead = [gone.token, two.token, "A" * 75, one.id + bob_s.token[32:], bob_s.id + one.token[32:]]
        self.first = self.refresh.issue("ann")
        second = self.refresh.rotate(self.first)
        assert second is not None
        self.lines = {self.first: "ann", second: "ann", self.refresh.issue("bob"): "bob"}
        revoked = self.refresh.issue("ann")
        self.refresh.revoke(revoked)
        self.revoked = [revoked, one.token, "B" * 75]

    def check(self) -> None:
        """Whatever lies in the store: who is let in is who he was, with what he had; the dead stay dead."""
        before = self.sessions.stats()
        let_in = 0
        for token, (user, data) in self.live.items():
            found = self.sessions.get(token)
            if found is not None:
                let_in += 1
                assert (found.user_id, found.data, found.token) == (user, data, token)
        assert [token for token in self.dead if self.sessions.get(token) is not None] == []
        after = self.sessions.stats()
        assert after["hits"] - before["hits"] == let_in
        assert after["misses"] - before["misses"] == len(self.live) - let_in + len(self.dead)
        for user in ("ann", "bob"):
            for listed in self.sessions.list(user):
                assert (listed.user_id, listed.data) == (
                    user,
                    DATA if user == "ann" else DATA | {"role": "admin"},
                )
        for token, user in self.lines.items():
            following = self.refresh.rotate(token)
            assert following is None or following.user_id == user
        assert [token for token in self.revoked if self.refresh.rotate(token) is not None] == []
        for token in (*self.live, *self.dead):
            self.sessions.update(token, {"theme": "dark"})
            self.sessions.extend(token)
            self.sessions.rotate(token)
        for user in ("ann", "bob"):
            again = self.sessions.create(user, {"again": True})
            found = self.sessions.get(again.token)
            assert found is not None
            assert found.data == {"again": True}, "and a new login works"
            line = self.refresh.issue(user)
            assert self.refresh.rotate(line)
            self.sessions.delete_all(user)
            self.refresh.revoke_all(user)
            assert self.sessions.list(user) == []

    def spoil(self, pick: Any) -> None:
        """One piece of damage."""
        keys = sorted(self.client.scan_iter())
        key = pick(st.sampled_from(keys))
        kind = pick(st.sampled_from(["splice", "swap", "cut", "string", "list", "field", "forever"]))
        junk = pick(st.one_of(st.binary(max_size=300), st.from_regex(rb"[0-9 a-f.]{0,120}", fullmatch=True)))
        if kind in ("string", "list"):
            self.client.delete(key)
            self.client.set(key, junk) if kind == "string" else self.client.rpush(key, junk)
        elif kind == "forever":
            self.client.persist(key)
        elif self.client.type(key) == b"string":
            self.client.set(key, spliced(self.client.get(key), junk, pick))
        elif self.client.type(key) == b"hash":
            fields = sorted(self.client.hkeys(key))
            field, other = pick(st.sampled_from(fields)), pick(st.sampled_from(fields))
            if kind == "splice":
                self.client.hset(key, field, spliced(self.client.hget(key, field), junk, pick))
            elif kind == "swap":
                self.client.hset(key, field, self.client.hget(key, other))
            elif kind == "cut":
                self.client.hdel(key, field)
            else:
                self.client.hset(key, junk + pick(st.sampled_from([b"", b"."])), self.client.hget(key, other))


def spliced(raw: bytes, junk: bytes, pick: Any) -> bytes:
    """Some bytes of ``raw`` replaced by others."""
    at = pick(st.integers(0, len(raw)))
    return raw[:at] + junk + raw[at + pick(st.integers(0, 40)) :]


@pytest.fixture(scope="module")
def fake() -> Iterator[tuple[Cache, Any]]:
    store = fake_store()
    with Cache(store=store) as cache:
        yield cache, store.client


@pytest.fixture(scope="module")
def real(one_server: Any) -> Iterator[tuple[Cache, Any]]:
    with one_server.client() as client, Cache(one_server.url, l1_window=None) as cache:
        yield cache, client


@settings(QUIET, max_examples=40)
@given(data=st.data())
def test_damage_logs_nobody_in_and_raises_nothing(fake: tuple[Cache, Any], data: Any) -> None:
    scene = Scene(*fake)
    for _ in range(data.draw(st.integers(1, 4))):
        scene.spoil(data.draw)
    scene.check()


@settings(QUIET, max_examples=150)
@given(data=st.data())
def test_damage_in_a_real_server_too(real: tuple[Cache, Any], data: Any) -> None:
    scene = Scene(*real)
    for _ in range(data.draw(st.integers(1, 4))):
        scene.spoil(data.draw)
    scene.check()


def test_an_undamaged_scene_lets_all_of_its_live_ones_in(fake: tuple[Cache, Any]) -> None:
    """What the fuzz checks is not empty."""
    scene = Scene(*fake)
    assert [token for token in scene.live if scene.sessions.get(token) is None] == []
    scene.check()
    assert scene.sessions.stats()["bad_data"] == 0


@QUIET
@given(cut=st.integers(0, 400), put=st.binary(min_size=1, max_size=8))
def test_each_change_of_a_session_s_bytes_is_a_counted_miss(
    fake: tuple[Cache, Any], cut: int, put: bytes
) -> None:
    """No change passes for another user, other data or a longer life."""
    cache, client = fake
    client.flushall()
    sessions = SessionStore(cache)
    token = sessions.create("ann", DATA).token
    (key,) = client.scan_iter()
    fields = sorted(client.hkeys(key), key=len)
    whole = b"".join(client.hget(key, field) for field in fields)
    cut %= len(whole)
    for field in fields:
        raw = client.hget(key, field)
        if cut < len(raw):
            damaged = raw[:cut] + put + raw[cut + len(put) :]
            client.hset(key, field, damaged)
            break
        cut -= len(raw)
    found = sessions.get(token)
    assert (found is not None) is (damaged == raw)
    assert sessions.stats()["misses"] == int(found is None)


@pytest.mark.parametrize("colour", ["embedded", "redis"])
def test_damage_is_counted(colour: str) -> None:
    store = fake_store()
    cache = Cache("embedded://") if colour == "embedded" else Cache(store=store)
    with cache:
        sessions = SessionStore(cache)
        token = sessions.create("ann", DATA).token
        if colour == "embedded":
            (key,) = cache.store._rows  # type: ignore[attr-defined]
            cache.store.set(key, b"garbage", 60)  # type: ignore[attr-defined]
        else:
            (key,) = store.client.scan_iter()
            store.client.set(key, b"garbage")
        assert sessions.get(token) is None
        assert sessions.update(token, {}) is None
        assert sessions.rotate(token) is None
        assert not sessions.extend(token)
        assert not sessions.delete(token)
        assert sessions.list("ann") == []
        assert sessions.stats()["bad_data"] == 5
        assert sessions.create("ann", DATA)
        assert len(sessions.list("ann")) == 1
        assert sessions.get(token) is None


def test_list_leaves_out_what_is_damaged_and_counts_it(fake: tuple[Cache, Any]) -> None:
    cache, client = fake
    client.flushall()
    sessions = SessionStore(cache)
    made = [sessions.create("ann", {"n": n}) for n in range(4)]
    (key,) = client.scan_iter()
    row, data, lost, whole = (one.id[16:] for one in made)
    client.hset(key, f"{row}.", b"garbage")
    client.hset(key, data, b"garbage")
    client.hdel(key, lost)
    assert [one.id[16:] for one in sessions.list("ann")] == [whole]
    assert sessions.stats()["bad_data"] == 3
    assert [sessions.get(one.token) is None for one in made] == [True, True, True, False]
    assert sessions.stats()["bad_data"] == 6
    sessions.create("ann", {})
    assert client.hlen(key) == 6, "a login clears away rows that are damaged; data is not looked at"


def test_data_in_the_place_of_another_session_s_is_damage(fake: tuple[Cache, Any]) -> None:
    cache, client = fake
    client.flushall()
    sessions = SessionStore(cache)
    user_s, admin_s = sessions.create("ann", DATA), sessions.create("ann", {"role": "admin"})
    (key,) = client.scan_iter()
    client.hset(key, user_s.id[16:], client.hget(key, admin_s.id[16:]))
    assert sessions.get(user_s.token) is None
    assert sessions.get(admin_s.token) is not None


def test_a_date_that_cannot_be_is_damage(fake: tuple[Cache, Any]) -> None:
    """Its sum may be right all the same."""
    cache, client = fake
    client.flushall()
    sessions = SessionStore(cache)
    made = sessions.create("ann", DATA)
    (key,) = client.scan_iter()
    row = f"{made.id[16:]}."
    born, seen, idle, last, _, hashed = client.hget(key, row).split()
    born = b"9" * 25
    total = b"%.0f" % (float(born) + float(seen) + float(idle) + float(last))
    client.hset(key, row, b" ".join((born, seen, idle, last, total, hashed)))
    assert sessions.get(made.token) is None
    assert sessions.list("ann") == []
    assert sessions.stats()["bad_data"] == 2


def test_users_whose_hashes_meet_see_nothing_of_each_other(
    embedded: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheaside.toolkit.grants.home_of", lambda user_id: "A" * 16)
    sessions = SessionStore(embedded, ns="meet")
    ann_s, bob_s = sessions.create("ann", {"of": "ann"}), sessions.create("bob", {"of": "bob"})
    assert [[one.data for one in sessions.list(user)] for user in ("ann", "bob")] == [
        [{"of": "ann"}],
        [{"of": "bob"}],
    ]
    for made, user in ((ann_s, "ann"), (bob_s, "bob")):
        found = sessions.get(made.token)
        assert found is not None
        assert found.user_id == user


@pytest.mark.parametrize("where", ["embedded", "redis"])
def test_a_damaged_grace_is_over(where: str) -> None:
    """Only what was written prolongs an old token's life, and only so long as was written."""
    redis = fake_store()
    with Cache("embedded://") if where == "embedded" else Cache(store=redis) as cache:
        store: Any = cache.store
        sessions = SessionStore(cache)
        old = sessions.create("ann", DATA)
        new = sessions.rotate(old.token)
        assert new is not None
        names = store._rows if where == "embedded" else [key.decode() for key in redis.client.scan_iter()]
        (key,) = [name for name in names if not name.endswith("}")]
        left: bytes = store.get(key) if where == "embedded" else redis.client.get(key)
        till, _, masked, following = left.split()
        late, past = b"%d" % (int(till) + 10**12), b"1000"
        for damaged, good in {
            left: True,
            b" ".join((late, till, masked, following)): False,
            b" ".join((till, late, masked, following)): False,
            b" ".join((past, past, masked, following)): False,
            b" ".join((till, till, masked[:-1], following)): False,
            b" ".join((till, till, masked, following[:-1])): False,
            b" ".join((till, till, masked)): False,
            b" ".join((till, till, masked, following, following)): False,
            b"": False,
        }.items():
            store.set(key, damaged, 60) if where == "embedded" else redis.client.set(key, damaged)
            assert (sessions.get(old.token) is not None) is good, damaged
            assert (sessions.rotate(old.token) is not None) is good, damaged
        assert sessions.get(new.token) is not None


@pytest.fixture(scope="module")
def embedded() -> Iterator[Cache]:
    with Cache("embedded://") as cache:
        yield cache


TOKENS = st.one_of(
    st.text(), st.binary(), st.none(), st.integers(), st.from_regex(r"[A-Za-z0-9_-]{73,77}", fullmatch=True)
)


@settings(QUIET, max_examples=300)
@given(token=TOKENS)
def test_no_other_token_opens_anything_or_raises(embedded: Cache, token: Any) -> None:
    sessions, refresh = SessionStore(embedded), RefreshTokens(embedded)
    made, line = sessions.create("ann", DATA), refresh.issue("ann")
    for forged in (token, *([made.id + token[32:], line[:32] + token[32:]] if is_token(token) else [])):
        assert sessions.get(forged) is None
        assert sessions.update(forged, {"role": "admin"}) is None
        assert sessions.rotate(forged) is None
        assert sessions.extend(forged) is False
        assert sessions.delete(forged) is False
    assert refresh.rotate(token) is None
    assert refresh.revoke(token) is False
    found = sessions.get(made.token)
    assert found is not None
    assert found.data == DATA
    assert refresh.rotate(line)


@settings(QUIET, max_examples=200)
@given(token=st.one_of(st.text(min_size=1), st.binary(min_size=1)), other=st.text(min_size=1))
def test_any_token_can_be_blacklisted_and_no_other_is(embedded: Cache, token: Any, other: str) -> None:
    blacklist = Blacklist(embedded, ns="fuzz")
    blacklist.add(token, 60)
    assert blacklist.contains(token)
    embedded.store.close()  # type: ignore[attr-defined]
    blacklist.add(token, 60)
    same = token == other or token == other.encode("utf-8", "surrogatepass")
    assert blacklist.contains(other) is same
    embedded.store.close()  # type: ignore[attr-defined]


@settings(QUIET, max_examples=200)
@given(
    user=st.one_of(st.text(min_size=1), st.integers(-(2**63), 2**64 - 1), st.uuids()),
    data=st.dictionaries(st.text(), st.one_of(st.text(), st.integers(-99, 99), st.none(), st.booleans())),
)
def test_any_user_and_data_come_back_as_they_were(embedded: Cache, user: Any, data: dict[str, Any]) -> None:
    sessions = SessionStore(embedded)
    found = sessions.get(sessions.create(user, data).token)
    assert found is not None
    assert (found.user_id, found.data) == (user, data)
    assert [one.data for one in sessions.list(user)] == [data]
    sessions.delete_all(user)
