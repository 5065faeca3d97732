"""Mermaid blocks become SVG while the site is built, so that a page fetches no script to show them."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

import mermaidx


def fence(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """The formatter that ``pymdownx.superfences`` calls for a block; colours are those of ``extra.css``."""
    svg = mermaidx.render(source).svg()
    svg = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)
    # Ids are of the page, and a page may have several diagrams.
    name = "d" + blake2b(source.encode(), digest_size=4).hexdigest()
    svg = re.sub(r'(\bid="|url\(#)', rf"\g<1>{name}-", svg)
    return f'<div class="{css_class}">{svg}</div>'
