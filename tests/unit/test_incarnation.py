"""What is believed of a Redis that is another one than before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cacheaside.errors import ConfigError
from cacheaside.facts import ServerFacts
from cacheaside.incarnation import CHAIN, Lineage, Verdict, check_mode

A = ServerFacts(run_id="A", replid="a", role="master", uptime=1000)
PROMOTED = ServerFacts(run_id="B", replid="b", replid2="a", role="master", uptime=1000)
RESTARTED = ServerFacts(run_id="B", replid="b", replid2="a", role="master", uptime=3)
OTHER = ServerFacts(run_id="C", replid="c", role="master", uptime=1000)
WITH_REPLICA = replace(A, replid="a2")
UNKNOWN = ServerFacts()
LOST = replace(UNKNOWN, again=True)


@pytest.mark.parametrize(
    ("mode", "facts", "verdict"),
    [
        ("auto", A, Verdict.SAME),
        ("auto", replace(A, again=True), Verdict.SAME),
        ("auto", PROMOTED, Verdict.REPLAY),
        ("auto", RESTARTED, Verdict.COLD),
        ("auto", OTHER, Verdict.COLD),
        ("auto", WITH_REPLICA, Verdict.REPLAY),
        ("auto", UNKNOWN, Verdict.SAME),
        ("auto", LOST, Verdict.REPLAY),
        ("strict", A, Verdict.SAME),
        ("strict", PROMOTED, Verdict.COLD),
        ("strict", WITH_REPLICA, Verdict.COLD),
        ("strict", LOST, Verdict.REPLAY),
        ("replay", PROMOTED, Verdict.REPLAY),
        ("replay", RESTARTED, Verdict.REPLAY),
        ("replay", OTHER, Verdict.REPLAY),
        ("trust", PROMOTED, Verdict.TRUST),
        ("trust", OTHER, Verdict.TRUST),
        ("trust", LOST, Verdict.SAME),
    ],
)
def test_what_another_server_means(mode: str, facts: ServerFacts, verdict: Verdict) -> None:
    """The one before was last heard of ten seconds ago."""
    lineage = Lineage(check_mode(mode))
    assert lineage.meet(A, 1e9) is Verdict.FIRST
    assert lineage.meet(facts, 10) is verdict


def test_a_replica_that_was_started_since_may_have_been_a_restart() -> None:
    """A primary restarted from a snapshot names itself as its predecessor, as a promoted one does.

    One that says it is a second old may have been started a moment ago.
    """
    for uptime, silence, verdict in [
        (1000, 1001, Verdict.COLD),
        (1, 0.2, Verdict.COLD),
        (2, 0.2, Verdict.REPLAY),
    ]:
        lineage = Lineage("auto")
        lineage.meet(A, 0)
        assert lineage.meet(replace(PROMOTED, uptime=uptime), silence) is verdict


def test_predecessors_are_believed_in_a_row_until_one_is_cold() -> None:
    lineage = Lineage("auto")
    third = ServerFacts(run_id="A", replid="c", replid2="b", uptime=2000)
    lineage.meet(A, 0)
    lineage.meet(PROMOTED, 1)
    lineage.meet(third, 1)
    assert lineage.older == (PROMOTED.incarnation, A.incarnation)
    lineage.meet(OTHER, 1)
    assert lineage.older == ()
    assert lineage.decisions == {"cold": 1, "replay": 2, "trust": 0}


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_a_server_that_was_left_and_comes_back_has_missed_what_was_confirmed_elsewhere(mode: str) -> None:
    """A sentinel that is mistaken leads to another primary and back; the first was never demoted."""
    lineage = Lineage(check_mode(mode))
    lineage.meet(A, 0)
    assert lineage.meet(OTHER, 1) is Verdict.COLD
    assert lineage.meet(A, 1) is Verdict.REPLAY
    assert lineage.older == ()
    assert lineage.meet(OTHER, 1) is Verdict.REPLAY
    assert lineage.meet(RESTARTED, 1) is Verdict.COLD


def test_the_row_is_bounded() -> None:
    lineage = Lineage("replay")
    for n in range(30):
        lineage.meet(ServerFacts(run_id=str(n)), 0)
    assert len(lineage.older) == CHAIN


def test_where_info_is_forbidden_later_what_was_known_stays_known() -> None:
    lineage = Lineage("auto")
    lineage.meet(A, 0)
    lineage.meet(LOST, 1)
    assert lineage.known == A
    assert lineage.meet(A, 1) is Verdict.SAME


def test_where_info_is_allowed_later_what_was_stored_without_is_cold() -> None:
    lineage = Lineage("auto")
    lineage.meet(UNKNOWN, 0)
    assert lineage.meet(A, 1) is Verdict.COLD


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="failover must be one of 'auto', 'strict', 'replay', 'trust', not 'x'"
    ):
        check_mode("x")
