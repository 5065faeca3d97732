"""What INFO says, and clients that need no server."""

from __future__ import annotations

import fakeredis
import pytest
import redis
import redis.asyncio

from cacheaside.connection import aconnect, connect
from cacheaside.errors import ConfigError
from cacheaside.facts import ServerFacts, afacts_of, facts_of, parse_info
from cacheaside.urls import Endpoint, parse_url

INFO = {
    "redis_version": "7.0.15",
    "run_id": "a" * 40,
    "master_replid": "b" * 40,
    "master_replid2": "c" * 40,
    "role": "master",
}


def test_info_becomes_facts():
    assert parse_info(INFO) == ServerFacts((7, 0, 15), False, "a" * 40, "b" * 40, "c" * 40, "master")


@pytest.mark.parametrize("zeros", ["0" * 40, 0])
def test_a_server_without_predecessor_has_no_second_replid(zeros):
    assert parse_info(INFO | {"master_replid2": zeros}).replid2 == ""


@pytest.mark.parametrize(
    ("versions", "has_ifeq"),
    [
        ({"redis_version": "8.3.9"}, False),
        ({"redis_version": "8.4.0"}, True),
        ({"redis_version": "255.255.255"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, True),
    ],
)
def test_set_ifeq_is_there_from_redis_8_4_and_valkey_8_1(versions, has_ifeq):
    assert parse_info(INFO | versions).has_ifeq is has_ifeq


def test_a_server_older_than_redis_7_is_refused():
    with pytest.raises(ConfigError, match=r"^needs Redis >= 7.0 or Valkey; this is 6.2.0$"):
        parse_info(INFO | {"redis_version": "6.2.0"})


def test_a_restart_and_a_promotion_change_the_incarnation():
    seen = {
        parse_info(info).incarnation
        for info in (INFO, INFO | {"run_id": "d"}, INFO | {"master_replid": "d"}, {})
    }
    assert len(seen) == 4
    assert {len(incarnation) for incarnation in seen} == {8}
    assert parse_info(dict(INFO)).incarnation in seen


def test_without_info_the_incarnation_is_zero_and_the_version_the_oldest():
    facts = parse_info({})
    assert facts == ServerFacts()
    assert (facts.version, facts.incarnation, facts.has_ifeq) == ((7, 0), bytes(8), False)


def test_a_ready_client_without_info_has_default_facts():
    assert facts_of(fakeredis.FakeRedis()) == ServerFacts()


async def test_a_ready_asyncio_client_without_info_has_default_facts():
    assert await afacts_of(fakeredis.FakeAsyncRedis()) == ServerFacts()


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_a_tls_file_that_is_not_there_is_no_outage_but_a_wrong_option(option):
    endpoint = parse_url(f"rediss://h?{option}=/no/such/file")
    for make in (connect, aconnect):
        with pytest.raises(ConfigError, match=f"{option} is '/no/such/file', and no such file exists"):
            make(endpoint, lambda facts: None)


@pytest.mark.parametrize("url", ["redis://u:pw@h/1", "unix://u:pw@/r", "redis+sentinel://u:pw@h/m"])
def test_the_repr_of_a_client_holds_no_password(url):
    for make in (connect, aconnect):
        assert "pw" not in repr(make(parse_url(url), lambda facts: None))


def test_a_refused_connection_fails_at_once_without_being_learnt():
    learnt = []
    with (
        connect(Endpoint("redis", (("127.0.0.1", 1),)), learnt.append) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()
    assert learnt == []


def test_clients_fail_fast_and_say_who_they_are():
    for make in (connect, aconnect):
        options = make(parse_url("redis://h"), lambda facts: None).connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.5, 0.5)
        assert options["retry"].get_retries() == 0
        assert options["driver_info"].formatted_name.startswith("redis-py(cacheaside_v")
