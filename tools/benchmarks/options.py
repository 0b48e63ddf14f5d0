"""What mixed precision and `torch.compile` bring: ratios below 1 are a gain.

Only the backbone is compiled: the heads see another number of regions in every image.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.speed import (
    HALF,
    ROUNDS,
    Ratio,
    Row,
    images_of,
    inference,
    ratio_of,
    rows_of,
    time_alternately,
    training_config,
    training_step,
)
from benchmarks.tables import load_method
from ovd_d2.engine.build import build_train_loader
from ovd_d2.pictograms.steps import Run
from ovd_d2.vild.showcase import SHOWCASE

METHOD = SHOWCASE.method("vild")


def measure(folder: Path, seed: int = 0, device: str = "cpu") -> list[Row]:
    """The ratios as rows for the JSON document; see :func:`benchmarks.speed.measure`."""
    run = Run(folder, seed)
    return rows_of([*training_ratios(run, device), *inference_ratios(run, device)])


def training_ratios(run: Run, device: str) -> list[Ratio]:
    """A training step with mixed precision, and one with a compiled backbone, over one without."""
    cfg = training_config(run, METHOD.name, device)
    batches = list(islice(build_train_loader(cfg), ROUNDS["training"] + 1))
    models = {name: load_method(run, METHOD, device)[1] for name in ("plain", "amp", "compiled")}
    _compile_backbone(models["compiled"])
    steps = {
        name: training_step(cfg, model, batches, amp=name == "amp")
        for name, model in models.items()
    }
    with EventStorage():
        seconds = time_alternately(steps, ROUNDS["training"], "training steps with options")
    half = str(HALF[torch.device(device).type]).removeprefix("torch.")
    return [
        Ratio(f"training step, {METHOD.name}, {title}", ratio_of(seconds, name, "plain"), None)
        for name, title in (
            ("amp", f"mixed precision ({half}) / float32"),
            ("compiled", "compiled backbone / not"),
        )
    ]


def inference_ratios(run: Run, device: str) -> list[Ratio]:
    """One image with a compiled backbone over one without."""
    cfg, plain = load_method(run, METHOD, device)
    _, compiled = load_method(run, METHOD, device)
    _compile_backbone(compiled)
    images = images_of(cfg)
    things = {"plain": inference(plain, images), "compiled": inference(compiled, images)}
    seconds = time_alternately(things, ROUNDS["inference"], "inference with options")
    ratio = ratio_of(seconds, "compiled", "plain")
    return [Ratio(f"inference, {METHOD.name}, compiled backbone / not", ratio, None)]


def _compile_backbone(model: nn.Module) -> None:
    """As MODEL.OVD.COMPILE_BACKBONE does."""
    backbone: Any = model.backbone
    backbone.compile()
