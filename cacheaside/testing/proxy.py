"""A TCP proxy that does to the connections of a client what a bad network does, when told to.

One event loop in a daemon thread carries the bytes. Each method returns when its fault is in force, for
the connections that are open and for those to come, until ``heal``. Nothing is lost that TCP would not
lose: what a black hole holds back arrives when it is healed, as it does after a real one, even if the
client has given up meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, get_args

from cacheaside.testing.servers import free_port

T = TypeVar("T")
Role = Literal["commands", "channel"]
Direction = Literal["requests", "replies"]

CHUNK: Final = 65536
BACKLOG: Final = 64
"""Chunks held back per connection and direction; beyond that the sender has to wait, as it would."""
HANDSHAKE: Final = {b"HELLO", b"AUTH", b"CLIENT", b"INFO", b"SELECT", b"READONLY"}
CHANNEL: Final = {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"}

Queue = asyncio.Queue[tuple[float, float, bytes]]
"""Chunks on their way: when each arrived, the number drawn for its jitter, its bytes."""


@dataclass(eq=False)
class Cut:
    """How and after how many bytes a connection ends, and how many connections it still has to hit."""

    how: Literal["reset", "close", "half_close"]
    after: int
    left: int | None


@dataclass
class Faults:
    """What happens to the bytes of one role in one direction."""

    latency: float = 0.0
    jitter: float = 0.0
    chop: int | None = None
    pause: float = 0.0
    hole: bool = False
    cut: Cut | None = None


class ChaosProxy:
    """Stands between a client and the server at ``target_host:target_port``; a context manager.

    Every fault takes two keywords. ``role`` limits it to connections that carry ``"commands"`` or that
    listen on a ``"channel"`` (SUBSCRIBE): which of them a connection is shows with its first command
    after the handshake, and before that it suffers only from faults of no role. ``direction`` limits it to
    ``"requests"``, from the client to the server, or to ``"replies"``, which are all that the server
    sends.

    Args:
        seed: of the jitter.
    """

    def __init__(self, target_host: str, target_port: int, *, seed: int = 0) -> None:
        self.target = (target_host, target_port)
        self.port = 0
        self.connections = 0
        """Connections accepted so far."""
        self.bytes: dict[Direction, int] = {"requests": 0, "replies": 0}
        """Bytes passed on so far."""
        self._random = random.Random(seed)
        self._faults: dict[tuple[Role | None, Direction], Faults] = {
            (role, direction): Faults()
            for role in (None, *get_args(Role))
            for direction in get_args(Direction)
        }
        self._lines: set[Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._changed: asyncio.Event
        self._listener: socket.socket
        self._listening = False

    # -- lifetime

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<ChaosProxy 127.0.0.1:{self.port} to {self.target[0]}:{self.target[1]}>"

    @property
    def url(self) -> str:
        """Database 0 of the server, by way of the proxy; a password is yours to add."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        """Listen on a free loopback port, the same one if it was stopped before."""
        if self._thread is None:
            ready: Future[None] = Future()
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._serve(ready)), name="chaos-proxy", daemon=True
            )
            self._thread.start()
            try:
                ready.result()
            except BaseException:
                self._thread = None
                raise
        return self

    def stop(self) -> None:
        """End every connection and the thread; nothing happens when it has ended already."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    # -- faults

    def latency(
        self,
        seconds: float,
        jitter: float = 0.0,
        *,
        role: Role | None = None,
        direction: Direction | None = None,
    ) -> None:
        """Let bytes arrive so much later, in each direction, and up to ``jitter`` seconds later still."""
        least(0, seconds=seconds, jitter=jitter)
        self._set(role, direction, latency=seconds, jitter=jitter)

    def chop(
        self,
        bytes: int = 1,
        pause: float = 0.0,
        *,
        role: Role | None = None,
        direction: Direction | None = None,
    ) -> None:
        """Pass bytes on in pieces of so many, ``pause`` seconds apart, so that reads see parts of replies."""
        least(1, bytes=bytes)
        least(0, pause=pause)
        self._set(role, direction, chop=bytes, pause=pause)

    def black_hole(self, *, role: Role | None = None, direction: Direction | None = None) -> None:
        """Accept connections and bytes, and pass nothing on."""
        self._set(role, direction, hole=True)

    def reset(
        self,
        after: int = 1,
        times: int | None = None,
        *,
        role: Role | None = None,
        direction: Direction = "replies",
    ) -> None:
        """Reset a connection after so many more bytes; only the first ``times`` that get there, if given."""
        self._cut("reset", after, times, role, direction)

    def close_after(
        self,
        after: int,
        times: int | None = None,
        *,
        role: Role | None = None,
        direction: Direction = "replies",
    ) -> None:
        """Close a connection, as a server that shuts down does, after so many more bytes."""
        self._cut("close", after, times, role, direction)

    def half_close(
        self,
        after: int = 0,
        times: int | None = None,
        *,
        role: Role | None = None,
        direction: Direction = "replies",
    ) -> None:
        """End one direction of a connection after so many more bytes; the other one goes on."""
        self._cut("half_close", after, times, role, direction)

    def drop(self, role: Role | None = None) -> int:
        """Reset the connections that are open now, idle ones as well; how many there were."""
        check(role, None)

        async def act() -> int:
            lines = [line for line in self._lines if role in (None, line.role)]
            for line in lines:
                line.reset()
            return len(lines)

        return self._do(act)

    def refuse(self) -> None:
        """Refuse new connections; the open ones go on, see ``drop``."""

        async def act() -> None:
            self._deafen()
            self._bind()  # without listening: refused, and nobody else can take the port

        self._do(act)

    def heal(self, *, role: Role | None = None, direction: Direction | None = None) -> None:
        """End all faults, or those of a role or a direction; what was held back is passed on."""

        self._set(role, direction, **vars(Faults()))

        async def act() -> None:
            if not self._listening:
                self._listen()

        if role is None and direction is None:
            self._do(act)

    # -- what is going on

    def open(self, role: Role | None = None) -> int:
        """The connections that are open now, all or those of a role."""
        check(role, None)

        async def act() -> int:
            return sum(role in (None, line.role) for line in self._lines)

        return self._do(act)

    # -- inside: everything from here on runs in the thread of the loop

    def _do(self, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._thread is None:
            raise RuntimeError(f"{self!r} is not running: start it, or use it in a with block")
        return asyncio.run_coroutine_threadsafe(act(), self._loop).result()

    def _set(self, role: Role | None, direction: Direction | None, **faults: Any) -> None:
        check(role, direction)

        async def act() -> None:
            for cell in self._cells(role, direction):
                for name, value in faults.items():
                    setattr(cell, name, value)
            if faults.get("cut") is not None:
                for line in self._lines:
                    line.passed = dict.fromkeys(line.passed, 0)
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

        self._do(act)

    def _cut(
        self, how: Any, after: int, times: int | None, role: Role | None, direction: Direction | None
    ) -> None:
        least(0, after=after)
        if times is not None:
            least(1, times=times)
        self._set(role, direction, cut=Cut(how, after, times))

    def _cells(self, role: Role | None, direction: Direction | None) -> Iterator[Faults]:
        for (r, d), faults in self._faults.items():
            if role in (None, r) and direction in (None, d):
                yield faults

    async def _serve(self, ready: Future[None]) -> None:
        self._loop, self._stop, self._changed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        try:
            self._bind()
        except BaseException as error:
            ready.set_exception(error)
            return
        self._listen()
        ready.set_result(None)
        await self._stop.wait()
        self._deafen()
        for line in self._lines:
            line.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close their sockets in the next round of the loop

    def _bind(self) -> None:
        self.port = self.port or free_port()
        # Spelt out, or asyncio would not see that it is TCP and has to send small pieces at once.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setblocking(False)
        try:
            self._listener.bind(("127.0.0.1", self.port))
        except BaseException:
            self._listener.close()
            raise

    def _listen(self) -> None:
        self._listener.listen(1024)
        self._loop.add_reader(self._listener, self._accept)
        self._listening = True

    def _deafen(self) -> None:
        if self._listening:
            self._accept()  # who has connected already is not to be refused
            self._loop.remove_reader(self._listener)
            self._listening = False
        self._listener.close()

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(False)
                self.connections += 1
                task = asyncio.create_task(self._carry(client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket) -> None:
        """One connection from its beginning to its end."""
        with ExitStack() as unfinished:
            unfinished.callback(client.close)
            try:
                there = await asyncio.open_connection(*self.target)
            except OSError:  # nobody is there, which the client sees as well
                return
            unfinished.callback(there[1].transport.abort)
            here = await asyncio.open_connection(sock=client)
            unfinished.pop_all()
        line = Line(here[1], there[1])
        up: Queue = asyncio.Queue(BACKLOG)
        down: Queue = asyncio.Queue(BACKLOG)
        work = [
            asyncio.create_task(one)
            for one in (
                self._take(here[0], up),
                self._give(line, "requests", up, there[1]),
                self._take(there[0], down),
                self._give(line, "replies", down, here[1]),
            )
        ]
        self._lines.add(line)
        try:
            await line.over.wait()
        finally:
            self._lines.discard(line)
            for task in work:
                task.cancel()
            line.close()

    async def _take(self, source: asyncio.StreamReader, queue: Queue) -> None:
        """Note what arrives, when, and how it is drawn; the end is an empty chunk."""
        data = b"?"
        while data:
            try:
                data = await source.read(CHUNK)
            except OSError:  # the other side's trouble: for this one, an end like any other
                data = b""
            await queue.put((self._loop.time(), self._random.random(), data))

    async def _give(self, line: Line, direction: Direction, queue: Queue, sink: asyncio.StreamWriter) -> None:
        """Pass on what was taken, as the faults of the moment allow."""
        try:
            data = b"?"
            while data:
                arrived, drawn, data = await queue.get()
                if direction == "requests":
                    line.learn(data)
                await self._chunk(line, direction, sink, arrived, drawn, data)
            sink.write_eof()
            line.finish(direction)
        except OSError:
            line.over.set()

    async def _chunk(
        self,
        line: Line,
        direction: Direction,
        sink: asyncio.StreamWriter,
        arrived: float,
        drawn: float,
        data: bytes,
    ) -> None:
        while True:
            await self._wait(line, direction, arrived, drawn)
            if direction in line.shut or not data:
                return
            faults = self._faults[line.role, direction]
            piece, cut = data[: faults.chop], faults.cut
            if cut is not None:
                piece = piece[: max(0, cut.after - line.passed[direction])]
            if piece:
                line.passed[direction] += len(piece)
                self.bytes[direction] += len(piece)  # before anybody can have read them
                data = data[len(piece) :]
                sink.write(piece)
                await sink.drain()
            if cut is not None and cut is faults.cut and line.passed[direction] >= cut.after:
                self._strike(line, direction, sink, cut)
            elif faults.chop is not None and data:
                await asyncio.sleep(faults.pause)

    async def _wait(self, line: Line, direction: Direction, arrived: float, drawn: float) -> None:
        """Until neither latency nor a black hole holds back what arrived then."""
        while True:
            faults, changed = self._faults[line.role, direction], self._changed
            left = arrived + faults.latency + faults.jitter * drawn - self._loop.time()
            if not faults.hole and left <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(None if faults.hole else left):
                    await changed.wait()

    def _strike(self, line: Line, direction: Direction, sink: asyncio.StreamWriter, cut: Cut) -> None:
        if cut.left is not None:
            cut.left -= 1
            if not cut.left:
                for faults in self._faults.values():
                    if faults.cut is cut:
                        faults.cut = None
        line.shut.add(direction)
        if cut.how == "half_close":
            sink.write_eof()
        elif cut.how == "reset":
            line.reset()
        else:
            line.over.set()


class Line:
    """One connection: the client's end, the server's, and what has shown of it so far."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.role: Role | None = None
        self.over = asyncio.Event()
        self.passed: dict[Direction, int] = {"requests": 0, "replies": 0}
        self.shut: set[Direction] = set()
        self._finished: set[Direction] = set()
        self._ends = (client, server)
        self._seen = b""

    def learn(self, data: bytes) -> None:
        """Find the role in what the client sends: the first command after the handshake tells."""
        if self.role is not None:
            return
        self._seen += data
        try:
            told = next((name for name in commands(self._seen) if name not in HANDSHAKE), None)
        except ValueError:  # not the language of Redis
            told = b""
        if told is not None:
            self.role, self._seen = "channel" if told in CHANNEL else "commands", b""

    def finish(self, direction: Direction) -> None:
        self._finished.add(direction)
        if len(self._finished) == 2:
            self.over.set()

    def reset(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
        self.abort()

    def abort(self) -> None:
        for end in self._ends:
            end.transport.abort()
        self.over.set()

    def close(self) -> None:
        for end in self._ends:
            end.close()


def commands(sent: bytes) -> Iterator[bytes]:
    """The names of the commands that a client has sent, as far as they have arrived."""
    at = 0
    while at < len(sent):
        end = sent.find(b"\r\n", at)
        if end < 0:
            return
        if sent[at : at + 1] != b"*":  # typed by hand
            yield (sent[at:end].split() or [b""])[0].upper()
            at = end + 2
            continue
        count, at = int(sent[at + 1 : end]), end + 2
        for index in range(count):
            end = sent.find(b"\r\n", at)
            if end < 0:
                return
            size, at = int(sent[at + 1 : end]), end + 2
            if len(sent) < at + size:
                return
            if index == 0:
                yield sent[at : at + size].upper()
            at += size + 2


def least(bound: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= bound:
            raise ValueError(f"{name} must be at least {bound}, not {value!r}")


def check(role: str | None, direction: str | None) -> None:
    for name, value, known in (("role", role, Role), ("direction", direction, Direction)):
        if value is not None and value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {value!r}")
