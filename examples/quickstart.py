"""The first steps: ``python examples/quickstart.py``. Nothing to install or start but cacheaside."""

from __future__ import annotations

from dataclasses import dataclass

from cacheaside import cached, configure, invalidates


@dataclass(frozen=True)
class Post:
    id: int
    title: str


class Posts:
    """A repository; its table is a dictionary here, and ``print`` shows when it is asked."""

    def __init__(self) -> None:
        self.table = {1: "Hello"}

    @cached(ns="posts", key="{post_id}", ttl=300, tags=["post:{post_id}"])
    def get(self, post_id: int) -> Post:
        print(f"loading post {post_id}")
        return Post(post_id, self.table[post_id])

    @invalidates(tags=["post:{post_id}"])
    def rename(self, post_id: int, title: str) -> None:
        self.table[post_id] = title


def main() -> None:
    configure("embedded://")  # or "redis://localhost:6379/0": the rest stays as it is
    posts = Posts()
    print(posts.get(1).title)  # loading post 1, Hello
    print(posts.get(1).title)  # Hello
    posts.rename(1, "Goodbye")
    print(posts.get(1).title)  # loading post 1, Goodbye


if __name__ == "__main__":
    main()
