"""Reads image and label files as arrays [H, W, C], by the axes that they name: `OPENERS` lists the formats.

And what file names say: which files of a folder are images, and which are annotations of others.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np

from jaxcell.data.formats.arrays import open_npy, open_npz
from jaxcell.data.formats.czi import open_czi
from jaxcell.data.formats.nd2 import open_nd2
from jaxcell.data.formats.planes import check_choice, displayed_size, is_opaque, read_planes
from jaxcell.data.formats.raster import open_bmp, open_jpeg, open_png
from jaxcell.data.formats.stored import Opener, Refused, Stored
from jaxcell.data.formats.tiff import open_tiff
from jaxcell.data.formats.zarr import open_zarr

__all__ = ["ANNOTATION_ENDINGS", "LABEL_OPENERS", "OPENERS", "SUFFIXES", "ImageFile", "annotation_stems",
           "check_permission", "ending_of", "open_image", "parse_select", "read_image", "read_label_array", "read_pixel_size",
           "readable_files", "stem_of"]

Format = tuple[Opener, tuple[str, ...]]
_TIFF: Format = (open_tiff, ("series", "level"))
_ZARR: Format = (open_zarr, ("array", "level"))

OPENERS: Mapping[str, Format] = {
    ".png": (open_png, ()), ".jpg": (open_jpeg, ()), ".jpeg": (open_jpeg, ()), ".bmp": (open_bmp, ()),
    ".tif": _TIFF, ".tiff": _TIFF, ".ome.tif": _TIFF, ".ome.tiff": _TIFF, ".btf": _TIFF,
    ".npy": (open_npy, ()), ".npz": (open_npz, ("array",)),
    ".zarr": _ZARR, ".ome.zarr": _ZARR, ".zarr.zip": _ZARR, ".ome.zarr.zip": _ZARR,
    ".nd2": (open_nd2, ()), ".czi": (open_czi, ("scene",)),
}
"""File name ending -> (what opens it, the parts of a file, beside its axes, that can be selected)."""
LABEL_OPENERS: Mapping[str, Format] = {     # JPEG changes pixel values, and ND2 and CZI may be compressed with loss
    ending: entry for ending, entry in OPENERS.items() if ending not in (".jpg", ".jpeg", ".nd2", ".czi")}
PARTS = frozenset(part for _, parts in OPENERS.values() for part in parts)
WITHOUT_PIXEL_SIZE = ("", ".png", ".jpg", ".jpeg", ".bmp", ".npy", ".npz")
SUFFIXES = tuple(OPENERS)
"""File name endings (in lower case) that can be read; a name has the longest that fits."""
ANNOTATION_ENDINGS = ("_labels", "_label", "_masks", "_mask", "_cp_masks", "_seg")
"""What the stem of an annotation has after that of its image: the cells of `x.png` are `x_labels.tif`, `x_mask.png`, ..."""
SIGNATURES = ((b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"BM", "BMP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
              (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"\x93NUMPY", "npy"), (b"PK\3\4", "zip"), (b"\xda\xce\xbe\n", "ND2"),
              (b"ZISRAWFILE", "CZI"), (b"GIF8", "GIF"), (b"\x89HDF", "HDF5"), (b"%PDF", "PDF"), (b"RIFF", "WebP or AVI"))
KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".npy": "npy", ".npz": "zip", ".zarr.zip": "zip",
         ".ome.zarr.zip": "zip", ".nd2": "ND2", ".czi": "CZI"}


# ---------------------------------------------------------------- names
def ending_of(name: str | Path) -> str:
    """The longest of `SUFFIXES` that a file name ends in, as one in lower case; "" for none."""
    lower = Path(name).name.lower()
    return max((suffix for suffix in SUFFIXES if lower.endswith(suffix)), key=len, default="")


def stem_of(name: str | Path) -> str:
    """The file name of a path without its ending, if it is one of `SUFFIXES`: `well_A.1` and `well_A.1.ome.tif` are one stem."""
    path = Path(name)
    ending = ending_of(path)
    return path.name[:-len(ending)] if ending else path.name


def annotation_stems(stems: Iterable[str]) -> set[str]:
    """The stems that annotations of images with these stems may have."""
    return {stem + ending for stem in stems for ending in ANNOTATION_ENDINGS}


def readable_files(folder: Path) -> list[Path]:
    """The files of a folder (not of its subfolders) that can be read, by name, without hidden ones such as macOS's `._x.png`.

    A folder that ends in `.zarr` is a file in this sense. So is a link to what is not there: who reads it says so, where a file
    that is passed over would be missed by nobody.

    Raises:
      ValueError: the folder may not be listed.
    """
    check_permission(folder)
    return sorted(f for f in folder.iterdir() if ending_of(f) and not f.name.startswith(".")
                  and (f.is_dir() if f.suffix.lower() == ".zarr" else f.is_file() or (f.is_symlink() and not f.exists())))


def check_permission(path: Path) -> None:
    """Refuses an existing file or folder whose permissions keep this user out.

    Raises:
      ValueError: so it is.
    """
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise ValueError(f"{path}: you have no permission to read it; ask its owner, or change it with chmod.")


# ---------------------------------------------------------------- files
@dataclass(frozen=True, eq=False)
class ImageFile:
    """An opened image file. It knows what its header says; pixels are read on demand. Close it, or use it in a `with`.

    Attributes:
      path: the file.
      axes: a letter for every axis, in the file's order: Y, X, S (samples: red, green, blue, alpha), C (channels), Z (focal
        planes), T (time), P and R (positions), other letters for pages of unknown meaning.
      shape: their sizes, as stored: before anything is selected, and before the picture is turned upright.
      size: (height, width) of the upright picture.
      dtype: of the pixels.
      pixel_size: micrometres per pixel, where the file says so in a way that can be trusted, see `read_pixel_size`.
      channel_names: of axis C; empty where unknown.
    """

    path: Path
    axes: str
    shape: tuple[int, ...]
    size: tuple[int, int]
    dtype: np.dtype
    pixel_size: float | None
    channel_names: tuple[str, ...]
    _read: Callable[[tuple[int, int, int, int] | None], np.ndarray]
    _close: Callable[[], None]

    def read(self, *, region: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The pixels.

        Args:
          region: (y0, x0, y1, x1) of the upright picture, half-open; None reads all. Of TIFF (by its tiles or strips), Zarr, ND2
            (by frames), CZI and npy little more than this is read; others are decoded whole, once for all regions.

        Returns:
          [H, W, C], see `read_image`; perhaps read-only.

        Raises:
          ValueError: a region outside the picture, too large, several time points or positions, or damaged.
        """
        try:
            return self._read(region)
        except Exception as error:
            raise _named(error, self.path) from error

    def close(self) -> None:
        """Lets go of the file."""
        self._close()

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_image(path: str | Path, *, select: Mapping[str, int | str] | None = None, max_gb: float = 8.0) -> ImageFile:
    """Opens an image file without decoding its pixels.

    Args:
      path: a file, or a Zarr folder or a folder inside one, that ends in one of `SUFFIXES`.
      select: what to take of a file that holds more than one image, or of its planes: an axis -> index, "max" or "mean" (a
        projection; the mean is float32), axis C also -> name of a channel; "series" (TIFF), "array" (npz, Zarr), "scene" (CZI) or
        "level" (of a pyramid; 0 is the largest) -> index or name.
      max_gb: most gigabytes that pixels may take; judged by the header, before anything is decoded.

    Returns:
      The opened file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending, the file cannot be opened, or has not what `select` names.
    """
    return _open(path, OPENERS, select or {}, max_gb, numbers=False)


