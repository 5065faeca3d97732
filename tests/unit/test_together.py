"""Flows side by side, in threads and in tasks."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from cacheaside.engine.call import Call
from cacheaside.engine.commands import Flow, Load, Loaded, Renew, Together
from cacheaside.engine.drive import Driver

COLOUR = contextvars.ContextVar("COLOUR", default="none")


class Silent:
    """A store that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.was_asked = threading.Event()

    def perform(self, command: Any) -> None:
        self.asked.append(command)
        self.was_asked.set()

    async def aperform(self, command: Any) -> None:
        self.perform(command)


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.close()


@pytest.fixture(params=["sync", "async"])
def drive(request: pytest.FixtureRequest, driver: Driver) -> Callable[..., Awaitable[Any]]:
    async def run(flow: Flow[Any], store: Any) -> Any:
        return driver.run(flow, store) if request.param == "sync" else await driver.arun(flow, store)

    return run


def together(flows: list[Flow[Any]], many: int, renew: Renew | None = None) -> Flow[list[Loaded]]:
    return (yield Together(tuple(flows), many, renew))


def worth(number: int) -> Flow[int]:
    if number == 3:
        raise ValueError("three")
    return number
    yield


@pytest.mark.parametrize("many", [1, 2, 50])
async def test_answers_and_errors_come_in_order(drive: Any, many: int) -> None:
    ended = await drive(together([worth(n) for n in range(20)], many), Silent())
    assert [one.value for one in ended] == [n if n != 3 else None for n in range(20)]
    assert [str(one.error) for one in ended if one.error] == ["three"]
    assert await drive(together([], many), Silent()) == []


async def test_each_flow_sees_the_context_of_the_caller(drive: Any) -> None:
    def seen() -> Flow[str]:
        before = COLOUR.get()
        COLOUR.set("changed")
        return before
        yield

    COLOUR.set("red")
    ended = await drive(together([seen() for _ in range(5)], 2), Silent())
    assert [one.value for one in ended] == ["red"] * 5
    assert COLOUR.get() == "red"


async def test_what_is_to_be_renewed_is_renewed_while_they_run(driver: Driver) -> None:
    store = Silent()
    renew = Renew((("lock", b"mine"),), 0.03)

    def waits() -> Flow[Any]:
        return (yield Load(Call("", (), lambda: store.was_asked.wait(10))))

    async def later() -> bool:
        return await asyncio.to_thread(store.was_asked.wait, 10)

    def awaits() -> Flow[Any]:
        return (yield Load(Call("", (), later)))

    assert driver.run(together([waits()], 1, renew), store)[0].value.value is True
    assert store.asked[0] == renew
    store.was_asked.clear()
    assert (await driver.arun(together([awaits(), awaits()], 2, renew), store))[0].value.value is True


async def test_a_cancelled_caller_cancels_them_all(driver: Driver) -> None:
    running, cancelled = 0, 0
    started = asyncio.Event()

    async def load() -> None:
        nonlocal running, cancelled
        running += 1
        if running == 3:
            started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled += 1
            raise

    def slow() -> Flow[Any]:
        return (yield Load(Call("", (), load)))

    flow = together([slow() for _ in range(5)], 3)
    caller = asyncio.ensure_future(driver.arun(flow, Silent()))
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (running, cancelled) == (3, 3)


def test_an_exit_is_the_callers(driver: Driver) -> None:
    def leave() -> None:
        raise SystemExit(3)

    def leaving() -> Flow[Any]:
        return (yield Load(Call("", (), leave)))

    with pytest.raises(SystemExit):
        driver.run(together([leaving(), worth(1)], 2), Silent())


def test_threads_end_with_what_they_were_for(driver: Driver) -> None:
    before = set(threading.enumerate())
    driver.run(together([worth(n) for n in range(10)], 4), Silent())
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
