"""Runs the Python blocks of a Markdown page, and holds them to the output that the page shows."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^( *)(```+)(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
SHOWS = re.compile(r"#\s*->\s*(.*)")


class PageError(AssertionError):
    """A page says one thing and its code does another."""


@dataclass
class Block:
    """A fenced block; ``output`` is the text block right after a Python one, if there is one."""

    language: str
    text: str
    line: int
    output: str | None = None


def blocks_of(markdown: str) -> list[Block]:
    """The fenced blocks of a page, in order; a text block right after Python is the output of that."""
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(markdown):
        block = Block(match[3], textwrap.dedent(match[4]), markdown.count("\n", 0, match.start()) + 2)
        between, end = markdown[end : match.start()], match.end()
        last = found[-1] if found else None
        shown = block.language == "text" and last is not None and not between.strip()
        if shown and last is not None and last.language == "python" and last.output is None:
            last.output = block.text
        else:
            found.append(block)
    if len(re.findall(r"^ *```", markdown, re.MULTILINE)) != 2 * len(FENCE.findall(markdown)):
        raise PageError("a fence is not closed")
    return found


class Expectations(ast.NodeTransformer):
    """Hands the value of each expression with a ``# -> value`` behind it to ``_shown``."""

    def __init__(self, source: str) -> None:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        matches = ((t.start[0], SHOWS.match(t.string)) for t in tokens if t.type == tokenize.COMMENT)
        self.wanted = {line: match[1].strip() for line, match in matches if match}
        self.left = set(self.wanted)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        line = node.end_lineno
        if line not in self.wanted:
            return node
        self.left.discard(line)
        arguments = [node.value, ast.Constant(line)]
        call = ast.Call(ast.Name("_shown", ast.Load()), arguments, [])
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), node))


async def run_page(markdown: str, namespace: dict[str, Any], name: str = "page") -> int:
    """Run the Python blocks of a page one after another in ``namespace``; how many there were.

    Raises PageError where a ``# -> value`` or an output block does not show what happens.
    """
    blocks = [b for b in blocks_of(markdown) if b.language == "python"]
    for block in blocks:
        await _run(block, namespace, f"{name}:{block.line}")
    return len(blocks)


async def _run(block: Block, namespace: dict[str, Any], where: str) -> None:
    expected = Expectations(block.text)
    tree = expected.visit(ast.parse(block.text, where))
    if expected.left:
        raise PageError(f"{where}: no expression ends on line {min(expected.left)}, which shows a value")
    seen: set[int] = set()

    def shown(value: Any, line: int) -> None:
        seen.add(line)
        if repr(value) != expected.wanted[line]:
            raise PageError(f"{where}: line {line} shows {expected.wanted[line]} and is {value!r}")

    namespace["_shown"] = shown
    code: CodeType = compile(tree, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            waiting = eval(code, namespace)
            if inspect.iscoroutine(waiting):
                await waiting
    except PageError:
        raise
    except Exception as error:
        if block.output is None:
            raise PageError(f"{where}: {type(error).__name__}: {error}") from error
        printed.write(f"{type(error).__name__}: {error}\n")
    else:
        if unrun := set(expected.wanted) - seen:
            raise PageError(f"{where}: line {min(unrun)} shows a value and was never run")
    if printed.getvalue().strip() != (block.output or "").strip():
        raise PageError(f"{where}: prints\n{printed.getvalue()}\nand shows\n{block.output}")
