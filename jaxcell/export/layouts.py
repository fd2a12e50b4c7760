"""Writes whole data sets in the layouts that other programs, and `jaxcell/data/sources`, read.

Nothing is lost in silence: what a layout cannot hold is refused where it changes what the labels mean, and counted where it is a
remark about the image.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from roifile import ROI_TYPE, ImagejRoi
from scipy import ndimage
from tqdm import tqdm

from jaxcell.data.annotations.qupath import NUCLEI_KNOWN
from jaxcell.data.images import stem_of
from jaxcell.data.sources import Source
from jaxcell.export.coco import coco_writer
from jaxcell.export.outlines import pixel_outlines
from jaxcell.geometry.labels import cell_ids, replace_ids, resolve_overlaps, windows
from jaxcell.types import Instances, Sample

__all__ = ["LAYOUTS", "Layout", "Written", "convert", "write_image"]

Add = Callable[[str, str, Sample], None]
"""(split, stem, sample); the stem names its files and is unique."""
Writer = AbstractContextManager[Add]


@dataclass
class Written:
    """What `convert` wrote, and what it could not keep: remark -> number of images (or cells, where the remark says so)."""

    images: int = 0
    cells: int = 0
    lost: Counter[str] = field(default_factory=Counter)


class _Samples:
    """The samples of a split as far as a layout holds them; counts what is written and what is lost."""

    def __init__(self, source: Source, stems: Sequence[str], fit: Callable[[Sample, Counter[str]], Sample | None],
                 written: Written, bar: tqdm[object]) -> None:
        self._source, self._fit, self._written, self._bar = source, fit, written, bar
        self.names, self._stems = source.names, stems

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> Sample | None:
        sample = self._fit(self._source[index], self._written.lost)
        self._bar.update()
        if sample is not None:
            self._written.images += 1
            self._written.cells += 0 if sample.labels is None else len(cell_ids(sample.labels))
        return sample

    def __iter__(self) -> Iterator[tuple[str, Sample]]:
        for index, stem in enumerate(self._stems):
            if (sample := self.read(index)) is not None:
                yield stem, sample


class _Joined:
    """All samples of all splits in one source that knows the split of each."""

    def __init__(self, parts: Mapping[str, _Samples]) -> None:
        self._places = [(samples, i) for samples in parts.values() for i in range(len(samples))]
        self.names = [samples.names[i] for samples, i in self._places]
        self.splits = [split for split, samples in parts.items() for _ in range(len(samples))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        samples, place = self._places[index]
        sample = samples.read(place)
        assert sample is not None       # (this layout holds every sample)
        return sample

MOST_IDS = 65534            # in 16 bits; 65535 stands for background in some of Cellpose's own label images
LARGEST_SHORT = 32767       # ImageJ keeps the points of plain polygons in 16 bits


# ---------------------------------------------------------------- images and cells
def write_image(stem: Path, image: np.ndarray) -> Path:
    """Writes an image without any loss: PNG if it is grey or red green blue of 8 or 16 bits, else TIFF.

    Args:
      stem: of the file, to which the ending is added.
      image: [H, W, C]; the planes of a TIFF are pages, and yes and no become 255 and 0, as which they would be read.

    Returns:
      The file's path.
    """
    image = image * np.uint8(255) if image.dtype == bool else image
    if image.dtype in (np.uint8, np.uint16) and image.shape[2] in (1, 3):
        path = _with_ending(stem, ".png")
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(image.squeeze(2) if image.shape[2] == 1 else image)))
    else:
        path = _with_ending(stem, ".tif")
        _write_planes(path, image)
    return path


def _write_planes(path: Path, array: np.ndarray) -> None:
    tifffile.imwrite(path, np.moveaxis(array, 2, 0), photometric="minisblack", compression="zlib", metadata={"axes": "CYX"})


def _with_ending(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)       # (with_suffix would cut a stem such as well_A.1)


@dataclass(frozen=True)
class _Cell:
    number: int
    box: tuple[int, int, int, int]
    mask: np.ndarray


def _cells(labels: np.ndarray) -> list[_Cell]:
    """The cells of label layers, by rising id."""
    found = []
    for layer in range(labels.shape[2]):
        plane = labels[..., layer]
        for number, (y, x) in windows(plane):
            found.append(_Cell(number, (y.start, x.start, y.stop, x.stop), plane[y, x] == number))
    return sorted(found, key=lambda cell: cell.number)


def _instances(sample: Sample) -> Instances:
    assert sample.labels is not None
    cells = _cells(sample.labels)
    return Instances(sample.labels.shape[:2], np.asarray([cell.box for cell in cells], np.int32).reshape(-1, 4),
                     [cell.mask for cell in cells], np.ones(len(cells), np.float32))


def _ignored(labels: np.ndarray) -> np.ndarray:
    """[H, W] bool: some layer says "ignore", and no cell lies there."""
    return np.logical_and((labels < 0).any(axis=2), (labels <= 0).all(axis=2))


# ---------------------------------------------------------------- label files
def _write_layers(stem: Path, sample: Sample) -> Path:
    """One page per layer, the ids as they are."""
    assert sample.labels is not None
    path = _with_ending(stem, "_labels.tif")
    _write_planes(path, _no_foreground_mask(sample.labels))
    return path


def _write_label_image(stem: Path, sample: Sample) -> Path:
    """16-bit PNG where the numbers allow it, else 32-bit TIFF."""
    assert sample.labels is not None
    plane = _no_foreground_mask(sample.labels)[..., 0]
    if plane.max(initial=0) > MOST_IDS:
        plane = _renumbered(plane)
    if plane.max(initial=0) > MOST_IDS:
        path = _with_ending(stem, ".tif")
        tifffile.imwrite(path, plane.astype(np.uint32), photometric="minisblack", compression="zlib")
    else:
        path = _with_ending(stem, ".png")
        path.write_bytes(imagecodecs.png_encode(plane.astype(np.uint16)))
    return path


def _renumbered(plane: np.ndarray) -> np.ndarray:
    """Cells 1, 2, ... in the order of their ids, none of them 65535."""
    ids = cell_ids(plane)
    numbers = np.arange(1, len(ids) + 1, dtype=np.int32)
    return replace_ids(plane, ids, np.where(numbers > MOST_IDS, numbers + 1, numbers))


def _no_foreground_mask(labels: np.ndarray) -> np.ndarray:
    """A lone cell in several pieces gets number 2: nothing but 1 (or 255) beside 0 reads like a mask of all cells in one."""
    lone = len(cell_ids(labels)) == 1 and ndimage.label(labels[..., 0] > 0, np.ones((3, 3)))[1] > 1
    return np.where(labels > 0, np.int32(2), labels) if lone else labels


def _write_geojson(stem: Path, sample: Sample) -> Path:
    """QuPath's GeoJSON: detections, cells where nuclei are known, and annotations of class "Ignore*"."""
    assert sample.labels is not None
    nuclei = {} if sample.nuclei is None else {cell.number: cell for cell in _cells(sample.nuclei[..., None])}
    features = [{"type": "Feature", "geometry": _geometry(cell),
                 **({"nucleusGeometry": _geometry(nuclei[cell.number])} if cell.number in nuclei else {}),
                 "properties": {"objectType": "detection" if sample.nuclei is None else "cell", "name": str(cell.number)}}
                for cell in _cells(sample.labels)]
    ignored = _ignored(sample.labels)
    if ignored.any():
        features.append({"type": "Feature", "geometry": _geometry(_Cell(0, (0, 0, *ignored.shape), ignored)),
                         "properties": {"objectType": "annotation", "classification": {"name": "Ignore*"}}})
    path = _with_ending(stem, ".geojson")
    known = {} if sample.nuclei is None else {NUCLEI_KNOWN: True}       # also where no cell has one
    path.write_text(json.dumps({"type": "FeatureCollection", **known, "features": features}), encoding="utf-8")
    return path


