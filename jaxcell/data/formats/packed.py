"""Whether packed blocks unpack to what they should: found out before, because the decoders of Zarr believe what a block says.

A few kilobytes can unpack to gigabytes. A block of Zstandard, Blosc or LZ4 says at its start how large it becomes, and never
becomes larger; others are unpacked here up to their bound.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import IO

__all__ = ["PACKERS", "fits"]

HEAD = 32       # bytes that tell the size


def fits(codec: str, file: IO[bytes], start: int, size: int, *, most: int) -> bool:
    """Whether a packed block is whole, as far as one can tell, and unpacks to no more than `most` bytes.

    Args:
      codec: a key of `PACKERS`.
      file: holds the block.
      start: where in the file.
      size: bytes of the block.
      most: see above.

    Source (Zstandard's header): RFC 8878, 3.1.1.1. (Blosc's): c-blosc 1.21, README_CHUNK_FORMAT.rst.
    """
    file.seek(start)
    try:
        if codec in CLAIMS:
            return CLAIMS[codec](file.read(min(size, HEAD))) <= most
        return len(UNPACKERS[codec](io.BytesIO(file.read(size)), most + 1)) <= most
    except (ValueError, IndexError, EOFError, OSError, zlib.error, lzma.LZMAError):
        return False


def _zstandard(head: bytes) -> int:
    if head[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("no frame of Zstandard")
    flags = head[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if not width:
        raise ValueError("of unknown size")
    return int.from_bytes(head[start:start + width], "little") + (256 if width == 2 else 0)


CLAIMS: Mapping[str, Callable[[bytes], int]] = {
    "zstd": _zstandard,
    "blosc": lambda head: int.from_bytes(head[4:8], "little"),
    "lz4": lambda head: int.from_bytes(head[:4], "little"),
}
"""Codec -> what the start of a block says that it unpacks to."""
UNPACKERS: Mapping[str, Callable[[io.BytesIO, int], bytes]] = {
    "gzip": lambda file, most: gzip.GzipFile(fileobj=file).read(most),
    "zlib": lambda file, most: zlib.decompressobj().decompress(file.read(), most),
    "bz2": lambda file, most: bz2.BZ2File(file).read(most),
    "lzma": lambda file, most: lzma.LZMAFile(file).read(most),      # noqa: SIM115 (nothing to close)
}
"""Codec -> the first so many bytes that a block unpacks to."""
PACKERS = frozenset((*CLAIMS, *UNPACKERS))
"""Codecs that make less of much."""
