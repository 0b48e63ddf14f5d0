"""tools/train_net.py trains, resumes and exports a self-distillation on the mini Pictograms."""

import json
import os
import shutil
import signal
import time
from itertools import islice

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import SimpleTrainer
from safetensors.torch import save_file

from ovd_d2.clip.loading import configured_teacher, load_teacher
from ovd_d2.engine.build import build_train_loader
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.run import evaluate, train
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.crops import fitted_size
from ovd_d2.projects.clipself.export import FILE
from ovd_d2.projects.clipself.passengers import regions_of
from tests.integration.conftest import TRAIN
from tests.processes import exit_code, fork
from tests.proposal_stores import random_proposals, write_proposals
from tests.tiny_vits import NATIVE, SIDE, tiny_clip


@pytest.fixture
def losses(monkeypatch):
    found, write = [], SimpleTrainer.write_metrics

    def recording(loss_dict, *args, **kwargs):
        found.append(loss_dict["loss_clipself"].item())
        write(loss_dict, *args, **kwargs)

    monkeypatch.setattr(SimpleTrainer, "write_metrics", staticmethod(recording))
    return found


@pytest.fixture
def store(mini):
    """Proposals where the config looks for them."""
    folder = mini.folder / "pictograms_v1" / "proposals"
    if not folder.exists():
        dicts = DatasetCatalog.get(TRAIN)
        tensors = {
            one["image_id"]: random_proposals(30, one["height"], one["width"], k, smallest=9.0)
            for k, one in enumerate(dicts)
        }
        write_proposals(folder, dicts, tensors, dataset=TRAIN)
    return folder


def same(first, second):
    first, second = (torch.load(one, weights_only=True)["model"] for one in (first, second))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["patches", "proposals", "windowed"])
def test_it_trains_and_a_resumed_run_draws_the_same_next_samples(
    name, workers, store, mini_config, tmp_path, arguments, losses
):
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = ("SEED", -1, "DATALOADER.NUM_WORKERS", workers)
    train(mini_config(f"clipself_{name}", whole, *options), arguments)
    expected = losses[:]
    assert len(set(expected)) == 6
    part.mkdir()
    shutil.copy(whole / "model_0000002.pth", part)
    (part / "last_checkpoint").write_text("model_0000002.pth")
    losses.clear()
    arguments.resume = True
    cfg = mini_config(f"clipself_{name}", part, *options)
    train(cfg, arguments)
    assert losses == expected[3:]
    assert same(whole / "model_final.pth", part / "model_final.pth")
    assert (whole / FILE).read_bytes() == (part / FILE).read_bytes()


def test_a_training_that_was_killed(mini_config, tmp_path, arguments, losses):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(mini_config("clipself_patches", whole, "SEED", 1), arguments)
    expected = losses[:]
    cfg = mini_config("clipself_patches", killed, "SEED", 1)
    child = fork(lambda: train(cfg, arguments))
    while not (killed / "last_checkpoint").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    losses.clear()
    arguments.resume = True
    train(mini_config("clipself_patches", killed, "SEED", 1), arguments)
    assert losses == expected[len(expected) - len(losses) :] and len(losses) <= 3
    assert same(whole / "model_final.pth", killed / "model_final.pth")
    assert (whole / FILE).read_bytes() == (killed / FILE).read_bytes()


def test_the_export_is_the_average_and_the_checkpoint_is_not(mini_config, tmp_path, arguments):
    options = ("SOLVER.BASE_LR", 0.01, "MODEL.CLIPSELF.ALPHA", 0.7)
    cfg = mini_config("clipself_patches", tmp_path, *options)
    train(cfg, arguments)
    raw = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    original = configured_teacher(cfg, device="cpu").state_dict()
    moved = 0.0
    for key, value in load_teacher(NATIVE, str(tmp_path / FILE)).state_dict().items():
        expected = original[key]
        if key.startswith("visual."):
            expected = 0.7 * raw[f"student.{key}"] + 0.3 * original[key]
            moved = max(moved, (raw[f"student.{key}"] - original[key]).abs().max().item())
        torch.testing.assert_close(value, expected, msg=key)
    assert moved > 0.01
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert all(0 < json.loads(one)["loss_clipself"] < 2 for one in lines if "loss_c" in one)


def test_a_checkpoint_can_be_evaluated(mini_config, tmp_path, arguments):
    train(mini_config("clipself_patches", tmp_path, "SOLVER.MAX_ITER", 1), arguments)
    weights = str(tmp_path / "model_final.pth")
    cfg = mini_config("clipself_patches", tmp_path / "again", "MODEL.WEIGHTS", weights)
    assert evaluate(cfg, arguments) == {}  # no test sets