def _geometry(cell: _Cell) -> dict[str, object]:
    polygons = [[_closed(ring + np.asarray(cell.box[:2])) for ring in rings] for rings in pixel_outlines(cell.mask)]
    kind, coordinates = ("Polygon", polygons[0]) if len(polygons) == 1 else ("MultiPolygon", polygons)
    return {"type": kind, "coordinates": coordinates}


def _closed(ring: np.ndarray) -> list[list[int]]:
    xy = ring[:, ::-1].tolist()
    return [*xy, xy[0]]


def _write_rois(stem: Path, sample: Sample) -> Path:
    """ImageJ's ROI set; a label image of zeros where there is no cell, as ImageJ has no empty set."""
    assert sample.labels is not None
    cells = _cells(sample.labels)
    if not cells:
        return _write_label_image(stem.with_name(stem.name + "_labels"), sample)
    path = _with_ending(stem, "_rois.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for cell in cells:
            archive.writestr(f"{cell.number:06d}.roi", _roi(cell).tobytes())
    return path


def _roi(cell: _Cell) -> ImagejRoi:
    """One outline as a traced selection; several, or far from the origin, as a composite."""
    y0, x0, y1, x1 = cell.box
    rings = [ring + np.asarray((y0, x0)) for piece in pixel_outlines(cell.mask) for ring in piece]
    roi = ImagejRoi(roitype=ROI_TYPE.TRACED, name=str(cell.number), top=y0, left=x0, bottom=y1, right=x1)
    if len(rings) == 1 and max(y1, x1) <= LARGEST_SHORT:
        roi.integer_coordinates = (rings[0] - np.asarray((y0, x0)))[:, ::-1].astype(np.int32)
        roi.n_coordinates = len(rings[0])
        return roi
    roi.roitype = ROI_TYPE.RECT
    roi.multi_coordinates = np.concatenate([_path(ring[:, ::-1]) for ring in rings])
    roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _path(xy: np.ndarray) -> np.ndarray:
    """Move to the first point (0), lines to the others (1), close (4)."""
    steps = np.column_stack([np.ones(len(xy)), xy])
    steps[0, 0] = 0
    return np.append(steps.ravel(), 4).astype(np.float32)


# ---------------------------------------------------------------- layouts
COLUMNS = ("stem", "split", "modality", "group", "pixel_size", "image_file", "label_file")


@contextmanager
def _manifest_writer(out: Path, *, write_labels: Callable[[Path, Sample], Path]) -> Iterator[Add]:
    """Images with a label file each beside them, in a folder for each split, and a manifest.csv that `FolderSource` reads."""
    with open(out / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)

        def add(split: str, stem: str, sample: Sample) -> None:
            home = out / split
            home.mkdir(exist_ok=True)
            image = write_image(home / stem, sample.image)
            label = None if sample.labels is None else write_labels(home / stem, sample)
            size = "" if sample.pixel_size is None else repr(float(sample.pixel_size))
            table.writerow([stem, split, sample.modality, sample.group, size, image.relative_to(out).as_posix(),
                            "" if label is None else label.relative_to(out).as_posix()])

        yield add


@contextmanager
def _coco_folder(out: Path) -> Iterator[Add]:
    """`images/` and one `<split>.json` for each split; ignored pixels are crowd regions."""
    (out / "images").mkdir()
    with ExitStack() as files:
        writers: dict[str, Callable[..., None]] = {}

        def add(split: str, stem: str, sample: Sample) -> None:
            if split not in writers:
                writers[split] = files.enter_context(coco_writer(out / f"{split or 'annotations'}.json"))
            assert sample.labels is not None
            image = write_image(out / "images" / stem, sample.image)
            writers[split](image.name, _instances(sample), ignore=_ignored(sample.labels))

        yield add


@contextmanager
def _cellpose_folder(out: Path) -> Iterator[Add]:
    """`train/x_img.png` with `train/x_masks.png`, and the same in `test/`."""
    def add(split: str, stem: str, sample: Sample) -> None:
        home = out / split
        home.mkdir(exist_ok=True)
        write_image(home / f"{stem}_img", sample.image)
        _write_label_image(home / f"{stem}_masks", sample)

    yield add


@contextmanager
def _bbbc038_folder(out: Path) -> Iterator[Add]:
    """`stage1_train/x/images/x.png` with one 0/255 file for each cell in `stage1_train/x/masks/`; test is `stage1_test`."""
    def add(split: str, stem: str, sample: Sample) -> None:
        assert sample.labels is not None
        home = out / f"stage1_{split}" / stem
        (home / "images").mkdir(parents=True)
        (home / "masks").mkdir()
        write_image(home / "images" / stem, sample.image)
        # An empty folder may be a lost one: of no cells the one mask is empty.
        for cell in _cells(sample.labels) or [_Cell(0, (0, 0, 0, 0), np.zeros((0, 0), bool))]:
            mask = np.zeros(sample.labels.shape[:2], np.uint8)
            y0, x0, y1, x1 = cell.box
            mask[y0:y1, x0:x1][cell.mask] = 255
            (home / "masks" / f"{cell.number:06d}.png").write_bytes(imagecodecs.png_encode(mask))

    yield add


def _stream(out: Path, parts: Mapping[str, _Samples], *, writer: Callable[[Path], Writer]) -> None:
    with writer(out) as add:
        for split, samples in parts.items():
            for stem, sample in samples:
                add(split, stem, sample)


def _write_tfds(out: Path, parts: Mapping[str, _Samples]) -> None:
    """array_record files of tensorflow-datasets, `cells/1.0.0/`, which hold samples whole."""
    import tensorflow_datasets as tfds  # slow to import, like the builders

    from jaxcell.data.tfds.builders import SourceBuilder

    class Cells(SourceBuilder, skip_registration=True):     # type: ignore[call-arg]
        """Cells in microscopy images, converted by jaxcell."""

        name, open = "cells", staticmethod(lambda folder: _Joined(parts))       # type: ignore[assignment]

    builder = Cells(data_dir=out, file_format="array_record")
    with tempfile.TemporaryDirectory() as nothing, redirect_stdout(sys.stderr):     # (it tells of a download)
        builder.download_and_prepare(download_dir=nothing, download_config=tfds.download.DownloadConfig(
            manual_dir=nothing, compute_stats=tfds.download.ComputeStatsMode.SKIP))


OVERLAPS, IGNORE, UNLABELLED, NUCLEI = "overlaps", "ignored pixels", "images without labels", "nuclei"
UNKNOWN_NUCLEI = "pixels whose nuclei are not known (now none)"
PIXEL_SIZE, MODALITY, GROUP = "pixel size", "modality", "group"


@dataclass(frozen=True)
class Layout:
    """A way to lay out a data set on disk.

    Attributes:
      write: (empty folder, split -> samples) writes all of them.
      holds: what of a sample it can hold beside pixels and the cells of one label image.
      splits: names of splits -> its own names.
      text: one line for --help.
    """

    write: Callable[[Path, Mapping[str, _Samples]], None]
    holds: frozenset[str]
    splits: Mapping[str, str]
    text: str


_MANIFEST = frozenset({OVERLAPS, UNLABELLED, PIXEL_SIZE, MODALITY, GROUP})
_ANY_SPLIT = {split: split for split in ("", "train", "val", "test", "unlabelled")}
_TRAIN_TEST = {"": "train", "train": "train", "val": "test", "test": "test"}

LAYOUTS: Mapping[str, Layout] = {
    "folder": Layout(partial(_stream, writer=partial(_manifest_writer, write_labels=_write_layers)), _MANIFEST | {IGNORE},
                     _ANY_SPLIT, "images, label layers as 32-bit TIFF, manifest.csv (kind folder)"),
    "coco": Layout(partial(_stream, writer=_coco_folder), frozenset({OVERLAPS, IGNORE}), _ANY_SPLIT,
                   "images/ and one JSON file for each split (kind coco)"),
    "cellpose": Layout(partial(_stream, writer=_cellpose_folder), frozenset(), _TRAIN_TEST,
                       "train/x_img.png, train/x_masks.png, test/ (kind cellpose)"),
    "bbbc038": Layout(partial(_stream, writer=_bbbc038_folder), frozenset({OVERLAPS}), _TRAIN_TEST,
                      "stage1_train/x/images/x.png, one mask file for each cell (kind bbbc038)"),
    "qupath": Layout(partial(_stream, writer=partial(_manifest_writer, write_labels=_write_geojson)),
                     _MANIFEST | {IGNORE, NUCLEI}, _ANY_SPLIT,
                     "images, QuPath's GeoJSON beside them, manifest.csv (kind folder)"),
    "imagej": Layout(partial(_stream, writer=partial(_manifest_writer, write_labels=_write_rois)), _MANIFEST, _ANY_SPLIT,
                     "images, ImageJ's ROI sets beside them, manifest.csv (kind folder)"),
    "tfds": Layout(_write_tfds, _MANIFEST | {IGNORE, NUCLEI, UNKNOWN_NUCLEI}, _ANY_SPLIT,
                   "array_record files of tensorflow-datasets, cells/1.0.0/ (kind tfds)"),
}
"""name -> layout."""


# ---------------------------------------------------------------- conversion
def convert(parts: Mapping[str, Source], out: str | Path, *, kind: str, overlaps: str = "refuse", ignored: str = "refuse",
            unlabelled: str = "refuse", progress: bool = False) -> Written:
    """Writes all samples of some splits in a layout; what was written appears under its name when all of it is there.

    Args:
      parts: split ("" for none) -> source.
      out: folder to make; it must not exist, or be empty.
      kind: a key of `LAYOUTS`.
      overlaps: where the layout holds no overlaps and cells do: "refuse"; "top" gives the pixels to the cell with the largest
        number; "grow" shares them out by growing the cells (see `resolve_overlaps`).
      ignored: where the layout cannot mark pixels to be ignored: "refuse", or "background" makes them that.
      unlabelled: where the layout has no place for images without annotation: "refuse", or "skip".
      progress: show a progress bar.

    Raises:
      ValueError: an unknown kind or choice, a folder that is not empty, names that would clash, or a sample that the layout
        cannot hold; then nothing is left behind.
    """
    for value, known in ((kind, tuple(LAYOUTS)), (overlaps, ("refuse", "top", "grow")), (ignored, ("refuse", "background")),
                         (unlabelled, ("refuse", "skip"))):
        if value not in known:
            raise ValueError(f"convert: {value!r} is no choice; it is one of {', '.join(known)}.")
    layout, out, written = LAYOUTS[kind], Path(out).absolute(), Written()
    splits = _splits(parts, layout, kind)
    stems = _stems(parts, splits)
    if kept := splits.items() - {(name, name) for name in splits}:
        written.lost |= Counter({f"split {name or '(none)'} is called {new} there": len(parts[name]) for name, new in kept})
    fit = partial(_fitted, layout=layout, kind=kind, overlaps=overlaps, ignored=ignored, unlabelled=unlabelled)
    with _new_folder(out) as folder, tqdm(total=sum(map(len, parts.values())), unit="image", disable=not progress) as bar:
        layout.write(folder, {splits[split]: _Samples(source, stems[split], fit, written, bar)
                              for split, source in parts.items()})
    return written


def _splits(parts: Mapping[str, Source], layout: Layout, kind: str) -> dict[str, str]:
    """Split -> what the layout calls it."""
    if unknown := [split for split in parts if split not in layout.splits]:
        known = ", ".join(sorted(set(layout.splits.values()) - {""}))
        raise ValueError(f"{kind}: has no place for the split {unknown[0]!r}; it has {known}. Name it anew, for example "
                         f"--split {unknown[0]}=test.")
    names = {split: layout.splits[split] for split in parts}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{kind}: the splits {', '.join(names)} would become {', '.join(names.values())}; two cannot be one. "
                         "Choose splits with --split, and convert the others elsewhere.")
    return names


