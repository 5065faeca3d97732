"""The commands against real servers."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from msgspec import Struct
from typer.testing import CliRunner, Result

from cacheaside import Cache, facts
from cacheaside.cli import make_app, output
from cacheaside.facts import parse_info
from cacheaside.testing import ClusterServer, Server
from cacheaside.toolkit import SessionStore

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]


class Post(Struct):
    id: int
    title: str


@pytest.fixture
def blog(one_redis_url: str) -> Iterator[Cache]:
    """A cache of five posts and a user under the prefix ``blog``."""
    with Cache(one_redis_url, prefix="blog", l1_window=None) as cache:
        fill(cache)
        yield cache


def fill(cache: Cache) -> None:
    @cache.cached(ns="posts", key="post:{id}", tags=["post:{id}", "feed"], ttl=900)
    def post(id: int) -> Post:
        return Post(id, f"post {id}")

    @cache.cached(ns="users", key="user:{id}", ttl=60)
    def user(id: int) -> dict[str, int] | None:
        return {"id": id} if id else None

    for id in range(1, 6):
        post(id)
    user(7)
    user(0)


@pytest.fixture
def run(one_redis_url: str) -> Run:
    """Run a command on the server of ``blog``."""
    return runner(one_redis_url)


def runner(url: str, prefix: str = "blog") -> Run:
    environment = {"COLUMNS": "200", "CACHEASIDE_URL": url}

    def command(name: str, *args: str, **options: Any) -> Result:
        which = () if name in ("warm", "trace") or "--prefix" in args else ("--prefix", prefix)
        return CliRunner(env=environment).invoke(make_app(), [name, *args, *which], **options)

    return command


def table(told: Result) -> dict[str, list[str]]:
    """The rows below the title line of a table, by their first column."""
    lines = told.stdout.split("\n\n")[-1].splitlines()[1:]
    return {line.split()[0]: line.split()[1:] for line in lines if line.strip()}


# ---------------------------------------------------------------------------- looking


def test_stats_counts_the_keys_of_each_namespace(blog: Cache, run: Run) -> None:
    told = run("stats")
    assert told.exit_code == 0, told.stderr
    rows = table(told)
    assert {ns: row[0] for ns, row in rows.items()} == {"posts": "5", "users": "2"}
    assert "tags 6" in told.stdout
    assert "prefix blog" in told.stdout
    seen = json.loads(run("stats", "--json").stdout)
    posts = seen["survey"]["namespaces"][0]
    assert posts["ns"] == "posts"
    assert 800 < posts["ttl"] <= 900
    assert posts["memory"] > 5 * 100


def test_stats_of_a_prefix_without_keys_asks_whether_it_is_the_right_one(blog: Cache, run: Run) -> None:
    hint = "nothing is cached under this prefix: is --prefix that of the cache?"
    assert hint not in run("stats").stdout
    told = run("stats", "--prefix", "blgo")
    assert told.exit_code == 0
    assert hint in told.stdout


def test_stats_of_a_sample_are_scaled_to_what_is_there(blog: Cache, run: Run) -> None:
    for n in range(3000):
        blog.store.lines.client.set(f"other:{n}", "x")  # type: ignore[attr-defined]
    blog.set_many({f"many:{n}": n for n in range(2000)})
    seen = json.loads(run("stats", "--sample", "1000", "--json").stdout)["survey"]
    assert seen["looked"] < 2500 < seen["there"]
    (many,) = [room for room in seen["namespaces"] if room["ns"] == "many"]
    assert 1400 < many["keys"] < 2600


def test_processes_with_an_l1_are_counted(one_redis_url: str, run: Run) -> None:
    with Cache(one_redis_url, prefix="blog", l1_window=1) as cache:
        cache.listen()
        deadline = time.monotonic() + 10
        while not cache.stats()["l1"]["coherent"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert json.loads(run("stats", "--json").stdout)["health"]["listeners"] == 1


def test_keys_lists_a_namespace_and_how_its_keys_stand(blog: Cache, run: Run) -> None:
    blog.invalidate(tags=["post:3"])
    told = run("keys", "posts")
    assert told.exit_code == 0
    rows = table(told)
    assert len(rows) == 5
    assert rows["posts:post:3"][0] == "invalidated"
    assert rows["posts:post:4"][0] == "fresh"
    assert rows["posts:post:4"][-2:] == ["post:4,", "feed"]
    nothing = run("keys", "nobody")
    assert nothing.exit_code == 1
    assert "there are none" in nothing.stderr
    limited = run("keys", "posts", "--limit", "2", "--json")
    assert len(json.loads(limited.stdout)) == 2
    assert "the first 2 that were found" in run("keys", "posts", "--limit", "2").stderr


def test_tag_lists_what_was_stored_under_it(blog: Cache, run: Run) -> None:
    told = run("tag", "feed", "--json")
    assert told.exit_code == 0
    assert {one["key"] for one in json.loads(told.stdout)} == {f"posts:post:{n}" for n in range(1, 6)}
    assert run("tag", "nothing").exit_code == 1
    assert json.loads(run("tag", "nothing", "--json").stdout) == []


def test_explain_says_why_a_read_would_hit_or_miss(blog: Cache, run: Run) -> None:
    told = run("explain", "posts:post:1")
    assert told.exit_code == 0
    assert "fresh for" in told.stdout
    assert "tag feed valid" in told.stdout
    missing = run("explain", "posts:post:99")
    assert missing.exit_code == 1
    assert "a read would miss and load" in missing.stdout
    seen = json.loads(run("explain", "posts:post:1", "--json").stdout)
    assert (seen["key"], seen["state"], seen["tags"]) == ("posts:post:1", "fresh", ["post:1", "feed"])
    assert run("explain", "nonsense").exit_code == 2


def test_get_prints_the_value_without_knowing_its_type(blog: Cache, run: Run) -> None:
    told = run("get", "posts:post:2")
    assert told.exit_code == 0
    assert json.loads(told.stdout) == {"id": 2, "title": "post 2"}
    assert json.loads(run("get", "users:user:0").stdout) is None
    assert json.loads(run("get", "users:user:7", "--json").stdout)["value"] == {"id": 7}
    blog.invalidate(tags=["feed"])
    gone = run("get", "posts:post:2")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert "tag feed invalidated" in gone.stderr


# ---------------------------------------------------------------------------- changing


def test_invalidate_asks_and_drops_keys_tags_and_patterns(
    blog: Cache, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "somebody", lambda: True)
    what = ("--key", "users:user:7", "--tag", "post:1", "--pattern", "posts:post:[23]")
    told = run("invalidate", *what, input="y\n")
    assert told.exit_code == 0, told.stderr
    assert "Invalidate 1 key and 1 tag and 1 pattern of" in told.stderr
    assert "posts:post:[23]: 2 keys dropped" in told.stdout
    assert not blog.exists("users:user:7")
    states = {one["key"]: one["state"] for one in json.loads(run("keys", "posts", "--json").stdout)}
    assert states == {"posts:post:1": "invalidated", "posts:post:4": "fresh", "posts:post:5": "fresh"}


def test_invalidate_without_asking_tells_programs_what_was_done(blog: Cache, run: Run) -> None:
    told = run("invalidate", "--pattern", "posts:*", "--yes", "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout) == {
        "acknowledged": True, "keys": [], "tags": [], "patterns": {"posts:*": 5}
    }  # fmt: skip


def test_an_invalidation_that_is_not_acknowledged_ends_with_1() -> None:
    with Server(password="s3cret-word") as server:
        url = server.url
        server.pause()
        told = runner(f"{url}?timeout=0.2")("invalidate", "--tag", "feed", "--yes")
        server.resume()
    assert told.exit_code == 1
    assert "NOT acknowledged" in told.stdout
    assert "s3cret-word" not in told.output


@pytest.fixture
def shop(one_redis_url: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command on functions of the application beside this file, in a process of its own."""

    def command(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from cacheaside.cli import main; main()", *args],
            capture_output=True, text=True, input=stdin, timeout=60, check=False,
            cwd=Path(__file__).parent, env={**os.environ, "CACHEASIDE_URL": one_redis_url, "COLUMNS": "200"},
        )  # fmt: skip

    return command


