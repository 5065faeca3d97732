"""The command line without a server: what is typed, said and drawn."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.etree import ElementTree

import pytest
from opentelemetry.sdk.trace import TracerProvider
from typer.main import get_command
from typer.testing import CliRunner, Result

from cacheaside import Cache, ConfigError, telemetry
from cacheaside.cli import make_app, output
from cacheaside.cli.app import COMMANDS, without_logins
from cacheaside.cli.keyboard import Keyboard, keyboard
from cacheaside.cli.looking import plain
from cacheaside.cli.pictures import chrome, in_order, lanes, waterfall
from cacheaside.cli.recorder import Recorded, recorded
from cacheaside.cli.sources import Process, since
from cacheaside.cli.survey import classify
from cacheaside.cli.target import argument, arguments, imported
from cacheaside.console import look
from cacheaside.rawkeys import RawKeys
from cacheaside.testing import FakeClock

SECRET = "pa55w0rd"


def run(*args: str, **options: Any) -> Result:
    return CliRunner(env={"COLUMNS": "200", "CACHEASIDE_URL": ""}).invoke(make_app(), list(args), **options)


# ---------------------------------------------------------------------------- every command


def commands() -> dict[str, Any]:
    found: dict[str, Any] = get_command(make_app()).commands  # type: ignore[attr-defined]
    return found


def options(command: Any) -> list[str]:
    """The long names of a command's options."""
    return [n for p in command.params for n in p.opts if n.startswith("--") and n != "--help"]


def test_every_command_and_option_has_help_and_the_exit_codes_are_in_it() -> None:
    known = commands()
    assert set(known) == {command.__name__ for command in COMMANDS}
    for name, command in known.items():
        told = run(name, "--help")
        assert told.exit_code == 0
        assert "Exit code:" in told.output
        assert len(command.help.splitlines()[0]) < 80  # what the list of commands shows
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name}"
            assert parameter.param_type_name == "argument" or parameter.opts[0] in told.output


def test_every_command_prints_json_when_asked_to() -> None:
    assert [name for name, command in commands().items() if "--json" not in options(command)] == []


def test_what_is_about_a_cache_takes_its_url_and_its_prefix() -> None:
    without = [n for n, c in commands().items() if not {"--url", "--prefix"} <= set(options(c))]
    assert without == ["check"]  # it disturbs what it looks at, so its server is named in the command


def test_without_a_command_the_help_is_shown() -> None:
    told = run()
    assert "doctor" in told.output
    assert told.exit_code == 2


def test_shells_can_complete_commands() -> None:
    complete = {"_CACHEASIDE_COMPLETE": "complete_bash", "COMP_WORDS": "cacheaside do", "COMP_CWORD": "1"}
    told = CliRunner(env=complete).invoke(make_app(), [], prog_name="cacheaside")
    assert told.output.split() == ["doctor"]


# ---------------------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize("name", ["stats", "top", "doctor", "bench"])
def test_without_a_url_a_command_says_what_to_give(name: str) -> None:
    told = run(name)
    assert told.exit_code == 2
    assert "Give --url, or set CACHEASIDE_URL" in told.stderr


def test_an_embedded_cache_cannot_be_seen_from_another_process() -> None:
    told = run("keys", "posts", "--url", "embedded://")
    assert told.exit_code == 2
    assert "in the memory of its process" in told.stderr


@pytest.mark.parametrize(
    "typed",
    [
        ["stats", f"redis://:{SECRET}@h"],
        ["stats", "--url", f"redis://user:{SECRET}@h/x"],
        ["stats", "--url", f"redis://user:{SECRET}/@h"],
        ["stats", "--url", f"redis://user:{SECRET}@localhost:1"],
        ["doctor", "--url", f"redis://user:{SECRET}@localhost:1"],
        ["get", "posts:1", "--url", f"redis://user:{SECRET}@localhost:1"],
        ["stats", "--url", f"http://user:{SECRET}@localhost:1/cache"],
        ["bench", "--seconds", f"redis://:{SECRET}/@h"],
        [f"redis://:{SECRET}@h"],
    ],
)
def test_no_password_is_shown_wherever_it_was_typed(typed: list[str]) -> None:
    told = run(*typed)
    assert told.exit_code == 2
    assert told.stdout + told.stderr
    assert SECRET not in told.stdout + told.stderr
    assert "Traceback" not in told.stderr


