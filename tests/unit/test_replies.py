"""What is understood of a reply in one go is what the parser of redis-py understands, and the rest is its."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis._parsers import _AsyncRESP2Parser, _AsyncRESP3Parser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from cacheaside.stores.replies import read_values, values_in

VALUES = st.lists(st.none() | st.binary(max_size=40), max_size=8)
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])


def reply(values: list[bytes | None], protocol: int = 2) -> bytes:
    null = b"$-1\r\n" if protocol == 2 else b"_\r\n"
    parts = [null if v is None else b"$%d\r\n%b\r\n" % (len(v), v) for v in values]
    return b"".join([b"*%d\r\n" % len(values), *parts])


@PROTOCOLS
@given(values=VALUES)
def test_a_whole_reply_is_understood(protocol: int, values: list[bytes | None]) -> None:
    assert values_in(reply(values, protocol), len(values)) == values


@given(values=VALUES, data=st.data())
def test_what_is_not_the_whole_reply_is_not(values: list[bytes | None], data: st.DataObject) -> None:
    whole = reply(values)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert values_in(whole[:cut], len(values)) is None
    assert values_in(whole + b"x", len(values)) is None
    assert values_in(whole, len(values) + 1) is None


@pytest.mark.parametrize(
    "odd",
    [
        b"-ERR no\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$x\r\n",
        b"*1\r\n$-2\r\n",
        b"*-1\r\n",
        b">1\r\n",
        b"*1\r\n$\r\n",
    ],
)
def test_anything_else_is_left_to_the_parser(odd: bytes) -> None:
    assert values_in(odd, 1) is None


class Encoder:
    def decode(self, value: Any, force: bool = False) -> Any:
        return value


class Line:
    """A connection of redis-py's, as far as reading goes."""

    socket_timeout = None
    encoder = Encoder()

    def __init__(self, protocol: int) -> None:
        self._reader = asyncio.StreamReader()
        self._parser: Any = (_AsyncRESP2Parser if protocol == 2 else _AsyncRESP3Parser)(65536)
        self._parser.on_connect(self)

    async def read_response(self) -> Any:
        response = await self._parser.read_response()
        if isinstance(response, ResponseError):
            raise response
        return response


@PROTOCOLS
@pytest.mark.parametrize("cut", [1, 3, 6, 14, 20])
async def test_a_reply_that_comes_in_pieces_is_put_together_and_the_next_one_is_read(
    protocol: int, cut: int
) -> None:
    line, values = Line(protocol), [b"one", None, b"", b"two\r\nlines"]
    whole = reply(values, protocol)
    line._reader.feed_data(whole[:cut])
    reading = asyncio.ensure_future(read_values(line, 4))
    for _ in range(3):
        await asyncio.sleep(0)
    line._reader.feed_data(whole[cut:])
    assert await reading == values
    line._reader.feed_data(whole)
    assert await read_values(line, 4) == values
    assert not line._reader._buffer  # type: ignore[attr-defined]


@PROTOCOLS
async def test_errors_are_raised_as_the_parser_raises_them(protocol: int) -> None:
    line = Line(protocol)
    line._reader.feed_data(b"-LOADING wait\r\n")
    with pytest.raises((ResponseError, RedisConnectionError)):
        await read_values(line, 2)
    line._reader.feed_data(b"*2\r\n$3\r\non")
    line._reader.feed_eof()
    with pytest.raises(RedisConnectionError):
        await read_values(line, 2)


async def test_a_connection_that_broke_says_so() -> None:
    line = Line(3)
    line._reader.set_exception(ConnectionResetError("reset"))
    with pytest.raises((RedisConnectionError, OSError)):
        await read_values(line, 1)
