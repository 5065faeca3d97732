"""What ``doctor`` makes of what servers say: each finding that is not fine has a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from cacheaside import Cache
from cacheaside.cli import findings
from cacheaside.cli.findings import EXAMINATIONS, Finding, Patient, remedy
from cacheaside.cli.options import Servers
from cacheaside.cli.survey import Survey
from cacheaside.engine.commands import Confirm
from cacheaside.errors import StoreUnavailable
from cacheaside.rawkeys import RawKeys
from cacheaside.urls import parse_url

HEALTHY: dict[str, Any] = {
    "redis_version": "7.4.1", "role": "master", "maxmemory": 2**30, "used_memory": 2**20,
    "maxmemory_policy": "allkeys-lru", "aof_enabled": 1, "connected_slaves": 1,
    "slave0": {"state": "online", "lag": 0}, "maxclients": 100, "connected_clients": 5,
}  # fmt: skip


class Node:
    """A server's client: what it says of itself, beside INFO."""

    def __init__(self, **replies: Any) -> None:
        self.replies = replies

    def cluster(self, _: str) -> Any:
        return self.replies["cluster"]

    def config_get(self, _: str) -> Any:
        return {"save": self.replies.get("save", "")}

    def time(self) -> Any:
        raise self.replies["time"]


@pytest.fixture
def patient() -> Iterator[Patient]:
    with Cache("redis://localhost:1", l1_window=1) as cache:
        there = Servers(parse_url("redis://localhost:1"), RawKeys("shop"), None, [Node()])
        yield Patient(there, cache, [dict(HEALTHY)], Survey(0.0))


def worst(patient: Patient, about: str) -> Finding:
    """The worst that an examination finds; what is not fine must have a remedy."""
    found = list(EXAMINATIONS[about](patient))
    assert all(one.about == about for one in found)
    assert all(one.remedy for one in found if one.level != "ok")
    return max(found, key=lambda one: ["ok", "note", "warning", "error"].index(one.level))


@pytest.mark.parametrize(
    ("url", "level", "what", "helps"),
    [
        ("redis://localhost", "ok", "redis://localhost", ""),
        ("unix:///run/redis.sock", "ok", "unix", ""),
        ("rediss://me:s3cret@far.example", "ok", "rediss://", ""),
        ("redis://me:s3cret@far.example", "warning", "the password goes over the network", "rediss://"),
        ("redis://far.example", "warning", "may do what he likes", "a user with a password"),
        ("rediss://far.example", "warning", "may do what he likes", "a user with a password"),
    ],
)
def test_the_url(patient: Patient, url: str, level: str, what: str, helps: str) -> None:
    patient.there.endpoint = parse_url(url)
    found = worst(patient, "url")
    assert (found.level, what in found.what, helps in found.remedy) == (level, True, True)
    assert "s3cret" not in found.what + found.remedy


@pytest.mark.parametrize(
    ("about", "said", "level", "what"),
    [
        ("server", {}, "ok", "Redis 7.4.1, compare-and-set by scripts"),
        ("server", {"redis_version": "8.4.0"}, "ok", "compare-and-set by SET IFEQ"),
        ("server", {"valkey_version": "9.1.0"}, "ok", "Valkey 9.1.0, compare-and-set by SET IFEQ"),
        ("server", {"redis_version": "6.2.14"}, "error", "this is 6.2.14"),
        ("server", {"role": "slave"}, "error", "this is a replica"),
        ("server", {"connected_clients": 95}, "warning", "95 of 100 connections"),
        ("memory", {}, "ok", "1.0 MiB of 1.0 GiB, allkeys-lru"),
        ("memory", {"evicted_keys": 1234}, "ok", "1,234 evicted so far"),
        ("memory", {"maxmemory": 0}, "note", "nothing bounds it"),
        ("memory", {"maxmemory_policy": "noeviction"}, "note", "a full server refuses writes"),
        ("memory", {"maxmemory_policy": "noeviction", "maxmemory": 2**20}, "warning", "refuses writes"),
        ("persistence", {}, "ok", "AOF"),
        ("persistence", {"aof_enabled": 0}, "ok", "off: a restart makes the cache cold"),
        ("persistence", {"rdb_last_bgsave_status": "err"}, "error", "the last save failed"),
        ("persistence", {"aof_last_write_status": "err"}, "error", "the last save failed"),
        ("replicas", {}, "ok", "1 in step"),
        ("replicas", {"slave0": {"state": "wait_bgsave"}}, "warning", "1 of 1 are not in step"),
        ("replicas", {"slave0": {"state": "online", "lag": 60}}, "warning", "a promotion would forget"),
        ("replicas", {"connected_slaves": 0}, "note", "none"),
    ],
)
def test_what_a_server_says(
    patient: Patient, about: str, said: dict[str, Any], level: str, what: str
) -> None:
    patient.infos = [HEALTHY | said]
    found = worst(patient, about)
    assert (found.level, what in found.what) == (level, True), found


