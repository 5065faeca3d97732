"""What the library does to Redis, to be tried: on keys of the doctor's own."""

from __future__ import annotations

from typing import Any, Final, Literal

from cacheaside.engine.commands import (
    Announce,
    Begin,
    Claim,
    Commit,
    Fetch,
    Fill,
    Forget,
    Invalidate,
    Lock,
    Members,
    Place,
    Release,
    Renew,
    Scan,
    Sweep,
)
from cacheaside.entry import CLAIM, HEAD, NO_INCARNATION, NONCE, Marker, new_token
from cacheaside.rawkeys import RawKeys
from cacheaside.stores.encoding import STAGE_ABOVE

Level = Literal["ok", "note", "warning", "error"]

LIFE: Final = 5.0
"""Seconds that the keys live, should the doctor be stopped before he drops them."""
KEY: Final = "doctor:probe"
TAG: Final = "doctor-probe"
LARGE: Final = b"x" * (STAGE_ABOVE + 1)


def probes(keys: RawKeys) -> list[tuple[str, Level, tuple[Any, ...]]]:
    """What the library does, as it does it, on keys that end by themselves; and how bad a failure is."""
    slot, token, index = keys.value(KEY), keys.token(TAG), keys.tag_index(TAG)
    marker = Marker(CLAIM, bytes(NONCE), NO_INCARNATION, 0.0, bytes(8)).pack()
    head, fresh = marker[:HEAD], new_token(NO_INCARNATION, bytes(NONCE))
    slots, tokens = ((slot, keys.refresh_lock(KEY), keys.staging(KEY)),), ((token, fresh, TAG),)
    begin = Begin((Place(slot, marker),), ((token, fresh),), LIFE, LIFE)
    invalidate = Invalidate(slots, tokens, LIFE)
    fill = Fill(slot, keys.staging(KEY), head, marker, LIFE)
    large = Fill(slot, keys.staging(KEY), head, marker[:HEAD] + LARGE, LIFE)
    lock = keys.companion(KEY, "lock")
    return [
        ("read", "error", (Fetch((slot, token)),)),
        ("begin a load", "error", (invalidate, begin)),
        ("store a value", "error", (Commit((fill,), ((token, LIFE),)),)),
        ("store a large value", "error", (Commit((large,)),)),
        ("put a value", "error", (Claim(((slot, marker),), (), LIFE, LIFE), Renew(((slot, head),), LIFE))),
        ("refresh a value", "error", (Lock(lock, fresh, LIFE), Release(lock, fresh))),
        ("invalidate", "error", (invalidate,)),
        ("announce to other processes", "error", (Announce((KEY,)),)),
        ("list what a tag holds", "warning", (Members(index, 0, 1), Forget(index, (KEY,)))),
        ("find keys, for clear() and delete_matching()", "warning", (Scan(keys.value(f"{KEY}*")),)),
        ("drop what the doctor wrote", "warning", (Sweep(((slot, head), (token, fresh))),)),
    ]
