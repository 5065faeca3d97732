"""A database that tests may empty, again and again: one that was found empty, or that they have marked."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, Self

from redis.exceptions import RedisError

from cacheaside.connection import connect
from cacheaside.errors import ConfigError
from cacheaside.urls import parse_url

MARK: Final = "{cacheaside-tests}"
"""A key that no cache can have, and that no pattern of one matches."""
MARKED: Final = 86_400
"""Seconds that a mark lasts, should nobody take it away: a database may be given to somebody else."""

_EMPTY: Final = """
if redis.call('DBSIZE') > 0 and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('FLUSHDB')
if ARGV[1] ~= '0' then
  redis.call('SET', KEYS[1], 'emptied before every test', 'EX', ARGV[1])
end
return 1
"""


class Scratch:
    """One database of one server; a context manager that leaves it empty, without the mark.

    Raises ConfigError for a URL of anything but one server.
    """

    def __init__(self, url: str) -> None:
        endpoint = parse_url(url)
        if endpoint.cluster or endpoint.sentinel:
            raise ConfigError(f"tests need one server, with a database to empty, not {endpoint.safe}")
        self.url = url
        self._safe = endpoint.safe
        self._client: Any = connect(endpoint, lambda facts: None)

    def __repr__(self) -> str:
        return f"<Scratch {self._safe}>"

    def empty(self) -> None:
        """Empty it and mark it, in one step.

        Raises ConfigError where there is something that is not from tests, or no server; nothing is changed
        then.
        """
        try:
            ours = self._client.eval(_EMPTY, 1, MARK, MARKED)
        except RedisError as error:
            raise ConfigError(f"{self._safe} cannot be used for tests: {error}") from error
        if not ours:
            raise ConfigError(
                f"{self._safe} holds keys that tests have not put there, and is not emptied: name a database "
                "that is empty"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(RedisError):
            self._client.eval(_EMPTY, 1, MARK, 0)
        self._client.close()