def test_a_fault_of_the_program_shows_no_variables() -> None:
    """Typer's own tracebacks may, and a variable may be a URL."""
    assert make_app().pretty_exceptions_enable is False


def test_logins_are_taken_out_of_any_text() -> None:
    assert without_logins("at redis://u:p@h:1 and rediss://:p/q@x") == "at redis://***@h:1 and rediss://***@x"
    assert without_logins("users:a@b stays") == "users:a@b stays"


def test_nothing_is_dropped_where_nobody_can_be_asked() -> None:
    told = run("invalidate", "--tag", "feed", "--url", "redis://localhost:1")
    assert told.exit_code == 2
    assert "say --yes" in told.stderr


def test_a_no_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "somebody", lambda: True)
    told = run("invalidate", "--tag", "feed", "--url", "redis://localhost:1", input="n\n")
    assert told.exit_code == 1
    assert "Invalidate 1 tag of" in told.stderr


def test_an_invalidation_of_nothing_is_a_mistake() -> None:
    told = run("invalidate", "--yes", "--url", "redis://localhost:1")
    assert told.exit_code == 2
    assert "Give --key, --tag or --pattern" in told.stderr


# ---------------------------------------------------------------------------- numbers for people


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0"), (3.5e-7, "350 ns"), (5e-6, "5 µs"), (0.0123, "12.3 ms"), (59, "59 s"), (90, "1.5 min"),
     (7200, "2 h"), (86400, "24 h"), (864000, "10 days")],
)  # fmt: skip
def test_durations_have_a_unit_that_fits(seconds: float, words: str) -> None:
    assert output.duration(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30 * 3, "3.0 GiB")]
)
def test_sizes_have_a_unit_that_fits(size: float, words: str) -> None:
    assert output.size(size) == words


# ---------------------------------------------------------------------------- module:function


def example(post_id: int, *, deep: bool = False, **more: str) -> None: ...


def test_arguments_become_what_the_function_declares() -> None:
    assert arguments(example, ["42", "deep=true"]) == ([42], {"deep": True})
    with pytest.raises(ConfigError, match="one argument too many"):
        arguments(example, ["1", "2"])
    with pytest.raises(ConfigError, match="'x' is no int"):
        arguments(example, ["x"])


def test_an_argument_without_a_type_is_json_or_text() -> None:
    assert [argument(text) for text in ("42", '"42"', "abc", "[1]")] == [42, "42", "abc", [1]]
    assert argument("42", str) == "42"
    assert argument("[1, 2]", list[int]) == [1, 2]
    assert argument(str(UUID(int=7)), UUID) == UUID(int=7)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("json", "write MODULE:FUNC"),
        ("nowhere.at.all:f", "there is no module 'nowhere.at.all'"),
        ("json:nothing", "has no attribute 'nothing'"),
    ],
)
def test_a_target_that_is_not_there_is_said(target: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        imported(target, None, None)


def test_a_target_may_be_a_method_of_an_object() -> None:
    assert imported("json:decoder.JSONDecoder.decode", None, None) is json.JSONDecoder.decode


# ---------------------------------------------------------------------------- whose key it is


class Names:
    keys = RawKeys("mini")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("mini:posts:post:1", "value"),
        ("{mini:t.0}:feed", "tag"),
        ("{mini:t.63}:feed:keys", "helper"),
        ("{mini:t.0}:hb:0123456789abcdef", "helper"),
        ("{mini:posts:post:1}:r", "helper"),
        ("{mini:posts}:app", "helper"),
        ("{mini:auth:session:abc}", "toolkit"),
        ("{mini:blue:t.0}:feed", "nested"),
        ("minis:posts:1", ""),
        ("{other:t.0}:feed", ""),
        ("celery", ""),
    ],
)
def test_a_key_is_told_by_its_name(key: str, kind: str) -> None:
    assert classify(Names(), key)[0] == kind  # type: ignore[arg-type]


def test_values_are_shown_whatever_wrote_them() -> None:
    assert plain(b"\x92\x01\xa1a") == [1, "a"]
    assert plain(b'{"a": 1}') == {"a": 1}
    assert plain(b'\xc1{"at": "2026-01-01T00:00:00+02:00"}') == {"at": "2026-01-01T00:00:00+02:00"}
    assert plain(b"\x80\x05cposix\nsystem\n") == repr(b"\x80\x05cposix\nsystem\n")


# ---------------------------------------------------------------------------- a process's own counters


