"""The console in a real browser: it draws, explains, and asks before it invalidates."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from cacheaside_fastapi import console, lifespan
from cacheaside_flask import CacheAside
from cacheaside_flask import console as blueprint
from fastapi import FastAPI
from flask import Flask
from werkzeug.serving import make_server

from cacheaside import Cache

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache("embedded://") as made:
        yield made


@contextmanager
def served_by_flask(cache: Cache) -> Iterator[str]:
    app = Flask("site")
    app.config["CACHEASIDE_URL"] = "embedded://"
    CacheAside(app)
    app.extensions["cacheaside"] = cache
    app.register_blueprint(blueprint(guard=lambda: True), url_prefix="/cache")
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/cache/"
    server.shutdown()
    thread.join(5)


@contextmanager
def served_by_fastapi(cache: Cache) -> Iterator[str]:
    app = FastAPI(lifespan=lifespan(cache))
    app.mount("/cache", console(guard=lambda _: True))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        quiet = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(quiet)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/cache/"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def url(cache: Cache) -> Iterator[str]:
    with served_by_flask(cache) as address:
        yield address


@pytest.fixture(params=["light", "dark", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, cache: Cache) -> Iterator[Any]:
    """The console of either integration, for several kinds of people."""
    served = served_by_fastapi if request.param == "dark" else served_by_flask
    size = {"width": 390, "height": 844} if request.param == "phone" else {"width": 1200, "height": 900}
    context = browser.new_context(color_scheme=request.param.replace("phone", "light"), viewport=size)
    shown = context.new_page()
    shown.set_default_timeout(20_000)
    troubles: list[str] = []
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    shown.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    with served(cache) as address:
        shown.goto(address)
        yield shown
        context.close()
    assert troubles == []


def test_a_person_looks_explains_and_invalidates(page: Any, cache: Cache) -> None:
    """With the keyboard alone; nothing is invalidated before the question is answered."""

    @cache.cached(ns="posts", key="post:{id}", tags=["post:{id}", "posts"])
    def post(id: int) -> int:
        return id

    for id in (1, 1, 2):
        post(id)
    page.wait_for_selector("#live.on")
    page.wait_for_selector("#spaces th:has-text('posts')")
    page.wait_for_selector("#tiles:has-text('33.3 %')")  # the first figures may be from before the calls
    page.fill("input[name=key]", "posts:post:1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#explained li:has-text('L1 holds it')")
    page.click("#count")
    page.wait_for_selector("#tags th:has-text('post:1')")
    page.fill("input[name=tag]", "post:1")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    assert "post:1" in page.inner_text("dialog")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")
    assert post.peek(1) == 1
    page.focus("input[name=tag]")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#dropped:has-text('is invalidated')")
    assert not cache.exists("posts:post:1")
    assert cache.exists("posts:post:2")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0, "the page itself never scrolls sideways"


def test_what_matters_most_is_seen_without_scrolling_sideways(page: Any, cache: Cache) -> None:
    """On a phone too, whatever the names: the hit ratio of a namespace, the size of a tag, both answers."""
    long = "a_namespace_with_a_rather_long_name"

    @cache.cached(ns=long, key="{id}", tags=["a-tag-with-a-name-that-is-even-longer-than-that:{id}"])
    def load(id: int) -> int:
        return id

    load(1), load(1)
    wide = page.viewport_size["width"]
    page.wait_for_selector("#spaces th")
    page.click("#count")
    page.wait_for_selector("#tags th")
    page.fill("input[name=tag]", "x" * 200)
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    columns = ("#spaces td:nth-child(2)", "#spaces td:nth-child(3)", "#tags td")
    for seen in (*columns, "dialog", "button[value=yes]"):
        box = page.locator(seen).first.bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= wide, seen
    assert page.locator("#spaces th").bounding_box()["height"] <= 120, "words, not a column of letters"
    page.keyboard.press("Escape")


def test_what_scrolls_is_reached_by_the_keyboard(page: Any) -> None:
    """A table that is wider than a phone: the first stop of the Tab key."""
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Namespaces"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_what_is_behind_them(browser: Any, url: str, scheme: str) -> None:
    """WCAG 2.2: 4.5 to 1 for words, 3 to 1 for what is drawn."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    names = ("back", "card", "ink", "dim", "l1", "l2", "stale", "origin", "focus")
    asked = "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
    colour = {name: light(page.evaluate(asked, name)) for name in names}
    context.close()
    for behind in ("back", "card"):
        for name in ("ink", "dim", "l1", "origin"):
            assert contrast(colour[name], colour[behind]) >= 4.5, (name, behind)
        for name in ("l2", "stale", "focus"):
            assert contrast(colour[name], colour[behind]) >= 3, (name, behind)


def light(colour: str) -> float:
    """The relative luminance of ``#rgb`` or ``#rrggbb``."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_a_name_is_text_and_never_markup(page: Any, cache: Cache) -> None:
    """What users put into keys and tags cannot run in the console."""

    @cache.cached(ns="posts", key="{a}", tags=["{a}"])
    def post(a: str) -> str:
        return a

    post("<img src=x onerror=document.title='owned'>")
    page.click("#count")
    page.wait_for_selector("#tags th")
    page.fill("input[name=key]", "<b>:<i>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#explained:not(:empty)")
    assert page.title() == "cacheaside"
    assert page.query_selector("#tags img, #explained b") is None
