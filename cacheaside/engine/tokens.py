"""Tag tokens: fresh ones, and those that may be believed.

In a cluster a tag and a value may live on two servers. If the tag's server fails over alone, it may have
forgotten a rotation: the token from before it revives, and a value elsewhere still carries it. So a token is
believed only while the server that it was made for lives; a dead one is replaced by compare-and-set. On one
server the values' own incarnation says as much, and tokens are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from cacheaside.engine.call import World
from cacheaside.engine.commands import Begin, Begun, Flow
from cacheaside.entry import is_token, new_token, token_incarnation


def fresh(world: World, tag: str) -> bytes:
    """A token that nobody has seen."""
    return new_token(world.tag_incarnation(tag), world.nonce())


def dead(world: World, tag: str, token: bytes | None) -> bool:
    """Whether this is a token of a server that is no more."""
    return world.spread and is_token(token) and not world.accepts_tag(token_incarnation(token), tag)  # type: ignore[arg-type]


def living(world: World, tags: Sequence[str], tokens: Sequence[bytes | None]) -> bool:
    """Whether every tag has a token that a value may carry."""
    if not all(map(is_token, tokens)):
        return False
    return not world.spread or not any(
        dead(world, tag, token) for tag, token in zip(tags, tokens, strict=True)
    )


def revived(
    world: World, tags: Sequence[str], tokens: tuple[bytes, ...], ttl: float
) -> Flow[tuple[bytes, ...]]:
    """These tokens, with fresh ones in the place of the dead; what else stands there stays."""
    gone = [(i, tag) for i, tag in enumerate(tags) if dead(world, tag, tokens[i])]
    if not gone:
        return tokens
    replace = tuple((world.keys.token(tag), fresh(world, tag), tokens[i]) for i, tag in gone)
    begun: Begun = yield Begin((), (), 0.0, ttl, replace)
    put = dict(zip((i for i, _ in gone), begun.tokens, strict=True))
    return tuple(put.get(i, token) for i, token in enumerate(tokens))