@pytest.fixture
def console() -> Iterator[tuple[str, Cache, list[dict[str, str]]]]:
    """The URL of a console that wants a header, its cache, and the headers that it was sent."""
    cache, seen = Cache("embedded://"), list[dict[str, str]]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            path = self.path.removeprefix("/cache")
            reply = look(cache, path, "")
            moved = self.path.startswith("/moved")
            let_in = "x-admin" in seen[-1] or "authorization" in seen[-1]
            self.send_response(302 if moved else reply.status if let_in else 403)
            if moved:
                self.send_header("Location", f"http://127.0.0.1:{server.server_port}/cache/stats")
            self.end_headers()
            self.wfile.write(b"" if moved else reply.body)

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cache", cache, seen
        server.shutdown()
        thread.join()
    cache.close()


def test_stats_of_a_console_are_those_of_its_process(console: tuple[str, Cache, Any]) -> None:
    url, cache, _ = console

    @cache.cached(ns="posts", key="{id}")
    def post(id: int) -> int:
        return id

    for id in (1, 1, 1, 2):
        post(id)
    told = run("stats", "--url", url, "--header", "x-admin: yes")
    assert told.exit_code == 0, told.stderr
    (row,) = [line.split() for line in told.stdout.splitlines() if line.startswith("posts")]
    assert row[2:5] == ["4", "50.0", "%"]
    assert "L1 2 entries" in told.stdout
    counted = json.loads(run("stats", "--url", f"{url}/stats", "--header", "x-admin: 1", "--json").stdout)
    assert counted["namespaces"]["posts"]["hits_l1"] == 2


def test_a_guard_that_refuses_is_said(console: tuple[str, Cache, Any]) -> None:
    told = run("stats", "--url", console[0])
    assert told.exit_code == 2
    assert "answered 403" in told.stderr


def test_a_login_in_the_url_is_sent_and_not_shown(console: tuple[str, Cache, Any]) -> None:
    url = console[0].replace("//", f"//me:{SECRET}@")
    told = run("stats", "--url", url)
    assert told.exit_code == 0
    assert console[2][-1]["authorization"] == "Basic bWU6cGE1NXcwcmQ="
    assert SECRET not in told.stdout + told.stderr


def test_nothing_is_sent_on_to_where_a_console_redirects(console: tuple[str, Cache, Any]) -> None:
    told = run("stats", "--url", console[0].replace("/cache", "/moved"), "--header", "Cookie: a=b")
    assert told.exit_code == 2
    assert "answered 302" in told.stderr
    assert len(console[2]) == 1


def test_headers_are_for_consoles_only() -> None:
    told = run("stats", "--url", "redis://localhost:1", "--header", "a: b")
    assert told.exit_code == 2
    assert "Redis takes none" in told.stderr


def test_the_second_look_tells_rates_and_what_was_answered_since(console: tuple[str, Cache, Any]) -> None:
    url, cache, _ = console

    @cache.cached(ns="posts", key="{id}")
    def post(id: int) -> int:
        return id

    post(1)
    source = Process(url, ["x-admin: 1"])
    first = source.look()
    for _ in range(9):
        post(1)
    second = source.look()
    names = [column.name for column in second.columns]
    before, now = (dict(zip(names, frame.rows["posts"], strict=True)) for frame in (first, second))
    assert (before["calls/s"], before["calls"], before["loaded"]) == (0, 1, 1)
    assert (now["calls"], now["L1"], now["loaded"]) == (10, 1, 0)
    assert now["calls/s"] > 0


def test_a_process_that_was_restarted_counts_from_nothing() -> None:
    before = {"at": 1.0, "namespaces": {"posts": {"loads": 5}}}
    assert since(before, {"at": 3.0, "namespaces": {"posts": {"loads": 2}}}, "posts") == ({}, 2.0)
    assert since(before, {"at": 3.0, "namespaces": {"posts": {"loads": 7}}}, "posts") == ({"loads": 5}, 2.0)


# ---------------------------------------------------------------------------- the keyboard


def test_without_a_terminal_no_key_is_pressed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with keyboard() as keys:
            assert keys.key(0.0) == ""


def test_keys_come_one_by_one_and_a_closed_terminal_quits() -> None:
    out, into = os.pipe()
    keys = Keyboard(out)
    assert keys.key(0.0) == ""
    os.write(into, b"sp")
    assert [keys.key(1.0), keys.key(1.0)] == ["s", "p"]
    os.close(into)
    assert keys.key(1.0) == "q"
    os.close(out)