def test_sessions_are_no_matter_for_what_evicts_nothing_and_saves(patient: Patient) -> None:
    patient.found.toolkit = 7
    assert worst(patient, "memory").level == "warning"
    patient.infos = [HEALTHY | {"maxmemory_policy": "noeviction"}]
    assert worst(patient, "memory").level == "note"
    assert worst(patient, "persistence").level == "ok"
    patient.infos = [HEALTHY | {"aof_enabled": 0}]
    assert "logs all users out" in worst(patient, "persistence").what
    patient.there.nodes = [Node(save="3600 1")]
    assert worst(patient, "persistence").what == "snapshots"


def test_a_server_that_keeps_its_info_to_itself(patient: Patient) -> None:
    patient.infos = [{}]
    assert worst(patient, "server").remedy == "grant +info to the user of the URL"
    for about in ("memory", "persistence", "replicas"):
        assert list(EXAMINATIONS[about](patient)) == []


def test_a_cluster_that_is_not_whole(patient: Patient) -> None:
    patient.there.endpoint = parse_url("redis+cluster://localhost:1")
    patient.there.nodes = [Node(cluster={"cluster_state": "fail", "cluster_slots_ok": "10923"})]
    assert worst(patient, "server").what == "the cluster has 10923 of 16384 slots"


def test_a_clock_that_may_not_be_asked_for(patient: Patient) -> None:
    patient.there.nodes = [Node(time=NoPermissionError("no"))]
    assert worst(patient, "clock").remedy == "grant +time"


@pytest.mark.parametrize(
    ("words", "helps"),
    [
        ("NoPermissionError: this user has no permissions", "ACL SETUSER me ~shop:* "),
        ("OutOfMemoryError: command not allowed", "raise maxmemory"),
        ("ReadOnlyError: you can't write", "name the primary"),
        ("ResponseError: whatever", "see the log"),
    ],
)
def test_what_is_refused_has_the_remedy_of_its_reason(patient: Patient, words: str, helps: str) -> None:
    patient.there.endpoint = parse_url("redis://me:pw@localhost:1")
    assert helps in remedy(words, patient)


# ---------------------------------------------------------------------------- the channel


class Beating:
    """A store on which a heartbeat takes so many seconds, or never comes back."""

    def __init__(self, took: float | None, now: list[float]) -> None:
        self.took = took
        self.now = now

    def perform(self, command: Any) -> bool:
        assert isinstance(command, Confirm)
        if self.took is None:
            raise StoreUnavailable("no")
        self.now[0] += self.took
        return True


@pytest.mark.parametrize(
    ("took", "level", "what", "helps"),
    [
        (0.001, "ok", "a heartbeat comes back after 1 ms", ""),
        (
            0.2,
            "warning",
            "after 200 ms, 200 ms at worst: too long for a small l1_window",
            "ten times as much",
        ),
        (None, "warning", "no heartbeat came back within 3 s", "drops what is published"),
    ],
)
def test_the_latency_of_the_channel(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, took: float | None, level: str, what: str, helps: str
) -> None:
    now = [0.0]
    channel = patient.cache.channel
    assert channel is not None
    monkeypatch.setattr(patient.cache, "listen", lambda: None)
    monkeypatch.setattr(channel.listener, "up", True)
    monkeypatch.setattr(patient.cache, "store", Beating(took, now))
    monkeypatch.setattr(findings.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(findings, "listeners", lambda patient: 3)
    found = worst(patient, "channel")
    assert (found.level, what in found.what, helps in found.remedy) == (level, True, True), found
    monkeypatch.undo()


def test_a_channel_that_cannot_be_had(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = patient.cache.channel
    assert channel is not None
    monkeypatch.setattr(patient.cache, "listen", lambda: None)
    monkeypatch.setattr(findings, "PATIENCE", 0.0)
    channel.trouble = NoPermissionError("no permissions for this channel")
    found = worst(patient, "channel")
    assert "cannot be had, so no process has an L1: no permissions for this channel" in found.what
    assert found.remedy.startswith("grant +@pubsub and &{shop:t.")


# ---------------------------------------------------------------------------- whose keys there are


def test_whose_keys_there_are(patient: Patient) -> None:
    assert worst(patient, "prefix").what == "shop: nothing yet"
    patient.found = Survey(0.0, looked=10, there=1000, nested=["shop:admin"])
    assert "clear() here clears it too" in worst(patient, "prefix").what
    patient.found.foreign = ["shop:celery:1"]
    found = worst(patient, "prefix")
    assert found.level == "error"
    assert "shop:celery:1 among 10 of 1,000 keys" in found.what
