"""What the analysis of a history finds, and what it leaves alone: hand-made histories."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from cacheaside.check.analysis import Acknowledged, Findings, analyse
from cacheaside.check.history import (
    Ack,
    Commit,
    Ended,
    Failed,
    Get,
    History,
    HistoryError,
    Load,
    Record,
    Recorder,
    Strike,
)
from cacheaside.check.worker import hear

ROW = 7


def get(
    version: int,
    begin: float,
    *,
    process: str = "p0",
    end: float | None = None,
    tier: str = "l2",
    loading: float = 0.0,
    row: int = ROW,
) -> tuple[str, Record]:
    return process, Get(row, version, begin, begin + 0.1 if end is None else end, tier, loading, "t0")


def ack(
    version: int, at: float, *, process: str = "p1", done: bool = True, row: int = ROW
) -> tuple[str, Record]:
    return process, Ack(row, version, at, "tag", done, "t1")


def found(*history: tuple[str, Record], window: float = 0.0, **options: float) -> Findings:
    return analyse(history, window=window, **options)


def test_an_answer_older_than_what_was_acknowledged_before_the_call_is_stale() -> None:
    findings = found(ack(2, 10.0), get(1, 13.0))
    assert findings.stale == 1
    assert findings.oldest == pytest.approx(3.0)
    assert not findings.fine


@pytest.mark.parametrize("version", [2, 3])
def test_the_acknowledged_version_and_a_newer_one_are_fine(version: int) -> None:
    findings = found(ack(2, 10.0), get(version, 13.0))
    assert findings.stale == 0
    assert findings.fine


def test_a_call_that_began_before_the_acknowledgement_may_return_the_old_version() -> None:
    assert found(ack(2, 10.0), get(1, 9.999, end=12.0)).fine


def test_a_call_that_began_in_the_moment_of_the_acknowledgement_has_no_order() -> None:
    assert found(ack(2, 10.0), get(1, 10.0)).fine
    assert found(ack(2, 10.0), get(1, 10.000001)).stale == 1


def test_a_commit_alone_promises_nothing() -> None:
    assert found(("p1", Commit(ROW, 2, 10.0, "t1")), get(1, 13.0)).fine


def test_what_was_not_acknowledged_promises_nothing_and_is_counted() -> None:
    findings = found(ack(2, 10.0, done=False), get(1, 13.0))
    assert findings.fine
    assert (findings.acknowledged, findings.unacknowledged) == (0, 1)


def test_a_later_acknowledgement_covers_an_earlier_version_that_had_none() -> None:
    findings = found(ack(2, 10.0, done=False), ack(3, 11.0), get(2, 12.0))
    assert findings.stale == 1
    assert findings.oldest == pytest.approx(1.0)


def test_the_age_counts_from_the_first_acknowledgement_that_the_answer_ignores() -> None:
    findings = found(ack(2, 10.0), ack(3, 11.0), ack(4, 12.0), get(2, 15.0), get(1, 11.5))
    assert findings.stale == 2
    assert findings.oldest == pytest.approx(4.0)


def test_acknowledgements_that_come_in_the_wrong_order_do_not_lower_the_bound() -> None:
    acknowledged = Acknowledged([(12.0, 2), (10.0, 3), (11.0, 1)])
    assert acknowledged.least(10.0) == 0
    assert acknowledged.least(10.5) == 3
    assert acknowledged.least(13.0) == 3
    assert acknowledged.age(2, 13.0) == pytest.approx(3.0)
    assert acknowledged.age(3, 13.0) == 0.0


def test_rows_do_not_mix() -> None:
    assert found(ack(5, 10.0, row=1), get(1, 13.0, row=2)).fine


def test_the_order_of_lines_and_files_does_not_matter() -> None:
    assert found(get(1, 13.0), ack(2, 10.0)).stale == 1


# ---------------------------------------------------------------------------- L1


@pytest.mark.parametrize("tier", ["l1", "mixed"])
def test_l1_may_lag_behind_another_process_by_the_window_and_no_more(tier: str) -> None:
    history = ack(2, 10.0), get(1, 10.5, tier=tier), get(1, 11.0, tier=tier)
    within = found(*history, window=1.0)
    assert (within.behind, within.beyond, within.stale) == (2, 0, 0)
    assert within.oldest_behind == pytest.approx(1.0)
    assert within.fine
    beyond = found(*history, get(1, 11.001, tier=tier), window=1.0)
    assert (beyond.behind, beyond.beyond, beyond.stale) == (2, 1, 0)
    assert not beyond.fine


def test_l1_may_not_lag_behind_its_own_process() -> None:
    findings = found(ack(2, 10.0, process="p0"), get(1, 10.1, process="p0", tier="l1"), window=1.0)
    assert (findings.stale, findings.behind) == (1, 0)


def test_the_window_does_not_excuse_an_answer_from_l2() -> None:
    assert found(ack(2, 10.0), get(1, 10.1, tier="l2"), window=1.0).stale == 1


def test_a_lag_is_allowed_for_the_newer_of_two_versions_only() -> None:
    findings = found(ack(2, 10.0), ack(3, 12.0), get(2, 12.5, tier="l1"), get(1, 12.5, tier="l1"), window=1)
    assert (findings.behind, findings.beyond) == (1, 1)


# ---------------------------------------------------------------------------- one's own, and failovers


@pytest.mark.parametrize("tier", ["l1", "l2", "mixed"])
def test_no_answer_lags_behind_what_its_process_has_invalidated_acknowledged_or_not(tier: str) -> None:
    mine = ack(2, 10.0, process="p0", done=False)
    assert found(mine, get(1, 10.1, process="p0", tier=tier), window=1.0).stale == 1
    assert found(mine, get(1, 10.1, process="p1", tier=tier), window=1.0).fine


def lapse(at: float) -> tuple[str, Record]:
    return "faults", Strike(at, "failover", "another server is in force", "", True)


def test_what_a_server_has_lost_may_be_believed_for_a_moment_if_the_mode_allows_it() -> None:
    history = ack(2, 10.0), lapse(11.0), get(1, 10.6), get(1, 12.9), get(1, 12.9, tier="l1")
    allowed = found(*history, moment=2.0, window=1.0)
    assert (allowed.stale, allowed.beyond, allowed.excused) == (0, 0, 3)
    assert allowed.oldest_excused == pytest.approx(2.9)
    assert allowed.fine
    strict = found(*history, window=1.0)
    assert (strict.stale, strict.beyond, strict.excused) == (2, 1, 0)


def test_nothing_is_excused_before_a_failover_or_after_its_moment() -> None:
    assert found(ack(2, 10.0), lapse(11.0), get(1, 10.4), moment=2.0).stale == 1
    assert found(ack(2, 10.0), lapse(11.0), get(1, 13.1), moment=2.0).stale == 1
    assert found(ack(2, 10.0), lapse(11.0), get(1, 99.0), moment=math.inf).excused == 1


def test_what_a_process_has_invalidated_itself_it_may_not_believe_after_a_failover_either() -> None:
    mine = ack(2, 10.0, process="p0"), lapse(11.0), get(1, 12.0, process="p0")
    assert found(*mine, moment=2.0).stale == 1
    assert found(*mine, moment=math.inf).excused == 1


# ---------------------------------------------------------------------------- the rest


def test_calls_over_the_deadline_are_counted_without_their_own_loads() -> None:
    calls = get(1, 1.0, end=1.5), get(1, 2.0, end=2.5, loading=0.3), get(1, 3.0, end=3.2)
    findings = found(*calls, deadline=0.25)
    assert findings.late == 1
    assert not findings.fine
    assert findings.times.most == pytest.approx(0.5)
    assert findings.times.p50 == pytest.approx(0.2)


def test_loads_are_counted_for_each_version_except_of_shared_rows() -> None:
    loads = [("p0", Load(row, version, 1.0, 1.1, "t0")) for row, version in [(1, 1), (1, 1), (1, 2), (2, 1)]]
    findings = analyse(loads)
    assert findings.loads == 4
    assert findings.loads_per_generation == pytest.approx(4 / 3)
    assert findings.most_loads == 2
    assert analyse(loads, shared={1}).loads_per_generation == 1.0


def test_errors_leaks_and_strikes_are_counted() -> None:
    findings = found(
        ("p0", Failed(ROW, 1.0, "ValueError: no", "t0")),
        ("p0", Ended(2.0, {"hits_l1": 3}, ["1 sockets"])),
        ("p1", Ended(2.0, {"hits_l1": 4}, [])),
        ("faults", Strike(1.0, "eviction", "evicts", "k")),
    )
    assert findings.errors == {"ValueError: no": 1}
    assert findings.leaks == ["p0: 1 sockets"]
    assert findings.counts == {"hits_l1": 7}
    assert findings.strikes == {"eviction": 1}
    assert findings.ended == 2
    assert not findings.fine


def test_the_shortest_trace_tells_what_led_to_the_stale_answer() -> None:
    findings = found(
        ("p0", Load(ROW, 1, 1.0, 5.0, "t0")),
        ("p1", Commit(ROW, 2, 2.0, "t1")),
        ack(2, 3.0),
        ("faults", Strike(4.0, "eviction", "evicts", f"x:{ROW}")),
        ("faults", Strike(4.1, "eviction", "evicts", "x:8")),
        ("faults", Strike(4.2, "flushall", "everything is gone")),
        get(1, 6.0),
        ("p1", Commit(ROW, 3, 7.0, "t1")),
        get(1, 8.0),  # also stale, with a longer story
        ("p1", Load(8, 1, 1.5, 1.6, "t1")),  # of another row
    )
    assert findings.stale == 2
    assert [(step.at, step.who, step.what) for step in findings.trace] == [
        (0.0, "p0/t0", "reads row 7 from the table: version 1"),
        (1.0, "p1/t1", "has committed version 2 of row 7"),
        (2.0, "p1/t1", "version 2 of row 7, by tag: has been told that it is invalidated"),
        (3.0, "fault", "eviction: evicts x:7"),
        (3.2, "fault", "flushall: everything is gone"),
        (4.0, "p0/t0", "has loaded version 1 of row 7"),
        (5.0, "p0/t0", "asks for row 7"),
        (5.1, "p0/t0", "is answered from l2 with version 1 of row 7: STALE"),
    ]


def test_without_an_offence_there_is_no_trace() -> None:
    assert found(ack(2, 10.0), get(2, 13.0)).trace == []


# ---------------------------------------------------------------------------- files


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    records: list[Record] = [
        Get(1, 2, 3.0, 4.0, "l1", 0.5, "a1"),
        Load(1, 2, 3.0, 4.0, "t0"),
        Commit(1, 2, 3.0, "t0"),
        Ack(1, 2, 3.0, "late tag", True, "t0"),
        Failed(1, 2.0, "E: x\ny", "t0"),
        Strike(1.0, "proxy", "a black hole"),
        Strike(1.0, "fail-back", "promoted", "", True),
        Ended(9.0, {"loads": 1.5}, ["thread x"]),
    ]
    for process in ("p1", "p0"):
        recorder = Recorder(tmp_path, process)
        for record in records:
            recorder.add(record)
        recorder.close()
    assert list(History(tmp_path)) == [(p, r) for p in ("p0", "p1") for r in records]


def test_what_others_are_judged_by_is_on_disk_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "p0")
    recorder.add(Load(1, 2, 3.0, 4.0, "t0"))
    assert list(History(tmp_path)) == []
    recorder.add_now(Commit(1, 2, 3.0, "t0"))
    assert len(list(History(tmp_path))) == 2
    recorder.close()


def test_the_torn_last_line_of_a_killed_process_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "p0.jsonl").write_bytes(b'["commit",1,2,3.0,"t0"]\n["commit",1,3')
    (tmp_path / "p1.jsonl").write_bytes(b'["commit",1,4,3.0,"t0"]\n')
    assert [r.version for _, r in History(tmp_path) if isinstance(r, Commit)] == [2, 4]


def test_a_line_that_is_no_record_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "p0.jsonl").write_bytes(b'["commit",1,2,3.0,"t0"]\n["what"]\n["commit",1,2,3.0,"t0"]\n')
    with pytest.raises(HistoryError, match=r"p0\.jsonl, line 2"):
        list(History(tmp_path))


def test_what_fails_in_the_background_is_found_in_the_history(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "p0")
    loggers = [logging.getLogger(name) for name in ("cacheaside", "asyncio")]
    kept = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    try:
        hear(recorder)
        loggers[0].warning("what a fault brings about")
        loggers[0].error("an invalidation was not acknowledged")
        try:
            raise ZeroDivisionError("in a thread")
        except ZeroDivisionError:
            loggers[0].exception("a refresh failed")
    finally:
        for logger, handlers, propagate in kept:
            logger.handlers, logger.propagate = handlers, propagate
    recorder.close()
    findings = analyse(History(tmp_path))
    assert findings.errors == {"a refresh failed: ZeroDivisionError: in a thread": 1}
