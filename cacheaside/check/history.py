"""The history of a check: what every process did and when, one line each, only ever appended.

Times are seconds of a clock that all processes of one machine share and that counts while the machine
sleeps, so lines of different files may be compared. A process that is killed leaves at worst a torn last
line, which is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cacheaside.errors import CacheasideError
from cacheaside.world import never_back

clock = never_back

SUFFIX: Final = ".jsonl"


class HistoryError(CacheasideError):
    """A line of a history cannot be read."""


class Get(Struct, frozen=True, array_like=True, tag="get", gc=False):
    """A call that returned ``version`` of ``row``; ``loading`` are the seconds of its own loads.

    ``tier`` is who answered: ``"l1"``, ``"l2"`` (waiting for another's load as well), ``"load"``, or
    ``"mixed"`` for what a batch had from L1 or L2.
    """

    row: int
    version: int
    begin: float
    end: float
    tier: str
    loading: float
    who: str


class Load(Struct, frozen=True, array_like=True, tag="load", gc=False):
    """A read of the table: the row was read right after ``begin``."""

    row: int
    version: int
    begin: float
    end: float
    who: str


class Commit(Struct, frozen=True, array_like=True, tag="commit", gc=False):
    """The table holds ``version``."""

    row: int
    version: int
    at: float
    who: str


class Ack(Struct, frozen=True, array_like=True, tag="ack", gc=False):
    """The invalidation after the commit of ``version`` has returned; ``way`` says by what.

    ``done`` is false for one that was not acknowledged: nothing was promised then.
    """

    row: int
    version: int
    at: float
    way: str
    done: bool
    who: str


class Failed(Struct, frozen=True, array_like=True, tag="failed", gc=False):
    """A call that raised, which a cache has no right to; or a task in the background, of row -1."""

    row: int
    at: float
    error: str
    who: str


class Strike(Struct, frozen=True, array_like=True, tag="strike", gc=False):
    """A fault did something, to one key or to all.

    ``lapse``: a server is in force now that may have lost what another one had confirmed.
    """

    at: float
    fault: str
    what: str
    key: str = ""
    lapse: bool = False


class Ended(Struct, frozen=True, array_like=True, tag="ended"):
    """A process has closed its cache: what it counted, and what was still there afterwards."""

    at: float
    counts: dict[str, float]
    leaks: list[str]


Record = Get | Load | Commit | Ack | Failed | Strike | Ended


@functools.cache
def _decoder() -> msgspec.json.Decoder[Record]:
    return msgspec.json.Decoder(Record)


class Recorder:
    """Appends the records of one process; any of its threads may."""

    def __init__(self, directory: Path, process: str) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._file = (directory / (process + SUFFIX)).open("ab", buffering=1 << 16)

    def add(self, record: Record) -> None:
        """Append, some time: what is lost with a process that is killed can only hide something."""
        self._file.write(self._encode(record) + b"\n")

    def add_now(self, record: Record) -> None:
        """Append what must survive this process: others are judged by it."""
        self.add(record)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class History:
    """Every record of a directory, with the name of its process, one process after another.

    May be read again and again. Raises HistoryError for a line, other than a torn last one, that is none.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        decode = _decoder().decode
        for file in sorted(self._directory.glob("*" + SUFFIX)):
            process = file.name.removesuffix(SUFFIX)
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        yield process, decode(line)
                    except msgspec.MsgspecError as error:
                        raise HistoryError(f"{file.name}, line {number}: {error}") from error
