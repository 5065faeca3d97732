"""A user's handler: how it is called with one message, and what becomes of its errors.

``Calls`` are written once for sync and async handlers, as generators that yield what is to be called.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

from cacheaside.codecs import ValueCodec
from cacheaside.errors import ConfigError
from cacheaside.plan import is_async
from cacheaside.stats import Tally
from cacheaside.toolkit.messages import Message, read_wire
from cacheaside.toolkit.traces import receiving

log = logging.getLogger("cacheaside")

T = TypeVar("T")

OnError = Callable[[Exception, str, "Message[Any] | None"], object]
OnGap = Callable[[str], object]
Steps = Generator[Callable[[], object], Any, T]

COUNTERS: Final[tuple[str, ...]] = ("received", "handled", "failed", "unparsable", "dropped", "gaps")
SAID: Final = 256
"""Handlers whose trouble is logged, each kind of it once; it is counted for all."""


class Calls:
    """How one handler is called.

    Args:
        handler: what the user gave.
        codec: of the data, by the type of the message.
        on_error: told of each error: the error, the channel, and the message if it could be read.
        on_gap: told the channel when messages of it may have been lost.
        total: counters of all handlers of a broker.
        said: what has been logged already, of all of them.
    """

    def __init__(
        self,
        handler: Any,
        codec: Callable[[str], ValueCodec],
        on_error: OnError | None,
        on_gap: OnGap | None,
        total: Tally,
        said: set[tuple[str, str]],
    ) -> None:
        if not callable(handler):
            raise ConfigError(f"handler must be a function of a message, not {handler!r}")
        self.asynchronous = awaits(handler)
        for name, hook in (("on_error", on_error), ("on_gap", on_gap)):
            if hook is not None and not callable(hook):
                raise ConfigError(f"{name} must be a function, not {hook!r}")
            if hook is not None and awaits(hook) and not self.asynchronous:
                raise ConfigError(f"{name} is async and the handler is not: make them alike")
        self.name = getattr(handler, "__qualname__", type(handler).__qualname__)
        self.tally = Tally(COUNTERS, total)
        self._handler = handler
        self._codec = codec
        self._on_error = on_error
        self._on_gap = on_gap
        self._said = said

    def message(self, channel: str, raw: bytes, tries: int = 1) -> Steps[Exception | None]:
        """Call the handler with a message; the error if it could not be read or the handler raised one."""
        message: Message[Any] | None = None
        try:
            wire = read_wire(raw)
            data = self._codec(wire.type).decode(wire.data)
        except Exception as error:  # msgspec raises others beside its own, for text that is no UTF-8
            self.tally.count("unparsable")
            yield from self.trouble("a message does not parse", error, channel, None)
            return error
        message = Message(wire.type, data, wire.timestamp, wire.id, channel, tries)
        try:
            with receiving(wire.type, wire.trace):
                result = yield lambda: self._handler(message)
                if inspect.isawaitable(result):
                    if inspect.iscoroutine(result):
                        result.close()
                    raise TypeError("a handler that is no async function returned an awaitable")
        except Exception as error:
            self.tally.count("failed")
            yield from self.trouble("failed", error, channel, message)
            return error
        self.tally.count("handled")
        return None

    def gap(self, channel: str) -> Steps[None]:
        """Tell that messages may have been lost."""
        self.tally.count("gaps")
        if self._on_gap is not None:
            on_gap = self._on_gap
            yield from self._hook(lambda: on_gap(channel))

    def trouble(self, kind: str, error: Exception, channel: str, message: Message[Any] | None) -> Steps[None]:
        """Log the first of a kind, without what its words may hold, and tell the hook of each."""
        self.say(kind, place(error))
        if self._on_error is not None:
            on_error = self._on_error
            yield from self._hook(lambda: on_error(error, channel, message))

    def say(self, kind: str, how: str) -> None:
        """Log a kind of trouble of this handler once."""
        if (self.name, kind) not in self._said and len(self._said) < SAID:
            self._said.add((self.name, kind))
            log.warning("handler %s: %s (%s); said once, counted in stats()", self.name, kind, how)

    def _hook(self, call: Callable[[], object]) -> Steps[None]:
        try:
            yield call
        except Exception as error:
            self.say("its hook failed", place(error))


def awaits(fn: Any) -> bool:
    """Whether calling it gives something to await; also for objects with an async ``__call__``."""
    kind = fn.__class__
    return is_async(fn) or inspect.iscoroutinefunction(kind.__call__)


def place(error: BaseException) -> str:
    """The kind of an error and where it was raised. Not its words, which may hold what was in the message."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__qualname__}{where}"


def call(steps: Steps[T]) -> T:
    """Carry out the steps in this thread."""
    try:
        step = next(steps)
        while True:
            try:
                result = step()
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def acall(steps: Steps[T]) -> T:
    """Carry out the steps on this event loop."""
    try:
        step = next(steps)
        while True:
            try:
                result = step()
                if inspect.isawaitable(result):
                    result = await result
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
