"""run and arun: the only two places where sync and async differ.

Both take a flow, carry out each command it yields, and send the reply back. What only waits (sleeping,
waiting for a flight, calling the user's function) is here; what speaks to the store is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from concurrent.futures import wait as wait_futures
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context
from typing import Any, Protocol, TypeVar

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
from cacheaside.fork import renew_after_fork

log = logging.getLogger("cacheaside")

T = TypeVar("T")

WORKERS = 16
"""Threads for background refreshes of sync functions."""
WAITING = 1000
"""Refreshes that wait for a thread, or run as tasks; what comes when there are so many is left to a later
call."""
IDLE = 30.0
"""Seconds after which a thread without work ends: a cache that nobody closed leaves none behind."""
CLOSE_WITHIN = 5.0
"""Seconds that closing waits for background refreshes: a function may never return."""


class Store(Protocol):
    """What answers the commands of the first group in commands.py."""

    def perform(self, command: Any) -> Any: ...
    async def aperform(self, command: Any) -> Any: ...


class Spans(Protocol):
    """What goes around the steps of a flow that a trace should show: see telemetry.py."""

    def load(self, call: Call) -> AbstractContextManager[Any]: ...
    def wait(self) -> AbstractContextManager[Any]: ...
    def commit(self, fills: int) -> AbstractContextManager[Any]: ...
    def behind(self, name: str) -> AbstractContextManager[Any]: ...


class NoSpans:
    """Nobody traces."""

    def load(self, call: Call) -> AbstractContextManager[Any]:
        return nullcontext()

    def wait(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def commit(self, fills: int) -> AbstractContextManager[Any]:
        return nullcontext()

    def behind(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()


class Driver:
    """Runs flows for one cache, and owns the threads and tasks that they need."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep, spans: Spans | None = None) -> None:
        self._sleep = sleep
        self._spans = spans or NoSpans()
        self.notices: Callable[[str], Future[bool] | None] | None = None
        self._keeper = Keeper()
        self._workers = Workers(WORKERS)
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- sync

    def run(self, flow: Flow[T], store: Store) -> T:
        try:
            command = next(flow)
            while True:
                try:
                    reply = self._do(command, store)
                except BaseException as error:
                    command = flow.throw(error)
                else:
                    command = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _do(self, command: Any, store: Store) -> Any:
        kind = command.__class__
        if kind is Load:
            with self._spans.load(command.call):
                return self._load(command, store)
        if kind is Commit:
            with self._spans.commit(len(command.fills)):
                return store.perform(command)
        if kind is Sleep:
            with self._spans.wait():
                return self._pause(command)
        if kind is Expect:
            return self.notices(command.key) if self.notices is not None else None
        if kind is Wait:
            with self._spans.wait():
                return bool(wait_futures((command.flight.done,), command.timeout).done)
        if kind is Await:
            with self._keeper.keep(command.renew, store):
                return settled(command.pending.future, command.timeout)
        if kind is Spawn:
            return self._spawn(command, store)
        if kind is Together:
            return self._together(command, store)
        return store.perform(command)

    def _pause(self, command: Sleep) -> None:
        if command.expected is None:
            self._sleep(command.seconds)
        else:
            wait_futures((command.expected,), command.seconds)

    async def _apause(self, command: Sleep) -> None:
        if command.expected is None:
            await asyncio.sleep(command.seconds)
        else:
            await ended(command.expected, command.seconds)

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
        try:
            command = next(flow)
            while True:
                try:
                    reply = await self._ado(command, store)
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

    async def _ado(self, command: Any, store: Store) -> Any:
        kind = command.__class__
        if kind is Load:
            with self._spans.load(command.call):
                return await self._aload(command, store)
        if kind is Commit:
            with self._spans.commit(len(command.fills)):
                return await store.aperform(command)
        if kind is Sleep:
            with self._spans.wait():
                return await self._apause(command)
        if kind is Expect:
            return self.notices(command.key) if self.notices is not None else None
        if kind is Wait:
            with self._spans.wait():
                return await ended(command.flight.done, command.timeout)
        if kind is Await:
            return await self._aawait(command, store)
        if kind is Spawn:
            return self._aspawn(command, store)
        if kind is Together:
            return await self._atogether(command, store)
        return await store.aperform(command)

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
            self._task(store.aperform(renew))
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
            self._task(self._abehind(command, store))
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

    def _task(self, work: Awaitable[Any]) -> None:
        async def behind() -> None:
            try:
                await work
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


