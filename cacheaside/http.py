"""What of HTTP may be cached: which requests, which responses, under which key, and for how long.

No framework is known here and nothing is sent: the integrations hand over what was asked, run the endpoint
when told to, and send what comes out. A response is stored like the result of a cached function, with tags,
so an invalidation means the same for it (responses.py); what an answer says stands in answers.py. RFC 9110
and 9111 (HTTP, its caching), 5861 (stale-*).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from inspect import iscoroutinefunction
from typing import Any, Final, TypedDict

import msgspec

from cacheaside.canonical import escape
from cacheaside.errors import ConfigError
from cacheaside.keys import check_namespace, tag_name
from cacheaside.policy import Seconds, seconds

Headers = tuple[tuple[str, str], ...]
Pairs = Sequence[tuple[str, str]]
Tags = Iterable[str] | Callable[[Any], Iterable[str]]

_TOKEN: Final = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
_HOP: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-authenticate",
     "date", "content-length", "age", "cache-status", "set-cookie"}
)  # fmt: skip


class ResponseOptions(TypedDict, total=False):
    """How responses are cached; see ``ResponsePolicy``."""

    ttl: Seconds
    ns: str
    tags: Tags
    vary: Iterable[str]
    query: Iterable[str] | None
    identity: Callable[[Any], str | None] | None
    stale_while_revalidate: Seconds
    stale_if_error: Seconds
    max_age: Seconds
    max_body: int
    statuses: Iterable[int]
    groups: bool


@dataclass(frozen=True)
class ResponsePolicy:
    """How the responses of one endpoint are cached. Times are seconds.

    Args:
        ttl: how long a response is fresh here; its own ``max-age`` or ``s-maxage`` can only shorten that.
        tags: names to invalidate it by, or a function of the request.
        vary: request headers that a response depends on.
        query: the parameters that count; None is all of them.
        identity: tells users apart: a function of the request that returns a text, or None for nobody in
            particular. Without it a request with ``Authorization`` or ``Cookie`` is neither served from the
            cache nor stored.
        stale_while_revalidate, stale_if_error: as for ``cached``; said to clients too.
        max_age: how long clients may keep a response without asking again; 0: they ask each time and are
            mostly answered 304. Nobody can invalidate what a client keeps.
        max_body: bodies above this many bytes are passed on and not stored.
        statuses: those that are stored.
        groups: tell clients the tags, in ``Cache-Groups``.
    """

    ttl: float
    ns: str
    tags: Tags
    vary: tuple[str, ...]
    query: frozenset[str] | None
    identity: Callable[[Any], str | None] | None
    stale_while_revalidate: float
    stale_if_error: float
    max_age: float
    max_body: int
    statuses: frozenset[int]
    groups: bool
    passes: dict[str, float] = field(default_factory=dict[str, float], compare=False, repr=False)

    def varied(self, headers: Iterable[str]) -> ResponsePolicy:
        """The same, for an endpoint that is known to read these headers."""
        return replace(self, vary=tuple(sorted({*self.vary, *map(_header_name, headers)})), passes={})

    @property
    def stales(self) -> bool:
        """Whether a response may be sent when it is fresh no more."""
        return bool(self.stale_while_revalidate or self.stale_if_error)

    @classmethod
    def of(cls, options: ResponseOptions) -> ResponsePolicy:
        """Check the options; raises ConfigError naming the one that is wrong."""
        known = ResponseOptions.__annotations__
        if unknown := sorted(options.keys() - known.keys()):
            raise ConfigError(f"{unknown[0]} is no option of a cached response; it has {', '.join(known)}")
        if "ttl" not in options:
            raise ConfigError("a cached response needs ttl, in seconds")
        tags = options.get("tags", ())
        for name in ("tags", "vary", "query", "statuses"):
            if isinstance(options.get(name), (str, bytes)):
                raise ConfigError(f"{name} must be a list, not the text {options.get(name)!r}")
        tags = tags if callable(tags) else tuple(tags)  # it may come from a generator
        if not callable(tags) and (braced := [tag for tag in tags if "{" in str(tag)]):
            raise ConfigError(
                f"tags of a response are no templates, so {braced[0]!r} would never be invalidated: give a "
                "function of the request that returns the list"
            )
        if {206, 304} & set(options.get("statuses", ())):
            raise ConfigError("statuses must not hold 206 or 304: what they answer is not a whole response")
        identity = options.get("identity")
        if identity is not None and not callable(identity):
            raise ConfigError(f"identity must be a function of the request, not {identity!r}")
        for name, function in (("identity", identity), ("tags", tags)):
            if iscoroutinefunction(function):
                raise ConfigError(
                    f"{name} must be a plain function, not an async one: let a dependency find out, and "
                    "leave it in request.state"
                )
        vary = tuple(sorted({_header_name(one) for one in options.get("vary", ())}))
        query = options.get("query")
        max_body = options.get("max_body", 2**20)
        if isinstance(max_body, bool) or not isinstance(max_body, int) or max_body < 1:  # pyright: ignore
            raise ConfigError(f"max_body must be a number of bytes, not {max_body!r}")
        return cls(
            ttl=seconds("ttl", options["ttl"]),
            ns=check_namespace(options.get("ns", "http")),
            tags=tags if callable(tags) else tuple(map(tag_name, tags)),
            vary=vary,
            query=None if query is None else frozenset(query),
            identity=identity,
            stale_while_revalidate=seconds(
                "stale_while_revalidate", options.get("stale_while_revalidate", 0), zero=True
            ),
            stale_if_error=seconds("stale_if_error", options.get("stale_if_error", 0), zero=True),
            max_age=seconds("max_age", options.get("max_age", 0), zero=True),
            max_body=max_body,
            statuses=frozenset(options.get("statuses", (200,))),
            groups=options.get("groups", False),
        )


def _header_name(name: Any) -> str:
    if not isinstance(name, str) or not _TOKEN.match(name) or name == "*":
        raise ConfigError(f"vary must be names of request headers, not {name!r}")
    return name.lower()


# ---------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Asked:
    """A request, as far as it matters here.

    Args:
        route: what names the endpoint, such as where it is mounted and its path template; part of the key.
        request: what ``identity`` and ``tags`` are called with.
        headers: by lower-case name; several of one name are joined by commas.
        origin: scheme, host and port that were asked.
    """

    method: str
    route: str
    params: Mapping[str, Any]
    query: Pairs
    headers: Mapping[str, str]
    request: Any
    origin: str = ""


class Plan(msgspec.Struct, frozen=True):
    """What to do with a request: pass it on (no ``key``, ``why`` says why), or look for its response.

    Args:
        anew: an endpoint that has to run is run for this request, not shared with others that wait.
        oldest, least: seconds, what the age may be and the life that must be left (``max-age``,
            ``min-fresh``).
        head: only what GET has stored is looked for.
        only: nothing else will do than what is stored.
    """

    key: str = ""
    why: str = ""
    tags: tuple[str, ...] = ()
    private: bool = False
    anew: bool = False
    oldest: float = math.inf
    least: float = 0.0
    head: bool = False
    only: bool = False

    @property
    def looks(self) -> bool:
        """Whether to look for what is stored before anything else."""
        return self.head or self.only or (self.anew and self.oldest >= 0)


def plan(policy: ResponsePolicy, asked: Asked, now: float) -> Plan:
    """How to go about a request."""
    if asked.method not in ("GET", "HEAD"):
        return Plan(why="method")
    said = directives(asked.headers.get("cache-control", ""))
    if "no-store" in said or has_body(asked.headers):
        return Plan(why="bypass")
    user: str | None = None
    if policy.identity is not None:
        user = policy.identity(asked.request)
    elif "authorization" in asked.headers or "cookie" in asked.headers:
        return Plan(why="bypass")
    key = key_of(policy, asked, user)
    if policy.passes.get(key, 0.0) > now:
        return Plan(why="bypass")
    tags = policy.tags(asked.request) if callable(policy.tags) else policy.tags
    oldest = -1.0 if "no-cache" in said else delta(said, "max-age", math.inf)
    least = delta(said, "min-fresh", 0.0)
    return Plan(
        key,
        tags=tuple(map(tag_name, tags)),
        private=user is not None,
        anew=oldest < math.inf or least > 0,
        oldest=oldest,
        least=least,
        head=asked.method == "HEAD",
        only="only-if-cached" in said,
    )


def has_body(headers: Mapping[str, str]) -> bool:
    """Whether there is more to a request than its key can tell: an endpoint may read the body of a GET."""
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0 ") != ""


def key_of(policy: ResponsePolicy, asked: Asked, user: str | None) -> str:
    """``route:digest``: the digest is of everything else that a response may depend on."""
    query = [pair for pair in asked.query if policy.query is None or pair[0] in policy.query]
    parts = (
        sorted((name, str(value)) for name, value in asked.params.items()),
        sorted(query, key=lambda pair: pair[0]),  # stable: repeated names keep their order
        [(name, asked.headers.get(name)) for name in policy.vary],
        user,
        asked.origin.lower(),  # what stands in links may come from there
    )
    digest = blake2b(msgspec.msgpack.encode(parts), digest_size=16).hexdigest()
    return f"{escape(asked.route)}:{digest}"


def directives(header: str) -> dict[str, str]:
    """The directives of a Cache-Control header, lower-case, with their arguments."""
    found: dict[str, str] = {}
    for part in header.split(","):
        name, _, value = part.partition("=")
        if name.strip():
            found[name.strip().lower()] = value.strip().strip('"')
    return found


def delta(said: Mapping[str, str], name: str, otherwise: float) -> float:
    """The seconds of a directive; ``otherwise`` if it is not there, or none."""
    text = said.get(name, "")
    return float(text) if text.isdecimal() else otherwise


# ---------------------------------------------------------------------------- responses


class Stored(msgspec.Struct, frozen=True):
    """A response as it stands in the cache."""

    status: int
    headers: Headers
    body: bytes
    at: float


def refusal(policy: ResponsePolicy, private: bool, status: int, headers: Pairs) -> str:
    """Why a response with this head may not be stored; "" if it may."""
    if status not in policy.statuses:
        return "status"
    vary: set[str] = set()
    for name, value in headers:
        name = name.lower()
        if name == "set-cookie":
            return "set-cookie"
        if name == "cache-control":
            control = directives(value)
            if "no-store" in control or "no-cache" in control or ("private" in control and not private):
                return "cache-control"
            if policy.stales and control.keys() & {"must-revalidate", "proxy-revalidate"}:
                return "cache-control"
        if name == "vary":
            vary |= {one.strip().lower() for one in value.split(",") if one.strip()}
    return "vary" if vary - set(policy.vary) else ""


def lifetime(policy: ResponsePolicy, headers: Pairs, now: float) -> float:
    """Seconds that a response made now may be kept: the policy's, or less if it says so; 0 is not at all."""
    life, named = policy.ttl, together(headers)
    said = directives(named.get("cache-control", ""))
    for word in ("s-maxage", "max-age"):
        if word in said:
            return min(life, delta(said, word, 0.0))
    if "expires" in named:
        return min(life, max(0.0, moment(named["expires"]) - now))
    return life


def together(headers: Pairs) -> dict[str, str]:
    """By lower-case name; several of one name are joined by commas."""
    found: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def moment(date: str) -> float:
    """The time that a date of HTTP stands for; what is none is long past."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def stored(status: int, headers: Pairs, body: bytes, now: float) -> Stored:
    """A response as it is to be stored; with an ETag if it has none."""
    kept = tuple((name.lower(), value) for name, value in headers if name.lower() not in _HOP)
    if not any(name == "etag" for name, _ in kept):
        kept += (("etag", f'W/"{blake2b(body, digest_size=12).hexdigest()}"'),)
    return Stored(status, kept, body, now)


def age(found: Stored, now: float) -> float:
    return max(0.0, now - found.at)


def left(policy: ResponsePolicy, found: Stored, now: float) -> float:
    """Seconds for which a stored response is still fresh; less than 0 once it is stale."""
    return lifetime(policy, found.headers, found.at) - age(found, now)


def suits(policy: ResponsePolicy, plan: Plan, found: Stored, now: float) -> bool:
    """Whether a stored response is what the request allows."""
    return age(found, now) <= plan.oldest and left(policy, found, now) >= plan.least
