"""The committed files fit together: dashboards, rules, and the containers that show them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cacheaside import metrics
from examples.dashboards.__main__ import HERE, written

from .prometheus import BOARDS, RULES, boards, expressions, rules, variables

ROOT = HERE.parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text("utf-8"))["services"]
COLLECTOR: dict[str, Any] = yaml.safe_load((HERE / "collector.yaml").read_text("utf-8"))
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


# ---------------------------------------------------------------------------- dashboards


def test_dashboards_are_what_the_script_makes() -> None:
    """After a change: ``python -m examples.dashboards``."""
    made = dict(written())
    assert sorted(made) == BOARDS
    for path, text in made.items():
        assert path.read_text("utf-8") == text, f"{path.name} is older than the script"


@pytest.mark.parametrize(("name", "board"), list(boards()))
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str, board: Mapping[str, Any]) -> None:
    panels = board["panels"]
    assert board["uid"] == f"cacheaside-{name}"
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize(("name", "board"), list(boards()))
def test_every_panel_says_what_it_shows(name: str, board: Mapping[str, Any]) -> None:
    """Of the chosen data source, with a unit, a description, and names for its lines."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == SOURCE
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == SOURCE
            assert panel["type"] == "stat" or target["legendFormat"] != "__auto", panel["title"]


@pytest.mark.parametrize(("name", "board"), list(boards()))
def test_every_variable_is_used(name: str, board: Mapping[str, Any]) -> None:
    """And the first one is the data source, by the name that ``prometheus.yaml`` gives it."""
    source, *_ = board["templating"]["list"]
    provisioned = yaml.safe_load(
        (HERE / "grafana/provisioning/datasources/prometheus.yaml").read_text("utf-8")
    )
    assert source["type"] == "datasource"
    assert source["current"]["value"] in [one["uid"] for one in provisioned["datasources"]]
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    for variable in variables(board):
        assert f"${variable}" in asked


def test_every_metric_of_the_library_is_shown() -> None:
    """A new one must find a panel."""
    shown = " ".join(one.text for one in expressions())
    names = {*metrics.COUNTERS, *metrics.TOTALS, *metrics.STATE}
    names |= {f"cacheaside.{name}" for name in ("requests", "load.saved", "load.duration")}
    names |= {"cacheaside.broker.messages", "cacheaside.limiter.requests"}
    assert [name for name in names if not re.search(rf"\b{name.replace('.', '_')}(_|\b)", shown)] == []


# ---------------------------------------------------------------------------- rules


def test_promtool_accepts_rules_and_configuration(promtool: str) -> None:
    check(promtool, "check", "config", str(HERE / "prometheus" / "prometheus.yml"))
    check(promtool, "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES.glob("*.yaml")))


def test_every_alert_fires_when_it_should_and_only_then(promtool: str) -> None:
    """What is to be seen is in ``tests/alerts.yaml``, for each alert both."""
    file = HERE / "prometheus" / "tests" / "alerts.yaml"
    check(promtool, "test", "rules", str(file))
    seen: dict[str, set[bool]] = {}
    for test in yaml.safe_load(file.read_text("utf-8"))["tests"]:
        for one in test["alert_rule_test"]:
            seen.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))
    assert seen == {rule["alert"]: {True, False} for rule in rules() if "alert" in rule}


def check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"]
)
def test_every_alert_says_what_to_do(rule: Mapping[str, Any]) -> None:
    """And leads to a page of these docs, where its name stands."""
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, heading = rule["annotations"]["runbook_url"].partition("#")
    assert heading in headings(ROOT / page)
    assert f"`{rule['alert']}`" in (ROOT / page).read_text("utf-8")


# ---------------------------------------------------------------------------- containers


def test_every_mounted_file_is_there_and_read_only() -> None:
    mounts = [mount.split(":") for one in COMPOSE.values() for mount in one.get("volumes", ())]
    assert len(mounts) == 5
    for source, _, mode in mounts:
        assert (HERE / source).exists(), source
        assert mode == "ro"


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for one in COMPOSE.values() for port in one.get("ports", ())]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_have_tags() -> None:
    """That name one version."""
    for one in COMPOSE.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", one["image"]), one["image"]


def test_there_are_no_secrets() -> None:
    told = [
        f"{name}={value}" for one in COMPOSE.values() for name, value in one.get("environment", {}).items()
    ]
    assert told
    assert not [one for one in told if re.search("PASSWORD|SECRET|TOKEN|KEY", one)]


def test_containers_that_are_named_exist() -> None:
    """In dependencies, and where one sends to or asks another."""
    for one in COMPOSE.values():
        assert set(one.get("depends_on", ())) <= set(COMPOSE)
    files = [
        "collector.yaml",
        "prometheus/prometheus.yml",
        "grafana/provisioning/datasources/prometheus.yaml",
    ]
    text = "\n".join((HERE / file).read_text("utf-8") for file in files)
    hosts = set(re.findall(r"([a-z][\w.]*):\d{4,5}\b", text))
    assert hosts == {"jaeger", "collector", "prometheus"}
    assert hosts <= set(COMPOSE)


def test_the_collector_s_pipelines_are_of_parts_that_are_there() -> None:
    """Each one is used, and metrics lose the unit 1 before they are named."""
    pipelines = COLLECTOR["service"]["pipelines"]
    for kind in ("receivers", "processors", "exporters"):
        assert {part for one in pipelines.values() for part in one[kind]} == set(COLLECTOR[kind])
    assert pipelines["metrics"]["processors"][0] == "transform/units"


def test_prometheus_scrapes_where_the_collector_shows() -> None:
    port = COLLECTOR["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]
    (scrape,) = yaml.safe_load((HERE / "prometheus/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"collector:{port}"]}]
    assert scrape["honor_labels"] is True


def test_grafana_finds_the_dashboards_where_they_are_mounted() -> None:
    provider = yaml.safe_load((HERE / "grafana/provisioning/dashboards/cacheaside.yaml").read_text("utf-8"))
    (where,) = [one["options"]["path"] for one in provider["providers"]]
    assert f"./grafana/dashboards:{where}:ro" in COMPOSE["grafana"]["volumes"]
    home = Path(COMPOSE["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.is_relative_to(where)
    assert HERE / "grafana" / "dashboards" / home.name in BOARDS
