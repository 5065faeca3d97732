"""What boards ask for alike: their variables, sums of rates, shares, quantiles."""

from __future__ import annotations

from typing import Final

from ..panels import variable

PICK: Final = 'job=~"$job", cacheaside_cache=~"$cache"'
ONE: Final = "{{instance}} {{cacheaside_cache}}"
HITS: Final = "Answers from L1 or from Redis, stale ones too, out of all but those in bypass(). Five minutes."
GOOD_SHARE: Final = [(None, "red"), (0.5, "orange"), (0.8, "green")]
ZERO_IS_GOOD: Final = [(None, "green"), (1, "red")]
PLAIN: Final = [(None, "blue")]

JOB: Final = variable("job", "Service", "label_values(cacheaside_requests_total, job)")
CACHE: Final = variable(
    "cache", "Cache", 'label_values(cacheaside_requests_total{job=~"$job"}, cacheaside_cache)'
)


def rate(metric: str, labels: str = PICK) -> str:
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def total(metric: str, by: str = "", labels: str = PICK) -> str:
    """The rate of a counter, added up, by labels if there are any."""
    return f"sum{f' by ({by})' if by else ''} ({rate(metric, labels)})"


def share(part: str, whole: str) -> str:
    """Of the sums of two vectors; nothing where there is no whole."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, metric: str, labels: str, by: str = "") -> str:
    return f"histogram_quantile({q}, {total(f'{metric}_bucket', f'le{by}', labels)})"
