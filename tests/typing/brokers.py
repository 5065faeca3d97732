"""Messages and those who handle them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, assert_type

import msgspec

from cacheaside import Cache
from cacheaside.toolkit import Broker, DeadLetter, DurableBroker, DurableSubscription, Message, Subscription


class Paid(msgspec.Struct):
    id: int


def anything(message: Message[Any]) -> None:
    assert_type(message.data, Any)


def paid(message: Message[Paid]) -> int:
    assert_type(message.data, Paid)
    assert_type(message.timestamp, datetime)
    return message.data.id


async def apaid(message: Message[Paid]) -> None:
    assert_type(message.data.id, int)


def ids(message: Message[list[int]]) -> None:
    assert_type(message.data, list[int])


async def use(cache: Cache) -> None:
    broker = Broker(cache, types={"paid": Paid, "ids": list[int] | None}, on_gap=print)
    assert_type(broker.publish("orders", "paid", Paid(1)), str)
    assert_type(await broker.apublish("orders", "ping"), str)
    assert_type(broker.subscribe("orders", anything), Subscription)
    assert_type(broker.subscribe("orders", paid), Subscription)
    assert_type(broker.subscribe("orders", paid, type=Paid, queue=5, overflow="close"), Subscription)
    assert_type(broker.subscribe("orders:*", ids, type=list[int], pattern=True), Subscription)
    assert_type(await broker.asubscribe("orders", apaid, type=Paid), Subscription)
    assert_type(broker.subscribe("orders", lambda message: print(message.data)), Subscription)
    assert_type(broker.stats(), dict[str, int])

    durable = DurableBroker(cache, group="mail", tries=3)
    assert_type(durable.subscribe("orders", paid, type=Paid), DurableSubscription)
    assert_type(await durable.asubscribe("orders", apaid), DurableSubscription)
    assert_type(durable.dead("orders"), list[DeadLetter])
    assert_type(await durable.arequeue("orders", "1-0"), int)
