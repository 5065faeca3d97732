"""Sockets of threads that give up when the call that waits for them has to.

redis-py bounds each read, each write and each attempt to connect by itself, and looking up a name by
nothing: a reply that trickles in, a host with four addresses or a dead resolver take many times its timeout.
Here all of it ends at one moment, ``give_up``. On an event loop ``asyncio.timeout`` does the same.
"""

from __future__ import annotations

import math
import socket
import threading
from concurrent.futures import Future
from time import monotonic
from typing import Any, Final

from redis.connection import Connection, SSLConnection

from cacheaside.budget import give_up

SLACK: Final = 0.02
"""Seconds by which a socket may be late: to set its timeout anew for every read costs a system call."""


class PunctualSocket:
    """A socket whose reads and writes end at its own timeout or at ``give_up``, whichever is first."""

    __slots__ = ("_now", "_own", "_socket")

    def __init__(self, inner: Any, timeout: float | None) -> None:
        self._socket = inner
        self._own = timeout
        self._now: float | None = None
        self.settimeout(timeout)

    def settimeout(self, timeout: float | None) -> None:
        self._own = self._now = timeout
        self._socket.settimeout(timeout)

    def recv(self, *args: Any) -> bytes:
        self._limit()
        received: bytes = self._socket.recv(*args)
        return received

    def recv_into(self, *args: Any) -> int:
        self._limit()
        received: int = self._socket.recv_into(*args)
        return received

    def sendall(self, data: Any) -> None:
        self._limit()
        self._socket.sendall(data)

    def __getattr__(self, name: str) -> Any:
        if name == "_socket":  # not made yet
            raise AttributeError(name)
        return getattr(self._socket, name)

    def _limit(self) -> None:
        own, now = self._own, self._now
        if own == 0:  # asked whether there is something, and not to wait for it
            return
        left = give_up.get() - monotonic()
        if left <= 0:
            raise TimeoutError("out of time")
        if own is None or left < own:
            own = None if left == math.inf else left
        if own != now and (not own or not now or abs(own - now) > SLACK):
            self._now = own
            self._socket.settimeout(own)


class PunctualConnection(Connection):
    """A TCP connection that is made within the time that is left, whatever number of addresses there is."""

    def _connect(self) -> Any:
        timeout = self.socket_connect_timeout
        until = min(give_up.get(), monotonic() + (math.inf if timeout is None else timeout))
        failure: OSError | None = None
        for family, kind, number, _, address in look_up(self.host, self.port, self.socket_type, until):
            made = socket.socket(family, kind, number)
            try:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.socket_keepalive:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                # The TLS handshake that may follow ends by it too.
                made.settimeout(left(until))
                made.connect(address)
                made.settimeout(left(until))
                return made
            except OSError as error:
                made.close()
                failure = error
        raise failure or OSError(f"{self.host} has no address")


class PunctualTLSConnection(SSLConnection, PunctualConnection):
    """The same with TLS."""


PUNCTUAL: Final[dict[type, type]] = {Connection: PunctualConnection, SSLConnection: PunctualTLSConnection}
"""What to use in the place of redis-py's own."""


def left(until: float) -> float | None:
    """Seconds until then, as a socket takes them. Raises TimeoutError when there are none."""
    if until == math.inf:
        return None
    seconds = until - monotonic()
    if seconds <= 0:
        raise TimeoutError("out of time")
    return seconds


def look_up(host: str, port: int, family: int, until: float) -> list[Any]:
    """``getaddrinfo`` that can be waited for in vain: a resolver may take half a minute to say no."""
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=numeric)
    except socket.gaierror:
        pass
    answer: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="cacheaside-resolve", daemon=True).start()
    return answer.result(left(until))
