"""Messages of the brokers: what handlers are given, and how it travels as bytes.

A message on its way is a map in msgpack, so that fields may come later: type, id, timestamp, trace context,
and the data as bytes of their own, which are decoded as what each handler's side declares.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from cacheaside.codecs import NO_ANNOTATION, ValueCodec, codec_for
from cacheaside.errors import CodecError, ConfigError

T = TypeVar("T")


class Message(Struct, Generic[T], frozen=True):
    """What a handler is given. Its repr does not show the data, which may be anybody's secret."""

    type: str
    """What kind of message it is, as it was published."""
    data: T
    """Of the type that was declared for it, else builtin types."""
    timestamp: datetime
    """When it was published, in UTC, by the publisher's clock."""
    id: str
    """The same for every handler, and when it is tried again."""
    channel: str
    """Where it was published: for a pattern, the channel that matched; for a stream, its name."""
    tries: int = 1
    """How often it has been given to a handler, this time counted; more than 1 on streams only."""

    def __repr__(self) -> str:
        return f"<Message {self.type!r} {self.id} of {self.timestamp:%Y-%m-%dT%H:%M:%S.%fZ}>"

    __str__ = __repr__


class Wire(Struct, frozen=True, omit_defaults=True):
    """A message on its way."""

    type: str
    id: str
    timestamp: Annotated[datetime, Meta(tz=True)]
    data: bytes
    trace: dict[str, str] = {}


read_wire: Final = msgspec.msgpack.Decoder(Wire).decode
write_wire: Final = msgspec.msgpack.Encoder().encode
UNTYPED: Final = codec_for(NO_ANNOTATION)


class Types:
    """What the data of each type of message is: as declared, else by the class of what is published.

    Raises ConfigError for a declaration that cannot make the trip and back.
    """

    def __init__(self, types: Mapping[str, Any] | None) -> None:
        self._declared = {
            check_type(name): codec_of(f"types[{name!r}]", t) for name, t in (types or {}).items()
        }
        self._by_class: dict[type, ValueCodec] = {}

    def pack(self, type: str, data: Any, timestamp: float, trace: dict[str, str]) -> tuple[str, bytes]:
        """The id and the bytes of a new message; CodecError for data that would not come back as it is."""
        codec = self._declared.get(check_type(type))
        try:
            encoded = (codec or self._undeclared(data)).encode(data)
        except CodecError as error:
            declare = "" if codec else f"; declare it: types={{{type!r}: ...}}"
            raise CodecError(
                f"the data of a {type!r} message cannot make the trip: {error}{declare}"
            ) from error
        wire = Wire(type, secrets.token_hex(16), datetime.fromtimestamp(timestamp, UTC), encoded, trace)
        return wire.id, write_wire(wire)

    def codec(self, type: str) -> ValueCodec:
        """What data of such a message is decoded with."""
        return self._declared.get(type, UNTYPED)

    def _undeclared(self, data: Any) -> ValueCodec:
        kind: type = data.__class__
        if kind.__module__ == "builtins":
            return UNTYPED
        codec = self._by_class.get(kind)
        if codec is None:
            codec = self._by_class[kind] = codec_for(kind)
        return codec


def codec_of(name: str, type: Any) -> ValueCodec:
    try:
        return codec_for(type)
    except CodecError as error:
        raise ConfigError(f"{name} cannot be the data of a message: {error}") from error


def check_type(type: Any) -> str:
    if not isinstance(type, str) or not type:
        raise ConfigError(f'type must be a string that is not empty, such as "post.created", not {type!r}')
    return type


def check_channel(name: str, channel: Any) -> str:
    if not isinstance(channel, str) or not channel:
        raise ConfigError(f'{name} must be a string that is not empty, such as "posts", not {channel!r}')
    try:
        channel.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name} must be text that UTF-8 can write, not {channel!r}") from None
    return channel
