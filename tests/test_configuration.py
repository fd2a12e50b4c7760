"""A run's config outlives new versions of jaxcell, and says so when it is changed."""

from __future__ import annotations

import json

import ml_collections
import pytest

from configs import maunet, morphoseg, pix2pix, sparse_seunet
from configs.contour_proposal import get_config
from jaxcell.configuration import ADDED, ADDED_BESIDE, ADDED_TO_FOLDERS, load_changed_config, load_config, save_config


def test_a_config_without_later_keys_is_completed(tmp_path):
    config = get_config("toy")
    save_config(config, tmp_path, continues=False)
    old = json.loads((tmp_path / "config.json").read_text())
    for part, keys in ADDED.items():
        for key in keys:
            del old[part][key]
    (tmp_path / "config.json").write_text(json.dumps(old))
    loaded = load_config(tmp_path)
    assert loaded.data.unreadable == "refuse" and loaded.data.disk_cache == ""
    assert loaded.model.contour_features == config.model.contour_features and loaded.is_locked
    assert load_changed_config(tmp_path, ["--config.data.unreadable=skip"]).data.unreadable == "skip"
    save_config(config, tmp_path, continues=True)       # the run goes on under the version that has the keys


@pytest.mark.parametrize(("config", "key"), [(maunet.get_config("resnet50_tta"), "overlap"),
                                             (morphoseg.get_config("r50_vit_b16_skip0_released"), "step")])
def test_windows_of_earlier_runs_are_averaged_as_they_were(config, key, tmp_path):
    save_config(config, tmp_path, continues=False)
    old = json.loads((tmp_path / "config.json").read_text())
    for later in ADDED_BESIDE["inference", key]:
        del old["inference"][later]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert load_config(tmp_path).inference.to_dict() == config.inference.to_dict()


@pytest.mark.parametrize(("part", "key"), [("inference", "noise"), ("model", "judge_width")])
def test_earlier_runs_of_pix2pix_draw_as_they_did(part, key, tmp_path):
    save_config(pix2pix.get_config("synthetic"), tmp_path, continues=False)
    old = json.loads((tmp_path / "config.json").read_text())
    for later in ADDED_BESIDE[part, key]:
        del old[part][later]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert {later: load_config(tmp_path)[part][later] for later in ADDED_BESIDE[part, key]} == ADDED_BESIDE[part, key]


def test_keys_follow_another_one_way_only():
    config = sparse_seunet.get_config("own")
    config.update_from_flattened_dict({"data.crop": 64, "train.steps": 9})
    assert (config.inference.tile, config.inference.margin, config.optimizer.schedule.steps) == (64, 16, 9)
    config.update_from_flattened_dict({"inference.tile": 96, "optimizer.schedule.steps": 7})
    assert (config.data.crop, config.train.steps) == (64, 9)


def test_a_repeated_command_does_not_make_an_earlier_run_another_network(tmp_path):
    config = pix2pix.get_config("synthetic")
    save_config(config, tmp_path, continues=False)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["model"]["upsampling"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="model.upsampling: transposed -> nearest"):
        save_config(config, tmp_path, continues=True)
    config.model.upsampling = "transposed"
    save_config(config, tmp_path, continues=True)


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.optimizer.update({"b1": 0.5}), r"optimizer.b1: \(none\) -> 0.5"),
    (lambda c: c.optimizer.__delattr__("clip_norm"), r"optimizer.clip_norm: .* -> \(none\)")])
def test_options_that_come_or_go_make_another_run(change, message, tmp_path):
    config = get_config("toy")
    save_config(config, tmp_path, continues=False)
    with config.unlocked():
        change(config)
    with pytest.raises(ValueError, match=message):
        save_config(config, tmp_path, continues=True)


def test_decoding_is_free_but_where_a_teacher_decodes(tmp_path):
    config = get_config("toy")
    for scheme in ("none", "listen2student"):
        config.semi.scheme = scheme
        (tmp_path / scheme).mkdir()
        save_config(config, tmp_path / scheme, continues=False)
    config.decode.score_threshold = 0.95
    config.semi.scheme = "none"
    save_config(config, tmp_path / "none", continues=True)
    config.semi.scheme = "listen2student"
    with pytest.raises(ValueError, match="decode.score_threshold: .* -> 0.95"):
        save_config(config, tmp_path / "listen2student", continues=True)


def test_runs_of_folders_go_on_under_the_version_that_has_more_options(tmp_path):
    config = get_config("own")
    save_config(config, tmp_path, continues=False)
    old = json.loads((tmp_path / "config.json").read_text())
    for part in ("train", "val"):
        for option in ADDED_TO_FOLDERS:
            del old["data"][part]["own"][option]
    (tmp_path / "config.json").write_text(json.dumps(old))
    save_config(config, tmp_path, continues=True)
    config.data.train.own.coding = "binary"
    with pytest.raises(ValueError, match="data.train.own.coding: ids -> binary"):
        save_config(config, tmp_path, continues=True)


def test_who_wants_to_train_longer_is_told_how(tmp_path):
    config = get_config("toy")
    save_config(config, tmp_path, continues=False)
    config.train.steps += 10
    with pytest.raises(ValueError, match=rf"(?s)train.steps.*longer, start a new one with --config.pretrained={tmp_path}"):
        save_config(config, tmp_path, continues=True)


def test_keys_that_a_config_has_are_kept(tmp_path):
    config = get_config("toy")
    config.data.unreadable, config.data.disk_cache_gb = "skip", 3.0
    save_config(config, tmp_path, continues=False)
    assert load_config(tmp_path).to_dict() == config.to_dict()


def test_where_decoded_images_lie_may_change_but_not_which_are_left_out(tmp_path):
    config = get_config("toy")
    save_config(config, tmp_path, continues=False)
    config.data.disk_cache, config.data.disk_cache_gb = "/elsewhere", 5.0
    save_config(config, tmp_path, continues=True)
    config.data.unreadable = "skip"
    with pytest.raises(ValueError, match="data.unreadable: refuse -> skip"):
        save_config(config, tmp_path, continues=True)


def test_every_added_key_is_one_that_configs_have():
    for part, keys in ADDED.items():
        for key, value in keys.items():
            assert get_config("toy").to_dict()[part][key] == value


def test_sources_of_other_names_are_another_config(tmp_path):
    config = ml_collections.ConfigDict({"data": {"source": {"mine": {"kind": "synthetic", "count": 3}}}, "layout": "folder"})
    save_config(config, tmp_path, continues=False)
    config.layout = "qupath"
    save_config(config, tmp_path, continues=True)
    config.data.source.yours = {"kind": "synthetic", "count": 5}
    with pytest.raises(ValueError, match=r"data.source.yours.count: \(none\) -> 5"):
        save_config(config, tmp_path, continues=True)
