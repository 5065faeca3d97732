"""A server that shakes hands and then answers what it is told to: what real ones say only in trouble."""

from __future__ import annotations

import socketserver
import threading
from types import TracebackType
from typing import Any, Self

GREETED = {b"HELLO", b"CLIENT", b"SELECT", b"INFO", b"AUTH"}
INFO = "redis_version:7.0.15\r\nrun_id:r\r\nredis_mode:standalone\r\nmaster_replid:m\r\nrole:master\r\n"


class Says:
    """Answers ``reply`` to every command after the handshake, and counts them.

    Args:
        reply: as it goes over the line, such as ``"-BUSY ..."``.
        handshake: what a command of the handshake is answered with, by its name, in the place of what a
            server says.
    """

    def __init__(self, reply: str, **handshake: str) -> None:
        self.reply = reply
        self.handshake = handshake
        self.asked: list[bytes] = []
        says = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while (line := self.rfile.readline()).startswith(b"*"):
                    words = []
                    for _ in range(int(line[1:])):
                        length = int(self.rfile.readline()[1:])
                        words.append(self.rfile.read(length + 2)[:-2])
                    self.wfile.write(says.answer(words))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server: Any = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def answer(self, words: list[bytes]) -> bytes:
        name = words[0].upper()
        if name.decode() in self.handshake:
            text = self.handshake[name.decode()].format(args=b" ".join(words[1:]).decode())
            return f"{text}\r\n".encode()
        if name == b"INFO":
            return b"$%d\r\n%s\r\n" % (len(INFO), INFO.encode())
        if name in GREETED:
            return b"+OK\r\n"
        self.asked.append(name)
        return f"{self.reply}\r\n".encode()

    @property
    def url(self) -> str:
        """With RESP2: a greeting of RESP3 is a map."""
        return f"redis://127.0.0.1:{self.port}/0?protocol=2"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
