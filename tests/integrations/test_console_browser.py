"""The console in a real browser: it draws, explains, and asks before it invalidates."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from cacheaside_flask import CacheAside, console
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


@pytest.fixture
def url(cache: Cache) -> Iterator[str]:
    app = Flask("site")
    app.config["CACHEASIDE_URL"] = "embedded://"
    CacheAside(app)
    app.extensions["cacheaside"] = cache
    app.register_blueprint(console(guard=lambda: True), url_prefix="/cache")
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/cache/"
    server.shutdown()
    thread.join(5)


@pytest.fixture(params=["light", "dark", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, url: str) -> Iterator[Any]:
    size = {"width": 390, "height": 844} if request.param == "phone" else {"width": 1200, "height": 900}
    context = browser.new_context(color_scheme=request.param.replace("phone", "light"), viewport=size)
    shown = context.new_page()
    shown.set_default_timeout(20_000)
    troubles: list[str] = []
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    shown.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    shown.goto(url)
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
