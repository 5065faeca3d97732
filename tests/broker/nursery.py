"""Consumers for test_killed.py, forked from one interpreter: a line read is a birth.

Each writes the number of every message that it handles to a file. Arguments: URL, folder.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from cacheaside import Cache
from cacheaside.toolkit import DurableBroker, Message

SETTINGS = {"group": "workers", "tries": 1000, "claim_after": 0.5, "retry_after": 0.1}


def consume(url: str, folder: str) -> None:
    file = os.open(f"{folder}/{os.getpid()}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def handle(message: Message[int]) -> None:
        os.write(file, b"%d\n" % message.data)

    broker = DurableBroker(Cache(url), **SETTINGS)  # type: ignore[arg-type]
    broker.subscribe("numbers", handle)
    while True:
        time.sleep(60)


def main(url: str, folder: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks what became of them
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setpgid(0, os.getppid())
            consume(url, folder)
        print(child, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
