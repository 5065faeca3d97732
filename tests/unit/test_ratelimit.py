"""Rate limits by a clock that moves when told to, on the embedded store and on a Redis of this process."""

from __future__ import annotations

import pickle
import unicodedata
import uuid
from bisect import bisect_right
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheaside import Cache, ConfigError, KeyTemplateError, StoreUnavailable
from cacheaside.engine.commands import Run
from cacheaside.testing import FakeClock
from cacheaside.testing.chaos import FailingStore
from cacheaside.toolkit import Decision, RateLimited, RateLimiter, rate_limited
from tests.aging import cache_on

ALGORITHMS = ["sliding-log", "sliding-counter", "gcra"]
every = pytest.mark.parametrize("algorithm", ALGORITHMS)
START = 1_700_000_000.0
"""Where windows of a second, a minute and an hour (but of 7 seconds) begin."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START - START % 3600)


@pytest.fixture
def any_cache(any_cache: Cache, server_clock: FakeClock) -> Cache:
    return any_cache


class Asked(FailingStore):
    """Counts the commands, and fails when told to."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.store, self.refuse)
        self.failing = False
        self.commands: list[Any] = []
        cache.store = self

    def refuse(self, command: Any) -> bool:
        self.commands.append(command)
        return self.failing


def hits(limiter: RateLimiter, count: int, who: object = "ann") -> int:
    """How many of so many are let in."""
    return sum(limiter.hit(who).allowed for _ in range(count))


# ---------------------------------------------------------------------------- what is let in


@every
def test_a_limit_is_let_in_and_no_more(any_cache: Cache, algorithm: Any) -> None:
    limiter = RateLimiter(any_cache, 3, 60, algorithm)
    assert [limiter.hit("ann").remaining for _ in range(3)] == [2, 1, 0]
    refused = limiter.hit("ann")
    assert not refused.allowed
    assert (refused.limit, refused.window, refused.remaining) == (3, 60, 0)
    assert refused.retry_after > 0
    assert limiter.hit("bob").allowed
    assert limiter.stats() == {"allowed": 4, "denied": 1, "remembered": 0, "unavailable": 0}


@every
async def test_the_async_twins_count_together_with_the_others(any_cache: Cache, algorithm: Any) -> None:
    limiter = RateLimiter(any_cache, 2, 60, algorithm)
    assert (await limiter.ahit("ann")).allowed
    assert (await limiter.apeek("ann")).remaining == 1
    assert limiter.hit("ann").allowed
    assert not (await limiter.ahit("ann")).allowed
    await limiter.areset("ann")
    assert (await limiter.ahit("ann")).allowed


@every
def test_hits_of_one_moment_count_one_each(any_cache: Cache, algorithm: Any) -> None:
    """In the original, two requests of one millisecond are one member of the set."""
    assert hits(RateLimiter(any_cache, 100, 1, algorithm), 150) == 100


@every
def test_who_keeps_trying_is_let_in_again(any_cache: Cache, clock: FakeClock, algorithm: Any) -> None:
    """In the original, refused requests are counted: a client that never pauses never gets in again."""
    limiter = RateLimiter(any_cache, 5, 1, algorithm, remember=0)
    let_in = 0
    for _ in range(1000):  # ten seconds
        let_in += limiter.hit("ann").allowed
        clock.tick(0.01)
    # A counter cannot give out parts of a hit: under pressure, at a limit of five, one a window is lost.
    assert (40 if algorithm == "sliding-counter" else 50) <= let_in <= 55


@pytest.mark.parametrize(
    ("algorithm", "admitted"), [("sliding-log", 500), ("sliding-counter", 496), ("gcra", 599)]
)
def test_a_hundred_and_fifty_a_second_for_five_seconds(
    any_cache: Cache, clock: FakeClock, algorithm: Any, admitted: int
) -> None:
    """Against a hundred a second. The log lets in exactly those, gcra a first burst as well, and a counter
    a little less to who pushes."""
    limiter = RateLimiter(any_cache, 100, 1, algorithm)
    original = Original(clock, 100, 1)
    let_in = by_original = 0
    begin = clock()
    for n in range(750):
        clock.now = begin + n / 150
        let_in += limiter.hit("ann").allowed
        by_original += original.hit()
    assert by_original == 100
    assert let_in == admitted


