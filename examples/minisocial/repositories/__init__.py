"""One class a service. Their methods are all that knows of the cache, by their decorators."""

from __future__ import annotations

from ..database import Database
from .auth import Auth
from .media import Media
from .messages import Messages
from .notifications import Notifications
from .posts import Posts
from .search import Search
from .users import Users


class Repositories:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.auth = Auth(database)
        self.users = Users(database)
        self.posts = Posts(database)
        self.messages = Messages(database)
        self.media = Media(database)
        self.notifications = Notifications(database)
        self.search = Search(database)
