"""The social graph: read from an edge list, or grown by preferential attachment."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]
FACEBOOK: Final = PROJECT.parent / "shared" / "data" / "facebook_combined.txt.gz"
"""SNAP's ego-Facebook graph, where somebody has put it beside the project."""

USERS: Final = 4039
FRIENDS_EACH: Final = 22
"""A generated graph is as large as ego-Facebook: 4,039 users, about 88,000 friendships."""


@dataclass(frozen=True)
class Graph:
    """Users 0, 1, 2, ... and their friendships, each once."""

    name: str
    users: int
    edges: list[tuple[int, int]]

    def by_degree(self) -> list[int]:
        """All users, the one with most friends first."""
        degrees = [0] * self.users
        for a, b in self.edges:
            degrees[a] += 1
            degrees[b] += 1
        return sorted(range(self.users), key=lambda user: (-degrees[user], user))


def choose(file: Path | None) -> Graph:
    """The graph in ``file``; without one, ego-Facebook if it is there, else a generated graph."""
    if file is not None:
        return read(file)
    return read(FACEBOOK) if FACEBOOK.exists() else generate()


def read(file: Path) -> Graph:
    """A graph from lines ``a b``, plain or gzipped. Raises ValueError that names the wrong line."""
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        return parse(lines, file.name)


def parse(lines: Iterable[str], name: str) -> Graph:
    """Number the users in order of appearance; drop comments, loops and repeated friendships."""
    numbers: dict[str, int] = {}
    edges: dict[tuple[int, int], None] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise ValueError(f"{name}, line {number}: expected two users, found {line.strip()[:60]!r}")
        a, b = (numbers.setdefault(word, len(numbers)) for word in words)
        if a != b:
            edges[min(a, b), max(a, b)] = None
    if not edges:
        raise ValueError(f"{name}: no friendships in it")
    return Graph(name, len(numbers), list(edges))


def generate(users: int = USERS, each: int = FRIENDS_EACH, seed: int = 1) -> Graph:
    """A power-law graph (Barabasi and Albert): who comes later befriends ``each`` of the popular."""
    if not 0 < each < users:
        raise ValueError(f"each user befriends at least one and fewer than all: {each} of {users}")
    rng = random.Random(seed)
    edges: list[tuple[int, int]] = []
    # Every user as often as they have friends, so that drawing from it prefers the popular.
    ends: list[int] = []
    for user in range(each, users):
        chosen = set(range(each)) if user == each else set()
        while len(chosen) < each:
            chosen.add(rng.choice(ends))
        for friend in sorted(chosen):
            edges.append((friend, user))
            ends += (friend, user)
    return Graph(f"generated, seed {seed}", users, edges)
