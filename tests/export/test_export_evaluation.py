"""A detector in int8: what is quantised of it, and how the command evaluates it."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.export.quantization import LAYERS
from ovd_d2.vocabulary import Vocabulary
from tests.programs import run_program
from tests.small_sets import NAMES, SmallSet
from tests.tiny import random_units, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command leaves that exports in int8 and evaluates."""
    folder = tmp_path_factory.mktemp("int8")
    small = SmallSet(folder)
    cfg = tiny_config("vild_ensemble")
    cfg.MODEL.OVD.VOCABULARY = str(small.vocabulary)
    Vocabulary(NAMES, random_units(3), torch.tensor([False, False, True])).save(small.vocabulary)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("my_train",), ("my_val",)
    cfg.DATASETS.OWN = str(small.write())
    cfg.DATALOADER.NUM_WORKERS = cfg.TEST.OVD.FAILURES = 0
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    (folder / "config.yaml").write_text(cfg.dump())
    done = run_program(
        *("tools/export_onnx.py", "--config-file", folder / "config.yaml"),
        *("--output", folder / "tiny.onnx", "--int8", folder / "images" / "*.png", "--evaluate"),
    )
    assert done.status == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_layers_are_in_int8_and_the_comparison_with_words_is_not(folder):
    model = onnx.load(folder / "tiny.onnx")
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    nodes = loop.attribute[0].g.node
    in_int8 = {name for one in nodes if one.op_type == "DequantizeLinear" for name in one.output}
    layers = [one for one in nodes if one.op_type in LAYERS]
    floating = [one.name for one in layers if not in_int8.intersection(one.input)]
    assert len(layers) > 40
    assert floating == ["/roi_heads/box_predictor/classifier/MatMul", "/roi_heads/MatMul"]
    assert json.loads((folder / "tiny.json").read_text())["precision"] == "int8"


def test_both_are_evaluated(folder):
    lines = (folder / "printed.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines[-2:]] == ["pytorch", "onnxruntime"]
    for form in ("pytorch", "onnxruntime"):
        results = json.loads((folder / "tiny" / form / "inference" / "results.json").read_text())
        assert {"bbox", "segm"} <= results.keys()
