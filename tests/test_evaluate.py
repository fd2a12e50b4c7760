"""Evaluation and prediction as a user calls them: a trained toy run, anybody's label images, anybody's COCO files."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.special import expit

from configs import sparse_seunet
from configs.contour_proposal import get_config
from jaxcell import cli, evaluate
from jaxcell.configuration import load_changed_config, load_config
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.decode.classes import class_cells, energy
from jaxcell.decode.semantic_watershed import plane_probabilities
from jaxcell.export.coco import coco_writer
from jaxcell.geometry.boundaries import erode_labels
from jaxcell.geometry.labels import instances_to_labels
from jaxcell.inference.predict import predict_files
from jaxcell.system import Planes, System
from jaxcell.systems import build_system
from jaxcell.systems.sparse_seunet import true_planes
from jaxcell.targets.planes import semantic_planes
from jaxcell.train import import_published, train
from jaxcell.training.mesh import make_mesh
from jaxcell.training.step import make_apply
from jaxcell.types import Instances


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder as a lab has it: images and label images, no manifest."""
    folder = tmp_path_factory.mktemp("lab")
    for index, sample in enumerate(map(SyntheticSource(5, size=96, seed=3).__getitem__, range(5))):
        Image.fromarray(sample.image.squeeze()).save(folder / f"well_{index}.1.png")
        labels = instances_to_labels(Instances.from_labels(sample.labels))
        Image.fromarray(labels.astype(np.uint16)).save(folder / f"well_{index}.1_label.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A workdir with a trained toy."""
    workdir = tmp_path_factory.mktemp("run")
    config = get_config("toy")
    config.train.update({"steps": 4, "eval_every": 2, "checkpoint_every": 2})
    train(config.lock(), workdir)
    return workdir


def call(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["jaxcell", *map(str, arguments)])
    return cli.main()


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())["overall"]


def test_run_leaves_what_a_user_looks_at(run):
    assert (run / "curves.png").exists()
    assert len(list((run / "pictures").rglob("*.png"))) == 2     # one image at each of two validations
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "loss/scores", "learning_rate", "images_per_second", "data_wait_share"} <= set(steps[-2])
    assert load_config(run).model.contour_features == ("decoder.0",)


def test_evaluate_scores_the_runs_validation_images(run, tmp_path, monkeypatch):
    assert call(monkeypatch, "evaluate", "--workdir", run, "--out", tmp_path, "--pictures=1") == 0
    assert report_of(tmp_path)["images"] == 2
    assert {p.name for p in tmp_path.glob("report.*")} == {"report.md", "report.json", "report.png"}
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_evaluate_scores_a_run_on_other_images(run, lab, tmp_path, monkeypatch):
    assert call(monkeypatch, "evaluate", "--workdir", run, "--truth", lab, "--out", tmp_path) == 0
    assert report_of(tmp_path)["images"] == 5


@pytest.mark.parametrize("kind", ["label images", "COCO file", "COCO results"])
def test_perfect_predictions_of_anybody_score_one(lab, tmp_path, monkeypatch, kind):
    truth = evaluate.open_truth(lab, images=None, split=None)
    samples = {s.name: Instances.from_labels(s.labels) for s in evaluate.iterate(truth)}
    predictions, annotated = tmp_path / "predictions", lab
    if kind == "label images":
        predictions.mkdir()
        for name, cells in samples.items():
            tifffile.imwrite(predictions / f"{name}_labels.tif", instances_to_labels(cells).astype(np.uint32))
    else:
        predictions = tmp_path / "predictions.json"
        with coco_writer(predictions) as add:
            for name, cells in samples.items():
                add(f"{name}.png", cells)
    if kind == "COCO results":      # a bare list, whose image ids only the truth can name
        annotated = tmp_path / "truth.json"
        shutil.copy(predictions, annotated)
        predictions.write_text(json.dumps(json.loads(predictions.read_text())["annotations"]))
    images = ["--images", lab] if kind == "COCO results" else []
    assert call(monkeypatch, "evaluate", "--truth", annotated, "--predictions", predictions, "--out", tmp_path, *images) == 0
    assert report_of(tmp_path)["scores"]["F1@0.95"]["pooled"]["value"] == 1.0


