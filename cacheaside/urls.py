"""Where Redis is: URLs, read once into an `Endpoint`, and never shown with their secrets."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote

from cacheaside.errors import ConfigError

TIMEOUT: Final = 0.5
"""Seconds that a call waits for Redis in all, if nobody says anything else."""
BEGINNING: Final = 8
"""Characters of a password that are enough to recognise it by."""
SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)


class Secrets(tuple[str, ...]):
    """Passwords, which even a debugger's list of attributes does not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} secrets>"


@dataclass(frozen=True, repr=False)
class Endpoint:
    """What a URL says: where the servers are and how to speak to them. Its repr shows no secret.

    ``timeout`` and ``connect_timeout`` are seconds, the latter never more than the first; ``protocol`` is the
    RESP version, 2 or 3; ``max_connections`` bounds one client's pool (in a cluster: for each node).
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    db: int = 0
    username: str | None = None
    password: str | None = None
    path: str = ""
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    timeout: float | None = None
    connect_timeout: float | None = None
    protocol: int = 3
    max_connections: int = 100
    client_name: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: str = "required"
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None

    @property
    def wait(self) -> float:
        """Seconds to wait for a reply."""
        return self.timeout or TIMEOUT

    @property
    def connect_wait(self) -> float:
        """Seconds to wait for a connection."""
        return min(self.connect_timeout or self.wait, self.wait)

    @property
    def secrets(self) -> Secrets:
        """What must never be shown: how each password begins as it is, in a URL, in a repr and in an error of
        Redis, which cuts it off somewhere and has spaces for the ends of lines."""
        words = filter(None, (self.password, self.sentinel_password, self._lone_name))
        forms = (
            form[:BEGINNING]
            for word in words
            for form in (word, quote(word, safe=""), repr(word)[1:-1], re.sub(r"[\r\n]", " ", word))
        )
        return Secrets(dict.fromkeys(forms))

    @property
    def _lone_name(self) -> str | None:
        """A user without a password: often a password whose colon was forgotten."""
        return None if self.password else self.username

    @property
    def tls(self) -> bool:
        """Whether every hop is encrypted."""
        return self.scheme.startswith("rediss")

    @property
    def cluster(self) -> bool:
        """Whether the hosts are nodes of a Redis Cluster."""
        return self.scheme.endswith("+cluster")

    @property
    def sentinel(self) -> bool:
        """Whether the hosts are sentinels that know where the primary is."""
        return self.scheme.endswith("+sentinel")

    @property
    def safe(self) -> str:
        """The URL without any secret, for logs, spans and reprs."""
        if self.username and self.password:
            login = f"{quote(self.username)}:***@"
        else:
            login = "***@" if self._lone_name or self.password else ""
        if self.scheme == "unix":
            return f"unix://{login}{self.path}" + (f"?db={self.db}" if self.db else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        service = f"/{quote(self.service, safe='')}" if self.sentinel else ""
        return f"{self.scheme}://{login}{hosts}{service}/{self.db}"

    def __repr__(self) -> str:
        return f"Endpoint({self.safe!r})"


def parse_url(url: str) -> Endpoint:
    """Read a Redis URL; user name, password, path, service and option values may be percent-encoded.

    ``redis://[user:password@]host[:port][/db]``, ``unix://[user:password@]/path?db=0``,
    ``redis+cluster://host1,host2``, ``redis+sentinel://sentinel1,sentinel2/service[/db]``; ``rediss`` in the
    place of ``redis`` is TLS. Raises ConfigError, in whose text no password appears.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        found = f"{scheme}://" if separator and scheme.isalpha() else "none"
        raise ConfigError(
            f"a Redis URL begins with one of {', '.join(f'{s}://' for s in SCHEMES)}, this one with {found}; "
            'a cache in this process alone is "embedded://"'
        )
    login, location, query = _split(scheme, rest)
    username, colon, password = login.partition(":")
    fields: dict[str, Any] = {
        "scheme": scheme,
        "username": unquote(username) or None,
        "password": unquote(password) if colon else None,
    }
    authority, _, path = location.partition("/")
    if scheme == "unix":
        if authority or not path:
            raise ConfigError("a unix:// URL holds an absolute path: unix:///run/redis.sock?db=0")
        fields["path"] = "/" + unquote(path)
    else:
        fields["hosts"] = _hosts(scheme, authority)
        if scheme.endswith("+sentinel"):
            service, _, path = path.partition("/")
            if not service:
                raise ConfigError(f"{scheme} needs a service name: {scheme}://host:26379/service/0")
            fields["service"] = unquote(service)
        fields["db"] = _db(path or "0")
    fields.update(_options(scheme, query))
    if scheme.endswith("+cluster") and fields["db"] != 0:
        raise ConfigError(f"{scheme} has only database 0, not {fields['db']}: leave the number out")
    if "ssl_keyfile" in fields and "ssl_certfile" not in fields:
        raise ConfigError("ssl_keyfile needs ssl_certfile, the certificate that the key belongs to")
    return Endpoint(**fields)


