"""What is wrong, or merely noteworthy, in data sets before anybody trains on them, and what jaxcell will do about it.

Samples are read one at a time; what is kept of each is `SampleFacts`. The rules are a table: a new one is an entry in `_rules`,
or a function in `ACROSS` where it compares samples. `check_report.py` puts the findings into words.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxcell.data.facts import ORIENTATIONS, CellFacts, SampleFacts, orientations, sample_facts
from jaxcell.data.normalize import fit_normalizer
from jaxcell.data.sources import Source
from jaxcell.data.sources.folder import name_folders, rename_labels, rename_splits, unread_images
from jaxcell.data.validate import validate

__all__ = ["SEVERITIES", "UNUSABLE", "Finding", "Report", "check_sources", "exit_status"]

SEVERITIES = ("error", "warning", "note")
"""error: it will be refused, or training would fail. warning: probably not what you want. note: handled, and how."""

UNUSABLE = "an image that cannot be used"
"""The rule of samples of which there are no facts."""

# Measured on the 615 images of five public sets: the labels of every image fit by 0.67 or more. Mirrored, turned or from another
# image they fit by about 0.5, unless the image is symmetric (two yeasts in a trap) or the other one a frame of the same movie.
LOW_FIT, GOOD_FIT = 0.62, 0.75
# There, no two images of different groups have thumbnails more alike than 0.70 (0.56 turned); consecutive frames of a movie have
# 0.99, and copies in 8 bits, with gamma 0.6 to 1.6, noise or JPEG compression 0.95 or more.
ALIKE = 0.9
TINY = 10               # px; fewer have no shape, and one pixel more or less decides the IoU
SPECK, GIANT = 0.05, 10     # times the median area of the image's cells: debris that was labelled, clumps that were not parted
FEW_CELLS = 5           # the median of fewer says nothing about them
MASK_PIECES = 5         # one "cell" in so many pieces is rather the mask of all
MOST_OF_IMAGE = 0.5     # share of the image: a cell that covers more may be the background
SATURATED = 0.05        # share of the values; fewer are bright specks
DARK = 0.1              # of the range [0, 1]: an image that spans less after normalisation was normalised wrongly
PIXEL_SIZES = 1.5       # largest over smallest: beyond the random rescaling of the common policies
CAMERA_BITS = 12        # of the commonest cameras; 13 to 15 used bits say little, a dim image uses fewer
MOST_SHARE = 0.5        # of the annotated images: more without cells are rather lost labels than background


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
      severity: one of `SEVERITIES`.
      rule: what was found, in a few words; the same words every time.
      part: of the checked parts, or both of two that were compared.
      images: names of the samples concerned, each with what is special about it in brackets, if anything is.
      cells: how many cells are concerned; None where the finding is about images.
      action: what jaxcell does about it, or what you can do.
    """

    severity: str
    rule: str
    part: str
    images: tuple[str, ...]
    cells: int | None
    action: str


@dataclass(frozen=True)
class Report:
    """Facts of every sample that could be read, by part, and the findings, gravest first."""

    parts: Mapping[str, Sequence[SampleFacts]]
    findings: Sequence[Finding]


