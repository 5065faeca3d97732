"""A store that notes what it is asked, for tests of how often that happens."""

from __future__ import annotations

from typing import Any

from cacheaside.engine.commands import Flow, Renew
from cacheaside.engine.drive import Store
from cacheaside.rawkeys import RawKeys
from cacheaside.testing.chaos import StoreWrapper, keys_of


class CountingStore(StoreWrapper):
    """Notes every command; not the renewals of a lease, which come when a load happens to take long."""

    def __init__(self, store: Store, keys: RawKeys) -> None:
        super().__init__(store)
        self._prefix = keys.value("")
        self.asked: list[str] = []
        """In words, such as ``Fetch posts:post:1``."""

    def around(self, command: Any) -> Flow[Any]:
        if not isinstance(command, Renew):
            keys = [key.removeprefix(self._prefix) for key in keys_of(command) if not key.startswith("{")]
            self.asked.append(" ".join([type(command).__name__, *keys[:3], *(["..."] if keys[3:] else [])]))
        return (yield command)

    def __str__(self) -> str:
        lines = "".join(f"\n  {n}. {words}" for n, words in enumerate(self.asked, 1))
        return f"there were {len(self.asked)}{':' if lines else ''}{lines}"
