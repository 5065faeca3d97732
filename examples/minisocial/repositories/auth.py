"""Who may log in."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import select

from cacheaside import cached, invalidates
from examples.seed_keys import AuthKeys

from ..database import Database, Snapshot, writes
from ..models import User
from .changes import Change, changed

COST = 2**12
"""Of a password's hash: low, for the demonstration logs many users in. Take 2**17 for people."""


@dataclass(frozen=True)
class Account:
    id: int
    email: str
    name: str
    role: str
    version: int


class Auth:
    def __init__(self, database: Database) -> None:
        self.database = database

    @cached(key=AuthKeys.user, ttl=3600)
    def account(self, user_id: int) -> Account | None:
        with self.database.reading() as session:
            user = session.get(User, user_id)
            if user is None:
                return None
            return Account(user.id, user.email, user.name, user.role, session.version)

    def check(self, email: str, password: str) -> int | None:
        """The user's id if the password is right. Not cached: no hash of a password belongs into Redis."""
        with self.database.reading() as session:
            row = session.execute(select(User.id, User.password).where(User.email == email)).one_or_none()
        # As long for who is not there: how long it takes tells nothing.
        good = matches(password, row.password if row else NOBODY)
        return row.id if row and good else None

    def register(self, email: str, name: str, password: str) -> Change | None:
        """None if the address is taken. A hash takes its time: not while other writers wait."""
        return self._register(email, name, hash_of(password))

    @writes
    @invalidates(tags=changed)
    def _register(self, session: Snapshot, email: str, name: str, hashed: str) -> Change | None:
        if session.scalar(select(User.id).where(User.email == email)) is not None:
            session.rollback()
            return None
        user = session.made(User(email=email, name=name, password=hashed))
        return Change(session.version, (f"user:{user.id}",), user.id)


def hash_of(password: str, salt: bytes | None = None) -> str:
    salt = salt or secrets.token_bytes(16)
    return f"{salt.hex()}:{hashlib.scrypt(password.encode(), salt=salt, n=COST, r=8, p=1).hex()}"


def matches(password: str, hashed: str) -> bool:
    salt = bytes.fromhex(hashed.partition(":")[0])
    return hmac.compare_digest(hash_of(password, salt), hashed)


NOBODY = hash_of(secrets.token_hex())
