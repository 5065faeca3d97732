"""Every page runs as it is written, and the reference leaves nothing out."""

from __future__ import annotations

import gc
import inspect
import re
import sqlite3
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest
import typer

import cacheaside
from cacheaside import Cache, decorators, default, keyspace
from cacheaside.check.settings import FAULTS
from cacheaside.cli import make_app
from cacheaside.codecs import codec_for
from cacheaside.operations import Operations
from cacheaside.options import CachedOptions, ManyOptions, UpdatesOptions
from cacheaside.policy import make_policy
from cacheaside.stats import Counts
from cacheaside.toolkit import Broker, DurableBroker, RateLimiter
from tests.docs.pages import PAGES, ROOT, PageError, blocks_of, run_page

URL = "redis://localhost:6379/0"
"""Where pages have their Redis; a real server takes its place."""

REFERENCE = ROOT / "docs" / "reference"
RUNS = [p for p in PAGES if "```python" in p.read_text("utf-8")]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The namespace of a module ``app``, in a process that has no default cache yet."""
    monkeypatch.delenv("CACHEASIDE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decorators, "_claims", WeakValueDictionary())
    monkeypatch.setattr(keyspace, "_spaces", WeakValueDictionary())
    monkeypatch.setattr(default, "_cache", None)
    module = types.ModuleType("app")
    monkeypatch.setitem(sys.modules, "app", module)
    yield module.__dict__
    for value in module.__dict__.values():
        if isinstance(value, sqlite3.Connection):
            value.close()
    caches = [v for v in module.__dict__.values() if isinstance(v, Cache)]
    if default._cache is not None:
        caches.append(default._cache)
    for cache in caches:
        cache.close()
    module.__dict__.clear()
    gc.collect()


@pytest.mark.parametrize("page", [p for p in RUNS if URL not in p.read_text("utf-8")], ids=name_of)
async def test_page_runs_without_redis(page: Path, app: dict[str, Any]) -> None:
    assert await run_page(page.read_text("utf-8"), app, name_of(page))


@pytest.mark.parametrize("page", [p for p in RUNS if URL in p.read_text("utf-8")], ids=name_of)
async def test_page_runs_on_redis(page: Path, app: dict[str, Any], one_redis_url: str) -> None:
    text = page.read_text("utf-8").replace(URL, one_redis_url)
    assert await run_page(text, app, name_of(page))


# ---------------------------------------------------------------------------- the extractor


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```python\n1 + 1  # -> 3\n```\n", "line 1 shows 3 and is 2"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "prints\n1\n"),
        ("```python\nprint(1)\n```\n", "prints\n1\n"),
        ("```python\nboom\n```\n", "NameError"),
        ("```python\nint('x')\n```\n```text\nKeyError: no\n```\n", "ValueError"),
        ("```python\nx = 1  # -> 1\n```\n", "no expression ends on line 1"),
        ("```python\nif False:\n    1  # -> 1\n```\n", "never run"),
        ("```python\n1  # -> 1\n", "not closed"),
    ],
)
async def test_a_page_that_is_wrong_fails(page: str, complaint: str) -> None:
    with pytest.raises(PageError, match=re.escape(complaint)):
        await run_page(page, {})


async def test_blocks_of_a_page_share_names_and_may_await_and_print_and_raise() -> None:
    page = """
```python
async def two(): return 2
x = 1
```

```python
await two() + x  # -> 3
print("hello")
```

```text
hello
```

1. In a list:

   ```python
   for n in range(2):
       n + x - n  # -> 1
   int("x")
   ```

   ```text
   ValueError: invalid literal for int() with base 10: 'x'
   ```

```text
a diagram
```
"""
    assert await run_page(page, {}) == 3
    assert [b.language for b in blocks_of(page)] == ["python", "python", "python", "text"]


# ---------------------------------------------------------------------------- what pages point at


def texts() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        yield name_of(page), page.read_text("utf-8")


def test_shell_blocks_use_make_targets_and_extras_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE))
    seen = 0
    for page, text in texts():
        for block in blocks_of(text):
            if block.language not in ("console", "bash"):
                assert block.language in ("python", "text", "mermaid"), f"{page}: {block.language}"
                continue
            for line in block.text.splitlines():
                command = line.removeprefix("$ ").split("#")[0].split()
                seen += 1
                if command[0] == "make":
                    assert set(command[1:]) <= targets, f"{page}: {line}"
                elif command[0] == "cacheaside":
                    parse_command(command[1:])
                else:
                    assert command[:2] == ["pip", "install"], f"{page}: {line}"
                    named = {e for found in re.findall(r"\[([\w,]+)\]", line) for e in found.split(",")}
                    assert named <= extras, f"{page}: {line}"
    assert seen


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(make_app())
    return dict(group.commands)


def parse_command(words: list[str]) -> None:
    """Raise click's error for a command or an option that does not exist."""
    commands()[words[0]].make_context(words[0], list(words[1:]))


