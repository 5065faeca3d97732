"""A real Prometheus over workers of the example, and what it answers to dashboards and rules."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.error import URLError
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import yaml

from cacheaside.testing.servers import free_port
from examples.dashboards.__main__ import HERE

RULES: Final = HERE / "prometheus" / "rules"
BOARDS: Final = sorted((HERE / "grafana" / "dashboards").glob("*.json"))
PATIENCE: Final = 60.0
"""Seconds in which it must have started, scraped and evaluated, on a machine with much to do."""
LABELS: Final = {f"cacheaside_{name}" for name in ("cache", "namespace", "tier", "outcome", "limit", "kind")}
METRIC: Final = re.compile(r"(?<![\w:])(?:cacheaside|http_server|cache:|namespace:|limit:)[\w:]+")
VARIABLES: Final = {"$__rate_interval": "30s", "$__interval": "5s", "$__range": "1m"}


@dataclass(frozen=True)
class Expression:
    where: str
    text: str


class Prometheus:
    """One process on 127.0.0.1, with the committed configuration but for its targets and its haste."""

    def __init__(self, directory: Path, targets: Sequence[int]) -> None:
        self.port, self.targets = free_port(), targets
        config = yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(HERE / "prometheus" / pattern) for pattern in config["rule_files"]]
        (scrape,) = config["scrape_configs"]
        scrape["job_name"] = "minisocial"
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in targets]}]
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(config), "utf-8")
        self.log = (directory / "prometheus.log").open("w+")
        self.command = [
            shutil.which("prometheus") or "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        wait_for(lambda: bool(self.ask("up")), self.failure)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.log.close()

    def failure(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()[-3000:]

    def get(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers; AssertionError, with its words, for what it cannot parse."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except URLError as error:
            words = error.read().decode() if hasattr(error, "read") else error
            raise AssertionError(f"{parameters}: {words}") from None

    def ask(self, expr: str) -> list[float]:
        """The finite numbers that an expression is, now."""
        found = self.get("query", query=expr)
        values = (
            [found["result"]] if found["resultType"] == "scalar" else [x["value"] for x in found["result"]]
        )
        return [number for _, text in values if math.isfinite(number := float(text))]

    def values(self, query: str) -> list[str]:
        """What a template variable may be: the answer to ``label_values(selector, label)``."""
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert match is not None, query
        values: list[str] = self.get(f"label/{quote(match[2])}/values", **{"match[]": match[1]})
        return values


def wait_for(condition: Any, failure: Any = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if condition():
                return
        except AssertionError:  # it is not there yet
            pass
        assert time.monotonic() < deadline, failure()
        time.sleep(0.1)


# ---------------------------------------------------------------------------- what is asked


def boards() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in BOARDS:
        yield path.stem, json.loads(path.read_text("utf-8"))


def variables(board: Mapping[str, Any]) -> dict[str, str]:
    """The queries of its template variables."""
    return {one["name"]: one["definition"] for one in board["templating"]["list"] if one["type"] == "query"}


def rules() -> Iterator[Mapping[str, Any]]:
    for path in sorted(RULES.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            yield from group["rules"]


def expressions() -> Iterator[Expression]:
    """Of all panels, recording rules and alerts; all values of each template variable are chosen."""
    for name, board in boards():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                where = f"{name}: {panel['title']} {target['refId']}"
                yield Expression(where, chosen(target["expr"], variables(board)))
    for rule in rules():
        if "record" in rule:
            yield Expression(rule["record"], rule["expr"])
        else:
            yield Expression(rule["alert"], compared(rule["expr"]))


def chosen(expr: str, names: Iterable[str]) -> str:
    """With Grafana's variables filled in; what is left of them is a fault."""
    for name, value in {**VARIABLES, **{f"${name}": ".*" for name in names}}.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that nobody defines: {expr}"
    return expr


def compared(expr: str) -> str:
    """An alert's expression that is 0 or 1 where it was nothing or something: every comparison made so."""
    return re.sub(r"(==|!=|<=|>=|<|>)\s*(?=[\d.])", r"\1 bool ", expr)


def misspelled(expr: str) -> Iterator[str]:
    """The expression with one of its metrics misspelled, for each of them."""
    for match in METRIC.finditer(expr):
        if match[0] not in LABELS:
            yield f"{expr[: match.end()]}x{expr[match.end() :]}"


def silent(prometheus: Prometheus, asked: Iterable[Expression]) -> list[str]:
    """Those that are no finite number at all, in words."""
    return [f"{one.where}: {one.text}" for one in asked if not prometheus.ask(one.text)]
