"""HTTP/1.1 in as few lines as a load generator needs, for it shares two cores with what it measures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Connection:
    """One connection that is kept alive, and opened again if it was closed; one request at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, cookie: str = "", body: Any = None) -> Answer:
        """Raises OSError or EOFError when no answer comes, TimeoutError after ten seconds."""
        content = b"" if body is None else msgspec.json.encode(body)
        head = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        if cookie:
            head.append(f"Cookie: {cookie}")
        if body is not None:
            head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        try:
            async with asyncio.timeout(10):
                return await self._exchange("\r\n".join([*head, "", ""]).encode() + content)
        except BaseException:
            self.close()
            raise

    async def _exchange(self, request: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        writer.write(request)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if line)
        content = await reader.readexactly(int(headers[b"content-length"]))
        if headers.get(b"connection") == b"close":
            self.close()
        return Answer(int(lines[0].split(b" ")[1]), content)

    async def aclose(self) -> None:
        """Close, and wait until that is done."""
        streams = self._streams
        self.close()
        if streams is not None:
            await streams[1].wait_closed()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
