"""What ``doctor`` looks at: each examination tells what it finds, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, Final

from msgspec import Struct
from redis.exceptions import NoPermissionError, ResponseError

from cacheaside.cache import Cache
from cacheaside.cli.options import Servers
from cacheaside.cli.output import count, duration, size
from cacheaside.cli.probes import TAG, Level, probes
from cacheaside.cli.servers import info, listening, version_of
from cacheaside.cli.survey import Survey, survey
from cacheaside.engine.commands import Confirm
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.facts import parse_info

SKEW: Final = 1.0
"""Seconds that clocks may be apart: by so much, entries end too early or too late."""
SLOW: Final = 0.05
"""Seconds that a heartbeat takes where something is in its way."""
BEATS: Final = 5
PATIENCE: Final = 3.0
FULL: Final = 0.9
LOCAL: Final = ("127.", "localhost", "::1", "[::1]")
SAMPLE: Final = 10_000


class Finding(Struct):
    """One thing that was looked at."""

    level: Level
    about: str
    what: str
    remedy: str = ""


class Patient(Struct):
    """What the examinations work with."""

    there: Servers
    cache: Cache
    infos: list[dict[str, Any]]
    found: Survey


Examination = Callable[[Patient], Iterator[Finding]]


def url(patient: Patient) -> Iterator[Finding]:
    """Whether the way to the servers is fit for what goes over it."""
    endpoint = patient.there.endpoint
    near = endpoint.scheme == "unix" or all(host.startswith(LOCAL) for host, _ in endpoint.hosts)
    secret = bool(endpoint.password or endpoint.username)
    if not endpoint.tls and not near and secret:
        yield Finding(
            "warning", "url", f"{endpoint.safe}: the password goes over the network as it is",
            f"use {endpoint.scheme.replace('redis', 'rediss')}:// if the server has TLS",
        )  # fmt: skip
    elif not secret and not near:
        yield Finding(
            "warning", "url", f"{endpoint.safe}: whoever reaches the server may do what he likes",
            "give the server a user with a password, and name both in the URL",
        )  # fmt: skip
    else:
        yield Finding("ok", "url", endpoint.safe)


def server(patient: Patient) -> Iterator[Finding]:
    """Versions, roles, and what the servers can do."""
    for said in patient.infos:
        if not said:
            yield Finding(
                "warning", "server", "INFO is forbidden: restarts and failovers cannot be told from pauses",
                "grant +info to the user of the URL",
            )  # fmt: skip
            continue
        try:
            facts = parse_info(said)
        except ConfigError as error:
            yield Finding("error", "server", str(error), "use a newer server")
            continue
        how = "compare-and-set by SET IFEQ" if facts.has_ifeq else "compare-and-set by scripts"
        yield Finding("ok", "server", f"{version_of(said)}, {how}")
        if facts.role and facts.role != "master":
            yield Finding(
                "error", "server", "this is a replica: it takes no writes, so nothing is ever cached",
                "name the primary in the URL, or the sentinels: redis+sentinel://host:26379/service",
            )  # fmt: skip
        limit, used = int(said.get("maxclients", 0)), int(said.get("connected_clients", 0))
        if limit and used > FULL * limit:
            yield Finding(
                "warning", "server", f"{used} of {limit} connections are in use",
                "raise maxclients, or lower max_connections= in the URLs",
            )  # fmt: skip
    if patient.there.endpoint.cluster:
        state = cluster_state(patient.there.nodes[0])
        if state.get("cluster_state") != "ok":
            yield Finding(
                "error", "server", f"the cluster has {state.get('cluster_slots_ok', '?')} of 16384 slots",
                "see CLUSTER INFO and CLUSTER NODES",
            )  # fmt: skip


def cluster_state(node: Any) -> dict[str, Any]:
    try:
        return dict(node.cluster("INFO"))
    except (ResponseError, TypeError, ValueError):
        return {"cluster_state": "ok"}


def memory(patient: Patient) -> Iterator[Finding]:
    """What happens when memory is full."""
    for said in patient.infos:
        if "maxmemory" not in said:
            continue
        limit, used = int(said["maxmemory"]), int(said.get("used_memory", 0))
        policy = str(said.get("maxmemory_policy", ""))
        if not limit:
            yield Finding(
                "note", "memory", f"maxmemory is not set, {size(used)} in use: nothing bounds it",
                "set maxmemory, and maxmemory-policy allkeys-lru for a server that only caches",
            )  # fmt: skip
            continue
        words = f"{size(used)} of {size(limit)}, {policy}"
        if policy == "noeviction":
            level: Level = "warning" if used > FULL * limit else "note"
            yield Finding(
                level, "memory", f"{words}: a full server refuses writes, and nothing more is cached",
                "keep it if sessions or locks are in here; else maxmemory-policy allkeys-lru",
            )  # fmt: skip
        elif patient.found.toolkit:
            yield Finding(
                "warning", "memory",
                f"{words}, and {count(patient.found.toolkit)} keys of sessions, locks or limits are in here: "
                "an eviction logs users out and frees locks",
                "keep them in a database on another server, with noeviction",
            )  # fmt: skip
        else:
            evicted = int(said.get("evicted_keys", 0))
            yield Finding("ok", "memory", words + (f", {count(evicted)} evicted so far" if evicted else ""))


def persistence(patient: Patient) -> Iterator[Finding]:
    """What a restart leaves."""
    for said in patient.infos:
        if "aof_enabled" not in said:
            continue
        saving = [
            name for name, on in (("AOF", said["aof_enabled"]), ("snapshots", saves(patient, said))) if on
        ]
        if said.get("rdb_last_bgsave_status") == "err" or said.get("aof_last_write_status") == "err":
            yield Finding(
                "error", "persistence", "the last save failed: the server may refuse writes",
                "see its log; make room on its disk, or turn saving off",
            )  # fmt: skip
        elif not saving and patient.found.toolkit:
            yield Finding(
                "warning", "persistence", "off: a restart logs all users out and forgets what was revoked",
                "turn appendonly on",
            )  # fmt: skip
        else:
            yield Finding("ok", "persistence", " and ".join(saving) or "off: a restart makes the cache cold")


def saves(patient: Patient, said: dict[str, Any]) -> bool:
    for node in patient.there.nodes:
        try:
            return bool(node.config_get("save").get("save"))
        except ResponseError:  # CONFIG is often forbidden, and nearly every server saves something sometimes
            break
    return int(said.get("rdb_saves", 0)) > 0


def replicas(patient: Patient) -> Iterator[Finding]:
    """Who takes over."""
    for said in patient.infos:
        if said.get("role") != "master":
            continue
        many = int(said.get("connected_slaves", 0))
        behind = [n for n in range(many) if late(said.get(f"slave{n}") or {})]
        if behind:
            yield Finding(
                "warning", "replicas", f"{len(behind)} of {many} are not in step: a promotion would forget",
                "see INFO replication; set min-replicas-to-write and min-replicas-max-lag",
            )  # fmt: skip
        elif many:
            yield Finding("ok", "replicas", f"{many} in step")
        else:
            yield Finding(
                "note", "replicas", "none: while the server is away, every call loads",
                "add one, with sentinels to promote it, if the source cannot bear that",
            )  # fmt: skip


def late(replica: dict[str, Any]) -> bool:
    return replica.get("state") != "online" or int(replica.get("lag", 0)) > 10


# -- what this user may do


def permissions(patient: Patient) -> Iterator[Finding]:
    """Whether the user of the URL can do all that the library does: it is tried."""
    fine = True
    for what, level, commands in probes(patient.there.keys):
        for command in commands:
            try:
                patient.cache.store.perform(command)
            except StoreUnavailable as error:
                fine = False
                words = str(error).partition(": ")[2]
                yield Finding(level, "access", f"cannot {what}: {words}", remedy(words, patient))
                break
    if fine:
        yield Finding("ok", "access", "all that the library does is allowed")


def remedy(words: str, patient: Patient) -> str:
    if "NoPermission" in words or "ACL" in words or "NOPERM" in words:
        user, head = patient.there.endpoint.username or "default", patient.there.keys.value("")
        return (
            f"ACL SETUSER {user} ~{head}* ~{{{head}* &{{{head}t.* +@read +@write +@scripting +@pubsub "
            "+@connection +info +time"
        )
    if "OutOfMemory" in words or "OOM" in words:
        return "raise maxmemory, or set a maxmemory-policy that evicts"
    if "ReadOnly" in words or "READONLY" in words:
        return "name the primary in the URL"
    return "see the log of the server"


# -- time, and the channel


def clock(patient: Patient) -> Iterator[Finding]:
    """Whether this machine's clock and the servers' agree: ends are told by both."""
    for node in patient.there.nodes:
        try:
            before = time.time()
            seconds, micros = node.time()
            after = time.time()
        except ResponseError:
            yield Finding("note", "clock", "TIME is forbidden, and scripts need it", "grant +time")
            return
        apart = seconds + micros / 1e6 - (before + after) / 2
        unsure = (after - before) / 2
        if abs(apart) - unsure > SKEW:
            yield Finding(
                "warning", "clock", f"the server's is {apart:+.2f} s off: entries end too early or too late",
                "have all machines follow NTP",
            )  # fmt: skip
        else:
            yield Finding("ok", "clock", f"within {duration(abs(apart) + unsure)}")


def channel(patient: Patient) -> Iterator[Finding]:
    """How long an invalidation takes to other processes: a heartbeat goes the same way."""
    cache = patient.cache
    assert cache.channel is not None
    cache.listen()
    until = time.monotonic() + PATIENCE
    while not cache.channel.listener.up and time.monotonic() < until:
        time.sleep(0.01)
    if not cache.channel.listener.up:
        why = cache.channel.trouble
        yield Finding(
            "warning", "channel", "cannot be had, so no process has an L1" + (f": {why}" if why else ""),
            f"grant +@pubsub and &{{{patient.there.keys.value('t.*')}",
        )  # fmt: skip
        return
    took: list[float] = []
    for _ in range(BEATS):
        began = time.perf_counter()
        try:
            heard = cache.store.perform(Confirm(PATIENCE, (TAG,)))
        except StoreUnavailable:
            heard = False
        if heard:
            took.append(time.perf_counter() - began)
    if not took:
        yield Finding(
            "warning", "channel", f"no heartbeat came back within {PATIENCE:g} s, so no process has an L1",
            "see whether something between here and the server drops what is published",
        )  # fmt: skip
        return
    words = f"a heartbeat comes back after {duration(median(took))}, {duration(max(took))} at worst"
    if median(took) > SLOW:
        yield Finding(
            "warning", "channel", f"{words}: too long for a small l1_window",
            "give l1_window ten times as much, or bring the server nearer",
        )  # fmt: skip
    else:
        yield Finding("ok", "channel", f"{words}; processes with L1: {listeners(patient)}")


def listeners(patient: Patient) -> int:
    """Processes with an L1, this one not counted."""
    heard: set[bytes] = set()
    for node in patient.there.nodes:
        heard |= listening(patient.there, node)
    return max(0, len(heard) - 1)


# -- whose keys there are


def prefix(patient: Patient) -> Iterator[Finding]:
    """Whether somebody else has keys where ours are."""
    found, name = patient.found, patient.there.keys.prefix
    extent = "" if found.complete else f" among {count(found.looked)} of {count(found.there)} keys"
    if found.foreign:
        yield Finding(
            "error", "prefix", f"{name}: keys here were written by something else, and clear() drops those "
            f"that are strings: {', '.join(found.foreign[:3])}{extent}",
            "give the cache a prefix, or a database, of its own",
        )  # fmt: skip
    for other in found.nested:
        yield Finding(
            "warning", "prefix", f"the cache with the prefix {other} lies inside: clear() here clears it too",
            "give it a prefix that does not begin with this one",
        )  # fmt: skip
    if not found.foreign and not found.nested:
        namespaces = ", ".join(room.ns for room in found.namespaces[:5]) or "nothing yet"
        yield Finding("ok", "prefix", f"{name}: {namespaces}{extent}")


EXAMINATIONS: Final[dict[str, Examination]] = {
    "url": url,
    "server": server,
    "memory": memory,
    "persistence": persistence,
    "replicas": replicas,
    "access": permissions,
    "clock": clock,
    "channel": channel,
    "prefix": prefix,
}


def examined(there: Servers, cache: Cache, tell: Callable[[int], None]) -> Iterator[Finding]:
    """All that is found. Raises RedisError or StoreUnavailable for servers that do not answer."""
    for node in there.nodes:
        node.ping()
    try:
        found = survey(there, SAMPLE)
    except NoPermissionError:  # told by the examination of what is allowed
        found = Survey(time.time())
    patient = Patient(there, cache, [info(node) for node in there.nodes], found)
    for done, examine in enumerate(EXAMINATIONS.values(), 1):
        yield from examine(patient)
        tell(done)