def test_samples_of_the_loader(store, mini_config):
    """Also of images without any annotation, whose regions are no worse."""
    cfg = mini_config("clipself_patches", "unused", "MODEL.CLIPSELF.REGIONS_PER_IMAGE", 7)
    seen = [one for batch in islice(iter(build_train_loader(cfg)), 30) for one in batch]
    empty = [one for one in seen if not len(one["instances"])]
    assert 0 < len(empty) < len(seen)
    for one, regions in zip(seen, regions_of([x["instances"] for x in seen]), strict=True):
        assert one["image"].shape[1:] == fitted_size(one["height"], one["width"], 64)
        boxes, crops = regions.boxes, regions.crops
        assert 1 <= len(boxes) == len(crops) <= 7
        assert boxes.dtype == torch.float32 and crops.dtype == torch.uint8
        assert crops.shape[1:] == (3, SIDE, SIDE) and crops.flatten(1).any(dim=1).all()
        height, width = (side / max(one["height"], one["width"]) for side in one["image"].shape[1:])
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all() and (boxes <= 1).all()


def test_crops_show_what_the_boxes_hold(store, mini_config):
    """The mean colour of a cell in the student's image is that of the teacher's crop."""
    options = ("MODEL.CLIPSELF.MAX_ROWS", 2, "SOLVER.IMS_PER_BATCH", 1)
    for batch in islice(
        iter(build_train_loader(mini_config("clipself_patches", "x", *options))), 10
    ):
        regions = regions_of([batch[0]["instances"]])[0]
        for box, crop in zip(
            (regions.boxes * 64).round().int().tolist(), regions.crops, strict=True
        ):
            cell = batch[0]["image"][:, box[1] : box[3], box[0] : box[2]].float().mean(dim=(1, 2))
            inside = crop.float()[:, crop.any(dim=0).any(dim=1)][:, :, crop.any(dim=0).any(dim=0)]
            torch.testing.assert_close(inside.mean(dim=(1, 2)), cell, atol=12, rtol=0.05)


def problems_of(cfg):
    with pytest.raises(SetupError) as caught:
        check_setup(cfg, training=True)
    return caught.value.problems


def test_faults_of_proposals_are_found_before_training(store, mini_config, tmp_path):
    name, key = "clipself_proposals", "MODEL.CLIPSELF.PROPOSALS"
    assert check_setup(mini_config(name), training=True) == []
    (problem,) = problems_of(mini_config(name, tmp_path, key, str(tmp_path / "none.json")))
    assert "no file at" in problem
    (problem,) = problems_of(mini_config(name, tmp_path, key, ""))
    assert f"{key} is empty" in problem
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"boxes": []}')
    (problem,) = problems_of(mini_config(name, tmp_path, key, str(wrong)))
    assert "expected a list of results" in problem
    wrong.write_text('[{"image_id": 3, "bbox": [0, 0, 9, 9]}]')
    (problem,) = problems_of(mini_config(name, tmp_path, key, str(wrong)))
    assert "has nothing of" in problem


def test_faults_of_the_teacher_are_found_before_training(mini_config, tmp_path):
    options = ("MODEL.OVD.TEACHER.ARCHITECTURE", "Pictogram-RN", "MODEL.OVD.TEACHER.PRETRAINED")
    (problem,) = problems_of(mini_config("clipself_patches", tmp_path, *options, "shipped"))
    assert "MODEL.OVD.TEACHER Pictogram-RN" in problem and "not of a" in problem
    blocks = ("MODEL.CLIPSELF.WINDOW_SIZE", 2, "MODEL.CLIPSELF.GLOBAL_ATTENTION_BLOCKS", (1, 9))
    (problem,) = problems_of(mini_config("clipself_patches", tmp_path, *blocks))
    assert "global attention in blocks [9]" in problem


def test_neither_a_vocabulary_nor_the_number_of_categories_matters(mini, mini_config):
    cfg = mini_config("clipself_patches")
    assert cfg.MODEL.OVD.VOCABULARY == ""
    DatasetCatalog.get(TRAIN)  # reads the file, and with it the categories
    assert len(MetadataCatalog.get(TRAIN).thing_classes) != 3
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    assert check_setup(cfg, training=True) == []


def test_the_averaged_weights_of_another_teacher_are_refused(mini_config, tmp_path, arguments):
    train(mini_config("clipself_patches", tmp_path, "SOLVER.MAX_ITER", 1), arguments)
    save_file(tiny_clip(NATIVE, seed=3).state_dict(), tmp_path / "other.safetensors")
    arguments.resume = True
    other = ("MODEL.OVD.TEACHER.PRETRAINED", str(tmp_path / "other.safetensors"))
    with pytest.raises(SetupError, match="the checkpoint is of another teacher"):
        train(mini_config("clipself_patches", tmp_path, *other), arguments)
