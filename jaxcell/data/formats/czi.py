"""Zeiss' CZI, through the package pylibCZIrw of the optional extra `microscopes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcell.data.formats.metadata import micrometres, one_size, parse_xml
from jaxcell.data.formats.stored import Index, Refused, Stored, chosen_part, listed

__all__ = ["open_czi"]

TYPES = {"Gray8": np.uint8, "Gray16": np.uint16, "Gray32Float": np.float32,
         "Bgr24": np.uint8, "Bgr48": np.uint16, "Bgr96Float": np.float32}


def open_czi(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens a scene of a CZI; see `Opener`. Tiles are put together by Zeiss' library, and only those asked for are read."""
    try:
        from pylibCZIrw import czi
    except ImportError as error:
        raise Refused("reading CZI needs the package pylibCZIrw; pip install 'jaxcell[microscopes]'.") from error
    reader = czi.CziReader(str(path))
    try:
        return _stored(reader, parts.get("scene"))
    except Exception:
        reader.close()
        raise


def _stored(reader: Any, choice: int | str | None) -> Stored:
    scenes = reader.scenes_bounding_rectangle_no_pyramid
    names = tuple(str(number) for number in scenes)
    number = chosen_part("scene", names, choice)
    if number is None and len(scenes) > 1:
        raise Refused(f"it holds {len(scenes)} scenes, and an image is one of them; {listed('scene', names)}.")
    scene = list(scenes)[number or 0] if scenes else None
    box = reader.total_bounding_rectangle_no_pyramid if scene is None else scenes[scene]
    spans = {axis: span for axis, span in reader.total_bounding_box_no_pyramid.items() if axis not in "XY"}
    kinds = sorted(set(reader.pixel_types.values()))
    if not set(kinds) <= TYPES.keys() or len({kind.startswith("Bgr") for kind in kinds}) != 1:
        raise Refused(f"its channels hold {', '.join(kinds)}; known are {', '.join(TYPES)}, either grey or colour. Export the "
                      "channel as OME-TIFF.")
    colour, dtype = kinds[0].startswith("Bgr"), np.result_type(*(TYPES[kind] for kind in kinds))
    shape = (*(stop - start for start, stop in spans.values()), box.h, box.w, *((3,) if colour else ()))

    def fetch(index: Index) -> np.ndarray:
        outer = index[:len(spans)]
        y, x = np.arange(box.h)[index[len(spans)]], np.arange(box.w)[index[len(spans) + 1]]
        wanted = np.arange(int(np.prod(shape[:len(spans)]))).reshape(shape[:len(spans)])[outer]
        planes = np.empty((wanted.size, len(y), len(x), 3 if colour else 1), dtype)
        for plane, flat in zip(planes, wanted.ravel(), strict=True):
            place = dict(zip(spans, map(int, np.unravel_index(int(flat), shape[:len(spans)])), strict=True))
            plane[:] = reader.read(plane={axis: spans[axis][0] + n for axis, n in place.items()}, scene=scene,
                                   roi=(box.x + int(x[0]), box.y + int(y[0]), len(x), len(y)))
        planes = planes[..., ::-1][..., index[-1]] if colour else planes[..., 0]
        return planes.reshape(*wanted.shape, *planes.shape[1:])

    axes = "".join(spans) + ("YXS" if colour else "YX")
    return Stored(axes, shape, np.dtype(dtype), fetch, *_metadata(reader.raw_metadata), close=reader.close)


def _metadata(xml: str) -> tuple[float | None, tuple[str, ...]]:
    """(pixel size, channel names)."""
    if not xml:
        return None, ()
    root = parse_xml(xml)
    metres = {distance.get("Id"): distance.findtext("Value") for distance in root.iterfind(".//Scaling/Items/Distance")}
    x, y = (micrometres(metres.get(axis), "meter") for axis in "XY")
    channels = root.iterfind(".//Information/Image/Dimensions/Channels/Channel")
    return one_size(x, y), tuple(channel.get("Name", "") for channel in channels)
