"""``python -m examples.minisocial`` serves the app; its database is made and filled if it is not there."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from contextlib import suppress

from sqlalchemy import inspect

from ..demo.graph import choose
from .database import Database
from .seed import PASSWORD, build, email_of
from .settings import Settings


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.minisocial",
        description="Serve the small social network. Settings: MINISOCIAL_DATABASE, MINISOCIAL_REDIS and the "
        "others of settings.py, in the environment.",
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)  # a socket that somebody listens on for us
    options = parser.parse_args(argv)
    try:
        import uvicorn
    except ModuleNotFoundError:
        print("uvicorn is missing: pip install --group demo", file=sys.stderr)
        return 2
    if options.fd is None:
        prepare(Settings.read())
        print(f"http://127.0.0.1:{options.port}/docs; log in as {email_of(1)}, {PASSWORD!r}")
    config = uvicorn.Config(
        "examples.minisocial.app:create_app",
        factory=True,
        port=options.port,
        timeout_keep_alive=60,
        log_level="warning" if options.fd is not None else "info",
        access_log=options.fd is None,
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)
    if options.fd is not None:
        threading.Thread(target=end_with_parent, args=(server,), daemon=True).start()
        # uvicorn's own fd= takes any socket for a Unix one, which then waits for more before it sends.
        server.run(sockets=[socket.socket(fileno=options.fd)])
    else:
        with suppress(KeyboardInterrupt):  # which uvicorn raises again once everything is closed
            server.run()
    return 0 if server.started else 2


def prepare(settings: Settings) -> None:
    database = Database(settings.database)
    try:
        if not inspect(database.engine).has_table("users"):
            print("filling the database ...")
            build(database, choose(None))
    finally:
        database.close()


def end_with_parent(server: object) -> None:
    """Whoever started this process holds the other end of its standard input, however they end."""
    while os.read(0, 1024):
        pass
    server.should_exit = True  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
