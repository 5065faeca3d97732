"""What a check is asked for, validated once."""

from __future__ import annotations

from typing import Any, Final, get_args

from msgspec import Struct, field
from msgspec.structs import replace

from cacheaside.check import clusters as clusters
from cacheaside.check import failovers as failovers
from cacheaside.check.faults import FAULTS, Fault, Needs
from cacheaside.check.wrong import NEEDS, WRONG
from cacheaside.errors import ConfigError
from cacheaside.incarnation import FailoverMode
from cacheaside.policy import seconds
from cacheaside.urls import Endpoint, parse_url

MODES: Final = ("cacheaside", *WRONG)
KINDS: Final = ("redis", "valkey")


class Settings(Struct, frozen=True, kw_only=True):
    """One check. Raises ConfigError, naming what is wrong, when ``checked`` is asked for.

    Args:
        url: where Redis is; None starts a server of its own.
        server: which server is started then, ``"redis"`` or ``"valkey"``; None: the first there is.
        faults: names of ``FAULTS``.
        mode: ``"cacheaside"``, or one of the protocols that do not work.
        seconds: how long to read and write.
        processes, threads, tasks: so many processes, each with so many threads and asyncio tasks.
        keys: rows of the table.
        writes: commits a second, all processes together.
        l1_window: seconds that L1 may lag behind other processes; 0 turns it off.
        database: a URL for SQLAlchemy; None: SQLite in a temporary file.
        deadline: seconds within which a call must return, its own loads not counted; None: any will do.
        failover: the cache's setting of that name; None: its default.
        cache: further settings of the cache.
    """

    url: str | None = None
    server: str | None = None
    faults: tuple[str, ...] = ()
    mode: str = "cacheaside"
    seconds: float = 10.0
    processes: int = 4
    threads: int = 2
    tasks: int = 2
    keys: int = 60
    writes: float = 100.0
    l1_window: float = 1.0
    database: str | None = None
    deadline: float | None = None
    failover: str | None = None
    seed: int = 1
    cache: dict[str, Any] = field(default_factory=dict[str, Any])

    def checked(self) -> Settings:
        """The settings, if they make sense; with the faults that the mode cannot do without."""
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("server", self.server, KINDS),
            ("failover", self.failover, get_args(FailoverMode)),
        ):
            if value is not None and value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        for fault in self.faults:
            if fault not in FAULTS:
                raise ConfigError(f"fault must be one of {', '.join(FAULTS)}, not {fault!r}")
        for name in ("seconds", "writes"):
            seconds(name, getattr(self, name))
        seconds("l1_window", self.l1_window, zero=True)
        if self.deadline is not None:
            seconds("deadline", self.deadline)
        for name, least in (("processes", 1), ("threads", 0), ("tasks", 0), ("keys", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.threads + self.tasks:
            raise ConfigError("threads=0 and tasks=0 leave nobody to read: give one of them")
        wanted = self if self.faults else self._with_needed_faults()
        wanted.check_place()
        return wanted

    def _with_needed_faults(self) -> Settings:
        return replace(self, faults=NEEDS.get(self.mode, ()))

    @property
    def chosen(self) -> list[Fault]:
        return [FAULTS[name] for name in self.faults]

    @property
    def needs(self) -> set[Needs]:
        """What the faults need, beside processes."""
        return {fault.needs for fault in self.chosen if fault.needs}

    @property
    def endpoint(self) -> Endpoint | None:
        return None if self.url is None else parse_url(self.url)

    def check_place(self) -> None:
        """That the faults can be had where the check is to run."""
        needs, endpoint = self.needs, self.endpoint
        if endpoint is not None:
            if self.server is not None:
                raise ConfigError("server says what to start: give it or a URL, not both")
            for fault in self.chosen:
                if fault.needs not in ("", "proxy"):
                    raise ConfigError(
                        f"fault {fault.name} needs a server of its own, which it may harm: leave the URL out"
                    )
            if "proxy" in needs and endpoint.scheme != "redis":
                raise ConfigError(
                    f"fault proxy goes between the cache and redis://, not {endpoint.scheme}://"
                )
            if self.mode != "cacheaside" and endpoint.scheme.partition("+")[1]:
                raise ConfigError(f"mode {self.mode} works with one server, not with {endpoint.scheme}://")
        groups = needs & {"sentinel", "cluster"}
        if len(groups) > 1 or (groups and len(needs) > 1):
            raise ConfigError(
                f"faults {', '.join(self.faults)} need different servers: choose those of one kind"
            )
        if groups and self.mode != "cacheaside":
            raise ConfigError(f"mode {self.mode} works with one server: choose other faults")
