"""One process that warms on schedule for test_warming.py until its input ends; the server has its notes.

Arguments: URL, seconds between rounds, seconds that a round takes.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import redis

from cacheaside import Cache
from cacheaside.toolkit import Warmer


def main(url: str, every: float, takes: float) -> None:
    notes: Any = redis.Redis.from_url(url, db=1)
    with Cache(url, l1_window=None) as cache:

        @cache.cached_many(ns="posts", key="post:{id}", ttl=60)
        def find(ids: list[int]) -> dict[int, int]:
            return {n: n for n in ids}

        def popular() -> list[int]:
            notes.rpush("began", f"{time.time()} {os.getpid()}")
            time.sleep(takes)
            notes.rpush("ended", f"{time.time()} {os.getpid()}")
            return [1, 2, 3]

        warmer = Warmer(cache)
        warmer.add(find, popular, every)
        with warmer:
            print("ready", flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