def _stems(parts: Mapping[str, Source], splits: Mapping[str, str]) -> dict[str, list[str]]:
    """Split -> a file name stem for each sample: its name's, with its split before it where several share one."""
    plain = {split: [stem_of(name.replace("\\", "/").strip("/").replace("/", "_")) for name in source.names]
             for split, source in parts.items()}
    counts = Counter(stem for stems in plain.values() for stem in stems)
    if max(counts.values(), default=0) > 1:
        plain = {split: [f"{splits[split]}_{stem}" if split else stem for stem in stems] for split, stems in plain.items()}
        counts = Counter(stem for stems in plain.values() for stem in stems)
    if twice := [stem for stem, count in counts.items() if count > 1]:
        raise ValueError(f"convert: {counts[twice[0]]} images would be called {twice[0]!r}; rename all but one of them.")
    return plain


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """An empty folder that gets the name `out` when the block ends well, and disappears if not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is not empty; nothing is overwritten. Name another folder.")
    part = out.with_name(out.name + ".part")
    if part.exists():
        raise ValueError(f"{part}: is left from a conversion that was interrupted. Remove it.")
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(out)
    except BaseException:
        shutil.rmtree(part)
        raise


def _fitted(sample: Sample, lost: Counter[str], *, layout: Layout, kind: str, overlaps: str, ignored: str, unlabelled: str
            ) -> Sample | None:
    """The sample as far as the layout holds it, what is lost counted; None where it is to be left out."""
    name = f"sample {sample.name!r}"
    if sample.labels is None and UNLABELLED not in layout.holds:
        if unlabelled == "refuse":
            raise ValueError(f"{name}: has no labels, and {kind} has no place for such images. Leave them out with "
                             f"--unlabelled=skip, or convert to {_holding(UNLABELLED)}.")
        lost["images without labels, left out"] += 1
        return None
    unknown = NUCLEI in layout.holds and sample.nuclei is not None and bool((sample.nuclei < 0).any())
    for what, there in ((NUCLEI, sample.nuclei is not None), (UNKNOWN_NUCLEI, unknown),
                        (PIXEL_SIZE, sample.pixel_size is not None),
                        (MODALITY, sample.modality != "unknown"), (GROUP, sample.group not in ("", sample.name))):
        if there and what not in layout.holds:
            lost[f"{what}, in images"] += 1
    if sample.labels is None:
        return sample
    labels = sample.labels
    if OVERLAPS not in layout.holds and labels.shape[2] > 1:
        labels = _one_layer(labels, kind, name, overlaps, lost)
    if IGNORE not in layout.holds and (pixels := int(np.count_nonzero(_ignored(labels)))):
        if ignored == "refuse":
            raise ValueError(f"{name}: has {pixels} pixels to be ignored (-1), which {kind} cannot mark. Make them background "
                             f"with --ignored=background, or convert to {_holding(IGNORE)}.")
        lost["pixels to be ignored, now background, in images"] += 1
        labels = np.maximum(labels, 0)
    return replace(sample, labels=labels)


def _holding(what: str) -> str:
    """The layouts that hold it."""
    names = [name for name, layout in LAYOUTS.items() if what in layout.holds]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _one_layer(labels: np.ndarray, kind: str, name: str, overlaps: str, lost: Counter[str]) -> np.ndarray:
    shared = np.count_nonzero((labels > 0).sum(axis=2) > 1)
    if shared and overlaps == "refuse":
        raise ValueError(f"{name}: has {shared} pixels of more than one cell, and {kind} gives each pixel to one. Choose "
                         "--overlaps=top (the cell of the largest number) or --overlaps=grow, or convert to "
                         f"{_holding(OVERLAPS)}.")
    flat = resolve_overlaps(labels) if overlaps == "grow" else labels.max(axis=2)
    flat[_ignored(labels)] = -1
    if shared:
        lost["overlaps, each pixel now in one cell, in images"] += 1
        if gone := len(cell_ids(labels)) - len(cell_ids(flat)):
            lost["cells that lay wholly in others"] += gone
    return flat[..., None]
