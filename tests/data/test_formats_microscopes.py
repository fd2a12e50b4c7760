"""Nikon's and Zeiss' own files: CZI as Zeiss' library writes them, ND2 put together here (no library writes them)."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcell.data.images import open_image, read_image, read_label_array, read_pixel_size

nd2 = pytest.importorskip("nd2", reason="the extra `microscopes` is not installed")
czi = pytest.importorskip("pylibCZIrw.czi", reason="the extra `microscopes` is not installed")

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 65536, (2, 3, 40, 50), np.uint16)      # C Z Y X


# ---------------------------------------------------------------- CZI
def write_czi(path: Path, planes: list[tuple[np.ndarray, dict[str, Any]]], **metadata: Any) -> None:
    with czi.create_czi(str(path)) as writer:
        for plane, options in planes:
            writer.write(plane[..., None] if plane.ndim == 2 else plane, **options)
        if metadata:
            writer.write_metadata(document_name="x", **metadata)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    write_czi(tmp_path / "x.czi", [(STACK[c, z], {"plane": {"C": c, "Z": z}}) for c in range(2) for z in range(3)],
              channel_names={0: "DAPI", 1: "GFP"}, scale_x=0.65e-6, scale_y=0.65e-6)
    return tmp_path / "x.czi"


def test_czi_has_axes_names_and_size(stack):
    with open_image(stack) as file:
        assert dict(zip(file.axes, file.shape, strict=True)) == {"T": 1, "Z": 3, "C": 2, "Y": 40, "X": 50}
        assert (file.size, file.dtype, file.channel_names) == ((40, 50), np.uint16, ("DAPI", "GFP"))
        image = file.read()
        np.testing.assert_array_equal(image, np.moveaxis(STACK.swapaxes(0, 1).reshape(6, 40, 50), 0, -1))
        np.testing.assert_array_equal(file.read(region=(3, 5, 20, 30)), image[3:20, 5:30])
    assert read_pixel_size(stack) == pytest.approx(0.65)
    np.testing.assert_array_equal(read_image(stack, select={"C": "GFP", "Z": "max"})[..., 0], STACK[1].max(axis=0))


def test_czi_colours_become_red_green_blue(tmp_path):
    write_czi(tmp_path / "x.czi", [(np.full((20, 30, 3), (10, 20, 30), np.uint8), {})])
    np.testing.assert_array_equal(read_image(tmp_path / "x.czi")[0, 0], [30, 20, 10])       # stored as blue, green, red
    np.testing.assert_array_equal(read_image(tmp_path / "x.czi", select={"S": 0})[0, 0], [30])


def test_czi_scenes_and_times_are_chosen(tmp_path):
    write_czi(tmp_path / "x.czi", [(np.full((20, 30), 7 + n, np.uint8), {"scene": n, "location": (100 * n, 50)})
                                   for n in range(2)])
    with pytest.raises(ValueError, match=r"x\.czi: it holds 2 scenes.*select=\{'scene'"):
        read_image(tmp_path / "x.czi")
    assert (read_image(tmp_path / "x.czi", select={"scene": 1}) == np.full((20, 30, 1), 8)).all()
    with pytest.raises(ValueError, match="no scene 2"):
        read_image(tmp_path / "x.czi", select={"scene": 2})
    write_czi(tmp_path / "t.czi", [(np.full((20, 30), t, np.float32), {"plane": {"T": t}}) for t in range(3)])
    with pytest.raises(ValueError, match="movie of 3 time points"):
        read_image(tmp_path / "t.czi")
    assert (read_image(tmp_path / "t.czi", select={"T": 2}) == 2).all()


def test_czi_tiles_are_put_together_wherever_they_lie(tmp_path):
    write_czi(tmp_path / "x.czi", [(np.full((20, 30), n, np.uint8), {"location": (30 * n - 60, -5)}) for n in range(2)])
    np.testing.assert_array_equal(read_image(tmp_path / "x.czi")[..., 0], np.repeat([[0, 1]], 30, axis=1).repeat(20, axis=0))


def test_czi_channels_of_two_types_share_the_wider(tmp_path):
    write_czi(tmp_path / "x.czi", [(np.full((20, 30), 7, np.uint8), {"plane": {"C": 0}}),
                                   (np.full((20, 30), 700, np.uint16), {"plane": {"C": 1}})])
    np.testing.assert_array_equal(read_image(tmp_path / "x.czi")[0, 0], [7, 700])


@pytest.mark.parametrize("damage", [lambda data: data[:5000], lambda data: b"x" * 1000, lambda data: data[:-200]])
def test_a_damaged_czi_is_named(stack, damage):
    stack.write_bytes(damage(stack.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.czi: cannot be read as czi"):
        read_image(stack)


# ---------------------------------------------------------------- ND2
def tree(name: str, value: Any) -> bytes:
    """One entry of Nikon's "lite variant": a number, a text, or a dict of entries."""
    title = (name + "\0").encode("utf-16-le")
    head = bytes([len(name) + 1]) + title
    if isinstance(value, dict):
        inner = b"".join(tree(key, entry) for key, entry in value.items())
        size = 2 + len(title) + 12 + len(inner)
        return b"\x0b" + head + struct.pack("<IQ", len(value), size) + inner + bytes(8 * len(value))
    if isinstance(value, bool):
        return b"\x01" + head + struct.pack("<?", value)
    if isinstance(value, int):
        return b"\x03" + head + struct.pack("<I", value)
    if isinstance(value, float):
        return b"\x06" + head + struct.pack("<d", value)
    return b"\x08" + head + (value + "\0").encode("utf-16-le")