def _split(scheme: str, rest: str) -> tuple[str, str, str]:
    # An unencoded character of a password moves the borders of a URL, and error messages would then quote a
    # piece of it: such a URL is refused before anything of it is shown.
    end = re.search(r"[/?#]", rest)
    authority = rest[: end.start()] if end else rest
    if rest.count("@") > 1 or ("@" in rest and "@" not in authority) or "#" in rest:
        raise ConfigError(
            f"it is not clear where the password of this {scheme}:// URL ends: percent-encode / ? # @ : in "
            "user names, passwords, paths and options (%2F %3F %23 %40 %3A)"
        )
    login, _, location = rest.rpartition("@")
    location, _, query = location.partition("?")
    return login, location, query


def _hosts(scheme: str, authority: str) -> tuple[tuple[str, int], ...]:
    default = "26379" if scheme.endswith("+sentinel") else "6379"
    hosts: list[tuple[str, int]] = []
    for item in authority.split(","):
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(.*))?", item)
        if match is None:
            raise ConfigError(
                f"a {scheme}:// URL needs host or host:port (IPv6: [::1]:6379) after the slashes"
            )
        host, port = match[1] or match[2], match[3] or default
        if not (port.isascii() and port.isdigit()):
            raise ConfigError(
                f"the port of {host!r} is not a number (to log in, write {scheme}://user:password@host:{default})"
            )
        if not 0 < int(port) < 65536:
            raise ConfigError(f"the port of {host!r} is {port}; a port is between 1 and 65535")
        hosts.append((host, int(port)))
    if len(hosts) > 1 and "+" not in scheme:
        raise ConfigError(
            f"{scheme}:// takes one host; for several write {scheme}+cluster or {scheme}+sentinel"
        )
    return tuple(hosts)


def _options(scheme: str, query: str) -> dict[str, object]:
    valid = dict(_COMMON_OPTIONS)
    if scheme == "unix":
        valid["db"] = _db
    if scheme.startswith("rediss"):
        valid |= _TLS_OPTIONS
    if scheme.endswith("+sentinel"):
        valid |= _SENTINEL_OPTIONS
    options: dict[str, object] = {}
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name not in valid:
            hint = "; ssl_* options need rediss" if name in _TLS_OPTIONS else ""
            raise ConfigError(
                f"unknown option {name!r} in a {scheme}:// URL; valid: {', '.join(valid)}{hint}"
            )
        if name in options:
            raise ConfigError(f"option {name!r} is given twice in a {scheme}:// URL")
        if not value:
            raise ConfigError(f"option {name!r} has no value: write {name}=... or leave it out")
        options[name] = valid[name](unquote(value))
    return options


def _db(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(f"db is a number from 0, such as /0 at the end of the URL, not {value!r}")
    return int(value)


def _seconds(name: str) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not (seconds > 0 and math.isfinite(seconds)):
            raise ConfigError(f"{name} is a number of seconds above 0, not {value!r}")
        return seconds

    return parse


def _protocol(value: str) -> int:
    if value not in ("2", "3"):
        raise ConfigError(f"protocol is the RESP version, 2 or 3, not {value!r}")
    return int(value)


def _max_connections(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value)):
        raise ConfigError(f"max_connections is a whole number above 0, not {value!r}")
    return int(value)


def _cert_reqs(value: str) -> str:
    if value not in ("none", "optional", "required"):
        raise ConfigError(f"ssl_cert_reqs is none, optional or required, not {value!r}")
    return value


_COMMON_OPTIONS: Final[dict[str, Callable[[str], object]]] = {
    "timeout": _seconds("timeout"),
    "connect_timeout": _seconds("connect_timeout"),
    "protocol": _protocol,
    "max_connections": _max_connections,
    "client_name": str,
}
_TLS_OPTIONS: Final[dict[str, Callable[[str], object]]] = {
    "ssl_ca_certs": str,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_certfile": str,
    "ssl_keyfile": str,
}
_SENTINEL_OPTIONS: Final[dict[str, Callable[[str], object]]] = {
    "sentinel_username": str,
    "sentinel_password": str,
}