def read_image(path: str | Path, *, select: Mapping[str, int | str] | None = None, max_gb: float = 8.0) -> np.ndarray:
    """The pixels of an image file, as stored.

    Channels, samples, focal planes and pages of unknown meaning become channels in the file's order, samples fastest. Several
    time points, positions, scenes, series or arrays are refused until `select` names one. Indexed colour and CMYK become RGB, one
    bit becomes 0 and 255, a TIFF in which 0 is white is turned round. Alpha that is opaque everywhere is dropped, that of a grey
    image always. A picture with an EXIF (or TIFF) orientation is turned as viewers show it. NaN and infinite values are returned
    as they are.

    Args:
      path: see `open_image`.
      select: see there.
      max_gb: see there.

    Returns:
      [H, W, C] in the file's dtype; a read-only memory map of a large npy or uncompressed TIFF.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending, the file cannot be decoded, holds several images, or is too large.
    """
    with open_image(path, select=select, max_gb=max_gb) as file:
        return file.read()


def parse_select(text: str) -> dict[str, int | str]:
    """`select` of a command line: "T=0,Z=max" is {"T": 0, "Z": "max"}, "" is {}.

    Raises:
      ValueError: something that is not axis=index, axis=name, axis=max or axis=mean.
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    if wrong := ["".join(pair) for pair in pairs if not (pair[0].strip() and pair[2].strip())]:
        raise ValueError(f"select: {wrong[0]!r} is not of the form axis=value, such as T=0, C=DAPI or Z=max.")
    return {axis.strip(): int(value) if value.strip().lstrip("-").isdigit() else value.strip() for axis, _, value in pairs}


def read_label_array(path: str | Path, *, select: Mapping[str, int | str] | None = None, max_gb: float = 8.0) -> np.ndarray:
    """The numbers of a label file, indexed colour kept as numbers; what they mean is `read_labels`'s business.

    An orientation is followed as in images, so that both stay aligned; 0 is 0 even where it is shown white.

    Args:
      path: see `open_image`, but nothing with lossy compression: it changes pixel values. Of an OME-Zarr image its only label
        image is read; of several, name the folder of one (`x.zarr/labels/cells`).
      select: see `open_image`.
      max_gb: see there.

    Returns:
      [H, W, N] in the file's dtype; N pages or colour channels.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending, the file cannot be decoded, holds several images, or is too large.
    """
    with _open(path, LABEL_OPENERS, select or {}, max_gb, numbers=True) as file:
        return file.read()


def read_pixel_size(path: str | Path, *, select: Mapping[str, int | str] | None = None) -> float | None:
    """Micrometres per pixel, where a file says so in a way that can be trusted.

    That is OME's PhysicalSizeX (if PhysicalSizeY is the same or absent), ImageJ's resolution with a unit, OME-Zarr's scale with
    units, and what a calibrated microscope wrote into ND2 and CZI. Not the resolution of other files: it is mostly made up, such
    as 72 pixels an inch. With `open_image` at hand, its `pixel_size` is the same.

    Args:
      path: any file; only formats that can say so are looked into.
      select: see `open_image`.

    Returns:
      The size, or None where it is unknown or differs between y and x.

    Raises:
      FileNotFoundError: no such file, where it must be looked into.
      ValueError: it cannot be opened.
    """
    if _ending(Path(path), OPENERS) in WITHOUT_PIXEL_SIZE:
        return None
    with open_image(path, select=select) as file:
        return file.pixel_size


def _open(path: str | Path, openers: Mapping[str, Format], select: Mapping[str, int | str], max_gb: float, *, numbers: bool
          ) -> ImageFile:
    path = path if isinstance(path, Path) else Path(path)       # one that is used again and again keeps its parsed parts
    opener, known = openers[_checked_ending(path, openers)]
    parts = {key: value for key, value in select.items() if key in PARTS}
    limit = int(max_gb * 1e9)
    try:
        if wrong := sorted(parts.keys() - set(known)):
            raise Refused(f"select names {wrong[0]!r}, but such a file has {' and '.join(known) or 'only axes'} to choose from; "
                          "leave it out.")
        stored = opener(path, parts=parts, numbers=numbers, limit=limit)
        size, chosen = _checked(stored, {key: value for key, value in select.items() if key not in PARTS})
    except Exception as error:
        raise _named(error, path) from error
    opaque = cache(lambda: is_opaque(stored)) if stored.alpha else bool

    def read(region: tuple[int, int, int, int] | None) -> np.ndarray:
        image = read_planes(stored, chosen, region=region, limit=limit, opaque=opaque)
        if image.dtype == bool:
            return image.view(np.uint8) if numbers else image.view(np.uint8) * np.uint8(255)
        return image.astype(image.dtype.newbyteorder("="), copy=False)

    dtype = np.dtype(np.uint8) if stored.dtype == bool else stored.dtype.newbyteorder("=")
    return ImageFile(path, stored.axes, stored.shape, size, dtype, stored.pixel_size, stored.channel_names, read, stored.close)


def _checked(stored: Stored, select: Mapping[str, int | str]) -> tuple[tuple[int, int], dict[str, int | str]]:
    """(size, selection) of a file that is an image and has what is selected; otherwise it is closed."""
    try:
        if stored.dtype.kind not in "buif":
            raise Refused(f"its values are {stored.dtype}; an image holds whole or real numbers. Save it as one of those.")
        return displayed_size(stored), check_choice(stored, select)
    except Exception:
        stored.close()
        raise


def _ending(path: Path, openers: Mapping[str, Format]) -> str:
    """The ending that says how to open a path; one inside a Zarr folder has that folder's. "" for none."""
    ending = path.suffix.lower()
    ending = ending if ending in openers else ending_of(path)
    inside = not ending and any(parent.suffix.lower() == ".zarr" for parent in path.parents)
    return ".zarr" if inside else ending


