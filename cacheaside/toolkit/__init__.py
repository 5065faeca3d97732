"""What a service needs beside cached functions. A method that waits has an a-prefixed async twin."""

from __future__ import annotations

from cacheaside.keyspace import DeclaredKey, Key, Keyspace

__all__ = [
    "DeclaredKey",
    "Key",
    "Keyspace",
]
