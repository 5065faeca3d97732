"""What a Grafana dashboard is made of: panels, variables, and the grid that they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

SCHEMA: Final = 42
"""Of Grafana 13."""
COLUMNS: Final = 24
LIST: Final = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]
Steps = Sequence[tuple[float | None, str]]
"""Colours, each from a value on; the first from None."""


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


def panel(kind: str, title: str, text: str, queries: Sequence[Query], width: int, height: int) -> Json:
    """What all kinds have; ``text`` says what is seen and what would be wrong."""
    targets = [
        {
            "refId": "ABCDEFGH"[n],
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "range": True,
        }
        for n, query in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "gridPos": {"h": height, "w": width},
        "targets": targets,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {},
    }


def thresholds(steps: Steps) -> Json:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def lines(
    title: str,
    text: str,
    *queries: Query,
    unit: str,
    steps: Steps = (),
    stacked: bool = False,
    top: float | None = None,
    width: int = 12,
) -> Json:
    """Values over time; ``steps`` draws the limits, ``top`` is where the axis ends."""
    made = panel("timeseries", title, text, queries, width, 8)
    made["fieldConfig"]["defaults"] = {
        "unit": unit,
        "min": 0,
        **({} if top is None else {"max": top}),
        "color": {"mode": "palette-classic"},
        "custom": {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if steps else "off"},
        },
        "thresholds": thresholds(steps or [(None, "green")]),
    }
    made["options"] = {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def number(title: str, text: str, query: Query, *, unit: str, steps: Steps, width: int = 4) -> Json:
    """The last value, large."""
    made = panel("stat", title, text, [query], width, 4)
    made["fieldConfig"]["defaults"] = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": thresholds(steps),
    }
    made["options"] = {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return made


def states(title: str, text: str, query: Query, values: dict[int, tuple[str, str]], width: int = 12) -> Json:
    """Which of a few states over time; their names and colours by value."""
    made = panel("state-timeline", title, text, [query], width, 8)
    named = {str(value): {"text": name, "color": color} for value, (name, color) in values.items()}
    made["fieldConfig"]["defaults"] = {
        "unit": "none",
        "color": {"mode": "thresholds"},
        "mappings": [{"type": "value", "options": named}],
        "thresholds": thresholds([(None, "text")]),
    }
    made["options"] = {"mergeValues": True, "showValue": "never", "rowHeight": 0.9, "legend": LIST}
    return made


def heat(title: str, text: str, query: Query, *, unit: str, width: int = 12) -> Json:
    """The buckets of a histogram over time."""
    made = panel("heatmap", title, text, [query], width, 8)
    made["targets"][0]["format"] = "heatmap"
    made["fieldConfig"]["defaults"] = {"unit": "short"}
    made["options"] = {
        "calculate": False,
        "yAxis": {"unit": unit},
        "cellValues": {"unit": "short"},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "tooltip": {"mode": "single"},
    }
    return made


def row(title: str) -> Json:
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "panels": [],
        "gridPos": {"h": 1, "w": COLUMNS},
    }


def variable(name: str, label: str, query: str, *, every: bool = True) -> Json:
    """One that is chosen from the answer to a query; ``every`` allows many at once, and all to begin with."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "includeAll": every,
        "multi": every,
        **({"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}} if every else {}),
    }


def dashboard(name: str, title: str, text: str, variables: Sequence[Json], panels: Sequence[Json]) -> Json:
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "prometheus"},
    }
    others = {
        "type": "dashboards",
        "title": "cacheaside",
        "icon": "dashboard",
        "tooltip": "",
        "targetBlank": False,
        "tags": ["cacheaside"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }
    return {
        "uid": f"cacheaside-{name}",
        "title": f"cacheaside: {title}",
        "description": text,
        "tags": ["cacheaside"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [others],
        "templating": {"list": [source, *variables]},
        "panels": placed(panels),
    }


def placed(panels: Sequence[Json]) -> list[Json]:
    """With ids, from left to right; a panel that does not fit begins a new line."""
    x = y = tallest = 0
    for id, one in enumerate(panels, 1):
        size = one["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        one["id"], one["gridPos"] = id, {**size, "x": x, "y": y}
        x, tallest = x + size["w"], max(tallest, size["h"])
    return list(panels)
