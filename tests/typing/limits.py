"""Limited functions keep their type; what limiters, locks and presence answer has one."""

from __future__ import annotations

from typing import assert_type

from cacheaside import Cache
from cacheaside.toolkit import Decision, Held, Page, Presence, RateLimiter, rate_limited

cache = Cache("embedded://")
limiter = RateLimiter(cache, limits=[(10, 1), (100, 60)], algorithm="gcra", on_unavailable="deny")


@rate_limited(limiter, key="login:{ip}")
def login(name: str, *, ip: str) -> bool:
    return bool(name)


class Mailer:
    @rate_limited(limiter, key="{to}", cost=2)
    async def send(self, to: str) -> int:
        return len(to)


def limited() -> None:
    assert_type(login("ann", ip="::1"), bool)
    assert_type(limiter.hit(("login", 7)), Decision)
    with cache.lock("reports", ttl=10) as held:
        assert_type(held, Held)
        assert_type(held.fence, int)
        assert_type(held.lost, bool)
    assert_type(cache.lock("reports").acquire(timeout=0), Held | None)


async def alimited() -> None:
    assert_type(await Mailer().send("ann"), int)
    assert_type(await limiter.ahit("ann"), Decision)
    async with cache.lock("reports") as held:
        assert_type(held, Held)
    presence = Presence(cache)
    assert_type(await presence.aonline(7, "phone"), bool)
    assert_type(presence.who(), Page)
    assert_type(presence.who().users, list[str])
