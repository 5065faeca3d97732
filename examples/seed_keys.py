"""The keys of eight services that share one Redis, each declared once: ``python -m examples.seed_keys``.

Whoever stores under a key, reads it or drops it takes it from here, with its ttl and its tags. A tag drops
what belongs together in one step, where services without tags would have to search the key space.
"""

from __future__ import annotations

from cacheaside import Key, Keyspace

MINUTE, HOUR, DAY = 60, 3600, 86400


class AuthKeys(Keyspace, ns="auth"):
    user = Key("user:{user_id:id}", tags=["user:{user_id}"])
    session = Key("session:{session_id:id}", ttl=DAY)
    refresh = Key("refresh:{token_id:id}", ttl=30 * DAY)
    blacklist = Key("blacklist:{token_hash:str}", ttl=DAY)


class UserKeys(Keyspace, ns="users"):
    profile = Key("profile:{user_id:id}", ttl=2 * HOUR, tags=["user:{user_id}"])
    friends = Key("friends:{user_id:id}", ttl=30 * MINUTE, tags=["user:{user_id}"])
    settings = Key("settings:{user_id:id}", ttl=HOUR, tags=["user:{user_id}"])
    search = Key("search:{query:text}")


class PostKeys(Keyspace, ns="posts"):
    post = Key("post:{post_id:id}", ttl=30 * MINUTE, tags=["post:{post_id}"])
    comments = Key("comments:{post_id:id}", ttl=10 * MINUTE, tags=["post:{post_id}"])
    reactions = Key("reactions:{post_id:id}", ttl=30 * MINUTE, tags=["post:{post_id}"])
    feed = Key("feed:{user_id:id}:page:{page:int}", ttl=15 * MINUTE, tags=["feeds", "feed:{user_id}"])
    trending = Key("trending", tags=["feeds"])


class MessageKeys(Keyspace, ns="messages"):
    conversation = Key("conversation:{conversation_id:id}", ttl=HOUR, tags=["conversation:{conversation_id}"])
    messages = Key(
        "conversation:{conversation_id:id}:messages:page:{page:int}",
        ttl=30 * MINUTE,
        tags=["conversation:{conversation_id}"],
    )
    of_user = Key("user:{user_id:id}:conversations", ttl=15 * MINUTE, tags=["conversations:{user_id}"])


class MediaKeys(Keyspace, ns="media"):
    file = Key("file:{file_id:id}")
    of_user = Key("user:{user_id:id}:page:{page:int}", tags=["media:{user_id}"])
    collection = Key("collection:{collection_id:id}")


class NotificationKeys(Keyspace, ns="notifications"):
    of_user = Key("user:{user_id:id}", tags=["notifications:{user_id}"])
    unread = Key("unread:{user_id:id}", tags=["notifications:{user_id}"])
    preferences = Key("preferences:{user_id:id}")


class SearchKeys(Keyspace, ns="search"):
    suggestions = Key("suggestions:{query:text}")
    results = Key("results:{query:text}")
    filtered = Key("results:{query:text}:{filters:hash}")  # apart: "a" + "b" and "ab" + "" are two searches


class GlobalKeys(Keyspace, ns="global"):
    rate_limit = Key("rate_limit:{kind:str}:{identifier:id}")
    lock = Key("lock:{resource:str}")
    online = Key("online:{user_id:id}")
    connections = Key("websocket:connections")


def main() -> None:
    print(PostKeys.feed(user_id=7, page=1))  # posts:feed:7:page:1
    print(PostKeys.feed(7, 1).ttl, PostKeys.feed(7, 1).tags)  # 900.0 ('feeds', 'feed:7')
    print(SearchKeys.results("red shoes"))  # search:results:cmVkIHNob2Vz
    print(SearchKeys.filtered("red shoes", {"size": 42}))
    print(GlobalKeys.rate_limit("login", "2001:db8::1"))  # global:rate_limit:login:2001%3Adb8%3A%3A1


if __name__ == "__main__":
    main()
