from __future__ import annotations

import numpy as np
import pytest
import tifffile

from jaxcell.export.labels import write_float_tiff, write_label_tiff


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64, np.uint32, bool])
def test_labels_come_back(tmp_path, dtype):
    labels = np.random.default_rng(0).integers(0, 2 if dtype is bool else 300, (37, 51)).astype(dtype)
    write_label_tiff(tmp_path / "x.tif", labels)
    back = tifffile.imread(tmp_path / "x.tif")
    assert back.dtype == np.uint32 and np.array_equal(back, labels)


def test_more_than_65535_cells_survive_and_are_compressed(tmp_path):
    labels = np.arange(1, 300 * 300 + 1).reshape(300, 300)
    labels[0, 0] = 2 ** 32 - 1
    write_label_tiff(tmp_path / "x.tif", labels, pixel_size=0.25)
    assert np.array_equal(tifffile.imread(tmp_path / "x.tif"), labels)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        page = file.pages.first
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.tags["XResolution"].value == (40000, 1) and page.tags["ResolutionUnit"].value == 3     # per centimetre
    assert (tmp_path / "x.tif").stat().st_size < labels.size


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"\[H, W\] of integers"):
        write_label_tiff(tmp_path / "x.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="layers one by one"):
        write_label_tiff(tmp_path / "x.tif", np.zeros((4, 4, 2), np.int32))
    for wrong in (-1, 2 ** 32):
        with pytest.raises(ValueError, match=f"{wrong}; the file holds" if wrong > 0 else "run from -1"):
            write_label_tiff(tmp_path / "x.tif", np.asarray([[0, wrong]]))


def test_maps_of_numbers_come_back(tmp_path):
    values = np.random.default_rng(0).normal(size=(31, 45))
    write_float_tiff(tmp_path / "x.tif", values, pixel_size=0.5)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert np.array_equal(file.asarray(), values.astype(np.float32)) and file.pages.first.dtype == np.float32
        assert file.pages.first.tags["XResolution"].value == (20000, 1)
    for wrong in (values.astype(int), values[..., None]):
        with pytest.raises(ValueError, match="of floats"):
            write_float_tiff(tmp_path / "x.tif", wrong)
