"""Long values are stored compressed, and never inflate to more than the limit."""

from __future__ import annotations

import functools
import importlib
import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from cacheaside.errors import CodecError

RAW: Final = 0
ZLIB: Final = 1
ZSTD: Final = 2

_Data = TypeVar("_Data", bound=bytes | memoryview)


class _Zstd(NamedTuple):
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes | memoryview, int], bytes]


def pack(data: bytes, threshold: int) -> tuple[int, bytes]:
    """Return flags and ``data``, compressed if it is longer than ``threshold`` bytes and that helps.

    Zstandard where it is installed (Python 3.14, or the extra ``cacheaside[zstd]``), else zlib.
    """
    if len(data) <= threshold:
        return RAW, data
    zstd = _zstd()
    flags, packed = (ZSTD, zstd.compress(data)) if zstd is not None else (ZLIB, zlib.compress(data, 1))
    return (flags, packed) if len(packed) < len(data) else (RAW, data)


def unpack(flags: int, data: _Data, limit: int) -> _Data | bytes:
    """Return what `pack` was given; never inflates to more than ``limit`` bytes.

    Raises:
        CodecError: Damaged, larger than ``limit``, or compressed in a way this process cannot read: a miss.
    """
    if flags == RAW:
        return data
    try:
        if flags == ZLIB:
            return _inflate(zlib.decompressobj(), data, limit)
        if flags == ZSTD and (zstd := _zstd()) is not None:
            return zstd.decompress(data, limit)
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"a compressed value is damaged: {error}") from error
    if flags == ZSTD:
        raise CodecError("a value is compressed with zstandard: install cacheaside[zstd] in this process too")
    raise CodecError(
        f"a value has unknown compression flags {flags}: it was written by another version of cacheaside"
    )


def _inflate(decompressor: Any, data: bytes | memoryview, limit: int) -> bytes:
    value: bytes = decompressor.decompress(data, limit + 1)
    if len(value) > limit:
        raise CodecError(f"a compressed value is larger than the limit of {limit} bytes")
    if not decompressor.eof:
        raise CodecError("a compressed value is cut short")
    return value


@functools.cache
def _zstd() -> _Zstd | None:
    try:
        standard = importlib.import_module("compression.zstd")
    except ImportError:
        pass
    else:

        def inflate(data: bytes | memoryview, limit: int) -> bytes:
            return _inflate(standard.ZstdDecompressor(), data, limit)

        return _Zstd(standard.compress, inflate)
    try:
        package = importlib.import_module("zstandard")
    except ImportError:
        return None

    def decompress(data: bytes | memoryview, limit: int) -> bytes:
        # The package allocates whatever size the frame claims; a frame that claims none reads as 2**64 - 1.
        if package.get_frame_parameters(data).content_size > limit:
            raise CodecError(f"a compressed value is larger than the limit of {limit} bytes")
        value: bytes = package.ZstdDecompressor().decompress(data)
        return value

    return _Zstd(package.compress, decompress)
