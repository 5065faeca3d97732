"""The engine's commands as Redis commands: calls, and a function that reads their replies.

What is announced goes to the channel of a bucket: of the tag, in one script with the change of its token, or
of the key, after it was dropped. A call touches the keys of one slot of a cluster.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from cacheaside.engine.commands import (
    NOT_A_STRING,
    Announce,
    Begin,
    Begun,
    Claim,
    Commit,
    Fill,
    Forget,
    Invalidate,
    Lock,
    Members,
    Release,
    Renew,
    Run,
    Scan,
    Sizes,
    Sweep,
)
from cacheaside.entry import HEAD, SLOT_HELD, TAG_HELD
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.announcements import announcement
from cacheaside.stores.program import Script
from cacheaside.stores.rights import Rights, Unheard

STAGE_ABOVE: Final = 4096
"""Values above this many bytes are staged beside their slot instead of passing through a script."""
STAGED_MS: Final = 30_000
TRIM_ONE_IN: Final = 64
INDEX_MS: Final = 7 * 86_400_000

Call = tuple[Any, ...]
Parse = Callable[[list[Any]], Any]


@cache
def script(name: str) -> Script:
    return Script("cacheaside.stores", name)


class Encoder:
    """How one cache says things to its servers.

    Args:
        has_ifeq: whether the servers know ``SET ... IFEQ``, asked when a commit is sent.
        index_limit: entries that a tag's list holds at most.
        sharded: whether there are several servers, among which slots may move: channels are sharded then,
            and a call has one key where it can, for while a slot moves its keys are in two places.
        rights: what the account may not do.
    """

    def __init__(
        self,
        keys: RawKeys,
        has_ifeq: Callable[[], bool],
        index_limit: int,
        *,
        sharded: bool = False,
        rights: Rights | None = None,
    ) -> None:
        self._rights = rights or Rights()
        self._keys = keys
        self._has_ifeq = has_ifeq
        self._index_limit = index_limit
        self._sharded = sharded
        self._publish = "SPUBLISH" if sharded else "PUBLISH"
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
            Sizes: self._sizes,
            Members: self._members,
            Forget: self._forget,
        }

    def __call__(self, command: Any) -> tuple[list[Call], Parse]:
        if self._rights.lacks("scripts") and self._needs_scripts(command):
            raise NoPermissionError("this account may not run the 'eval' command")
        return self._encoders[type(command)](command)

    def _needs_scripts(self, command: Any) -> bool:
        """Whether there is no other way to do it, or none to go on from it."""
        if isinstance(command, Invalidate):
            return command.hold is not None or bool(command.release)
        if isinstance(command, Begin):
            swapped = command.dead or any(place.expected is not None for place in command.slots)
            return bool(swapped) or not self._has_ifeq()
        if isinstance(command, Commit):
            return not (self._has_ifeq() and all(len(fill.expected) > HEAD for fill in command.fills))
        return isinstance(command, (Claim, Release, Sweep, Renew, Run))

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
        if command.notify and not self._rights.lacks("publishing"):
            calls += self._told(filled=command.notify)
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
        until = len(calls)
        calls += self._told(names)

        def parse(replies: list[Any]) -> Begun:
            slots = tuple(map(check, replies[count:until]))
            heard(replies[until:])
            return Begun(slots, tokens_in_force(command.tokens, replies[:count]))

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
        if self._rights.lacks("scripts"):
            return self._plain_invalidate(command)
        calls: list[Call] = []
        name, seconds = command.hold or (b"", 0.0)
        holding = (name, ms(seconds), command.release)
        life, replace = ms(command.token_ttl), script("replace")
        apart = self._rights.lacks("publishing in scripts")
        for rows in [(row,) for row in command.tokens] if self._sharded else filter(None, (command.tokens,)):
            channel = self._keys.channel(self._keys.bucket(rows[0][2]))
            message = announcement(tags=[tag for _, _, tag in rows])
            keys, tokens = tuple(key for key, _, _ in rows), [token for _, token, _ in rows]
            said = ("", "", "") if apart else (self._publish, channel, message)
            calls.append(replace(keys, TAG_HELD, *holding, life, *said, *tokens))
        for slot, *companions in command.slots:
            calls.append(replace((slot,), SLOT_HELD, *holding, 0, "", "", "", ""))
            calls += [("UNLINK", key) for key in companions] if self._sharded else [("UNLINK", *companions)]
        tags = [tag for _, _, tag in command.tokens] if apart else ()
        calls += self._told([self._keys.strip(slot) for slot, _, _ in command.slots], tags=tags)
        return calls, heard

    def _plain_invalidate(self, command: Invalidate) -> tuple[list[Call], Parse]:
        """Without scripts; what stands there goes, even if it is somebody's hold."""
        life = ms(command.token_ttl)
        calls: list[Call] = [("SET", key, token, "PX", life) for key, token, _ in command.tokens]
        for slots in command.slots:
            calls += [("UNLINK", key) for key in slots]
        tags = [tag for _, _, tag in command.tokens]
        calls += self._told([self._keys.strip(slot) for slot, _, _ in command.slots], tags=tags)
        return calls, heard

    def _told(
        self, keys: Iterable[str] = (), filled: Iterable[str] = (), tags: Iterable[str] = ()
    ) -> list[Call]:
        """Announce names, each on the channel of a bucket, when what was called for before is done.

        Where nothing may be published: ask whether anybody listens.
        """
        by_bucket: dict[int, tuple[list[str], list[str], list[str]]] = {}
        for which, names in enumerate((keys, tags, filled)):
            for name in names:
                by_bucket.setdefault(self._keys.bucket(name), ([], [], []))[which].append(name)
        return [
            self._say(bucket, announcement(dropped, tags=under, filled=there))
            for bucket, (dropped, under, there) in by_bucket.items()
        ]

    def _say(self, bucket: int, message: bytes) -> Call:
        channel = self._keys.channel(bucket)
        if self._rights.lacks("publishing"):
            return ("PUBSUB", "SHARDNUMSUB" if self._sharded else "NUMSUB", channel)
        return (self._publish, channel, message)

    def _announce(self, command: Announce) -> tuple[list[Call], Parse]:
        calls = self._told(command.keys)
        if command.patterns:  # whoever listens does so on all channels
            calls.append(self._say(0, announcement(patterns=command.patterns)))
        return calls, heard

    def _program(self, command: Run) -> tuple[list[Call], Parse]:
        return [command.program.script(command.keys, *command.args)], _only

    def _scan(self, command: Scan) -> tuple[list[Call], Parse]:
        def parse(replies: list[Any]) -> tuple[object, list[str]]:
            cursor, found = check(replies[0])
            return int(cursor) or None, [raw.decode("utf-8", "replace") for raw in found]

        call = ("SCAN", command.cursor or 0, "MATCH", command.pattern, "COUNT", command.count)
        return [(*call, "TYPE", "zset" if command.lists else "string")], parse

    def _sizes(self, command: Sizes) -> tuple[list[Call], Parse]:
        return [("ZCARD", index) for index in command.indexes], lambda replies: tuple(map(check, replies))

    def _members(self, command: Members) -> tuple[list[Call], Parse]:
        stop = command.start + command.count - 1

        def parse(replies: list[Any]) -> list[str]:
            return [name for raw in check(replies[0]) if (name := ours(raw)) is not None]

        return [("ZRANGE", command.index, command.start, stop)], parse

    def _forget(self, command: Forget) -> tuple[list[Call], Parse]:
        return [("ZREM", command.index, *command.keys)], _nothing


def heard(replies: list[Any]) -> None:
    """All is done, and whoever listens was told."""
    for reply in replies:
        answer: Any = check(reply)
        if type(reply) is list and answer[1:] and answer[1]:  # a channel, and how many listen on it
            raise Unheard(f"may not publish, and {answer[1]} other processes have L1 on")


def ours(raw: bytes) -> str | None:
    """The key in a list; None for bytes that no key of ours can be, and no command could name."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


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
