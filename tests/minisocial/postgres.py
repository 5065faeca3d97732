"""A PostgreSQL server of the tests' own: in a temporary directory, on a socket there, gone with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import psycopg

GRACE = 60.0
"""Seconds in which it must have started, on a machine with much to do."""
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB")


def binaries() -> Path | None:
    """Where PostgreSQL is; Debian keeps it off PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    places = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((one.parent for one in places), key=lambda one: float(one.parent.name), default=None)


class Postgres:
    """A context manager. It does not run as root, so who is root runs it as somebody else."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.directory = Path(tempfile.mkdtemp(prefix="cacheaside-pg-"))  # short, for it holds a socket
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            self._as = {"user": "nobody", "group": "nogroup", "extra_groups": ()}
            shutil.chown(self.directory, "nobody", "nogroup")
        self._made = 0

    def __enter__(self) -> Self:
        data = str(self.directory / "data")
        made = subprocess.run(
            [self.where / "initdb", "-D", data, "-U", "mini", "-A", "trust", "-E", "UTF8", "--no-sync"],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            **self._as,
        )
        assert made.returncode == 0, made.stderr
        options = [f"--{one}" for one in (*FAST, "listen_addresses=", f"unix_socket_directories={data}")]
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self.where / "postgres", "-D", data, *options],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline = time.monotonic() + GRACE
        while True:
            try:
                self._do("SELECT 1")
                return self
            except psycopg.OperationalError:
                ended = self._process.poll()
                if ended is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise
                time.sleep(0.02)

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # somebody is still connected
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory)

    def database(self) -> str:
        """The URL of a new one, for SQLAlchemy."""
        self._made += 1
        self._do(f"CREATE DATABASE site{self._made}")
        return f"postgresql+psycopg://mini@/site{self._made}?host={self.directory}/data"

    def _do(self, statement: str) -> None:
        with psycopg.connect(
            host=f"{self.directory}/data", user="mini", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement.encode())
