"""The reply to an MGET on an event loop, understood in one go where it is there in one piece.

redis-py's parser written in Python awaits every line of it. What is no such reply, or not all of it yet, is
that parser's after all.
"""

from __future__ import annotations

from typing import Any, Final

# Both are redis-py's own. The parser of hiredis needs no help.
from redis._parsers import _AsyncRESP2Parser, _AsyncRESP3Parser  # pyright: ignore[reportPrivateUsage]

PLAIN: Final = (_AsyncRESP2Parser, _AsyncRESP3Parser)
MOST: Final = 1 << 20
"""Bytes that are looked at in one piece."""


async def read_values(line: Any, count: int) -> Any:
    """What a connection brings after an MGET of ``count`` keys; raises as ``line.read_response`` does."""
    parser = line._parser
    if type(parser) in PLAIN and line.socket_timeout is None and not parser._chunks:
        data = b""
        try:
            data = await line._reader.read(MOST)
            while data.endswith(b"\r"):  # its parser does not stand a line that was cut there
                data += await line._reader.read(MOST) or b"\0"
        except OSError:  # it stays broken, and redis-py has the words
            pass
        values = values_in(data, count)
        if values is not None:
            return values
        if data:
            parser._chunks.append(data)  # where it keeps what it has read of a reply
    return await line.read_response()


def values_in(data: bytes, count: int) -> list[bytes | None] | None:
    """The values, if ``data`` is a reply of so many and all of it, and nothing else."""
    head = b"*%d\r\n" % count
    if not data.startswith(head):
        return None
    at = len(head)
    find = data.find
    values: list[bytes | None] = []
    for _ in range(count):
        end = find(b"\r\n", at)
        length = data[at + 1 : end]
        if end < 0:
            return None
        if data[at] == 36 and length.isdigit():  # $
            start = end + 2
            at = start + int(length) + 2
            values.append(data[start : at - 2])
        elif data[at : end + 2] in (b"$-1\r\n", b"_\r\n"):
            at = end + 2
            values.append(None)
        else:
            return None
    return values if at == len(data) else None
