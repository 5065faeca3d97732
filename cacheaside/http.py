"""What of HTTP may be cached: which requests, which responses, under which key, and what the answer says.

No framework is known here and nothing is sent: the integrations hand over what was asked, run the endpoint
when told to, and send what comes out. A response is stored like the result of a cached function, with tags,
so an invalidation means the same for it. RFC 9110 and 9111 (HTTP, its caching), 5861 (stale-*), 9211
(Cache-Status), 9875 (Cache-Groups).
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypedDict
from weakref import WeakKeyDictionary

import msgspec

from cacheaside.canonical import escape
from cacheaside.engine.call import current_load
from cacheaside.errors import CacheasideError, ConfigError
from cacheaside.keys import check_namespace, tag_name
from cacheaside.policy import Seconds, seconds

if TYPE_CHECKING:
    from cacheaside.cache import Cache

Headers = tuple[tuple[str, str], ...]
Pairs = Sequence[tuple[str, str]]
Tags = Iterable[str] | Callable[[Any], Iterable[str]]

PASS_FOR: Final = 10.0
"""Seconds for which a key whose response could not be stored is not asked for again, so that nobody waits."""
PASSES: Final = 4096
_TOKEN: Final = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
_ETAG: Final = re.compile(r'(?:W/)?("[^"\x00-\x20\x7f]*")')
_HOP: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-authenticate",
     "date", "content-length", "age", "cache-status", "set-cookie"}
)  # fmt: skip
_UNCHANGED: Final = frozenset(
    {"age", "cache-control", "cache-groups", "cache-status", "content-location", "etag", "expires", "vary"}
)
"""What a 304 says again."""


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

    @classmethod
    def of(cls, options: ResponseOptions) -> ResponsePolicy:
        """Check the options; raises ConfigError naming the one that is wrong."""
        unknown = sorted(options.keys() - ResponseOptions.__annotations__.keys())
        if unknown:
            raise ConfigError(f"{unknown[0]} is no option of a cached response")
        if "ttl" not in options:
            raise ConfigError("a cached response needs ttl, in seconds")
        tags = options.get("tags", ())
        for name in ("tags", "vary", "query", "statuses"):
            if isinstance(options.get(name), (str, bytes)):
                raise ConfigError(f"{name} must be a list, not the text {options.get(name)!r}")
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
    if not isinstance(name, str) or not _TOKEN.match(name):
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
    """

    method: str
    route: str
    params: Mapping[str, Any]
    query: Pairs
    headers: Mapping[str, str]
    request: Any


class Plan(msgspec.Struct, frozen=True):
    """What to do with a request: pass it on (no ``key``, ``why`` says why), or look for its response."""

    key: str = ""
    why: str = ""
    tags: tuple[str, ...] = ()
    anew: bool = False
    private: bool = False


def plan(policy: ResponsePolicy, asked: Asked, now: float) -> Plan:
    """How to go about a request."""
    if asked.method not in ("GET", "HEAD"):
        return Plan(why="method")
    control = directives(asked.headers.get("cache-control", ""))
    if "no-store" in control:
        return Plan(why="request")
    user: str | None = None
    if policy.identity is not None:
        user = policy.identity(asked.request)
    elif "authorization" in asked.headers or "cookie" in asked.headers:
        return Plan(why="bypass")
    key = key_of(policy, asked, user)
    if policy.passes.get(key, 0.0) > now:
        return Plan(why="bypass")
    tags = policy.tags(asked.request) if callable(policy.tags) else policy.tags
    return Plan(key, "", tuple(map(tag_name, tags)), "no-cache" in control, user is not None)


