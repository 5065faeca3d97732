"""Finds what leads nowhere on a built site: pages, anchors and files that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Page:
    """What a page offers as anchors, where it leads, and what a browser fetches to show it."""

    ids: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Reads one page."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            (self.page.twice if found["id"] in self.page.ids else self.page.ids).add(found["id"])
        if tag == "a" and "href" in found:
            self.page.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("canonical", "prev", "next"):
            self.page.links.append(found.get("href", ""))
        elif tag in ("link", "script", "img", "source", "iframe"):
            self.page.fetched += [found[name] for name in ("src", "href") if name in found]


def read(html: str) -> Page:
    reader = Reader()
    reader.feed(html)
    return reader.page


def faults(site: Path) -> Iterator[str]:
    """What is wrong with a built site, in words; nothing is looked up in a network."""
    pages = {path: read(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: there are no pages"
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for id in sorted(page.twice):
            yield f"{name}: the id {id!r} is there twice"
        for link in page.fetched:
            if urlsplit(link).netloc:
                yield f"{name}: fetches {link} from elsewhere"
            elif not link.startswith("data:") and not target(site, path, link).is_file():
                yield f"{name}: {link} is not there"
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if parts.scheme != "https" or "." not in parts.netloc:
                    yield f"{name}: {link} is no https address"
                continue
            there = target(site, path, link)
            if there not in pages and not there.is_file():
                yield f"{name}: {link} is not there"
            elif parts.fragment and unquote(parts.fragment) not in pages.get(there, Page()).ids:
                yield f"{name}: {link} has no such heading"


def target(site: Path, page: Path, link: str) -> Path:
    """The file that a link on a page leads to."""
    path = unquote(urlsplit(link).path)
    if not path:
        return page
    there = site / path.lstrip("/") if path.startswith("/") else (page.parent / path).resolve()
    return there / "index.html" if there.is_dir() else there
