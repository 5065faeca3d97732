"""What the keys in Redis are called: of values, tags, locks and channels."""

from __future__ import annotations

import re
from typing import Final, cast
from zlib import crc32

from cacheaside.canonical import CONTROL
from cacheaside.errors import ConfigError

_UNSAFE_IN_PREFIX: Final = re.compile(rf"[\s{{}}%*?\[\]\\{CONTROL}]")


class RawKeys:
    """Where things live in Redis, under one prefix.

    *prefix* comes before every key, with a colon, unless it is empty. *buckets* is how many slots the tags
    are spread over: 1 on a single server, more in a cluster. Raises ConfigError for either.

    Braces make companions and their value, and a tag and its channel, share a cluster slot.
    """

    __slots__ = ("_buckets", "_head", "_token_heads", "prefix")

    def __init__(self, prefix: str, buckets: int = 1) -> None:
        if not isinstance(cast(object, prefix), str) or _UNSAFE_IN_PREFIX.search(prefix):
            raise ConfigError(
                f"prefix must be a str without braces, brackets, '%', '*', '?', backslash, whitespace or "
                f'control characters, such as prefix="shop"; not {prefix!r}'
            )
        if type(buckets) is not int or buckets < 1:
            raise ConfigError(f"buckets must be an int of 1 or more, not {buckets!r}")
        self.prefix = prefix
        self._head = f"{prefix}:" if prefix else ""
        self._buckets = buckets
        self._token_heads = [f"{self.channel(bucket)}:" for bucket in range(buckets)]

    def value(self, key: str) -> str:
        """Where the value of *key* (``ns:rest``) lives."""
        return self._head + key

    def record(self, key: str) -> str:
        """Where something lives under *key* that is no cached value: clearing the cache leaves it alone."""
        return f"{{{self._head}{key}}}"

    def refresh_lock(self, key: str) -> str:
        """The lock that lets one process refresh *key*."""
        return f"{{{self._head}{key}}}:r"

    def staging(self, key: str) -> str:
        """Where a large value of *key* waits to be renamed."""
        return f"{{{self._head}{key}}}:w"

    def companion(self, key: str, name: str) -> str:
        """What else belongs to *key*, in its slot of a cluster; *name* has at least two characters."""
        return f"{{{self._head}{key}}}:{name}"

    def bucket(self, tag: str) -> int:
        """The bucket of *tag*: the same in every process with as many buckets."""
        return crc32(tag.encode()) % self._buckets if self._buckets > 1 else 0

    def token(self, tag: str) -> str:
        """Where the token of *tag* lives."""
        return self._token_heads[self.bucket(tag) if self._buckets > 1 else 0] + tag

    def tag_index(self, tag: str) -> str:
        """The sorted set of the keys that carry *tag*."""
        return f"{self.token(tag)}:keys"

    def tag_indexes(self) -> str:
        """A pattern of all of these."""
        return f"{{{self._head}t.*}}:*:keys"

    def tag_of(self, index: str) -> str:
        """The tag whose sorted set this is."""
        return index.partition("}:")[2].removesuffix(":keys")

    def channel(self, bucket: int) -> str:
        """The channel on which invalidations of the tags in *bucket* are announced."""
        return f"{{{self._head}t.{bucket}}}"

    def strip(self, raw: str) -> str:
        """Return the key whose value lives at *raw*; raise ConfigError if that is under another prefix."""
        if not raw.startswith(self._head):
            raise ConfigError(f"{raw!r} is not under the prefix {self.prefix!r}")
        return raw[len(self._head) :]
