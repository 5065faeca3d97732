"""OpenTelemetry: spans for what leaves the process or runs the user's code, metrics from plain counters.

Only the API is used. Without a tracer provider no span is begun; a hit in L1 never begins one. Names are of
low cardinality; keys, values and tokens never appear, except the key itself where ``trace_keys`` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode, Tracer

if TYPE_CHECKING:
    from cacheaside.engine.call import Call, Site
    from cacheaside.engine.write import Receipt

NAMESPACE: Final = "cacheaside.namespace"
OUTCOME: Final = "cacheaside.outcome"
TIER: Final = "cacheaside.tier"
TIERS: Final = {"hit": "l2", "stale": "l2", "miss": "origin", "coalesced": "origin", "bypass": "origin"}

Note = Callable[[Any], Any]
"""Is told what came of the step that a span is around, and gives it back."""

NOTHING: Final = nullcontext[Note](lambda answer: answer)

Attributes = dict[str, str | int | float | bool]


def version() -> str:
    try:
        return metadata.version("cacheaside")
    except metadata.PackageNotFoundError:
        return "unknown"


EVERY: Final = 16
"""Calls between two questions whether a provider has been set: the question costs more than a hit in L1."""

_tracer: Tracer | None = None
_asked = 0


def tracer() -> Tracer | None:
    """The tracer, once a provider has been set; there is no other way to ask whether anybody listens."""
    global _asked
    if _tracer is None:
        _asked += 1
        if _asked % EVERY:
            return None
        look()
    return _tracer


def look() -> None:
    """Look now whether a provider has been set."""
    global _tracer
    kind = type(trace.get_tracer_provider())
    if (kind.__module__, kind.__name__) != ("opentelemetry.trace", "ProxyTracerProvider"):
        _tracer = trace.get_tracer("cacheaside", version())


# Made with the API's meter, which hands everything on to a provider that is set later.
_load_time: Final = metrics.get_meter("cacheaside", version()).create_histogram(
    "cacheaside.load.duration",
    unit="s",
    description="How long the decorated functions took.",
    explicit_bucket_boundaries_advisory=[
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0
    ],
)  # fmt: skip


class Telemetry:
    """The spans of one cache.

    Args:
        keys: whether spans carry the keys of calls, which hold what users passed.
    """

    def __init__(self, *, keys: bool = False) -> None:
        self._keys = keys

    # -- what the driver asks for

    @contextmanager
    def load(self, call: Call) -> Generator[Note]:
        """Around the user's function: a span, and its time in the histogram. Errors are noted."""
        ns = namespace_of(call)
        began = perf_counter()
        try:
            with self._span("cacheaside.load", {NAMESPACE: ns}) as span:

                def note(answer: Any) -> Any:
                    error = getattr(answer, "error", None)
                    if span is not None and error is not None:
                        failed(span, error)
                    return answer

                yield note
        finally:
            _load_time.record(perf_counter() - began, {NAMESPACE: ns})

    def wait(self) -> AbstractContextManager[Note]:
        """Around waiting for a load of somebody else; what waits for its next turn is in no trace."""
        if tracer() is None or not trace.get_current_span().get_span_context().is_valid:
            return NOTHING
        return self._noted("cacheaside.wait", {}, waited)

    def commit(self, fills: int) -> AbstractContextManager[Note]:
        """Around storing."""
        if tracer() is None:
            return NOTHING
        return self._noted("cacheaside.commit", {"cacheaside.entries": fills}, stored)

    @contextmanager
    def behind(self, name: str) -> Generator[None]:
        """Around what nobody waits for: a trace of its own, linked to the one that began it."""
        asked = tracer()
        if asked is None or not name:
            yield
            return
        here = trace.get_current_span().get_span_context()
        links = [Link(here)] if here.is_valid else []
        with (
            asked.start_as_current_span(
                f"cacheaside.{name}",
                context=Context(),
                links=links,
                record_exception=False,
                set_status_on_exception=False,
            ) as span,
            failing(span),
        ):
            yield

    # -- what calls and operations ask for

    @contextmanager
    def call(self, name: str, site: Site, call: Call) -> Generator[None]:
        """Around what L1 could not answer: how it was answered stands in the call when it is over."""
        attributes: Attributes = {NAMESPACE: site.policy.ns}
        if self._keys:
            attributes["cache.key"] = call.key
        with self._span(f"cacheaside.{name}", attributes) as span:
            try:
                yield
            finally:
                if span is not None and call.outcome:
                    span.set_attribute(OUTCOME, call.outcome)
                    span.set_attribute(TIER, TIERS[call.outcome])
                    span.set_attribute("cache.hit", call.outcome in ("hit", "stale"))

    def operation(
        self,
        name: str,
        attributes: Attributes | None = None,
        outcome: Callable[[Any], str] | None = None,
    ) -> AbstractContextManager[Note]:
        """Around an operation that is no call of a cached function; ``outcome`` is what to call its
        result."""
        if tracer() is None:
            return NOTHING
        return self._noted(f"cacheaside.{name}", attributes or {}, outcome)

    @contextmanager
    def invalidation(self, keys: int, tags: int) -> Generator[Callable[[Receipt], Receipt]]:
        """Around an invalidation; what is yielded notes whether it was acknowledged."""
        with self._span("cacheaside.invalidate", {"cacheaside.keys": keys, "cacheaside.tags": tags}) as span:

            def note(receipt: Receipt) -> Receipt:
                if span is not None:
                    span.set_attribute("cacheaside.acknowledged", receipt.acknowledged)
                return receipt

            yield note

    @contextmanager
    def _noted(
        self, name: str, attributes: Attributes, outcome: Callable[[Any], str] | None
    ) -> Generator[Note]:
        with self._span(name, attributes) as span:

            def note(answer: Any) -> Any:
                if span is not None and outcome is not None:
                    span.set_attribute(OUTCOME, outcome(answer))
                return answer

            yield note

    @contextmanager
    def _span(self, name: str, attributes: Attributes) -> Generator[Span | None]:
        asked = tracer()
        if asked is None:
            yield None
            return
        with (
            asked.start_as_current_span(
                name, attributes=attributes, record_exception=False, set_status_on_exception=False
            ) as span,
            failing(span),
        ):
            yield span


def waited(ended: bool | None) -> str:
    return {True: "ended", False: "timeout", None: "slept"}[ended]


def stored(which: tuple[bool, ...]) -> str:
    """Of a commit: whether all of its entries were stored."""
    return "stored" if all(which) else "refused"


def found(answer: object) -> str:
    """Of an operation that looks for something."""
    return "found" if answer else "missing"


@contextmanager
def failing(span: Span) -> Generator[None]:
    """Note on the span what kind of error ends it; its words may hold what no trace should."""
    try:
        yield
    except Exception as error:
        failed(span, error)
        raise


def failed(span: Span, error: Exception) -> None:
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, type(error).__qualname__))


def namespace_of(call: Call) -> str:
    """The namespace of a call, or of the batch that it loads."""
    key = call.key or next(iter(call.keys), "")
    return key.partition(":")[0]