@pytest.fixture
def crowded(tmp_path) -> dict[str, Instances]:
    """Cells that overlap, by image; `tmp_path / "truth"` holds them as COCO, `tmp_path / "found"` is predict's folder of them."""
    source = SyntheticSource(3, size=80, seed=3, overlap=1.0, clustering=0.8)
    samples = {f"{i}.png": source[i] for i in range(3)}
    images = tmp_path / "truth" / "images"
    images.mkdir(parents=True)
    cells = {name: Instances.from_labels(sample.labels) for name, sample in samples.items()}
    with coco_writer(tmp_path / "truth" / "annotations.json") as add:
        for name, sample in samples.items():
            Image.fromarray(sample.image.squeeze()).save(images / name)
            add(name, cells[name])
    of_image = {sample.image.tobytes(): cells[name] for name, sample in samples.items()}
    predict_files(images, tmp_path / "found", predict=lambda image: of_image[image.tobytes()], progress=False)
    return cells


def test_what_predict_wrote_is_scored_with_all_pixels_of_all_cells(crowded, tmp_path, monkeypatch, capsys):
    arguments = ["evaluate", "--truth", tmp_path / "truth", "--predictions", tmp_path / "found", "--out", tmp_path]
    assert call(monkeypatch, *arguments) == 0
    assert f"scoring {tmp_path / 'found' / 'predictions.json'}, which has every cell whole" in capsys.readouterr().out
    assert report_of(tmp_path)["scores"]["F1@0.95"]["pooled"]["value"] == 1.0


@pytest.mark.parametrize(("change", "said"), [("other images", "it has no image '0'"), ("other program", "is no COCO file")])
def test_label_images_that_a_file_beside_them_does_not_fit_are_scored(crowded, tmp_path, monkeypatch, capsys, change, said):
    file = tmp_path / "found" / "predictions.json"
    if change == "other images":
        with coco_writer(file) as add:
            add("1.png", crowded["1.png"])
    else:
        file.write_text("{}")
    arguments = ["evaluate", "--truth", tmp_path / "truth", "--predictions", tmp_path / "found", "--out", tmp_path]
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert f"scoring the label images of {tmp_path / 'found'}, not its predictions.json" in printed and said in printed
    assert report_of(tmp_path)["scores"]["F1@0.95"]["pooled"]["value"] < 1.0


@pytest.mark.parametrize("truth", ["", "annotations.json"])
def test_a_converted_folder_is_a_truth(lab, tmp_path, monkeypatch, truth):
    assert call(monkeypatch, "data", "convert", lab, "--to", "coco", "--out", tmp_path / "coco") == 0
    assert call(monkeypatch, "evaluate", "--truth", tmp_path / "coco" / truth, "--predictions", lab, "--out", tmp_path) == 0
    assert report_of(tmp_path)["scores"]["F1@0.95"]["pooled"]["value"] == 1.0


@pytest.mark.parametrize(("change", "arguments", "said"), [
    (None, ["--split=val"], "--split=val: .*annotations.json is a COCO file, which has no splits"),
    ("no images", [], "3 of 3 images that .* Name it with --images"),
    ("two files", [], "holds several COCO files .annotations.json, val.json.; name one"),
    ("no folder", [], "no such folder or COCO file"),
])
def test_a_truth_that_cannot_be_opened_says_what_to_do(crowded, tmp_path, monkeypatch, capsys, change, arguments, said):
    truth = tmp_path / "truth"
    if change == "no images":
        shutil.rmtree(truth / "images")
    elif change == "two files":
        shutil.copy(truth / "annotations.json", truth / "val.json")
    elif change == "no folder":
        shutil.rmtree(truth)
    predictions = tmp_path / "found"
    assert call(monkeypatch, "evaluate", "--truth", truth, "--predictions", predictions, "--out", tmp_path, *arguments) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["label images", "COCO file"])
def test_a_prediction_of_another_size_is_named(lab, tmp_path, monkeypatch, capsys, kind):
    predictions = tmp_path / ("found" if kind == "label images" else "found.json")
    if kind == "label images":
        predictions.mkdir()
        tifffile.imwrite(predictions / "well_0.1_labels.tif", np.zeros((90, 96), np.uint16))
    else:
        with coco_writer(predictions) as add:
            add("well_0.1.png", Instances.empty((90, 96)))
    assert call(monkeypatch, "evaluate", "--truth", lab, "--predictions", predictions, "--out", tmp_path) == 2
    file = predictions / "well_0.1_labels.tif" if kind == "label images" else predictions
    assert f"{file}: its prediction for 'well_0.1' covers (90, 96) pixels (H, W), but the image has (96, 96)" \
        in capsys.readouterr().err