class Workers:
    """A few threads for what nobody waits for.

    Daemons, unlike those of an executor: a function that never returns can't keep the process from ending.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._turn = threading.Condition()
        self._jobs: deque[Callable[[], object]] = deque()
        self._threads = self._busy = 0
        self._closing = False

    def submit(self, job: Callable[[], object]) -> bool:
        """Have it done some time; False when there is too much to do, or the interpreter is ending."""
        with self._turn:
            self._closing = False
            if len(self._jobs) >= WAITING:
                return False
            if len(self._jobs) >= self._threads - self._busy and self._threads < self._most:
                try:
                    threading.Thread(target=self._work, name="cacheaside", daemon=True).start()
                    self._threads += 1
                except RuntimeError:
                    if not self._threads:
                        return False
            self._jobs.append(job)
            self._turn.notify_all()
            return True

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._jobs or self._closing, IDLE)
                if not self._jobs:
                    self._threads -= 1
                    self._turn.notify_all()
                    return
                job = self._jobs.popleft()
                self._busy += 1
            try:
                job()
            finally:
                del job
                with self._turn:
                    self._busy -= 1
                    self._turn.notify_all()

    def close(self, timeout: float) -> bool:
        """Let the threads end when they have done what there is to do; whether they have in time."""
        with self._turn:
            self._closing = True
            self._turn.notify_all()
            return self._turn.wait_for(self._at_rest, timeout)

    def _at_rest(self) -> bool:
        # Who submits meanwhile wants them to stay.
        return not (self._jobs or self._busy or (self._threads and self._closing))


class Keeper:
    """Renews the leases of loads that run in their callers' own threads, from one thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._kept: dict[object, tuple[float, Renew, Store]] = {}
        self._next = math.inf
        self._thread: threading.Thread | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock, self._thread, self._kept = threading.Lock(), None, {}

    @contextmanager
    def keep(self, renew: Renew | None, store: Store) -> Generator[None]:
        if renew is None:
            yield
            return
        ticket = object()
        self._add(ticket, renew, store)
        try:
            yield
        finally:
            with self._lock:
                self._kept.pop(ticket, None)

    def _add(self, ticket: object, renew: Renew, store: Store) -> None:
        with self._lock:
            if self._thread is None:
                self._wake, self._next = threading.Event(), math.inf
                self._thread = threading.Thread(
                    target=self._work, args=(self._wake,), name="cacheaside-lease", daemon=True
                )
                self._thread.start()
            due = time.monotonic() + renew.ttl / 3
            self._kept[ticket] = (due, renew, store)
            sooner, self._next = due < self._next, min(due, self._next)
        if sooner:  # most loads end long before: the thread is not to be woken for each
            self._wake.set()

    def _work(self, wake: threading.Event) -> None:
        while self._wake is wake:
            with self._lock:
                kept = list(self._kept.items())
            now = time.monotonic()
            for ticket, (due, renew, store) in kept:
                if due > now:
                    continue
                with self._lock:
                    if ticket not in self._kept:
                        continue
                    self._kept[ticket] = (now + renew.ttl / 3, renew, store)
                try:
                    store.perform(renew)
                except Exception as error:
                    log.debug("a lease was not renewed: %s", error)
            with self._lock:
                self._next = min((due for due, _, _ in self._kept.values()), default=math.inf)
                pause = self._next - time.monotonic()
            idle = pause == math.inf
            if not wake.wait(IDLE if idle else max(0.01, pause)) and idle:
                with self._lock:
                    if not self._kept and self._wake is wake:
                        self._thread = None
                        return
            wake.clear()

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            wake, self._wake = self._wake, threading.Event()
        wake.set()
        if thread is not None:
            thread.join(1.0)
