"""Whether processes agree, and how each stands with Redis."""

from __future__ import annotations

from ..panels import Json, Query, dashboard, lines, row, states
from .asked import CACHE, JOB, ONE, PICK, share, total


def coherence() -> Json:
    told = "cacheaside_propagation"
    return dashboard(
        "coherence",
        "coherence",
        "Whether every process has heard of every invalidation, and how each stands with Redis.",
        [JOB, CACHE],
        [
            row("What processes hear of each other"),
            states(
                "L1 served",
                "Whether a process may believe its own memory. Without L1 it may not, and need not.",
                Query(f"cacheaside_coherence_coherent{{{PICK}}}", ONE),
                {0: ("not served", "red"), 1: ("served", "green")},
            ),
            lines(
                "Age of the newest heartbeat",
                "How far a process's memory may lag. Above l1_window it is not served.",
                Query(f"cacheaside_coherence_horizon_age_seconds{{{PICK}}}", ONE),
                unit="s",
                steps=[(None, "green"), (1, "orange")],
            ),
            lines(
                "Lag of the last heartbeat",
                "From its sending until it came back, on the way that announcements of invalidations take.",
                Query(f"cacheaside_propagation_lag_seconds{{{PICK}}}", ONE),
                unit="s",
                steps=[(None, "green"), (1, "orange")],
            ),
            lines(
                "Lag on average",
                "Of all heartbeats of a moment, by process.",
                Query(
                    share(
                        total(f"{told}_duration_seconds_total", "instance, cacheaside_cache"),
                        total(f"{told}_messages_total", "instance, cacheaside_cache"),
                    ),
                    ONE,
                ),
                unit="s",
                steps=[(None, "green"), (1, "orange")],
            ),
            lines(
                "Heartbeats that came back",
                "A process that hears fewer than the others is not connected, or too busy to listen.",
                Query(total(f"{told}_messages_total", "instance, cacheaside_cache"), ONE),
                unit="ops",
            ),
            lines(
                "Subscriptions",
                "How often the channel was subscribed. A line that climbs is a connection that breaks again "
                "and again.",
                Query(f"cacheaside_coherence_epoch{{{PICK}}}", ONE),
                unit="short",
            ),
            row("Invalidations"),
            lines(
                "Invalidations",
                "Keys and tags invalidated, by the process that did it.",
                Query(total("cacheaside_invalidations_total", "instance, cacheaside_cache"), ONE),
                unit="ops",
                width=8,
            ),
            lines(
                "Not acknowledged",
                "Invalidations that Redis did not confirm in time. They are kept, and sent again.",
                Query(
                    total("cacheaside_invalidations_unacknowledged_total", "instance, cacheaside_cache"), ONE
                ),
                unit="ops",
                width=8,
            ),
            lines(
                "Owed to Redis",
                "Keys, tags and patterns in the journal. They die with their process: do not restart it "
                "while there are any.",
                Query(f"cacheaside_journal_size{{{PICK}}}", ONE),
                unit="short",
                steps=[(None, "green"), (1, "red")],
                width=8,
            ),
            row("Redis, as each process sees it"),
            states(
                "Breaker",
                "Open: Redis is away, and calls load for themselves. Half-open: it answers, and is told "
                "what it has missed.",
                Query(f"cacheaside_breaker_state{{{PICK}}}", ONE),
                {0: ("closed", "green"), 1: ("half-open", "orange"), 2: ("open", "red")},
                width=8,
            ),
            lines(
                "Outages",
                "How often a process found that Redis was away.",
                Query(total("cacheaside_breaker_opened_total", "instance, cacheaside_cache"), ONE),
                unit="ops",
                width=8,
            ),
            lines(
                "Loads under way",
                "Many at once: a slow source, or everybody loading for himself while Redis is away.",
                Query(f"cacheaside_flights{{{PICK}}}", ONE),
                unit="short",
                width=8,
            ),
        ],
    )
