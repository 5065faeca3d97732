"""Functions that write, and the blocks around them: what is dropped, what is stored, and when."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from cacheaside import MISSING, Cache, ConfigError


@dataclasses.dataclass
class Post:
    id: int
    author_id: int = 7


def present(cache: Cache, *keys: str) -> list[str]:
    return sorted(cache.get_many(keys))


# ---------------------------------------------------------------------------- invalidates


async def test_after_success_tags_and_keys_are_dropped(any_cache: Cache, paint: Any, ask: Any) -> None:
    any_cache.set("posts:post:1", 1)
    any_cache.set("posts:post:2", 1)
    any_cache.set("feeds:1", 1, tags=["author:7"])
    any_cache.set("feeds:2", 1, tags=["author:8"])

    @any_cache.invalidates(tags=["author:{post.author_id}"], keys=["post:{post.id}"], ns="posts")
    @paint
    def save(post: Post, *, quietly: bool = False) -> str:
        assert any_cache.exists("feeds:1"), "not before the function has succeeded"
        return "saved"

    assert await ask(save(Post(1), quietly=True)) == "saved"
    assert present(any_cache, "posts:post:1", "posts:post:2", "feeds:1", "feeds:2") == [
        "feeds:2",
        "posts:post:2",
    ]


async def test_tags_may_name_the_result_or_be_a_function(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.invalidates(tags=["author:{result.author_id}", "feed"])
    @paint
    def create(author_id: int) -> Post:
        return Post(1, author_id)

    @cache.invalidates(tags=lambda author_id, result: [f"author:{author_id}", f"post:{result.id}"])
    @paint
    def move(author_id: int) -> Post:
        return Post(5)

    for call, tags in ((create, ("author:7", "feed")), (move, ("author:7", "post:5"))):
        for tag in tags:
            cache.set("n:k", 1, tags=[tag])
            await ask(call(7))
            assert not cache.exists("n:k"), tag


async def test_what_a_template_names_is_dropped_as_it_was_and_as_it_is(cache: Cache) -> None:
    """A post that moves to another author leaves the feeds of both."""
    cache.set("feeds:old", 1, tags=["author:1"])
    cache.set("feeds:new", 1, tags=["author:2"])

    @cache.invalidates(tags=["author:{post.author_id}"])
    def move(post: Post, author_id: int) -> None:
        post.author_id = author_id

    move(Post(1, author_id=1), 2)
    assert present(cache, "feeds:old", "feeds:new") == []


async def test_after_an_error_nothing_is_dropped_unless_asked_for(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.invalidates(tags=["t", "{result.id}"])
    @paint
    def plain() -> Post:
        raise OSError("refused")

    @cache.invalidates(tags=["t", "{result.id}"], keys=["k"], ns="n", on_error=True)
    @paint
    def cautious() -> Post:
        raise OSError("refused")

    cache.set_many({"n:k": 1, "n:l": 1}, tags=["t"])
    with pytest.raises(OSError, match="refused"):
        await ask(plain())
    assert present(cache, "n:k", "n:l") == ["n:k", "n:l"]
    with pytest.raises(OSError, match="refused"):
        await ask(cautious())
    assert present(cache, "n:k", "n:l") == []


async def test_on_error_covers_a_write_that_is_cancelled(cache: Cache) -> None:
    """Its transaction may have been committed all the same."""
    begun = asyncio.Event()

    @cache.invalidates(tags=["t"], on_error=True)
    async def save() -> None:
        begun.set()
        await asyncio.Event().wait()

    cache.set("n:k", 1, tags=["t"])
    saving = asyncio.create_task(save())
    await begun.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert not cache.exists("n:k")


async def test_what_can_be_named_is_dropped_even_if_something_cannot(
    cache: Cache, paint: Any, ask: Any
) -> None:
    """The write has happened: a mistake in one tag must not keep the others from being dropped."""

    @cache.invalidates(tags=["t", "author:{result.author_id}"], keys=["k"], ns="n")
    @paint
    def save() -> Post | None:
        return None

    cache.set("n:k", 1)
    cache.set("n:l", 1, tags=["t"])
    with pytest.raises(AttributeError, match="author_id") as caught:
        await ask(save())
    assert any(
        "@invalidates on" in note and "save drops: it has run" in note for note in caught.value.__notes__
    )
    assert present(cache, "n:k", "n:l") == []


async def test_methods_of_every_kind_may_invalidate(cache: Cache, ask: Any) -> None:
    class Posts:
        tenant = "acme"

        @cache.invalidates(tags=["{self.tenant}:{a}"])
        def method(self, a: int) -> Any:
            return self, a

        @cache.invalidates(tags=["{self.tenant}:{a}"])
        async def amethod(self, a: int) -> Any:
            return self, a

        @cache.invalidates(tags=["{cls.tenant}:{a}"])
        @classmethod
        def klass(cls, a: int) -> Any:
            return cls, a

        @cache.invalidates(tags=["acme:{a}"])
        @staticmethod
        def static(a: int) -> Any:
            return None, a

        @staticmethod
        @cache.invalidates(tags=["acme:{a}"])
        async def below(a: int) -> Any:
            return None, a

    posts = Posts()
    expected = {"method": posts, "amethod": posts, "klass": Posts, "static": None, "below": None}
    for name, receiver in expected.items():
        cache.set("n:k", 1, tags=["acme:1"])
        assert await ask(getattr(posts, name)(1)) == (receiver, 1)
        assert not cache.exists("n:k"), name
    cache.set("n:k", 1, tags=["acme:1"])
    assert Posts.method(posts, 1) == (posts, 1)
    assert not cache.exists("n:k")


async def test_a_writer_keeps_its_name_signature_and_colour(cache: Cache) -> None:
    @cache.invalidates(tags=["t"])
    def save(post: Post, *, quietly: bool = False) -> str:
        """Save it."""
        return "saved"

    @cache.updates(ns="n", key="{a}")
    async def update(a: int) -> int:
        return a

    assert (save.__name__, save.__doc__) == ("save", "Save it.")
    assert list(inspect.signature(save).parameters) == ["post", "quietly"]
    assert not inspect.iscoroutinefunction(save)
    assert inspect.iscoroutinefunction(update)


async def test_decorators_that_write_can_be_stacked(cache: Cache, paint: Any, ask: Any) -> None:
    @cache.invalidates(tags=["feed"])
    @cache.updates(ns="posts", key="{post.id}")
    @paint
    def save(post: Post) -> int:
        return post.id

    cache.set("n:k", 1, tags=["feed"])
    assert await ask(save(Post(5))) == 5
    assert not cache.exists("n:k")
    assert cache.get("posts:5") == 5


# ---------------------------------------------------------------------------- updates


async def test_updates_stores_what_the_reader_of_the_key_finds(
    any_cache: Cache, paint: Any, ask: Any
) -> None:
    loads: list[int] = []

    @any_cache.cached(ns="posts", key="post:{post_id}", tags=["post:{post_id}"])
    @paint
    def find(post_id: int) -> Post:
        loads.append(post_id)
        return Post(post_id, 0)

    @any_cache.updates(ns="posts", key="post:{post_id}", tags=["post:{post_id}"], ttl=60, jitter=0)
    @paint
    def save(post_id: int, author_id: int) -> Post:
        return Post(post_id, author_id)

    await ask(find(1))
    assert await ask(save(1, 9)) == Post(1, 9)
    assert await ask(find(1)) == Post(1, 9)
    assert loads == [1]
    assert any_cache.ttl("posts:post:1") == 60
    any_cache.invalidate(tags=["post:1"])
    assert await ask(find(1)) == Post(1, 0)


async def test_an_update_that_fails_stores_nothing_and_holds_nothing(
    cache: Cache, paint: Any, ask: Any
) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}")
    @paint
    def find(a: int) -> int:
        loads.append(a)
        return a

    @cache.updates(ns="n", key="{a}")
    @paint
    def save(a: int) -> int:
        raise OSError("refused")

    await ask(find(1))
    with pytest.raises(OSError, match="refused"):
        await ask(save(1))
    await ask(find(1)), await ask(find(1))
    assert loads == [1, 1]


async def test_an_update_that_may_not_be_stored_drops_what_was_there(
    cache: Cache, paint: Any, ask: Any
) -> None:
    @cache.cached(ns="n", key="{a}")
    @paint
    def find(a: int) -> int | None:
        return 0

    @cache.updates(ns="n", key="{a}", cache_if=lambda result: result != 13, negative_ttl=0)
    @paint
    def save(a: int, value: int | None) -> int | None:
        return value

    for value in (13, None):
        await ask(find(1))
        assert await ask(save(1, value)) == value
        assert await ask(find.peek(1)) is MISSING


async def test_readers_during_an_update_load_for_themselves_and_store_nothing(cache: Cache) -> None:
    row = ["old"]

    @cache.cached(ns="n", key="k")
    def find() -> str:
        return row[0]

    @cache.updates(ns="n", key="k")
    def save(value: str) -> str:
        assert find() == "old"
        row[0] = value
        assert find() == "new"
        assert find.peek() is MISSING
        return value

    find()
    assert save("new") == "new"
    assert find.peek() == "new"


async def test_an_invalidation_during_an_update_wins(cache: Cache) -> None:
    @cache.cached(ns="n", key="k", tags=["t"])
    def find() -> str:
        return "loaded"

    @cache.updates(ns="n", key="k", tags=["t"])
    def save(how: str) -> str:
        cache.invalidate(**{how: ["n:k"] if how == "keys" else ["t"]})
        return "written"

    for how in ("keys", "tags"):
        assert save(how) == "written"
        assert find() == "loaded"
        cache.delete("n:k")


async def test_updates_of_the_same_key_at_once_leave_none_of_both(cache: Cache) -> None:
    """Which of two writes that cross was the later one is for the source to say."""

    @cache.cached(ns="n", key="k")
    def find() -> str:
        return "loaded"

    @cache.updates(ns="n", key="k")
    def save(value: str) -> str:
        if value == "outer":
            save("inner")
        return value

    assert save("outer") == "outer"
    assert find() == "loaded"


# ---------------------------------------------------------------------------- transaction


@contextmanager
def rolled_back() -> Any:
    try:
        yield
    except ZeroDivisionError:
        pass


async def test_in_a_transaction_invalidations_wait_for_its_end(any_cache: Cache) -> None:
    any_cache.set("n:k", 1)
    any_cache.set("n:l", 1, tags=["t"])

    @any_cache.invalidates(tags=["t"])
    def save() -> None: ...

    with any_cache.transaction() as transaction:
        receipt = any_cache.delete("n:k")
        save()
        assert receipt.deferred
        assert not receipt, "nothing has been acknowledged yet"
        assert present(any_cache, "n:k", "n:l") == ["n:k", "n:l"]
    assert transaction.receipt
    assert (transaction.receipt.keys, transaction.receipt.tags) == (("n:k",), ("t",))
    assert present(any_cache, "n:k", "n:l") == []


async def test_in_an_async_transaction_too(any_cache: Cache) -> None:
    await any_cache.aset("n:k", 1)
    async with any_cache.transaction() as transaction:
        assert (await any_cache.ainvalidate(keys=["n:k"])).deferred
        assert await any_cache.aexists("n:k")
    assert transaction.receipt
    assert not await any_cache.aexists("n:k")


async def test_an_error_drops_the_invalidations_of_the_block(any_cache: Cache) -> None:
    any_cache.set("n:k", 1)
    with rolled_back(), any_cache.transaction() as transaction:
        any_cache.delete("n:k")
        raise ZeroDivisionError
    assert transaction.receipt is None
    assert any_cache.exists("n:k")
    with rolled_back():
        async with any_cache.transaction():
            await any_cache.adelete("n:k")
            raise ZeroDivisionError
    assert any_cache.exists("n:k")
    assert any_cache.delete("n:k").deferred is False


async def test_a_transaction_inside_another_hands_over_to_it(cache: Cache) -> None:
    cache.set("n:k", 1)
    with cache.transaction():
        with cache.transaction() as inner:
            cache.delete("n:k")
        assert inner.receipt is not None
        assert inner.receipt.deferred
        assert cache.exists("n:k")
    assert not cache.exists("n:k")

    cache.set_many({"n:k": 1, "n:l": 1})
    with cache.transaction():
        with rolled_back(), cache.transaction():
            cache.delete("n:k")
            raise ZeroDivisionError
        cache.delete("n:l")
    assert present(cache, "n:k", "n:l") == ["n:k"]


async def test_a_transaction_is_of_one_cache_and_one_context(cache: Cache, clock: Any) -> None:
    with Cache("embedded://", clock=clock) as other, cache.transaction():
        with other.transaction():
            assert cache.delete("n:k").deferred
            assert other.delete("n:k").deferred
        assert not other.delete("n:k").deferred
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(cache.delete, "n:k").result().deferred


async def test_a_task_that_outlives_its_transaction_invalidates_at_once(cache: Cache) -> None:
    with cache.transaction():
        context = contextvars.copy_context()
    assert not context.run(cache.delete, "n:k").deferred


async def test_in_a_transaction_an_update_stores_nothing_and_drops_its_key_at_the_end(
    cache: Cache, paint: Any, ask: Any
) -> None:
    @cache.updates(ns="n", key="{a}")
    @paint
    def save(a: int) -> str:
        return "not committed yet"

    cache.set("n:1", "committed")
    with cache.transaction():
        assert await ask(save(1)) == "not committed yet"
        assert cache.get("n:1") == "committed"
    assert cache.get("n:1") is MISSING


async def test_a_hold_does_not_wait_for_the_transaction(cache: Cache) -> None:
    cache.set("n:k", 1)
    with cache.transaction():
        assert not cache.invalidate(keys=["n:k"], hold=30).deferred
        assert not cache.exists("n:k")


# ---------------------------------------------------------------------------- mutating


@pytest.mark.parametrize("what", [{"keys": ["n:k"]}, {"tags": ["t"]}])
async def test_while_mutating_nothing_is_stored_and_afterwards_it_is(any_cache: Cache, what: Any) -> None:
    row = ["old"]

    @any_cache.cached(ns="n", key="k", tags=["t"])
    def find() -> str:
        return row[0]

    find()
    with any_cache.mutating(**what) as mutation:
        assert find() == "old"
        assert find.peek() is MISSING
        row[0] = "new"
        assert find() == "new"
        assert find.peek() is MISSING
    assert mutation.receipt
    assert find() == find.peek() == "new"

    async with any_cache.mutating(**what) as mutation:
        assert find.peek() is MISSING
    assert mutation.receipt
    find()
    assert find.peek() == "new"


async def test_mutating_invalidates_after_an_error_as_well(any_cache: Cache) -> None:
    @any_cache.cached(ns="n", key="k", tags=["t"])
    def find() -> int:
        return 1

    for _ in range(2):
        find()
        with rolled_back(), any_cache.mutating(tags=["t"]):
            raise ZeroDivisionError
        assert find.peek() is MISSING
        find()
        assert find.peek() == 1
        with rolled_back():
            async with any_cache.mutating(keys=["n:k"]):
                raise ZeroDivisionError
        find()
        assert find.peek() == 1


async def test_a_load_under_way_when_a_mutation_begins_is_not_stored(cache: Cache) -> None:
    mutation = cache.mutating(tags=["t"])

    @cache.cached(ns="n", key="k", tags=["t"])
    def find() -> str:
        mutation.__enter__()
        return "old"

    assert find() == "old"
    assert find.peek() is MISSING
    mutation.__exit__(None, None, None)
    assert find.peek() is MISSING


async def test_the_hold_of_a_writer_that_died_ends_by_itself(cache: Cache, clock: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="k", tags=["t"])
    def find() -> int:
        loads.append(1)
        return 1

    cache.mutating(tags=["t"], keys=["n:k"], hold=20).__enter__()
    find(), find()
    assert len(loads) == 2
    clock.tick(20.1)
    find(), find()
    assert len(loads) == 3


async def test_nothing_is_put_while_a_block_holds_the_key(any_cache: Cache, paint: Any, ask: Any) -> None:
    """Neither from inside nor from elsewhere; what the block has written is there after it."""

    @any_cache.cached(ns="n", key="k", tags=["t"])
    @paint
    def find() -> str:
        return "loaded"

    @any_cache.updates(ns="n", key="k")
    @paint
    def update() -> str:
        return "updated"

    for what in ({"keys": ["n:k"]}, {"tags": ["t"]}):
        with any_cache.mutating(**what):
            assert await ask(find.put("put")) is False
            if "keys" in what:
                assert any_cache.set("n:k", "set") is False
                assert await ask(update()) == "updated"
            assert await ask(find.peek()) is MISSING
            assert await ask(find()) == "loaded"
            assert await ask(find.peek()) is MISSING
        assert await ask(find()) == await ask(find.peek()) == "loaded"


@pytest.mark.parametrize("what", [{"keys": ["n:k"]}, {"tags": ["t"]}], ids=["key", "tag"])
async def test_blocks_that_overlap_hold_each_for_itself(any_cache: Cache, what: Any) -> None:
    """The end of one, an invalidation and a clear leave the other's hold standing."""

    @any_cache.cached(ns="n", key="k", tags=["t"])
    def find() -> int:
        return 1

    first, second = any_cache.mutating(**what), any_cache.mutating(**what)
    first.__enter__()
    second.__enter__()
    second.__exit__(None, None, None)
    any_cache.invalidate(**what)
    any_cache.clear("n")
    find()
    assert find.peek() is MISSING
    first.__exit__(None, None, None)
    find()
    assert find.peek() == 1