def test_predictions_whose_names_differ_only_in_the_ending_are_refused(lab, tmp_path, monkeypatch, capsys):
    with coco_writer(tmp_path / "found.json") as add:
        for name in ("well_0.1.png", "well_0.1.tif"):
            add(name, Instances.empty((96, 96)))
    assert call(monkeypatch, "evaluate", "--truth", lab, "--predictions", tmp_path / "found.json", "--out", tmp_path) == 2
    assert "several images are called 'well_0.1'" in capsys.readouterr().err


def coco_truth(folder, names, *, cells):
    """A COCO file of images of 96 x 96 with one cell each, but for those without."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((96, 96), np.uint8)).save(folder / name)
    with coco_writer(folder / "truth.json") as add:
        for place, name in enumerate(names):
            box = np.asarray([[10 * place, 5, 10 * place + 20, 35]], np.int32)
            full = Instances((96, 96), box, [np.ones((20, 30), bool)], np.ones(1, np.float32))
            add(name, full if cells[place] else Instances.empty((96, 96)))
    return folder / "truth.json"


def test_images_of_one_name_in_two_folders_are_told_apart(tmp_path):
    truth = coco_truth(tmp_path, ("a/img.png", "b/img.png"), cells=(True, True))
    report = evaluate.score_predictions(evaluate.open_truth(truth, images=None, split=None), truth)
    assert [image["TP"] for image in report.images] == [1, 1] and report.pooled_f1 == 1
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(tmp_path / "labels" / "img_labels.png")
    with pytest.raises(ValueError, match="2 images of the truth are called 'img'"):
        evaluate.score_predictions(evaluate.open_truth(truth, images=None, split=None), tmp_path / "labels")
    with coco_writer(tmp_path / "flat.json") as add:
        add("img.png", Instances.empty((96, 96)))
    with pytest.raises(ValueError, match="several images are called 'img', and none is 'a/img.png'"):
        evaluate.score_predictions(evaluate.open_truth(truth, images=None, split=None), tmp_path / "flat.json")


def test_an_image_that_a_list_of_results_lacks_has_no_cell(tmp_path):
    truth = coco_truth(tmp_path, ("a.png", "b.png"), cells=(True, False))
    (tmp_path / "results.json").write_text(json.dumps(json.loads(truth.read_text())["annotations"]))
    report = evaluate.score_predictions(evaluate.open_truth(truth, images=None, split=None), tmp_path / "results.json",
                                        names=evaluate.coco_names(truth))
    assert [(image["TP"], image["FP"], image["FN"]) for image in report.images] == [(1, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize("change", [{"inference.tile": 100}, {"inference.edges": "round"}, {"inference.scales": ()},
                                    {"inference.overlap": 1.0}], ids=str)
def test_windows_that_the_network_cannot_take_are_refused_before_training(change):
    config = sparse_seunet.get_config("toy")
    config.inference.mode = "merged"
    config.update_from_flattened_dict(change)
    system = build_system(config)
    with pytest.raises(ValueError, match="window is 100|edges='round'|scales are|overlap is 1.0"):
        evaluate.make_predict(system, make_apply(system.model), make_mesh(), config)


def test_a_partner_that_sees_images_otherwise_is_refused(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["data"]["normalize"] = {"name": "standardise"}
    (other / "config.json").write_text(json.dumps(config))
    mine = load_config(run)
    with mine.unlocked():
        mine.inference.update({"mode": "merged", "partners": (str(other),), "overlap": 0.5, "edges": "centred",
                               "merge": "outputs", "blend": "constant", "scales": (1.0,), "large": 25_000_000})
    with pytest.raises(ValueError, match=r"(?s)other was trained with normalize: .*standardise.* instead of"):
        evaluate.load_predictor(run, config=mine)


@pytest.mark.parametrize("text", ["a", "10,", "0", "1.5"])
def test_a_number_of_detections_that_is_none_is_named(lab, tmp_path, monkeypatch, capsys, text):
    with pytest.raises(SystemExit):
        call(monkeypatch, "evaluate", "--truth", lab, "--predictions", lab, "--out", tmp_path, f"--detections={text}")
    assert f"argument --detections: {text!r}: whole numbers above 0" in capsys.readouterr().err


def test_analyses_are_reported_for_anybodys_predictions(lab, tmp_path, monkeypatch):
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for sample in evaluate.iterate(evaluate.open_truth(lab, images=None, split=None)):
        labels = erode_labels(sample.labels[..., 0], 2)      # every cell is found, and drawn too small
        tifffile.imwrite(predictions / f"{sample.name}_labels.tif", labels.astype(np.uint32))
    assert call(monkeypatch, "evaluate", "--truth", lab, "--predictions", predictions, "--out", tmp_path, "--analyse") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["overall"]["coco"]["AP"] < 0.6 and report["analyses"]["true masks"]["AP"] > 0.9
    assert "| error analysis" in (tmp_path / "report.md").read_text()


def test_pixels_whose_nuclei_are_not_known_are_not_scored_for_nuclei():
    sample = SyntheticSource(1, size=80, seed=3)[0]
    nuclei = sample.nuclei.copy()
    nuclei[:40] = -1
    everywhere = {name: np.ones((80, 80), np.float32) for name in ("nuclei", "cytoplasm")}
    counts = evaluate.score_planes(lambda image: everywhere, [dataclasses.replace(sample, nuclei=nuclei)], truth=true_planes,
                                   thresholds=dict.fromkeys(everywhere, 0.5))
    assert counts["nuclei"][0].tp == (nuclei > 0).sum() > 0 and counts["nuclei"][0].fp == (nuclei == 0).sum()
    assert counts["cytoplasm"][0].tp + counts["cytoplasm"][0].fp == 80 * 80


def test_planes_are_scored_where_the_network_draws_them(tmp_path):
    samples = [SyntheticSource(3, size=80, seed=3, overlap=1.0, clustering=0.8)[i] for i in range(3)]
    truth = {s.image.tobytes(): semantic_planes(s.labels, s.nuclei, ("cytoplasm", "overlap")) for s in samples}

    def predict(image: np.ndarray) -> dict[str, np.ndarray]:
        planes = {name: 0.4 * plane[..., 0] for name, plane in truth[image.tobytes()].items()}
        planes["overlap"][:, :40] = 0
        return planes

    score = partial(evaluate.score_planes, predict, samples, truth=true_planes)
    counts = score(thresholds={"cytoplasm": 0.5, "overlap": 0.3})
    assert [part.fn for part in counts["cytoplasm"]] == [t["cytoplasm"].sum() for t in truth.values()]
    right = [int(t["overlap"][:, 40:].sum()) for t in truth.values()]
    assert [part.tp for part in counts["overlap"]] == right and max(right) > 0
    assert sum(part.fp + part.tn for part in counts["overlap"]) == sum((t["overlap"] == 0).sum() for t in truth.values())
    evaluate.write_planes(counts, tmp_path)
    scores, dice = json.loads((tmp_path / "planes.json").read_text()), [2 * p.tp / (2 * p.tp + p.fn) for p in counts["overlap"]]
    assert scores["overlap"]["precision"] == 1.0 and scores["cytoplasm"]["F1"] == 0.0
    assert scores["overlap"]["mean Dice"] == pytest.approx(np.mean(dice))
    assert scores["mean of classes"]["mean Dice"] == pytest.approx(np.mean(dice) / 2)
    with pytest.raises(ValueError, match="nuclei, but the network draws cytoplasm, overlap"):
        score(thresholds={"nuclei": 0.5})


@pytest.mark.parametrize(("mode", "overlap"), [("merged", 0.5), ("sliding", 0.75), ("blocks", 0.0)])
def test_planes_and_cells_come_from_the_mean_of_overlapping_windows(mode, overlap):
    """Of networks whose answer depends on the place in the window, against one window after the other."""
    def by_place(variables, images):
        tilt = jnp.linspace(-variables, variables, 32)
        return {"cytoplasm": images + tilt[:, None], "nuclei": images - tilt[:, None, None]}

    config = sparse_seunet.get_config("semantic_2head")
    config.data.update({"channels": 1, "normalize": {"name": "type_range"}})
    config.inference.update({"mode": mode, "tile": 32, "overlap": overlap, "margin": 0, "batch": 3})
    config.inference.step = 8
    seen = []
    system = System(model=nn.Module(), targets=dict, loss=dict, divisor=16,
                    planes=Planes(partial(plane_probabilities, names=("nuclei",)), true_planes),
                    decode=lambda maps: seen.append(maps) or Instances.empty(maps["nuclei"].shape[:2]))
    image = np.random.default_rng(0).random((64, 80), np.float32)

    step = int(32 * (1 - overlap))
    sums, count = np.zeros((2, 64, 80)), np.zeros((64, 80))
    for y in range(0, 64 - 31, step):
        for x in range(0, 80 - 31, step):
            answers = by_place(4.0, image[y:y + 32, x:x + 32, None])
            sums[:, y:y + 32, x:x + 32] += [expit(answers[name][..., 0]) for name in ("cytoplasm", "nuclei")]
            count[y:y + 32, x:x + 32] += 1
    if mode == "blocks":        # the last window of an axis ends with the image, and has what is left
        answers = by_place(4.0, image[:, 48:, None].reshape(2, 32, 32, 1))
        sums[:, :, 64:] = [np.reshape(expit(answers[name])[..., 16:, 0], (64, 16)) for name in ("cytoplasm", "nuclei")]
        count[:] = 1
    planes = evaluate.make_planes(system, by_place, make_mesh(), config)(np.float32(4), image)
    assert set(planes) == {"nuclei"}
    np.testing.assert_allclose(planes["nuclei"], sums[1] / count, atol=1e-6)
    evaluate.make_predict(system, by_place, make_mesh(), config)(np.float32(4), image)
    for name, expected in zip(("cytoplasm", "nuclei"), sums / count, strict=True):
        np.testing.assert_allclose(expit(seen[0][name][:64, :80, 0]), expected, atol=1e-6)


def test_a_network_without_planes_says_so(run, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "evaluate", "--workdir", run, "--out", tmp_path, "--planes=cytoplasm") == 2
    assert "draws no planes" in capsys.readouterr().err


def test_a_missing_prediction_is_named(lab, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "evaluate", "--truth", lab, "--predictions", tmp_path, "--out", tmp_path) == 2
    assert "no label image for 'well_0.1'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--workdir", "x", "--predictions", "y"), ("--predictions", "y"),
                                       ("--workdir", "x", "--split=val"),
                                       ("--truth", "x", "--predictions", "y", "--planes=cytoplasm")])
def test_contradictions_on_the_command_line_are_refused(arguments, monkeypatch):
    with pytest.raises(SystemExit):
        call(monkeypatch, "evaluate", *arguments)


def test_predict_writes_every_file(run, lab, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert call(monkeypatch, "predict", lab, "--workdir", run, "--out", out, "--pixel-size=0.5",
                "--config.decode.score_threshold=0.0001", "--config.decode.max_proposals=50") == 0
    assert len(list(out.glob("*_labels.tif"))) == len(list(out.glob("*_overlay.png"))) == 5
    assert tifffile.imread(out / "well_0.1_labels.tif").dtype == np.uint32
    header = (out / "cells.csv").read_text().splitlines()[0]
    assert "area_um2" in header and "uncertainty_top" in header and "nms_weights" not in header
    found = json.loads((out / "predictions.json").read_text())
    assert len(found["images"]) == 5 and found["annotations"]


def test_config_changes_name_near_keys(run):
    assert load_changed_config(run, ["--config.decode.score_threshold=0.25"]).decode.score_threshold == 0.25
    assert load_changed_config(run, ["--config.data.planes=(0,)"]).data.planes == (0,)
    with pytest.raises(ValueError, match="score_threshold"):
        load_changed_config(run, ["--config.decode.score_treshold=0.25"])


def published_names() -> list[str]:
    """Of the package's U-Net 22 contour proposal network."""
    bias, norm = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")
    blocks = ["backbone.body.0", *(f"backbone.body.{i}.1" for i in range(1, 5))]
    blocks += [f"backbone.unet.layer_blocks.{i}" for i in range(4)]
    heads = [f"{head}_head.block" for head in ("score", "location", "fourier", "refinement")]
    names = [f"{b}.{i}.{leaf}" for b in blocks for i, leaves in ((0, bias), (1, norm), (3, bias), (4, norm)) for leaf in leaves]
    names += [f"backbone.unet.inner_blocks.{i}.{leaf}" for i in range(4) for leaf in bias]
    names += [f"{h}.{i}.{leaf}" for h in heads for i, leaves in ((0, bias), (1, norm), (4, bias)) for leaf in leaves]
    return [f"core.{name}" for name in names]


