"""The documentation site leaves no page out, shows every public name, and what leads nowhere is found."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT
from website.links import faults

DOCS = ROOT / "docs"
PACKAGES = {
    "cacheaside": "cacheaside",
    "toolkit": "cacheaside.toolkit",
    "testing": "cacheaside.testing",
    "fastapi": "cacheaside_fastapi",
    "flask": "cacheaside_flask",
    "sqlalchemy": "cacheaside_sqlalchemy",
}
"""The public packages, by the name of their page."""


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]


def shown(page: str) -> list[tuple[str, str]]:
    """The names that a page has rendered, each with the options below it."""
    text = (DOCS / "reference" / "api" / f"{page}.md").read_text("utf-8")
    return re.findall(r"^::: ([\w.]+)\n((?: {4}.*\n)*)", text, re.MULTILINE)


# ---------------------------------------------------------------------------- what is on it


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from pages(inner)

    listed = list(pages(settings()["nav"]))
    assert sorted(listed) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


@pytest.mark.parametrize(("page", "package"), PACKAGES.items())
def test_every_public_name_is_on_the_page_of_its_package(page: str, package: str) -> None:
    names = [path.rpartition(".")[2] for path, _ in shown(page)]
    assert sorted(names) == sorted(importlib.import_module(package).__all__)


@pytest.mark.parametrize(("page", "package"), PACKAGES.items())
def test_what_a_page_shows_is_the_object_of_that_name(page: str, package: str) -> None:
    """A function may hide behind a module of the same name, and the page would show the module."""
    for path, _ in shown(page):
        above, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(above), name) is getattr(
            importlib.import_module(package), name
        )
        assert not inspect.ismodule(_static(path)), path


def _static(path: str) -> object:
    """What the path is for a reader of the source: a submodule goes before a name that hides it."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        return None


def test_every_fixture_of_the_pytest_plugin_is_on_its_page() -> None:
    import cacheaside_pytest

    fixtures = [
        n for n, v in vars(cacheaside_pytest).items() if type(v).__name__ == "FixtureFunctionDefinition"
    ]
    public = [f"cacheaside_pytest.{n}" for n in fixtures if not n.startswith("_")]
    assert sorted(path for path, _ in shown("pytest")) == sorted(public)


@pytest.mark.parametrize(("page", "package"), PACKAGES.items())
def test_every_public_method_says_what_it_does(page: str, package: str) -> None:
    """A method without a docstring is not on the page; its a-prefixed twin need not have one."""
    module = importlib.import_module(package)
    for path, options in shown(page):
        made = getattr(module, path.rpartition(".")[2])
        if not inspect.isclass(made) or made.__module__.split(".")[0] not in ("cacheaside", package):
            continue
        assert inspect.getdoc(made), path
        left_out = [re.compile(found) for found in re.findall(r'- "!(.+)"', options) or ["^_"]]
        for name in dir(made):
            method = inspect.getattr_static(made, name)
            method = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
            of_ours = inspect.isfunction(method) and method.__module__.startswith("cacheaside")
            twin = name[:1] == "a" and hasattr(made, name[1:])
            if of_ours and not twin and not any(pattern.search(name) for pattern in left_out):
                assert inspect.getdoc(getattr(made, name)), f"{path}.{name} has no docstring"


# ---------------------------------------------------------------------------- what is wrong with it


def site(folder: Path, **pages: str) -> Path:
    for name, html in pages.items():
        path = folder / name.replace("_", "/") / "index.html" if name != "index" else folder / "index.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, "utf-8")
    return folder.resolve()


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="nowhere/">x</a>', "nowhere/ is not there"),
        ('<a href="../">x</a>', "../ is not there"),
        ('<a href="page/#no">x</a>', "page/#no has no such heading"),
        ('<a href="#no">x</a>', "#no has no such heading"),
        ('<img src="no.svg">', "no.svg is not there"),
        ('<a href="http://example.org">x</a>', "is no https address"),
        ('<a href="https://nowhere">x</a>', "is no https address"),
        ('<a href="mailto:x">x</a>', "is no https address"),
        ('<script src="https://cdn.example.org/x.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="https://fonts.example.org/x.css">', "from elsewhere"),
        ('<p id="a"></p><p id="a"></p>', "the id 'a' is there twice"),
    ],
)
def test_what_leads_nowhere_is_found(tmp_path: Path, html: str, fault: str) -> None:
    found = list(faults(site(tmp_path, index=html, page='<h2 id="yes">Yes</h2>')))
    assert len(found) == 1
    assert found[0].startswith("index.html: ")
    assert found[0].endswith(fault)


def test_a_site_in_which_all_leads_somewhere_has_no_faults(tmp_path: Path) -> None:
    html = (
        '<a href="page/#yes">x</a><a href="#top" id="top">y</a><a href="x%20y.txt">z</a>'
        '<a href="/page/">p</a>'
        '<a href="https://example.org/a#b">e</a><img src="x%20y.txt"><img src="data:image/png;base64,">'
    )
    (tmp_path / "x y.txt").write_text("")
    assert list(faults(site(tmp_path, index=html, page='<h2 id="yes">Yes</h2>'))) == []


def test_a_site_without_pages_is_a_fault(tmp_path: Path) -> None:
    assert list(faults(tmp_path)) == [f"{tmp_path}: there are no pages"]