class Original:
    """The document's limiter: drop what is old, add, count, whatever the outcome; in milliseconds."""

    def __init__(self, clock: FakeClock, limit: int, window: float) -> None:
        self.clock, self.limit, self.window = clock, limit, window * 1000
        self.members: set[int] = set()

    def hit(self) -> bool:
        now = int(self.clock() * 1000)
        self.members = {at for at in self.members if at > now - self.window}
        self.members.add(now)
        return len(self.members) <= self.limit


@every
def test_an_old_hit_makes_room_when_its_window_ends(
    any_cache: Cache, clock: FakeClock, algorithm: Any
) -> None:
    limiter = RateLimiter(any_cache, 2, 10, algorithm)
    limiter.hit("ann")
    clock.tick(4)
    limiter.hit("ann")
    wait = limiter.hit("ann").retry_after
    if algorithm == "sliding-log":
        # The original says that a slot is free a whole window from now.
        assert wait == pytest.approx(6, abs=1e-5)
    clock.tick(wait)
    assert limiter.hit("ann").allowed
    assert not limiter.hit("ann").allowed


# ---------------------------------------------------------------------------- cost, peek, reset


@every
def test_a_hit_of_some_cost_counts_so_often_or_not_at_all(any_cache: Cache, algorithm: Any) -> None:
    limiter = RateLimiter(any_cache, 10, 60, algorithm)
    assert limiter.hit("ann", 4).remaining == 6
    assert limiter.hit("ann", 5).remaining == 1
    refused = limiter.hit("ann", 2)
    assert (refused.allowed, refused.remaining) == (False, 1)
    assert limiter.hit("ann", 1).remaining == 0


@every
def test_a_large_cost_is_counted_whole(any_cache: Cache, algorithm: Any) -> None:
    """More members than one command of a script can take."""
    limiter = RateLimiter(any_cache, 10_001, 60, algorithm)
    assert limiter.hit("ann", 10_000).remaining == 1
    assert limiter.hit("ann", 1).remaining == 0
    assert not limiter.hit("ann", 1).allowed


@every
def test_peek_tells_and_counts_nothing(any_cache: Cache, clock: FakeClock, algorithm: Any) -> None:
    limiter = RateLimiter(any_cache, 2, 60, algorithm)
    untouched = limiter.peek("ann")
    assert untouched == Decision(True, 2, 2, 0.0, 0.0, 60.0)
    for _ in range(5):
        assert limiter.peek("ann") == untouched
    limiter.hit("ann")
    assert (limiter.peek("ann").allowed, limiter.peek("ann").remaining) == (True, 1)
    assert not limiter.peek("ann", 2).allowed
    limiter.hit("ann")
    assert limiter.peek("ann").retry_after == limiter.hit("ann").retry_after
    assert limiter.stats()["allowed"] == 2


@every
def test_after_a_reset_all_of_the_limit_is_there(any_cache: Cache, algorithm: Any) -> None:
    limiter = RateLimiter(any_cache, 2, 60, algorithm)
    assert hits(limiter, 5) == 2
    limiter.reset("ann")
    assert limiter.peek("ann").remaining == 2
    assert hits(limiter, 5) == 2


@every
def test_reset_after_is_when_all_of_the_limit_is_there(
    any_cache: Cache, clock: FakeClock, algorithm: Any
) -> None:
    limiter = RateLimiter(any_cache, 4, 10, algorithm)
    limiter.hit("ann")
    clock.tick(3)
    whole = limiter.hit("ann", 2).reset_after
    clock.tick(whole - 0.01)
    assert limiter.peek("ann").remaining < 4 or algorithm == "sliding-counter"
    clock.tick(0.01)
    assert limiter.peek("ann") == Decision(True, 4, 4, 0.0, 0.0, 10.0)


