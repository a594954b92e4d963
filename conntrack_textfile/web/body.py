"""The response body of a scrape: compressed once for each snapshot, not for each response."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Body:
    """A text and its DEFLATE compression (RFC 1951), without the end of the stream."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        deflate = _deflater()
        self.plain: list[bytes] = []
        self.deflated: list[bytes] = []
        self.size = 0
        self.crc = 0
        for piece in pieces:
            self.plain.append(piece)
            self.deflated.append(deflate.compress(piece))
            self.size += len(piece)
            self.crc = zlib.crc32(piece, self.crc)
        # A full flush ends on a byte boundary and resets the window, so that any other
        # compressed text can follow. See gzipped().
        self.deflated.append(deflate.flush(zlib.Z_FULL_FLUSH))

    def gzipped(self, rest: bytes) -> list[bytes]:
        """Return the body and another text as one gzip member (RFC 1952), in pieces."""
        deflate = _deflater()
        size = (self.size + len(rest)) & 0xFFFFFFFF
        return [
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff",
            *self.deflated,
            deflate.compress(rest) + deflate.flush(),
            struct.pack("<II", zlib.crc32(rest, self.crc), size),
        ]


def _deflater() -> zlib._Compress:
    return zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)


EMPTY = Body([])