def key_of(policy: ResponsePolicy, asked: Asked, user: str | None) -> str:
    """``route:digest``: the digest is of everything else that a response may depend on."""
    query = [pair for pair in asked.query if policy.query is None or pair[0] in policy.query]
    parts = (
        sorted((name, str(value)) for name, value in asked.params.items()),
        sorted(query, key=lambda pair: pair[0]),  # stable: repeated names keep their order
        [(name, asked.headers.get(name)) for name in policy.vary],
        user,
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


# ---------------------------------------------------------------------------- responses


class Stored(msgspec.Struct, frozen=True):
    """A response as it stands in the cache."""

    status: int
    headers: Headers
    body: bytes
    at: float


class NotStored(Exception):
    """The response may not be stored, so nobody else may have it either: each waiter asks for himself."""


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
        if name == "vary":
            vary |= {one.strip().lower() for one in value.split(",") if one.strip()}
    return "vary" if vary - set(policy.vary) else ""


def lifetime(policy: ResponsePolicy, headers: Pairs) -> float:
    """Seconds that a response may be kept: the policy's, or less if it says so itself; 0 is not at all."""
    life = policy.ttl
    for name, value in headers:
        if name.lower() == "cache-control":
            control = directives(value)
            for word in ("s-maxage", "max-age"):
                if word in control:
                    life = min(life, float(control[word]) if control[word].isdigit() else 0.0)
                    break
    return life


def stored(status: int, headers: Pairs, body: bytes, now: float) -> Stored:
    """A response as it is to be stored; with an ETag if it has none."""
    kept = tuple((name.lower(), value) for name, value in headers if name.lower() not in _HOP)
    if not any(name == "etag" for name, _ in kept):
        kept += (("etag", f'W/"{blake2b(body, digest_size=12).hexdigest()}"'),)
    return Stored(status, kept, body, now)


# ---------------------------------------------------------------------------- answers


class Answer(msgspec.Struct, frozen=True):
    """What to send."""

    status: int
    headers: Headers
    body: bytes


def answer(
    policy: ResponsePolicy, asked: Asked, plan: Plan, found: Stored, now: float, *, made: bool = False
) -> Answer:
    """A stored response, turned into the answer to this request; ``made`` says that it was made for it."""
    age = max(0.0, now - found.at)
    own = dict(found.headers)
    headers = [pair for pair in found.headers if pair[0] != "cache-control"]
    headers.append(("cache-control", own.get("cache-control") or control(policy, plan.private)))
    if not made:
        headers.append(("age", str(int(age))))
        left = math.floor(lifetime(policy, found.headers) - age)
        headers.append(("cache-status", f"cacheaside; hit; ttl={left}"))
    else:
        why = "request" if plan.anew else "miss"
        headers.append(("cache-status", f"cacheaside; fwd={why}; stored"))
    # Whoever says who he is may get another answer, from here or past us: other caches must know.
    headers = [pair for pair in headers if pair[0] != "vary"]
    headers.append(("vary", ", ".join(sorted({*policy.vary, "authorization", "cookie"}))))
    if policy.groups and plan.tags:
        headers.append(("cache-groups", groups(plan.tags)))
    fine = 200 <= found.status < 300  # a precondition is nothing to an error (RFC 9110, 13.2.1)
    if fine and matches(asked.headers.get("if-none-match", ""), own["etag"]):
        return Answer(304, tuple(pair for pair in headers if pair[0] in _UNCHANGED), b"")
    headers.append(("content-length", str(len(found.body))))
    return Answer(found.status, tuple(headers), b"" if asked.method == "HEAD" else found.body)


def control(policy: ResponsePolicy, private: bool) -> str:
    """The Cache-Control of an answer whose endpoint has not said any."""
    words = ["private" if private else "public"]
    words += [f"max-age={int(policy.max_age)}"] if policy.max_age else ["no-cache"]
    if policy.max_age:
        for name in ("stale_while_revalidate", "stale_if_error"):
            if value := int(getattr(policy, name)):
                words.append(f"{name.replace('_', '-')}={value}")
    return ", ".join(words)


def passed(why: str) -> tuple[str, str]:
    """The Cache-Status of a response that was passed on."""
    return ("cache-status", f"cacheaside; fwd={why if why in ('method', 'request', 'bypass') else 'miss'}")


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
    """The strings of such a list; raises ValueError for what is none."""
    names: list[str] = []
    at, item = 0, re.compile(r'\s*"((?:[^"\\\x00-\x1f\x7f]|\\["\\])*)"\s*(?:,|$)')
    while at < len(header):
        match = item.match(header, at)
        if match is None:
            raise ValueError(header)
        names.append(re.sub(r"\\(.)", r"\1", match[1]))
        at = match.end()
    return names


# ---------------------------------------------------------------------------- through the cache


class Own:
    """What came of this caller's own run of the endpoint, if it ran."""

    def __init__(self) -> None:
        self.response: Any = None
        self.error: Exception | None = None
        self.kept = False
        self.failed = False
        self.why = ""

    @property
    def ran(self) -> bool:
        return self.response is not None or self.error is not None


class Responses:
    """The cached function behind the responses of one policy in one cache."""

    def __init__(self, cache: Cache, policy: ResponsePolicy) -> None:
        self.cache = cache
        self.policy = policy
        options: Any = {
            "ns": policy.ns,
            "key": "{key}",
            "ttl": policy.ttl,
            "tags": given_tags,
            "stale_while_revalidate": policy.stale_while_revalidate,
            "stale_if_error": policy.stale_if_error,
        }

        def respond(key: str, tags: tuple[str, ...], load: Callable[[], Stored]) -> Stored:
            return load()

        async def arespond(key: str, tags: tuple[str, ...], load: Callable[[], Awaitable[Stored]]) -> Stored:
            return await load()

        # Both by one name: they share their entries, as one endpoint may be served by either.
        arespond.__qualname__ = respond.__qualname__
        self.respond = cache.cached(**options)(respond)
        self.arespond: Any = cache.cached(**options)(arespond)

    def keep(
        self,
        own: Own,
        private: bool,
        status: int,
        headers: Pairs,
        body: bytes | None,
        besides: Pairs = (),
    ) -> Stored:
        """A response of the endpoint as it is stored; raises NotStored when it may not be.

        ``body`` None is one that streams or is too large. ``besides`` are headers that others add for this
        request alone, such as dependencies: they may forbid that it is stored, and are not stored with it.
        """
        policy, now = self.policy, self.cache.world.clock()
        said = [*headers, *besides]
        why, life = refusal(policy, private, status, said), lifetime(policy, said)
        if not why and (body is None or len(body) > policy.max_body):
            why = "body"
        if not why and life <= 0:
            why = "cache-control"
        if why:
            own.why, own.failed = why, status >= 500
            raise NotStored(why)
        load = current_load()
        if load is not None and life < policy.ttl:
            load.ttl = life
        own.kept = True
        return stored(status, headers, body or b"", now)

    def broke(self, own: Own, error: Exception, status: int) -> NotStored:
        """The endpoint has raised: that is this caller's alone, too."""
        own.error, own.failed, own.why = error, status >= 500, "status"
        return NotStored("error")

    def pass_by(self, key: str) -> None:
        """Let those who ask for this key next run the endpoint at once, side by side."""
        passes = self.policy.passes
        if len(passes) >= PASSES:
            passes.clear()
        passes[key] = self.cache.world.tick() + PASS_FOR

    def resolve(self, own: Own, plan: Plan, found: Stored | None) -> Stored | None:
        """What to answer with; None: this caller's own response, or a run of his own if there was none.

        The engine may have answered with an old one although his own run brought something: that wins,
        unless it is an error of the server.
        """
        if own.kept or not own.ran or own.failed:
            return found  # an old one, perhaps, instead of an error
        if own.why != "status":
            self.pass_by(plan.key)
        return None


def given_tags(key: str, tags: tuple[str, ...], load: object) -> tuple[str, ...]:
    return tags


_made: WeakKeyDictionary[Any, dict[int, Responses]] = WeakKeyDictionary()


def responses(cache: Cache, policy: ResponsePolicy) -> Responses:
    """The cached function of a policy in a cache; made once."""
    there = _made.setdefault(cache, {})
    known = there.get(id(policy))
    if known is None:
        known = there[id(policy)] = Responses(cache, policy)
    return known


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