# ---------------------------------------------------------------------------- several limits


@every
def test_of_several_limits_all_count_a_hit_or_none(
    any_cache: Cache, clock: FakeClock, algorithm: Any
) -> None:
    limiter = RateLimiter(any_cache, limits=[(3, 1), (5, 3600)], algorithm=algorithm, remember=0)
    assert hits(limiter, 10) == 3
    assert limiter.peek("ann").window == 1
    clock.tick(2)
    # Had the seven refusals counted under the hour, nothing would be left of it.
    assert hits(limiter, 10) == 2
    refused = limiter.hit("ann")
    assert (refused.window, refused.limit, refused.remaining) == (3600, 5, 0)
    assert refused.retry_after > 60


@every
def test_of_several_limits_the_one_with_the_least_left_is_told_of(any_cache: Cache, algorithm: Any) -> None:
    limiter = RateLimiter(any_cache, limits=[(10, 1), (4, 60)], algorithm=algorithm)
    told = limiter.hit("ann")
    assert (told.limit, told.window, told.remaining) == (4, 60, 3)


# ---------------------------------------------------------------------------- for any sequence of hits


steps = st.lists(
    st.tuples(
        st.one_of(
            st.just(0.0), st.floats(0, 0.05), st.floats(0, 1.5), st.floats(0, 15), st.just(1.0), st.just(10.0)
        ),
        st.integers(1, 3),
    ),
    max_size=40,
)
rates = st.sampled_from([((3, 1.0),), ((7, 10.0),), ((3, 1.0), (7, 10.0)), ((5, 0.3), (9, 7.0))])


@pytest.mark.parametrize("store", ["embedded", "redis"])
@every
@settings(deadline=None, max_examples=60)
@given(steps=steps, rates=rates, begin=st.floats(START, START + 100))
def test_who_sleeps_for_retry_after_is_let_in_and_who_sleeps_less_is_not(
    store: str, algorithm: Any, steps: Any, rates: Any, begin: float
) -> None:
    clock = FakeClock(begin)
    with cache_on(store, clock) as cache:
        limiter = RateLimiter(cache, limits=rates, algorithm=algorithm)
        for passes, cost in steps:
            clock.tick(passes)
            decision = limiter.hit("ann", cost)
            if decision:
                assert decision.retry_after == 0
                continue
            wait = decision.retry_after
            asleep = clock()
            clock.now = asleep + max(0.0, wait - 5e-6)
            assert not limiter.peek("ann", cost)
            assert not limiter.hit("ann", cost)
            clock.now = asleep + wait
            assert limiter.hit("ann", cost)


@pytest.mark.parametrize("store", ["embedded", "redis"])
@settings(deadline=None, max_examples=60)
@given(steps=steps, rates=rates, begin=st.floats(START, START + 100))
def test_no_window_ever_holds_more_than_the_limit_under_sliding_log(
    store: str, steps: Any, rates: Any, begin: float
) -> None:
    clock = FakeClock(begin)
    let_in: list[float] = []
    with cache_on(store, clock) as cache:
        limiter = RateLimiter(cache, limits=rates, remember=0)
        for passes, cost in steps:
            clock.tick(passes)
            if limiter.hit("ann", cost):
                let_in += [clock()] * cost
    for limit, window in rates:
        for end in range(len(let_in)):
            # What is a window old has left it; a microsecond, for the store counts in whole ones.
            begins = bisect_right(let_in, let_in[end] - window + 1e-6)
            assert end + 1 - begins <= limit


