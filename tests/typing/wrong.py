"""Wrong uses: both checkers must flag the marked lines, each of them, and no other."""

from __future__ import annotations

from cacheaside import Cache, Key, Keyspace, cached, cached_many, configure, invalidates, updates
from cacheaside.toolkit import Blacklist, Broker, DurableBroker, Message, RefreshTokens, SessionStore

cache = Cache("embedded://")


@cached(ns="posts")
def get_post(post_id: int, *, draft: bool = False) -> dict[str, int]:
    return {"id": post_id, "draft": draft}


@cached(ns="posts")
async def aget_post(post_id: int) -> str:
    return str(post_id)


class Repository:
    @cached(ns="one")
    def one(self, post_id: int) -> str:
        return str(post_id)

    @cached(ns="of_class")
    @classmethod
    def of_class(cls, x: int) -> str:
        return cls.__name__ * x

    @cached(ns="static")
    @staticmethod
    def static(x: int) -> str:
        return str(x)

    @cached_many(ns="many", key="m:{id}")
    def many(self, ids: list[int]) -> dict[int, str]:
        return dict.fromkeys(ids, "")

    @invalidates(tags=["one"])
    def drop(self, post_id: int) -> int:
        return post_id

    @updates(ns="posts", key="post:{post_id}")
    async def save(self, post_id: int) -> str:
        return str(post_id)


repository = Repository()

# Calls
get_post("1")  # wrong
get_post()  # wrong
get_post(1, drafts=True)  # wrong
get_post(1, True)  # wrong
repository.one("1")  # wrong
repository.one(repository, 1)  # wrong
Repository.one(1)  # wrong
repository.static("1")  # wrong
Repository.of_class("1")  # wrong
repository.of_class(1, 2)  # wrong
repository.drop("1")  # wrong
text: str = get_post(1)  # wrong
number: int = repository.drop(1) + repository.one(1)  # wrong

# Handles
get_post.key("1")  # wrong
get_post.tags()  # wrong
get_post.invalidate(1, 2)  # wrong
get_post.refresh(1, draught=True)  # wrong
get_post.peek(1)["id"]  # wrong: it may be MISSING
get_post.put("text", 1)  # wrong
get_post.put({"id": 1})  # wrong
get_post.warm(1)  # wrong
get_post.flush(1)  # wrong
repository.one.key("1")  # wrong
repository.one.put(1, 1)  # wrong
Repository.of_class.invalidate("x")  # wrong
repository.drop.key(1)  # wrong: it is not cached

# Batches
repository.many(1)  # wrong
repository.many(["a"])  # wrong
repository.many.key("a")  # wrong
repository.many.put(1, 1)  # wrong
repository.many.warm(["a"])  # wrong
repository.many.invalidate(1)  # wrong
repository.many([1])["a"]  # wrong


async def coroutines() -> None:
    await aget_post("1")  # wrong
    await get_post(1)  # wrong
    await aget_post.key(1)  # wrong: no I/O, no await
    aget_post(1).upper()  # wrong: not awaited
    (await aget_post.invalidate(1)).acknowledge()  # wrong
    await repository.save("1")  # wrong


# Options
cached()  # wrong
cached("posts")  # wrong
cached(ns=1)  # wrong
cached(ns="posts", tll=5)  # wrong
cached(ns="posts", ttl="5")  # wrong
cached(ns="posts", refresh="behind")  # wrong
cached(ns="posts", codec="yaml")  # wrong
cached(ns="posts", load_timeout=(1, 2, 3))  # wrong
cached(ns="posts", tags=[1])  # wrong
cached_many(ns="posts")  # wrong
cached_many(ns="posts", key="{id}", early_refresh=1.0)  # wrong
updates(ns="posts", key="{id}", stale_if_error=5)  # wrong
invalidates(tags=[1])  # wrong
invalidates(tags=["x"], ttl=5)  # wrong
cache.namespace("posts").cached(ns="users")  # wrong
cache.namespace("posts").invalidates(ns="users", tags=["x"])  # wrong
cached(ns="posts")(5)  # wrong

# Keys


def by_page(user_id: int, page: int = 1) -> None: ...


class PostKeys(Keyspace, ns="posts"):
    feed = Key("feed:{user_id}:page:{page}", by_page)


PostKeys.feed("1")  # wrong
PostKeys.feed(user=1)  # wrong
PostKeys.feed(1, 2, 3)  # wrong
PostKeys.feed.of(user_id=1)  # wrong
Key(1)  # wrong
Key("x", ttl="5")  # wrong
Key("x", tag=["x"])  # wrong
cached(key=1)  # wrong
cached(ns=1, key=PostKeys.feed)  # wrong
cached_many(key="post:{id}")  # wrong
updates(key="post:{id}")  # wrong
cache.cached(key="post:{id}")  # wrong
cache.invalidates(keys=[1])  # wrong

# Caches
Cache("embedded://", tll=5)  # wrong
configure("embedded://", tll=5)  # wrong
configure("embedded://", ttl="5")  # wrong
cache.set("posts:1", 1, tag=["x"])  # wrong
cache.get_or_load("posts:1", 5)  # wrong
loaded: str = cache.get_or_load("posts:1", lambda: 5)  # wrong
cache.invalidate("posts:1")  # wrong

# Sessions and tokens
SessionStore(cache, on_unavailable="allow")  # wrong
SessionStore("redis://localhost")  # wrong
SessionStore(cache).create(1.5, {})  # wrong
SessionStore(cache, type=str).create("ann", 5)  # wrong
SessionStore(cache).get(5)  # wrong
RefreshTokens(cache, grace="5")  # wrong
Blacklist(cache).add("jwt")  # wrong
Blacklist(cache, on_unavailable="raise")  # wrong


# Brokers
def handle_text(message: Message[str]) -> None: ...


Broker(cache, type={})  # wrong
Broker(cache).publish("posts")  # wrong
Broker(cache).subscribe("posts", print, type=5)  # wrong
Broker(cache).subscribe("posts", lambda: None)  # wrong
Broker(cache).subscribe("posts", print, overflow="block")  # wrong
Broker(cache).subscribe("posts", handle_text, type=int)  # wrong
DurableBroker(cache)  # wrong
DurableBroker(cache, group="g", start="now")  # wrong
DurableBroker(cache, group="g").requeue("posts", 5)  # wrong