def check_sources(parts: Mapping[str, Source | ValueError | FileNotFoundError], *, normalize: Mapping[str, Any] | None = None,
                  channels: int = 3, planes: Sequence[int] | None = None, crop: int | None = None, min_area: int | None = None,
                  max_cells: int | None = None, labelled: Collection[str] = (), some_labelled: Collection[str] = (),
                  skip_unreadable: bool = False, folders: Mapping[Path, Collection[str]] | None = None, progress: bool = False
                  ) -> Report:
    """Reads every sample of every part once and says what is noteworthy.

    Args:
      parts: "split" or "split/name" -> source, or the error with which it refused to open. Samples of different splits must
        have nothing to do with each other; groups are compared between parts of one name.
      normalize: settings of `fit_normalizer`, if they are known.
      channels: of the network; matters with `normalize`.
      planes: which planes of the images it takes; matters with `normalize`.
      crop: side of the training crops, pixels.
      min_area: training ignores smaller cells, pixels.
      max_cells: most cells of one crop that training takes.
      labelled: splits in which samples without labels are errors: they are to be trained on or scored against.
      some_labelled: splits in which it is an error that no sample has labels.
      skip_unreadable: what cannot be read will be left out; else it will end the run.
      folders: folder of images -> splits of it among the parts; what else lies there is named.
      progress: show a progress bar.
    """
    facts: dict[str, list[SampleFacts]] = {}
    findings = [finding for folder, splits in (folders or {}).items() for finding in _unread(folder, splits)]
    normalizer = None if normalize is None else partial(fit_normalizer, settings=normalize, channels=channels, planes=planes)
    for part, source in parts.items():
        facts[part] = []
        if isinstance(source, Exception):
            findings.append(Finding("error", "a source that cannot be opened", part, (), None, str(source)))
            continue
        for found in _read(part, source, normalizer, skip=skip_unreadable, progress=progress):
            (facts[part] if isinstance(found, SampleFacts) else findings).append(found)     # type: ignore[arg-type]
        findings += _repeated_names(part, source)
    rename = rename_labels([name for source in parts.values() if not isinstance(source, Exception) for name in source.names])
    rules = _rules(crop=crop, min_area=min_area, max_cells=max_cells, normalized=normalize is not None)
    for part, samples in facts.items():
        findings += [finding for rule in rules if (finding := _apply(rule, part, samples))]
        findings += [Finding("error", "images that the network cannot take", part, (s.name,), None, s.refusal)
                     for s in samples if s.refusal]
        split = part.partition("/")[0]
        findings += _annotation(part, samples, labelled=split in labelled, some=split in some_labelled, remedy=rename)
        findings += _unused_bits(part, samples) + (_planes(part, samples) if normalize is None else [])
    for compare in ACROSS:
        findings += compare(facts)
    return Report(facts, sorted(_merged(findings), key=lambda f: SEVERITIES.index(f.severity)))


def exit_status(report: Report, *, strict: bool = False) -> int:
    """1 if there are errors (`strict`: or warnings), else 0."""
    return int(any(f.severity == "error" or (strict and f.severity == "warning") for f in report.findings))


def _read(part: str, source: Source, normalizer: Callable[[np.ndarray], Any] | None, *, skip: bool, progress: bool
          ) -> Iterator[SampleFacts | Finding]:
    for index in tqdm(range(len(source)), desc=part or None, unit="image", disable=not progress):
        name = source.names[index]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                sample = source[index]
                validate(sample)
                found: SampleFacts | Finding = sample_facts(sample, low_fit=LOW_FIT, normalizer=normalizer)
            except Exception as error:      # whatever is wrong with one sample, the others are looked at too
                known = isinstance(error, (ValueError, FileNotFoundError))
                message = str(error) if known else f"{type(error).__name__}: {error}"
                found = Finding("warning" if skip else "error", UNUSABLE, part, (name,), None, message + (
                    " (It will be left out: config.data.unreadable is skip.)" if skip else ""))
        yield found
        if caught:
            yield Finding("warning", "a warning while reading", part, (name,), None, str(caught[0].message))


def _repeated_names(part: str, source: Source) -> list[Finding]:
    twice = tuple(f"{name} ({n} times)" for name, n in Counter(source.names).items() if n > 1)
    return [Finding("warning", "names that are not unique", part, twice, None,
                    "reports and predictions cannot tell these images apart; rename them")] if twice else []


def _unread(folder: Path, splits: Collection[str]) -> list[Finding]:
    found = unread_images(folder, splits)
    images = tuple(image.relative_to(folder).as_posix() for images in found.values() for image in images)
    return [Finding("warning", "images that are not read", "all", images, None,
                    f"passed over: {name_folders(found, folder)}; move them beside those that are read, name their folder by "
                    f"itself, or list all in a manifest.csv.{rename_splits(folder)}")] if found else []


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that differ in the images alone become one: ten broken files of one kind are ten lines, but a warning once."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.severity, finding.rule, finding.part, finding.action].append(finding)
    return [replace(group[0], images=tuple(image for finding in group for image in finding.images)) for group in groups.values()]


