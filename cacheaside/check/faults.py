"""Faults: what is done to servers, connections and processes while they work.

A fault is a generator that strikes and yields the seconds until it wants to go on; when it is closed it
mends what is broken. It runs in a thread of its own until the check ends.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct
from redis.exceptions import RedisError

from cacheaside.check.board import LOADING, READING, WRITING
from cacheaside.errors import CacheasideError

if TYPE_CHECKING:
    from cacheaside.check.arena import Arena
    from cacheaside.testing.proxy import ChaosProxy

log = logging.getLogger("cacheaside")

Needs = Literal["", "server", "proxy", "sentinel", "cluster"]
Act = Generator[float]

ROOM: Final = 4 * 2**20
CHURN: Final = 0.8
BLOB: Final = bytes(64 * 2**10)
AGAIN: Final = 0.05


class Fault(Struct, frozen=True):
    """A fault by name. ``needs`` is what it must have for itself, beside the processes of the check."""

    name: str
    summary: str
    needs: Needs
    act: Callable[[Arena, random.Random], Act]


FAULTS: Final[dict[str, Fault]] = {}


def fault(
    name: str, summary: str, needs: Needs = ""
) -> Callable[[Callable[[Arena, random.Random], Act]], Any]:
    def register(act: Callable[[Arena, random.Random], Act]) -> Any:
        FAULTS[name] = Fault(name, summary, needs, act)
        return act

    return register


class Striking:
    """Runs faults beside the check; a context manager, after which all is mended."""

    def __init__(self, faults: Sequence[Fault], arena: Arena, seed: int) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(each, arena, seed), name=f"fault-{each.name}")
            for each in faults
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, each: Fault, arena: Arena, seed: int) -> None:
        rng = random.Random(f"{seed}/{each.name}")
        while not self._stop.is_set():
            acting = each.act(arena, rng)
            try:
                for pause in acting:
                    if self._stop.wait(pause):
                        break
            except (RedisError, OSError, RuntimeError, CacheasideError) as error:
                # Another fault may have taken the server away: go on when it is back.
                log.debug("fault %s: %s", each.name, error)
                self._stop.wait(AGAIN)
            finally:
                with suppress(RedisError, OSError):
                    acting.close()


# ---------------------------------------------------------------------------- memory


@fault("eviction", "deletes a random key of the check every 3 ms: values, tokens, placeholders, holds, locks")
def eviction(arena: Arena, rng: random.Random) -> Act:
    with arena.admin() as client:
        while True:
            names = list(client.scan_iter(f"*{arena.prefix}*", count=1000))
            rng.shuffle(names)
            yield 0.003
            for name in names[:30]:
                if client.unlink(name):
                    arena.strike("eviction", "evicts", name.decode(errors="replace"))
                yield 0.003


@fault("maxmemory", "allkeys-lru with a neighbour who writes 80 % of the memory anew every 50 ms", "server")
def maxmemory(arena: Arena, rng: random.Random) -> Act:
    with arena.admin() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + ROOM)
        evicted = number = 0
        while True:
            with client.pipeline(transaction=False) as pipe:
                for _ in range(int(CHURN * ROOM / len(BLOB))):
                    number += 1
                    pipe.set(f"churn:{number % 1000}", BLOB)
                pipe.execute(raise_on_error=False)
            yield 0.05
            before, evicted = evicted, client.info("stats")["evicted_keys"]
            if evicted > before:
                arena.strike("maxmemory", f"{evicted - before} keys evicted")


@fault("flushall", "FLUSHALL several times a second", "server")
def flushall(arena: Arena, rng: random.Random) -> Act:
    with arena.admin() as client:
        while True:
            yield rng.uniform(0.05, 0.4)
            client.flushall()
            arena.strike("flushall", "everything is gone")


# ---------------------------------------------------------------------------- the server


@fault("script-flush", "SCRIPT FLUSH many times a second", "server")
def script_flush(arena: Arena, rng: random.Random) -> Act:
    with arena.admin() as client:
        while True:
            yield rng.uniform(0.01, 0.1)
            client.script_flush()
            arena.strike("script-flush", "the server forgets its scripts")


@fault("client-pause", "CLIENT PAUSE, of everything or of writes", "server")
def client_pause(arena: Arena, rng: random.Random) -> Act:
    with arena.admin() as client:
        while True:
            yield rng.uniform(0.1, 0.5)
            everything, pause = rng.random() < 0.5, rng.choice((0.05, 0.2, 0.5, 1.5))
            arena.strike("client-pause", f"{'everything' if everything else 'writes'} for {pause} s")
            try:
                client.client_pause(int(pause * 1000), all=everything)
                yield pause
            finally:
                client.execute_command("CLIENT UNPAUSE")


@fault("restart-empty", "the server dies and comes back empty", "server")
def restart_empty(arena: Arena, rng: random.Random) -> Act:
    server = arena.server
    while True:
        yield rng.uniform(0.3, 1.5)
        arena.strike("restart-empty", "the server dies")
        try:
            server.kill()
            yield rng.choice((0.0, 0.1, 0.5))
        finally:
            server.start()
        arena.strike("restart-empty", "the server is back, empty")


@fault("restart-snapshot", "the server dies and comes back as it was some time before", "server")
def restart_snapshot(arena: Arena, rng: random.Random) -> Act:
    server = arena.server
    while True:
        yield rng.uniform(0.2, 0.6)  # or there would be nothing in the snapshot
        with arena.admin() as client:
            client.save()
        arena.strike("restart-snapshot", "a snapshot is saved")
        yield rng.uniform(0.1, 0.8)
        arena.strike("restart-snapshot", "the server dies")
        try:
            server.kill()
        finally:
            server.start()
        arena.strike("restart-snapshot", "the server is back with the snapshot")


# ---------------------------------------------------------------------------- connections


@fault("subscriber-killed", "kills the connections on which the processes hear of invalidations")
def subscriber_killed(arena: Arena, rng: random.Random) -> Act:
    with arena.admin() as client:
        while True:
            yield rng.uniform(0.1, 0.6)
            for found in client.client_list(_type="pubsub"):
                if found.get("name") == arena.name:
                    client.client_kill_filter(_id=found["id"])
                    arena.strike("subscriber-killed", f"kills connection {found['id']}")


@fault("proxy", "a bad network: late, chopped, one-sided, reset, closed, refused, black-holed", "proxy")
def proxy(arena: Arena, rng: random.Random) -> Act:
    bad = network(arena.proxy)
    while True:
        names = list(bad)
        rng.shuffle(names)
        for name in names:
            yield rng.uniform(0.05, 0.3)
            arena.strike("proxy", name)
            try:
                bad[name]()
                yield rng.choice((0.05, 0.1, 0.3, 1.2))
            finally:
                arena.proxy.heal()


def network(between: ChaosProxy) -> dict[str, Callable[[], object]]:
    """What a network does, in words."""

    def refuse() -> None:
        between.refuse()
        between.drop()

    return {
        "every byte is late": lambda: between.latency(0.02, 0.05),
        "replies are late": lambda: between.latency(0.1, direction="replies"),
        "replies come byte by byte": lambda: between.chop(7, direction="replies"),
        "a black hole": between.black_hole,
        "requests are lost": lambda: between.black_hole(direction="requests"),
        "replies are lost": lambda: between.black_hole(direction="replies"),
        "the channel is a black hole": lambda: between.black_hole(role="channel"),
        "commands are a black hole": lambda: between.black_hole(role="commands"),
        "replies are reset in the middle": lambda: between.reset(after=3),
        "connections are closed after 2,000 bytes": lambda: between.close_after(2000),
        "replies end": between.half_close,
        "connections are dropped": lambda: between.drop(),
        "connections are refused": refuse,
    }


# ---------------------------------------------------------------------------- processes


def stopping(doing: Sequence[int]) -> Callable[[str], Callable[[Arena, random.Random], Act]]:
    def named(name: str) -> Callable[[Arena, random.Random], Act]:
        def act(arena: Arena, rng: random.Random) -> Act:
            while True:
                place = arena.crew.find(doing, rng)
                if place is None:
                    yield 0.01
                    continue
                try:
                    arena.crew.freeze(place)
                    arena.strike(name, f"process p{place} is stopped")
                    yield rng.choice((0.05, 0.2, 0.7, 1.6))
                finally:
                    arena.crew.thaw(place)
                arena.strike(name, f"process p{place} goes on")
                yield rng.uniform(0.02, 0.2)

        return act

    return named


for _name, _summary, _doing in (
    ("sigstop-readers", "SIGSTOP to a process that reads, for up to 1.6 s", (READING,)),
    ("sigstop-leaders", "SIGSTOP to a process that loads, for up to 1.6 s", (LOADING,)),
    ("sigstop-invalidators", "SIGSTOP to a process between its commit and its return", (WRITING,)),
):
    fault(_name, _summary)(stopping(_doing)(_name))


@fault("sigkill-leaders", "SIGKILL to a process that loads; another one takes its place")
def sigkill_leaders(arena: Arena, rng: random.Random) -> Act:
    while True:
        yield rng.uniform(0.1, 0.5)
        place = arena.crew.find((LOADING,), rng)
        if place is not None:
            arena.crew.kill(place)
            arena.strike("sigkill-leaders", f"process p{place} is killed and replaced")