def test_warm_loads_what_is_named_and_what_comes_in_lines(shop: Any, run: Run) -> None:
    done = shop("warm", "cli_app.shop:item", "1", "2", "-", "--prefix", "blog", "--json", stdin="3\n4\n")
    assert done.returncode == 0, done.stderr
    (job,) = json.loads(done.stdout)["jobs"]
    assert (job["warmed"], job["failed"]) == (4, 0)
    assert len(json.loads(run("keys", "shop", "--json").stdout)) == 4
    again = shop("warm", "--prefix", "blog", "cli_app.shop:item", "--", "4", "-5")
    assert again.returncode == 1
    assert "LookupError: no item -5" in again.stderr
    many = shop("warm", "cli_app.shop:prices", "1", "2", "3", "--prefix", "blog", "--json")
    assert json.loads(many.stdout)["jobs"][0]["warmed"] == 3


def test_trace_draws_one_run_of_a_function(shop: Any, tmp_path: Path) -> None:
    files = tmp_path / "run"
    done = shop("trace", "cli_app.shop:page", "1", "-o", str(files), "--json")
    assert done.returncode == 0, done.stderr
    spans = {one["name"]: one for one in json.loads(done.stdout)["spans"]}
    assert {"render", "cacheaside.read", "cacheaside.load", "cacheaside.commit"} <= set(spans)
    assert spans["render"]["parent"] == spans["cli_app.shop:page"]["id"]
    assert spans["cacheaside.read"]["parent"] == spans["render"]["id"]
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    loads = [e for e in events if e["name"] == "cacheaside.load"]
    assert all(e["dur"] >= 9000 for e in loads)
    assert len({e["tid"] for e in loads}) == 2  # they ran side by side
    drawn = ElementTree.fromstring((tmp_path / "run.svg").read_text())
    assert len(drawn.findall("{*}g")) == len(json.loads(done.stdout)["spans"])


