"""Messages as bytes: whatever was published comes back, and nothing that comes is dangerous."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheaside import Cache, CodecError
from cacheaside.engine.commands import Run
from cacheaside.stats import Tally
from cacheaside.toolkit import Broker, Message, handlers
from cacheaside.toolkit.board import PUBLISH
from cacheaside.toolkit.handlers import COUNTERS, Calls, call
from cacheaside.toolkit.messages import Types, Wire, read_wire
from tests.broker.conftest import Heard


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers.log, "disabled", True)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
names = st.text(min_size=1, max_size=40).filter(lambda t: not any(0xD800 <= ord(c) < 0xE000 for c in t))
zones = st.timedeltas(timedelta(hours=-14), timedelta(hours=14)).map(
    lambda d: timezone(timedelta(minutes=int(d.total_seconds() // 60)))
)


class Order(msgspec.Struct):
    id: int
    at: datetime
    lines: list[tuple[str, float]] = []
    note: str | None = None


orders = st.builds(
    Order,
    id=st.integers(-(2**63), 2**63 - 1),
    at=st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=zones),
    lines=st.lists(
        st.tuples(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)), max_size=3
    ),
    note=st.none() | st.text(),
)


def handled(raw: bytes, types: Types) -> tuple[list[Message[Any]], list[Exception]]:
    """What a handler is given of these bytes, and what its hook is told."""
    got: list[Message[Any]] = []
    told: list[Exception] = []
    total = Tally(COUNTERS)
    calls = Calls(got.append, types.codec, lambda e, c, m: told.append(e), None, total, set())
    call(calls.message("channel", raw))
    assert total.counts["handled"] + total.counts["unparsable"] == 1
    return got, told


@given(type=names, data=plain, at=st.floats(0, 4e9))
def test_plain_data_comes_back(type: str, data: Any, at: float) -> None:
    types = Types(None)
    id, raw = types.pack(type, data, at, {})
    (message,), told = handled(raw, types)
    assert told == []
    assert (message.type, message.data, message.id) == (type, data, id)
    assert abs(message.timestamp.timestamp() - at) < 1e-3


@given(order=orders)
def test_declared_data_comes_back_with_its_zone(order: Order) -> None:
    types = Types({"order": Order})
    (message,), _ = handled(types.pack("order", order, 0, {})[1], types)
    assert message.data == order
    assert message.data.at.utcoffset() == order.at.utcoffset()


@given(order=orders)
def test_undeclared_data_with_a_date_can_be_read_by_everybody(order: Order) -> None:
    (message,), told = handled(Types(None).pack("order", order, 0, {})[1], Types(None))
    assert told == []
    assert message.data["id"] == order.id


@given(raw=st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_a_message_or_are_told(raw: bytes) -> None:
    got, told = handled(raw, Types({"order": Order}))
    assert len(got) + len(told) == 1


wires = st.fixed_dictionaries(
    {},
    optional={
        "type": names | plain,
        "id": st.text() | plain,
        "timestamp": st.just(datetime(2026, 1, 1, tzinfo=UTC)) | st.datetimes() | plain,
        "data": st.binary() | plain,
        "trace": st.dictionaries(st.text(), st.text()) | plain,
        "later": plain,
    },
)


@given(wire=wires)
@settings(max_examples=200)
def test_nearly_right_messages_are_read_or_told(wire: dict[str, Any]) -> None:
    raw = msgspec.msgpack.encode(wire)
    got, told = handled(raw, Types({"order": Order}))
    assert len(got) + len(told) == 1


@given(order=orders, at=st.integers(0, 10_000), with_=st.binary(min_size=1, max_size=3))
@settings(max_examples=150)
def test_damaged_messages_are_read_or_told(order: Order, at: int, with_: bytes) -> None:
    types = Types({"order": Order})
    raw = bytearray(
        types.pack("order", order, 0, {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"})[1]
    )
    at %= len(raw)
    raw[at : at + len(with_)] = with_
    got, told = handled(bytes(raw), types)
    assert len(got) + len(told) == 1
    for message in got:
        if message.type == "order":
            assert isinstance(message.data, Order)


def test_fields_of_a_newer_publisher_are_left_alone() -> None:
    raw = msgspec.msgpack.encode(
        {
            "type": "x",
            "id": "1",
            "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
            "data": msgspec.msgpack.encode(1),
            "priority": 3,
        }
    )
    assert read_wire(raw) == Wire("x", "1", datetime(2026, 1, 1, tzinfo=UTC), msgspec.msgpack.encode(1))


@given(data=st.builds(threading.Lock) | st.just(object()) | st.just(open))
def test_what_no_bytes_can_say_is_refused(data: Any) -> None:
    with pytest.raises(CodecError, match="cannot make the trip"):
        Types(None).pack("x", data, 0, {})


@given(junk=st.lists(st.binary(max_size=60), max_size=5), data=plain)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_junk_on_a_channel_stops_nothing(embedded: Cache, junk: list[bytes], data: Any) -> None:
    with Broker(embedded) as broker:
        heard = Heard()
        subscription = broker.subscribe("posts", heard)
        for raw in junk:
            embedded.store.perform(Run(PUBLISH, (broker._board.head + "posts",), (raw,)))
        id = broker.publish("posts", "x", data)
        assert heard.has(1)
        assert heard.messages[-1].id == id
        assert subscription.stats()["unparsable"] == len(junk)
