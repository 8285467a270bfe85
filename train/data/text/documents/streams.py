"""Streams of bytes: plain files and compressed ones, decompressed as they are read."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from typing_extensions import override

from train.data.text.documents.document import DamagedError, Reading

# suffix -> the first bytes of such files
COMPRESSIONS: dict[str, tuple[bytes, ...]] = {
    ".gz": (b"\x1f\x8b\x08",),
    ".zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))),
    ".bz2": tuple(b"BZh%d" % level + block for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")),
    ".xz": (b"\xfd7zXZ\x00",),
}
PROGRAMS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}
_CHUNK = 1 << 18


def opened(reading: Reading) -> io.BufferedReader:
    """Open the file of a reading, decompressed; reading stops at its limit.

    Raises:
        DamagedError: Later, by the stream: the rest of a compressed file cannot be read.
        OSError: The file cannot be read.
    """
    return io.BufferedReader(_Stream(_chunks(reading.part.path, reading.part.compression), reading), _CHUNK)


def head(path: Path, compression: str | None, size: int) -> bytes:
    """Return the first bytes of a file, decompressed; fewer where the file is shorter or damaged."""
    start = b""
    try:
        for chunk in _chunks(path, compression):
            start += chunk
            if len(start) >= size:
                break
    except DamagedError:
        pass  # the reader names the place
    return start[:size]


def _chunks(path: Path, compression: str | None) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        if compression is None:
            while chunk := file.read(_CHUNK):
                yield chunk
        elif compression == ".zst":
            yield from _zstandard(file)
        else:
            yield from _decompressed(file, _DECOMPRESSORS[compression])


def _zstandard(file: Any) -> Iterator[bytes]:
    """Decompress with pyarrow, which `datasets` brings; Python has no zstd before 3.14."""
    with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
        while True:
            try:
                chunk = stream.read(1 << 16)  # what a failing read had decompressed is lost
            except OSError as error:
                raise DamagedError(str(error)) from error
            if not chunk:
                return
            yield chunk


def _decompressed(file: Any, decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress the members of an archive one after the other; zeros between and after them are padding."""
    current: Any = None
    waiting = b""
    while True:
        if not waiting and getattr(current, "needs_input", True):
            waiting = file.read(_CHUNK)
            if not waiting:
                break
        if current is None:
            waiting = waiting.lstrip(b"\0")
            if not waiting:
                continue
            current = decompressor()
        try:
            chunk = current.decompress(waiting, _CHUNK)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise DamagedError(str(error)) from error
        if chunk:
            yield chunk
        waiting = getattr(current, "unconsumed_tail", b"")  # zlib; the others keep their rest themselves
        if current.eof:
            waiting, current = current.unused_data, None
    if current is not None:
        raise DamagedError("the file ends too early")


class _Stream(io.RawIOBase):
    """Chunks as a raw stream, up to the limit of a reading."""

    def __init__(self, chunks: Iterator[bytes], reading: Reading):
        self._chunks = chunks
        self._reading = reading
        self._rest = memoryview(b"")
        self._damage: DamagedError | None = None  # raised by every read from there on

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any, /) -> int:
        if not self._rest and not self._reading.is_cut:
            self._rest = self._next()
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _next(self) -> memoryview:
        if self._damage is not None:
            raise self._damage
        try:
            chunk = next(self._chunks, b"")
        except DamagedError as error:
            self._damage = error
            raise
        room = None if self._reading.limit is None else self._reading.limit - self._reading.num_bytes
        if room is not None and len(chunk) > room:
            chunk, self._reading.is_cut = chunk[:room], True
        self._reading.num_bytes += len(chunk)
        return memoryview(chunk)

    @override
    def close(self) -> None:
        if not self.closed:
            getattr(self._chunks, "close", lambda: None)()
        super().close()
