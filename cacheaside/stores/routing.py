"""Commands on their way through a cluster: to whoever holds their slot, and after it when it moves.

Generators that know no socket, as the engine's flows: they yield an ``Exchange`` and are sent what each
server answered, or a ``Pause``. A server that says MOVED, ASK, TRYAGAIN, CLUSTERDOWN or NOSCRIPT has done
nothing, so the call is sent again, so many times at most. A server that does not answer may have done what
it was told: what to make of that is decided by who asked.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from cacheaside.errors import ConfigError
from cacheaside.stores.topology import Address, Topology, slot_of

T = TypeVar("T")

Call = tuple[Any, ...]
Answers = dict[Address, list[Any] | Exception]

ATTEMPTS: Final = 8
PAUSE_FIRST: Final = 0.005
PAUSE_LAST: Final = 0.05
KEY_AT: Final = {"EVALSHA": 3, "EVAL": 3, "PUBSUB": 2}
"""Where the key stands in a call, if it is not the first argument."""
TOLD: Final = ("SPUBLISH", "PUBSUB")
"""What goes last: announcements."""
SCANS: Final = 3
"""Times that the key space is gone through while slots keep moving."""


class Exchange(Struct, frozen=True):
    """Send calls to servers, to all at once. Reply: for each a list of replies, error replies among them as
    they are, or the exception that kept it from answering.

    ``asking`` are the calls that a server is to take though it does not own their slot yet.
    """

    calls: dict[Address, list[Call]]
    asking: frozenset[tuple[Address, int]] = frozenset()


class Pause(Struct, frozen=True):
    seconds: float


Route = Generator[Exchange | Pause, Any, T]


def key_of(call: Call) -> str:
    """The key, or channel, that says where a call goes."""
    key: str = call[KEY_AT.get(call[0], 1)]
    return key


class Item:
    """A call and how far it has come."""

    __slots__ = ("ask", "call", "place", "slot")

    def __init__(self, place: int, call: Call) -> None:
        self.place = place
        self.call = call
        self.slot = slot_of(key_of(call))
        self.ask: Address | None = None

    def order(self) -> int:
        return self.place


def route(topology: Topology, calls: Sequence[Call], silent: set[Address] | None = None) -> Route[list[Any]]:
    """The replies to ``calls``, in order: what is an error is in the place of its reply.

    Who did not answer is put into ``silent``.
    """
    replies: list[Any] = [None] * len(calls)
    waiting = [Item(place, call) for place, call in enumerate(calls)]
    pause = PAUSE_FIRST
    for _ in range(ATTEMPTS):
        if topology.due():
            yield from visit(topology)
        there = addressed(topology, waiting)
        answers: Answers = yield Exchange(*plan(there))
        again: list[Item] = []
        patience = False
        for address, items in there.items():
            answer: Any = answers[address]
            if isinstance(answer, Exception):
                topology.failed(address)
                if silent is not None:
                    silent.add(address)
                answer = [answer] * len(items)
            for item, reply in zip(items, answer, strict=True):
                replies[item.place] = reply
                if isinstance(reply, Exception) and redirected(topology, item, reply, address):
                    again.append(item)
                    patience = patience or isinstance(reply, (TryAgainError, ClusterDownError))
        if not again:
            break
        waiting = sorted(again, key=Item.order)
        if patience:
            yield Pause(pause)
            pause = min(pause * 2, PAUSE_LAST)
    return replies


def addressed(topology: Topology, waiting: Sequence[Item]) -> dict[Address, list[Item]]:
    """Who is to be sent what."""
    there: dict[Address, list[Item]] = {}
    for item in waiting:
        address = item.ask or topology.owner(item.slot)
        if address is None:
            topology.doubt()
            raise RedisConnectionError(f"no server of the cluster holds slot {item.slot}")
        there.setdefault(address, []).append(item)
    return there


def plan(
    there: dict[Address, list[Item]],
) -> tuple[dict[Address, list[Call]], frozenset[tuple[Address, int]]]:
    calls = {address: [item.call for item in items] for address, items in there.items()}
    asking = frozenset(
        (address, n) for address, items in there.items() for n, item in enumerate(items) if item.ask
    )
    return calls, asking


def redirected(topology: Topology, item: Item, error: Exception, address: Address) -> bool:
    """Whether a call is to be sent again; where to is noted."""
    if isinstance(error, MovedError):
        item.ask = None
        topology.moved(item.slot, elsewhere(error, address))
    elif isinstance(error, AskError):
        item.ask = elsewhere(error, address)
    elif isinstance(error, NoScriptError):
        item.call = ("EVAL", item.call[1].text, *item.call[2:])
    elif isinstance(error, ClusterDownError):
        return topology.down()
    else:
        # Keys of a slot that are here and there do not come together by waiting: see fetch.
        return isinstance(error, TryAgainError) and item.call[0] != "MGET"
    return True


def elsewhere(error: Any, address: Address) -> Address:
    """Where a server sends us: to the same host if it names none."""
    return (str(error.host or address[0]), int(error.port))


def visit(topology: Topology) -> Route[None]:
    """Ask the cluster who holds what: the first server that answers knows.

    Raises ConfigError where there is no cluster.
    """
    failure: Exception = RedisConnectionError("no server of the cluster is known")
    for address in topology.candidates():
        answers = yield Exchange({address: [("CLUSTER", "SLOTS")]})
        answer = answers[address]
        if isinstance(answer, Exception):
            topology.failed(address)
            failure = answer
        elif isinstance(answer[0], Exception):
            failure = answer[0]
            if isinstance(failure, ResponseError) and "cluster support disabled" in str(failure):
                raise ConfigError(
                    f"{address[0]}:{address[1]} is no node of a cluster: write redis:// instead of redis+cluster://"
                )
        else:
            topology.learn(answer[0], address)
            return
    if not topology.known:
        raise failure


def fetch(topology: Topology, keys: Sequence[str]) -> Route[list[Any]]:
    """The values of ``keys``, in order: one MGET for each slot. An exception in the place of a value."""
    by_slot: dict[int, list[str]] = {}
    for key in keys:
        by_slot.setdefault(slot_of(key), []).append(key)
    found: dict[str, Any] = {}
    silent: set[Address] = set()
    yield from gather(topology, list(by_slot.values()), found, silent)
    # Of a slot that moves some keys are here and some there: one by one each is to be had.
    split = [[key] for group in by_slot.values() if len(group) > 1 for key in group if _split(found[key])]
    if split:
        yield from gather(topology, split, found)
    if silent:
        if topology.due():
            yield from visit(topology)
        # Reading again harms nobody, where there is somebody else to ask.
        groups = [group for group in by_slot.values() if _lost(found[group[0]])]
        other = [group for group in groups if topology.server_of(group[0]) not in silent]
        if other:
            yield from gather(topology, other, found)
    return [found[key] for key in keys]


def gather(
    topology: Topology,
    groups: list[list[str]],
    found: dict[str, Any],
    silent: set[Address] | None = None,
) -> Route[None]:
    replies = yield from route(topology, [("MGET", *group) for group in groups], silent)
    for group, reply in zip(groups, replies, strict=True):
        found.update(zip(group, [reply] * len(group) if isinstance(reply, Exception) else reply, strict=True))


def _split(value: Any) -> bool:
    return isinstance(value, TryAgainError)


def _lost(value: Any) -> bool:
    return isinstance(value, Exception) and not isinstance(value, ResponseError)


def dispatch(topology: Topology, calls: Sequence[Call]) -> Route[list[Any]]:
    """The replies to ``calls``; what is published goes last, when all servers have done the rest.

    Who hears of a drop must not find what was dropped.
    """
    first = [i for i, call in enumerate(calls) if call[0] not in TOLD]
    last = [i for i, call in enumerate(calls) if call[0] in TOLD]
    replies: list[Any] = [None] * len(calls)
    for places in filter(None, (first, last)):
        got = yield from route(topology, [calls[i] for i in places])
        for place, reply in zip(places, got, strict=True):
            replies[place] = reply
    return replies


class Cursor(Struct, frozen=True):
    """How far a scan has come: which servers are left, where in the first of them, and who held what."""

    servers: tuple[Address, ...]
    at: int
    held: tuple[Any, ...]
    scans: int = 1


def scan(
    topology: Topology, cursor: Cursor | None, pattern: str, count: int, kind: str = "string"
) -> Route[tuple[Cursor | None, list[bytes]]]:
    """Some keys of a kind that match, of all servers; what is left.

    A key that moves from a server that is yet to be scanned to one that has been would be missed: if slots
    have moved since the scan began, it begins again.
    """
    if cursor is None:
        yield from visit(topology)
        cursor = Cursor(topology.primaries, 0, (yield from holdings(topology)))
    server, *rest = cursor.servers
    call = ("SCAN", cursor.at, "MATCH", pattern, "COUNT", count, "TYPE", kind)
    answers = yield Exchange({server: [call]})
    at, found = only(answers[server])
    if int(at) or rest:
        left = cursor.servers if int(at) else tuple(rest)
        return Cursor(left, int(at), cursor.held, cursor.scans), found
    yield from visit(topology)
    held = yield from holdings(topology)
    if held == cursor.held and not moving(held):
        return None, found
    if cursor.scans == SCANS:
        raise RedisError("slots of the cluster keep moving, and a scan would miss keys: try again later")
    return Cursor(topology.primaries, 0, held, cursor.scans + 1), found


def holdings(topology: Topology) -> Route[tuple[Any, ...]]:
    """What each server says of itself: its id, and the slots that it holds or that are on their way."""
    answers = yield Exchange({address: [("CLUSTER", "NODES")] for address in topology.primaries})
    held: list[Any] = []
    for address, answer in answers.items():
        for line in only(answer).decode().splitlines():
            if "myself" in line:
                node, _, _, _, _, _, _, _, *slots = line.split()
                held.append((address, node, tuple(slots)))
    return tuple(sorted(held))


def moving(held: tuple[Any, ...]) -> bool:
    return any(slot.startswith("[") for _, _, slots in held for slot in slots)


def only(answer: Any) -> Any:
    """The reply of a server that was asked for one; raises what is an error."""
    reply = answer if isinstance(answer, Exception) else answer[0]
    if isinstance(reply, Exception):
        raise reply
    return reply


def beaten(calls: dict[Address, list[Call]]) -> Route[bool]:
    """Send heartbeats, each the last of its server's calls, without following them anywhere else.

    False: one of the slots is not, or not wholly, where its line is.
    """
    answers: Answers = yield Exchange(calls)
    unknown: dict[Address, list[Call]] = {}
    for address, answer in answers.items():
        for call, reply in zip(calls[address], whole(answer), strict=True):
            if isinstance(reply, (AskError, TryAgainError)):  # MOVED among them
                return False
            if isinstance(reply, NoScriptError):
                unknown[address] = [("EVAL", call[1].text, *call[2:])]
            elif isinstance(reply, Exception):
                raise reply
    if unknown:
        answers = yield Exchange(unknown)
        for answer in answers.values():
            only(answer)
    return True


def whole(answer: list[Any] | Exception) -> list[Any]:
    """What a server answered; raises why it did not."""
    if isinstance(answer, Exception):
        raise answer
    return answer