@every
@settings(deadline=None, max_examples=100)
@given(steps=steps, rates=rates, begin=st.floats(START, START + 100))
def test_the_script_and_its_twin_decide_alike(algorithm: Any, steps: Any, rates: Any, begin: float) -> None:
    def decisions(store: str) -> list[Decision]:
        clock = FakeClock(begin)
        told: list[Decision] = []
        with cache_on(store, clock) as cache:
            limiter = RateLimiter(cache, limits=rates, algorithm=algorithm, remember=0)
            for passes, cost in steps:
                # Both then see the same microsecond, whether they round or cut off.
                clock.now = int((clock.now + passes) * 1e6) / 1e6 + 3e-7
                told += [limiter.hit("ann", cost), limiter.peek("ann", cost)]
        return told

    for ours, theirs in zip(decisions("embedded"), decisions("redis"), strict=True):
        assert (ours.allowed, ours.limit, ours.remaining) == (theirs.allowed, theirs.limit, theirs.remaining)
        assert ours.reset_after == pytest.approx(theirs.reset_after, abs=3e-6)
        assert ours.retry_after == pytest.approx(theirs.retry_after, abs=3e-6)


# ---------------------------------------------------------------------------- what is kept, and where


def test_a_log_holds_no_more_than_the_limit_and_ends_by_itself(
    redis_cache: Cache, redis_store: Any, server_clock: FakeClock
) -> None:
    limiter = RateLimiter(redis_cache, 10, 60, name="login", remember=0)
    for _ in range(500):
        limiter.hit("ann")
        server_clock.tick(1)
    key = "cacheaside:global:rate_limit:login:ann"
    assert redis_store.client.zcard(key) <= 10
    server_clock.tick(60)
    assert redis_store.client.keys() == []


@every
def test_every_key_ends_by_itself_and_refusals_do_not_prolong_it(
    redis_cache: Cache, redis_store: Any, server_clock: FakeClock, algorithm: Any
) -> None:
    limiter = RateLimiter(redis_cache, 2, 60, algorithm, remember=0)
    assert hits(limiter, 2) == 2
    (key,) = redis_store.client.keys()
    life = redis_store.client.pttl(key)
    assert 60_000 <= life <= 120_000
    server_clock.tick(10)
    assert hits(limiter, 5) == 0
    assert redis_store.client.pttl(key) == life - 10_000


