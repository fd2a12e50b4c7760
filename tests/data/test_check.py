"""Planted faults: each is found and named, and nothing else is; sound data give no finding at all."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest

from jaxcell.data.check import SEVERITIES, check_sources, exit_status
from jaxcell.data.check_report import to_json, to_text
from jaxcell.data.facts import ORIENTATIONS, fit_of_outlines, image_facts, orientations, thumbnail
from jaxcell.data.sources.folder import FolderSource
from jaxcell.types import Sample


class Samples(list):
    """A source in memory; an exception in a place is raised there."""

    @property
    def names(self):
        return [f"x{i}" if isinstance(s, Exception) else s.name for i, s in enumerate(self)]

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if isinstance(sample, Exception):
            raise sample
        return sample


def sample(number: int, *, count: int = 9, shape: tuple[int, int] = (96, 128)) -> Sample:
    """Discs of several brightnesses, well inside and apart, on noise."""
    rng = np.random.default_rng(number)
    labels, image, free = np.zeros(shape, np.int32), rng.normal(60, 2, shape), np.zeros(shape, bool)
    free[12:-12, 12:-12] = True
    for k in range(1, count + 1):
        y, x = (int(v) for v in rng.choice(np.argwhere(free)))
        disc = cv2.circle(np.zeros(shape, np.uint8), (x, y), int(rng.integers(5, 8)), 1, -1) > 0
        labels[disc] = k
        image[disc] += rng.uniform(60, 120)
        free[max(y - 17, 0):y + 18, max(x - 17, 0):x + 18] = False
    return Sample(np.clip(image, 0, 250).astype(np.uint8)[..., None], labels[..., None], name=f"s{number}", modality="phase",
                  group=f"g{number}")


def parts(*, change=None, size: int = 4) -> dict[str, Samples]:
    """A sound data set of two splits; `change` is applied to its second training sample."""
    train, val = (Samples(sample(start + i) for i in range(size)) for start in (0, 100))
    if change is not None:
        train[1] = change(train[1])
    return {"train": train, "val": val}


def found(report, *, notes: bool = True) -> set[tuple[str, str]]:
    return {(f.part, f.rule) for f in report.findings if notes or f.severity != "note"}


def relabelled(change):
    """sample -> sample whose labels [H, W] `change` has changed in place."""
    def apply(sample: Sample) -> Sample:
        plane = sample.labels[..., 0].copy()
        change(plane)
        return replace(sample, labels=plane[..., None])
    return apply


def layered(change):
    """sample -> sample with a second layer [H, W], which `change` fills."""
    def apply(sample: Sample) -> Sample:
        second = np.zeros_like(sample.labels[..., 0])
        change(sample.labels[..., 0], second)
        return replace(sample, labels=np.stack([sample.labels[..., 0], second], axis=-1))
    return apply


def with_image(change):
    return lambda sample: replace(sample, image=change(sample.image))


def set_at(rows, columns, value):
    def change(plane):
        plane[rows, columns] = value
    return relabelled(change)


def halve(plane):
    """Cell 1 loses a line through its middle."""
    y, x = (int(v.mean()) for v in np.nonzero(plane == 1))
    plane[y, plane[y] == 1] = 0


def pierce(plane):
    y, x = (int(v.mean()) for v in np.nonzero(plane == 1))
    plane[y, x] = 0


def to_border(plane):
    """Moves everything up until it touches."""
    plane[:] = np.roll(plane, -int(np.nonzero(plane.any(axis=1))[0][0]), axis=0)


def shifted_copy(first, second):
    second[:] = np.where(np.roll(first == 1, 3, axis=1), 10, 0)


def inner_copy(first, second):
    second[:] = np.where(cv2.erode((first == 1).astype(np.uint8), np.ones((3, 3))) > 0, 10, 0)


def ignore_corner(plane):
    plane[:6, :6] = -1


def number_from_fifty(plane):
    plane[plane > 0] += 50


def as_mask(plane):
    plane[:] = plane > 0


def background_is_a_cell(plane):
    plane[plane == 0] = 10


# ---------------------------------------------------------------- one sample
FAULTS = {
    "even": (with_image(np.zeros_like), [("warning", "even images", None)]),
    "saturated": (with_image(lambda i: np.where(i > 100, np.uint8(255), i)), [("note", "saturated images", None)]),
    "mirrored": (relabelled(lambda p: p.__setitem__(slice(None), p[:, ::-1].copy())),
                 [("warning", "labels that do not fit the image", None)]),
    "one mask": (relabelled(as_mask), [("warning", "masks of all cells in one", None), ("note", "cells in several pieces", 1)]),
    "background": (relabelled(background_is_a_cell),
                   [("warning", "cells over half of the image", 1), ("note", "cells with holes", 1),
                    ("note", "cells at the border", 1), ("note", "giants (over 10 times their image's median cell)", 1)]),
    "tiny": (set_at(slice(1, 3), slice(1, 3), 10),
             [("note", "cells under 10 px", 1), ("note", "specks (under 5% of their image's median cell)", 1)]),
    "gaps": (relabelled(number_from_fifty), [("note", "gaps in the numbering", None)]),
    "pieces": (relabelled(halve), [("note", "cells in several pieces", 1)]),
    "hole": (relabelled(pierce), [("note", "cells with holes", 1)]),
    "overlap": (layered(shifted_copy), [("note", "cells that overlap", None)]),
    "inside": (layered(inner_copy), [("note", "cells that overlap", None), ("note", "cells wholly inside others", 1)]),
    "ignored": (relabelled(ignore_corner), [("note", "pixels to be ignored", None)]),
    "partly ignored": (lambda s: layered(lambda first, second: None)(relabelled(ignore_corner)(s)),
                       [("warning", "pixels to be ignored in one layer that are background in another", None),
                        ("note", "pixels to be ignored", None)]),
    "nucleus": (lambda s: replace(s, nuclei=np.where(s.labels[..., 0] == 2, 77, s.labels[..., 0])),
                [("warning", "nuclei without a cell", 1)]),
    "no cells": (relabelled(lambda p: p.fill(0)), [("note", "images without cells", None)]),
    "no labels": (lambda s: replace(s, labels=None), [("warning", "images without annotation", None)]),
    "planes": (with_image(lambda i: np.repeat(i, 3, axis=2)), [("note", "images of other than 1 plane, which most have", None)]),
    "five planes": (with_image(lambda i: np.repeat(i, 5, axis=2)), [("warning", "images of other than 1, 3 or 4 planes", None)]),
    "even plane": (with_image(lambda i: np.concatenate([i, i, 0 * i], axis=2)),
                   [("note", "even planes", None), ("note", "images of other than 1 plane, which most have", None)]),
    "not a number": (with_image(lambda i: np.where(i > 150, np.nan, i.astype(np.float32))),
                     [("error", "an image that cannot be used", None)]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found_and_nothing_else(fault):
    change, expected = FAULTS[fault]
    report = check_sources(parts(change=change))
    assert {(f.severity, f.rule, f.cells) for f in report.findings} == set(expected)
    assert all(f.part == "train" and len(f.images) == 1 and f.images[0].partition(" (")[0] == "s1" for f in report.findings)
    assert exit_status(report) == (expected[0][0] == "error")
    assert exit_status(report, strict=True) == (expected[0][0] != "note")


def test_sound_data_give_no_finding():
    assert not check_sources(parts()).findings


def test_cells_at_the_border_are_counted():
    report = check_sources(parts(change=lambda s: replace(relabelled(to_border)(s), image=np.roll(s.image, -10, axis=0))))
    assert ("train", "cells at the border") in found(report)


def test_details_say_what_is_special():
    by_rule = {name: check_sources(parts(change=change)).findings for name, (change, _) in FAULTS.items()}
    assert "mirrored left to right" in by_rule["mirrored"][0].images[0]
    assert "9 cells, numbers up to 59" in by_rule["gaps"][0].images[0]
    assert "36 px" not in by_rule["ignored"][0].images[0] and "0.3%" in by_rule["ignored"][0].images[0]
    assert "NaN or infinite" in by_rule["not a number"][0].action


# ---------------------------------------------------------------- sources as a whole
def test_what_cannot_be_read_is_named_with_its_message_and_the_others_go_on():
    sources = parts()
    sources["train"][2] = ValueError("x2.png: cannot be read as png: it is cut short.")
    sources["val"][0] = KeyError("size")
    report = check_sources(sources)
    assert [(f.severity, f.part, f.images, f.action) for f in report.findings] == [
        ("error", "train", ("x2",), "x2.png: cannot be read as png: it is cut short."),
        ("error", "val", ("x0",), "KeyError: 'size'")]
    assert [len(samples) for samples in report.parts.values()] == [3, 3]
    skipped = check_sources(sources, skip_unreadable=True)
    assert [f.severity for f in skipped.findings] == ["warning", "warning"] and exit_status(skipped) == 0
    assert "left out" in skipped.findings[0].action


def test_sources_that_do_not_open_and_names_that_are_not_unique():
    train = Samples([*parts()["train"], replace(sample(50), name="s0")])
    report = check_sources({"train": train, "val": FileNotFoundError("val: no such folder.")})
    assert [(f.severity, f.part, f.rule) for f in report.findings] == [
        ("error", "val", "a source that cannot be opened"), ("warning", "train", "names that are not unique")]


class Grumbling(Samples):
    def __getitem__(self, index):
        if index == 1:
            warnings.warn("more than half of the pixels are -1", stacklevel=1)
        return super().__getitem__(index)


def test_what_a_reader_warns_of_is_reported():
    report = check_sources({"train": Grumbling(parts()["train"])})
    assert [(f.severity, f.images, f.action) for f in report.findings] == [
        ("warning", ("s1",), "more than half of the pixels are -1")]


def test_images_without_labels_are_errors_where_they_are_trained_on():
    sources = {"train": Samples(replace(s, labels=None) for s in parts()["train"]), "val": parts()["val"]}
    assert [f.severity for f in check_sources(sources).findings] == ["note"]
    strict = check_sources(sources, labelled=("train", "val"))
    assert [(f.severity, f.part) for f in strict.findings] == [("error", "train")] and exit_status(strict) == 1


def test_some_images_must_have_labels():
    sources = {split: Samples([replace(sample(number), labels=None)]) for number, split in enumerate(("train", "unlabelled"))}
    report = check_sources(sources, some_labelled=("", "train", "val"))
    assert [(f.severity, f.part, f.rule) for f in report.findings] == [
        ("error", "train", "no image is annotated"), ("note", "unlabelled", "images without annotation")]
    assert report.findings[0].action.endswith("see docs/data.md.")
    sources["val"] = Samples([replace(sample(2), labels=None, name="s0_gt")])       # the division parts image and labels
    assert "If s0_gt holds the labels of s0" in check_sources(sources, some_labelled=("train",)).findings[0].action
    sources = {"train": Samples([*sources["train"], sample(3)])}
    assert [(f.severity, f.rule) for f in check_sources(sources, some_labelled=("train",)).findings] == [
        ("warning", "images without annotation")]


@pytest.mark.parametrize("empty, severity, rule", [(1, "note", "images without cells"), (3, "warning", "images without cells"),
                                                   (4, "error", "no cells at all")])
def test_lost_labels_show_as_too_many_empty_images(empty, severity, rule):
    sources = parts()
    for index in range(empty):
        sources["train"][index] = replace(sources["train"][index], labels=np.zeros_like(sources["train"][index].labels))
    report = check_sources(sources, labelled=("train",))
    assert [(f.severity, f.rule, len(f.images)) for f in report.findings] == [(severity, rule, empty)]


def test_twelve_bits_in_sixteen():
    sources = {"train": Samples(replace(s, image=s.image.astype(np.uint16) * 16) for s in parts()["train"])}
    assert {f.rule for f in check_sources(sources).findings} == {"16-bit files of 8 bits"}      # shifted values hold 8 bits
    sources = {"train": Samples(replace(s, image=s.image.astype(np.uint16) * 16 + 7) for s in parts()["train"])}
    assert {f.rule for f in check_sources(sources).findings} == {"16-bit files of 12 bits"}


# ---------------------------------------------------------------- samples against each other
def test_copies_within_a_split():
    sources = parts()
    sources["train"].append(replace(sources["train"][0], name="copy"))
    report = check_sources(sources)
    assert [(f.part, f.rule, f.images) for f in report.findings] == [("train", "identical images", ("copy (is s0)",))]


def test_labels_of_another_image():
    sources = parts()
    sources["train"][1] = replace(sources["train"][1], labels=sources["train"][0].labels)
    assert found(check_sources(sources)) == {("train", "identical labels of different images"),
                                             ("train", "labels that do not fit the image")}


def test_groups_are_compared_across_splits_and_within_one_source():
    sources = parts()
    sources["val"][0] = replace(sources["val"][0], group="g2")
    report = check_sources(sources)
    assert [(f.severity, f.part, f.rule, f.images) for f in report.findings] == [
        ("warning", "train and val", "groups in two splits", ("s100 (group g2)",))]
    assert not check_sources({"train/a": sources["train"], "val/b": sources["val"]}).findings
    for split in sources:       # `1.png` of two folders
        sources[split][0] = replace(sources[split][0], name="1", group="1")
    assert not check_sources(sources).findings


CHANGES = {
    "as it is": lambda i: i,
    "16 bits": lambda i: i.astype(np.uint16) * 200,
    "darker": lambda i: (i * 0.4).astype(np.uint8),
    "gamma": lambda i: np.rint((i / 255) ** 0.6 * 65535).astype(np.uint16),
    "half size": lambda i: cv2.resize(i, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[..., None],
    "colour": lambda i: np.repeat(i, 3, axis=2),
    "noise": lambda i: np.clip(i + np.random.default_rng(0).normal(0, 5, i.shape), 0, 255).astype(np.uint8),
    "mirrored": lambda i: i[:, ::-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_across_splits_are_found_whatever_was_done_to_them(change):
    sources = parts(size=6)
    copy = Sample(CHANGES[change](sources["train"][3].image), name="copy", modality="phase")
    sources["val"].append(copy)
    findings = [f for f in check_sources(sources).findings if f.rule == "images alike in two splits"]
    assert len(findings) == 1 and len(findings[0].images) == 1
    assert findings[0].images[0].startswith("copy (") and findings[0].images[0].endswith("s3)")


def test_new_modalities_and_pixel_sizes():
    sources = parts()
    sources["val"][1] = replace(sources["val"][1], modality="DIC")
    sources["val"][2] = replace(sources["val"][2], pixel_size=0.65)
    sources["train"] = Samples(replace(s, pixel_size=0.25) for s in sources["train"])
    report = check_sources(sources)
    assert {(f.part, f.rule, f.images) for f in report.findings} == {
        ("val", "modalities that training lacks", ("s101 (DIC)",)), ("all", "pixel sizes that differ", ("s102 (0.65 um)",))}


# ---------------------------------------------------------------- what a config knows
def test_crop_and_targets_say_what_training_will_do():
    report = check_sources(parts(), crop=100, max_cells=5, min_area=60)
    rules = ("images smaller than the crop", "more cells than training takes")
    assert found(report) == {(part, rule) for part in ("train", "val") for rule in rules}
    small = check_sources(parts(), crop=10)
    assert found(small) == {("train", "cells longer than the crop"), ("val", "cells longer than the crop")}
    tiny = check_sources(parts(change=FAULTS["tiny"][0]), min_area=5)
    assert "under 5 px (config.targets.min_area)" in next(f.action for f in tiny.findings if f.rule == "cells under 10 px")


def test_normalisation_shows_dark_images_and_refusals():
    sources = parts(change=with_image(lambda i: i.astype(np.uint16)))
    assert found(check_sources(sources, normalize={"name": "percentile"})) == {("train", "16-bit files of 8 bits")}
    report = check_sources(sources, normalize={"name": "type_range"})
    assert [(f.severity, f.rule, f.images) for f in report.findings if f.severity != "note"] == [
        ("warning", "images almost without contrast after normalisation", ("s1 (0.00 to 0.00)",))]
    five = with_image(lambda i: np.repeat(i, 5, axis=2))
    refused = check_sources(parts(change=five), normalize={"name": "percentile"}).findings
    assert [(f.severity, f.rule, f.images) for f in refused] == [("error", "images that the network cannot take", ("s1",))]
    assert "config.data.planes" in refused[0].action
    stacks = {"train": Samples(map(five, parts()["train"]))}
    assert not check_sources(stacks, normalize={"name": "percentile"}, planes=(2,)).findings


# ---------------------------------------------------------------- the report
def test_text_and_json_tell_the_same():
    sources = parts(change=FAULTS["mirrored"][0])
    sources["val"][0] = ValueError("x0.png: is cut short.")
    report = check_sources(sources)
    text, data = to_text(report), json.loads(to_json(report))
    assert text.index("ERROR val") < text.index("WARNING train") and "1 error, 1 warning, 0 notes" in text
    assert "96 x 128" in text and "x0.png: is cut short." in text
    assert max(map(len, text.splitlines())) <= 120
    assert [f["severity"] for f in data["findings"]] == ["error", "warning"] and len(data["samples"]) == 7
    assert data["parts"]["val"]["images"] == ["4 (1 unusable)"] and data["parts"]["train"]["images"] == ["4"]
    assert "ERROR val: an image that cannot be used: 1 of 4 images: x0" in text
    assert data["parts"]["train"]["cells"] == ["36"] and data["samples"][0]["shape"] == [96, 128, 1]
    assert {f.severity for f in report.findings} <= set(SEVERITIES)
    assert to_text(check_sources({"": Samples()})).startswith("images")


def test_orientations_are_as_they_are_called():
    plane = np.asarray([[1, 2], [3, 4]])
    named = dict(zip(ORIENTATIONS, orientations(plane), strict=True))
    np.testing.assert_array_equal(named["turned by 90 degrees clockwise"], np.rot90(plane, -1))
    np.testing.assert_array_equal(named["with x and y swapped"], plane.T)
    np.testing.assert_array_equal(named["mirrored top to bottom"], plane[::-1])
    assert len({tuple(other.ravel()) for other in named.values()}) == 8


def test_images_without_detail_are_like_none():
    ramp = np.tile(np.arange(128, dtype=np.uint8), (96, 1))[..., None]
    assert not thumbnail(np.full((50, 60, 3), 7, np.uint16)).any()
    assert np.linalg.norm(thumbnail(sample(0).image).astype(np.float64)) == pytest.approx(1, abs=1e-3)
    assert abs(float((thumbnail(ramp) * thumbnail(sample(0).image)).sum())) < 0.3
    assert fit_of_outlines(np.zeros((96, 128, 1), np.uint8), sample(0).labels) is None
    assert image_facts(np.full((4, 4, 2), -3, np.int16)).used_bits == 0


# ---------------------------------------------------------------- real images
@pytest.mark.parametrize("folder", ["baby_yeast", "bbbc039", "usiigaci_t98g", "yeastvision_phase", "bbbc038"])
def test_real_data_have_no_false_alarms(data_dir, folder):
    """Labels of real images fit, and no image of another group is taken for a copy: the splits of these sets are sound."""
    limit = {"bbbc038": 60}.get(folder)
    splits = ("train",) if folder == "yeastvision_phase" else ("train", "val")
    report = check_sources({split: FolderSource(data_dir / folder, split=split, limit=limit) for split in splits})
    expected = {"images of other than 1, 3 or 4 planes"} if folder == "baby_yeast" else set()
    assert {f.rule for f in report.findings if f.severity != "note"} == expected
    assert all(c.cells.fit > 0.62 for samples in report.parts.values() for c in samples if c.cells.fit is not None)


def test_frames_of_one_movie_are_alike(data_dir):
    frames = FolderSource(data_dir / "yeastvision_phase")
    report = check_sources({"train": Samples(frames[i] for i in range(3)), "val": Samples([frames[6]])})
    assert {f.rule for f in report.findings if f.severity == "warning"} == {"groups in two splits", "images alike in two splits"}
