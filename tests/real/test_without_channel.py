"""L1 of an account that may not subscribe, with and without l1_without_channel."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from cacheaside import Cache
from cacheaside.testing import ClusterServer, Server
from cacheaside.testing.servers import wait_until

QUIET = ["--user", "alice", "on", ">pw", "~*", "+@all", "resetchannels"]


def row(cache: Cache, versions: list[int]) -> Callable[[], int]:
    @cache.cached(ns="rows", key="row", ttl=60, tags=["row"])
    def row() -> int:
        return versions[-1]

    return row


def test_without_a_channel_l1_is_off(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with Server(server.kind, args=QUIET) as quiet:
        url = f"redis://alice:pw@127.0.0.1:{quiet.port}/0"
        with caplog.at_level(logging.WARNING), Cache(url, l1_window=0.2) as cache, Cache(url) as other:
            versions = [0]
            mine = row(cache, versions)
            mine()
            assert wait_until(lambda: any("L1 stays off" in r.message for r in caplog.records), 3)
            for version in range(1, 20):
                assert mine() == version - 1
                versions.append(version)
                assert other.invalidate(tags=["row"])
                assert mine() == version
            assert cache.stats()["namespaces"]["rows"]["hits_l1"] == 0


def test_without_a_channel_l1_lags_as_long_as_it_may(server: Server) -> None:
    """Answers come from L1, never older than asked for, and one's own invalidations show at once."""
    stay = 0.3
    with Server(server.kind, args=QUIET) as quiet:
        url = f"redis://alice:pw@127.0.0.1:{quiet.port}/0"
        with Cache(url, l1_window=0.2, l1_without_channel=stay) as cache, Cache(url) as other:
            versions = [0]
            mine = row(cache, versions)
            mine()
            acknowledged = [time.monotonic()]
            for version in range(1, 6):
                versions.append(version)
                assert other.invalidate(tags=["row"])
                acknowledged.append(time.monotonic())
                until = acknowledged[-1] + 1.5 * stay
                while (began := time.monotonic()) < until:
                    answer = mine()
                    newest = max(v for v, at in enumerate(acknowledged) if at <= began - stay or v == 0)
                    assert answer >= newest
                assert mine() == version
            assert cache.stats()["namespaces"]["rows"]["hits_l1"] > 100
            assert cache.stats()["l1"]["coherent"] is False
            versions.append(6)
            assert cache.invalidate(tags=["row"])
            assert mine() == 6
            began = time.monotonic()
            assert cache.invalidate(tags=["row"], barrier=True)
            assert time.monotonic() - began >= stay


def test_l1_hears_again_when_the_channel_is_back(server: Server) -> None:
    with Server(server.kind, args=QUIET) as quiet:
        url = f"redis://alice:pw@127.0.0.1:{quiet.port}/0"
        with Cache(url, l1_window=0.4, l1_without_channel=30) as cache, Cache(url) as other:
            versions = [0]
            mine = row(cache, versions)
            mine()
            assert wait_until(lambda: mine() == 0 and cache.stats()["namespaces"]["rows"]["hits_l1"] > 0)
            versions.append(1)
            assert other.invalidate(tags=["row"])
            assert mine() == 0, "within thirty seconds"
            with quiet.client() as admin:
                admin.execute_command("ACL", "SETUSER", "alice", "allchannels")
            assert wait_until(lambda: bool(cache.stats()["l1"]["coherent"]))
            assert mine() == 1
            versions.append(2)
            with Cache(url) as allowed:
                assert allowed.invalidate(tags=["row"])
            assert wait_until(lambda: mine() == 2, 0.5)


def test_a_cluster_account_without_channels(cluster: ClusterServer) -> None:
    """Invalidations are in force all the same, and L1 lags as long as it may."""
    for node in cluster.nodes:
        with node.client() as admin:
            admin.execute_command("ACL", "SETUSER", "alice", "on", ">pw", "~*", "+@all", "resetchannels")
    url = cluster.url.replace("://", "://alice:pw@")
    with Cache(url, l1_window=0.2, l1_without_channel=0.3) as cache, Cache(url) as other:
        versions = [0]
        mine, theirs = row(cache, versions), row(other, versions)
        mine()
        for version in range(1, 4):
            mine(), theirs()
            versions.append(version)
            assert other.invalidate(tags=["row"]) if version % 2 else other.invalidate(keys=["rows:row"])
            assert theirs() == version
            assert wait_until(lambda version=version: mine() == version, 0.5)
        assert cache.stats()["namespaces"]["rows"]["hits_l1"] > 0
