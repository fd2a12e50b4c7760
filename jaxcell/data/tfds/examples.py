"""A sample as the dictionary of arrays and texts that one record holds, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcell.types import Sample

__all__ = ["from_example", "to_example"]

Example = dict[str, Any]


def to_example(sample: Sample) -> Example:
    """What is stored of a sample.

    Args:
      sample: its image of any number type.

    Returns:
      "image": uint8 [H, W, C * bytes per number], the little-endian bytes of the image (data sets mix 8 and 16 bits, a record
      has one type); "dtype": the type they are of, such as "<u2"; "labels": int32 [H, W, D], [0, 0, 0] without annotation;
      "nuclei": int32 [H, W], [0, 0] where unknown; "pixel_size": float64, [1] or [0]; "name", "modality", "group": texts.

    Raises:
      ValueError: an image of anything but numbers.
    """
    if sample.image.dtype.kind not in "buif":
        raise ValueError(f"Sample {sample.name!r}: its image is {sample.image.dtype}; only whole numbers and floats can be "
                         "stored.")
    image = np.ascontiguousarray(sample.image, sample.image.dtype.newbyteorder("<"))
    return {
        "image": image.view(np.uint8), "dtype": image.dtype.str,
        "labels": np.zeros((0, 0, 0), np.int32) if sample.labels is None else sample.labels,
        "nuclei": np.zeros((0, 0), np.int32) if sample.nuclei is None else sample.nuclei,
        "pixel_size": np.asarray([] if sample.pixel_size is None else [sample.pixel_size], np.float64),
        "name": sample.name, "modality": sample.modality, "group": sample.group,
    }


def from_example(example: Mapping[str, Any]) -> Sample:
    """The sample that `to_example` stored; texts may be bytes, as tensorflow-datasets gives them."""
    name, modality, group, dtype = (_text(example[key]) for key in ("name", "modality", "group", "dtype"))
    image = np.array(example["image"]).view(np.dtype(dtype).newbyteorder("="))      # (a copy: what was read cannot be written to)
    labels, nuclei = (np.array(example[key]) if example[key].size else None for key in ("labels", "nuclei"))
    pixel_size = float(example["pixel_size"][0]) if len(example["pixel_size"]) else None
    return Sample(image, labels, nuclei, pixel_size, name, modality, group)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
