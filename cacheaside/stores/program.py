"""A program: one atomic step that the engine's commands do not offer, for Redis and the embedded store.

Redis runs a Lua script, the embedded store a function of Python, its *twin*, under its lock. Both get the
same keys and arguments and return the same: None, int, bytes, or a list of these. One contract test for
both, with both kinds of store, keeps them alike.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from importlib.resources import files
from typing import Any, Protocol


class Room(Protocol):
    """What a twin may do in the embedded store; ``ttl`` is in seconds, and a key that has ended is None.

    ``now`` is for what ends, by a clock that never goes back; ``clock`` is for dates, since the epoch.
    """

    def now(self) -> float: ...
    def clock(self) -> float: ...
    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any, ttl: float) -> None: ...
    def delete(self, key: str) -> bool: ...
    def left(self, key: str) -> float | None: ...


Twin = Callable[[Room, tuple[str, ...], tuple[Any, ...]], Any]


class Script:
    """A Lua file; sent by its hash, and whole when the server does not know it."""

    def __init__(self, package: str, name: str) -> None:
        self.text = (files(package) / "scripts" / f"{name}.lua").read_text("utf-8")
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: tuple[str, ...], *args: Any) -> tuple[Any, ...]:
        return ("EVALSHA", self, len(keys), *keys, *args)


class Program:
    """A script and its twin.

    Args:
        package: where the folder ``scripts`` is, such as ``"cacheaside.toolkit"``.
        name: of the Lua file, without its ending.
        twin: does the same with a ``Room``. Values that it sets may be any sized object; the room does not
            copy them.
    """

    def __init__(self, package: str, name: str, twin: Twin) -> None:
        self.script = Script(package, name)
        self.twin = twin
