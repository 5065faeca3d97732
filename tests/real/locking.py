"""One process of holders for test_lock.py: says "ready", waits for a line, then counts under a lock.

Arguments: URL, "threads" or "tasks", rounds; 0 rounds takes the lock, says "held" and keeps it for ever.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import redis

from cacheaside import Cache


def main(url: str, colour: str, rounds: int) -> None:
    cache = Cache(url, l1_window=None)
    client: Any = redis.Redis.from_url(url.partition("?")[0])
    print("ready", flush=True)
    sys.stdin.readline()
    if not rounds:
        with cache.lock("counter", ttl=1):
            print("held", flush=True)
            threading.Event().wait()

    def add(fence: int) -> None:
        """No single step: what others do in between is lost."""
        seen = int(client.get("count") or 0)
        client.rpush("fences", fence)
        client.set("count", seen + 1)

    async def tasks() -> None:
        async def one() -> None:
            for _ in range(rounds):
                async with cache.lock("counter", timeout=60) as held:
                    add(held.fence)

        await asyncio.gather(one(), one())
        await cache.aclose()

    if colour == "tasks":
        asyncio.run(tasks())
    else:
        for _ in range(2 * rounds):
            with cache.lock("counter", timeout=60) as held:
                add(held.fence)
        cache.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
