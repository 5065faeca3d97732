"""The parts of the demonstration, and the quickstart."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import cacheaside
from examples.demo import graph
from examples.demo.__main__ import describe
from examples.demo.access import Cacheaside, Naive, Uncached
from examples.demo.measure import Histogram, Tally, total
from examples.demo.report import Report
from examples.demo.repository import PAGE, Repository, build
from examples.demo.workload import Acknowledged, Phase, Plan, Worker, Zipf

TRIANGLE = graph.Graph("triangle and one", 4, [(0, 1), (0, 2), (1, 2), (2, 3)])


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Four users, twenty posts."""
    build(tmp_path / "network.db", TRIANGLE, posts=20)
    repository = Repository(tmp_path / "network.db")
    yield repository
    repository.close()


@pytest.fixture
def cached(repository: Repository) -> Iterator[Cacheaside]:
    """The repository with an embedded cache."""
    with cacheaside.configure("embedded://") as cache:
        yield Cacheaside(repository, cache)


# ---------------------------------------------------------------------------- graph


def test_an_edge_list_is_read_plain_or_gzipped_without_its_comments(tmp_path: Path) -> None:
    text = "# from somewhere\n\n10 20\n20 30\n"
    (tmp_path / "plain.txt").write_text(text)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("plain.txt", "packed.txt.gz"):
        read = graph.read(tmp_path / name)
        assert (read.users, read.edges) == (3, [(0, 1), (1, 2)])


def test_a_friendship_counts_once_whichever_way_it_is_written() -> None:
    assert graph.parse(["a b", "b a", "a a"], "test").edges == [(0, 1)]


def test_a_line_that_is_no_friendship_is_named() -> None:
    with pytest.raises(ValueError, match="test, line 2: expected two users, found 'c'"):
        graph.parse(["a b", "c"], "test")


def test_a_graph_without_friendships_is_refused() -> None:
    with pytest.raises(ValueError, match="no friendships"):
        graph.parse(["# nothing"], "test")


def test_the_generated_graph_is_as_large_as_ego_facebook_and_as_uneven() -> None:
    made = graph.generate()
    degrees = Counter(user for edge in made.edges for user in edge)
    assert made.users == len(degrees) == 4039
    assert 85_000 < len(made.edges) < 92_000
    assert len(set(made.edges)) == len(made.edges)
    assert all(a < b for a, b in made.edges)
    assert max(degrees.values()) > 8 * len(made.edges) * 2 / made.users
    assert graph.generate(50, 3, seed=1) == graph.generate(50, 3, seed=1)
    assert graph.generate(50, 3, seed=1).edges != graph.generate(50, 3, seed=2).edges


def test_users_are_ranked_by_their_friends() -> None:
    assert TRIANGLE.by_degree() == [2, 0, 1, 3]


# ---------------------------------------------------------------------------- measuring


def test_zipf_draws_the_nth_in_proportion_to_one_over_n() -> None:
    drawn = Zipf(["a", "b", "c", "d"], 1.0, random.Random(1))  # type: ignore[list-item]
    counts = Counter(drawn.draw() for _ in range(25_000))
    for place, item in enumerate("abcd", 1):
        assert counts[item] == pytest.approx(12_000 / place, rel=0.05)  # type: ignore[index]


def test_quantiles_are_right_to_four_per_cent() -> None:
    times = Histogram()
    for millisecond in range(1, 1001):
        times.add(millisecond / 1000)
    assert times.quantile(0.5) == pytest.approx(0.5, rel=0.04)
    assert times.quantile(0.99) == pytest.approx(0.99, rel=0.04)


def test_times_beyond_the_buckets_are_counted_and_none_are_no_time() -> None:
    times = Histogram()
    assert times.quantile(0.5) is None
    times.add(0.0)
    times.add(1e9)
    assert sum(times.buckets) == 2


def test_the_total_adds_counts_and_takes_the_longest_time() -> None:
    one, two = Tally(elapsed=1.0, reads=10, stale=1), Tally(elapsed=2.0, reads=30, hits_l2=3, loads=1)
    one.times.add(0.001)
    two.times.add(0.002)
    both = total([one, two])
    assert (both.elapsed, both.reads, both.stale) == (2.0, 40, 1)
    assert (both.reads_per_second, both.hit_share) == (20.0, 0.75)
    assert sum(both.times.buckets) == 2


