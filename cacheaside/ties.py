"""The open connections of one process to its server, cut when another server has taken over.

A primary that is handed over goes on answering for a while, seconds under Sentinel, to whoever still has a
connection. A process that has met its successor must not read from it any more: what the process has
invalidated since is still there. So the first connection to another server cuts all those to the one before,
and they are made anew.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from cacheaside.facts import ServerFacts
from cacheaside.fork import renew_after_fork

Address = tuple[str, int]


class Ties:
    """Connections of threads and of event loops, which no lock of redis-py's has in common."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run_id = ""
        self._open: WeakSet[Any] = WeakSet()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The sockets are the parent's: to cut one here would cut it there."""
        self._lock = threading.Lock()
        self._open = WeakSet()

    def made(self, facts: ServerFacts) -> None:
        """A connection was made, and learnt these facts: those to another server are cut.

        Before it carries its first command, so that no command to the other server follows it.
        """
        connection = facts.connection() if facts.connection is not None else None
        if connection is None:
            return
        left: list[Any] = []
        with self._lock:
            if facts.run_id != self._run_id:
                left, self._open, self._run_id = list(self._open), WeakSet(), facts.run_id
            self._open.add(connection)
        for one in left:
            if one is not connection:
                sever(one)

    def elsewhere(self, address: Address) -> list[Any]:
        """The connections that lead to another address."""
        with self._lock:
            return [one for one in self._open if (one.host, int(one.port)) != address]


def sever(connection: Any) -> None:
    """Cut a connection of redis-py's from any thread: who uses it finds it closed by the other side."""
    writer = getattr(connection, "_writer", None)
    sock = writer.get_extra_info("socket") if writer is not None else getattr(connection, "_sock", None)
    if sock is None:
        return
    # A twin of it: neither TLS nor an event loop lets another thread end its own.
    with suppress(OSError, ValueError), socket.socket(fileno=os.dup(sock.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)
