"""What an account may not do, as the errors of Redis tell, and how things are said without it.

Nobody can ask for it beforehand. What was forbidden is tried again after a minute: rights change.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final, Literal

from redis.exceptions import NoPermissionError, ResponseError

AGAIN: Final = 60.0
"""Seconds after which what was forbidden is tried again."""

Missing = Literal["scripts", "publishing in scripts", "publishing"]
MEANS: Final[dict[Missing, str]] = {
    "scripts": "this account may not EVAL: what others have stored is read, and invalidations are sent, but "
    "nothing is stored (only into empty slots, where the server knows SET IFEQ), nothing can be held, and L1 "
    "is off",
    "publishing": "this account may not PUBLISH on this cache's channels: L1 is off here, and while other "
    "processes have L1 on invalidations are not acknowledged, for they cannot be told",
}


class Rights:
    """What is known to be forbidden.

    Args:
        tell: told once each, in words, what is missing and what follows.
    """

    def __init__(self, tell: Callable[[str, str], None] = lambda kind, words: None) -> None:
        self._tell = tell
        self._forbidden: dict[Missing, float] = {}

    def learn(self, error: Exception) -> None:
        """An error has come; it may be about rights."""
        if self._forbidden or isinstance(error, ResponseError):
            missing = missing_right(error)
            if missing is not None:
                self._forbidden[missing] = monotonic() + AGAIN
                if missing in MEANS:
                    self._tell(missing, MEANS[missing])

    def lacks(self, right: Missing) -> bool:
        if not self._forbidden:
            return False
        until = self._forbidden.get(right)
        if until is not None and until < monotonic():
            del self._forbidden[right]
            return False
        return until is not None


def missing_right(error: Exception) -> Missing | None:
    """The right that an error is about, if it is about one of these."""
    words = str(error).lower()
    if isinstance(error, NoPermissionError):
        if "'eval" in words:
            return "scripts"
        return "publishing" if "publish'" in words or "channel" in words else None
    # Which of its commands a script may not run is not always said: sent apart, they tell.
    inside = words.startswith(("the user executing the script can't", "acl failure in script"))
    return "publishing in scripts" if inside else None


class Unheard(ResponseError):
    """What was asked for is done, and somebody listens who could not be told."""
