"""Each thing that is wrong in the original is right here: one scenario for both, which the original fails.

``Original`` is the document's session service in Python, mistakes included.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import fakeredis
import pytest
from msgspec import Struct

from cacheaside import Cache
from cacheaside.testing.chaos import StoreWrapper
from cacheaside.toolkit import Session, SessionStore
from tests.sessions.conftest import fake_store


class Data(Struct):
    email: str
    seen: datetime
    role: str = "user"
    theme: str = "light"


SEEN = datetime(2026, 1, 2, tzinfo=UTC)


class Subject(Protocol):
    """What the scenarios need of a session service; ``meanwhile`` runs between a read and its write."""

    meanwhile: Callable[[], object] | None

    def login(self, user: str) -> str: ...
    def read(self, token: str) -> Any: ...
    def change(self, token: str, **changes: Any) -> None: ...
    def logout(self, token: str) -> None: ...
    def logout_everywhere(self, user: str) -> None: ...
    def devices(self, user: str) -> int: ...
    def dump(self) -> bytes: ...


class Original:
    def __init__(self) -> None:
        self.client = fakeredis.FakeRedis()
        self.meanwhile: Callable[[], object] | None = None

    def login(self, user: str) -> str:
        token = str(uuid.uuid4())
        session = {"userId": user, "email": "a@b", "seen": SEEN, "role": "user", "theme": "light"}
        self._set(token, session)
        self.client.set(f"auth:user:{user}:session", token, ex=86400)
        return token

    def read(self, token: str) -> Any:
        session = self._get(token)
        if session is None:
            return None
        self._between()
        session["lastActivity"] = datetime.now(UTC)
        self._set(token, session)
        return Data(session["email"], session["seen"], session["role"], session["theme"])

    def change(self, token: str, **changes: Any) -> None:
        session = self._get(token)
        if session is not None:
            self._between()
            self._set(token, {**session, **changes})

    def logout(self, token: str) -> None:
        self.client.delete(f"auth:session:{token}")

    def logout_everywhere(self, user: str) -> None:
        token = self.client.get("auth:session:*")
        if token is not None:
            self.client.delete(f"auth:session:{user}")

    def devices(self, user: str) -> int:
        return int(self.client.exists(f"auth:user:{user}:session"))

    def dump(self) -> bytes:
        keys = list(self.client.scan_iter())
        return b"".join(key + self.client.get(key) for key in keys)

    def _between(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def _get(self, token: str) -> Any:
        raw = self.client.get(f"auth:session:{token}")
        return None if raw is None else json.loads(raw)

    def _set(self, token: str, session: dict[str, Any]) -> None:
        self.client.set(f"auth:session:{token}", json.dumps(session, default=str), ex=86400)


class SweepingOriginal(Original):
    """Its cache service's other way to log a user out."""

    def logout_everywhere(self, user: str) -> None:
        for key in list(self.client.scan_iter("auth:session:*")):
            self.client.delete(key)


class Ours:
    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] | None = None
        redis = fake_store()
        self.client = redis.client
        subject = self

        class Between(StoreWrapper):
            """After the first command of an operation comes somebody else's whole operation."""

            def around(self, command: Any) -> Any:
                reply = yield command
                meanwhile, subject.meanwhile = subject.meanwhile, None
                if meanwhile is not None:
                    meanwhile()
                return reply

        self.store = SessionStore(Cache(store=Between(redis)), type=Data)

    def login(self, user: str) -> str:
        return self.store.create(user, Data("a@b", SEEN)).token

    def read(self, token: str) -> Any:
        found: Session[Data] | None = self.store.get(token)
        return None if found is None else found.data

    def change(self, token: str, **changes: Any) -> None:
        self.store.update(token, changes)

    def logout(self, token: str) -> None:
        self.store.delete(token)

    def logout_everywhere(self, user: str) -> None:
        self.store.delete_all(user)

    def devices(self, user: str) -> int:
        return len(self.store.list(user))

    def dump(self) -> bytes:
        return b"".join(key + repr(self.client.hgetall(key)).encode() for key in self.client.scan_iter())


