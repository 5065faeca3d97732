"""One process of hits for test_ratelimit.py: says "ready", waits for a line, hits, prints how many got in.

Arguments: URL, algorithm, threads, hits of each.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from cacheaside import Cache
from cacheaside.toolkit import RateLimiter


def main(url: str, algorithm: Any, threads: int, each: int) -> None:
    with Cache(url, l1_window=None) as cache:
        # Every hit is to reach the server, and none is to be let in again while this runs.
        limiter = RateLimiter(cache, 100, 3600, algorithm, remember=0)
        limiter.peek("crowd")
        print("ready", flush=True)
        sys.stdin.readline()
        together = threading.Barrier(threads)

        def hit() -> None:
            together.wait()
            for _ in range(each):
                limiter.hit("crowd")

        crowd = [threading.Thread(target=hit) for _ in range(threads)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
        told = limiter.stats()
        assert told["allowed"] + told["denied"] == threads * each
        assert not told["unavailable"]
        print(told["allowed"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
