"""Warming in several processes: one does each round, and another when that one is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from cacheaside import Cache
from cacheaside.testing.servers import wait_until


@contextlib.contextmanager
def workers(url: str, count: int, every: float, takes: float) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, str(Path(__file__).with_name("warming.py")), url, str(every), str(takes)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    pipe.close()


def noted(client: redis.Redis, name: str) -> list[tuple[float, int]]:
    rows = [row.decode().split() for row in client.lrange(name, 0, -1)]
    return [(float(when), int(who)) for when, who in rows]


def test_of_three_processes_one_does_each_round_though_it_is_killed(one_redis_url: str) -> None:
    """A round here takes longer than the interval: only a claim that is renewed keeps the others away."""
    every, takes = 0.4, 0.9
    with redis.Redis.from_url(one_redis_url, db=1) as notes, workers(one_redis_url, 3, every, takes):
        assert wait_until(lambda: len(noted(notes, "ended")) >= 2, 15)
        victim = noted(notes, "began")[-1][1]
        killed = time.time()
        os.kill(victim, signal.SIGKILL)
        assert wait_until(lambda: any(t > killed and who != victim for t, who in noted(notes, "began")), 15)
        finished = len(noted(notes, "ended"))
        assert wait_until(lambda: len(noted(notes, "ended")) > finished, 15)
        began, ended = noted(notes, "began"), noted(notes, "ended")
    running: set[int] = set()
    for _, begins, who in sorted(
        [(t, True, who) for t, who in began] + [(t, False, who) for t, who in ended]
    ):
        if begins:
            assert running <= {victim}, "two rounds at a time"
        running ^= {who}
    with Cache(one_redis_url, l1_window=None) as cache:
        assert set(cache.get_many([f"posts:post:{n}" for n in (1, 2, 3)], type=int).values()) == {1, 2, 3}


def test_a_process_that_is_told_to_stop_stops_when_its_round_is_through(one_redis_url: str) -> None:
    with (
        redis.Redis.from_url(one_redis_url, db=1) as notes,
        workers(one_redis_url, 1, 3600, 0.3) as (worker,),
    ):
        assert wait_until(lambda: bool(noted(notes, "began")), 15)
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(10) == 0
        assert len(noted(notes, "ended")) == 1
        # Its round was cut short, so its claim is gone: the next process begins at once.
        with workers(one_redis_url, 1, 3600, 0):
            assert wait_until(lambda: len(noted(notes, "began")) == 2, 15)
