"""cacheaside: make a repository method fast and never wrong."""

from __future__ import annotations

from cacheaside.cache import Cache
from cacheaside.default import cached, cached_many, configure, default_cache, invalidates, updates
from cacheaside.engine.call import current_load
from cacheaside.engine.write import Dropped, Receipt
from cacheaside.errors import (
    CacheasideError,
    CodecError,
    ConfigError,
    InvalidationNotAcknowledged,
    KeyTemplateError,
    LoadTimeout,
    LockTimeout,
    RateLimited,
    StoreUnavailable,
    WaitTimeout,
)
from cacheaside.keyspace import Key, Keyspace
from cacheaside.missing import MISSING
from cacheaside.policy import FOREVER

__version__ = "0.1.0"

__all__ = [
    "FOREVER",
    "MISSING",
    "Cache",
    "CacheasideError",
    "CodecError",
    "ConfigError",
    "Dropped",
    "InvalidationNotAcknowledged",
    "Key",
    "KeyTemplateError",
    "Keyspace",
    "LoadTimeout",
    "LockTimeout",
    "RateLimited",
    "Receipt",
    "StoreUnavailable",
    "WaitTimeout",
    "cached",
    "cached_many",
    "configure",
    "current_load",
    "default_cache",
    "invalidates",
    "updates",
]