def test_queries_saved_are_those_that_the_same_reads_cost_without_a_cache() -> None:
    assert Tally(reads=100, queries=30).queries_saved(Tally(reads=10, queries=20)) == 170


# ---------------------------------------------------------------------------- the repository


def test_a_feed_shows_the_posts_of_friends_newest_first(repository: Repository) -> None:
    posts = repository.feed.uncached(3, 0).posts
    assert {post.author for post in posts} == {2}
    assert [post.id for post in posts] == sorted((post.id for post in posts), reverse=True)
    everything = repository.feed.uncached(2, 0).posts + repository.feed.uncached(2, 1).posts
    assert len({post.id for post in everything}) == len(everything) > PAGE


WRITES: list[tuple[str, tuple[Any, ...]]] = [
    ("create_post", (2, "new")),
    ("edit_post", (1, "changed")),
    ("edit_profile", (2, "changed")),
    ("befriend", (1, 3)),
]


@pytest.mark.parametrize(("method", "args"), WRITES, ids=[method for method, _ in WRITES])
def test_after_a_write_every_cached_answer_is_what_the_database_says(
    cached: Cacheaside, method: str, args: tuple[Any, ...]
) -> None:
    reads = [("feed", (user, page)) for user in range(4) for page in range(3)]
    reads += [(what, (user,)) for what in ("profile", "friends") for user in range(4)]
    reads += [("post", (post,)) for post in range(1, 21)]
    for what, key in reads:
        cached.read(what, *key)
    cached.write(method, *args)
    direct = Uncached(cached.repository)
    for what, key in reads:
        answer, truth = cached.read(what, *key), direct.read(what, *key)
        if what == "feed":  # its version moves with every write, also with those it does not show
            answer, truth = answer.posts, truth.posts
        elif what == "friends":
            answer, truth = answer.ids, truth.ids
        assert answer == truth, (what, key)


@pytest.mark.parametrize(("method", "args"), WRITES, ids=[method for method, _ in WRITES])
def test_what_a_write_says_it_changed_has_at_least_its_version(
    repository: Repository, method: str, args: tuple[Any, ...]
) -> None:
    direct = Uncached(repository)
    direct.write("edit_profile", 0, "so that versions are not all zero")
    change = direct.write(method, *args)
    assert change.version == 2
    for what, ids in (("profile", change.profiles), ("friends", change.friends), ("post", change.posts)):
        for one in ids:
            assert direct.read(what, one).version == 2
    for user in change.feeds:
        assert direct.read("feed", user, 0).version == 2


def test_a_write_that_fails_changes_nothing(repository: Repository) -> None:
    with pytest.raises(LookupError):
        Uncached(repository).write("edit_post", 999, "nowhere")
    assert Uncached(repository).write("edit_profile", 0, "next").version == 1


# ---------------------------------------------------------------------------- staleness