def test_a_function_that_raises_is_drawn_and_ends_with_1(shop: Any, tmp_path: Path) -> None:
    done = shop("trace", "cli_app.shop:page", "1", "fails=true", "-o", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "raised ValueError: no page" in done.stderr
    assert (tmp_path / "run.svg").exists()


# ---------------------------------------------------------------------------- doctor


def findings(told: Result) -> dict[str, dict[str, str]]:
    """The worst finding of each examination."""
    order = ["ok", "note", "warning", "error"]
    worst: dict[str, dict[str, str]] = {}
    for one in json.loads(told.stdout):
        if one["about"] not in worst or order.index(one["level"]) > order.index(worst[one["about"]]["level"]):
            worst[one["about"]] = one
    return worst


def test_a_healthy_server_has_no_more_than_notes(redis_url: str) -> None:
    told = runner(redis_url)("doctor", "--json")
    assert told.exit_code == 0, told.stdout
    found = findings(told)
    assert set(found) == {
        "url", "server", "memory", "persistence", "replicas", "access", "clock", "channel", "prefix"
    }  # fmt: skip
    assert all(one["level"] == "ok" or one["remedy"] for one in found.values())
    assert "all that the library does is allowed" in found["access"]["what"]
    with Cache(redis_url) as cache:
        assert list(cache.store.lines.client.scan_iter("*doctor*")) == []  # type: ignore[attr-defined]


def test_a_cluster_is_looked_at_as_a_whole(cluster: ClusterServer) -> None:
    run = runner(cluster.url)
    with Cache(cluster.url, prefix="blog") as cache:
        fill(cache)
        told = run("doctor", "--json")
        assert told.exit_code == 0, told.stdout
        assert findings(told)["channel"]["level"] == "ok"
        assert {ns: row[0] for ns, row in table(run("stats")).items()} == {"posts": "5", "users": "2"}
        assert len(json.loads(run("keys", "posts", "--json").stdout)) == 5
        assert len(json.loads(run("tag", "feed", "--json").stdout)) == 5
        assert run("invalidate", "--tag", "feed", "--yes").exit_code == 0
        assert run("get", "posts:post:1").exit_code == 1
        assert run("get", "users:user:7").exit_code == 0


def test_a_server_that_does_not_answer_is_an_error() -> None:
    told = runner("redis://:s3cret-word@127.0.0.1:1/0")("doctor")
    assert told.exit_code == 2
    assert "error  url redis://***@127.0.0.1:1/0" in told.stdout
    assert "s3cret-word" not in told.output


def test_a_server_of_another_kind_than_the_url_says_is_a_finding(cluster: ClusterServer) -> None:
    url = cluster.url.replace("redis+cluster://", "redis://").split(",")[0]
    told = runner(url)("doctor", "--json")
    assert told.exit_code == 2
    assert "is a node of a cluster: write redis+cluster://" in findings(told)["server"]["what"]
    assert findings(told)["server"]["remedy"] == "correct the URL"


def test_a_server_that_is_too_old_is_a_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "parse_info", lambda said: parse_info({"redis_version": "6.2.14"}))
    told = run("doctor", "--json")
    assert told.exit_code == 2
    (found,) = json.loads(told.stdout)
    assert found == {
        "level": "error", "about": "server", "what": "needs Redis >= 7.0 or Valkey; this is 6.2.14",
        "remedy": "use a newer server",
    }  # fmt: skip


