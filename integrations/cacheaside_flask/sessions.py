"""Flask's ``session`` in a ``SessionStore``: the cookie is a token, and what it stands for stays here."""

from __future__ import annotations

import copy
import secrets
from typing import Any, Final

from flask import Flask, Request, Response
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.datastructures import CallbackDict

from cacheaside import ConfigError, StoreUnavailable
from cacheaside.policy import Seconds
from cacheaside.toolkit import Session, SessionStore
from cacheaside.web import AWAY, COOKIE, CookiePlan, SameSite

USER: Final = "user_id"


class StoredSession(CallbackDict[str, Any], SessionMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The ``session`` of one request."""

    def __init__(self, found: Session[dict[str, Any]] | None) -> None:
        def changed(_: Any) -> None:
            self.modified = True

        self.found = found
        self.before: dict[str, Any] = {} if found is None else found.data
        super().__init__(copy.deepcopy(self.before), changed)
        self.modified = False
        self.accessed = False
        self.new = found is None

    def __getitem__(self, key: str) -> Any:
        self.accessed = True
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.accessed = True
        return super().get(key, default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.accessed = True
        return super().setdefault(key, default)


class StoreSessions(SessionInterface):
    """Sessions of a store: ``app.session_interface = StoreSessions(store)``.

    Whoever sets ``session["user_id"]`` logs a user in: when it changes the session gets a new token, and the
    old one ends, so that a token from before a login is worth nothing after it. ``session.clear()`` logs
    out. What two requests change at once is merged, key by key. When Redis does not answer, a request
    that changes its session is a 503.

    Args:
        store: one of dicts, made without ``type``.
        name: of the cookie; it begins with ``__Host-``.
        same_site: ``"lax"`` or ``"strict"``.
        max_age: seconds that the browser keeps the cookie; None: until it is closed.

    Raises ConfigError for a wrong option.
    """

    def __init__(
        self,
        store: SessionStore[dict[str, Any]],
        *,
        name: str = COOKIE,
        same_site: SameSite = "lax",
        max_age: Seconds | None = None,
    ) -> None:
        if not isinstance(store, SessionStore):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"store must be a SessionStore, not {store!r}")
        self.store = store
        self.plan = CookiePlan(name, same_site, max_age)

    def open_session(self, app: Flask, request: Request) -> StoredSession:
        return StoredSession(self.store.get(request.cookies.get(self.plan.name)))

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        if not isinstance(session, StoredSession):
            raise ConfigError(f"the session was made by somebody else: {session!r}")
        if session.accessed or session.modified:
            response.vary.add("Cookie")
        if not session.modified:
            return
        try:
            self._save(session, response)
        except StoreUnavailable:
            # Too late to raise: Flask has the response, which says what did not happen.
            response.status_code = 503
            response.headers.pop("Location", None)
            response.headers.extend(AWAY)
            response.set_data("sessions are not available\n")

    def _save(self, session: StoredSession, response: Response) -> None:
        found, data, plan = session.found, dict(session), self.plan
        if found is not None and data and data.get(USER) == session.before.get(USER):
            self.store.update(found.token, lambda there: merged(session.before, data, there))
            return
        if found is not None:
            self.store.delete(found.token)
        if data:
            user_id = data.get(USER) or f"anonymous-{secrets.token_hex(8)}"
            made = self.store.create(user_id, data)
            response.set_cookie(
                plan.name, made.token, plan.max_age, secure=True, httponly=True, samesite=plan.same_site
            )
        elif found is not None:
            response.delete_cookie(plan.name, secure=True, httponly=True, samesite=plan.same_site)
        response.headers["Cache-Control"] = "no-store"


def merged(before: dict[str, Any], after: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """What is there now, with what one request has changed."""
    gone = before.keys() - after.keys()
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    return {key: value for key, value in there.items() if key not in gone} | changed
