"""Consumers are killed in the middle of everything, and nothing that was published is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cacheaside import Cache
from cacheaside.toolkit import DurableBroker
from tests.broker.nursery import SETTINGS

CONSUMERS = 4
MESSAGES = 10_000
PATIENCE = 90.0


class Nursery:
    """Processes that consume; killed ones are replaced."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.alive = [self.bear() for _ in range(CONSUMERS)]
        self.killed = 0

    def bear(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def kill_one(self, chance: random.Random) -> None:
        at = chance.randrange(CONSUMERS)
        os.kill(self.alive[at], signal.SIGKILL)
        self.alive[at] = self.bear()
        self.killed += 1


@contextmanager
def nursery(url: str, folder: Path) -> Iterator[Nursery]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.broker.nursery", url, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield Nursery(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def handled(folder: Path) -> list[int]:
    """Whole lines only: the last one may have been cut."""
    return [int(n) for file in folder.iterdir() for n in file.read_bytes().split(b"\n")[:-1]]


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_ten_thousand_messages_survive_the_death_of_their_consumers(
    one_redis_url: str, tmp_path: Path
) -> None:
    """Four consumers, killed at random all the while: every message is handled at least once."""
    chance = random.Random(7)
    with (
        Cache(one_redis_url) as cache,
        DurableBroker(cache, max_length=10 * MESSAGES, **SETTINGS) as broker,  # type: ignore[arg-type]
        nursery(one_redis_url, tmp_path) as workers,
    ):
        publishing = threading.Thread(
            target=lambda: [broker.publish("numbers", "x", n) for n in range(MESSAGES)]
        )
        publishing.start()
        deadline = time.monotonic() + PATIENCE
        pause, written, next_death = threading.Event(), 0, 500
        while len(seen := set(handled(tmp_path))) < MESSAGES:
            while written == (written := size(tmp_path)):
                assert time.monotonic() < deadline, f"{MESSAGES - len(seen)} messages are missing"
                pause.wait(0.01)
            if written > next_death and len(seen) < MESSAGES * 0.95:
                workers.kill_one(chance)
                next_death = written + chance.randrange(3000)
        publishing.join()
        assert broker.dead("numbers") == []
        assert broker.stats()["dropped"] == 0
        assert workers.killed > 10
        assert seen == set(range(MESSAGES))