@pytest.mark.parametrize(
    ("who", "rest"),
    [
        ("203.0.113.7", "203.0.113.7"),
        (42, "42"),
        ("42", "%342"),
        (("login", "ann"), "login:ann"),
        ("login:ann", "login%3Aann"),
        (("a", "b:c"), "a:b%3Ac"),
        ("{x} y", "%7Bx%7D%20y"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    ],
)
def test_a_key_is_the_seed_s_and_no_identifier_can_forge_another(
    redis_cache: Cache, redis_store: Any, who: object, rest: str
) -> None:
    RateLimiter(redis_cache, name="api").hit(who)
    assert redis_store.client.keys() == [f"cacheaside:global:rate_limit:api:{rest}".encode()]


parts = st.one_of(st.text(min_size=1), st.integers(), st.binary(min_size=1))
identifiers = st.lists(parts, min_size=1, max_size=3).map(tuple)


@settings(max_examples=300)
@given(one=identifiers, other=identifiers)
def test_no_two_identifiers_share_a_key(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    def composed(who: tuple[Any, ...]) -> list[Any]:  # text is compared as keys are, composed
        return [unicodedata.normalize("NFC", part) if isinstance(part, str) else part for part in who]

    limiter = RateLimiter(Cache("embedded://"), name="api")
    keys = limiter._key(one), limiter._key(other)
    assert (keys[0] == keys[1]) == (composed(one) == composed(other))
    for key in keys:
        assert key.startswith("cacheaside:global:rate_limit:api:")
        assert len(key.encode()) < 300
        assert not {"{", "}", " ", "\n"} & set(key)


def test_a_long_identifier_ends_in_a_hash(redis_cache: Cache, redis_store: Any) -> None:
    limiter = RateLimiter(redis_cache, name="api")
    limiter.hit("x" * 5000)
    limiter.hit("x" * 5000 + "y")
    assert [len(key) < 300 for key in redis_store.client.scan_iter()] == [True, True]


def test_limiters_of_other_limits_or_names_or_algorithms_do_not_meet(any_cache: Cache) -> None:
    limiters = [
        RateLimiter(any_cache, 1, 60),
        RateLimiter(any_cache, 1, 61),
        RateLimiter(any_cache, 1, 60, name="api"),
        *(RateLimiter(any_cache, 1, 60, algorithm) for algorithm in ("sliding-counter", "gcra")),
    ]
    assert [limiter.hit("ann").allowed for limiter in limiters] == [True] * 5
    assert not RateLimiter(any_cache, 1, 60).hit("ann").allowed


@every
def test_a_server_clock_that_is_set_back_lets_nobody_in_too_early_and_keeps_nobody_out(
    any_cache: Cache, clock: FakeClock, algorithm: Any
) -> None:
    limiter = RateLimiter(any_cache, 3, 10, algorithm, remember=0)
    clock.tick(5)
    assert hits(limiter, 1) == 1
    for _ in range(2):
        clock.tick(-1.5)
        assert limiter.hit("ann")
    assert not limiter.hit("ann")
    clock.tick(6)
    assert algorithm == "gcra" or not limiter.hit("ann")
    clock.tick(17)
    assert hits(limiter, 4) == 3


@every
def test_hits_of_one_moment_count_one_each_even_when_it_comes_twice(
    any_cache: Cache, clock: FakeClock, algorithm: Any
) -> None:
    limiter = RateLimiter(any_cache, 3, 60, algorithm)
    for passes in (0, 5, -5):
        clock.tick(passes)
        assert limiter.hit("ann")
    assert not limiter.hit("ann")


# ---------------------------------------------------------------------------- refusals are remembered


@every
def test_a_refusal_is_known_without_a_command_until_it_ends(
    any_cache: Cache, clock: FakeClock, algorithm: Any
) -> None:
    limiter = RateLimiter(any_cache, 2, 60, algorithm)
    assert hits(limiter, 2) == 2
    first = limiter.hit("ann")
    asked = Asked(any_cache)
    clock.tick(first.retry_after / 2)
    again = limiter.hit("ann")
    assert asked.commands == []
    assert not again.allowed
    assert again.retry_after == pytest.approx(first.retry_after / 2, abs=1e-5)
    assert again.reset_after == pytest.approx(first.reset_after - first.retry_after / 2, abs=1e-5)
    assert limiter.stats()["remembered"] == 1
    clock.tick(again.retry_after)
    assert limiter.hit("ann").allowed
    assert [type(command) for command in asked.commands] == [Run]


def test_a_refusal_says_nothing_about_others_and_other_costs(cache: Cache) -> None:
    limiter = RateLimiter(cache, 3, 60)
    limiter.hit("ann", 2)
    assert not limiter.hit("ann", 2)
    asked = Asked(cache)
    assert limiter.hit("ann", 1)
    assert limiter.hit("bob", 2)
    assert not limiter.hit("ann", 1)
    assert not limiter.hit("ann", 3)
    assert len(asked.commands) == 4


def test_refusals_are_forgotten_by_a_reset_and_not_remembered_across_one(cache: Cache) -> None:
    limiter = RateLimiter(cache, 1, 60)
    assert hits(limiter, 2) == 1
    limiter.reset("ann")
    assert limiter.hit("ann").allowed
    # A refusal whose answer is under way while somebody resets.
    late = limiter._hit(limiter._key("ann"), 1)
    reply = cache.store.perform(next(late))
    limiter.reset("ann")
    with pytest.raises(StopIteration) as ended:
        late.send(reply)
    assert not ended.value.value.allowed
    assert limiter.hit("ann").allowed


def test_so_many_refusals_are_remembered_and_no_more(cache: Cache) -> None:
    limiter = RateLimiter(cache, 1, 60, remember=3)
    for who in range(10):
        limiter.hit(who)
        assert not limiter.hit(who)
    assert len(limiter._denials) == 3
    asked = Asked(cache)
    assert not any(limiter.hit(who) for who in (9, 8, 7))
    assert asked.commands == []
    forgetful = RateLimiter(cache, 1, 60, name="forgetful", remember=0)
    assert hits(forgetful, 3) == 1
    assert len(asked.commands) == 3


# ---------------------------------------------------------------------------- when the store is away


def test_without_an_answer_hits_are_let_in_unless_told_otherwise(cache: Cache) -> None:
    by_default = RateLimiter(cache, 2, 60)
    closed = RateLimiter(cache, 2, 60, on_unavailable="deny", name="closed")
    asked = Asked(cache)
    asked.failing = True
    for _ in range(5):
        let_in = by_default.hit("ann")
        assert (let_in.allowed, let_in.known, let_in.retry_after) == (True, False, 0)
        refused = closed.hit("ann")
        assert (refused.allowed, refused.known, refused.remaining) == (False, False, 0)
        assert refused.retry_after > 0
    assert by_default.stats() == {"allowed": 5, "denied": 0, "remembered": 0, "unavailable": 5}
    assert closed.stats() == {"allowed": 0, "denied": 5, "remembered": 0, "unavailable": 5}
    assert cache.stats()["namespaces"]["global"]["unavailable"] == 10
    asked.failing = False
    assert hits(by_default, 3) == 2  # what was let in meanwhile counts for nothing
    assert hits(closed, 3) == 2  # such a refusal is not remembered


async def test_without_an_answer_the_async_twins_do_the_same(cache: Cache) -> None:
    limiter = RateLimiter(cache, 2, 60, on_unavailable="deny")
    Asked(cache).failing = True
    assert not (await limiter.ahit("ann")).known
    assert not (await limiter.apeek("ann")).known


def test_a_reset_that_was_not_done_says_so(cache: Cache) -> None:
    limiter = RateLimiter(cache, 2, 60)
    Asked(cache).failing = True
    with pytest.raises(StoreUnavailable):
        limiter.reset("ann")


def test_somebody_else_s_data_under_the_key_is_left_alone(redis_cache: Cache, redis_store: Any) -> None:
    limiter = RateLimiter(redis_cache, name="api", on_unavailable="deny")
    redis_store.client.set("cacheaside:global:rate_limit:api:ann", "a string")
    assert not limiter.hit("ann").known
    assert redis_store.client.get("cacheaside:global:rate_limit:api:ann") == b"a string"


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"limit": 0}, "limit must be"),
        ({"limit": 1.5}, "limit must be"),
        ({"limit": True}, "limit must be"),
        ({"limit": 10**9}, "limit must be"),
        ({"window": 0}, "window must be"),
        ({"window": "60"}, "window must be"),
        ({"window": 0.0001}, "at least a millisecond"),
        ({"algorithm": "fixed"}, "algorithm must be one of sliding-log, sliding-counter, gcra"),
        ({"on_unavailable": "raise"}, "on_unavailable must be"),
        ({"limits": []}, "limits must be pairs"),
        ({"limits": [1, 2]}, "limits must be pairs"),
        ({"limits": 5}, "limits must be pairs"),
        ({"limits": [(n, n) for n in range(1, 20)]}, "16 at most"),
        ({"limits": [(1, 60), (2, 60)]}, "two of one window"),
        ({"limits": [(1, 60)], "limit": 5}, "not both"),
        ({"name": "a:b"}, "must be"),
        ({"remember": -1}, "remember must be"),
    ],
)
def test_a_limiter_that_cannot_work_is_refused(cache: Cache, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        RateLimiter(cache, **given)


@pytest.mark.parametrize("cost", [0, -1, 1.0, True, "1", 4])
def test_a_cost_that_can_never_be_let_in_is_refused(cache: Cache, cost: Any) -> None:
    limiter = RateLimiter(cache, limits=[(3, 1), (10, 60)])
    with pytest.raises(ConfigError, match="cost"):
        limiter.hit("ann", cost)


@pytest.mark.parametrize("who", [None, "", (), ("login", None), ("login", ""), object(), {"a": 1}])
def test_an_identifier_that_names_nobody_is_refused(cache: Cache, who: object) -> None:
    """Or all who have no address would share one limit."""
    with pytest.raises(ConfigError):
        RateLimiter(cache).hit(who)


def test_a_decision_is_as_true_as_it_says(cache: Cache) -> None:
    limiter = RateLimiter(cache, 1, 60)
    assert limiter.hit("ann")
    assert not limiter.hit("ann")
    assert repr(limiter) == "<RateLimiter '1per60': 1 in 60 s, sliding-log>"


# ---------------------------------------------------------------------------- the decorator


def test_a_limited_function_is_called_so_often_and_then_raises(cache: Cache, clock: FakeClock) -> None:
    limiter = RateLimiter(cache, 2, 60, name="auth")
    calls: list[str] = []

    @rate_limited(limiter, key="login:{ip}")
    def login(name: str, *, ip: str) -> str:
        calls.append(name)
        return f"hello {name}"

    assert [login("ann", ip="::1"), login("bob", ip="::1")] == ["hello ann", "hello bob"]
    with pytest.raises(RateLimited, match="login is called too often: 2 in 60 s; again in 60 s") as refused:
        login("eve", ip="::1")
    decision = refused.value.decision
    assert not decision.allowed
    assert calls == ["ann", "bob"]
    assert login("eve", ip="::2") == "hello eve"
    assert limiter.peek(("login", "::1")).remaining == 0
    limiter.reset(("login", "::1"))
    assert login("eve", ip="::1") == "hello eve"
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (str(copy), copy.decision) == (str(refused.value), decision)
    assert login.__name__ == "login"


async def test_a_limited_coroutine_function_too(cache: Cache) -> None:
    @rate_limited(RateLimiter(cache, 3, 60), key="{user}", cost=2)
    async def send(user: int) -> int:
        return user

    assert await send(7) == 7
    with pytest.raises(RateLimited):
        await send(7)
    assert await send(8) == 8


def test_methods_are_limited_by_what_the_key_names(cache: Cache) -> None:
    limiter = RateLimiter(cache, 1, 60)

    class Mailer:
        def __init__(self, tenant: str) -> None:
            self.tenant = tenant

        @rate_limited(limiter, key="method:{self.tenant}")
        def send(self) -> str:
            return self.tenant

        @rate_limited(limiter, key="class:{to}")
        @classmethod
        def broadcast(cls, to: str) -> str:
            return cls.__name__ + to

        @rate_limited(limiter, key="static:{to}")
        @staticmethod
        def log(to: str) -> str:
            return to

    assert (Mailer("a").send(), Mailer("b").send()) == ("a", "b")
    assert (Mailer.broadcast("x"), Mailer.log("x")) == ("Mailerx", "x")
    for again in (Mailer("a").send, lambda: Mailer("z").broadcast("x"), lambda: Mailer.log("x")):
        with pytest.raises(RateLimited):
            again()


def test_a_limited_cached_function_is_limited_even_when_it_hits(cache: Cache) -> None:
    @rate_limited(RateLimiter(cache, 2, 60), key="{n}")
    @cache.cached(ns="squares", key="{n}")
    def square(n: int) -> int:
        return n * n

    assert (square(3), square(3)) == (9, 9)
    with pytest.raises(RateLimited):
        square(3)


def test_what_a_limited_function_raises_counts_as_a_call(cache: Cache) -> None:
    @rate_limited(RateLimiter(cache, 1, 60), key="all")
    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        fail()
    with pytest.raises(RateLimited):
        fail()


def test_a_key_that_does_not_fit_its_function_is_refused_where_it_stands(cache: Cache) -> None:
    limiter = RateLimiter(cache, 2, 60)
    with pytest.raises(KeyTemplateError, match="did you mean"):

        @rate_limited(limiter, key="login:{ipp}")
        def login(ip: str) -> None: ...

    with pytest.raises(ConfigError, match="cost is 3"):
        rate_limited(limiter, key="all", cost=3)
    with pytest.raises(ConfigError, match="limiter must be a RateLimiter"):
        rate_limited(cache, key="all")  # type: ignore[arg-type]