class Shelf:
    """As much of a Redis client as the hand-made cache needs."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def set(self, key: str, value: bytes, ex: float) -> None:
        self.values[key] = value

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.values.pop(key, None)


def worker(repository: Repository, acknowledged: Acknowledged, what: str) -> Worker:
    """A worker without a process that reads one thing of user or post 2."""
    made = object.__new__(Worker)
    made.repository, made.acknowledged = repository, acknowledged
    made.choose_read = lambda: (what, 2, 0) if what == "feed" else (what, 2)  # type: ignore[method-assign]
    return made


def interrupted(access: Any, method: str, args: tuple[Any, ...], acknowledged: Acknowledged) -> None:
    """Let a write happen, and be acknowledged, between the next load and what is done with it."""
    repository = access.repository
    loading = repository._loading

    @contextlib.contextmanager
    def overtaken() -> Iterator[None]:
        del repository._loading
        with loading():
            yield
        acknowledged.note(access.write(method, *args))

    repository._loading = overtaken


OVERTAKING: list[tuple[str, str, tuple[Any, ...]]] = [
    ("profile", "edit_profile", (2, "new")),
    ("friends", "befriend", (2, 0)),
    ("post", "edit_post", (2, "new")),
    ("feed", "create_post", (0, "new")),
]


@pytest.mark.parametrize(("what", "method", "args"), OVERTAKING, ids=[what for what, *_ in OVERTAKING])
def test_a_stale_answer_of_the_hand_made_cache_is_seen(
    repository: Repository, what: str, method: str, args: tuple[Any, ...]
) -> None:
    acknowledged, tally = Acknowledged(4, 30), Tally()
    reader = worker(repository, acknowledged, what)
    access = Naive(repository, Shelf(), "naive")  # type: ignore[arg-type]
    interrupted(access, method, args, acknowledged)
    reader.read(access, tally)
    assert tally.stale == 0, "it began before the write was acknowledged"
    reader.read(access, tally)
    assert tally.stale == 1


@pytest.mark.parametrize(("what", "method", "args"), OVERTAKING, ids=[what for what, *_ in OVERTAKING])
def test_the_same_race_leaves_nothing_stale_in_cacheaside(
    cached: Cacheaside, what: str, method: str, args: tuple[Any, ...]
) -> None:
    acknowledged, tally = Acknowledged(4, 30), Tally()
    reader = worker(cached.repository, acknowledged, what)
    interrupted(cached, method, args, acknowledged)
    for _ in range(3):
        reader.read(cached, tally)
    assert (tally.reads, tally.stale) == (3, 0)
    assert cached.counts() == {"hits_l1": 1, "hits_l2": 0, "loads": 2}


def test_an_acknowledged_version_is_never_replaced_by_a_lower_one(repository: Repository) -> None:
    acknowledged, direct = Acknowledged(4, 30), Uncached(repository)
    earlier, later = direct.write("edit_profile", 1, "a"), direct.write("edit_profile", 1, "b")
    acknowledged.note(later)
    acknowledged.note(earlier)
    assert acknowledged.version("profile", 1) == later.version
    assert acknowledged.version("profile", 0) == 0


def test_a_worker_reads_what_is_popular_and_writes_as_much_as_it_was_told(tmp_path: Path) -> None:
    build(tmp_path / "network.db", TRIANGLE, posts=20)
    plan = Plan(tmp_path / "network.db", "redis://localhost:1", "p", (2, 0, 1, 3), 20, 0.0, 0.5)
    made = Worker(plan, 0, Acknowledged(4, 20_000))
    tally = made.run(Phase("uncached", 0.2), lambda tally: None)
    made.close()
    assert tally.reads + tally.writes > 20
    assert 0.2 < tally.writes / (tally.reads + tally.writes) < 0.8
    assert tally.stale == 0
    assert tally.hit_share is None


# ---------------------------------------------------------------------------- what is shown


def test_the_table_shows_both_phases_and_the_stale_reads() -> None:
    report = Report(["uncached", "cacheaside"], 1.0, "a heading", "a note")
    report.tallies["uncached"] = Tally(elapsed=1.0, reads=100, queries=200)
    report.tallies["cacheaside"] = Tally(elapsed=1.0, reads=400, queries=80, hits_l2=360, loads=40, stale=7)
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(report.final(), report.live(), report.verdict())
    text = " ".join(out.getvalue().split())
    assert "a heading" in text
    assert "400 (4.0x)" in text
    assert "hits in Redis (L2) - 360 (90.0%)" in text
    assert "database queries saved - 720 (90.0%)" in text
    assert "stale reads 0 7" in text
    assert "STALE: 7 of 500 reads" in text


def test_the_table_can_be_shown_before_anything_was_counted() -> None:
    console = Console(file=io.StringIO(), width=100)
    report = Report(["uncached", "naive"], 1.0, "a heading")
    console.print(report.live())
    report.tallies["uncached"] = report.tallies["naive"] = Tally()
    console.print(report.live(), report.line("naive"))
    assert report.stale == report.reads == 0


def test_the_quickstart_loads_again_only_after_the_write() -> None:
    done = subprocess.run(
        [sys.executable, graph.PROJECT / "examples" / "quickstart.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["loading post 1", "Hello", "Hello", "loading post 1", "Goodbye"]


@pytest.mark.parametrize(("load", "said"), [(1.9, False), (27.3, True)])
def test_a_busy_machine_is_told_beside_the_table(
    monkeypatch: pytest.MonkeyPatch, load: float, said: bool
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    options = argparse.Namespace(workers=2, writes=2, load_delay=0, direct=False)
    _, note = describe(options, TRIANGLE)
    assert note.startswith("Hits are of calls of cached functions")
    assert ("This machine is busy (load average 27, 2 cores)" in note) is said
