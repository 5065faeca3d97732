"""L2: the engine's commands as Redis commands, for threads and for event loops.

``encode`` turns a command into calls and a function that reads their replies; sending them is the
only thing done twice, in ``perform`` and ``aperform``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from redis.exceptions import NoScriptError, RedisError, ResponseError

from cacheaside.engine.commands import (
    NOT_A_STRING,
    Announce,
    Begin,
    Begun,
    Claim,
    Commit,
    Confirm,
    Fetch,
    Fill,
    Forget,
    Invalidate,
    Lock,
    Members,
    Release,
    Renew,
    Run,
    Scan,
    Sweep,
)
from cacheaside.entry import HEAD, SLOT_HELD, TAG_HELD
from cacheaside.errors import StoreUnavailable
from cacheaside.keys import RawKeys
from cacheaside.stores.announcements import announcement
from cacheaside.stores.batching import Batcher
from cacheaside.stores.lines import Lines
from cacheaside.stores.program import Script

log = logging.getLogger("cacheaside")

STAGE_ABOVE: Final = 4096
"""Values above this many bytes are staged beside their slot instead of passing through a script."""
STAGED_MS: Final = 30_000
TRIM_ONE_IN: Final = 64
INDEX_MS: Final = 7 * 86_400_000
SILENCE: Final = 60.0
"""Seconds for which a server that does not serve is not spoken of again."""

Call = tuple[Any, ...]
Parse = Callable[[list[Any]], Any]


class HeartbeatChannel(Protocol):
    """What the store needs of coherence.py to show that it has heard every announcement."""

    def expect(self, beat: str) -> Future[bool]: ...
    def forget(self, beat: str) -> None: ...
    def beat(self, client: Any, name: bytes) -> None: ...
    async def abeat(self, client: Any, name: bytes) -> None: ...


@cache
def script(name: str) -> Script:
    return Script("cacheaside.stores", name)


class RedisStore:
    """One Redis or Valkey server, or what looks like one.

    Args:
        connect, aconnect: make a client, for threads and for the running event loop.
        has_ifeq: whether the server knows ``SET ... IFEQ``, asked when a commit is sent.
        index_limit: entries that a tag's list holds at most.
    """

    def __init__(
        self,
        keys: RawKeys,
        connect: Callable[[], Any],
        aconnect: Callable[[], Any],
        *,
        has_ifeq: Callable[[], bool] = lambda: False,
        index_limit: int = 10_000,
    ) -> None:
        self._keys = keys
        self._connect = connect
        self._aconnect = aconnect
        self._has_ifeq = has_ifeq
        self._index_limit = index_limit
        self._lines: Lines | None = None
        self.channel: HeartbeatChannel | None = None
        self._silent_until = 0.0
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Batcher] = WeakKeyDictionary()
        self._encoders: dict[type, Callable[[Any], tuple[list[Call], Parse]]] = {
            Begin: self._begin,
            Commit: self._commit,
            Claim: self._claim,
            Release: self._release,
            Sweep: self._sweep,
            Lock: self._lock,
            Renew: self._renew,
            Invalidate: self._invalidate,
            Announce: self._announce,
            Run: self._program,
            Scan: self._scan,
            Members: self._members,
            Forget: self._forget,
        }

    # -- sending

    def perform(self, command: Any) -> Any:
        """Carry out a command; raises StoreUnavailable when the server does not."""
        try:
            if type(command) is Fetch:
                return self.lines.mget(command.keys)
            if type(command) is Confirm:
                return self._confirm(command)
            calls, parse = self._encoders[type(command)](command)
            client = self.client
            replies = send(client, calls)
            undone = not_done(calls, replies)
            if undone:
                for i, reply in zip(undone, send(client, whole(calls, undone)), strict=True):
                    replies[i] = reply
            return parse(replies)
        except (RedisError, OSError) as error:
            raise self._failed(error) from error

    async def aperform(self, command: Any) -> Any:
        """``perform`` on the running event loop; reads of one loop tick leave as one MGET."""
        batcher = self.batcher
        try:
            if type(command) is Fetch:
                return await batcher.fetch(command.keys)
            if type(command) is Confirm:
                return await self._aconfirm(command, batcher.client)
            calls, parse = self._encoders[type(command)](command)
            async with batcher.turn:
                client = await batcher.lines.pooled()
                replies = await asend(client, calls)
                undone = not_done(calls, replies)
                if undone:
                    again = await asend(client, whole(calls, undone))
                    for i, reply in zip(undone, again, strict=True):
                        replies[i] = reply
            return parse(replies)
        except (RedisError, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreUnavailable:
        """What to raise; said at most once in a while, or a wrong password would look like a slow cache."""
        failure = StoreUnavailable(f"Redis did not serve a command: {type(error).__name__}: {error}")
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + SILENCE
            log.warning("%s; functions answer without the cache meanwhile", failure)
        return failure

    def _confirm(self, command: Confirm) -> bool:
        if self.channel is None:
            return False
        name = secrets.token_hex(8)
        heard = self.channel.expect(name)
        try:
            self.channel.beat(self.client, name.encode())
            return heard.result(command.timeout)
        except TimeoutError:
            return False
        finally:
            self.channel.forget(name)

    async def _aconfirm(self, command: Confirm, client: Any) -> bool:
        if self.channel is None:
            return False
        name = secrets.token_hex(8)
        heard = asyncio.wrap_future(self.channel.expect(name))
        try:
            await self.channel.abeat(client, name.encode())
            await asyncio.wait((heard,), timeout=command.timeout)
            return heard.done() and heard.result()
        finally:
            self.channel.forget(name)

    @property
    def client(self) -> Any:
        """The client for threads; redis-py's own pool survives a fork."""
        return self.lines.pooled()

    @property
    def lines(self) -> Lines:
        if self._lines is None:
            self._lines = Lines(self._connect())
        return self._lines

    @property
    def batcher(self) -> Batcher:
        """What serves the running event loop: connections belong to one loop."""
        loop = asyncio.get_running_loop()
        batcher = self._loops.get(loop)
        if batcher is None:
            for ended in filter(None, [ref() for ref in self._loops.keyrefs()]):
                if ended.is_closed():  # its connections hold it, and would stay open for ever
                    self._loops.pop(ended, None)
            batcher = self._loops[loop] = Batcher(self._aconnect())
        return batcher

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    async def aclose(self) -> None:
        """Close the running loop's connections and those of the threads."""
        batcher = self._loops.pop(asyncio.get_running_loop(), None)
        if batcher is not None:
            await batcher.client.aclose()
        self.close()

    # -- encoding

    def _begin(self, command: Begin) -> tuple[list[Call], Parse]:
        calls = self._token_calls(command.tokens, command.token_ttl)
        lease, life = ms(command.lease), ms(command.token_ttl)
        calls += [script("retoken")((key,), dead, fresh, life) for key, fresh, dead in command.dead]
        for place in command.slots:
            if place.expected is None:
                calls.append(("SET", place.slot, place.marker, "NX", "GET", "PX", lease))
            else:
                calls.append(script("swap")((place.slot,), place.expected, place.marker, lease))
        tokens = (*command.tokens, *((key, fresh) for key, fresh, _ in command.dead))
        count = len(tokens)

        def parse(replies: list[Any]) -> Begun:
            slots: list[bytes | None] = []
            for place, reply in zip(command.slots, replies[count:], strict=True):
                there = string(reply)
                # An empty string of somebody else's is not an empty slot.
                slots.append(NOT_A_STRING if there == b"" and place.expected is None else there)
            return Begun(tuple(slots), tokens_in_force(tokens, replies[:count]))

        return calls, parse

    def _token_calls(self, tokens: tuple[tuple[str, bytes], ...], ttl: float) -> list[Call]:
        life = ms(ttl)
        return [("SET", key, token, "NX", "GET", "PX", life) for key, token in tokens]

    def _commit(self, command: Commit) -> tuple[list[Call], Parse]:
        calls: list[Call] = []
        answers: list[int] = []
        for fill in command.fills:
            calls += self._fill_calls(fill)
            answers.append(len(calls) - 1)
        calls += [("PEXPIRE", key, ms(ttl), "GT") for key, ttl in command.extend]
        essential = len(calls)
        if command.notify:
            calls.append(("PUBLISH", self._keys.channel(0), announcement(filled=command.notify)))
        for index, key, end in command.index:
            calls.append(("ZADD", index, int(end), key))
            calls.append(("PEXPIRE", index, INDEX_MS))
            if random.randrange(TRIM_ONE_IN) == 0:
                calls += self._trim_calls(index)

        def parse(replies: list[Any]) -> tuple[bool, ...]:
            for reply in replies[:essential]:
                check(reply)
            return tuple(bool(replies[i]) for i in answers)

        return calls, parse

    def _fill_calls(self, fill: Fill) -> list[Call]:
        life = ms(fill.ttl)
        if len(fill.expected) > HEAD and self._has_ifeq():  # a whole marker, not just a value's head
            return [("SET", fill.slot, fill.value, "IFEQ", fill.expected, "PX", life)]
        if len(fill.value) <= STAGE_ABOVE:
            return [script("commit")((fill.slot,), fill.expected, fill.value, life)]
        return [
            ("SET", fill.staging, fill.value, "PX", STAGED_MS),
            script("commit_staged")((fill.slot, fill.staging), fill.expected, fill.value[:HEAD], life),
        ]

    def _trim_calls(self, index: str) -> list[Call]:
        """By expiry, then by size. The scores are expiries, so what goes first ends first."""
        return [script("trim")((index,), self._index_limit)]

    def _claim(self, command: Claim) -> tuple[list[Call], Parse]:
        calls = self._token_calls(command.tokens, command.token_ttl)
        count, life = len(calls), ms(command.ttl)
        claim = script("claim")
        calls += [claim((slot,), SLOT_HELD, marker, life) for slot, marker in command.slots]
        names = [self._keys.strip(slot) for slot, _ in command.slots]
        calls.append(("PUBLISH", self._keys.channel(0), announcement(names)))

        def parse(replies: list[Any]) -> Begun:
            *slots, _ = map(check, replies[count:])
            return Begun(tuple(slots), tokens_in_force(command.tokens, replies[:count]))

        return calls, parse

    def _release(self, command: Release) -> tuple[list[Call], Parse]:
        return [script("release")((command.key,), command.expected)], _only_bool

    def _sweep(self, command: Sweep) -> tuple[list[Call], Parse]:
        calls = [script("release")((key,), expected) for key, expected in command.keys]
        return calls, lambda replies: sum(bool(check(reply)) for reply in replies)

    def _lock(self, command: Lock) -> tuple[list[Call], Parse]:
        return [("SET", command.key, command.nonce, "NX", "GET", "PX", ms(command.ttl))], _only_string

    def _renew(self, command: Renew) -> tuple[list[Call], Parse]:
        life = ms(command.ttl)
        return [script("renew")((key,), expected, life) for key, expected in command.keys], _nothing

    def _invalidate(self, command: Invalidate) -> tuple[list[Call], Parse]:
        calls: list[Call] = []
        name, seconds = command.hold or (b"", 0.0)
        holding = (name, ms(seconds), command.release)
        by_bucket: dict[int, list[tuple[str, bytes, str]]] = {}
        for row in command.tokens:
            by_bucket.setdefault(self._keys.bucket(row[2]), []).append(row)
        for bucket, rows in by_bucket.items():
            channel = self._keys.channel(bucket)
            message = announcement(tags=[tag for _, _, tag in rows])
            keys, tokens = [key for key, _, _ in rows], [token for _, token, _ in rows]
            life = ms(command.token_ttl)
            calls.append(script("replace")((*keys, channel), TAG_HELD, *holding, life, message, *tokens))
        for slot, lock, staging in command.slots:
            calls.append(script("replace")((slot,), SLOT_HELD, *holding, 0, "", ""))
            calls.append(("UNLINK", lock, staging))
        if command.slots:
            names = [self._keys.strip(slot) for slot, _, _ in command.slots]
            calls.append(("PUBLISH", self._keys.channel(0), announcement(names)))
        return calls, _nothing

    def _announce(self, command: Announce) -> tuple[list[Call], Parse]:
        message = announcement(command.keys, patterns=command.patterns)
        return [("PUBLISH", self._keys.channel(0), message)], _nothing

    def _program(self, command: Run) -> tuple[list[Call], Parse]:
        return [command.program.script(command.keys, *command.args)], _only

    def _scan(self, command: Scan) -> tuple[list[Call], Parse]:
        def parse(replies: list[Any]) -> tuple[object, list[str]]:
            cursor, found = check(replies[0])
            return int(cursor) or None, [raw.decode("utf-8", "replace") for raw in found]

        return [("SCAN", command.cursor or 0, "MATCH", command.pattern, "COUNT", command.count)], parse

    def _members(self, command: Members) -> tuple[list[Call], Parse]:
        stop = command.start + command.count - 1

        def parse(replies: list[Any]) -> list[str]:
            return [name for raw in check(replies[0]) if (name := ours(raw)) is not None]

        return [("ZRANGE", command.index, command.start, stop)], parse

    def _forget(self, command: Forget) -> tuple[list[Call], Parse]:
        return [("ZREM", command.index, *command.keys)], _nothing


