"""What the engine may import: its flows know neither Redis nor telemetry nor how to wait."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cacheaside.engine

ENGINE = Path(cacheaside.engine.__file__).parent
MODULES = sorted(path.name for path in ENGINE.glob("*.py"))

INPUT_AND_OUTPUT = {
    "asyncio",
    "concurrent",
    "opentelemetry",
    "redis",
    "selectors",
    "socket",
    "threading",
    "time",
}
WAITING = {"drive.py": {"asyncio", "concurrent", "threading", "time"}, "flights.py": {"concurrent"}}
OWN = {
    "budget", "call", "canonical", "commands", "engine", "entry", "errors", "flights", "fork", "journal",
    "keys", "policy", "rawkeys", "stats", "workers",
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield node.module or ""


def test_the_engine_is_all_here() -> None:
    assert {
        "call.py",
        "commands.py",
        "direct.py",
        "drive.py",
        "flights.py",
        "many.py",
        "read.py",
        "write.py",
    } <= {*MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_the_engine_does_no_input_or_output(module: str) -> None:
    """Only the drivers wait, and only a flight is something that can be waited for."""
    roots = {name.split(".")[0] for name in imports(ENGINE / module)}
    assert roots & INPUT_AND_OUTPUT <= WAITING.get(module, set())


@pytest.mark.parametrize("module", MODULES)
def test_the_engine_knows_only_what_lies_below_it(module: str) -> None:
    """Data flows one way: neither stores nor telemetry nor decorators are imported from here."""
    ours = {name.split(".")[1] for name in imports(ENGINE / module) if name.startswith("cacheaside.")}
    assert ours <= OWN


@pytest.mark.parametrize("module", [name for name in MODULES if name != "drive.py"])
def test_the_flows_look_at_no_clock_and_throw_no_dice_of_their_own(module: str) -> None:
    assert not {"time", "random", "os", "secrets", "datetime"} & {*imports(ENGINE / module)}


def test_the_checker_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("def f():\n    import redis.asyncio\n    from socket import create_connection\n")
    assert [*imports(source)] == ["redis.asyncio", "socket"]