# ---------------------------------------------------------------------------- bypass and refreshing


async def test_bypassing_reads_and_stores_nothing(any_cache: Cache, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @any_cache.cached(ns="n", key="{a}")
    @paint
    def f(a: int) -> int:
        loads.append(a)
        return len(loads)

    assert await ask(f(1)) == 1
    with any_cache.bypass():
        assert [await ask(f(1)), await ask(f(1)), await ask(f(2))] == [2, 3, 4]
    assert await ask(f(1)) == 1
    assert await ask(f.peek(2)) is MISSING
    assert any_cache.stats()["namespaces"]["n"]["bypassed"] == 3


async def test_refreshing_loads_and_stores(any_cache: Cache, paint: Any, ask: Any) -> None:
    loads: list[int] = []

    @any_cache.cached(ns="n", key="{a}")
    @paint
    def f(a: int) -> int:
        loads.append(a)
        return len(loads)

    assert await ask(f(1)) == 1
    with any_cache.refreshing():
        assert [await ask(f(1)), await ask(f(1)), await ask(f(2))] == [2, 3, 4]
    assert [await ask(f(1)), await ask(f(2))] == [3, 4]


async def test_a_block_counts_for_its_own_context_only(cache: Cache) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="{a}")
    def f(a: int) -> int:
        loads.append(a)
        return a

    f(1)
    with cache.bypass(), ThreadPoolExecutor(1) as pool:
        pool.submit(f, 1).result()
        assert loads == [1]
        f(1)
        assert loads == [1, 1]
    with cache.bypass():
        with cache.refreshing():
            f(1)
        f(1)
    assert len(loads) == 4
    f(1)
    assert len(loads) == 4, "afterwards L1 answers again"