# ---------------------------------------------------------------- rules that look at one sample
@dataclass(frozen=True)
class _Rule:
    severity: str
    name: str
    count: Callable[[SampleFacts], int]         # 0: this sample is not concerned
    action: str
    of_cells: bool = False                      # `count` counts cells
    detail: Callable[[SampleFacts], str] = lambda sample: ""


def _cells(count: Callable[[CellFacts], Any]) -> Callable[[SampleFacts], int]:
    return lambda sample: 0 if sample.cells is None else int(count(sample.cells))


def _rules(*, crop: int | None, min_area: int | None, max_cells: int | None, normalized: bool) -> list[_Rule]:
    rules = [
        _Rule("warning", "even images", lambda s: s.image.constant,
              "they become 0 everywhere and teach nothing; look whether the files are what they should be",
              detail=lambda s: f"all {s.image.percentiles[0]:g}"),
        _Rule("note", "even planes", lambda s: bool(s.image.flat_planes),
              "they are taken like the others; choose among planes with config.data.planes if they hold nothing",
              detail=lambda s: f"plane {', '.join(map(str, s.image.flat_planes))} of {s.image.shape[2]}"),
        _Rule("note", "saturated images", lambda s: s.image.saturated > SATURATED and not s.image.constant,
              "the values are taken as they are; what was brighter is lost (a white background may well be saturated)",
              detail=lambda s: f"{s.image.saturated:.0%}"),
        _Rule("warning", "labels that do not fit the image", _cells(lambda c: c.fit is not None and c.fit < LOW_FIT),
              "the outlines do not follow the image's edges better than chance; look at them with `jaxcell data view`, and check "
              "the pairing of files", detail=_fit_in_words),
        _Rule("warning", "masks of all cells in one", _cells(lambda c: len(c) == 1 and c.pieces[0] >= MASK_PIECES),
              "all pieces together count as one cell; give each cell a number of its own (for cells that do not touch: "
              "skimage.measure.label)", detail=lambda s: f"1 cell of {_of(s).pieces[0]} pieces"),
        _Rule("warning", "cells over half of the image", lambda s: _count_areas(s, lambda a: a > MOST_OF_IMAGE * _pixels(s)),
              "they are taken as cells; set background to 0 in the labels if that is what they are", of_cells=True),
        _Rule("note", f"cells under {TINY} px", lambda s: _count_areas(s, lambda a: a < TINY),
              "they are cells like others, in training and scores" if min_area is None else
              f"training ignores those under {min_area} px (config.targets.min_area); scores count all", of_cells=True),
        _Rule("note", f"specks (under {SPECK:.0%} of their image's median cell)", lambda s: _count_areas(s, _specks),
              "they are cells like others, in training and scores; remove them from the labels if they are debris",
              of_cells=True),
        _Rule("note", f"giants (over {GIANT} times their image's median cell)", lambda s: _count_areas(s, _giants),
              "they are cells like others; look whether clumps were labelled as one", of_cells=True),
        _Rule("note", "gaps in the numbering", _cells(lambda c: c.largest_id != len(c)),
              "none is needed: cells are renumbered where numbers must be close", detail=lambda s: _gaps(_of(s))),
        _Rule("note", "cells in several pieces", _cells(lambda c: np.count_nonzero(c.pieces > 1)),
              "each is kept as one cell and scored as such; systems that describe a cell by one outline ignore it in training "
              "(its pixels become -1)", of_cells=True),
        _Rule("note", "cells with holes", _cells(lambda c: np.count_nonzero(c.holes)),
              "the holes are kept in masks; systems that describe a cell by one outline fill them", of_cells=True),
        _Rule("note", "cells at the border", _cells(lambda c: np.count_nonzero(c.at_border)),
              "they are trained on and scored; some published scores leave them out", of_cells=True),
        _Rule("note", "cells that overlap", _cells(lambda c: c.shared > 0),
              "both keep their pixels, in different label layers; a single label image could not hold them",
              detail=lambda s: f"{_of(s).shared} px"),
        _Rule("note", "cells wholly inside others", _cells(lambda c: np.count_nonzero(c.hidden)),
              "they are kept in their own layer; where one label image is made of the layers they vanish", of_cells=True),
        _Rule("note", "pixels to be ignored", _cells(lambda c: c.ignored > 0),
              "they count neither as cell nor as background, in training and scores",
              detail=lambda s: f"{_of(s).ignored:.1%}"),
        _Rule("warning", "pixels to be ignored in one layer that are background in another",
              _cells(lambda c: c.partly_ignored > 0), "scores leave them out, but targets that ask all layers train them as "
              "background; write -1 into every layer", detail=lambda s: f"{_of(s).partly_ignored} px"),
        _Rule("warning", "nuclei without a cell", _cells(lambda c: c.strange_nuclei),
              "nuclei carry the ids of their cells; these have an id that no cell has", of_cells=True),
    ]
    if normalized:
        rules.append(
            _Rule("warning", "images almost without contrast after normalisation",
                  lambda s: s.normalized is not None and s.normalized[1] - s.normalized[0] < DARK and not s.image.constant,
                  "the network would see next to nothing; choose another config.data.normalize.name, such as percentile",
                  detail=lambda s: "{:.2f} to {:.2f}".format(*(s.normalized or (0, 0)))))
    if crop is not None:
        rules += [
            _Rule("note", "images smaller than the crop", lambda s: min(s.image.shape[:2]) < crop,
                  f"zeros are added at the bottom and right, up to {crop} px (config.data.crop)", detail=_size),
            _Rule("warning", "cells longer than the crop", _cells(lambda c: np.count_nonzero(c.extents > crop)),
                  f"no crop of {crop} px shows them whole; enlarge config.data.crop", of_cells=True),
        ]
    if crop is not None and max_cells is not None:
        rules.append(_Rule("warning", "more cells than training takes", lambda s: _cells_of_crop(s, crop) > max_cells,
                           f"about so many lie in a crop, of which {max_cells} drawn at random are used; enlarge "
                           "config.targets.max_cells", detail=lambda s: f"{_cells_of_crop(s, crop)} a crop"))
    return rules


