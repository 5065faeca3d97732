"""What an L1 hit costs in a process whose OpenTelemetry SDK samples everything and exports every second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

import pytest

pytestmark = pytest.mark.benchmark

PAIRS = 5
"""Of processes: where the code of one happens to lie in memory is worth a few percent."""
ROUNDS = 3
"""Turns of each process of a pair. One lasts as long as it is between two exports, so that each has one."""

HITS = """
import sys, time
from itertools import repeat
from cacheaside import Cache

cache = Cache("embedded://")

@cache.cached(ns="posts", key="post:{n}", tags=["post:{n}"])
def find(n: int) -> int:
    return n

def turn(n: int, clock=time.perf_counter) -> float:
    begin = clock()
    for _ in repeat(None, n): find(42)
    return clock() - begin

def turns() -> None:
    find(42)
    n = 1
    while turn(n) < 0.1:
        n *= 2
    for _ in sys.stdin:
        seconds, count = 0.0, 0
        while seconds < 1.0:
            seconds, count = seconds + turn(n), count + n
        print(seconds / count, flush=True)
    print(cache.stats()["namespaces"]["posts"]["loads"], flush=True)
"""
PLAIN = HITS + "turns()"
EXPORTING = (
    HITS
    + """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

class Dropped(SpanExporter):
    def export(self, spans) -> SpanExportResult:
        return SpanExportResult.SUCCESS

exports = []

def counted(data) -> str:  # as much work as an exporter has: all of it as JSON
    exports.append(len(data.to_json()))
    return ""

tracers, reader = TracerProvider(sampler=ALWAYS_ON), PeriodicExportingMetricReader(
    ConsoleMetricExporter(out=open("/dev/null", "w"), formatter=counted), export_interval_millis=1000
)
tracers.add_span_processor(BatchSpanProcessor(Dropped()))
meters = MeterProvider([reader])
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(meters)
with trace.get_tracer("app").start_as_current_span("request"):
    turns()
print(len(exports), max(exports), flush=True)
tracers.shutdown(), meters.shutdown()
"""
)


class Child:
    """A process that takes turns, one for each line that it is sent."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )

    def turn(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> list[str]:
        """What it says after its last turn."""
        said, _ = self.process.communicate(timeout=30)
        return said.split()


def test_an_sdk_that_exports_costs_an_l1_hit_nothing(table: Callable[..., None]) -> None:
    pairs: list[tuple[float, float]] = []
    for _ in range(PAIRS):
        with ExitStack() as stack:
            plain, exporting = Child(PLAIN), Child(EXPORTING)
            for child in (plain, exporting):
                stack.callback(child.process.kill)
            pairs += [(plain.turn(), exporting.turn()) for _ in range(ROUNDS)]
            assert plain.end() == ["1"], "all but the first call were hits"
            loads, exports, size = exporting.end()
            assert loads == "1"
            assert int(exports) >= ROUNDS
            assert int(size) > 1000
    ratio = median(b / a for a, b in pairs)
    table("L1 hit", "no SDK", f"{median(a for a, _ in pairs) * 1e6:.2f} us", "1.00x")
    table("", "SDK, exporting", f"{median(b for _, b in pairs) * 1e6:.2f} us", f"{ratio:.2f}x")
    assert ratio <= 1.1