async def test_a_block_of_one_cache_leaves_others_alone(cache: Cache, clock: Any) -> None:
    loads: list[int] = []

    @cache.cached(ns="n", key="k")
    def f() -> int:
        loads.append(1)
        return 1

    f()
    with Cache("embedded://", clock=clock) as other, other.bypass():
        f()
    assert len(loads) == 1


async def test_writers_write_in_a_bypass_as_ever(cache: Cache) -> None:
    @cache.invalidates(tags=["t"])
    def save() -> None: ...

    @cache.updates(ns="n", key="k")
    def update() -> str:
        return "new"

    cache.set("n:l", 1, tags=["t"])
    cache.set("n:k", "old")
    with cache.bypass():
        save()
        update()
    assert cache.get_many(["n:k", "n:l"]) == {"n:k": "new"}


# ---------------------------------------------------------------------------- threads


async def test_invalidations_from_many_threads_leave_nothing_old(cache: Cache) -> None:
    """A row only grows; a reader never sees less than what was acknowledged before it began."""
    row = [0]
    acknowledged = [0]
    wrong: list[tuple[int, int]] = []
    done = threading.Event()

    @cache.cached(ns="n", key="k", tags=["row"])
    def find() -> int:
        return row[0]

    @cache.invalidates(tags=["row"])
    def bump() -> None:
        row[0] += 1

    def read() -> None:
        while not done.is_set():
            least = acknowledged[0]
            got = find()
            if got < least:
                wrong.append((got, least))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            pool.submit(read)
        for _ in range(300):
            bump()
            acknowledged[0] = row[0]
        done.set()
    assert wrong == []