def _apply(rule: _Rule, part: str, samples: Sequence[SampleFacts]) -> Finding | None:
    counts = [(sample, count) for sample in samples if (count := int(rule.count(sample)))]
    if not counts:
        return None
    images = tuple(f"{s.name} ({text})" if (text := rule.detail(s) or (str(n) if rule.of_cells else "")) else s.name
                   for s, n in counts)
    return Finding(rule.severity, rule.name, part, images, sum(n for _, n in counts) if rule.of_cells else None, rule.action)


def _of(sample: SampleFacts) -> CellFacts:
    assert sample.cells is not None
    return sample.cells


def _pixels(sample: SampleFacts) -> int:
    return sample.image.shape[0] * sample.image.shape[1]


def _size(sample: SampleFacts) -> str:
    return f"{sample.image.shape[0]} x {sample.image.shape[1]}"


def _count_areas(sample: SampleFacts, test: Callable[[np.ndarray], Any]) -> int:
    return 0 if sample.cells is None else int(np.count_nonzero(test(sample.cells.areas)))


def _specks(areas: np.ndarray) -> Any:
    return areas < SPECK * np.median(areas) if len(areas) >= FEW_CELLS else ()


def _giants(areas: np.ndarray) -> Any:
    return areas > GIANT * np.median(areas) if len(areas) >= FEW_CELLS else ()


def _gaps(cells: CellFacts) -> str:
    return f"{len(cells)} cells, numbers up to {cells.largest_id}"


def _cells_of_crop(sample: SampleFacts, crop: int) -> int:
    share = np.prod(np.minimum(1, crop / np.asarray(sample.image.shape[:2])))
    return 0 if sample.cells is None else round(len(sample.cells) * float(share))


def _fit_in_words(sample: SampleFacts) -> str:
    cells = _of(sample)
    best = max(cells.turned, default=0.0)
    words = f"fit {cells.fit:.2f}"
    return words if best < GOOD_FIT else f"{words}, but {best:.2f} {ORIENTATIONS[1 + cells.turned.index(best)]}"


