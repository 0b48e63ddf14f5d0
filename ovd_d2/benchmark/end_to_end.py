"""Evaluating an image end to end: ViLD-ensemble over Detectron2's own Mask R-CNN.

OMP_NUM_THREADS=2 python -m ovd_d2.benchmark.end_to_end

From the image to COCO's records, as the evaluators of either keep them: network, selection, masks,
run lengths. Weights are random, so that every image gives as many detections as may be given; boxes
are about as large as the anchors.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from ovd_d2.benchmark.speed import Ratio, Timed, operations_of, ratio_of, take_turns
from ovd_d2.engine.run import load_config
from ovd_d2.vocabulary import Vocabulary


@dataclass(frozen=True)
class Case:
    """A network and what it is given.

    Attributes:
        title: of the row.
        ours, theirs: config files of ViLD-ensemble and of Mask R-CNN.
        size: (height, width) of the image, pixels.
        detections: in an image.
        rounds: that are counted.
    """

    title: str
    ours: str
    theirs: str
    size: tuple[int, int]
    detections: int
    rounds: int


PICTOGRAMS = ("configs/pictograms/vild_ensemble.yaml", "configs/pictograms/supervised_base.yaml")
R50 = ("configs/vild_ensemble_r50.yaml", "configs/supervised_base_r50.yaml")
CASES = {
    "pictograms-160": Case("Pictograms network, 160 px", *PICTOGRAMS, (160, 160), 100, 30),
    "pictograms-800": Case("Pictograms network, 800 x 1333 px", *PICTOGRAMS, (800, 1333), 300, 10),
    "r50-800": Case("ResNet-50, 800 x 1333 px", *R50, (800, 1333), 300, 3),
}


def measure(names: list[str], device: str = "cpu") -> list[Ratio]:
    """Two ratios per case: of everything, and the same if our masks and records cost nothing."""
    return [ratio for name in names for ratio in _ratios(CASES[name], device)]


def _ratios(case: Case, device: str) -> list[Ratio]:
    ours, theirs = (_untrained(config, case, device) for config in (case.ours, case.theirs))
    ours.full_masks = False  # as in evaluation
    pixels = torch.rand(3, *case.size, generator=torch.Generator().manual_seed(0)) * 255
    inputs = [{"image": pixels, "height": case.size[0], "width": case.size[1]}]
    things = {
        "ours": _evaluation(ours, inputs),
        "theirs": _evaluation(theirs, inputs),
        "floor": lambda _: ours.inference(inputs, do_postprocess=False),
    }
    with torch.no_grad():
        operations = {name: operations_of(lambda: thing(0)) for name, thing in things.items()}
        seconds = take_turns(things, case.rounds, case.title)
    title = f"evaluation, vild_ensemble / Mask R-CNN, {case.title}, {case.detections} detections"
    return [
        Ratio(
            name, ratio_of(seconds, over, "theirs"), operations[over] / operations["theirs"]
        )
        for name, over in ((title, "ours"), (f"{title}, if masks cost nothing", "floor"))
    ]


def _untrained(config: str, case: Case, device: str) -> Any:
    cfg: CfgNode = load_config(config, ["MODEL.DEVICE", device, "MODEL.OVD.VOCABULARY", ""])
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = case.detections
    if cfg.MODEL.META_ARCHITECTURE == "BatchInvariantRCNN":
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"  # Detectron2's own, with its pasting
    seed_all_rng(0)
    model = build_model(cfg).eval()
    if hasattr(model, "set_vocabulary"):
        model.set_vocabulary(_random_vocabulary(cfg))
    return model


def _random_vocabulary(cfg: CfgNode) -> Vocabulary:
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    embeddings = F.normalize(torch.randn(count, cfg.MODEL.OVD.EMBEDDING_DIM), dim=1)
    return Vocabulary([str(k) for k in range(count)], embeddings)


def _evaluation(model: nn.Module, inputs: list[dict[str, Any]]) -> Timed:
    """An image and what the evaluators make of its detections."""

    def evaluate(_: int) -> list[dict[str, Any]]:
        found = model(inputs)[0]["instances"].to("cpu")
        masks = None if isinstance(found.pred_masks, torch.Tensor) else found.pred_masks.to_rle()
        if masks is not None:
            found.remove("pred_masks")
        records = instances_to_coco_json(found, 1)
        return records

    return evaluate
