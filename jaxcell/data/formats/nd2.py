"""Nikon's ND2, through the package nd2 of the optional extra `microscopes`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jaxcell.data.formats.metadata import one_size
from jaxcell.data.formats.stored import Index, Refused, Stored

__all__ = ["open_nd2"]

FRAME = "CYXS"      # axes of a frame; the others count frames


def open_nd2(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens an ND2; see `Opener`. Only the frames asked for are read; colour, stored as blue, green, red, becomes RGB.

    Source (of the order of colours): Bio-Formats, issue 3761 and pull request 4321.
    """
    try:
        import nd2
    except ImportError as error:
        raise Refused("reading ND2 needs the package nd2; pip install 'jaxcell[microscopes]'.") from error
    file = nd2.ND2File(path)
    try:
        return _stored(file)
    except Exception:
        file.close()
        raise


def _stored(file: Any) -> Stored:
    sizes: dict[str, int] = {axis: int(size) for axis, size in file.sizes.items()}
    sizes = {axis: n for axis, n in sizes.items() if axis not in FRAME} | {
        axis: sizes.get(axis, 1) for axis in FRAME if axis in sizes or axis != "S"}
    loops = tuple(n for axis, n in sizes.items() if axis not in FRAME)
    frame_shape = tuple(sizes.values())[len(loops):]
    recorded = file.attributes.sequenceCount

    def fetch(index: Index) -> np.ndarray:
        outer, inner = index[:len(loops)], index[len(loops):]
        wanted = np.arange(prod(loops)).reshape(loops)[outer]
        if wanted.size and wanted.max() >= recorded:
            raise Refused(f"frame {wanted.max()} was never recorded, only {recorded} of {prod(loops)} were; select one of those.")
        frames = [_colours(file.read_frame(int(n)).reshape(frame_shape), "S" in sizes)[inner] for n in wanted.ravel()]
        return np.stack(frames).reshape(*wanted.shape, *frames[0].shape)

    return Stored("".join(sizes), tuple(sizes.values()), file.dtype, fetch, *_metadata(file),
                  block_bytes=prod(frame_shape) * file.dtype.itemsize, close=file.close)


def _colours(frame: np.ndarray, colour: bool) -> np.ndarray:
    return frame[..., ::-1] if colour else frame


def _metadata(file: Any) -> tuple[float | None, tuple[str, ...]]:
    """(pixel size, channel names); the size only where the microscope was calibrated."""
    channels = file.metadata.channels or ()
    names = tuple(str(channel.channel.name) for channel in channels)
    if not channels or not all(channels[0].volume.axesCalibrated[:2]):
        return None, names
    x, y, _ = channels[0].volume.axesCalibration
    return one_size(x, y), names
