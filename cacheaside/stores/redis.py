"""L2 on one server, for threads and for event loops.

What a command is in Redis is written once, in encoding.py; sending it is done twice, in ``perform`` and
``aperform``.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any, Protocol, TypedDict, Unpack
from weakref import WeakKeyDictionary

from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from cacheaside.breaker import Breaker, is_outage
from cacheaside.budget import give_up
from cacheaside.engine.commands import Confirm, Fetch, Invalidate
from cacheaside.errors import ConfigError, StoreUnavailable
from cacheaside.events import Events
from cacheaside.rawkeys import RawKeys
from cacheaside.redaction import in_words
from cacheaside.stores.batching import Batcher, in_time
from cacheaside.stores.encoding import Call, Encoder, check
from cacheaside.stores.lines import AsyncLines, Lines
from cacheaside.stores.rights import Rights, Unheard
from cacheaside.urls import TIMEOUT


class HeartbeatChannel(Protocol):
    """What a store needs of coherence.py to show that it has heard every announcement."""

    @property
    def hub(self) -> Any: ...
    def expect(self, beat: str, lines: int = 1) -> Future[bool]: ...
    def forget(self, beat: str) -> None: ...


class Remote(TypedDict, total=False):
    """What every store that speaks to servers takes."""

    timeout: float
    breaker: Breaker | None
    events: Events | None


class RemoteStore:
    """What speaks to servers: it may fail, and says so at most once in a while.

    Args:
        timeout: seconds after which an event loop gives up a command whose caller does not say when.
        breaker: told of failures, and asked before each command; None never refuses one.
        events: told what goes wrong.
    """

    def __init__(
        self,
        *,
        timeout: float = TIMEOUT,
        breaker: Breaker | None = None,
        events: Events | None = None,
    ) -> None:
        self.timeout = timeout
        self.breaker = breaker if breaker is not None else Breaker(lambda _: None, limit=math.inf)
        self.contact = -math.inf
        """When the store last answered, by ``time.monotonic()``."""
        self.channel: HeartbeatChannel | None = None
        self._events = events if events is not None else Events(None)
        self.rights = Rights(lambda kind, words: self._events.complain(kind, "degraded", words))

    def perform(self, command: Any) -> Any:
        """Carry out a command; raises StoreUnavailable when the server does not."""
        breaker = self.breaker
        if breaker.open:
            raise breaker.refusal()
        turn = breaker.turn
        try:
            reply = self._send(command)
        except (RedisError, OSError) as error:
            raise self._failed(error, turn) from error
        except ConfigError as error:
            raise self._misplaced(command, error, turn) from error
        breaker.failures, self.contact = 0, monotonic()
        return reply

    async def aperform(self, command: Any) -> Any:
        """``perform`` on the running event loop; reads of one loop tick leave together."""
        breaker = self.breaker
        if breaker.open:
            raise breaker.refusal()
        turn = breaker.turn
        try:
            if type(command) is Fetch:  # the batcher looks at the time, once for all of a tick
                reply = await self._asend(command)
            else:
                async with in_time(self.timeout):
                    reply = await self._asend(command)
        except (RedisError, OSError) as error:
            raise self._failed(error, turn) from error
        except ConfigError as error:
            raise self._misplaced(command, error, turn) from error
        breaker.failures, self.contact = 0, monotonic()
        return reply

    def _failed(self, error: Exception, turn: int) -> StoreUnavailable:
        """What to raise; said at most once in a while, or a wrong password would look like a slow cache."""
        words = in_words(error)
        failure = StoreUnavailable(f"Redis did not serve a command: {words}")
        failure.answered = not is_outage(error)
        failure.unheard = isinstance(error, Unheard)
        self.rights.learn(error)
        if not failure.answered and not hasattr(error, "cacheaside_counted"):
            error.cacheaside_counted = True  # type: ignore[attr-defined]  # one failed read may answer many
            self.breaker.failed(turn, words)
        failure.away = self.breaker.away
        self._events.complain(
            type(error).__name__, "error", f"{failure}; functions answer without the cache meanwhile"
        )
        return failure

    def _misplaced(self, command: Any, error: ConfigError, turn: int) -> Exception:
        """What to raise for a server that is too old, or of another kind than the URL says.

        The first calls of all fail loudly. One that is met later, after a failover, counts as away; and no
        error undoes what an invalidation follows.
        """
        if self.contact == -math.inf and type(command) is not Invalidate:
            return error
        return self._failed(error, turn)

    def _send(self, command: Any) -> Any:
        raise NotImplementedError

    async def _asend(self, command: Any) -> Any:
        raise NotImplementedError


class RedisStore(RemoteStore):
    """One Redis or Valkey server, or what looks like one.

    Args:
        connect, aconnect: make a client, for threads and for the running event loop.
        has_ifeq: whether the server knows ``SET ... IFEQ``, asked when a commit is sent.
        index_limit: entries that a tag's list holds at most.
        remote: as in ``RemoteStore``.
    """

    def __init__(
        self,
        keys: RawKeys,
        connect: Callable[[], Any],
        aconnect: Callable[[], Any],
        *,
        has_ifeq: Callable[[], bool] = lambda: False,
        index_limit: int = 10_000,
        **remote: Unpack[Remote],
    ) -> None:
        super().__init__(**remote)
        self._encode = Encoder(keys, has_ifeq, index_limit, rights=self.rights)
        self._connect = connect
        self._aconnect = aconnect
        self._lines: Lines | None = None
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Batcher[AsyncLines]] = WeakKeyDictionary()

    # -- sending

    def _send(self, command: Any) -> Any:
        if type(command) is Fetch:
            return self.lines.mget(command.keys)
        if type(command) is Confirm:
            return self._confirm(command)
        calls, parse = self._encode(command)
        return parse(send_all(self.client, calls))

    async def _asend(self, command: Any) -> Any:
        batcher = self.batcher
        if type(command) is Fetch:
            return await batcher.fetch(command.keys)
        if type(command) is Confirm:
            return await self._aconfirm(command, batcher.lines.client)
        calls, parse = self._encode(command)
        async with batcher.turn:
            return parse(await asend_all(await batcher.lines.pooled(), calls))

    def _confirm(self, command: Confirm) -> bool:
        if self.channel is None:
            return False
        name = secrets.token_hex(8)
        heard = self.channel.expect(name)
        try:
            check(send_all(self.client, self.channel.hub.beats(name.encode()))[0])
            return heard.result(patience(command.timeout))
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
            check((await asend_all(client, self.channel.hub.beats(name.encode())))[0])
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
    def batcher(self) -> Batcher[AsyncLines]:
        """What serves the running event loop: connections belong to one loop."""
        loop = asyncio.get_running_loop()
        batcher = self._loops.get(loop)
        if batcher is None:
            for ended in filter(None, [ref() for ref in self._loops.keyrefs()]):
                if ended.is_closed():  # its connections hold it, and would stay open for ever
                    self._loops.pop(ended, None)
            batcher = self._loops[loop] = Batcher(AsyncLines(self._aconnect()), self.timeout)
        return batcher

    def connect(self) -> Any:
        """A client of one's own for threads; whoever asks closes it."""
        return self._connect()

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    async def aclose(self) -> None:
        """Close the running loop's connections and those of the threads."""
        batcher = self._loops.pop(asyncio.get_running_loop(), None)
        if batcher is not None:
            await batcher.lines.client.aclose()
        self.close()