async def test_in_a_transaction_that_has_written_calls_see_their_own_writes_and_store_nothing(
    any_cache: Cache, paint: Any, ask: Any
) -> None:
    """What a block sees may be rolled back: it is for the block alone."""
    row = ["old"]

    @any_cache.cached(ns="n", key="{a}", tags=["t"])
    @paint
    def f(a: int) -> str:
        return row[0]

    @any_cache.cached_many(ns="n", key="many:{a}", tags=["t"])
    @paint
    def many(ids: list[int]) -> dict[int, str]:
        return dict.fromkeys(ids, row[0])

    assert (await ask(f(1)), await ask(many([1]))) == ("old", {1: "old"})
    with rolled_back(), any_cache.transaction():
        assert await ask(f(1)) == "old"
        row[0] = "uncommitted"
        any_cache.invalidate(tags=["t"])
        assert await ask(f(1)) == "uncommitted"
        assert await ask(f(2)) == "uncommitted"
        assert await ask(f.refresh(1)) == "uncommitted"
        assert await ask(f.put("uncommitted", 3)) is False
        assert await ask(many([1, 2])) == {1: "uncommitted", 2: "uncommitted"}
        raise ZeroDivisionError
    row[0] = "old"
    assert [await ask(f(n)) for n in (1, 2, 3)] == ["old"] * 3
    assert await ask(many([1, 2])) == {1: "old", 2: "old"}


async def test_in_a_transaction_that_has_not_written_a_miss_is_loaded_and_not_stored(
    any_cache: Cache, paint: Any, ask: Any
) -> None:
    """Its snapshot may be older than an invalidation that others have seen."""

    @any_cache.cached(ns="n", key="{a}")
    @paint
    def f(a: int) -> int:
        return a

    with any_cache.transaction():
        assert await ask(f(1)) == 1
        assert any_cache.get_or_load("n:2", lambda: 2) == 2
    assert present(any_cache, "n:1", "n:2") == []
    assert await ask(f(1)) == 1
    assert present(any_cache, "n:1") == ["n:1"]


async def test_a_url_and_a_store_are_not_given_both(cache: Cache) -> None:
    with pytest.raises(ConfigError, match="not both"):
        Cache("embedded://", store=cache.store)