def test_what_the_user_may_not_do_is_found_with_the_rule_that_helps() -> None:
    with Server(password="s3cret-word") as server, server.client() as admin:
        admin.execute_command(
            "ACL", "SETUSER", "app", "on", ">pw", "~blog:*", "&*", "+@all", "-scan", "-subscribe"
        )
        url = f"redis://app:pw@127.0.0.1:{server.port}/0"
        told = runner(url)("doctor", "--json")
        assert told.exit_code == 2
        found = findings(told)
        assert found["access"]["level"] == "error"
        assert "cannot" in found["access"]["what"]
        assert "no permissions" in found["access"]["what"].lower()
        assert found["channel"]["level"] == "warning"
        assert "no permissions" in found["channel"]["what"].lower()
        remedy = found["access"]["remedy"].split()
        assert remedy[:3] == ["ACL", "SETUSER", "app"]
        admin.execute_command(*remedy[:3], "resetkeys", "resetchannels", "nocommands", *remedy[3:])
        found = findings(runner(url)("doctor", "--json"))
        assert (found["access"]["level"], found["channel"]["level"]) == ("ok", "ok")


def test_sessions_on_a_server_that_evicts_or_forgets_are_warned_of() -> None:
    with Server(args=["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]) as server:
        with Cache(server.url, prefix="blog") as cache:
            SessionStore(cache).create(1, {})
        told = runner(server.url)("doctor", "--json")
        assert told.exit_code == 1
        found = findings(told)
        assert "an eviction logs users out" in found["memory"]["what"]
        assert "logs all users out" in found["persistence"]["what"]


def test_a_full_server_and_a_replica_are_errors() -> None:
    with Server(args=["--maxmemory", "1mb"]) as server:
        told = runner(server.url)("doctor", "--json")
        assert told.exit_code == 2
        assert findings(told)["memory"]["level"] == "warning"
        assert "OutOfMemory" in findings(told)["access"]["what"] or "OOM" in findings(told)["access"]["what"]
        with Server(args=["--replicaof", f"127.0.0.1 {server.port}"]) as replica:
            told = runner(replica.url)("doctor", "--json")
            assert told.exit_code == 2
            assert "this is a replica" in findings(told)["server"]["what"]


def test_keys_of_somebody_else_under_the_prefix_are_found(blog: Cache, run: Run, one_redis_url: str) -> None:
    client = blog.store.lines.client  # type: ignore[attr-defined]
    client.set("blog:celery:task", "pickled")
    client.rpush("blog:queue", "job")
    with Cache(one_redis_url, prefix="blog:admin") as other:
        other.set("x:y", 1, tags=["t"])
    told = run("doctor", "--json")
    assert told.exit_code == 2
    prefixes = {one["level"]: one["what"] for one in json.loads(told.stdout) if one["about"] == "prefix"}
    assert "blog:celery:task" in prefixes["error"]
    assert "blog:queue" in prefixes["error"]
    assert "blog:admin" in prefixes["warning"]


def test_a_clock_that_is_off_is_found(blog: Cache, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time
    monkeypatch.setattr("cacheaside.cli.findings.time.time", lambda: true() + 30)
    found = findings(run("doctor", "--json"))["clock"]
    assert found["level"] == "warning"
    assert "-30.0" in found["what"]


# ---------------------------------------------------------------------------- bench, progress


def test_bench_measures_beside_a_bare_get_and_leaves_nothing(run: Run, one_server: Server) -> None:
    told = run("bench", "--seconds", "0.1", "--json")
    assert told.exit_code == 0, told.stderr
    costs = {one["what"]: one for one in json.loads(told.stdout)}
    assert list(costs) == ["a bare GET", "L1 hit", "L2 hit, one tag", "miss, one tag", "invalidate a tag"]
    assert costs["a bare GET"]["gets"] == 1
    assert costs["L1 hit"]["gets"] < 1 < costs["miss, one tag"]["gets"]
    with one_server.client() as client:
        assert [key for key in client.scan_iter("*") if not key.startswith(b"{")] == []


@pytest.mark.parametrize(
    ("words", "bar"),
    [
        ("stats", "keys looked at"),
        ("keys posts", "keys"),
        ("invalidate --yes --pattern posts:*", "keys of posts:* dropped"),
        ("doctor", "examinations"),
        ("bench --seconds 0.1", "measuring"),
    ],
)
def test_long_work_has_a_progress_bar_on_a_terminal(
    blog: Cache, one_redis_url: str, words: str, bar: str
) -> None:
    """On standard error: what is printed for programs stays whole."""
    environment = {"CACHEASIDE_URL": one_redis_url, "TTY_COMPATIBLE": "1", "COLUMNS": "100"}
    typed = [*words.split(), "--prefix", "blog", "--json"]
    told = CliRunner(env=environment).invoke(make_app(), typed)
    assert told.exit_code == 0
    assert f"{bar} \x1b" in told.stderr or f"{bar} ━" in told.stderr
    assert json.loads(told.stdout)


# ---------------------------------------------------------------------------- top


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, url: str, *args: str) -> None:
        self.main, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from cacheaside.cli import main; main()", *args],
            stdin=other, stdout=other, stderr=other, close_fds=True,
            env={**os.environ, "CACHEASIDE_URL": url, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        )  # fmt: skip
        os.close(other)
        self.seen = ""

    def until(self, text: str) -> None:
        """Wait until the text is on the screen, and forget what was there."""
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.main], [], [], 1.0)[0]:
                self.seen += os.read(self.main, 65536).decode("utf-8", "replace")
        self.seen = ""

    def press(self, key: str) -> None:
        os.write(self.main, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.main)


def test_top_is_steered_by_keys(blog: Cache, one_redis_url: str) -> None:
    terminal = Terminal(one_redis_url, "top", "--prefix", "blog", "--every", "0.2")
    try:
        terminal.until("sorted by keys")
        terminal.press("s")
        terminal.until("sorted by share")
        terminal.press("p")
        terminal.until("paused")
        blog.set("news:1", 1)
        terminal.press("p")
        terminal.until("news")
        terminal.press("q")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()


def test_top_without_a_terminal_says_what_to_use(run: Run) -> None:
    told = run("top")
    assert told.exit_code == 2
    assert "use `stats`, or --json" in told.stderr


def test_top_prints_a_line_of_json_for_each_look_until_it_is_interrupted(
    blog: Cache, one_redis_url: str
) -> None:
    command = [sys.executable, "-c", "from cacheaside.cli import main; main()", "top", "--json"]
    with subprocess.Popen(
        [*command, "--prefix", "blog", "--every", "0.1", "--url", one_redis_url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
    assert [{room["ns"] for room in look["survey"]["namespaces"]} for look in looks] == [
        {"posts", "users"}
    ] * 3
    assert process.returncode == 130
    assert "Traceback" not in complaint