def send_all(client: Any, calls: list[Call]) -> list[Any]:
    """The replies to calls: one round trip, two if the server does not know a script."""
    replies = send(client, calls)
    undone = not_done(calls, replies)
    if undone:
        for i, reply in zip(undone, send(client, whole(calls, undone)), strict=True):
            replies[i] = reply
    return replies


async def asend_all(client: Any, calls: list[Call]) -> list[Any]:
    """``send_all`` for an asyncio client."""
    replies = await asend(client, calls)
    undone = not_done(calls, replies)
    if undone:
        for i, reply in zip(undone, await asend(client, whole(calls, undone)), strict=True):
            replies[i] = reply
    return replies


def patience(timeout: float) -> float:
    """The seconds of ``timeout`` that the caller has left."""
    return max(0.0, min(timeout, give_up.get() - monotonic()))


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
    # Who may not EVALSHA may EVAL, perhaps.
    missing += [
        i for i, r in enumerate(replies) if isinstance(r, NoPermissionError) and calls[i][0] == "EVALSHA"
    ]
    missing.sort()
    return missing + [
        i for i, call in enumerate(calls) if missing and call[0] == "PUBLISH" and i > missing[0]
    ]


def whole(calls: list[Call], which: list[int]) -> list[Call]:
    """These calls, scripts with their text: for a server that has forgotten them (SCRIPT FLUSH, restart)."""
    chosen = [calls[i] for i in which]
    return [("EVAL", c[1].text, *c[2:]) if c[0] == "EVALSHA" else c for c in chosen]
