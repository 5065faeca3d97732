"""A URL is read whole or refused with the reason, and nothing shows its password."""

from __future__ import annotations

import dataclasses

import pytest

from cacheaside.errors import ConfigError
from cacheaside.urls import Endpoint, parse_url


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
        ("localhost:6379", 'begins with one of .*, this one with none; .* "embedded://"'),
        ("http://localhost", "begins with one of .*, this one with http://;"),
        ("a:secret://localhost", "this one with none"),
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


def test_an_endpoint_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_url("redis://h").db = 1
