"""NumPy's npy and npz."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Literal

import numpy as np

from jaxcell.data.formats.stored import Refused, Stored, array_axes, chosen_part, decoded_whole, listed, mapped

__all__ = ["open_npy", "open_npz"]

LONGEST_HEADER = 1 << 16     # bytes; numpy itself takes 10,000 characters
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_npy(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens an npy; see `Opener`. No Python objects are loaded."""
    with path.open("rb") as file:
        shape, order, dtype, start = _header(file)
        fetch = mapped(path, dtype, shape, start, order=order)
    return Stored(array_axes(shape), shape, dtype, fetch)


def open_npz(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens the only or chosen array of an npz; see `Opener`. Its size comes from its header, before it is unpacked."""
    with zipfile.ZipFile(path) as archive:
        names = tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
        number = chosen_part("array", names, parts.get("array"))
        if number is None and len(names) != 1:
            raise Refused(f"it holds {len(names)} arrays, and an image is one; "
                          f"{listed('array', names) if names else 'save one with numpy.savez'}.")
        name = names[number or 0] + ".npy"
        with archive.open(name) as file:
            shape, _, dtype, _ = _header(file)

    def unpack() -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    return Stored(array_axes(shape), shape, dtype, decoded_whole(unpack), block_bytes=prod(shape) * dtype.itemsize)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype, int]:
    """(shape, order, dtype, where the first value stands) of an array."""
    start = io.BytesIO(file.read(LONGEST_HEADER))      # numpy reads, and so unpacks, as much as the header claims to be long
    version = np.lib.format.read_magic(start)
    if version not in HEADERS:
        raise ValueError(f"its header has version {version[0]}.{version[1]}, and 1.0 and 2.0 are known")
    shape, fortran, dtype = HEADERS[version](start)
    if dtype.hasobject:
        raise Refused("it holds Python objects, as a _seg.npy of Cellpose does, which are not safe to load; save its masks as "
                      "TIFF or PNG.")
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    return shape, "F" if fortran else "C", dtype, start.tell()
