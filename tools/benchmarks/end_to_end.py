"""Evaluating an image end to end: ViLD-ensemble over Detectron2's own Mask R-CNN of its width.

python -m benchmarks.end_to_end

From the image to COCO's records, as the evaluators of either keep them: network, selection, masks,
run lengths. Weights are random, under a fixed seed, so that every image gives as many detections as
may be given; their boxes are about as large as the anchors.
"""

from __future__ import annotations

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

from benchmarks.speed import (
    Ratio,
    Timed,
    operations_of,
    ratio_of,
    rows_of,
    table_of,
    take_turns,
)
from ovd_d2.engine.run import load_config
from ovd_d2.evaluation.evaluator_mixin import detections_to_coco_json
from ovd_d2.vocabulary import Vocabulary


@dataclass(frozen=True)
class Case:
    """What both networks are given.

    Attributes:
        title: of the rows.
        size: (height, width) of the image, pixels.
        detections: in an image.
        rounds: that are counted.
    """

    title: str
    size: tuple[int, int]
    detections: int
    rounds: int


OURS, THEIRS = (f"configs/pictograms/{name}.yaml" for name in ("vild_ensemble", "supervised_base"))
CASES = (
    Case("Pictograms network, 160 px", (160, 160), 100, 30),
    Case("Pictograms network, 800 x 1333 px", (800, 1333), 300, 10),
)


def measure(cases: Sequence[Case] = CASES) -> list[Ratio]:
    """Two ratios per case: of everything, and if masks and records cost ViLD nothing, the floor."""
    return [ratio for case in cases for ratio in _ratios(case)]


def _ratios(case: Case) -> list[Ratio]:
    things = _things(case)
    with torch.no_grad():
        operations = {name: operations_of(partial(thing, 0)) for name, thing in things.items()}
        seconds = take_turns(things, case.rounds, case.title)
    title = f"evaluation, vild_ensemble / Mask R-CNN, {case.title}, {case.detections} detections"
    return [
        Ratio(name, ratio_of(seconds, over, "theirs"), operations[over] / operations["theirs"])
        for name, over in ((title, "ours"), (f"{title}: network alone / all", "network"))
    ]


def _things(case: Case) -> dict[str, Timed]:
    """An image and what the evaluators make of it; ViLD-ensemble's network and selection alone."""
    ours, theirs = _untrained(OURS, case), _untrained(THEIRS, case)
    ours.full_masks = False  # as in evaluation
    pixels = 255 * torch.rand(3, *case.size, generator=torch.Generator().manual_seed(0))
    inputs = [{"image": pixels, "height": case.size[0], "width": case.size[1]}]
    return {
        "ours": lambda _: detections_to_coco_json(ours(inputs)[0]["instances"], 1),
        "theirs": lambda _: instances_to_coco_json(theirs(inputs)[0]["instances"], 1),
        "network": lambda _: ours.inference(inputs, do_postprocess=False),
    }


def _untrained(config: str, case: Case) -> Any:
    """The config's model with random weights; Mask R-CNN with Detectron2's own inference."""
    cfg: CfgNode = load_config(config, ["MODEL.DEVICE", "cpu", "MODEL.OVD.VOCABULARY", ""])
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


if __name__ == "__main__":
    print(table_of(rows_of(measure())))