# ---------------------------------------------------------------- rules that look at one part
def _annotation(part: str, samples: Sequence[SampleFacts], *, labelled: bool, some: bool, remedy: str) -> list[Finding]:
    bare = tuple(s.name for s in samples if s.cells is None)
    annotated = [s for s in samples if s.cells is not None]
    empty = tuple(s.name for s in annotated if s.cells is not None and not len(s.cells))
    found = []
    if bare and labelled:
        found.append(Finding("error", "images without annotation", part, bare, None,
                             "training and evaluation stop at them; set labelled=True of the source to be told at the start"))
    elif bare and some and not annotated:
        found.append(Finding("error", "no image is annotated", part, bare, None,
                             "training refuses them; the labels of x.png are x_label.png, x_masks.tif or the like, see "
                             f"docs/data.md.{remedy}"))
    elif bare:
        found.append(Finding("warning" if annotated else "note", "images without annotation", part, bare, None,
                             "they can be segmented, but neither trained on nor scored; see whether label files are missing"))
    if not empty:
        return found
    if len(empty) == len(annotated):
        found.append(Finding("error" if labelled else "warning", "no cells at all", part, empty, None,
                             "there is nothing to learn or to score; check the label files"))
    else:
        many = len(empty) > MOST_SHARE * len(annotated)
        found.append(Finding("warning" if many else "note", "images without cells", part, empty, None,
                             "they are background, in training and scores" + ("; so many may be lost labels" if many else "")))
    return found


def _planes(part: str, samples: Sequence[SampleFacts]) -> list[Finding]:
    """Without a network: numbers of planes of which none, or not one for all, fits."""
    counts = Counter(s.image.shape[2] for s in samples)
    odd = tuple(f"{s.name} ({s.image.shape[2]} planes)" for s in samples if s.image.shape[2] not in (1, 3, 4))
    if odd:
        return [Finding("warning" if len(counts) > 1 else "note", "images of other than 1, 3 or 4 planes", part, odd, None,
                        "a network of 1 or 3 channels refuses them until config.data.planes chooses among the planes")]
    common = counts.most_common(1)[0][0] if counts else 0
    rest = tuple(f"{s.name} ({s.image.shape[2]})" for s in samples if s.image.shape[2] != common)
    return [Finding("note", f"images of other than {common} plane{'s' * (common != 1)}, which most have", part, rest, None,
                    "grey is repeated and colour becomes its luminance as the network needs; of four planes the first three "
                    "count")] if rest else []


def _unused_bits(part: str, samples: Sequence[SampleFacts]) -> list[Finding]:
    wide = [s for s in samples if s.image.dtype == "uint16"]
    bits = _bits([s.image.used_bits for s in wide])
    return [Finding("note", f"16-bit files of {bits} bits", part, tuple(s.name for s in wide), None,
                    "the percentile and challenge normalisers measure the range; type_range would leave the images dark")
            ] if 0 < bits <= CAMERA_BITS else []