def a_second_login_does_not_hide_the_first(subject: Subject) -> None:
    subject.login("ann")
    subject.login("ann")
    assert subject.devices("ann") == 2


def logging_out_everywhere_ends_the_sessions_of_the_user(subject: Subject) -> None:
    tokens = [subject.login("ann"), subject.login("ann")]
    subject.logout_everywhere("ann")
    assert [subject.read(token) for token in tokens] == [None, None]


def logging_out_everywhere_ends_nobody_else_s(subject: Subject) -> None:
    mine, bob_s = subject.login("ann"), subject.login("bob")
    subject.logout_everywhere("ann")
    assert subject.read(mine) is None
    assert subject.read(bob_s) is not None


def concurrent_changes_both_survive(subject: Subject) -> None:
    token = subject.login("ann")
    subject.meanwhile = lambda: subject.change(token, theme="dark")
    subject.change(token, role="admin")
    data = subject.read(token)
    assert (data.theme, data.role) == ("dark", "admin")


def a_read_does_not_undo_a_change(subject: Subject) -> None:
    token = subject.login("ann")
    subject.meanwhile = lambda: subject.change(token, theme="dark")
    subject.read(token)
    assert subject.read(token).theme == "dark"


def a_read_does_not_revive_a_session_deleted_in_between(subject: Subject) -> None:
    token = subject.login("ann")
    subject.meanwhile = lambda: subject.logout(token)
    subject.read(token)
    assert subject.read(token) is None


def a_change_does_not_revive_a_session_deleted_in_between(subject: Subject) -> None:
    token = subject.login("ann")
    subject.meanwhile = lambda: subject.logout(token)
    subject.change(token, role="admin")
    assert subject.read(token) is None


def dates_come_back_as_dates(subject: Subject) -> None:
    assert subject.read(subject.login("ann")).seen == SEEN


def a_leaked_dump_is_no_leaked_login(subject: Subject) -> None:
    token = subject.login("ann")
    assert token.encode() not in subject.dump()


SCENARIOS = [
    (a_second_login_does_not_hide_the_first, Original),
    (logging_out_everywhere_ends_the_sessions_of_the_user, Original),
    (logging_out_everywhere_ends_nobody_else_s, SweepingOriginal),
    (concurrent_changes_both_survive, Original),
    (a_read_does_not_undo_a_change, Original),
    (a_read_does_not_revive_a_session_deleted_in_between, Original),
    (a_change_does_not_revive_a_session_deleted_in_between, Original),
    (dates_come_back_as_dates, Original),
    (a_leaked_dump_is_no_leaked_login, Original),
]


@pytest.mark.parametrize(("scenario", "original"), SCENARIOS, ids=[s.__name__ for s, _ in SCENARIOS])
def test_what_is_wrong_in_the_original_is_right_here(
    scenario: Callable[[Subject], None], original: type[Original]
) -> None:
    scenario(Ours())
    with pytest.raises(AssertionError):
        scenario(original())


@pytest.mark.parametrize("make", [Ours, Original])
def test_what_is_right_in_the_original_is_right_here_too(make: type[Any]) -> None:
    """The original fails where it is wrong, and not everywhere."""
    subject = make()
    token, other = subject.login("ann"), subject.login("bob")
    subject.change(token, role="admin")
    assert (subject.read(token).role, subject.read(other).role) == ("admin", "user")
    subject.logout(token)
    assert subject.read(token) is None
    assert subject.read(other) is not None


def test_a_user_s_name_forges_no_key() -> None:
    """In the original an id with a colon is another key; here the key names a hash of it."""
    subject = Ours()
    subject.login("ann}:x:{*")
    (key,) = subject.client.scan_iter()
    assert key.startswith(b"{cacheaside:auth:session:")
    assert b"ann" not in key
