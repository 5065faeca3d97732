"""URLs, what INFO says, and clients that need no server."""

from __future__ import annotations

import dataclasses

import fakeredis
import pytest
import redis
import redis.asyncio

from cacheaside.connection import (
    Endpoint,
    ServerFacts,
    aconnect,
    afacts_of,
    connect,
    facts_of,
    parse_info,
    parse_url,
)
from cacheaside.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", {"scheme": "redis", "hosts": (("localhost", 6379),)}),
        ("REDIS://localhost:7000/3", {"scheme": "redis", "hosts": (("localhost", 7000),), "db": 3}),
        ("redis://[::1]:7000", {"scheme": "redis", "hosts": (("::1", 7000),)}),
        ("rediss://h/", {"scheme": "rediss", "hosts": (("h", 6379),)}),
        (
            "redis://us%40er:p%40%2Fs%3As@h",
            {"scheme": "redis", "hosts": (("h", 6379),), "username": "us@er", "password": "p@/s:s"},
        ),
        ("redis://:pw@h", {"scheme": "redis", "hosts": (("h", 6379),), "password": "pw"}),
        ("redis://:p+w%20@h", {"scheme": "redis", "hosts": (("h", 6379),), "password": "p+w "}),
        ("unix:///run/re%20dis.sock?db=2", {"scheme": "unix", "path": "/run/re dis.sock", "db": 2}),
        (
            "unix://u:pw@/run/r.sock",
            {"scheme": "unix", "path": "/run/r.sock", "username": "u", "password": "pw"},
        ),
        ("redis+cluster://a,b:7001", {"scheme": "redis+cluster", "hosts": (("a", 6379), ("b", 7001))}),
        ("redis+cluster://a/0", {"scheme": "redis+cluster", "hosts": (("a", 6379),)}),
        (
            "redis+sentinel://u:pw@a,[::2]:7/main/4?sentinel_username=s&sentinel_password=x%26y",
            {
                "scheme": "redis+sentinel",
                "hosts": (("a", 26379), ("::2", 7)),
                "service": "main",
                "db": 4,
                "username": "u",
                "password": "pw",
                "sentinel_username": "s",
                "sentinel_password": "x&y",
            },
        ),
        (
            "redis+sentinel://a/main",
            {"scheme": "redis+sentinel", "hosts": (("a", 26379),), "service": "main"},
        ),
        (
            "redis://h?timeout=0.25&connect_timeout=2&protocol=2&max_connections=7&client_name=me",
            {
                "scheme": "redis",
                "hosts": (("h", 6379),),
                "timeout": 0.25,
                "connect_timeout": 2.0,
                "protocol": 2,
                "max_connections": 7,
                "client_name": "me",
            },
        ),
        (
            "rediss+sentinel://h/main?ssl_ca_certs=/ca&ssl_cert_reqs=optional&ssl_certfile=/c&ssl_keyfile=/k",
            {
                "scheme": "rediss+sentinel",
                "hosts": (("h", 26379),),
                "service": "main",
                "ssl_ca_certs": "/ca",
                "ssl_cert_reqs": "optional",
                "ssl_certfile": "/c",
                "ssl_keyfile": "/k",
            },
        ),
    ],
)
def test_a_url_is_read_whole(url, expected):
    assert parse_url(url) == Endpoint(**expected)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "begins with one of redis://, rediss://, unix://"),
        ("localhost:6379", "begins with one of"),
        ("http://localhost", "begins with one of"),
        ("redis://", "needs host"),
        ("redis://:6379", "needs host"),
        ("redis://h:port", "the port of 'h' is not a number"),
        ("redis://h:0", "the port of 'h' is 0; a port is between 1 and 65535"),
        ("redis://h:65536", "between 1 and 65535"),
        ("redis://::1:6379", "needs host"),
        ("redis://h/one", "db is a number from 0, such as /0 .* not 'one'"),
        ("redis://h/-1", "not '-1'"),
        ("redis://h/0/1", "not '0/1'"),
        ("redis://a,b", r"takes one host; for several write redis\+cluster or redis\+sentinel"),
        ("redis://h/0#x", "percent-encode"),
        ("redis+cluster://h/3", r"redis\+cluster has only database 0, not 3"),
        ("redis+sentinel://h", "needs a service name"),
        ("unix://run/redis.sock", "absolute path"),
        ("unix://", "absolute path"),
        (
            "redis://h?retries=3",
            "unknown option 'retries' in a redis:// URL; valid: timeout, connect_timeout, protocol",
        ),
        ("redis://h?ssl_ca_certs=/ca", "unknown option 'ssl_ca_certs'.*ssl_. options need rediss"),
        ("redis://h?sentinel_password=x", "unknown option 'sentinel_password'"),
        ("redis://h?timeout=1&timeout=2", "'timeout' is given twice"),
        ("redis://h?client_name", "'client_name' has no value"),
        ("redis://h?timeout=soon", "timeout is a number of seconds above 0, not 'soon'"),
        ("redis://h?connect_timeout=-1", "connect_timeout is a number of seconds above 0"),
        ("redis://h?timeout=inf", "seconds above 0"),
        ("redis://h?timeout=nan", "seconds above 0"),
        ("redis://h?protocol=4", "protocol is the RESP version, 2 or 3, not '4'"),
        ("redis://h?max_connections=0", "max_connections is a whole number above 0"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs is none, optional or required, not 'maybe'"),
        ("rediss://h?ssl_keyfile=/k", "ssl_keyfile needs ssl_certfile"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_reason(url, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:sec%72et-secret@h:port",
        "redis://u:secret@h/db",
        "redis://u:secret@h?nope=1",
        "redis://u:sec/ret@h",
        "redis://u:sec?ret@h",
        "redis://u:sec#ret@h",
        "redis://u:sec@ret@h",
        "redis://u:secret",
        "redis://:secret",
        "http://u:secret@h",
        "u:secret@h",
        "redis+sentinel://h/main?sentinel_password=secret&timeout=x",
        "redis+sentinel://h/main?sentinel_password=sec@ret",
        "redis+cluster://:secret@h/1",
        "unix://:secret@run/x",
    ],
)
def test_no_error_shows_a_piece_of_a_password(url):
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
    assert "ret@" not in str(caught.value)
    assert "sec" not in str(caught.value).replace("seconds", "")


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("redis://alice:pw@h/1", "redis://alice:***@h:6379/1"),
        ("redis://:pw@[::1]", "redis://***@[::1]:6379/0"),
        ("redis://pw@h", "redis://***@h:6379/0"),
        ("unix://:pw@/run/r.sock?db=2", "unix://***@/run/r.sock?db=2"),
        ("unix:///run/r.sock", "unix:///run/r.sock"),
        ("rediss+cluster://:pw@a,b:1", "rediss+cluster://***@a:6379,b:1/0"),
        (
            "redis+sentinel://a:pw@s/ma%2Fin?sentinel_username=x&sentinel_password=pw",
            "redis+sentinel://a:***@s:26379/ma%2Fin/0",
        ),
    ],
)
def test_the_safe_url_and_the_repr_hold_no_secret(url, safe):
    endpoint = parse_url(url)
    assert endpoint.safe == safe
    assert repr(endpoint) == str(endpoint) == f"Endpoint({safe!r})"


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
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (1.0, 1.0)
        assert options["retry"].get_retries() == 0
        assert options["driver_info"].formatted_name.startswith("redis-py(cacheaside_v")


def test_an_endpoint_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_url("redis://h").db = 1
