"""The glob patterns of this package beside those of real servers."""

from __future__ import annotations

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheaside.stores.glob import matcher

TEXT = st.text("ab-^]\\*?[é", max_size=6)


@given(pattern=TEXT.filter(bool), keys=st.sets(TEXT.filter(bool), min_size=1, max_size=20))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_pattern_finds_here_what_it_finds_there(redis_url: str, pattern: str, keys: set[str]) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        client.mset(dict.fromkeys(keys, 1))
        there = {key.decode() for key in client.keys(pattern)}
    assert {key for key in keys if matcher(pattern)(key)} == there