# ---------------------------------------------------------------------------- pictures


def span(name: str, id: str, parent: str, start: int, end: int, **more: Any) -> Recorded:
    return Recorded(name, id, parent, start * 1_000_000, end * 1_000_000, **more)


SPANS = [
    span("shop:page", "1", "", 0, 100),
    span("cacheaside.read", "2", "1", 5, 60, attributes={"cacheaside.namespace": "<posts>"}),
    span("cacheaside.load", "3", "2", 10, 50),
    span("cacheaside.read", "4", "1", 20, 90, error="ValueError"),
]


def test_what_runs_side_by_side_gets_a_lane_of_its_own() -> None:
    assert list(lanes(SPANS)) == [0, 0, 0, 1]
    after = [*SPANS, span("cacheaside.commit", "5", "1", 90, 95)]
    assert list(lanes(after))[-1] == 0


def test_chrome_gets_microseconds_from_the_beginning() -> None:
    events = [e for e in json.loads(chrome(SPANS))["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"]) for e in events[:2]] == [
        ("shop:page", 0, 100_000),
        ("cacheaside.read", 5_000, 55_000),
    ]
    assert events[1]["args"] == {"cacheaside.namespace": "<posts>"}
    assert events[3]["args"] == {"error": "ValueError"}


def test_the_waterfall_is_one_row_a_span_below_its_parent_and_loads_nothing() -> None:
    drawn = waterfall(SPANS, "shop:page & more")
    root = ElementTree.fromstring(drawn)
    rows = root.findall("{*}g")
    labels = [row.find("{*}text").text for row in rows]  # type: ignore[union-attr]
    assert labels == ["shop:page", "read  <posts>", "load", "read"]
    places = [[float(row.find("{*}rect").attrib[name]) for name in ("x", "y", "width")] for row in rows]  # type: ignore[union-attr]
    assert [y for _, y, _ in places] == sorted(y for _, y, _ in places)
    assert places[1][0] + places[1][2] <= places[0][0] + places[0][2]
    assert "ValueError" in drawn
    assert "href" not in drawn
    assert "<script" not in drawn


def test_a_run_without_spans_still_is_a_picture() -> None:
    assert ElementTree.fromstring(waterfall([], "nothing")).findall("{*}g") == []
    assert json.loads(chrome([]))["traceEvents"][0]["ph"] == "M"


# ---------------------------------------------------------------------------- what is recorded


@pytest.fixture
def own_provider(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """An application's own provider of tracers."""
    provider = TracerProvider()
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    monkeypatch.setattr(telemetry, "_tracer", None)
    return provider


def test_refreshes_in_the_background_are_recorded_and_linked(own_provider: TracerProvider) -> None:
    clock = FakeClock()
    cache = Cache("embedded://", clock=clock)

    @cache.cached(ns="n", key="{id}", ttl=10, jitter=0, stale_while_revalidate=60, refresh="background")
    def find(id: int) -> int:
        return id

    def later() -> None:
        find(1)
        clock.tick(20)
        find(1)

    spans, failure = recorded(later, "later")
    assert failure is None
    names = [one.name.removeprefix("cacheaside.") for one in spans]
    assert names[:4] == ["later", "read", "load", "commit"]
    (refresh,) = [one for one in spans if one.name == "cacheaside.refresh"]
    assert refresh.parent == ""
    assert refresh.links[0] in {one.id for one in spans}
    assert [depth for one, depth in in_order(spans) if one is refresh] == [0]


def test_an_error_is_on_the_spans_that_it_ended(own_provider: TracerProvider) -> None:
    cache = Cache("embedded://")

    @cache.cached(ns="n", key="{id}")
    async def find(id: int) -> int:
        raise LookupError("secret words")

    spans, failure = recorded(lambda: find(1), "failing")
    assert isinstance(failure, LookupError)
    # Of a broker that an earlier test left to the garbage collector there may be others.
    errors = {one.name: one.error for one in spans if one.name in ("cacheaside.read", "cacheaside.load")}
    assert errors == {"cacheaside.read": "LookupError", "cacheaside.load": "LookupError"}


def test_without_the_sdk_trace_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    told = run("trace", "json:dumps", "1")
    assert told.exit_code == 2
    assert "pip install 'cacheaside[trace]'" in told.stderr
