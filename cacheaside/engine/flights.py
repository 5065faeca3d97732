"""Who is loading what in this process, so that one load serves every caller that may share it.

A flight is known by the placeholder that its leader holds: the key, the digest of the tag tokens and
the nonce. Never by the key alone: a caller that starts after an invalidation finds other tokens or
another nonce in the slot, and so cannot join a load from before it.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final

Name = tuple[str, bytes, bytes]


class Landed:
    """How a flight ended: with a payload to decode, with an error, or without either (abandoned).

    ``late`` are the tags that only the result names; they are not part of the flight's name, so who waits
    must make sure that none was invalidated after ``since``, when the leader began.
    """

    __slots__ = ("error", "flags", "late", "payload", "since", "trace", "value")

    def __init__(
        self,
        payload: bytes | None = None,
        flags: int = 0,
        value: object = None,
        error: Exception | None = None,
        *,
        late: tuple[str, ...] = (),
        since: int = 0,
    ) -> None:
        self.payload = payload
        self.flags = flags
        self.value = value
        self.error = error
        self.trace = None if error is None else error.__traceback__
        self.late = late
        self.since = since

    @property
    def abandoned(self) -> bool:
        return self.payload is None and self.error is None


ABANDONED: Final = Landed()


class Flight:
    """One load under way. Threads and event loops may wait for it side by side."""

    __slots__ = ("done", "name", "waiters")

    def __init__(self, name: Name) -> None:
        self.name = name
        self.waiters = 0
        self.done: Future[Landed] = Future()
        # A running future can't be cancelled, so a waiter that is cancelled takes only itself away.
        self.done.set_running_or_notify_cancel()

    @property
    def landed(self) -> Landed:
        return self.done.result(0)


class Flights:
    """The flights of one process. Dictionary operations are atomic, so there is no lock."""

    def __init__(self) -> None:
        self._flying: dict[Name, Flight] = {}

    def open(self, name: Name) -> Flight | None:
        """A new flight to lead, or None when somebody leads it already."""
        flight = Flight(name)
        return flight if self._flying.setdefault(name, flight) is flight else None

    def find(self, name: Name) -> Flight | None:
        return self._flying.get(name)

    def land(self, flight: Flight, landed: Landed) -> None:
        """Wake the waiters; the flight can still be found until it is closed."""
        if not flight.done.done():
            flight.done.set_result(landed)

    def close(self, flight: Flight) -> None:
        """Forget the flight; whoever still waits for it must lead for himself."""
        if self._flying.get(flight.name) is flight:
            del self._flying[flight.name]
        self.land(flight, ABANDONED)

    def __len__(self) -> int:
        return len(self._flying)
