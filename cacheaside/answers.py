"""What the answers of a cached endpoint say: 304 or all of it, its age, and how it came about.

RFC 9110 (conditional requests), 9211 (Cache-Status), 9875 (Cache-Groups), 9651 (how such values are written).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from cacheaside.errors import CacheasideError
from cacheaside.http import Asked, Headers, Plan, ResponsePolicy, Stored, age, moment, together
from cacheaside.keys import tag_name

_ETAG: Final = re.compile(r'(?:W/)?("[^"\x00-\x20\x7f]*")')
_STRING: Final = r'"(?:[^"\\\x00-\x1f\x7f]|\\["\\])*"'
_PARAMETER: Final = rf'; *[a-z*][a-z0-9_.*-]*(?:=(?:{_STRING}|[^,;"\s]+))?'
_MEMBER: Final = re.compile(rf"\s*({_STRING})(?:{_PARAMETER})*\s*(?:,|$)")
_UNCHANGED: Final = frozenset(
    {"age", "cache-control", "cache-groups", "cache-status", "content-location", "etag", "expires", "vary"}
)
"""What a 304 says again."""


class Answer(msgspec.Struct, frozen=True):
    """What to send."""

    status: int
    headers: Headers
    body: bytes


UNSATISFIED: Final = Answer(504, (("cache-control", "no-store"), ("content-length", "0")), b"")
"""For who takes only what is stored, when nothing is."""


def answer(
    policy: ResponsePolicy,
    asked: Asked,
    plan: Plan,
    found: Stored,
    now: float,
    status: str,
    *,
    made: bool = False,
) -> Answer:
    """A stored response, turned into the answer to this request; ``made`` says that it was made for it.

    ``status`` is its Cache-Status.
    """
    own = together(found.headers)
    headers = [pair for pair in found.headers if pair[0] not in ("cache-control", "vary")]
    headers.append(("cache-control", own.get("cache-control") or control(policy, plan.private)))
    if not made:
        headers.append(("age", str(int(age(found, now)))))
    headers += [("cache-status", status), depends(policy)]
    if policy.groups and plan.tags:
        headers.append(("cache-groups", groups(plan.tags)))
    if 200 <= found.status < 300 and unchanged(asked, own):  # RFC 9110, 13.2.1: nothing to an error
        return Answer(304, tuple(pair for pair in headers if pair[0] in _UNCHANGED), b"")
    headers.append(("content-length", str(len(found.body))))
    return Answer(found.status, tuple(headers), b"" if asked.method == "HEAD" else found.body)


def unchanged(asked: Asked, own: Mapping[str, str]) -> bool:
    """Whether the client has it already, by its ETag or else by its date (RFC 9110, 13.2.2)."""
    wanted = asked.headers.get("if-none-match")
    if wanted is not None:
        return matches(wanted, own["etag"])
    changed, known = own.get("last-modified", ""), asked.headers.get("if-modified-since", "")
    return 0.0 < moment(changed) <= moment(known)


def depends(policy: ResponsePolicy) -> tuple[str, str]:
    """What the answers of an endpoint depend on: also on who asks, for whoever says so may get another one,
    from here or past us, and other caches must know."""
    return "vary", ", ".join(sorted({*policy.vary, "authorization", "cookie"}))


def control(policy: ResponsePolicy, private: bool) -> str:
    """The Cache-Control of an answer whose endpoint has not said any."""
    words = ["private" if private else "public"]
    words += [f"max-age={int(policy.max_age)}"] if policy.max_age else ["no-cache"]
    if policy.max_age:
        for name in ("stale_while_revalidate", "stale_if_error"):
            if value := int(getattr(policy, name)):
                words.append(f"{name.replace('_', '-')}={value}")
    return ", ".join(words)


def hit(left: float) -> str:
    """The Cache-Status of what was stored; ``left`` in seconds."""
    return f"cacheaside; hit; ttl={math.floor(left)}"


def forwarded(
    why: str,
    *,
    stored: bool = False,
    collapsed: bool | None = None,
    status: int = 0,
    left: float | None = None,
) -> str:
    """The Cache-Status of a request for which an endpoint ran.

    Args:
        stored: what it answered was stored.
        collapsed: whether waiting for the response of another request has brought one; None: there was none.
        status: of its response, where that is not the one that is sent.
        left: seconds, of the one that is sent instead.
    """
    words = ["cacheaside", f"fwd={why}"]
    if status:
        words.append(f"fwd-status={status}")
    if left is not None:
        words.append(f"ttl={math.floor(left)}")
    if stored:
        words.append("stored")
    if collapsed is not None:
        words.append("collapsed" if collapsed else "collapsed=?0")
    return "; ".join(words)


def passed(policy: ResponsePolicy, status: str) -> Headers:
    """What is added to a response that is sent as the endpoint has made it."""
    said = ("cache-status", status)
    return (said,) if "fwd=method" in status else (said, depends(policy))


def matches(wanted: str, etag: str) -> bool:
    """Whether If-None-Match names this ETag, by weak comparison (RFC 9110, 8.8.3.2)."""
    if wanted.strip() == "*":
        return True
    opaque = _ETAG.fullmatch(etag)
    return opaque is not None and opaque[1] in _ETAG.findall(wanted)


def groups(tags: Iterable[str]) -> str:
    """Tags as a list of strings (RFC 9651); what such a string cannot hold is left out."""
    fit = [tag for tag in tags if tag.isascii() and tag.isprintable()]
    return ", ".join('"' + tag.replace("\\", "\\\\").replace('"', '\\"') + '"' for tag in fit)


def group_names(header: str) -> list[str]:
    """The strings of such a list, whatever their parameters; raises ValueError for what is none."""
    names: list[str] = []
    at = 0
    while at < len(header):
        match = _MEMBER.match(header, at)
        if match is None:
            raise ValueError(header)
        names.append(re.sub(r"\\(.)", r"\1", match[1][1:-1]))
        at = match.end()
    return names


def invalidated(header: str) -> Iterator[str]:
    """The tags that a Cache-Group-Invalidation header names; none if it does not parse."""
    try:
        for name in group_names(header):
            try:
                yield tag_name(name)
            except CacheasideError:
                continue
    except ValueError:
        return
