"""Reads of one loop tick are one command, and whoever is cancelled leaves the others' answers alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cacheaside.stores.batching import MOST, Batcher
from cacheaside.stores.lines import AsyncLines


class Client:
    """Answers every key with its name; holds the answers back while ``open`` is clear."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ...]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def execute_command(self, name: str, *keys: str) -> list[bytes]:
        assert name == "MGET"
        self.sent.append(keys)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [key.encode() for key in keys]


@pytest.fixture
async def client() -> Client:
    return Client()


@pytest.fixture
def batcher(client: Client) -> Batcher:
    return Batcher(AsyncLines(client))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def start(batcher: Batcher, *reads: tuple[str, ...]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(batcher.fetch(keys)) for keys in reads]


async def test_reads_of_one_tick_are_one_command_that_names_each_key_once(client, batcher):
    found = await asyncio.gather(*start(batcher, ("a", "t"), ("b", "t"), ("a", "t")))
    assert found == [[b"a", b"t"], [b"b", b"t"], [b"a", b"t"]]
    assert [sorted(keys) for keys in client.sent] == [["a", "b", "t"]]


async def test_reads_of_two_ticks_are_two_commands(client, batcher):
    await batcher.fetch(("a",))
    await batcher.fetch(("b",))
    assert client.sent == [("a",), ("b",)]


async def test_a_read_does_not_wait_for_one_that_is_under_way(client, batcher):
    client.open.clear()
    first = start(batcher, ("a",))
    await turns()
    second = start(batcher, ("b",))
    await turns()
    assert client.sent == [("a",), ("b",)]
    client.open.set()
    await asyncio.gather(*first, *second)


@pytest.mark.parametrize("before", [0, 1, 5], ids=["before it starts", "in its tick", "under way"])
@pytest.mark.parametrize("which", [0, 1])
async def test_the_others_get_their_answers_when_one_is_cancelled(client, batcher, which, before):
    client.open.clear()
    reads = start(batcher, ("a",), ("b",), ("c",))
    await turns(before)
    reads[which].cancel()
    await turns()
    client.open.set()
    with pytest.raises(asyncio.CancelledError):
        await reads.pop(which)
    assert await asyncio.gather(*reads) == [[b"b" if which == 0 else b"a"], [b"c"]]


async def test_a_cancelled_first_reader_does_not_stop_the_next_tick(batcher):
    (first,) = start(batcher, ("a",))
    await turns(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await batcher.fetch(("b",)) == [b"b"]


async def test_an_error_reaches_everybody(client, batcher):
    client.error = OSError("gone")
    found = await asyncio.gather(*start(batcher, ("a",), ("b",)), return_exceptions=True)
    assert found == [client.error, client.error]


async def test_a_large_tick_is_several_commands(client, batcher):
    reads = [(f"{n} a", f"{n} b") for n in range(MOST)]
    found = await asyncio.gather(*start(batcher, *reads))
    assert found == [[key.encode() for key in keys] for keys in reads]
    assert [len(keys) for keys in client.sent] == [MOST, MOST]


async def test_one_read_larger_than_a_command_should_be_is_still_one(client, batcher):
    keys = tuple(map(str, range(MOST + 1)))
    found = await asyncio.gather(*start(batcher, keys, ("a",)))
    assert [len(values) for values in found] == [MOST + 1, 1]
