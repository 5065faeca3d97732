"""Every error the library raises, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheaside.toolkit.ratelimit import Decision


class CacheasideError(Exception):
    """The base of all errors raised by cacheaside."""


class ConfigError(CacheasideError, ValueError):
    """An option, a URL or a use of a decorator that cannot work; says which one and what to write instead."""


class KeyTemplateError(ConfigError):
    """A key or tag template that does not fit its function, or an argument that cannot be part of a key."""


class CodecError(CacheasideError, TypeError):
    """A value or type that cannot make the trip to the cache and back."""


class LoadTimeout(CacheasideError, TimeoutError):
    """The wrapped function took longer than the hard ``load_timeout``."""


class WaitTimeout(CacheasideError, TimeoutError):
    """Another process was loading the value, and ``wait_timeout`` ended before it had."""


class StoreUnavailable(CacheasideError, ConnectionError):
    """Redis did not answer: refused, timed out, or replied that it cannot serve.

    ``away`` is for how many seconds it has not answered, 0 if that is not known; ``answered`` is true if it
    did answer and refused, ``unheard`` if it has done what it was asked for and could not announce it.
    """

    away: float = 0.0
    answered: bool = False
    unheard: bool = False


class InvalidationNotAcknowledged(CacheasideError):
    """Redis did not confirm an invalidation before the deadline; entries may be served until their TTL."""


class QueueOverflow(CacheasideError):
    """More messages were waiting for a handler than its queue holds, and its policy is to be closed then."""


class RateLimited(CacheasideError):
    """A limiter refused a call of a function under ``@rate_limited``; ``decision`` says when to come back."""

    def __init__(self, message: str, decision: Decision) -> None:
        super().__init__(message)
        self.decision = decision

    def __reduce__(self) -> tuple[type[RateLimited], tuple[str, Decision]]:
        return type(self), (str(self), self.decision)


class LockTimeout(CacheasideError, TimeoutError):
    """Somebody else held the lock for all of the ``timeout``."""
