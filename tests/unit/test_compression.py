"""Long values shrink and come back; what is damaged, foreign or a bomb is a `CodecError`."""

from __future__ import annotations

import os
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheaside import compression
from cacheaside.compression import RAW, ZLIB, ZSTD, pack, unpack
from cacheaside.errors import CodecError

TEXT = b"the same words again and again, " * 500


@pytest.fixture
def without_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_zstd", lambda: None)


def test_short_data_stays_as_it_is() -> None:
    assert pack(TEXT, len(TEXT)) == (RAW, TEXT)
    assert unpack(RAW, TEXT, 1) == TEXT


def test_data_that_does_not_shrink_stays_as_it_is() -> None:
    noise = os.urandom(4096)
    assert pack(noise, 100) == (RAW, noise)


def test_long_data_shrinks_and_comes_back() -> None:
    flags, packed = pack(TEXT, 1000)
    assert flags != RAW
    assert len(packed) < len(TEXT) / 10
    assert unpack(flags, packed, len(TEXT)) == TEXT
    assert unpack(flags, memoryview(packed), len(TEXT)) == TEXT


@pytest.mark.usefixtures("without_zstd")
def test_zlib_does_it_where_zstandard_is_missing() -> None:
    flags, packed = pack(TEXT, 1000)
    assert flags == ZLIB
    assert unpack(flags, packed, len(TEXT)) == TEXT


@pytest.mark.usefixtures("without_zstd")
def test_a_zstandard_value_is_a_miss_where_zstandard_is_missing() -> None:
    with pytest.raises(CodecError, match=r"cacheaside\[zstd\]"):
        unpack(ZSTD, b"anything", 100)


def test_unknown_flags_are_a_codec_error() -> None:
    with pytest.raises(CodecError, match="flags 99"):
        unpack(99, b"", 100)


def test_a_bomb_stops_at_the_limit() -> None:
    bomb = zlib.compress(bytes(50_000_000))
    with pytest.raises(CodecError, match="limit of 1000 bytes"):
        unpack(ZLIB, bomb, 1000)
    flags, packed = pack(bytes(50_000_000), 0)
    with pytest.raises(CodecError, match="limit of 1000 bytes"):
        unpack(flags, packed, 1000)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([ZLIB, ZSTD]))
def test_damaged_compressed_data_is_a_codec_error_and_nothing_else(data: bytes, flags: int) -> None:
    with pytest.raises(CodecError):
        unpack(flags, data, 1000)


def test_truncated_compressed_data_is_a_codec_error() -> None:
    flags, packed = pack(TEXT, 0)
    for size in range(len(packed)):
        with pytest.raises(CodecError):
            unpack(flags, packed[:size], len(TEXT))
    for size in range(0, len(zlib.compress(TEXT)), 7):
        with pytest.raises(CodecError):
            unpack(ZLIB, zlib.compress(TEXT)[:size], len(TEXT))


def test_zstandard_is_preferred_and_a_frame_without_a_size_is_refused() -> None:
    zstandard = pytest.importorskip("zstandard")
    compression._zstd.cache_clear()
    assert pack(TEXT, 0)[0] == ZSTD
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    if sys.version_info < (3, 14):
        with pytest.raises(CodecError, match="limit"):
            unpack(ZSTD, streamed, len(TEXT))
