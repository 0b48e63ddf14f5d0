"""What training without a cache costs: an iteration online over the same one from a cache."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import islice
from typing import Any

import open_clip
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from benchmarks.probe import (
    on_cpu,
    probe_input,
    set_meaningless_vocabulary,
    training_pixels,
)
from benchmarks.speed import Ratio, Row, Timed, operations_of, ratio_of, time_alternately
from ovd_d2.clip.crops import VILD_RECIPE
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.untrained import untrained_model
from ovd_d2.engine.build import build_open_vocabulary_model, build_train_loader
from ovd_d2.engine.optimization import build_optimizer
from ovd_d2.engine.run import load_config
from ovd_d2.pictograms.steps import Run
from ovd_d2.structures import cached_proposals_of
from ovd_d2.vild.showcase import START, cache_of

ROUNDS = 12
SEED = 0  # of the samplers: all see the same images in the same order
NAME = "training iteration, online / cached"


@dataclass(frozen=True)
class OnlineCost:
    """What it costs to embed inside training.

    Attributes:
        ratio: time of an iteration (loading and step) online over one from a cache. Predicted:
            the time of the cached one and of the teacher's bare forward pass on as many crops,
            over that of the cached one, all measured in the same rounds. No training that asks
            the teacher can be faster.
        crops: of a batch, mean.
        seconds: medians of an iteration "online", one "cached", and the "teacher" alone.
    """

    ratio: Ratio
    crops: float
    seconds: dict[str, float]

    def row(self) -> Row:
        """For the JSON document and :func:`benchmarks.speed.table_of`."""
        assert self.ratio.predicted is not None
        return {
            "name": self.ratio.name,
            "measured": round(self.ratio.measured, 3),
            "predicted": round(self.ratio.predicted, 3),
            "crops_per_iteration": round(self.crops, 1),
            "iteration_milliseconds": {k: round(1000 * v, 1) for k, v in self.seconds.items()},
        }


def pictograms_online_cost(run: Run) -> OnlineCost:
    """Of ViLD on Pictograms, with the proposals and the cache of `run`."""
    fixed = ["MODEL.WEIGHTS", str(run.weights(START)), "DATALOADER.NUM_WORKERS", "0"]
    cache = ["MODEL.VILD.DISTILLATION.CACHE", str(cache_of(run))]
    proposals = ["MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS", str(run.output("proposals"))]
    return online_cost(
        load_config("configs/pictograms/vild.yaml", [*fixed, *cache]),
        load_config("configs/pictograms/vild_online.yaml", [*fixed, *proposals]),
    )


def online_cost(cached: CfgNode, online: CfgNode, rounds: int = ROUNDS) -> OnlineCost:
    """Measures both on the same images, and beside them the teacher's forward pass alone.

    Args:
        cached, online: configs that differ in where the embeddings come from. With
            `DATALOADER.NUM_WORKERS` 0 loading is in the time, else as far as the step waits for it.
        rounds: iterations of each.
    """
    crops = _crops_of_batches(cached, rounds + 1)
    things = {
        "online": _iteration(online),
        "cached": _iteration(cached),
        "teacher": _teacher_pass(online, crops),
    }
    with EventStorage():
        seconds = time_alternately(things, rounds, "training iterations, online and cached")
    floor = [a + b for a, b in zip(seconds["cached"], seconds["teacher"], strict=True)]
    predicted = ratio_of({"floor": floor, "cached": seconds["cached"]}, "floor", "cached")
    return OnlineCost(
        Ratio(NAME, ratio_of(seconds, "online", "cached"), predicted),
        statistics.mean(crops[1:]),
        {name: statistics.median(values) for name, values in seconds.items()},
    )


def lvis_row() -> Row:
    """What operations predict for ViLD on LVIS with CLIP ViT-B/32, where nobody has measured."""
    predicted = predicted_ratio(load_config("configs/vild_r50.yaml"))
    return {"name": f"{NAME}, LVIS by operations", "predicted": round(predicted, 2)}


def predicted_ratio(cfg: CfgNode) -> float:
    """Operations of a training step with the teacher's over those without, of random weights.

    An image of the training size with PROPOSALS_PER_IMAGE proposals, two crops each; a backward
    pass counts as two forward ones (nothing is frozen). Loading, cutting and resizing are not in
    it.
    """
    cfg = on_cpu(cfg)
    model = build_model(cfg).train()
    set_meaningless_vocabulary(model, cfg)
    inputs = [probe_input(cfg, round(math.sqrt(training_pixels(cfg))))]
    with torch.no_grad(), EventStorage():
        step = 3 * operations_of(lambda: model(inputs))
    architecture = cfg.MODEL.OVD.TEACHER.ARCHITECTURE
    clip = untrained_model(architecture).eval()
    size = open_clip.get_model_preprocess_cfg(clip)["size"]
    pixels = torch.zeros(1, 3, *((size, size) if isinstance(size, int) else size))
    with torch.no_grad():
        crop = operations_of(lambda: clip.encode_image(pixels))
    crops = len(VILD_RECIPE.scales) * cfg.MODEL.VILD.DISTILLATION.PROPOSALS_PER_IMAGE
    return (step + crops * crop) / step


def _crops_of_batches(cfg: CfgNode, count: int) -> list[int]:
    """Crops the teacher must see for each of the first batches (flips do not change it)."""
    seed_all_rng(SEED)
    batches = islice(build_train_loader(cfg), count)
    return [sum(len(VILD_RECIPE.scales) * _proposals_in(x) for x in b) for b in batches]


def _proposals_in(record: dict[str, Any]) -> int:
    cached = cached_proposals_of(record["instances"])
    return 0 if cached is None else len(cached)


def _iteration(cfg: CfgNode) -> Timed:
    """Load a batch, embed it where the config says so, train one step on it."""
    model = build_open_vocabulary_model(cfg, required=None).train()
    optimizer = build_optimizer(cfg, model)
    seed_all_rng(SEED)
    batches = iter(build_train_loader(cfg))

    def iterate(_: int) -> None:
        losses = model(next(batches))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        _wait_for(cfg.MODEL.DEVICE)

    return iterate


def _teacher_pass(cfg: CfgNode, crops: list[int]) -> Timed:
    """The teacher's forward pass on noise, in full batches: nothing is cut, resized or copied."""
    teacher: CLIPTeacher = configured_teacher(cfg, device=cfg.MODEL.DEVICE)
    size = cfg.MODEL.VILD.DISTILLATION.ONLINE.BATCH_SIZE
    pixels = torch.rand(size, 3, *teacher.image_size, device=cfg.MODEL.DEVICE)

    def encode(number: int) -> None:
        for start in range(0, crops[number], size):
            teacher.encode_images(pixels[: crops[number] - start])
        _wait_for(cfg.MODEL.DEVICE)

    return encode


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