def test_every_command_and_option_is_in_the_reference_with_its_default() -> None:
    text = (REFERENCE / "command-line.md").read_text("utf-8")
    found = commands()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == list(found)

    def section(name: str) -> str:
        return re.split(rf"^## {name}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]

    def listed(name: str) -> dict[str, str]:
        return dict(re.findall(r"^\| `(--[\w-]+)` \| (.+?) \|", section(name), re.MULTILINE))

    for name, command in found.items():
        assert "| Exit code |" in section(name), name
        options = {p.opts[0]: p.default for p in command.params if p.param_type_name == "option"}
        shared = {k: v for k, v in listed("Options of all").items() if k in options}
        rows = shared | listed(name)
        assert set(rows) == set(options), name
        for option, known in options.items():
            if isinstance(known, (int, float, str)) and not isinstance(known, bool):
                assert rows[option] == (f"`{known}`" if isinstance(known, str) else f"`{known:g}`")
        assert command.help


def test_every_fault_of_the_check_is_in_its_how_to() -> None:
    text = (ROOT / "docs" / "how-to" / "check.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+?) \|", text, re.MULTILINE))
    assert {name: fault.summary for name, fault in FAULTS.items()} == rows


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_to_pages_and_headings_that_exist() -> None:
    for page, text in texts():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            there = (ROOT / page).parent / path if path else ROOT / page
            assert there.exists(), f"{page}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
                assert heading in map(anchor, headings), f"{page}: {target}"


def test_pages_that_no_other_page_links_to_are_few() -> None:
    linked = {
        ((ROOT / page).parent / target.partition("#")[0]).resolve()
        for page, text in texts()
        for target in re.findall(r"\]\(([^)\s]+\.md[^)\s]*)\)", text)
    }
    assert [name_of(p) for p in PAGES if p.resolve() not in linked] == ["README.md"]


def test_tests_that_pages_name_exist() -> None:
    seen = 0
    for page, text in texts():
        for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
            seen += 1
            assert (ROOT / path).exists(), f"{page}: {path}"
            assert f"def {name}(" in (ROOT / path).read_text("utf-8") or not name, f"{page}: {path}::{name}"
    assert seen


# ---------------------------------------------------------------------------- the reference is complete


def table(page: str, heading: str) -> dict[str, str]:
    """The rows of the table under a heading: the name in the first column, the second column."""
    text = (REFERENCE / page).read_text("utf-8")
    section = re.split(rf"^## {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \|", re.split(r"^## ", section, flags=re.MULTILINE)[0], re.MULTILINE
    )
    return dict(rows)


def shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    return f"`{default.__module__}.{default.__name__}`" if callable(default) else f"`{default!r}`"


def defaults(fn: Callable[..., Any], options: Any = None) -> dict[str, str]:
    """What a function takes by name, with ``required`` or its default as the tables show it."""
    found = {
        p.name: p.default
        for p in inspect.signature(fn).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    if options is not None:
        checkers = [
            *inspect.signature(codec_for).parameters.values(),
            *inspect.signature(make_policy).parameters.values(),
        ]
        checked = {p.name: p.default for p in checkers} | {"ttl": None, "tags": ()}
        found |= {name: checked[name] for name in options.__annotations__}
    return {name: shown(default) for name, default in found.items()}


@pytest.mark.parametrize(
    ("page", "heading", "fn", "options"),
    [
        ("decorators.md", "cached", cacheaside.cached, CachedOptions),
        ("decorators.md", "cached_many", cacheaside.cached_many, ManyOptions),
        ("decorators.md", "invalidates", cacheaside.invalidates, None),
        ("decorators.md", "updates", cacheaside.updates, UpdatesOptions),
        ("cache.md", "Settings", Cache, None),
        ("rate-limits.md", "RateLimiter", RateLimiter, None),
        ("messages.md", "Broker", Broker, None),
        ("messages.md", "Options of subscribe", partial(Broker.subscribe, None), None),
        ("messages.md", "DurableBroker", DurableBroker, None),
    ],
)
def test_tables_of_options_name_each_one_with_its_default(
    page: str, heading: str, fn: Callable[..., Any], options: Any
) -> None:
    rows = {k: re.sub(r"^(`[^`]*`|required).*", r"\1", v) for k, v in table(page, heading).items()}
    assert rows == defaults(fn, options)


def reference() -> str:
    return "\n".join(p.read_text("utf-8") for p in sorted(REFERENCE.glob("*.md")))


def test_every_public_name_is_in_the_reference() -> None:
    text = reference()
    assert [n for n in cacheaside.__all__ if f"`{n}" not in text and f"cacheaside.{n}" not in text] == []


def test_every_direct_operation_is_in_the_reference() -> None:
    text = (REFERENCE / "direct-operations.md").read_text("utf-8")
    public = [n for n, v in vars(Operations).items() if inspect.isfunction(v) and not n.startswith("_")]
    twins = [n for n in public if n[:1] == "a" and n[1:] in public]
    inner = {"collecting", "invalidate_now", "run"}
    assert [n for n in public if n not in twins and n not in inner and f"`{n}(" not in text] == []


def test_every_counter_is_in_the_reference() -> None:
    assert set(table("stats.md", "Counters")) == set(Counts.__slots__)
