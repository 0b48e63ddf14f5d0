"""Evaluating an image end to end: ViLD-ensemble over Detectron2's own Mask R-CNN of its width.

From the image to COCO's records, as the evaluators of either keep them: network, selection, masks,
run lengths. Weights are random, under a fixed seed, so that every image gives as many detections as
may be given; their boxes are about as large as the anchors.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from torch.nn import functional as F

from benchmarks.speed import Row, Timed, operations_of, ratio_of, time_alternately
from ovd_d2.engine.run import load_config
from ovd_d2.evaluation.evaluator_mixin import detections_to_coco_json
from ovd_d2.modeling.masks import postprocess
from ovd_d2.vocabulary import Vocabulary


@dataclass(frozen=True)
class Case:
    """What both networks are given.

    Attributes:
        title: of the row.
        configs: ViLD-ensemble's and that of Mask R-CNN of its width.
        size: (height, width) of the image, pixels.
        detections: per image.
        rounds: that are counted.
    """

    title: str
    configs: tuple[str, str]
    size: tuple[int, int]
    detections: int
    rounds: int


PICTOGRAMS = ("configs/pictograms/vild_ensemble.yaml", "configs/pictograms/supervised_base.yaml")
RESNET_50 = ("configs/vild_ensemble_r50_short.yaml", "configs/supervised_base_r50_short.yaml")
CASES = (
    Case("Pictograms network", PICTOGRAMS, (160, 160), 100, 30),
    Case("Pictograms network", PICTOGRAMS, (800, 1333), 300, 10),
    Case("ResNet-50 FPN, 1,203 names", RESNET_50, (800, 1333), 300, 2),
)


def measure(cases: Sequence[Case] = CASES) -> list[Row]:
    """A row per case: `ratio` of times; `floor`, if masks and records cost ViLD nothing;
    `operations`, the ratio of floating-point operations."""
    return [_row(case) for case in cases]


def _row(case: Case) -> Row:
    ours, theirs = Evaluation(case), _theirs(case)
    title = f"{case.title}, {case.size[0]} x {case.size[1]} px, {case.detections} detections"
    with torch.no_grad():
        operations = operations_of(partial(ours, 0)) / operations_of(partial(theirs, 0))
        seconds = time_alternately({"ours": ours, "theirs": theirs}, case.rounds, title)
    network = ours.network_seconds[-case.rounds :]
    floors = [a / b for a, b in zip(network, seconds["theirs"], strict=True)]
    return {
        "name": title,
        "ratio": round(ratio_of(seconds, "ours", "theirs"), 3),
        "floor": round(statistics.median(floors), 3),
        "operations": round(operations, 3),
    }


class Evaluation:
    """ViLD-ensemble's way from an image to records.

    Attributes:
        network_seconds: per call, of the network and selection alone.
    """

    def __init__(self, case: Case) -> None:
        self.inputs = _inputs(case)
        self.model = _untrained(case.configs[0], case)
        self.network_seconds: list[float] = []

    def __call__(self, _: int) -> list[dict[str, Any]]:
        start = time.perf_counter()
        (found,) = self.model.inference(self.inputs, do_postprocess=False)
        self.network_seconds.append(time.perf_counter() - start)
        size = self.inputs[0]["height"], self.inputs[0]["width"]
        return detections_to_coco_json(postprocess(found, *size, full_masks=False), 1)


def _theirs(case: Case) -> Timed:
    """Detectron2's way."""
    model, inputs = _untrained(case.configs[1], case), _inputs(case)
    return lambda _: instances_to_coco_json(model(inputs)[0]["instances"], 1)


def _inputs(case: Case) -> list[dict[str, Any]]:
    pixels = 255 * torch.rand(3, *case.size, generator=torch.Generator().manual_seed(0))
    return [{"image": pixels, "height": case.size[0], "width": case.size[1]}]


def _untrained(config: str, case: Case) -> Any:
    """The config's model with random weights; Mask R-CNN with Detectron2's own code."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.OVD.VOCABULARY", "", "MODEL.WEIGHTS", ""]
    cfg: CfgNode = load_config(config, options)
    if cfg.MODEL.META_ARCHITECTURE == "BatchInvariantRCNN":
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = case.detections
    seed_all_rng(0)
    model = build_model(cfg).eval()
    if hasattr(model, "set_vocabulary"):
        count, width = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.OVD.EMBEDDING_DIM
        embeddings = F.normalize(torch.randn(count, width), dim=1)
        model.set_vocabulary(Vocabulary([str(k) for k in range(count)], embeddings))
    return model
