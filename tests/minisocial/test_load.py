"""Two workers under load on a real server; and the generator, which must see what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from examples.demo.graph import PROJECT, generate
from examples.minisocial.client import Answer, Connection
from examples.minisocial.demo import fill, in_mode, log_in, phase, settings_for
from examples.minisocial.load import Acknowledged, Generator, Plan
from examples.minisocial.workers import serving

PLAN = Plan([1], {7: "cookie"}, [7], 10)


def answer(**body: Any) -> Answer:
    return Answer(200, json.dumps(body).encode())


@pytest.fixture
def generator() -> Generator:
    """One that knows of write 5 to user 7, acknowledged at 10."""
    made = Generator(PLAN)
    made.acknowledged.note(10.0, {"tags": ["user:7", "post:3"], "version": 5})
    return made


def test_an_answer_from_before_an_acknowledged_write_is_stale(generator: Generator) -> None:
    """Of this version it is not; nor was it asked for before that."""
    generator.check("/users/7", 7, ["user:7"], answer(id=7, version=5), 11.0)
    generator.check("/users/7", 7, ["user:7"], answer(id=7, version=4), 9.0)
    assert generator.tally.stale == 0
    generator.check("/users/7", 7, ["user:7"], answer(id=7, version=4), 11.0)
    assert generator.tally.stale == 1


def test_a_stale_post_inside_a_feed_is_seen(generator: Generator) -> None:
    """The feed itself is fresh."""
    feed = answer(user_id=7, version=9, posts=[{"id": 3, "version": 4}])
    generator.check("/feed?page=1", 7, ["feed:7"], feed, 11.0)
    assert generator.tally.stale == 1


def test_within_the_window_an_answer_lags_and_is_not_stale(generator: Generator) -> None:
    """A tenth of a second later it is stale."""
    generator.plan = Plan([1], {7: "cookie"}, [7], 10, window=1.0)
    generator.check("/users/7", 7, ["user:7"], answer(id=7, version=4), 10.95)
    assert (generator.tally.stale, generator.tally.lagging) == (0, 1)
    generator.check("/users/7", 7, ["user:7"], answer(id=7, version=4), 11.05)
    assert (generator.tally.stale, generator.tally.lagging) == (1, 1)


@pytest.mark.parametrize(("path", "field"), [("/me", "id"), ("/feed?page=1", "user_id")])
def test_an_answer_for_somebody_else_is_seen(generator: Generator, path: str, field: str) -> None:
    """However fresh it is."""
    generator.check(path, 7, [], answer(**{field: 7}, version=9), 11.0)
    assert generator.tally.wrong == 0
    generator.check(path, 7, [], answer(**{field: 8}, version=9), 11.0)
    assert generator.tally.wrong == 1


def test_acknowledged_versions_never_go_down() -> None:
    """Writes that return out of order leave the higher one."""
    acknowledged = Acknowledged()
    for now, version in ((1.0, 5), (2.0, 4), (3.0, 9)):
        acknowledged.note(now, {"tags": ["a"], "version": version})
    assert [acknowledged.least("a", at) for at in (0.5, 1.0, 2.5, 3.0)] == [0, 5, 5, 9]
    assert acknowledged.least("b", 9.0) == 0


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """What is due while the app sleeps counts from when it was due."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(0.2)
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{"id":7,"user_id":7,"ve":1}')

    async def run() -> Generator:
        async with await asyncio.start_server(slow, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            plan = Plan([port], {7: "c"}, [7], 10, write_share=0.0, connections=1)
            generator = Generator(plan)
            generator.check = lambda *_: None  # type: ignore[method-assign]
            await generator.run(1.0, rate=50.0)
            return generator

    tally = asyncio.run(run()).tally
    assert tally.reads <= 6
    assert tally.unserved > 20
    assert tally.times.quantile(0.99) > 0.5, "the last was due long before it was begun"


@pytest.mark.parametrize(
    ("mode", "database"),
    [("on", "sqlite"), ("l2", "sqlite"), ("off", "sqlite"), ("on", "postgresql")],
    indirect=["database"],
)
def test_two_workers_under_load_answer_nothing_stale_or_wrong(
    one_redis_url: str, database: str, mode: Any
) -> None:
    """Every answer is held against what was acknowledged; L1 has its share where it is on."""
    graph = generate(users=40, each=5)
    settings = settings_for(database, one_redis_url, f"load-{database.partition(':')[0]}", 0.0)
    fill(settings, graph)
    tally = phase(in_mode(settings, mode), graph, 2.0, write_share=0.2)
    assert (tally.stale, tally.wrong, tally.failed) == (0, 0, 0), tally.first_problem
    assert tally.reads > 50
    assert tally.writes > 5
    assert (tally.hits_l1 > 0) is (mode == "on")
    share = tally.hit_share or 0.0
    assert share > 0.2 if mode != "off" else share == 0.0


def test_what_one_worker_writes_another_reads(one_redis_url: str, tmp_path: Path) -> None:
    """Sessions, invalidations and limits are shared; without L1 there is not even a window."""
    settings = settings_for(f"sqlite:///{tmp_path / 'site.db'}", one_redis_url, "two", 0.0)
    fill(settings, generate(users=10, each=2))
    settings = in_mode(settings, "l2")
    cookie = log_in(settings, [2])[2]

    async def go(ports: list[int]) -> None:
        one, two = Connection(ports[0]), Connection(ports[1])
        for n in range(20):
            before = (await two.ask("GET", "/users/2")).json()
            edit = {"name": "two", "bio": f"edit {n}"}
            change = (await one.ask("PUT", "/me", cookie, edit)).json()
            after = (await two.ask("GET", "/users/2")).json()
            assert after["bio"] == f"edit {n}"
            assert before["version"] < change["version"] == after["version"]
        assert (await one.ask("POST", "/logout", cookie)).status == 200
        assert (await two.ask("GET", "/me", cookie)).status == 401
        await one.aclose()
        await two.aclose()

    with serving(settings, 2) as ports:
        asyncio.run(go(ports))


def test_what_is_written_through_one_worker_is_told_by_another(one_redis_url: str, tmp_path: Path) -> None:
    """To who takes part, at once; and who hangs up is not listened for any more."""
    settings = settings_for(f"sqlite:///{tmp_path / 'site.db'}", one_redis_url, "live", 0.0)
    fill(settings, generate(users=10, each=2))
    cookies = log_in(settings, [2, 3])

    def listens() -> bool:
        with redis.from_url(one_redis_url) as asking:
            return any(b"user:3" in name for name in asking.pubsub_channels())

    async def go(ports: list[int]) -> None:
        one = Connection(ports[0])
        assert (await one.ask("GET", "/notifications/live")).status == 401
        talk = {"title": "hello", "with_users": [3]}
        made = (await one.ask("POST", "/conversations", cookies[2], talk)).json()
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[1])
        writer.write(f"GET /notifications/live HTTP/1.1\r\nHost: x\r\nCookie: {cookies[3]}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-type: text/event-stream" in head.lower()
            await one.ask("POST", f"/conversations/{made['id']}/messages", cookies[2], {"body": "tea?"})
            told = await reader.readuntil(b"\n\n")
            assert told.endswith(f"event: message.sent\ndata: {made['id']}\n\n".encode())
            assert listens()
            writer.close()
            await writer.wait_closed()
            while listens():
                await asyncio.sleep(0.02)
        await one.aclose()

    with serving(settings, 2) as ports:
        asyncio.run(go(ports))


def test_the_demonstration_ends_with_its_workers_gone(tmp_path: Path, gone: Callable[[], list[str]]) -> None:
    """Exit code 0, a table of two columns, no process left."""
    edges = tmp_path / "friends.txt"
    edges.write_text("".join(f"{a} {b}\n" for a in range(6) for b in range(a)))
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--graph", str(edges), "--seconds", "1", "--writes", "20"],
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no cache" in done.stdout
    assert "Stale reads: 0 of" in done.stdout
    assert gone() == []
    assert os.listdir(tmp_path) == ["friends.txt"]


@pytest.fixture
def gone(tmp_path: Path) -> Callable[[], list[str]]:
    """The processes that still know this test's directory."""

    def left() -> list[str]:
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"TMPDIR={tmp_path}".encode() in environ.read_bytes():
                    found.append((environ.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    return left
