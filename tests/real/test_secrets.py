"""Passwords appear nowhere: neither in logs, reprs, exceptions and their chains, nor in events and spans."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cacheaside import Cache, CacheasideError, ConfigError, telemetry
from cacheaside.testing import Server
from tests.real.replies import Says

ODD = [
    "p@ss:w/o?r#d%20&x=y",
    "Pa$$wörd☃ with spaces",
    "quo\"te\\back'tick`",
    "brackets[{(<>)}]",
    "first-S3\nsecond-S3\r\nthird-S3\tfourth-S3",
    "%2F%3A%40",
    "*****",
    "redis://user:inner@host/0",
    "-ERR LOADING NOSCRIPT",
    "x" * 300,
]


def forms(secret: str) -> set[str]:
    """A password as it is, as in a URL, and as a repr would show it."""
    return {
        secret,
        quote(secret, safe=""),
        quote(secret),
        repr(secret)[1:-1],
        secret.encode("unicode_escape").decode(),
    }


class Witness:
    """Collects all that is said about a cache."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog
        self.words: list[str] = []

    def hear(self, *said: Any) -> None:
        self.words += [text for one in said for text in (str(one), repr(one))]

    def caught(self, error: BaseException) -> None:
        """An error, with all that a traceback prints, and what a debugger would print of each frame."""
        self.hear(*error.args)
        self.words.append("".join(traceback.format_exception(error)))
        link: BaseException | None = error
        while link is not None:
            self.hear(link, *link.args)
            link = link.__cause__ or link.__context__

    def check(self, *secrets: str) -> None:
        text = "\n".join([*self.words, self.caplog.text, *map(repr, self.caplog.records)])
        text += "\n".join(str(record.__dict__) for record in self.caplog.records)
        for secret in secrets:
            for form in forms(secret):
                assert form not in text, text[max(0, text.index(form) - 200) : text.index(form) + 200]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("tests"))
    return lambda: [span.to_json() for span in exporter.get_finished_spans()]


async def everything(cache: Cache, witness: Witness) -> None:
    """Use it in all ways that may go wrong."""

    @cache.cached(ns="rows", key="{n}", tags=["rows"])
    def row(n: int) -> int:
        return n

    @cache.cached(ns="rows", key="a{n}", tags=["rows"])
    async def arow(n: int) -> int:
        return n

    calls: list[Callable[[], Any]] = [
        lambda: row(1),
        lambda: cache.invalidate(tags=["rows"], keys=["rows:1"]),
        lambda: cache.get("rows:1"),
        lambda: cache.set("rows:1", 1),
        lambda: cache.clear("rows"),
        lambda: cache.tag_keys("rows"),
        lambda: cache.explain("rows:1"),
        cache.ping,
    ]
    for call in calls:
        try:
            witness.hear(call())
        except CacheasideError as error:
            witness.caught(error)
    acalls: list[Callable[[], Any]] = [
        lambda: arow(1),
        lambda: cache.ainvalidate(tags=["rows"]),
        lambda: cache.aget("rows:1"),
        cache.aping,
    ]
    for acall in acalls:
        try:
            witness.hear(await acall())
        except CacheasideError as error:
            witness.caught(error)
    witness.hear(cache, cache.endpoint, cache.link, cache.store, cache.health(), cache.stats(), cache.driver)
    for thing in (cache.link, cache.store):
        witness.hear(*vars(thing).values())


@pytest.mark.parametrize("password", [odd for odd in ODD if "\n" not in odd])
async def test_of_a_password_that_is_right_or_wrong_nothing_is_said(
    one_server: Server, password: str, caplog: pytest.LogCaptureFixture, spans: Callable[[], list[str]]
) -> None:
    caplog.set_level(logging.DEBUG)
    witness = Witness(caplog)
    with Server(one_server.kind, password=password) as server:
        for written in (password, password + "!", "other" + password):
            url = f"redis://:{quote(written, safe='')}@127.0.0.1:{server.port}/0"
            async with Cache(
                url, timeout=1, invalidation_timeout=0.05, l1_window=1, on_event=witness.hear
            ) as cache:
                await everything(cache, witness)
                assert cache.health().ok == (written == password)
    witness.words += spans()
    assert spans()
    witness.check(password, password + "!", "other" + password)


@pytest.mark.parametrize("password", ODD[::3])
@pytest.mark.parametrize(
    "handshake",
    [
        {"HELLO": "-ERR unknown command 'HELLO', with args beginning with: {args}"},
        {"AUTH": "-ERR unknown command 'AUTH', with args beginning with: {args}"},
        {"AUTH": "-WRONGPASS invalid username-password pair {args}"},
        {"CLIENT": "-ERR {args}", "AUTH": "+{args}"},
        {"INFO": "-ERR {args}", "AUTH": "-NOAUTH {args}"},
    ],
)
async def test_a_server_that_repeats_what_it_was_told_is_not_quoted(
    password: str, handshake: dict[str, str], caplog: pytest.LogCaptureFixture, spans: Callable[[], list[str]]
) -> None:
    """As Redis does with commands that it does not know, or that were renamed."""
    caplog.set_level(logging.DEBUG)
    witness = Witness(caplog)
    with Says("-ERR you said: secret", **handshake) as server:
        for protocol in (2, 3):
            url = f"redis://user:{quote(password, safe='')}@127.0.0.1:{server.port}/0?protocol={protocol}"
            async with Cache(url, timeout=0.3, invalidation_timeout=0.05, on_event=witness.hear) as cache:
                await everything(cache, witness)
    witness.words += spans()
    witness.check(*re.split(r"[\r\n]+", password), password[:16])


hosts = st.sampled_from(
    ["h", "h:1", "h:port", "[::1]:1", "", "h,i", "h/x", "h?timeout=x", "h?nothing=1", "h#f"]
)
schemes = st.sampled_from(
    ["redis", "rediss", "unix", "redis+cluster", "rediss+sentinel", "redis+sentinel", "http", "Redis", ""]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scheme=schemes,
    user=st.sampled_from(["", "user", "user:", "a:b"]),
    password=st.text(min_size=6, max_size=20).map(lambda text: f"S3cr{text}eT"),
    host=hosts,
    encoded=st.booleans(),
)
def test_no_url_however_wrong_is_quoted_with_its_password(
    scheme: str, user: str, password: str, host: str, encoded: bool
) -> None:
    """Whatever is refused about it: an unencoded password may end anywhere."""
    written = quote(password, safe="") if encoded else password
    url = f"{scheme}://{user}:{written}@{host}"
    said = ""
    with suppress(UnicodeEncodeError):
        try:
            cache = Cache(url)
            said = repr(cache) + repr(cache.endpoint) + str(cache.endpoint)
        except ConfigError as error:
            said = "".join(traceback.format_exception(error)).split("ConfigError:")[-1] + repr(error)
    assert "S3cr" not in said
    assert "eT" not in said