def _bits(used: Iterable[int]) -> int:
    """How many bits hold the values, whose lowest may be empty because they were shifted; 0 of no values but 0."""
    union = int(np.bitwise_or.reduce(np.fromiter(used, np.int64)))
    return (union // (union & -union)).bit_length() if union else 0


# ---------------------------------------------------------------- rules that compare samples
Facts = Mapping[str, Sequence[SampleFacts]]


def _by_split(facts: Facts) -> dict[str, list[tuple[str, SampleFacts]]]:
    """Split -> (name of the part, facts) of its samples."""
    splits: dict[str, list[tuple[str, SampleFacts]]] = defaultdict(list)
    for part, samples in facts.items():
        split, _, name = part.partition("/")
        splits[split] += [(name, sample) for sample in samples]
    return splits


def _identical_images(facts: Facts) -> list[Finding]:
    found = []
    for split, samples in _by_split(facts).items():
        first: dict[bytes, str] = {}
        twice = tuple(f"{s.name} (is {first[s.image.digest]})" for _, s in samples
                      if first.setdefault(s.image.digest, s.name) != s.name and not s.image.constant)
        if twice:
            found.append(Finding("warning", "identical images", split, twice, None,
                                 "each counts as an image of its own; remove copies, above all if their labels differ"))
    return found


def _identical_labels(facts: Facts) -> list[Finding]:
    first: dict[bytes, SampleFacts] = {}
    twice: dict[str, list[str]] = defaultdict(list)
    for part, samples in facts.items():
        for sample in samples:
            if sample.cells is None or len(sample.cells) < 2:
                continue
            other = first.setdefault(sample.cells.digest, sample)
            if other.image.digest != sample.image.digest:
                twice[part].append(f"{sample.name} (like {other.name})")
    return [Finding("warning", "identical labels of different images", part, tuple(names), None,
                    "one of them has the labels of the other; check the pairing of files") for part, names in twice.items()]


def _groups_across(facts: Facts) -> list[Finding]:
    found = []
    for (split, samples), (other, others) in combinations(_by_split(facts).items(), 2):
        # A sample that names no group is one by itself, and `1.png` of two folders is not one field.
        known = {(part, s.group) for part, s in samples if s.group != s.name}
        shared = tuple(f"{s.name} (group {s.group})" for part, s in others if s.group != s.name and (part, s.group) in known)
        if shared:
            found.append(Finding("warning", "groups in two splits", f"{split} and {other}", shared, None,
                                 "images of one field, slide or movie in training and validation make scores look better than "
                                 "they are; put a group into one split"))
    return found


def _alike_across(facts: Facts) -> list[Finding]:
    found = []
    for (split, samples), (other, others) in combinations(_by_split(facts).items(), 2):
        pairs = tuple(f"{others[j][1].name} ({how} {samples[i][1].name})"
                      for i, j, how in _alike([s for _, s in samples], [s for _, s in others]))
        if pairs:
            found.append(Finding("warning", "images alike in two splits", f"{split} and {other}", pairs, None,
                                 "copies, or frames of one movie: scores on them say little about new images; move them into one "
                                 "split"))
    return found


def _alike(left: Sequence[SampleFacts], right: Sequence[SampleFacts]) -> Iterator[tuple[int, int, str]]:
    """(index in `left`, index in `right`, how they are alike) for each of `right` that has its like in `left`: the most alike."""
    if not left:
        return
    table = np.stack([s.image.thumbnail.ravel() for s in left]).astype(np.float32)
    digests = {s.image.digest: i for i, s in enumerate(left) if not s.image.constant}
    for j, sample in enumerate(right):
        if sample.image.digest in digests:
            yield digests[sample.image.digest], j, "is"
            continue
        turned = np.stack([other.ravel() for other in orientations(sample.image.thumbnail)], axis=1)
        products = table @ turned.astype(np.float32)
        i, turn = np.unravel_index(int(products.argmax()), products.shape)
        if products[i, turn] >= ALIKE:
            yield int(i), j, f"{products[i, turn]:.2f} like{f', {ORIENTATIONS[turn]},' if turn else ''}"


def _new_modalities(facts: Facts) -> list[Finding]:
    splits = _by_split(facts)
    if "train" not in splits:
        return []
    known = {s.modality for _, s in splits["train"]}
    return [Finding("warning", "modalities that training lacks", split, strange, None,
                    "the network never sees their kind; expect low scores on them")
            for split, samples in splits.items()
            if (strange := tuple(f"{s.name} ({s.modality})" for _, s in samples if s.modality not in known))]


def _pixel_sizes(facts: Facts) -> list[Finding]:
    samples = [s for part in facts.values() for s in part]
    sizes = [s.pixel_size for s in samples if s.pixel_size is not None]
    if not sizes or max(sizes) < PIXEL_SIZES * min(sizes):
        return []
    middle = float(np.median(sizes))
    far = tuple(f"{s.name} ({s.pixel_size:g} um)" for s in samples if s.pixel_size is not None
                and not middle / PIXEL_SIZES < s.pixel_size < middle * PIXEL_SIZES)
    return [Finding("warning", "pixel sizes that differ", "all", far, None,
                    f"images are not rescaled: cells of one kind come in several sizes (the median pixel has {middle:g} um)")]


ACROSS: tuple[Callable[[Facts], list[Finding]], ...] = (
    _identical_images, _identical_labels, _groups_across, _alike_across, _new_modalities, _pixel_sizes)
