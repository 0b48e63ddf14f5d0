"""What the official network's parts cost: the full recipe with them over Detectron2's parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from benchmarks.probe import on_cpu, probe_input, set_meaningless_vocabulary
from benchmarks.speed import Row, Timed, operations_of, ratio_of, time_alternately
from ovd_d2.engine.run import load_config

CONFIG = "configs/vild_r50.yaml"
# The full recipe's network as it is by Detectron2's conventions; what the short recipes have.
DETECTRON2S = (
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "LevelMeanRPN"),
    *("MODEL.ANCHOR_GENERATOR.OFFSET", "0.0"),
    *("MODEL.RPN.HEAD_NAME", "NormRPNHead"),
    *("MODEL.ROI_HEADS.IN_FEATURES", '["p2", "p3", "p4", "p5"]'),
    *("MODEL.ROI_MASK_HEAD.NAME", "ViLDMaskHead"),
    *("MODEL.OVD.BATCH_NORM.BIASED_VARIANCE", "False"),
    *("MODEL.VILD.INCLUSIVE_BOXES", "False"),
    *("MODEL.VILD.BOX_LOSS_OVER_POSITIVES", "False"),
    *("MODEL.VILD.BIN_CENTRE_POOLING", "False"),
    *("MODEL.VILD.SOFT_MASK_TARGETS", "False"),
)


def measure(side: int, rounds: int, options: Sequence[str] = ()) -> list[Row]:
    """A row for a training step and one for an image.

    Args:
        side: of the image, pixels.
        rounds: that are counted.
        options: `KEY VALUE` pairs that both configs take, e.g. for fewer channels.
    """
    official, detectron2s = _built(options, side), _built([*DETECTRON2S, *options], side)
    return [
        _row(
            f"training step, {side} px",
            rounds,
            *(_training(*one) for one in (official, detectron2s)),
        ),
        _row(
            f"an image, {side} px", rounds, *(_inference(*one) for one in (official, detectron2s))
        ),
    ]


def _built(options: Sequence[str], side: int) -> tuple[Any, dict[str, Any]]:
    """Model with random weights, and an input."""
    fixed = ("MODEL.OVD.VOCABULARY", "", "MODEL.VILD.SQUARE_PAD", "0")
    cfg: CfgNode = on_cpu(load_config(CONFIG, [*fixed, *options]))
    seed_all_rng(0)
    model = build_model(cfg)
    set_meaningless_vocabulary(model, cfg)
    return model, probe_input(cfg, side)


def _training(model: Any, given: dict[str, Any]) -> Timed:
    """Losses and gradients."""

    def step(_: int) -> None:
        model.train().zero_grad(set_to_none=True)
        with EventStorage():
            sum(model([given]).values()).backward()

    return step


def _inference(model: Any, given: dict[str, Any]) -> Timed:
    def detect(_: int) -> None:
        with torch.no_grad():
            model.eval()([given])

    return detect


def _row(title: str, rounds: int, official: Timed, detectron2s: Timed) -> Row:
    operations = operations_of(partial(official, 0)) / operations_of(partial(detectron2s, 0))
    seconds = time_alternately({"official": official, "Detectron2's": detectron2s}, rounds, title)
    return {
        "name": f"ResNet-50, {title}",
        "official_over": round(ratio_of(seconds, "official", "Detectron2's"), 3),
        "official_operations": round(operations, 3),
    }
