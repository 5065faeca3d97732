"""Worker processes that serve the app, each on a port of its own; none outlives who started them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from typing import Final

from ..demo.graph import PROJECT
from ..demo.workload import WorkerDied
from .settings import Settings

GRACE: Final = 60.0
"""Seconds in which a worker must have started, on a machine with much to do."""


@contextmanager
def serving(settings: Settings, count: int) -> Iterator[list[int]]:
    """The ports of so many workers. Raises WorkerDied for one that does not start."""
    with ExitStack() as stack:
        started = [stack.enter_context(worker(settings)) for _ in range(count)]
        for port, process in started:
            wait_for(port, process)
        yield [port for port, _ in started]
        # Told together, they end together.
        for _, process in started:
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def worker(settings: Settings) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        port: int = listening.getsockname()[1]
        # A session of its own: Ctrl-C is for the main process, whose end closes the worker's input.
        process = subprocess.Popen(
            [sys.executable, "-m", "examples.minisocial", "--fd", str(listening.fileno())],
            cwd=PROJECT,
            env={**os.environ, **settings.environment()},
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
    try:
        yield port, process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until it answers: its socket listens already, so one request waits as long as it takes."""
    deadline = time.monotonic() + GRACE
    while process.poll() is None and time.monotonic() < deadline:
        asking = HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError):
            asking.request("GET", "/openapi.json")
            asking.getresponse().read()
            asking.close()
            return
        asking.close()
    raise WorkerDied(f"a worker did not start (exit code {process.poll()})")
