"""Keys of a Redis grow older without anybody waiting."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

FAKEREDIS = ("_helpers", "_socket._base", "commands_mixins.server_mixin")
"""The modules of fakeredis that ask for the time."""


def obey(patch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Have every Redis of this process go by ``clock``: what ends there, and what scripts are told."""
    for module in FAKEREDIS:
        patch.setattr(f"fakeredis.{module}.time", SimpleNamespace(time=clock, monotonic=clock))


def aged(client: Any) -> Callable[[float], None]:
    """Take so many seconds from the life of every key."""

    def wait(seconds: float) -> None:
        for key in client.scan_iter():
            client.pexpire(key, client.pttl(key) - int(seconds * 1000))  # below zero it is deleted

    return wait
