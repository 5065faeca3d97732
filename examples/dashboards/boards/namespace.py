"""The functions of one namespace."""

from __future__ import annotations

from typing import Final

from ..panels import Json, Query, dashboard, heat, lines, number, row, variable
from .asked import CACHE, GOOD_SHARE, HITS, JOB, PICK, PLAIN, quantile, share, total

SPACE: Final = f'{PICK}, cacheaside_namespace=~"$namespace"'
LOADS: Final = 'job=~"$job", cacheaside_namespace=~"$namespace"'
"""The histogram of loads and the recording rule over it do not know the cache."""
NAMESPACE: Final = variable(
    "namespace", "Namespace", f"label_values(cacheaside_requests_total{{{PICK}}}, cacheaside_namespace)"
)


def namespace() -> Json:
    loads = "cacheaside_load_duration_seconds"
    per = "cacheaside_namespace"
    return dashboard(
        "namespace",
        "namespace",
        "The functions of one namespace, or of some.",
        [JOB, CACHE, NAMESPACE],
        [
            number(
                "Hit ratio",
                HITS,
                Query(
                    share(
                        f"sum(namespace:cacheaside_hits:rate5m{{{SPACE}}})",
                        f"sum(namespace:cacheaside_requests:rate5m{{{SPACE}}})",
                    )
                ),
                unit="percentunit",
                steps=GOOD_SHARE,
                width=6,
            ),
            number(
                "Calls",
                "Calls a second, in all processes.",
                Query(total("cacheaside_requests_total", labels=SPACE)),
                unit="reqps",
                steps=PLAIN,
                width=6,
            ),
            number(
                "Slow loads",
                "99 of 100 loads take no longer, over five minutes; of the slowest namespace chosen.",
                Query(f"max(namespace:cacheaside_load_duration_seconds:p99_5m{{{LOADS}}})"),
                unit="s",
                steps=[(None, "green"), (1, "orange"), (5, "red")],
                width=6,
            ),
            number(
                "Results refused",
                "Share of loaded results that were invalidated before they could be stored.",
                Query(f"max(namespace:cacheaside_commits_refused:ratio5m{{{SPACE}}})"),
                unit="percentunit",
                steps=[(None, "green"), (0.2, "orange")],
                width=6,
            ),
            row("Answers"),
            lines(
                "Answers by tier and outcome",
                "l1 is a process's memory, l2 Redis, origin a load.",
                Query(
                    total("cacheaside_requests_total", "cacheaside_tier, cacheaside_outcome", SPACE),
                    "{{cacheaside_tier}} {{cacheaside_outcome}}",
                ),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Hit ratio",
                "Over five minutes, by namespace.",
                Query(f"namespace:cacheaside_hits:ratio5m{{{SPACE}}}", "{{cacheaside_namespace}}"),
                unit="percentunit",
                top=1,
            ),
            row("Loads"),
            heat(
                "Times of loads",
                "How many loads took how long. Two bands: some arguments are far dearer than others.",
                Query(total(f"{loads}_bucket", "le", LOADS), "{{le}}"),
                unit="s",
            ),
            lines(
                "Time of a load, 99 of 100",
                "By namespace.",
                Query(
                    quantile(0.99, loads, LOADS, by=", cacheaside_namespace"),
                    "{{cacheaside_namespace}}",
                ),
                unit="s",
            ),
            lines(
                "Loading saved",
                "Seconds of loading that hits have saved, in each second.",
                Query(total("cacheaside_load_saved_seconds_total", per, SPACE), "{{cacheaside_namespace}}"),
                unit="s",
            ),
            lines(
                "Waiting for somebody else's load",
                "Calls that waited, and how many were waiting at a time on average. Many: "
                "stale_while_revalidate or early_refresh would spare them.",
                Query(total("cacheaside_waits_total", labels=SPACE), "calls a second"),
                Query(total("cacheaside_waits_duration_seconds_total", labels=SPACE), "waiting at a time"),
                unit="short",
            ),
            row("Results that were not stored"),
            lines(
                "Stored and not stored",
                "refused: invalidated meanwhile. unproven: late tags that could not be shown to hold.",
                Query(total("cacheaside_commits_total", labels=SPACE), "stored"),
                Query(total("cacheaside_commits_refused_total", labels=SPACE), "refused"),
                Query(total("cacheaside_late_tags_unproven_total", labels=SPACE), "unproven"),
                unit="ops",
            ),
            lines(
                "Errors and damage",
                "Errors of the functions, steps that Redis did not serve, entries that were damaged.",
                Query(total("cacheaside_load_errors_total", labels=SPACE), "errors of functions"),
                Query(total("cacheaside_unavailable_total", labels=SPACE), "not served by Redis"),
                Query(total("cacheaside_bad_data_total", labels=SPACE), "damaged entries"),
                unit="ops",
            ),
        ],
    )
