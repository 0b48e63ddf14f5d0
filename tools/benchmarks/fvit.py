"""Where F-ViT's time goes, and what its frozen tower saves in training, on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from benchmarks.documents import table
from benchmarks.memory import peak_memory
from benchmarks.probe import on_cpu, probe_input, set_meaningless_vocabulary
from benchmarks.speed import (
    Row,
    Timed,
    operations_of,
    ratio_of,
    time_alternately,
    training_step,
)
from ovd_d2.clip.dense import DenseViT
from ovd_d2.engine.run import load_config

CONFIG = "projects/CLIPSelf/configs/ov_lvis_fvit_b16.yaml"  # with masks
ALL, MASKS = "all", "masks, of the heads"


@dataclass(frozen=True)
class Detector:
    """F-ViT with random weights.

    Attributes:
        architecture: of its tower.
        side: of the image, pixels.
        options: of the config, `KEY VALUE` pairs.
        rounds: that are counted, of inference and of training.
    """

    architecture: str
    side: int
    options: Sequence[str]
    rounds: tuple[int, int]


# A tenth of the recipe's pixels, and as many of its proposals.
CASE = Detector(
    "EVA02-B-16",
    320,
    (
        *("MODEL.RPN.POST_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "50", "TEST.DETECTIONS_PER_IMAGE", "30"),
    ),
    (5, 3),
)


def measure(case: Detector = CASE) -> list[Row]:
    """A row per part of inference, and one of a training step."""
    cfg: CfgNode = on_cpu(load_config(CONFIG, _options(case)))
    seed_all_rng(0)
    model = build_model(cfg)
    set_meaningless_vocabulary(model, cfg)
    inputs = probe_input(cfg, case.side)
    return [*_profile(case, model, inputs), _training(case, cfg, model, inputs)]


def _options(case: Detector) -> list[str]:
    """Nothing is read: not even a checkpoint, whose name makes the tower's weights random."""
    return [
        *("MODEL.WEIGHTS", "random", "MODEL.OVD.VOCABULARY", "", "MODEL.FVIT.SQUARE_PAD", "0"),
        *("MODEL.OVD.TEACHER.ARCHITECTURE", case.architecture, *case.options),
    ]


def _profile(case: Detector, model: Any, inputs: dict[str, Any]) -> list[Row]:
    with torch.no_grad():
        things = _parts(model.eval(), inputs)
        operations = {name: operations_of(partial(thing, 0)) for name, thing in things.items()}
        seconds = time_alternately(things, case.rounds[0], f"F-ViT's parts, {case.side} px")
    return [
        {
            "name": name,
            "share_of_time": round(ratio_of(seconds, name, ALL), 3),
            "share_of_operations": round(operations[name] / operations[ALL], 3),
        }
        for name in things
        if name != ALL
    ]


def _parts(model: Any, inputs: dict[str, Any]) -> dict[str, Timed]:
    """All of inference up to masks in boxes, and its parts on what the ones before them gave."""
    backbone, heads = model.backbone, model.roi_heads
    images = model.preprocess_image([inputs])
    tower = partial(backbone.vit.run, images.tensor, taps=backbone.taps)
    maps = [tower().taps[index] for index in backbone.taps]
    features = backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features)
    found, _ = heads(images, features, proposals)
    for one in found:
        one.remove("pred_masks")
    return {
        ALL: lambda _: model.inference([inputs], do_postprocess=False),
        "tower": lambda _: tower(),
        "pyramid": lambda _: backbone.fpn(backbone.pyramid(maps)),
        "RPN": lambda _: model.proposal_generator(images, features),
        "heads": lambda _: heads(images, features, proposals),
        MASKS: lambda _: heads.forward_with_given_boxes(features, [one[:] for one in found]),
    }


def _training(case: Detector, cfg: CfgNode, model: Any, inputs: dict[str, Any]) -> Row:
    batches, naive = [[inputs]] * (case.rounds[1] + 1), copy.deepcopy(model)
    things = {"frozen": _step(cfg, model, batches), "naive": _step(cfg, naive, batches)}
    # Its optimizer is made: it trains the same as the other's.
    naive.backbone.vit = DenseViT(naive.backbone.vit.visual).eval().requires_grad_()
    title = f"{case.architecture}, {case.side} px"
    with EventStorage():
        operations = {name: operations_of(partial(thing, 0)) for name, thing in things.items()}
        seconds = time_alternately(things, case.rounds[1], f"F-ViT's training, {title}")
        peaks = {name: peak_memory(partial(thing, 0)) for name, thing in things.items()}
    return {
        "name": title,
        "naive_over": round(ratio_of(seconds, "naive", "frozen"), 2),
        "naive_operations": round(operations["naive"] / operations["frozen"], 2),
        "naive_memory": round(peaks["naive"] / peaks["frozen"], 2),
        **{f"{name}_megabytes": round(peak / 1e6) for name, peak in peaks.items()},
    }


def _step(cfg: CfgNode, model: Any, batches: Sequence[Any]) -> Timed:
    """A whole step that leaves no gradients behind."""
    step = training_step(cfg, model, batches)

    def run(number: int) -> None:
        step(number)
        model.zero_grad()

    return run


def tables_of(rows: Sequence[Row]) -> dict[str, str]:
    """Markdown: "inference" and "training"."""
    return {
        "inference": table(
            rows, name="part", share_of_time="share of time",
            share_of_operations="share of operations",
        ),
        "training": table(
            rows, name="tower, image", naive_over="time over time", naive_operations="operations",
            naive_memory="memory over memory", naive_megabytes="with graph, MB",
            frozen_megabytes="without, MB",
        ),
    }  # fmt: skip
