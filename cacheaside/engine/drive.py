"""run and arun: the only two places where sync and async differ.

Both take a flow, carry out each command it yields, and send the reply back. What only waits (sleeping,
waiting for a flight, calling the user's function) is here; what speaks to the store is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_futures
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol, TypeVar

from cacheaside.budget import Budget
from cacheaside.engine.call import Call, current
from cacheaside.engine.commands import (
    Await,
    Commit,
    Expect,
    Flow,
    Load,
    Loaded,
    Pending,
    Renew,
    Sleep,
    Spawn,
    Together,
    Wait,
)
from cacheaside.errors import CacheasideError, LoadTimeout
from cacheaside.workers import WAITING, Keeper, Workers

log = logging.getLogger("cacheaside")

T = TypeVar("T")

Note = Callable[[Any], Any]

WORKERS = 16
"""Threads for background refreshes of sync functions."""
CLOSE_WITHIN = 5.0
"""Seconds that closing waits for background refreshes: a function may never return."""


class Store(Protocol):
    """What answers the commands of the first group in commands.py."""

    def perform(self, command: Any) -> Any: ...
    async def aperform(self, command: Any) -> Any: ...


class Spans(Protocol):
    """What goes around the steps of a flow that a trace should show: see telemetry.py."""

    # What is yielded is told the answer, and gives it back: an error of the function is one.
    def load(self, call: Call) -> AbstractContextManager[Note]: ...
    def wait(self) -> AbstractContextManager[Note]: ...
    def commit(self, fills: int) -> AbstractContextManager[Note]: ...
    def behind(self, name: str) -> AbstractContextManager[Any]: ...


class NoSpans:
    """Nobody traces."""

    def load(self, call: Call) -> AbstractContextManager[Note]:
        return nullcontext(lambda answer: answer)

    def wait(self) -> AbstractContextManager[Note]:
        return nullcontext(lambda answer: answer)

    def commit(self, fills: int) -> AbstractContextManager[Note]:
        return nullcontext(lambda answer: answer)

    def behind(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()


class Driver:
    """Runs flows for one cache, and owns the threads and tasks that they need.

    Args:
        timeout: seconds that one flow may wait for its store, in all; None for stores that do not block.
    """

    def __init__(
        self,
        sleep: Callable[[float], None] = time.sleep,
        spans: Spans | None = None,
        timeout: float | None = None,
    ) -> None:
        self._sleep = sleep
        self._spans = spans or NoSpans()
        self.timeout = timeout
        self.notices: Callable[[str], Future[bool] | None] | None = None
        self._keeper = Keeper(partial(perform_within, timeout))
        self._workers = Workers(WORKERS)
        self._tasks: set[asyncio.Task[Any]] = set()

    def _budget(self) -> Budget | None:
        return None if self.timeout is None else Budget(self.timeout)

    # -- sync

    def run(self, flow: Flow[T], store: Store) -> T:
        budget = self._budget()
        try:
            command = next(flow)
            while True:
                try:
                    reply = self._do(command, store, budget)
                except BaseException as error:
                    command = flow.throw(error)
                else:
                    command = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _do(self, command: Any, store: Store, budget: Budget | None = None) -> Any:
        kind = command.__class__
        if kind is Load:
            with self._spans.load(command.call) as note:
                return note(self._load(command, store))
        if kind is Commit:
            with self._spans.commit(len(command.fills)) as note:
                return note(self._ask(command, store, budget))
        if kind is Sleep:
            if budget is not None:
                budget.renew()
            with self._spans.wait() as note:
                return note(self._pause(command))
        if kind is Expect:
            return self.notices(command.key) if self.notices is not None else None
        if kind is Wait:
            if budget is not None:
                budget.renew()
            with self._spans.wait() as note:
                return note(bool(wait_futures((command.flight.done,), command.timeout).done))
        if kind is Await:
            with self._keeper.keep(command.renew, store):
                return settled(command.pending.future, command.timeout)
        if kind is Spawn:
            return self._spawn(command, store)
        if kind is Together:
            return self._together(command, store)
        return self._ask(command, store, budget)

    def _ask(self, command: Any, store: Store, budget: Budget | None) -> Any:
        if budget is None:
            return store.perform(command)
        with budget:
            return store.perform(command)

    def _pause(self, command: Sleep) -> bool | None:
        """Whether what was expected has happened."""
        if command.expected is None:
            self._sleep(command.seconds)
            return None
        return bool(wait_futures((command.expected,), command.seconds).done)

    async def _apause(self, command: Sleep) -> bool | None:
        if command.expected is None:
            await asyncio.sleep(command.seconds)
            return None
        return await ended(command.expected, command.seconds)

    def _load(self, command: Load, store: Store) -> Loaded | Pending:
        call = command.call
        with self._keeper.keep(command.renew, store):
            if command.soft is None and command.hard is None:
                return outcome(call)
            future: Future[Loaded] = Future()
            context = copy_context()

            def work() -> None:
                try:
                    future.set_result(context.run(outcome, call))
                except BaseException as error:  # SystemExit and the like are the caller's
                    future.set_exception(error)

            # A daemon, so that a function that never returns can't keep the process from ending.
            threading.Thread(target=work, name="cacheaside-load", daemon=True).start()
            if command.soft is not None and not wait_futures((future,), command.soft).done:
                return Pending(future)
            return settled(future, command.hard)

    def _spawn(self, command: Spawn, store: Store) -> None:
        context = copy_context()
        if not self._workers.submit(lambda: context.run(self._behind, command, store)):
            command.flow.close()

    def _behind(self, command: Spawn, store: Store) -> None:
        try:
            with self._spans.behind(command.name):
                self.run(command.flow, store)
        except Exception:
            log.exception("a background refresh failed")

    def keep(self, renew: Renew, store: Store) -> Callable[[], None]:
        """Send ``renew`` every third of its ttl, from a thread, until what is returned is called."""
        kept = self._keeper.keep(renew, store)
        kept.__enter__()

        def stop() -> None:
            kept.__exit__(None, None, None)

        return stop

    def _together(self, command: Together, store: Store) -> list[Loaded]:
        with self._keeper.keep(command.renew, store):
            if command.many == 1 or len(command.flows) == 1:
                return [self._ended(flow, store) for flow in command.flows]
            workers = Workers(command.many)
            try:
                running = [self._beside(flow, store, workers) for flow in command.flows]
                return [future.result() for future in running]
            finally:
                workers.close(0)

    def _beside(self, flow: Flow[Any], store: Store, workers: Workers) -> Future[Loaded]:
        future: Future[Loaded] = Future()
        context = copy_context()

        def work() -> None:
            try:
                future.set_result(context.run(self._ended, flow, store))
            except BaseException as error:  # SystemExit and the like are the caller's
                future.set_exception(error)

        if not workers.submit(work):  # no thread is to be had
            work()
        return future

    def _ended(self, flow: Flow[Any], store: Store) -> Loaded:
        try:
            return Loaded(self.run(flow, store))
        except Exception as error:
            return Loaded(error=error)

    # -- async

    async def arun(self, flow: Flow[T], store: Store) -> T:
        budget = self._budget()
        try:
            command = next(flow)
            while True:
                try:
                    reply = await self._ado(command, store, budget)
                except GeneratorExit:
                    # Destroyed, as what a dead loop leaves behind is. A generator that is being closed may
                    # ask for nothing more, and a cancelled flow would: it forgets its flight at least.
                    with suppress(asyncio.CancelledError):
                        flow.throw(asyncio.CancelledError())
                    flow.close()
                    raise
                except BaseException as error:
                    command = flow.throw(error)
                else:
                    command = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _ado(self, command: Any, store: Store, budget: Budget | None = None) -> Any:
        kind = command.__class__
        if kind is Load:
            with self._spans.load(command.call) as note:
                return note(await self._aload(command, store))
        if kind is Commit:
            with self._spans.commit(len(command.fills)) as note:
                return note(await self._aask(command, store, budget))
        if kind is Sleep:
            if budget is not None:
                budget.renew()
            with self._spans.wait() as note:
                return note(await self._apause(command))
        if kind is Expect:
            return self.notices(command.key) if self.notices is not None else None
        if kind is Wait:
            if budget is not None:
                budget.renew()
            with self._spans.wait() as note:
                return note(await ended(command.flight.done, command.timeout))
        if kind is Await:
            return await self._aawait(command, store)
        if kind is Spawn:
            return self._aspawn(command, store)
        if kind is Together:
            return await self._atogether(command, store)
        return await self._aask(command, store, budget)

    async def _aask(self, command: Any, store: Store, budget: Budget | None) -> Any:
        if budget is None:
            return await store.aperform(command)
        with budget:
            return await store.aperform(command)

    async def aperform(self, command: Any, store: Store) -> Any:
        """One command that belongs to no flow."""
        return await self._aask(command, store, self._budget())

    async def _aload(self, command: Load, store: Store) -> Loaded | Pending:
        renewing = None if command.renew is None else self.akeep(command.renew, store)
        try:
            if command.soft is None and command.hard is None:
                return await aoutcome(command.call)
            task = asyncio.ensure_future(aoutcome(command.call))
            try:
                if command.soft is not None and not (await asyncio.wait((task,), timeout=command.soft))[0]:
                    return Pending(task)
                return await asettled(task, command.hard)
            except BaseException:
                task.cancel()
                raise
        finally:
            if renewing is not None:
                renewing()

    async def _aawait(self, command: Await, store: Store) -> Loaded:
        renewing = None if command.renew is None else self.akeep(command.renew, store)
        try:
            return await asettled(command.pending.future, command.timeout)
        except BaseException:
            command.pending.future.cancel()
            raise
        finally:
            if renewing is not None:
                renewing()

    def akeep(self, renew: Renew, store: Store) -> Callable[[], None]:
        """``keep`` on the running event loop."""
        loop = asyncio.get_running_loop()
        every = renew.ttl / 3
        handle: asyncio.TimerHandle

        def tick() -> None:
            nonlocal handle
            self._task(lambda: self.aperform(renew, store))
            handle = loop.call_later(every, tick)

        handle = loop.call_later(every, tick)
        return lambda: handle.cancel()

    def _aspawn(self, command: Spawn, store: Store) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # it has ended, and everything on it
            command.flow.close()
            return
        if len(self._tasks) < WAITING:
            self._task(lambda: self._abehind(command, store))
        else:
            command.flow.close()

    async def _abehind(self, command: Spawn, store: Store) -> None:
        with self._spans.behind(command.name):
            await self.arun(command.flow, store)

    async def _atogether(self, command: Together, store: Store) -> list[Loaded]:
        turn = asyncio.Semaphore(command.many)

        async def one(flow: Flow[Any]) -> Loaded:
            async with turn:
                try:
                    return Loaded(await self.arun(flow, store))
                except Exception as error:
                    return Loaded(error=error)

        renewing = None if command.renew is None else self.akeep(command.renew, store)
        try:
            return list(await asyncio.gather(*map(one, command.flows)))
        finally:
            if renewing is not None:
                renewing()

    def _task(self, work: Callable[[], Awaitable[Any]]) -> None:
        async def behind() -> None:
            try:
                await work()  # not before: the task may be cancelled before it begins
            except CacheasideError as error:
                log.warning("in the background: %s", error)
            except Exception:
                log.exception("a background refresh failed")

        task = asyncio.get_running_loop().create_task(behind())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Wait for background work of threads, but not for ever, and let the threads end."""
        self._keeper.close()
        if not self._workers.close(CLOSE_WITHIN):
            log.warning(
                "a background refresh goes on after %g s; the cache is closed without it", CLOSE_WITHIN
            )

    async def aclose(self) -> None:
        """End the background tasks of this loop, then what ``close`` ends."""
        loop = asyncio.get_running_loop()
        mine = [t for t in list(self._tasks) if t.get_loop() is loop and t is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        self.close()


def perform_within(timeout: float | None, command: Any, store: Store) -> Any:
    """One command that belongs to no flow."""
    if timeout is None:
        return store.perform(command)
    with Budget(timeout):
        return store.perform(command)


def outcome(call: Call) -> Loaded:
    """Call the user's function; what it raises is its answer."""
    token = current.set(call)
    try:
        return Loaded(call.load())
    except Exception as error:
        return Loaded(error=error)
    finally:
        call.over = True
        current.reset(token)


async def aoutcome(call: Call) -> Loaded:
    """``outcome`` for an async function."""
    token = current.set(call)
    try:
        return Loaded(await call.load())
    except Exception as error:
        return Loaded(error=error)
    finally:
        call.over = True
        with suppress(ValueError):  # closed from elsewhere, as what a dead loop leaves behind is
            current.reset(token)


async def ended(future: Future[Any], timeout: float) -> bool:
    """Wait on this loop for what may happen in another thread: whether it has."""
    waiting = asyncio.wrap_future(future)
    try:
        return bool((await asyncio.wait((waiting,), timeout=timeout))[0])
    finally:
        waiting.cancel()  # this loop may be closed by the time it happens


def settled(future: Future[Loaded], timeout: float | None) -> Loaded:
    """What a load in a thread came to; LoadTimeout when it takes longer."""
    if wait_futures((future,), timeout).done:
        return future.result()
    return Loaded(error=too_slow())


async def asettled(task: asyncio.Future[Loaded], timeout: float | None) -> Loaded:
    """What a load in a task came to; LoadTimeout, and the task cancelled, when it takes longer."""
    if (await asyncio.wait((task,), timeout=timeout))[0]:
        return task.result()
    task.cancel()
    return Loaded(error=too_slow())


def too_slow() -> LoadTimeout:
    return LoadTimeout("the function did not return within its hard load_timeout")
