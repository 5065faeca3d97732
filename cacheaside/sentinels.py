"""Hears from the sentinels that another server has taken over, while the one before still answers.

A primary that is handed over is demoted seconds later, and one that was cut off from its sentinels perhaps
never. Open connections to it say nothing of that. So a thread listens to a sentinel, asks it after each
message and once a second who the primary is, and cuts the connections that lead to another one.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from typing import Any, Final

from redis.exceptions import RedisError

from cacheaside.connection import connect_sentinel
from cacheaside.errors import CacheasideError
from cacheaside.fork import renew_after_fork
from cacheaside.ties import Address, Ties, sever
from cacheaside.urls import Endpoint

log = logging.getLogger("cacheaside")

SWITCHED: Final = "+switch-master"
ASK_EVERY: Final = 1.0
"""Seconds after which a sentinel is asked again, though it has said nothing."""
PAUSE: Final = 0.2
END_WITHIN: Final = 3.0


class SentinelWatch:
    """Watches over the ties of a cache whose primary the sentinels name."""

    def __init__(self, endpoint: Endpoint, ties: Ties) -> None:
        self._endpoint = endpoint
        self._ties = weakref.ref(ties)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._line: Any = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock, self._stop, self._thread, self._line = threading.Lock(), threading.Event(), None, None

    def start(self) -> None:
        """Begin to watch, if nobody does."""
        if self._thread is not None:
            return
        with self._lock, suppress(RuntimeError):  # the interpreter is ending
            if self._thread is None:
                thread = threading.Thread(
                    target=self._work, args=(self._stop,), name="cacheaside-sentinels", daemon=True
                )
                thread.start()
                self._thread = thread

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._stop.set()
            thread, self._thread, self._stop = self._thread, None, threading.Event()
            if self._line is not None:
                sever(self._line)
        if thread is not None and thread is not threading.current_thread():
            thread.join(END_WITHIN)

    def _work(self, stop: threading.Event) -> None:
        for host in cycle(self._endpoint.hosts):
            try:
                self._sit(host, stop)
            except (RedisError, OSError, CacheasideError) as error:
                log.debug("a sentinel is away: %s", type(error).__name__)
            except Exception:
                log.exception("a sentinel was not understood")
            if stop.wait(PAUSE) or self._ties() is None:
                return

    def _sit(self, host: Address, stop: threading.Event) -> None:
        """Listen to this sentinel, until it is gone or nobody cares any more."""
        with self._asked(host) as client, client.pubsub() as line:
            self._look(
                client
            )  # before it, for a sentinel may forbid to listen, and then answers all the same
            line.subscribe(SWITCHED)
            self._line = line.connection
            while not stop.is_set():
                self._look(client)
                line.get_message(timeout=ASK_EVERY)
                if self._ties() is None:
                    return

    def _asked(self, host: Address) -> Any:
        return connect_sentinel(self._endpoint, host)

    def _look(self, sentinel: Any) -> None:
        """Cut what leads elsewhere than this sentinel says; if it does, and others do not know better."""
        ties = self._ties()
        address = primary(sentinel, self._endpoint.service)
        if ties is None or address is None or not ties.elsewhere(address):
            return
        _, address = max(self._opinions(), default=(0, address))
        for connection in ties.elsewhere(address):
            sever(connection)

    def _opinions(self) -> Iterator[tuple[int, Address]]:
        """What each sentinel takes for the primary, with the epoch in which it was chosen."""
        for host in self._endpoint.hosts:
            with suppress(RedisError, OSError), self._asked(host) as sentinel:
                address = primary(sentinel, self._endpoint.service)
                seen = sentinel.sentinel_master(self._endpoint.service)
                if address is not None:
                    yield int(seen["config-epoch"]), address


def primary(sentinel: Any, service: str | None) -> Address | None:
    """Where this sentinel sends clients of a service."""
    told = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", service)
    if not told:
        return None
    host, port = told
    return (host.decode() if isinstance(host, bytes) else str(host)), int(port)
