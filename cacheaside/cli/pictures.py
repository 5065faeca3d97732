"""Spans as files: the format of Chrome's tracing, which Perfetto reads too, and a waterfall in SVG."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from cacheaside.cli.output import duration
from cacheaside.cli.recorder import Recorded

WIDTH: Final = 1000
NAMES: Final = 300
"""Pixels for the names, at the left of the bars."""
BAR: Final = 18
ROW: Final = 24
TOP: Final = 56
INDENT: Final = 14
TICKS: Final = 5
COLOURS: Final = {
    "cacheaside.read": "#2f6fb3",
    "cacheaside.load": "#c9781f",
    "cacheaside.wait": "#8a8f98",
    "cacheaside.commit": "#3c8f5a",
    "cacheaside.invalidate": "#8e4ec6",
}
OTHER: Final = "#5b7083"
FAILED: Final = "#c62828"


def chrome(spans: Sequence[Recorded]) -> str:
    """The JSON of chrome://tracing and ui.perfetto.dev. A lane there must not hold spans that overlap without
    one being inside of the other, so what runs side by side gets a lane of its own."""
    events: list[dict[str, object]] = [
        {"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": "cacheaside"}}
    ]
    zero = min((span.start for span in spans), default=0)
    for span, lane in zip(spans, lanes(spans), strict=True):
        event: dict[str, object] = {
            "ph": "X",
            "pid": 1,
            "tid": lane,
            "name": span.name,
            "cat": "cacheaside" if span.name.startswith("cacheaside.") else "other",
            "ts": (span.start - zero) / 1000,
            "dur": (span.end - span.start) / 1000,
            "args": {**span.attributes, **({"error": span.error} if span.error else {})},
        }
        events.append(event)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1, default=str)


def lanes(spans: Sequence[Recorded]) -> Iterator[int]:
    """The lane of each span, in the order of their beginnings."""
    open_ends: list[list[int]] = []
    for span in spans:
        for ends in open_ends:
            while ends and ends[-1] <= span.start:
                ends.pop()
        lane = next((n for n, ends in enumerate(open_ends) if not ends or ends[-1] >= span.end), None)
        if lane is None:
            lane = len(open_ends)
            open_ends.append([])
        open_ends[lane].append(span.end)
        yield lane


def in_order(spans: Sequence[Recorded]) -> list[tuple[Recorded, int]]:
    """Each span after its parent, with its depth; what was begun behind comes last."""
    known = {span.id for span in spans}
    children: dict[str, list[Recorded]] = {}
    for span in spans:
        children.setdefault(span.parent if span.parent in known else "", []).append(span)
    ordered: list[tuple[Recorded, int]] = []
    waiting = [(span, 0) for span in reversed(children.get("", []))]
    while waiting:
        span, depth = waiting.pop()
        ordered.append((span, depth))
        waiting += [(child, depth + 1) for child in reversed(children.get(span.id, []))]
    return ordered


def waterfall(spans: Sequence[Recorded], title: str) -> str:
    """A picture of all spans, one below the other, that needs no script and nothing from elsewhere."""
    rows = in_order(spans)
    zero = min((span.start for span in spans), default=0)
    whole = max((span.end for span in spans), default=1) - zero or 1
    height = TOP + ROW * len(rows) + 16
    scale = (WIDTH - NAMES - 90) / whole
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15" font-weight="600" fill="#1f2933">{escape(title)}</text>',
    ]
    for tick in range(TICKS + 1):
        x = NAMES + scale * whole * tick / TICKS
        parts.append(
            f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height - 12}" stroke="#e1e6eb"/>'
            f'<text x="{x:.1f}" y="{TOP - 14}" text-anchor="middle" fill="#66727f">'
            f"{escape(duration(whole * tick / TICKS / 1e9))}</text>"
        )
    for row, (span, depth) in enumerate(rows):
        parts.append(bar(span, depth, TOP + ROW * row, zero, scale))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def bar(span: Recorded, depth: int, y: int, zero: int, scale: float) -> str:
    x, width = NAMES + (span.start - zero) * scale, max(1.5, (span.end - span.start) * scale)
    colour = FAILED if span.error else COLOURS.get(span.name, OTHER)
    name = span.name.removeprefix("cacheaside.")
    namespace = span.attributes.get("cacheaside.namespace")
    words = [name, *([str(namespace)] if namespace else [])]
    label = "  ".join(words)
    room = int((NAMES - 24 - depth * INDENT) / 6.4)
    label = label if len(label) <= room else f"{label[: max(1, room - 1)]}…"
    took = duration((span.end - span.start) / 1e9)
    result = f"{took} {span.error or span.attributes.get('cacheaside.outcome', '')}".strip()
    told = [f"{key} = {value}" for key, value in span.attributes.items()]
    hint = "\n".join([f"{span.name}: {took}", *told, *([f"error: {span.error}"] if span.error else [])])
    return (
        f"<g><title>{escape(hint)}</title>"
        f'<text x="{12 + depth * INDENT}" y="{y + 13}" fill="#1f2933">{escape(label)}</text>'
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" fill="{colour}"/>'
        f'<text x="{x + width + 6:.1f}" y="{y + 13}" fill="#465362">{escape(result)}</text>'
        "</g>"
    )
