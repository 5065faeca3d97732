"""One distribution carries the library and each integration beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from zipfile import ZipFile

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_every_package_typed_and_complete(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    packages = [ROOT / "cacheaside", *sorted(p.parent for p in ROOT.glob("integrations/*/__init__.py"))]
    assert len(packages) > 2
    wanted = {
        f"{package.name}/{file.relative_to(package).as_posix()}"
        for package in packages
        for file in package.rglob("*")
        if file.suffix in (".py", ".lua", ".typed")
    }
    assert wanted <= held
    assert {name.partition("/")[0] for name in held} == {package.name for package in packages}
    assert {f"{package.name}/py.typed" for package in packages} <= held


def test_every_integration_has_an_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    names = {p.parent.name.removeprefix("cacheaside_") for p in ROOT.glob("integrations/*/__init__.py")}
    assert names
    assert names <= set(extras)
