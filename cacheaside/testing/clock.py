"""A clock that moves when told to, for tests that would otherwise sleep."""

from __future__ import annotations

import time
from datetime import timedelta


class FakeClock:
    """Seconds since the epoch, as the test says: ``Cache("embedded://", clock=FakeClock())``.

    It starts now, or at ``now``: what a test hands to a real server is read by that server's own clock.
    """

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float | timedelta) -> None:
        """Let time pass: seconds or a timedelta."""
        self.now += seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
