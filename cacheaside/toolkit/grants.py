"""Grants: what a secret token gives to whoever holds it, such as a session or a line of refresh tokens.

All grants of a user lie under one key, so that each step on them is atomic, in a cluster too, and ending
them all is one deletion. A token is HOME ID SECRET, each of a fixed length: HOME names the user's key, ID
the grant in it, and SECRET is 256 bits from the system. The store keeps the SHA-256 of the whole token and
never the token.

A token that is rotated can leave its successor to those who still hold the old one, for a moment: masked
with a hash of the old token that the store never sees.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from collections import Counter
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import msgspec

from cacheaside.engine.commands import Flow, Run
from cacheaside.errors import CodecError, ConfigError
from cacheaside.keys import check_namespace
from cacheaside.rawkeys import RawKeys
from cacheaside.schema import type_name
from cacheaside.toolkit.wallet import GRANTS, micros

if TYPE_CHECKING:
    from cacheaside.cache import Cache

UserId = str | int | UUID

HOME: Final = 16
ID: Final = 32
"""Of HOME and ID together, which is what names a grant to the outside."""
SECRET: Final = 32
DIGEST: Final = 16
MOST_DATA: Final = 2**20
MOST_GRANTS: Final = 1000
LATEST: Final = 10**16
"""In microseconds: what is later than the year 2286 is no date of ours."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{75}", re.ASCII)
_ID: Final = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)


class Grant(NamedTuple):
    """A live grant; times are microseconds since the epoch. ``token`` is empty where none was shown."""

    token: str
    id: str
    user_id: UserId
    payload: bytes
    born: int
    seen: int

    def __repr__(self) -> str:
        return f"<Grant {self.id}>"


class Grants:
    """The grants of one kind.

    Args:
        name: of their keys, such as ``auth:session``.
        ttl: seconds that a grant lives without being used.
        whole: seconds that it lives at most.
        grace: seconds for which a rotated token is good for its successor.
        most: grants of one user; the oldest has to go.
    """

    def __init__(
        self, keys: RawKeys, name: str, *, ttl: float, whole: float, grace: float, most: int
    ) -> None:
        self._keys = keys
        self._name = name
        self._ttl = micros(ttl)
        self._whole = micros(whole)
        self._grace = grace
        self._most = most
        self.counts: Counter[str] = Counter()

    # -- flows; all raise StoreUnavailable

    def add(self, user_id: UserId, payload: bytes) -> Flow[Grant]:
        """A new grant with a new token."""
        home = home_of(user_id)
        token = with_secret(home + secrets.token_urlsafe(12), secrets.token_bytes(SECRET))
        data = seal(token[:ID], user_id, payload)
        born, gone = yield self._step("add", token, data, self._ttl, self._whole, self._most)
        self.counts["pushed_out"] += gone
        return Grant(token, token[:ID], user_id, payload, int(born), int(born))

    def touch(self, token: Any, *, seen: bool = True, slide: bool = True) -> Flow[Grant | None]:
        """The grant of a token, which is then used: ``seen`` now, its life without use begins again."""
        if not is_token(token):
            return None
        reply = yield self._step("touch", token, self._ttl if slide else 0, int(seen))
        return self._grant(token, reply)

    def replace(self, grant: Grant, payload: bytes) -> Flow[tuple[bool, Grant | None]]:
        """Put another payload where still this one is: whether that was done, and what is there now."""
        token, user_id = grant.token, grant.user_id
        before = seal(grant.id, user_id, grant.payload)[:DIGEST]
        reply = yield self._step("replace", token, before, seal(grant.id, user_id, payload))
        answer = listed(reply)
        if answer is None:
            return False, self._grant(token, reply)
        done, born, seen, *there = answer
        if done:
            return True, Grant(token, grant.id, user_id, payload, int(born), int(seen))
        self.counts["conflicts"] += 1
        return False, self._grant(token, [born, seen, *there])

    def rotate(
        self, token: Any, *, grace: float | None = None, strict: bool = False
    ) -> Flow[tuple[str, Grant | None]]:
        """A new token for a grant; who rotates the old one once more in its grace gets the same new one.

        Returns ``"rotated"``, ``"before"`` (it was rotated a moment ago), ``"replayed"`` (``strict``: it was
        rotated longer ago, or its successor was in turn, and the grant has ended) or ``"unknown"``, and the
        grant.
        """
        if not is_token(token):
            return "unknown", None
        secret = secrets.token_bytes(SECRET)
        new = with_secret(token[:ID], secret)
        for_a_moment = micros(self._grace if grace is None else grace)
        left = masked(secret, token).hex()
        reply = yield self._step("rotate", token, hash_of(new), left, for_a_moment, self._ttl, int(strict))
        answer = listed(reply)
        if answer is None:
            return "unknown", self._grant(token, reply)
        what: str = answer[0].decode()
        if what == "before":
            return what, (yield from self._follow(token, answer[4]))
        return what, self._grant(new, answer[1:])

    def _follow(self, token: str, left: bytes) -> Flow[Grant | None]:
        """The grant with the token that is valid now; the successor may have been rotated in turn."""
        while True:
            token = with_secret(token[:ID], masked(bytes.fromhex(left.decode()), token))
            reply = yield self._step("touch", token, 0, 0)
            answer = listed(reply)
            if answer is None or len(answer) < 4:
                return self._grant(token, reply)
            left = answer[3]

    def drop(self, token_or_id: Any) -> Flow[bool]:
        """End a grant, by its token or its id; False when there is none."""
        if isinstance(token_or_id, str) and _ID.fullmatch(token_or_id):
            return bool((yield Run(GRANTS, self._places(token_or_id), ("drop", token_or_id[HOME:], ""))))
        if not is_token(token_or_id):
            return False
        return bool((yield self._step("drop", token_or_id)))

    def clear(self, user_id: UserId) -> Flow[bool]:
        """End all grants of a user, in one step however many they are."""
        return bool((yield Run(GRANTS, self._places(home_of(user_id)), ("clear", "", ""))))

    def all(self, user_id: UserId) -> Flow[list[Grant]]:
        """The live grants of a user, the one seen last first; without their tokens, which nobody knows."""
        home = home_of(user_id)
        damaged, *rows = yield Run(GRANTS, self._places(home), ("list", "", ""))
        self.counts["bad_data"] += damaged
        found = [
            self._open(home + name.decode("latin-1"), "", born, seen, data) for name, born, seen, data in rows
        ]
        live = [grant for grant in found if grant is not None and str(grant.user_id) == str(user_id)]
        return sorted(live, key=lambda grant: (-grant.seen, -grant.born, grant.id))

    # --

    def _step(self, step: str, token: str, *more: bytes | str | int) -> Run:
        hashed = hash_of(token)
        record = self._places(token)[0]
        return Run(GRANTS, (record, f"{record}:{hashed}"), (step, token[HOME:ID], hashed, *more))

    def _places(self, home: str) -> tuple[str, ...]:
        return (self._keys.record(f"{self._name}:{home[:HOME]}"),)

    def _grant(self, token: str, reply: Any) -> Grant | None:
        answer = listed(reply)
        if answer is not None:
            born, seen, data = answer[:3]
            return self._open(token[:ID], token, born, seen, data)
        if reply is not None:
            self.counts["bad_data"] += 1
        return None

    def _open(self, name: str, token: str, born: Any, seen: Any, data: bytes) -> Grant | None:
        opened, dates = unseal(name, data), (int(born), int(seen))
        if opened is None or max(dates) > LATEST:
            self.counts["bad_data"] += 1
            return None
        return Grant(token, name, *opened, *dates)


