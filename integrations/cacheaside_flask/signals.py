"""Signals, sent by the app in the thread where it happened: ``response_hit.connect(note, app)``."""

from __future__ import annotations

from typing import Any, Final
from weakref import ref

from blinker import Namespace
from flask import Flask, current_app

from cacheaside import Cache
from cacheaside.engine.write import Receipt

_signals: Final = Namespace()

response_hit: Final = _signals.signal("cacheaside-response-hit")
"""A response of ``cache_response`` came from the cache; with its Cache-Status as ``status``."""
response_missed: Final = _signals.signal("cacheaside-response-missed")
"""A view below ``cache_response`` has run; with the Cache-Status, which says why, as ``status``."""
invalidated: Final = _signals.signal("cacheaside-invalidated")
"""Keys and tags were invalidated by this process; with ``keys``, ``tags``, and whether it was
``acknowledged``. What a receiver raises is raised by who invalidated."""


def tell(status: str) -> None:
    """Send the signal of a response with this Cache-Status."""
    signal = response_hit if status.startswith("cacheaside; hit") else response_missed
    if signal.receivers:
        app: Any = current_app
        signal.send(app._get_current_object(), status=status)


class AppCache(Cache):
    """The cache of an app, which tells of its invalidations."""

    app: ref[Flask]

    def _acknowledge(self, receipt: Receipt) -> Receipt:
        app = self.app()
        if app is not None and invalidated.receivers:
            told: dict[str, Any] = {"keys": receipt.keys, "tags": receipt.tags}
            invalidated.send(app, **told, acknowledged=receipt.acknowledged)
        return super()._acknowledge(receipt)
