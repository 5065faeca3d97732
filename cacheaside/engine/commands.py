"""What a flow may ask for. A store answers the first group, a driver the second.

Keys in here are raw: with the prefix, as Redis sees them. Durations are seconds.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from cacheaside.engine.call import Call
    from cacheaside.engine.flights import Flight

T = TypeVar("T")

NOT_A_STRING: Final = b"?"


class Fetch(Struct, frozen=True, gc=False):
    """Read keys, in order; a missing one, or one that holds no string, is None. Reply: list of bytes."""

    keys: tuple[str, ...]


class Begin(Struct, frozen=True, gc=False):
    """Put placeholders into slots and fresh tokens where there are none, in one round trip.

    A slot is taken when it is empty, or still opens with ``expected``. ``dead`` are (token key, fresh token,
    what stands there and is to be replaced). Reply: ``Begun``.
    """

    slots: tuple[Place, ...]
    tokens: tuple[tuple[str, bytes], ...]
    lease: float
    token_ttl: float
    dead: tuple[tuple[str, bytes, bytes], ...] = ()


class Place(Struct, frozen=True, gc=False):
    slot: str
    marker: bytes
    expected: bytes | None = None


class Begun(Struct, frozen=True, gc=False):
    """For each slot None when it is ours, else what stands there (b"" if nothing); the tokens in force,
    those that replace dead ones last.

    What is there and is no string (somebody else's list, say) is answered as ``NOT_A_STRING``.
    """

    slots: tuple[bytes | None, ...]
    tokens: tuple[bytes, ...]


class Commit(Struct, frozen=True, gc=False):
    """Replace each slot by its value if it still opens with ``expected``. Reply: tuple of bool.

    ``extend`` prolongs tokens; ``index`` lists the entries under their tags, for people and reclaim;
    ``notify`` names keys that others may be waiting for.
    """

    fills: tuple[Fill, ...]
    extend: tuple[tuple[str, float], ...] = ()
    index: tuple[tuple[str, str, float], ...] = ()
    notify: tuple[str, ...] = ()


class Fill(Struct, frozen=True, gc=False):
    slot: str
    staging: str
    expected: bytes
    value: bytes
    ttl: float


class Claim(Struct, frozen=True, gc=False):
    """Put markers into slots, whatever stands there but a hold, and tokens where there are none.

    Reply: ``Begun``.
    """

    slots: tuple[tuple[str, bytes], ...]
    tokens: tuple[tuple[str, bytes], ...]
    ttl: float
    token_ttl: float


class Release(Struct, frozen=True, gc=False):
    """Delete a key if it still opens with ``expected``. Reply: bool."""

    key: str
    expected: bytes


class Sweep(Struct, frozen=True, gc=False):
    """Delete each key that still opens with what is expected of it. Reply: how many were."""

    keys: tuple[tuple[str, bytes], ...]


class Lock(Struct, frozen=True, gc=False):
    """Take a lock for ``ttl``. Reply: None when it is ours, else what stands there."""

    key: str
    nonce: bytes
    ttl: float


class Renew(Struct, frozen=True, gc=False):
    """Prolong each key that still opens with what is expected of it. Reply: None."""

    keys: tuple[tuple[str, bytes], ...]
    ttl: float


class Announce(Struct, frozen=True, gc=False):
    """Tell every process's L1 to drop keys, and keys that match patterns. Reply: None."""

    keys: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


class Confirm(Struct, frozen=True, gc=False):
    """Make sure that every announcement of these tags made before now has been heard here. Reply: bool."""

    timeout: float
    tags: tuple[str, ...] = ()


class Run(Struct, frozen=True, gc=False):
    """Run a program (stores/program.py) as one atomic step; its keys share a slot of a cluster.

    Reply: what it returns.
    """

    program: Any
    keys: tuple[str, ...]
    args: tuple[bytes | str | int | float, ...] = ()


class Sizes(Struct, frozen=True, gc=False):
    """How many entries are listed in each of these. Reply: tuple of int."""

    indexes: tuple[str, ...]


class Scan(Struct, frozen=True, gc=False):
    """Some of the keys of strings that match a glob pattern. Reply: ``(next cursor or None, keys)``.

    What programs keep is no string: clearing a cache is not to end sessions, locks and limits. ``lists`` asks
    for the lists of tags instead.
    """

    pattern: str
    cursor: object = None
    count: int = 500
    lists: bool = False


class Members(Struct, frozen=True, gc=False):
    """Entries listed under a tag, the first to expire first. Reply: list of keys."""

    index: str
    start: int
    count: int


class Forget(Struct, frozen=True, gc=False):
    """Take keys out of a tag's list. Reply: None."""

    index: str
    keys: tuple[str, ...]


class Invalidate(Struct, frozen=True, gc=False):
    """Drop values with all that belongs to them, and replace tag tokens; announce both. Reply: None.

    ``slots`` are (value, refresh lock, staging); ``tokens`` are (token key, new token, name). Where a hold
    stands it stays, for nothing can be stored there: until it ends, or is named by ``release``. ``hold``, a
    name and seconds, begins one.
    """

    slots: tuple[tuple[str, str, str], ...]
    tokens: tuple[tuple[str, bytes, str], ...]
    token_ttl: float
    hold: tuple[bytes, float] | None = None
    release: bytes = b""


class Load(Struct, frozen=True):
    """Call the user's function. Reply: ``Loaded``.

    ``renew`` is sent every third of its ttl while the function runs. ``soft`` and ``hard`` bound it;
    after ``soft`` the reply is ``Pending``.
    """

    call: Call
    renew: Renew | None = None
    soft: float | None = None
    hard: float | None = None


class Loaded(Struct, frozen=True):
    value: Any = None
    error: Exception | None = None


class Pending(Struct, frozen=True):
    """A load that goes on after its soft timeout; give it to ``Await``."""

    future: Any


class Await(Struct, frozen=True):
    """Wait for a pending load to end. Reply: ``Loaded``."""

    pending: Pending
    timeout: float | None
    renew: Renew | None = None


class Wait(Struct, frozen=True):
    """Wait for a flight of this process. Reply: True when it has ended."""

    flight: Flight
    timeout: float


class Expect(Struct, frozen=True, gc=False):
    """From now on, note when a key is announced as filled. Reply: what to give to ``Sleep``, or None."""

    key: str


class Sleep(Struct, frozen=True):
    """Let time pass before looking again; less of it when what is expected happens."""

    seconds: float
    expected: Any = None


class Spawn(Struct, frozen=True):
    """Run another flow beside this one; nobody waits for it. ``name`` is what a trace calls it."""

    flow: Generator[Any, Any, Any]
    name: str = ""


class Together(Struct, frozen=True):
    """Run flows side by side, so ``many`` at a time, and wait for all. Reply: ``Loaded`` for each, in order.

    ``renew`` is sent every third of its ttl while they run.
    """

    flows: tuple[Generator[Any, Any, Any], ...]
    many: int
    renew: Renew | None = None


Command = (
    Fetch
    | Begin
    | Commit
    | Claim
    | Release
    | Sweep
    | Lock
    | Renew
    | Announce
    | Confirm
    | Expect
    | Run
    | Scan
    | Sizes
    | Members
    | Forget
    | Invalidate
    | Load
    | Await
    | Wait
    | Sleep
    | Spawn
    | Together
)
Flow = Generator[Command, Any, T]