def listed(reply: Any) -> list[Any] | None:
    return reply if reply.__class__ is list else None


# ---------------------------------------------------------------------------- tokens


def home_of(user_id: Any) -> str:
    """Where the grants of a user are. 42 and "42" are one user: a path or a token knows only the text."""
    if isinstance(user_id, bool) or not isinstance(user_id, (str, int, UUID)) or user_id == "":
        raise ConfigError(f"user_id must be a str that is not empty, an int or a UUID, not {user_id!r}")
    try:
        raw = str(user_id).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"user_id must be text, and {user_id!r} has half a character") from None
    return urlsafe_b64encode(sha256(raw).digest()[:12]).decode()


def is_token(token: Any) -> bool:
    """Whether this can be a token at all; what cannot is not sent anywhere."""
    return isinstance(token, str) and _TOKEN.fullmatch(token) is not None


def with_secret(name: str, secret: bytes) -> str:
    return name + urlsafe_b64encode(secret).rstrip(b"=").decode()


def hash_of(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def masked(secret: bytes, token: str) -> bytes:
    """A secret that only who has ``token`` can read, and the other way round.

    A one-time pad: a token has one successor. What the pad is made of is never stored.
    """
    pad = sha256(b"cacheaside successor:" + token.encode()).digest()
    return bytes(a ^ b for a, b in zip(secret, pad, strict=False))


# ---------------------------------------------------------------------------- what a grant holds


def seal(name: str, user_id: UserId, payload: bytes) -> bytes:
    """What is stored for a grant: it opens for this one only, and not if a bit of it has changed."""
    try:
        body = msgspec.msgpack.encode((user_id, isinstance(user_id, UUID), payload))
    except OverflowError:
        raise ConfigError(f"user_id must be an int of 64 bits or a str, not {user_id!r}") from None
    if len(body) > MOST_DATA:
        raise CodecError(f"the data has {len(body)} bytes; at most {MOST_DATA} can be kept for each token")
    return digest(name, body) + body


def unseal(name: str, data: bytes) -> tuple[UserId, bytes] | None:
    """The user and the payload; None when it is damaged, or somebody else's."""
    if data[:DIGEST] != digest(name, data[DIGEST:]):
        return None
    try:
        user_id, is_uuid, payload = _sealed.decode(data[DIGEST:])
        return UUID(str(user_id)) if is_uuid else user_id, payload
    except (msgspec.MsgspecError, ValueError):
        return None


_sealed: Final = msgspec.msgpack.Decoder(tuple[str | int, bool, bytes])


def digest(name: str, body: bytes) -> bytes:
    return blake2b(name.encode() + body, digest_size=DIGEST).digest()


# ---------------------------------------------------------------------------- options


def check_most(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_GRANTS:
        raise ConfigError(f"max_per_user must be a whole number from 1 to {MOST_GRANTS}, not {value!r}")
    return value


def check_cache(cache: Cache) -> Cache:
    if not hasattr(cache, "arun"):
        raise ConfigError(
            f'cache must be a Cache, such as Cache("redis://localhost"), not a {type_name(cache)}'
        )
    return cache


def grants_name(ns: str, kind: str) -> str:
    return f"{check_namespace(ns)}:{kind}"
