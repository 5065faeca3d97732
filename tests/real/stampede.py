"""One process of callers for test_stampede.py: says "ready", waits for a line, calls, prints what it saw.

Arguments: URL, "threads" or "tasks", callers, lease in seconds, seconds that a load takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

import redis

from cacheaside import Cache


def main(url: str, colour: str, callers: int, lease: float, takes: float) -> None:
    cache = Cache(url, l1_window=None)
    counter: Any = redis.Redis.from_url(url)
    options: Any = {"ns": "hot", "key": "page:{n}", "ttl": 60, "tags": ["pages"], "lease_ttl": lease}

    def loading() -> None:
        counter.incr("loads")
        counter.rpush("loaders", os.getpid())

    answers: list[tuple[str, float]] = []
    if colour == "threads":

        @cache.cached(**options)
        def page(n: int) -> str:
            loading()
            time.sleep(takes)
            return f"page {n}"

        page(0)  # connected, and the server has the scripts
        ready(counter)
        together = threading.Barrier(callers)

        def call() -> None:
            together.wait()
            began = time.monotonic()
            answers.append((page(1), time.monotonic() - began))

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:

        @cache.cached(**options)
        async def apage(n: int) -> str:
            loading()
            await asyncio.sleep(takes)
            return f"page {n}"

        async def acall() -> None:
            began = time.monotonic()
            answers.append((await apage(1), time.monotonic() - began))

        async def run() -> None:
            await apage(0)
            ready(counter)
            await asyncio.gather(*(acall() for _ in range(callers)))
            await cache.aclose()

        asyncio.run(run())
    counts = cache.stats()["namespaces"]["hot"]
    print(json.dumps({"answers": answers, "counts": counts}), flush=True)


def ready(counter: Any) -> None:
    counter.delete("loads", "loaders")
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
