"""The LVIS recipe of F-ViT by the one trainer, but for sizes, on a miniature LVIS."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from ovd_d2.data.categories import get_categories
from ovd_d2.engine import run
from ovd_d2.errors import SetupError
from ovd_d2.vocabulary import Vocabulary
from tests.mini_lvis import mini_lvis
from tests.tiny import random_units
from tests.tiny_vits import DIM, EVA, folder_of_architecture, tiny_clip

SIZE = 96
QUICK = {
    "MODEL.DEVICE": "cpu",
    "MODEL.OVD.TEACHER.ARCHITECTURE": EVA,
    "MODEL.OVD.EMBEDDING_DIM": DIM,
    "MODEL.FVIT.TAPS": (0, 1, 1, 2),
    "MODEL.FVIT.SQUARE_PAD": SIZE,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "INPUT.LSJ.SIZE": SIZE,
    "INPUT.MIN_SIZE_TEST": SIZE,
    "INPUT.MAX_SIZE_TEST": SIZE,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.AMP.ENABLED": False,  # on a CPU
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": (),
    "SOLVER.MAX_ITER": 2,
    "TEST.OVD.ENGINE": "hotcoco",
    "TEST.OVD.FAILURES": 0,
    "SEED": 30,  # whose first batches hold images with and without base objects
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with mini_lvis(tmp_path_factory.mktemp("lvis")) as place:
        folder_of_architecture(place.folder, EVA)
        torch.save(tiny_clip(EVA).state_dict(), place.folder / "vit.pt")
        categories = get_categories("lvis_v1_val")
        rows = random_units(len(categories) + 1, dim=DIM)
        novel = torch.tensor(categories.novel)
        words = Vocabulary(categories.names, rows[:-1], novel, background=rows[-1])
        words.save(place.folder / "words.safetensors")
        yield place.folder


def config(folder: Path, output: Path, *options):
    paths = {
        "MODEL.OVD.VOCABULARY": str(folder / "words.safetensors"),
        "MODEL.FVIT.VIT_WEIGHTS": str(folder / "vit.pt"),
        "OUTPUT_DIR": str(output),
    }
    parts = [part for pair in {**QUICK, **paths}.items() for part in pair]
    return run.load_config("projects/CLIPSelf/configs/ov_lvis_fvit_b16.yaml", [*parts, *options])


ARGS = argparse.Namespace(config_file="", resume=False, eval_only=False, opts=[])


@pytest.mark.slow
def test_it_trains_and_its_checkpoint_is_evaluated_without_the_vits_file(folder, tmp_path):
    run.train(config(folder, tmp_path, "DATASETS.TEST", "()"), ARGS)
    lines = [json.loads(one) for one in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = {key: one for line in lines for key, one in line.items() if "loss" in key}
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"} <= set(losses)
    assert all(math.isfinite(one) for one in losses.values())
    stored = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    vit = torch.load(folder / "vit.pt", weights_only=True)
    name = "visual.trunk.blocks.2.mlp.fc2.weight"
    assert torch.equal(stored[f"backbone.vit.{name}"], vit[name])
    weights = str(tmp_path / "model_final.pth")
    cfg = config(folder, tmp_path, "MODEL.WEIGHTS", weights, "MODEL.FVIT.VIT_WEIGHTS", "")
    results = run.evaluate(cfg, ARGS)
    for task in ("bbox", "segm"):
        assert {"AP", "APr", "AP50_base", "AP50_novel"} <= set(results[task])


def test_a_file_that_is_not_there_is_named_before_it_starts(folder, tmp_path):
    cfg = config(folder, tmp_path, "MODEL.FVIT.VIT_WEIGHTS", str(folder / "other.pt"))
    with pytest.raises(SetupError, match=r"MODEL.FVIT.VIT_WEIGHTS: no file at .*other.pt"):
        run.train(cfg, ARGS)