def write_nd2(path: Path, frames: list[np.ndarray], *, loops: dict[str, int], channels: list[str], colour: bool = False,
              count: int | None = None) -> None:
    """Frames [H, W, components], with loops of time ("T") or focus ("Z"), the first the slowest, as a file of version 3."""
    height, width, components = frames[0].shape
    item = frames[0].dtype.itemsize
    kinds = {"T": (1, {"dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0}), "Z": (4, {"dZLow": 0.0, "dZHigh": 2.0, "dZStep": 1.0})}
    loop: dict[str, Any] = {}
    for axis, n in reversed(loops.items()):
        kind, parameters = kinds[axis]
        loop = {"eType": kind, "uLoopPars": {"uiCount": n, **parameters}, **({"ppNextLevelEx": {"a": loop}} if loop else {})}
    chunks = {
        "ImageAttributesLV!": tree("SLxImageAttributes", {
            "uiWidth": width, "uiWidthBytes": width * components * item, "uiHeight": height, "uiComp": components,
            "uiBpcInMemory": 8 * item, "uiBpcSignificant": 8 * item, "uiSequenceCount": len(frames) if count is None else count,
            "eCompression": 2}),
        "ImageMetadataSeqLV|0!": tree("SLxPictureMetadata", {
            "bCalibrated": True, "dCalibration": 0.325, "sPicturePlanes": {
                "uiCount": len(channels), "sPlaneNew": {f"a{n}": {"sDescription": name, "uiCompCount": 3 if colour else 1,
                                                                  "pFluorescentProbe": {"a": {"b": 1}}}
                                                        for n, name in enumerate(channels)}}}),
        "ImageMetadataLV!": tree("SLxExperiment", loop) if loop else tree("SLxExperiment", {"eType": 0}),
    } | {f"ImageDataSeq|{n}!": bytes(8) + frame.tobytes() for n, frame in enumerate(frames)}

    def chunk(name: bytes, data: bytes, room: int) -> bytes:
        return struct.pack("<IIQ", 0x0ABECEDA, room, len(data)) + name.ljust(room, b"\0") + data

    content, places = chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"), 32), b""
    for name, data in chunks.items():
        places += name.encode() + struct.pack("<QQ", len(content), len(data))
        content += chunk(name.encode(), data, 4072)
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(content))
    path.write_bytes(content + chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", places + end, 32))


def test_nd2_has_axes_names_and_size(tmp_path):
    write_nd2(tmp_path / "x.nd2", [np.moveaxis(STACK[:, z], 0, -1) for z in range(3)], loops={"Z": 3}, channels=["DAPI", "GFP"])
    with open_image(tmp_path / "x.nd2") as file:
        assert dict(zip(file.axes, file.shape, strict=True)) == {"Z": 3, "C": 2, "Y": 40, "X": 50}
        assert (file.size, file.dtype, file.channel_names) == ((40, 50), np.uint16, ("DAPI", "GFP"))
        image = file.read()
        np.testing.assert_array_equal(image, np.moveaxis(STACK.swapaxes(0, 1).reshape(6, 40, 50), 0, -1))
        np.testing.assert_array_equal(file.read(region=(3, 5, 20, 30)), image[3:20, 5:30])
    assert read_pixel_size(tmp_path / "x.nd2") == pytest.approx(0.325)
    np.testing.assert_array_equal(read_image(tmp_path / "x.nd2", select={"C": "GFP", "Z": "max"})[..., 0], STACK[1].max(axis=0))


def test_nd2_movies_are_chosen_from_and_frames_never_taken_are_not_black(tmp_path):
    frames = [np.full((4, 6, 1), 10 * t + z, np.uint8) for t in range(2) for z in range(3)]
    write_nd2(tmp_path / "x.nd2", frames, loops={"T": 2, "Z": 3}, channels=["DIC"])
    with pytest.raises(ValueError, match="movie of 2 time points"):
        read_image(tmp_path / "x.nd2")
    np.testing.assert_array_equal(read_image(tmp_path / "x.nd2", select={"T": 1})[0, 0], [10, 11, 12])
    write_nd2(tmp_path / "x.nd2", frames[:4], loops={"T": 2, "Z": 3}, channels=["DIC"])
    np.testing.assert_array_equal(read_image(tmp_path / "x.nd2", select={"T": 0})[0, 0], [0, 1, 2])
    with pytest.raises(ValueError, match=r"x\.nd2: frame 5 was never recorded, only 4 of 6"):
        read_image(tmp_path / "x.nd2", select={"T": 1})


def test_nd2_colours_become_red_green_blue(tmp_path):
    write_nd2(tmp_path / "x.nd2", [np.full((4, 6, 3), (10, 20, 30), np.uint8)], loops={}, channels=["Brightfield"], colour=True)
    np.testing.assert_array_equal(read_image(tmp_path / "x.nd2")[0, 0], [30, 20, 10])       # stored as blue, green, red


@pytest.mark.parametrize("content", [b"x", b"x" * 1000, b"\xda\xce\xbe\n" + b"x" * 1000])
def test_a_damaged_nd2_is_named(tmp_path, content):
    (tmp_path / "x.nd2").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.nd2: cannot be read as nd2"):
        read_image(tmp_path / "x.nd2")


def test_a_cut_nd2_is_named(tmp_path):
    write_nd2(tmp_path / "x.nd2", [STACK[0, 0, :, :, None]], loops={}, channels=["DAPI"])
    (tmp_path / "x.nd2").write_bytes((tmp_path / "x.nd2").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"x\.nd2: cannot be read as nd2"):
        read_image(tmp_path / "x.nd2")


# ---------------------------------------------------------------- both
@pytest.mark.parametrize("name, module", [("x.czi", "pylibCZIrw"), ("x.nd2", "nd2")])
def test_a_missing_library_is_said(tmp_path, monkeypatch, name, module):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"{module}; pip install 'jaxcell\[microscopes\]'"):
        read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_image(tmp_path / f"absent{name[1:]}")
    with pytest.raises(ValueError, match="cannot be read here"):
        read_label_array(tmp_path / name)      # may be compressed with loss
