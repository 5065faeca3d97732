"""What every new connection learns about its server, over every kind of URL, in threads and in asyncio."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest
import redis

from cacheaside import facts as server_facts
from cacheaside.connection import aconnect, connect
from cacheaside.errors import ConfigError
from cacheaside.facts import ServerFacts, afacts_of, facts_of
from cacheaside.testing import ClusterServer, ReplicaSet, Server
from cacheaside.testing.clusters import ask
from cacheaside.testing.servers import free_port
from cacheaside.urls import parse_url

ACL = [
    *("--user", "alice", "on", ">p@ss", "~*", "&*", "+@all", "-info"),
    *("--user", "bob", "on", ">pw", "~*", "&*", "+@all"),
]


def truth(server: Server) -> ServerFacts:
    with server.client() as client:
        return facts_of(client)


async def use(url: str, commands: int = 1) -> tuple[list[ServerFacts], list[ServerFacts]]:
    """Send pings over one client for threads and one for asyncio; what each of them learnt."""
    learnt: tuple[list[ServerFacts], list[ServerFacts]] = ([], [])
    endpoint = parse_url(url)
    client = connect(endpoint, learnt[0].append)
    aclient = aconnect(endpoint, learnt[1].append)
    try:
        for number in range(commands):
            assert client.set(f"k:{number}", b"v") is True
            assert client.get(f"k:{number}") == b"v"
            assert await aclient.get(f"k:{number}") == b"v"
    finally:
        client.close()
        await aclient.aclose()
    return learnt


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_connection_learns_its_server_once(redis_url, server, protocol):
    facts = truth(server)
    assert facts.role == "master"
    assert facts.valkey == (server.kind == "valkey")
    assert any(facts.incarnation)
    assert await use(f"{redis_url}?protocol={protocol}", commands=3) == ([facts], [facts])


async def test_has_ifeq_says_what_the_server_can_do(redis_url, server):
    with server.client() as client:
        client.set("k", "old")
        try:
            client.execute_command("SET", "k", "new", "IFEQ", "old")
        except redis.ResponseError:
            assert not facts_of(client).has_ifeq
        else:
            assert facts_of(client).has_ifeq


def test_the_facts_come_before_the_first_command(redis_url, server):
    with server.client() as other, other.monitor() as monitor:
        commands = monitor.listen()
        with connect(parse_url(redis_url + "?client_name=me"), lambda facts: None) as client:
            client.get("x")
        seen = [next(commands)["command"]]
        while not seen[-1].startswith("GET"):
            seen.append(next(commands)["command"])
    assert [command for command in seen if not command.startswith(("HELLO", "CLIENT"))] == [
        "INFO server",
        "INFO replication",
        "GET x",
    ]


async def test_the_password_of_the_default_user(servers, server):
    with Server(server.kind, password="p@ss/:") as locked:
        facts = truth(locked)
        for protocol in (2, 3):
            assert await use(f"{locked.url}?protocol={protocol}") == ([facts], [facts])


async def test_a_user_that_may_not_ask_for_info_has_default_facts(servers, server):
    with Server(server.kind, args=ACL) as guarded:
        url = f"redis://alice:p%40ss@127.0.0.1:{guarded.port}/1"
        for protocol in (2, 3):
            assert await use(f"{url}?protocol={protocol}") == ([ServerFacts()], [ServerFacts()])
        with redis.Redis.from_url(url) as client:
            assert facts_of(client) == ServerFacts()
        async with redis.asyncio.Redis.from_url(url) as aclient:
            assert await afacts_of(aclient) == ServerFacts()


async def test_a_user_that_may_ask_for_info_has_the_facts(servers, server):
    with Server(server.kind, args=ACL) as guarded:
        facts = truth(guarded)
        assert await use(f"redis://bob:pw@127.0.0.1:{guarded.port}/2") == ([facts], [facts])


async def test_a_wrong_password_is_an_authentication_error(servers, one_server):
    with Server(one_server.kind, password="right") as locked:
        endpoint = parse_url(f"redis://:wrong@127.0.0.1:{locked.port}")
        with connect(endpoint, lambda facts: None) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        async with aconnect(endpoint, lambda facts: None) as aclient:
            with pytest.raises(redis.AuthenticationError):
                await aclient.ping()


async def test_a_unix_socket(servers, server, tmp_path):
    path = tmp_path / "re dis.sock"
    with Server(server.kind, args=["--unixsocket", str(path)]) as local:
        facts = truth(local)
        assert await use(f"unix://{str(path).replace(' ', '%20')}?db=1") == ([facts], [facts])


async def test_tls_with_an_own_authority(servers, server, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate of this test")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    args = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    try:
        secure = Server(server.kind, args=[*args, "--tls-auth-clients", "no"]).start()
    except RuntimeError:
        pytest.skip(f"this {server.kind}-server was built without TLS")
    with secure:
        facts = truth(secure)
        url = f"rediss://127.0.0.1:{port}"
        assert await use(f"{url}?ssl_ca_certs={certificate}") == ([facts], [facts])
        assert await use(f"{url}?ssl_cert_reqs=none") == ([facts], [facts])
        with connect(parse_url(url), lambda facts: None) as client, pytest.raises(redis.ConnectionError):
            client.ping()


async def test_every_new_connection_is_learnt_again(servers, one_server):
    with Server(one_server.kind) as server:
        learnt: list[ServerFacts] = []
        alearnt: list[ServerFacts] = []
        with connect(parse_url(server.url), learnt.append) as client:
            async with aconnect(parse_url(server.url), alearnt.append) as aclient:
                client.ping()
                await aclient.ping()
                server.restart()
                for _ in range(2):
                    try:
                        client.ping()
                        await aclient.ping()
                    except redis.ConnectionError:
                        continue
                await aclient.ping()
    assert learnt[0] == alearnt[0]
    assert learnt[-1] == alearnt[-1]
    assert learnt[0].incarnation != learnt[-1].incarnation


async def test_subscribers_learn_too(redis_url):
    learnt: list[ServerFacts] = []
    with connect(parse_url(redis_url), learnt.append) as client, client.pubsub() as channel:
        channel.subscribe("news")
        assert channel.get_message(timeout=5)["type"] == "subscribe"
    async with aconnect(parse_url(redis_url), learnt.append) as aclient, aclient.pubsub() as achannel:
        await achannel.subscribe("news")
        assert (await achannel.get_message(timeout=5))["type"] == "subscribe"
    assert len(learnt) == 2


async def test_an_old_server_is_refused_again_and_again(one_redis_url, monkeypatch):
    real = server_facts.parse_info
    old = {"redis_version": "6.2.0", "run_id": "x"}
    monkeypatch.setattr(server_facts, "parse_info", lambda info: real(old))
    with connect(parse_url(one_redis_url), lambda facts: None) as client:
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"this is 6\.2\.0"):
                client.ping()
    async with aconnect(parse_url(one_redis_url), lambda facts: None) as aclient:
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"this is 6\.2\.0"):
                await aclient.ping()


async def test_what_on_connect_raises_reaches_the_caller(one_redis_url):
    def refuse(facts: ServerFacts) -> None:
        raise ConfigError("not this one")

    with (
        connect(parse_url(one_redis_url), refuse) as client,
        pytest.raises(ConfigError, match="not this one"),
    ):
        client.ping()
    async with aconnect(parse_url(one_redis_url), refuse) as aclient:
        with pytest.raises(ConfigError, match="not this one"):
            await aclient.ping()


async def test_a_silent_server_times_out_while_it_is_learnt(servers, one_server):
    with Server(one_server.kind) as server:
        endpoint = parse_url(f"{server.url}?timeout=0.1")
        server.pause()
        with connect(endpoint, lambda facts: None) as client, pytest.raises(redis.TimeoutError):
            client.ping()
        async with aconnect(endpoint, lambda facts: None) as aclient:
            with pytest.raises(redis.TimeoutError):
                await aclient.ping()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_sentinel_leads_to_the_primary(servers, one_server, protocol):
    with ReplicaSet(one_server.kind) as group:
        facts = truth(group.primary)
        assert await use(f"{group.url}?protocol={protocol}") == ([facts], [facts])


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_cluster_learns_each_node(servers, one_server, protocol):
    with ClusterServer(one_server.kind) as cluster:
        learnt, alearnt = await use(f"{cluster.url}?protocol={protocol}", commands=20)
        epochs = [str(ask(node, "CLUSTER INFO")["cluster_my_epoch"]) for node in cluster.nodes]
        expected = {
            replace(truth(node), epoch=epoch) for node, epoch in zip(cluster.nodes, epochs, strict=True)
        }
    assert sorted(epochs) == ["1", "2", "3"]
    assert set(learnt) == set(alearnt) == expected


async def test_a_cluster_that_is_refused_says_why(servers, one_server):
    def refuse(facts: ServerFacts) -> None:
        raise ConfigError("not this one")

    with ClusterServer(one_server.kind) as cluster:
        with pytest.raises(ConfigError, match="not this one"):
            connect(parse_url(cluster.url), refuse)
        aclient = aconnect(parse_url(cluster.url), refuse)
        with pytest.raises(ConfigError, match="not this one"):
            await aclient.get("k")
        await aclient.aclose()
