"""The same repositories under Flask, a few routes: ``flask --app examples.minisocial.flask_app run``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from cacheaside_flask import CacheAside, StoreSessions, console, limited
from flask import Flask, abort, request, session

from cacheaside.toolkit import RateLimiter, SessionStore

from .database import Database
from .repositories import Repositories
from .settings import Settings


def create_app(settings: Settings | None = None) -> Flask:
    """The app; settings come from the environment when none are given."""
    settings = settings or Settings.read()
    database = Database(settings.database, settings.delay)
    database.create()
    repositories = Repositories(database)
    auth, users, posts = repositories.auth, repositories.users, repositories.posts

    app = Flask("minisocial")
    app.config.update(CACHEASIDE_URL=settings.redis, CACHEASIDE_PREFIX=settings.prefix)
    # The default cache, so that repositories need not know of it.
    CacheAside(app, default=True)
    cache = app.extensions["cacheaside"]
    app.extensions["minisocial"] = database
    database.follow(cache, settings.hold or None)
    # Sessions of its own, for what FastAPI's hold has another type.
    app.session_interface = StoreSessions(SessionStore(cache, ns="flask"))
    logins = RateLimiter(cache, settings.logins_per_minute, 60, name="login-address", on_unavailable="deny")
    posting = RateLimiter(cache, settings.posts_per_minute, 60, name="post")
    app.register_blueprint(console(guard=lambda: session.get("role") == "admin"), url_prefix="/cache")

    def logged_in(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs) if session.get("user_id") else abort(401)

        return guarded

    def sent(*names: str) -> list[str]:
        """Fields of the body, all of them texts."""
        body = request.get_json()
        given = [body.get(name) for name in names] if isinstance(body, dict) else [None]
        texts = [one for one in given if isinstance(one, str) and len(one) <= 5000]
        return texts if len(texts) == len(names) else abort(422)

    def there(value: Any) -> Any:
        return abort(404) if value is None else value

    @app.post("/login")
    @limited(logins)
    def login() -> dict[str, int]:
        email, password = sent("email", "password")
        user_id = auth.check(email.lower(), password)
        account = auth.account(user_id) if user_id is not None else None
        if account is None:
            abort(401)
        session.update(user_id=account.id, role=account.role)
        return {"user_id": account.id}

    @app.post("/logout")
    def logout() -> dict[str, int]:
        session.clear()
        return {}

    @app.get("/me")
    @logged_in
    def me() -> Any:
        return app.json.response(there(users.profile(session["user_id"])))

    @app.put("/me")
    @logged_in
    def edit() -> Any:
        return app.json.response(users.edit_profile(session["user_id"], *sent("name", "bio")))

    @app.get("/users/<int:user_id>")
    def profile(user_id: int) -> Any:
        return app.json.response(there(users.profile(user_id)))

    @app.get("/feed")
    @logged_in
    def feed() -> dict[str, Any]:
        page = posts.feed(session["user_id"], max(1, request.args.get("page", 1, int)))
        by_id = posts.find(page.post_ids)
        return {
            "user_id": page.user_id,
            "posts": [by_id[one] for one in page.post_ids if one in by_id],
            "version": page.version,
        }

    @app.get("/posts/<int:post_id>")
    def read(post_id: int) -> Any:
        return app.json.response(there(posts.get(post_id)))

    @app.post("/posts")
    @logged_in
    @limited(posting, key=lambda: session["user_id"])
    def create() -> Any:
        return app.json.response(posts.create(session["user_id"], *sent("body"))), 201

    # Flask finds them by their routes.
    del login, logout, me, edit, profile, feed, read, create
    return app
