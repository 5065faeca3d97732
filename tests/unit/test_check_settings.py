"""What may be asked of a check, and what is refused with a word about what to do."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from cacheaside import ConfigError, cli
from cacheaside.check.analysis import Findings
from cacheaside.check.faults import FAULTS
from cacheaside.check.report import as_json, lines, markdown, verdict, with_table
from cacheaside.check.rows import all_rows
from cacheaside.check.run import Result
from cacheaside.check.settings import MODES, Settings
from cacheaside.check.subject import KINDS, CacheasideSubject, Source
from cacheaside.check.table import SqliteTable, SqlTable, Table, open_table

URL = "redis://localhost:1/0"


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"mode": "magic"}, "mode must be one of cacheaside, naive, lock, setindex, counter, not 'magic'"),
        ({"server": "memcached"}, "server must be one of redis, valkey, not 'memcached'"),
        ({"faults": ("flood",)}, "fault must be one of .*eviction.*, not 'flood'"),
        ({"failover": "maybe"}, "failover must be one of auto, strict, replay, trust, not 'maybe'"),
        ({"seconds": 0}, "seconds must be more than 0"),
        ({"writes": 0}, "writes must be more than 0"),
        ({"l1_window": -1}, "l1_window must be 0 or more"),
        ({"deadline": 0}, "deadline must be more than 0"),
        ({"processes": 0}, "processes must be at least 1, not 0"),
        ({"threads": -1}, "threads must be at least 0, not -1"),
        ({"tasks": -1}, "tasks must be at least 0"),
        ({"keys": 0}, "keys must be at least 1"),
        ({"threads": 0, "tasks": 0}, "nobody to read"),
        ({"url": URL, "server": "redis"}, "give it or a URL, not both"),
        ({"url": URL, "faults": ("flushall",)}, "flushall needs a server of its own.*leave the URL out"),
        ({"url": "http://x"}, "begins with one of"),
        ({"url": "embedded://"}, "begins with one of"),
        ({"url": "rediss://x", "faults": ("proxy",)}, "goes between the cache and redis://, not rediss://"),
        ({"url": "redis+cluster://x", "mode": "naive"}, "mode naive works with one server"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Settings(**wrong).checked()


def test_settings_that_make_sense_are_not() -> None:
    for name, fault in FAULTS.items():
        Settings(faults=(name,), server="redis").checked()
        if fault.needs in ("", "proxy"):
            Settings(faults=(name,), url=URL).checked()
    for mode in MODES:
        Settings(mode=mode).checked()


def test_a_mode_that_is_right_without_a_fault_gets_it() -> None:
    assert Settings(mode="counter").checked().faults == ("eviction",)
    assert Settings(mode="counter", faults=("flushall",)).checked().faults == ("flushall",)
    assert Settings(mode="naive").checked().faults == ()


def test_all_rows_are_every_fault_and_none_on_each_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheaside.check.rows.available", lambda: {"redis": "a", "valkey": "b"})
    rows = list(all_rows(Settings(seconds=3)))
    assert {(row.server, row.faults) for row in rows} >= {
        (server, faults)
        for server in ("redis", "valkey")
        for faults in ((), *((name,) for name in FAULTS))
    }  # fmt: skip
    assert {row.seconds for row in rows} == {3}
    for row in rows:
        by_mode = row.faults in (("sentinel-failover",), ("fail-back",))
        same = [other.failover for other in rows if (other.server, other.faults) == (row.server, row.faults)]
        assert same == (["strict", "auto", "trust"] if by_mode else [None])
    assert {row.server for row in all_rows(Settings(server="valkey"))} == {"valkey"}


@pytest.mark.parametrize("wrong", [{"url": URL}, {"faults": ("eviction",)}, {"mode": "naive"}])
def test_all_rows_bring_their_own_servers_and_faults(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="leave out URL, fault and mode"):
        list(all_rows(Settings(**wrong)))


def test_all_rows_need_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheaside.check.rows.available", dict)
    with pytest.raises(ConfigError, match="install redis-server"):
        list(all_rows(Settings()))


# ---------------------------------------------------------------------------- the command line


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cacheaside", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("check", "--mode", "magic"), "mode must be one of"),
        (("check", "redis://:pa55@localhost:1/0"), "localhost:1/0 does not answer"),
        (("check", "redis://:pa55@localhost:1/0?what=1"), "unknown option 'what'"),
        (("check", "--seconds", "soon"), "--seconds"),
        (("check", "--database", "nonsense://x"), "--database is no URL that SQLAlchemy can open"),
        (("nothing",), "nothing"),
    ],
)
def test_what_cannot_be_done_is_said_on_standard_error_with_exit_code_2(
    arguments: tuple[str, ...],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert complaint in told.err
    assert "pa55" not in told.err + told.out
    assert "Traceback" not in told.err


def test_without_typer_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    assert run_main(monkeypatch, "check") == 2
    assert "pip install 'cacheaside[cli]'" in capsys.readouterr().err


def test_without_sqlalchemy_a_database_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigError, match=r"pip install 'cacheaside\[sqlalchemy\]'"):
        open_table("postgresql://x/y", "t")


# ---------------------------------------------------------------------------- the table


@pytest.fixture(params=["file", "sqlalchemy"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    path = tmp_path / "rows.db"
    made = open_table(str(path) if request.param == "file" else f"sqlite:///{path}", "some_rows")
    assert type(made) is (SqliteTable if request.param == "file" else SqlTable)
    return made


def test_each_write_gives_one_row_its_next_version(table: Table) -> None:
    table.create(3)
    assert [table.write(1), table.write(1), table.write(2)] == [2, 3, 2]
    assert [table.read(id).version for id in range(3)] == [1, 3, 2]
    table.drop()


def test_some_rows_are_large_and_the_others_small(table: Table) -> None:
    table.create(6)
    sizes = [len(table.read(id).text) for id in range(6)]
    assert max(sizes) > 8192
    assert min(sizes) == 0
    table.drop()


# ---------------------------------------------------------------------------- the rows under test


class NoSource(Source):
    def __init__(self) -> None: ...


async def test_rows_of_one_batch_share_their_kind_and_their_tier() -> None:
    subject = CacheasideSubject(NoSource(), 60, URL, l1_window=1)
    rng = random.Random(1)
    for row in range(60):
        rows = subject.choose(row, rng)
        assert row in rows
        assert {(one % len(KINDS), subject.near(one)) for one in rows} == {
            (row % len(KINDS), subject.near(row))
        }
        assert len(rows) == 1 or KINDS[row % len(KINDS)] == "batch"
    await subject.aclose()


async def test_a_write_names_the_key_or_a_tag_of_the_entry_it_drops() -> None:
    subject = CacheasideSubject(NoSource(), 60, URL, l1_window=1)
    rng = random.Random(1)
    ways: set[str] = set()
    for row in list(range(60)) * 4:
        function = subject._sync[KINDS[row % len(KINDS)], subject.near(row)]
        way = subject.way(row, rng)
        ways.add(way.name)
        if KINDS[row % len(KINDS)] != "batch":
            late = {f"owner:{row % 7}"}
            assert set(way.keys) <= {function.key(row)}
            assert set(way.tags) <= {*function.tags(row), *late}
        assert way.keys or way.tags
    assert ways == {"key", "tag", "tags", "late tag", "hold", "key of a batch", "tag of a batch"}
    await subject.aclose()


# ---------------------------------------------------------------------------- reports


def a_result(**findings: Any) -> Result:
    settings = Settings(server="redis", faults=("eviction",), database="postgresql://me:s3cret@db/x")
    return Result(settings, "Redis 7.0.15", 10.0, Findings(**findings))


def test_a_report_says_what_is_wrong_and_keeps_secrets() -> None:
    result = a_result(stale=3, leaks=["x"])
    assert verdict(result) == "FAILED: 3 stale answers, 1 things left open"
    assert result.code == 1
    assert "s3cret" not in as_json(result)


def test_a_table_has_a_cell_for_each_heading() -> None:
    lines = markdown([a_result(gets=1234), a_result()]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "`--server redis --fault eviction`" in lines[2]
    assert "1,234" in lines[2]


def test_a_table_takes_the_place_of_the_one_that_a_page_has(tmp_path: Path) -> None:
    old, new = markdown([a_result(), a_result()]), markdown([a_result(gets=1234)])
    assert with_table(f"before\n\n{old}\n\nafter\n", new) == f"before\n\n{new}\n\nafter\n"
    assert with_table(f"before\n\n{old}", new) == f"before\n\n{new}\n"
    with pytest.raises(ConfigError, match="has no table"):
        with_table("| another | table |\n", new)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--into", "PAGE"), "give --all as well"),
        (("--all", "--into", "NOWHERE"), "a file that can be read"),
        (("--all", "--into", "PAGE"), "the page has no table"),
    ],
)
def test_a_page_for_the_table_is_looked_at_before_the_checks(
    arguments: tuple[str, ...],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "PAGE").write_text("no table here")
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "check", *arguments) == 2
    assert complaint in capsys.readouterr().err


def test_what_a_failover_lost_is_told_though_it_is_allowed() -> None:
    result = a_result(excused=3, oldest_excused=0.5)
    assert verdict(result) == "fine: a server was believed that had lost something in a failover, 3 times"
    assert "| 3, 500 ms at most |" in markdown([result])


def test_the_report_speaks_of_a_deadline_and_of_failovers_where_there_are_any() -> None:
    plain = {name: (count, word) for name, count, word in lines(a_result(gets=1234, tiers={"l2": 1234}))}
    assert plain["answers"] == ("1,234", "1,234 l2")
    assert "over the deadline" not in plain
    assert "lost in a failover" not in plain
    settings = Settings(deadline=0.5, failover="trust")
    result = Result(settings, "Redis 7.0.15", 10.0, Findings(late=2, excused=3, oldest_excused=1.5))
    told = {name: (count, word) for name, count, word in lines(result)}
    assert told["over the deadline"] == ("2", "of 500 ms")
    assert told["lost in a failover"] == ("3", "by 1.50 s at most; allowed by failover=trust")