def ours(raw: bytes) -> str | None:
    """The key in a list; None for bytes that no key of ours can be, and no command could name."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def send(client: Any, calls: list[Call]) -> list[Any]:
    """One round trip. Error replies come back as values when there are several calls."""
    if len(calls) == 1:
        try:
            return [client.execute_command(*by_hash(calls[0]), **options(calls[0]))]
        except ResponseError as error:
            return [error]
    with client.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.execute_command(*by_hash(call), **options(call))
        return list(pipe.execute(raise_on_error=False))


async def asend(client: Any, calls: list[Call]) -> list[Any]:
    """``send`` for an asyncio client."""
    if len(calls) == 1:
        try:
            return [await client.execute_command(*by_hash(calls[0]), **options(calls[0]))]
        except ResponseError as error:
            return [error]
    async with client.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.execute_command(*by_hash(call), **options(call))
        return list(await pipe.execute(raise_on_error=False))


def by_hash(call: Call) -> Call:
    if call[0] == "EVALSHA":
        return ("EVALSHA", call[1].sha, *call[2:])
    return call


def options(call: Call) -> dict[str, bool]:
    """What redis-py must know to read the reply of SET ... GET as a string."""
    return {"get": True} if call[0] == "SET" and "GET" in call[3:5] else {}


def not_done(calls: list[Call], replies: list[Any]) -> list[int]:
    """Which calls to send again: scripts that the server did not know, and what was announced too early.

    An announcement may only follow what it announces: who has heard it believes what he reads from then on.
    """
    missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    return missing + [
        i for i, call in enumerate(calls) if missing and call[0] == "PUBLISH" and i > missing[0]
    ]


def whole(calls: list[Call], which: list[int]) -> list[Call]:
    """These calls, scripts with their text: for a server that has forgotten them (SCRIPT FLUSH, restart)."""
    chosen = [calls[i] for i in which]
    return [("EVAL", c[1].text, *c[2:]) if c[0] == "EVALSHA" else c for c in chosen]


def ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def check(reply: Any) -> Any:
    """A reply; raises what is an error: READONLY, OOM, LOADING, NOPERM and the like."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def string(reply: Any) -> bytes | None:
    """A string reply; what holds no string is somebody else's."""
    if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
        return NOT_A_STRING
    answer: bytes | None = check(reply)
    return answer


def tokens_in_force(wanted: tuple[tuple[str, bytes], ...], replies: list[Any]) -> tuple[bytes, ...]:
    """SET NX GET answers nil when it has set, else what was there."""
    return tuple(string(r) or token for (_, token), r in zip(wanted, replies, strict=True))


def _only(replies: list[Any]) -> Any:
    return check(replies[0])


def _only_bool(replies: list[Any]) -> bool:
    return bool(check(replies[0]))


def _only_string(replies: list[Any]) -> bytes | None:
    return string(replies[0])


def _nothing(replies: list[Any]) -> None:
    for reply in replies:
        check(reply)
