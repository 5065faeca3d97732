"""Rate limits and messages."""

from __future__ import annotations

from typing import Final

from ..panels import Json, Query, dashboard, lines, number, row, variable
from .asked import CACHE, JOB, ONE, PICK, PLAIN, ZERO_IS_GOOD, share, total

LIMIT: Final = variable(
    "limit", "Limit", f"label_values(cacheaside_limiter_requests_total{{{PICK}}}, cacheaside_limit)"
)
TROUBLE: Final = 'cacheaside_outcome=~"failed|unparsable|dropped|dead|unavailable"'


def toolkit() -> Json:
    limited = f'{PICK}, cacheaside_limit=~"$limit"'
    return dashboard(
        "toolkit",
        "toolkit",
        "Rate limits and messages.",
        [JOB, CACHE, LIMIT],
        [
            row("Rate limits"),
            number(
                "Refused",
                "Share of requests that a limit refused, five minutes.",
                Query(
                    share(
                        f"sum(limit:cacheaside_denied:rate5m{{{limited}}})",
                        f"sum(limit:cacheaside_limited:rate5m{{{limited}}})",
                    )
                ),
                unit="percentunit",
                steps=[(None, "green"), (0.05, "orange"), (0.25, "red")],
                width=6,
            ),
            number(
                "Limited requests",
                "Requests a second that were held against a limit.",
                Query(total("cacheaside_limiter_requests_total", labels=limited)),
                unit="reqps",
                steps=PLAIN,
                width=6,
            ),
            number(
                "Messages",
                "Messages published a second, to channels and streams.",
                Query(
                    total(
                        "cacheaside_broker_messages_total", labels=f'{PICK}, cacheaside_outcome="published"'
                    )
                ),
                unit="ops",
                steps=PLAIN,
                width=6,
            ),
            number(
                "Messages in trouble",
                "Messages a second that Redis did not take, that were dropped or not readable, whose handler "
                "failed, or that are dead letters now.",
                Query(total("cacheaside_broker_messages_total", labels=f"{PICK}, {TROUBLE}")),
                unit="ops",
                steps=ZERO_IS_GOOD,
                width=6,
            ),
            lines(
                "Requests by limit and outcome",
                "What was let through, and what was refused.",
                Query(
                    total(
                        "cacheaside_limiter_requests_total", "cacheaside_limit, cacheaside_outcome", limited
                    ),
                    "{{cacheaside_limit}} {{cacheaside_outcome}}",
                ),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Refused, by limit",
                "Share of requests, five minutes. A limit that refuses most is too low, or under attack.",
                Query(f"limit:cacheaside_denied:ratio5m{{{limited}}}", "{{cacheaside_limit}}"),
                unit="percentunit",
                steps=[(None, "green"), (0.25, "orange")],
                top=1,
            ),
            row("Messages"),
            lines(
                "Messages by outcome",
                "In all processes. Outcomes overlap: what was delivered is handled next, or has failed.",
                Query(
                    total("cacheaside_broker_messages_total", "cacheaside_kind, cacheaside_outcome"),
                    "{{cacheaside_kind}} {{cacheaside_outcome}}",
                ),
                unit="ops",
            ),
            lines(
                "Messages delivered, by process",
                "One that gets none while the others do has lost its subscription, or nobody listens there.",
                Query(
                    total(
                        "cacheaside_broker_messages_total",
                        "instance, cacheaside_cache",
                        f'{PICK}, cacheaside_outcome="delivered"',
                    ),
                    ONE,
                ),
                unit="ops",
            ),
        ],
    )
