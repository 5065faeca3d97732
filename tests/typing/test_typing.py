"""Both type checkers accept every use in the files beside this one, but for the lines marked as wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
USES = [path for path in sorted(HERE.glob("*.py")) if path != Path(__file__)]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )


def marked() -> set[tuple[str, int]]:
    return {
        (path.name, number)
        for path in USES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "  # wrong" in line
    }


def test_mypy_flags_the_wrong_lines_and_no_other() -> None:
    done = run("mypy", "--no-pretty", "--no-color-output", *map(str, USES))
    found = re.findall(r"^(?:.*/)?(\w+\.py):(\d+): error:", done.stdout, re.MULTILINE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert {(name, int(line)) for name, line in found} == marked(), done.stdout


def test_pyright_flags_the_wrong_lines_and_no_other(tmp_path: Path) -> None:
    if "CI" not in os.environ and run("pyright", "--version").returncode:
        pytest.skip("pyright cannot start here: it has to fetch its runtime")
    # It obeys the project's `exclude` even for files that it is given by name.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    config = tmp_path / "pyrightconfig.json"
    include = [os.path.relpath(path, tmp_path) for path in USES]
    config.write_text(json.dumps(settings | {"include": include, "exclude": []}))
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(config))
    assert done.returncode == 1, done.stdout + done.stderr
    found = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    lines = {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found}
    assert lines == marked(), [one["message"] for one in found]
