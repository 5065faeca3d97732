"""One call of one cached function, and the site it is made at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from cacheaside.engine.commands import Flow
from cacheaside.engine.flights import Flights
from cacheaside.keys import tag_name
from cacheaside.policy import Policy, Seconds, seconds
from cacheaside.rawkeys import RawKeys
from cacheaside.stats import Counts

if TYPE_CHECKING:
    from cacheaside.engine.look import Verdict


class Codec(Protocol):
    """What the engine needs of codecs.py."""

    @property
    def schema(self) -> bytes: ...
    @property
    def shareable(self) -> bool: ...
    def encode(self, value: Any) -> bytes: ...
    def decode(self, data: bytes) -> Any: ...


class Kept(Protocol):
    """What an L1 answers."""

    @property
    def value(self) -> Any: ...


class Near(Protocol):
    """What the engine needs of an L1: see stores/memory.py."""

    def get(self, key: str, now: float) -> Kept | None: ...
    def now(self) -> int: ...
    def put(
        self, key: str, value: object, until: float, tags: tuple[str, ...], since: int, size: int
    ) -> None: ...
    def mark(self, keys: tuple[str, ...], tags: tuple[str, ...]) -> None: ...
    def clear(self, pattern: str = "*") -> None: ...
    def unmarked(self, tags: tuple[str, ...], since: int) -> bool: ...


class Journal(Protocol):
    """What the engine needs of the process's journal: see journal.py."""

    change: int
    owing: bool

    def note(self, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str] = ()) -> None: ...
    def confirm(self, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str] = ()) -> None: ...
    def owe(self, keys: Iterable[str], tags: Iterable[str], patterns: Iterable[str] = ()) -> None: ...
    def batch(self, most: int) -> Any: ...
    def settle(self, batch: Any) -> None: ...
    def doubts(self, key: str, tags: Iterable[str], since: int) -> bool: ...


class World(Protocol):
    """What the flows know of the process they run in; tests replace it."""

    keys: RawKeys
    flights: Flights
    max_value: int
    index_limit: int
    spread: bool
    """Whether tags may live on other servers than values: a cluster."""

    @property
    def journal(self) -> Journal: ...
    def pack(self, payload: bytes) -> tuple[int, bytes]: ...
    def unpack(self, flags: int, payload: bytes) -> bytes: ...
    def clock(self) -> float: ...
    def tick(self) -> float: ...
    def random(self) -> float: ...
    def nonce(self) -> bytes: ...
    def incarnation(self, key: str) -> bytes: ...
    def tag_incarnation(self, tag: str) -> bytes: ...
    def accepts(self, incarnation: bytes, key: str) -> bool: ...
    def accepts_tag(self, incarnation: bytes, tag: str) -> bool: ...
    def extend(self, token: str, needed: float, until: float) -> bool: ...
    def bad_data(self, site: Site, key: str, reason: str) -> None: ...
    def grown(self, site: Site, stored: int) -> Flow[None] | None:
        """Told at every power of two how many results were stored; what is to be done beside that."""
        ...


class Site:
    """All that is known about a decorated function once it is bound to a cache."""

    __slots__ = ("app", "codec", "counts", "keeps", "late_names", "near", "policy", "witness", "world")

    def __init__(
        self,
        world: World,
        policy: Policy,
        codec: Codec,
        near: Near | None,
        witness: Near | None = None,
        *,
        keeps: bool = True,
        app: str = "",
    ) -> None:
        self.world = world
        self.policy = policy
        self.codec = codec
        self.near = near
        self.witness = near if witness is None else witness
        """What has heard of every invalidation in this process, whether or not results stay in L1."""
        self.keeps = keeps
        """False: kept out of L2, and there is no other store here: calls load and store nothing."""
        self.app = app
        """Whose function it is: the name of its package; "" for direct operations."""
        self.counts = Counts()
        self.late_names: dict[str, tuple[str, ...]] = {}

    def remember_late(self, key: str, names: tuple[str, ...]) -> None:
        """Prefetch these tags' tokens the next time ``key`` is read."""
        if len(self.late_names) >= 4096:
            self.late_names.clear()
        self.late_names[key] = names


class Call:
    """One call: what to answer, and what its loader may say about it (``current_load()``)."""

    __slots__ = (
        "_extra",
        "_ttl",
        "forced",
        "found",
        "key",
        "keys",
        "late",
        "load",
        "outcome",
        "over",
        "parent",
        "since",
        "store",
        "stored",
        "tags",
        "wait_until",
        "waited",
    )

    def __init__(
        self,
        key: str,
        tags: tuple[str, ...],
        load: Callable[[], Any],
        late: Callable[[Any], tuple[str, ...]] | None = None,
        *,
        forced: bool = False,
    ) -> None:
        self.key = key
        self.keys: Collection[str] = ()
        """The keys of a batch that its loader is to bring."""
        self.tags = tags
        self.load = load
        self.late = late
        self.forced = forced
        self.outcome = ""
        """How it was answered: hit, stale, miss, coalesced or bypass; for telemetry."""
        self.found: Verdict | None = None
        """What the store was last seen to hold for it."""
        self.stored = False
        """Whether what it has loaded was stored."""
        self.since = 0
        self.wait_until: float | None = None
        self.waited = 0.0
        self.over = False
        call = self.parent = running(current.get())
        while call is not None:  # or a function that schedules its own next call makes an ever longer chain
            call.parent = running(call.parent)
            call = call.parent
        self._ttl: float | None = None
        self.store = True
        self._extra: tuple[str, ...] = ()

    @property
    def ttl(self) -> float | None:
        """The ttl that the loader has chosen; None leaves it to the policy, 0 stores nothing."""
        return self._ttl

    @ttl.setter
    def ttl(self, value: Seconds | None) -> None:
        self._ttl = None if value is None else seconds("ttl", value, zero=True)

    def tag(self, *names: str) -> None:
        """Add tags that only the loader knows; they count as late tags."""
        self._extra += tuple(map(tag_name, names))

    def told(self, batch: Call) -> None:
        """What the loader of a batch has said holds for each of its items."""
        self._ttl, self.store, self._extra = batch._ttl, batch.store, batch._extra

    def late_tags(self, result: Any) -> tuple[str, ...]:
        """The tags that the result names and the arguments do not, without repetition."""
        named = self.late(result) if self.late is not None else ()
        return tuple(t for t in dict.fromkeys(named + self._extra) if t not in self.tags)

    def nested(self) -> bool:
        """Whether a call around this one loads the same key: waiting for it would be a deadlock."""
        call = self.parent
        while call is not None:
            if call.key == self.key or self.key in call.keys:
                return True
            call = call.parent
        return False


current: Final[ContextVar[Call | None]] = ContextVar("cacheaside_current_load", default=None)


def current_load() -> Call | None:
    """The cached call whose loader is running here, or None.

    The loader may set ``ttl`` (seconds) or ``store = False`` on it, and call ``tag("author:7")``.
    """
    return running(current.get())


def running(call: Call | None) -> Call | None:
    """The nearest call around here that still loads: tasks begun by a loader may outlive it."""
    while call is not None and call.over:
        call = call.parent
    return call