def test_published_network_is_imported_without_training(tmp_path):
    """The workdir that `--import_only` makes serves prediction like a trained one, and its values are the file's."""
    import jax

    from jaxcell.pretrained.contour_proposal import contour_proposal_paths
    from jaxcell.systems import build_system

    config = get_config("u22")
    config.data.update({"train": get_config("toy").data.train, "val": get_config("toy").data.val, "crop": 96, "batch_size": 1})
    config.model.update({"width": 4})
    shapes = jax.eval_shape(build_system(config).model.init, {"params": jax.random.PRNGKey(0)},
                            jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    names = published_names()
    paths = contour_proposal_paths(names)
    rng = np.random.default_rng(0)

    def leaf(path: tuple[str, ...]) -> np.ndarray:
        value = shapes
        for key in path:
            value = value[key]
        array = rng.random(value.shape, np.float32)
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array

    np.savez(tmp_path / "published.npz", **{name: leaf(paths[name]) for name in names})
    import_published(config.lock(), tmp_path / "published.npz", tmp_path / "run")
    found = evaluate.load_predictor(tmp_path / "run")(np.zeros((50, 60, 1), np.uint8))
    assert found.shape == (50, 60)
    state = evaluate.load_predictor(tmp_path / "run").args[0]
    published = np.load(tmp_path / "published.npz")["core.backbone.body.0.0.weight"]
    np.testing.assert_array_equal(state["params"]["encoder"]["level0"]["conv1"]["kernel"], published.transpose(2, 3, 1, 0))
    with pytest.raises(ValueError, match="holds a run already"):
        import_published(config, tmp_path / "published.npz", tmp_path / "run")


@pytest.mark.parametrize("mode", ["blocks", "sliding"])
def test_a_system_that_says_how_unsure_it_is_gives_a_map(mode):
    """Of a network whose logits are the pixels: what the map holds is known, whatever the windows and blocks are."""
    def class_of_pixels(variables, images):
        return {"logits": jnp.concatenate([variables * images[..., :1], -images[..., :1]], axis=-1)}

    config = get_config("toy")
    config.data.normalize = {"name": "type_range"}
    config.inference.update({"mode": mode, "tile": 32, "margin": 8, "block": 48, "halo": 16, "batch": 2})
    config.inference.update({"step": 24, "edges": "aligned", "merge": "probabilities", "blend": "gaussian", "scales": (1.0,),
                             "large": 10 ** 6})
    system = System(model=nn.Module(), targets=dict, loss=dict, decode=lambda maps: class_cells(maps["logits"]), divisor=8,
                    uncertainty=lambda maps: energy(maps["logits"]))
    image = np.random.default_rng(0).normal(size=(70, 101, 3)).clip(0, 1).astype(np.float32)
    canvas = np.full((70, 101), np.nan, np.float32)
    predict = evaluate.make_predict(system, class_of_pixels, make_mesh(), config)
    cells = predict(np.float32(3), image, uncertainty=canvas)
    np.testing.assert_allclose(canvas, -np.logaddexp(3 * image[..., 0], -image[..., 0]), atol=1e-5)
    assert len(cells) == len(predict(np.float32(3), image)) and "uncertainty" in cells.extras
    silent = evaluate.make_predict(dataclasses.replace(system, uncertainty=None), class_of_pixels, make_mesh(), config)
    with pytest.raises(ValueError, match="contour_proposal says of no pixel"):
        silent(np.float32(3), image, uncertainty=canvas)


def test_an_uncertainty_map_that_a_system_lacks_is_named(run, lab, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "predict", lab / "well_0.1.png", "--workdir", run, "--out", tmp_path, "--uncertainty") == 1
    assert "contour_proposal says of no pixel how unsure it is" in capsys.readouterr().out
