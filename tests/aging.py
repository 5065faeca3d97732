"""Keys of a Redis grow older without anybody waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def aged(client: Any) -> Callable[[float], None]:
    """Take so many seconds from the life of every key."""

    def wait(seconds: float) -> None:
        for key in client.scan_iter():
            client.pexpire(key, client.pttl(key) - int(seconds * 1000))  # below zero it is deleted

    return wait
