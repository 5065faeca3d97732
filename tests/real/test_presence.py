"""Who is online, on real servers and by their clocks."""

from __future__ import annotations

import asyncio
import time

from cacheaside import Cache
from cacheaside.testing import Server
from cacheaside.toolkit import Presence

PATIENCE = 30.0


async def test_connections_come_stay_and_end(redis_url: str) -> None:
    async with Cache(redis_url, l1_window=None) as cache:
        presence = Presence(cache)
        assert await presence.aonline("ann", "phone")
        assert not presence.online("ann", "laptop")
        assert presence.online("bob")
        assert presence.connections("ann") == ["phone", "laptop"]
        assert sorted((await presence.awho()).users) == ["ann", "bob"]
        assert not presence.offline("ann", "phone")
        assert await presence.aheartbeat("ann", "laptop")
        assert presence.offline("ann")
        assert not presence.heartbeat("ann", "laptop")
        assert (presence.count(), presence.who().users) == (1, ["bob"])


async def test_who_is_not_heard_of_is_offline_soon(redis_url: str) -> None:
    async with Cache(redis_url, l1_window=None) as cache:
        presence, short = Presence(cache), Presence(cache, ttl=0.3)
        presence.online("ann")
        short.online("bob")
        begin = time.monotonic()
        while short.is_online("bob") or short.count() > 1:
            assert time.monotonic() < begin + PATIENCE
            await asyncio.sleep(0.02)
        assert (presence.count(), presence.who().users) == (1, ["ann"])
        assert not short.heartbeat("bob")


def test_pages_of_a_large_index_hold_everybody(redis_url: str, server: Server) -> None:
    """Above 128 entries a server keeps a sorted set in another way, and scans it in pages."""
    with Cache(redis_url, l1_window=None) as cache, server.client() as client:
        presence = Presence(cache)
        for user in range(300):
            presence.online(user)
        page, seen, pages = presence.who(count=20), list[str](), 1
        while page.cursor is not None:
            seen += page.users
            page, pages = presence.who(page.cursor, 20), pages + 1
        seen += page.users
        assert set(seen) == {str(user) for user in range(300)}
        assert pages > 5
        assert presence.count() == 300
        assert all(0 < client.pttl(key) <= 120_001 for key in client.scan_iter())
