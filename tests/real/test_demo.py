"""The demonstration from start to end: processes of its own, a server of its own, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from cacheaside.testing.servers import wait_until
from examples.demo.graph import PROJECT, Graph
from examples.demo.repository import build
from examples.demo.workload import Acknowledged, Crew, Phase, Plan, WorkerDied

# Six friends of each other who write all the time: a race every few reads.
ARGUMENTS = ["--writes", "15", "--load-delay", "10", "--seconds", "1.5"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    edges = tmp_path / "friends.txt"
    edges.write_text("".join(f"{a} {b}\n" for a in range(6) for b in range(a)))
    return [sys.executable, "-m", "examples.demo", "--direct", "--graph", str(edges), *ARGUMENTS]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One whose temporary directory can be looked at afterwards."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return {**os.environ, "TMPDIR": str(temporary)}


def finished(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def stale(output: str) -> int:
    """The stale reads of the phase with a cache, from the last table."""
    row = re.search(r"^ *stale reads +([\d,]+) +([\d,]+)", output, re.MULTILINE)
    assert row is not None, output
    assert row[1] == "0", "without a cache nothing can be stale"
    return int(row[2].replace(",", ""))


def left(environment: dict[str, str]) -> list[str]:
    return os.listdir(environment["TMPDIR"])


def test_it_starts_a_server_sees_no_stale_read_and_leaves_nothing(
    command: list[str], environment: dict[str, str]
) -> None:
    done = finished(command, environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert stale(done.stdout) == 0
    assert "Stale reads: 0 of" in done.stdout
    assert left(environment) == []


def test_a_hand_made_cache_is_caught_with_stale_reads(
    command: list[str], environment: dict[str, str], one_redis_url: str
) -> None:
    done = finished([*command, "--mode", "naive", "--redis", one_redis_url], environment)
    assert done.returncode == 1, done.stderr
    assert stale(done.stdout) > 0
    assert "STALE" in done.stdout
    with redis.Redis.from_url(one_redis_url) as client:
        assert client.dbsize() == 0


def test_a_redis_that_does_not_answer_is_named(command: list[str], environment: dict[str, str]) -> None:
    done = finished([*command, "--redis", "redis://127.0.0.1:1/0"], environment)
    assert done.returncode == 2
    assert "the Redis of --redis does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def gone(group: int) -> bool:
    """Whether no process of the group is left; the one that watches over shared memory goes last."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_and_leaves_nothing(
    command: list[str], environment: dict[str, str], number: signal.Signals
) -> None:
    """In a process group of its own, as in a terminal, where Ctrl-C goes to all of them."""
    with subprocess.Popen(
        [*command, "--seconds", "30"],
        cwd=PROJECT,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("2 phases of 30 s")
            os.killpg(process.pid, number)
            out, err = process.communicate(timeout=20)
            assert (process.returncode, err) == (130, "")
            assert "Interrupted." in out
            assert left(environment) == []
            assert wait_until(lambda: gone(process.pid)), "it has left a process behind"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_worker_that_dies_is_noticed(tmp_path: Path, one_redis_url: str) -> None:
    graph = Graph("pair", 2, [(0, 1)])
    build(tmp_path / "network.db", graph, posts=10)
    plan = Plan(tmp_path / "network.db", one_redis_url, "demo", (0, 1), 10, 0.001, 0.1)
    with Crew(plan, 2, Acknowledged(2, 10_000)) as crew:
        crew.ready()
        with pytest.raises(WorkerDied, match=r"worker 1 has died \(exit code -9\)"):
            crew.run(Phase("cacheaside", 30), lambda tally: crew.processes[1].kill())
    assert not any(process.is_alive() for process in crew.processes)
