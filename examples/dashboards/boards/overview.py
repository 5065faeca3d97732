"""How much caches answer, what that saves, and whether anything is wrong."""

from __future__ import annotations

from ..panels import Json, Query, dashboard, lines, number, row
from .asked import CACHE, GOOD_SHARE, HITS, JOB, ONE, PICK, PLAIN, ZERO_IS_GOOD, quantile, share, total


def overview() -> Json:
    loads = "cacheaside_load_duration_seconds"
    http = "http_server_request_duration_seconds"
    return dashboard(
        "overview",
        "overview",
        "How much the caches of a service answer, what that saves, and whether anything is wrong.",
        [JOB, CACHE],
        [
            number(
                "Hit ratio",
                HITS,
                Query(
                    share(
                        f"sum(namespace:cacheaside_hits:rate5m{{{PICK}}})",
                        f"sum(namespace:cacheaside_requests:rate5m{{{PICK}}})",
                    )
                ),
                unit="percentunit",
                steps=GOOD_SHARE,
            ),
            number(
                "Calls",
                "Calls of cached functions a second, in all processes.",
                Query(total("cacheaside_requests_total")),
                unit="reqps",
                steps=PLAIN,
            ),
            number(
                "Loading saved",
                "Seconds of loading that hits have saved, in each second: 3 s is three busy workers less.",
                Query(total("cacheaside_load_saved_seconds_total")),
                unit="s",
                steps=PLAIN,
            ),
            number(
                "L1 not served",
                "Processes that may not believe their own memory now, or run without it. See Coherence.",
                Query(f"sum(1 - cacheaside_coherence_coherent{{{PICK}}})"),
                unit="none",
                steps=ZERO_IS_GOOD,
            ),
            number(
                "Breakers not closed",
                "Processes that do without Redis now: every call loads for itself.",
                Query(f"sum(cacheaside_breaker_state{{{PICK}}} > bool 0)"),
                unit="none",
                steps=ZERO_IS_GOOD,
            ),
            number(
                "Invalidations owed",
                "Keys and tags that Redis has not confirmed; other processes may serve what they drop.",
                Query(f"sum(cacheaside_journal_size{{{PICK}}})"),
                unit="none",
                steps=ZERO_IS_GOOD,
            ),
            row("Answers"),
            lines(
                "Answers by tier and outcome",
                "l1 is a process's memory, l2 Redis, origin a load: own (miss), another's (coalesced), or "
                "one that stored nothing (alone).",
                Query(
                    total("cacheaside_requests_total", "cacheaside_tier, cacheaside_outcome"),
                    "{{cacheaside_tier}} {{cacheaside_outcome}}",
                ),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Hit ratio by namespace",
                "Over five minutes. One that falls alone is invalidated more than it is read.",
                Query(f"namespace:cacheaside_hits:ratio5m{{{PICK}}}", "{{cacheaside_namespace}}"),
                unit="percentunit",
                top=1,
            ),
            row("What it costs and saves"),
            lines(
                "Time of a load",
                "How long the decorated functions take. What is slow here is what a miss costs.",
                Query(quantile(0.5, loads, 'job=~"$job"'), "median"),
                Query(quantile(0.99, loads, 'job=~"$job"'), "99 of 100"),
                unit="s",
            ),
            lines(
                "Loading, and loading saved",
                "Seconds in each second. Far more should be saved than spent.",
                Query(total(f"{loads}_sum", labels='job=~"$job"'), "spent"),
                Query(total("cacheaside_load_saved_seconds_total"), "saved"),
                unit="s",
            ),
            lines(
                "What callers wait",
                "Time of HTTP requests, as FastAPI measures it, or the instrumentation of another framework.",
                Query(quantile(0.5, http, 'job=~"$job"'), "median"),
                Query(quantile(0.99, http, 'job=~"$job"'), "99 of 100"),
                unit="s",
            ),
            lines(
                "L1 in memory",
                "Bytes that each process holds. At max_bytes entries are evicted: see Evictions.",
                Query(f"cacheaside_entry_bytes{{{PICK}}}", ONE),
                unit="bytes",
            ),
            row("What goes wrong"),
            lines(
                "Results refused",
                "Share of loaded results that were not stored, because something invalidated them meanwhile.",
                Query(f"namespace:cacheaside_commits_refused:ratio5m{{{PICK}}}", "{{cacheaside_namespace}}"),
                unit="percentunit",
                steps=[(None, "green"), (0.2, "orange")],
                top=1,
            ),
            lines(
                "Errors and damage",
                "Errors of decorated functions, steps that Redis did not serve, entries that were damaged.",
                Query(total("cacheaside_load_errors_total"), "errors of functions"),
                Query(total("cacheaside_unavailable_total"), "not served by Redis"),
                Query(total("cacheaside_bad_data_total"), "damaged entries"),
                unit="ops",
            ),
            lines(
                "Entries in L1",
                "By process.",
                Query(f"cacheaside_entry_count{{{PICK}}}", ONE),
                unit="short",
            ),
            lines(
                "Evictions",
                "Entries that made room in L1 for others, by process. Many: L1 is too small.",
                Query(total("cacheaside_evictions_total", "instance, cacheaside_cache"), ONE),
                unit="ops",
            ),
        ],
    )
