"""Patterns mean the same here as in Redis."""

from __future__ import annotations

import pytest

from cacheaside import Cache
from cacheaside.stores.glob import matcher


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["", "a", "a\nb"], []),
        ("posts:*", ["posts:", "posts:1:2"], ["post", "xposts:1"]),
        ("p?st", ["post", "p\nst"], ["pst", "poost", "pöst"]),
        ("p[ao]st", ["past", "post"], ["pst", "p[ao]st", "pust"]),
        ("p[^ao]st", ["pust", "p^st"], ["past", "post"]),
        ("p[!a]st", ["p!st", "past"], ["pust"]),
        ("[a-c]", ["a", "b", "c"], ["d", "-"]),
        ("[c-a]", ["a", "b", "c"], ["d"]),
        (r"a\*b", ["a*b"], ["axb", r"a\b"]),
        (r"[\]]", ["]"], ["\\"]),
        ("[ab", ["a", "b"], ["[ab", "["]),
        ("[]a", [], ["a", "]a", ""]),
        ("[^]", ["a", "]"], [""]),
        ("a.b", ["a.b"], ["axb"]),
        ("é", ["é"], ["e"]),
        ("??", ["ab", "é"], ["a"]),
        ("a\\", ["a\\"], ["a"]),
    ],
)
def test_a_pattern_matches_what_redis_says(pattern: str, matching: list[str], others: list[str]) -> None:
    assert [key for key in matching + others if matcher(pattern)(key)] == matching


def test_an_l1_drops_by_brackets_and_backslashes_what_l2_drops(any_cache: Cache) -> None:
    any_cache.set_many(dict.fromkeys(["n:a", "n:b", "n:c", "n:*"], 1))
    assert any_cache.delete_matching(r"n:\*") == 1
    assert any_cache.delete_matching("n:[^ab]") == 1
    assert any_cache.get_many(["n:a", "n:b", "n:c", "n:*"]) == {"n:a": 1, "n:b": 1}
