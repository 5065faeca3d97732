"""The check on real servers: every fault shortly, and wrong protocols, which it must find out."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cacheaside.check.analysis import Findings
from cacheaside.check.arena import Arena
from cacheaside.check.faults import FAULTS, Fault
from cacheaside.check.report import verdict
from cacheaside.check.rows import all_rows
from cacheaside.check.run import Result, run
from cacheaside.check.settings import Settings
from cacheaside.testing import Server, available
from cacheaside.testing.servers import wait_until
from tests.real.sabotage import believe_l1_for_ever, never_close, trust_every_server

SMALL: dict[str, Any] = {"processes": 2, "threads": 2, "tasks": 2, "keys": 48, "writes": 150}
CROWDED = {"keys": 12, "writes": 400}
"""Loads and writes of a row meet often."""
KINDS = list(available())
LONG = {
    "proxy": 2.0,
    "restart-empty": 1.5,
    "restart-snapshot": 1.5,
    "sentinel-failover": 5.0,
    "fail-back": 3.5,
    "cluster-failover": 3.0,
}
"""Seconds, for faults that take their time."""
ROWS = [row for row in all_rows(Settings(**SMALL)) if row.faults and row.server == KINDS[0]] if KINDS else []
"""Those of the table, on one kind of server."""
OWN = [row for row in ROWS if row.needs - {"proxy"}]
GUEST = [row for row in ROWS if not row.needs - {"proxy"}]


def name_of(row: Settings) -> str:
    return "-".join(filter(None, (*row.faults, row.failover)))


def short(row: Settings, **place: str) -> Settings:
    return replace(row, **{"server": None, **place}, seconds=LONG.get(row.faults[0], 1.0))


def kind_for(row: Settings) -> Any:
    """Servers take turns: each row needs one, and together they need both."""
    if "cluster" in row.needs:  # the quicker one to start
        return KINDS[-1]
    return KINDS[ROWS.index(row) % len(KINDS)]


def shown(settings: Settings, enough: Callable[[Result], bool]) -> Result:
    """The result of a check; of a longer one while it does not show enough, on a busy machine."""
    for stretch in (1, 3, 9):
        result = run(replace(settings, seconds=settings.seconds * stretch))
        if enough(result) or result.code == 1:
            break
    story = "\n".join(f"{step.at:.4f} {step.who} {step.what}" for step in result.findings.trace)
    assert enough(result), f"{verdict(result)}\n{story}"
    return result


def fine(settings: Settings) -> Findings:
    """What a check has found that could have gone wrong: answers from each tier, and acknowledgements."""
    result = shown(settings, lambda r: r.code == 0 and r.findings.tiers.keys() >= {"l1", "l2", "load"})
    found = result.findings
    assert (found.stale, found.beyond, found.errors, found.leaks) == (0, 0, {}, [])
    return found


def test_without_a_fault_nothing_is_stale_in_either_tier(servers: Callable[[str], Server]) -> None:
    for kind in KINDS:
        server = servers(kind)
        found = fine(Settings(url=server.url, seconds=1.0, **SMALL))
        assert found.ended == SMALL["processes"]
        assert found.counts["hits_l1"] > 0
        assert found.counts["hits_l2"] > 0
        with server.client() as client:
            assert list(client.scan_iter("*cacheaside-check*")) == []


@pytest.mark.parametrize("row", GUEST, ids=name_of)
def test_a_fault_beside_a_given_server_makes_nothing_stale(
    row: Settings, servers: Callable[[str], Server]
) -> None:
    found = fine(short(row, url=servers(kind_for(row)).url))
    assert found.strikes[row.faults[0]] > 0


@pytest.mark.parametrize("row", OWN, ids=name_of)
def test_a_fault_of_a_server_makes_nothing_stale(row: Settings) -> None:
    found = fine(short(row, server=kind_for(row)))
    assert found.strikes[row.faults[0]] > 0


def test_several_faults_at_once_make_nothing_stale(one_server: Server) -> None:
    faults = ("eviction", "restart-snapshot", "proxy", "sigstop-readers")
    found = fine(Settings(server=one_server.kind, faults=faults, seconds=2.0, **SMALL))
    assert found.strikes.keys() == set(faults)


def test_without_l1_all_answers_come_from_the_server_or_from_loads(one_redis_url: str) -> None:
    settings = Settings(url=one_redis_url, l1_window=0, seconds=0.7, **SMALL)
    found = shown(settings, lambda r: r.code == 0).findings
    assert found.tiers.keys() == {"l2", "load"}


@pytest.mark.parametrize("mode", ["naive", "lock", "setindex", "counter"])
def test_a_wrong_protocol_is_found_out(mode: str, servers: Callable[[str], Server]) -> None:
    """A checker that cannot fail is worthless."""
    url = servers(KINDS[len(mode) % len(KINDS)] if KINDS else "none").url
    settings = Settings(url=url, mode=mode, seconds=1.5, **{**SMALL, **CROWDED})
    found = shown(settings, lambda r: r.code == 1).findings
    assert found.stale > 0
    assert found.oldest > 0
    assert found.errors == {}
    assert found.leaks == []
    assert found.trace[-1].what.endswith("STALE")
    assert "has been told that it is invalidated" in " ".join(step.what for step in found.trace)


def test_a_database_of_sqlalchemy_takes_the_place_of_the_file(one_redis_url: str, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/other.db"
    found = fine(Settings(url=one_redis_url, database=database, seconds=1.0, **SMALL))
    assert found.commits > 0


def test_a_fault_that_never_struck_has_shown_nothing(one_redis_url: str) -> None:
    settings = Settings(url=one_redis_url, faults=("subscriber-killed",), l1_window=0, seconds=0.5, **SMALL)
    result = run(settings)
    assert result.nothing == "these faults never struck: subscriber-killed"
    assert result.code == 2


# ---------------------------------------------------------------------------- a library that is broken


def test_a_cache_that_believes_a_revived_server_is_found_out(one_server: Server) -> None:
    broken = {"l1_policy": trust_every_server}
    settings = Settings(
        server=one_server.kind, faults=("restart-snapshot",), seconds=2.5, cache=broken, **SMALL
    )
    assert shown(settings, lambda r: r.code == 1).findings.stale > 0


def test_a_cache_that_believes_its_l1_without_heartbeats_is_found_out(
    one_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the channel is a black hole, nothing is heard; only the horizon ends L1 then."""

    def act(arena: Arena, rng: random.Random) -> Iterator[float]:
        yield 0.3
        arena.strike("deaf", "the channel is a black hole")
        try:
            arena.proxy.black_hole(role="channel")
            yield 10.0
        finally:
            arena.proxy.heal()

    monkeypatch.setitem(FAULTS, "deaf", Fault("deaf", "", "proxy", act))  # type: ignore[arg-type]
    # Two rows, both kept in L1, and seldom written: one's own writes show at once, channel or not.
    few: dict[str, Any] = {**SMALL, "keys": 2, "writes": 30, "l1_window": 0.1, "faults": ("deaf",)}
    assert run(Settings(url=one_redis_url, seconds=1.5, **few)).findings.beyond == 0
    broken = {"l1_policy": believe_l1_for_ever}
    settings = Settings(url=one_redis_url, seconds=2.0, cache=broken, **few)
    found = shown(settings, lambda r: r.code == 1).findings
    assert found.beyond > 0
    assert found.oldest > 0.1
    assert found.trace[-1].what.startswith("is answered from l1")


