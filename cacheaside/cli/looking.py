"""``cacheaside keys``, ``tag``, ``explain`` and ``get``: what stands in Redis, key by key."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct

from cacheaside.cache import Cache
from cacheaside.cli.options import PREFIX, Json, Limit, Prefix, Url, opened
from cacheaside.cli.output import NO, console, count, duration, print_json, progress, say, size, table
from cacheaside.engine.commands import Flow, Scan
from cacheaside.engine.direct import Found, find
from cacheaside.entry import CLAIM, NEGATIVE, Foreign, Held, Marker, Value
from cacheaside.names import check_key, everything

BATCH = 500
Key = Annotated[str, typer.Argument(help="A key without the prefix, such as posts:post:42.")]


class Standing(Struct):
    """How a key stands; times in seconds, sizes in bytes."""

    key: str
    state: str
    """fresh, stale, invalidated, loading, held, foreign, damaged or gone."""
    ends_in: float | None = None
    age: float | None = None
    size: int = 0
    tags: tuple[str, ...] = ()


def standing(found: Found, now: float) -> Standing:
    slot = found.slot
    if isinstance(slot, Value):
        if found.stored is None:
            state = "damaged"
        elif not found.believed:
            state = "invalidated"
        else:
            state = "fresh" if slot.soft > now else "stale"
        tags = tuple(found.stored or ())
        return Standing(found.key, state, max(0.0, slot.soft - now), now - slot.start, len(slot.raw), tags)
    if isinstance(slot, Marker):
        return Standing(found.key, "put" if slot.kind == CLAIM else "loading", None, now - slot.start)
    if slot is None:
        return Standing(found.key, "gone")
    state = "held" if isinstance(slot, Held) else "foreign" if isinstance(slot, Foreign) else "damaged"
    return Standing(found.key, state, size=len(slot.raw))


def keys(
    ns: Annotated[str, typer.Argument(help="The namespace.")],
    url: Url = None,
    prefix: Prefix = PREFIX,
    limit: Limit = 1000,
    json: Json = False,
) -> None:
    """List the keys of a namespace and how they stand.

    Exit code: 0; 1 if there are none; 2 if nothing could be asked.
    """
    with opened(url, prefix) as cache, progress("keys", None) as tell:
        names: list[str] = []
        for name in of_namespace(cache, ns):
            names.append(name)
            tell(len(names))
            if len(names) == limit:
                break
        listed = looked_up(cache, sorted(names))
    show(listed, json, f"the first {count(limit)} that were found" if len(names) == limit else "")


def tag(
    name: Annotated[str, typer.Argument(help="The tag.")],
    url: Url = None,
    prefix: Prefix = PREFIX,
    limit: Limit = 1000,
    json: Json = False,
) -> None:
    """List the keys of a tag and how they stand.

    The first to expire come first. The list is for people: it is bounded and may lag.

    Exit code: 0; 1 if there are none; 2 if nothing could be asked.
    """
    with opened(url, prefix) as cache:
        names = cache.tag_keys(name, count=limit)
        listed = looked_up(cache, names)
    show(listed, json, f"the first {count(limit)} that end" if len(names) == limit else "")


def explain(key: Key, url: Url = None, prefix: Prefix = PREFIX, json: Json = False) -> None:
    """Say in words why a read of a key would hit or miss.

    What processes have in their L1 cannot be seen from here.

    Exit code: 0 if there is something; 1 if nothing; 2 if it could not be asked.
    """
    with opened(url, prefix) as cache:
        found = one(cache, key)
    now = cache.world.clock()
    words = found.words(now)
    if json:
        print_json({**msgspec.to_builtins(standing(found, now)), "words": words})
    else:
        screen = console()
        screen.print(f"{key}: L2 {words}", markup=False, highlight=False)
    raise typer.Exit(NO if found.slot is None else 0)


def get(key: Key, url: Url = None, prefix: Prefix = PREFIX, json: Json = False) -> None:
    """Print the value of a key as JSON.

    The types of the application are not known here: structs are shown as dicts or lists, and what neither
    msgpack nor JSON can read as its bytes. Nothing is unpickled.

    Exit code: 0; 1 if a read would miss, with the reason on standard error; 2 if it could not be asked.
    """
    with opened(url, prefix) as cache:
        found = one(cache, key)
        now = cache.world.clock()
        state = standing(found, now).state
        value = found.value
        if value is None or state != "fresh":
            say(f"{key}: {found.words(now)}")
            raise typer.Exit(NO)
        shown = None if value.flags & NEGATIVE else plain(cache.world.unpack(value.flags, value.payload))
    if json:
        print_json({"key": key, "value": shown, "ends_in": value.soft - now, "age": now - value.start})
    else:
        typer.echo(jsonlib.dumps(shown, default=str, ensure_ascii=False, indent=2))


def plain(payload: bytes) -> Any:
    """A value as builtin types, by whatever codec it reads; bytes are shown as Python writes them."""
    # Msgpack never begins so: a value that was spelled in JSON, to keep an hour and its zone.
    if payload[:1] == b"\xc1":
        return msgspec.json.decode(payload[1:])
    for decode in (msgspec.msgpack.decode, msgspec.json.decode):
        try:
            return msgspec.to_builtins(decode(payload), builtin_types=(), str_keys=True)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError):
            continue
    return repr(payload)


def one(cache: Cache, key: str) -> Found:
    (found,) = cache.run(find(cache.world, (check_key(key),)), "explain")
    return found


def looked_up(cache: Cache, names: Sequence[str]) -> list[Standing]:
    """How keys stand, in their order."""
    now, listed = cache.world.clock(), list[Standing]()
    for at in range(0, len(names), BATCH):
        listed += [standing(f, now) for f in cache.run(find(cache.world, names[at : at + BATCH]), "explain")]
    return listed


def of_namespace(cache: Cache, ns: str) -> Iterator[str]:
    """The keys of a namespace, as SCAN brings them, each once."""
    pattern, cursor, seen = cache.world.keys.value(everything(ns)), None, set[str]()
    while True:
        cursor, found = cache.run(scan(pattern, cursor), "scan")
        for raw in found:
            if raw not in seen:
                seen.add(raw)
                yield cache.world.keys.strip(raw)
        if cursor is None:
            return


def scan(pattern: str, cursor: object) -> Flow[tuple[object, list[str]]]:
    found: tuple[object, list[str]] = yield Scan(pattern, cursor, BATCH)
    return found


def show(listed: list[Standing], json: bool, note: str) -> None:
    """A list of keys; ends with exit code 1 if there is none."""
    if json:
        print_json(listed)
    elif listed:
        screen = console()
        screen.print(
            table(["key", "state", "ends in", "age", "size", "tags"], map(cells, listed), words=(0, 1, 5))
        )
        if note:
            say(note)
    else:
        say("there are none")
    if not listed:
        raise typer.Exit(NO)


def cells(one: Standing) -> list[str]:
    return [
        one.key,
        one.state,
        "-" if one.ends_in is None else duration(one.ends_in),
        "-" if one.age is None else duration(max(0.0, one.age)),
        size(one.size),
        ", ".join(one.tags),
    ]