def _checked_ending(path: Path, openers: Mapping[str, Format]) -> str:
    """The ending of an existing path that can be opened."""
    ending = _ending(path, openers)
    if ending not in openers and ending in OPENERS:
        raise ValueError(f"{path}: a label file that ends in {path.suffix.lower()!r} cannot be read here: it may be compressed "
                         "with loss, which changes the numbers of cells. Save it anew as PNG or TIFF where it was made.")
    if ending not in openers:
        raise ValueError(f"{path}: a file that ends in {path.suffix.lower()!r} cannot be read here; known endings are "
                         f"{', '.join(openers)}. Convert it, for example to TIFF.")
    try:
        about = path.stat()
    except PermissionError as error:
        raise ValueError(f"{path}: you have no permission to look into its folder; ask its owner, or change it with "
                         "chmod.") from error
    except OSError as error:
        if path.is_symlink():
            raise FileNotFoundError(f"{path}: is a link to {os.readlink(path)}, which is not there; bring it there, or put the "
                                    "file itself in the link's place.") from error
        raise FileNotFoundError(f"{path}: no such file; check the folder and the name.") from error
    check_permission(path)
    wants_folder = ending.endswith(".zarr")
    if stat.S_ISDIR(about.st_mode) != wants_folder or not (wants_folder or stat.S_ISREG(about.st_mode)):
        kind = "folder" if stat.S_ISDIR(about.st_mode) else "file" if stat.S_ISREG(about.st_mode) else "device or pipe"
        raise ValueError(f"{path}: is a {kind}, but what ends in {ending} must be a {'folder' if wants_folder else 'file'}. "
                         "Check the name.")
    if not wants_folder and not about.st_size:
        raise ValueError(f"{path}: is empty (0 bytes); copy it anew from where it came.")
    return ending


def _named(error: Exception, path: Path) -> ValueError:
    """The error with the file's name. Each decoder has errors of its own, and all mean the same here."""
    if isinstance(error, Refused):
        return ValueError(f"{path}: {error}")
    ending = _ending(path, OPENERS)
    content = _content(path)
    if content and content != KINDS.get(ending, "TIFF"):
        return ValueError(f"{path}: its name says {ending[1:]}, but it begins like a {content} file; give it the right ending.")
    if isinstance(error, struct.error):
        error = ValueError("it ends within its header")
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    return ValueError(f"{path}: cannot be read as {ending[1:]}: {reason}. Check that the file is whole and is what its name "
                      "says, and save it anew if not.")


def _content(path: Path) -> str | None:
    """The kind of file that its first bytes show."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(16)
    return next((kind for signature, kind in SIGNATURES if start.startswith(signature)), None)
