"""What a service needs beside cached functions. A method that waits has an a-prefixed async twin."""

from __future__ import annotations

from cacheaside.errors import LockTimeout, RateLimited
from cacheaside.keyspace import DeclaredKey, Key, Keyspace
from cacheaside.toolkit.broker import Broker, Subscription
from cacheaside.toolkit.durable import DeadLetter, DurableBroker, DurableSubscription
from cacheaside.toolkit.lock import Held, Lock
from cacheaside.toolkit.messages import Message
from cacheaside.toolkit.presence import Page, Presence
from cacheaside.toolkit.rate_limited import rate_limited
from cacheaside.toolkit.ratelimit import Decision, RateLimiter
from cacheaside.toolkit.sessions import Session, SessionStore
from cacheaside.toolkit.tokens import Blacklist, RefreshToken, RefreshTokens
from cacheaside.toolkit.warm_round import WarmReport
from cacheaside.toolkit.warming import Warmer

__all__ = [
    "Blacklist",
    "Broker",
    "DeadLetter",
    "Decision",
    "DeclaredKey",
    "DurableBroker",
    "DurableSubscription",
    "Held",
    "Key",
    "Keyspace",
    "Lock",
    "LockTimeout",
    "Message",
    "Page",
    "Presence",
    "RateLimited",
    "RateLimiter",
    "RefreshToken",
    "RefreshTokens",
    "Session",
    "SessionStore",
    "Subscription",
    "WarmReport",
    "Warmer",
    "rate_limited",
]