def test_what_a_cache_leaves_open_is_found_out(one_redis_url: str) -> None:
    settings = Settings(url=one_redis_url, seconds=0.5, cache={"l1_policy": never_close}, **SMALL)
    result = run(settings)
    left = " ".join(result.findings.leaks)
    assert "p0: thread cacheaside-channel" in left
    assert "sockets" in left
    assert result.code == 1


# ---------------------------------------------------------------------------- the command


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from cacheaside.cli import main; main()", "check", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=60,
        check=False,
    )


def test_the_command_reports_in_words_and_ends_with_0(one_redis_url: str) -> None:
    done = command(one_redis_url, "--seconds", "1.5", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert "fine: nothing that was acknowledged was served in an older version" in done.stdout
    assert "L1 beyond its window" in done.stdout


def test_the_command_ends_with_1_and_prints_the_shortest_trace(one_redis_url: str) -> None:
    crowded = ("--processes", "2", "--keys", "12", "--writes", "400")
    done = command(one_redis_url, "--seconds", "1.5", *crowded, "--mode", "naive")
    assert done.returncode == 1, done.stderr
    assert "The shortest way to a wrong answer" in done.stdout
    assert "FAILED" in done.stdout


def test_the_command_prints_json_without_a_password() -> None:
    with Server(password="s3cret-word") as server:
        done = command(server.url, "--seconds", "1.5", "--processes", "2", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["code"] == 0
        assert told["findings"]["stale"] == 0
        assert told["findings"]["acknowledged"] > 0
        assert "s3cret-word" not in done.stdout + done.stderr


def test_ctrl_c_ends_the_command_and_all_that_it_started() -> None:
    arguments = [sys.executable, "-c", "from cacheaside.cli import main; main()", "check", "--seconds", "50"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as asked:
        assert wait_until(lambda: len(session(asked.pid)) >= 5, 30)  # itself and its workers
        asked.send_signal(signal.SIGINT)
        assert asked.wait(30) == 130
        assert wait_until(lambda: session(asked.pid) == [], 10), session(asked.pid)


def session(leader: int) -> list[int]:
    """The processes that a command has started, itself included, as far as they have not ended."""
    found: list[int] = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = file.read_text().rpartition(")")[2].split()[:4]
            if int(number) == leader and state != "Z":
                found.append(int(file.parent.name))
    return found
