"""What a service needs beside cached functions. A method that waits has an a-prefixed async twin."""

from __future__ import annotations

from cacheaside.errors import LockTimeout, RateLimited
from cacheaside.keyspace import DeclaredKey, Key, Keyspace
from cacheaside.toolkit.lock import Held, Lock
from cacheaside.toolkit.rate_limited import rate_limited
from cacheaside.toolkit.ratelimit import Decision, RateLimiter

__all__ = [
    "Decision",
    "DeclaredKey",
    "Held",
    "Key",
    "Keyspace",
    "Lock",
    "LockTimeout",
    "RateLimited",
    "RateLimiter",
    "rate_limited",
]
