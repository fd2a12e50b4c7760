"""What a record of the array_record files holds, and access to the records. This imports tensorflow-datasets (1 to 2 s)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

__all__ = ["features", "open_records"]


def features() -> tfds.features.FeaturesDict:
    """What a record holds, see `to_example`. (`features.Image` needs TensorFlow to write.)"""
    text, zipped = tfds.features.Text, tfds.features.Encoding.ZLIB
    return tfds.features.FeaturesDict({
        "image": tfds.features.Tensor(shape=(None, None, None), dtype=np.uint8, encoding=zipped),
        "dtype": text(), "name": text(), "modality": text(), "group": text(),
        "labels": tfds.features.Tensor(shape=(None, None, None), dtype=np.int32, encoding=zipped),
        "nuclei": tfds.features.Tensor(shape=(None, None), dtype=np.int32, encoding=zipped),
        "pixel_size": tfds.features.Tensor(shape=(None,), dtype=np.float64, encoding=tfds.features.Encoding.BYTES),
    })


def open_records(folder: Path, split: str) -> Sequence[Mapping[str, Any]]:
    """Random access to the examples of a split, without TensorFlow.

    Args:
      folder: what `build` returned.
      split: one of its splits.

    Raises:
      ValueError: the files are damaged, or describe other features.
    """
    expected = features().to_json()
    try:
        stored = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        # Others are not even looked at: tensorflow-datasets imports the modules that this file names.
        if stored != {"pythonClassName": expected["type"], "featuresDict": expected["content"]}:
            raise ValueError("features.json does not describe samples of jaxcell")
        return tfds.builder_from_directory(folder).as_data_source(split=split)
    except Exception as error:
        raise ValueError(f"{folder}: cannot be opened: {error}. Write the data set anew.") from error
