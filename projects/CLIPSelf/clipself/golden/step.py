"""One step of the self-distillation, and three of its optimiser (section 4 of the README)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from torch import Tensor, nn

from ovd_d2.clip.dense import roi_features
from ovd_d2.clip.eva_weights import eva_to_open_clip
from ovd_d2.clip.untrained import untrained_model
from ovd_d2.data.mapper import no_objects
from ovd_d2.engine.optimization import build_optimizer
from ovd_d2.engine.run import load_config
from ovd_d2.golden import INSTANCE, Found, GoldenFolder, Part, difference, relative_difference
from ovd_d2.modeling.averaging import average_weights
from ovd_d2.projects.clipself.crops import pixel_windows
from ovd_d2.projects.clipself.golden.data import (
    CONFIG,
    PLACES,
    sampled,
    student_image,
    teacher_crops,
)
from ovd_d2.projects.clipself.golden.weights import (
    golden_teacher,
    key_file,
    key_shapes,
    random_image,
)
from ovd_d2.projects.clipself.grids import grid_cells
from ovd_d2.projects.clipself.model import CLIPSelf
from ovd_d2.projects.clipself.passengers import Regions, attach_regions, regions_of

KEYS, ARCHITECTURE = "eva02_clip_b16", "EVA02-B-16"
FEATURES, LOSS, GRADIENTS, RATE = 2e-5, 1e-5, 1e-4, 1e-4  # tolerances; the last three relative
WEIGHTS = 1e-6
# Of `grad_norms`, without "visual.blocks."
NORMS = (
    "0.norm1.weight", "0.attn.q_proj.weight", "0.attn.q_bias", "0.mlp.w1.weight",
    "5.attn.v_proj.weight", "5.attn.inner_attn_ln.weight", "10.mlp.w3.weight",
    "10.attn.k_proj.weight", "11.attn.v_proj.weight", "11.attn.v_bias", "11.attn.proj.weight",
    "11.mlp.w3.bias", "11.norm2.bias",
)  # fmt: skip


def _step(folder: GoldenFolder, file: str) -> Found:
    """Every tensor of the file."""
    golden = folder.tensors(file)
    instance = folder.instance["b_train_step"]
    teacher = golden_teacher(folder, KEYS, ARCHITECTURE)
    model = CLIPSelf(teacher=teacher, image_size=instance["student_size"], alpha=0.7).train()
    names = official_names(folder)
    pictures = [
        random_image(folder, f"train_image:{k}", *size)
        for k, size in enumerate(instance["images_hw"])
    ]
    batch = [
        _record(pixels, grid, instance)
        for pixels, grid in zip(pictures, instance["grids_mn"], strict=True)
    ]
    yield from _inputs(model, batch, golden)
    yield from _features(model, batch, golden)
    optimizer = build_optimizer(step_config(), model)
    losses, name = [], "losses_3_steps_lr1e-5"
    for step in range(len(golden[name])):  # a small copy may hold fewer
        loss = model(batch)["loss_clipself"]
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            yield from _gradients(model, names, golden)
        optimizer.step()
        losses.append(loss.detach())
    yield name, difference(torch.stack(losses), golden[name]), LOSS
    if "loss_after_3_steps" in golden:
        with torch.no_grad():
            last = model(batch)["loss_clipself"].reshape(1)
        yield "loss_after_3_steps", difference(last, golden["loss_after_3_steps"]), GRADIENTS
        yield from _weights(model, names, golden)
    rates, name = golden["lr_values"], "lr_values"
    apart = ((_rates(golden["lr_steps"]) - rates).abs() / rates).max().item()
    yield f"{name} (relative)", apart, RATE


def step_config() -> CfgNode:
    """That of the recipe, on the CPU."""
    return load_config(str(CONFIG), ["MODEL.DEVICE", "cpu"])


def official_names(folder: GoldenFolder) -> dict[str, str]:
    """Name of a parameter in the public code, "visual." included -> that of the student's.

    The conversion of checkpoints keeps tensors as they are: each is followed by its number.
    """
    shapes = key_shapes(folder, KEYS)
    numbered = {
        key: torch.tensor(float(k)).expand(shape) for k, (key, shape) in enumerate(shapes.items())
    }
    converted = eva_to_open_clip(numbered, untrained_model(ARCHITECTURE, "meta"))
    official = list(shapes)
    return {
        official[int(value.reshape(-1)[0])]: f"student.{key}"
        for key, value in converted.items()
        if key.startswith("visual.")
    }


def _record(pixels: np.ndarray, grid: tuple[int, int], instance: Mapping[str, Any]) -> dict:
    """A training input with all cells of a grid, as uint8."""
    height, width = pixels.shape[:2]
    cells = grid_cells(*grid, height, width)
    image = student_image(pixels, instance["student_size"])
    windows = pixel_windows(cells, height, width)
    crops = teacher_crops(pixels, windows, instance["teacher_size"])
    boxes = torch.from_numpy(cells / max(height, width)).float()
    instances = no_objects(tuple(image.shape[1:]), None)
    attach_regions(instances, Regions(boxes, crops))
    return {"image": image, "instances": instances}


def _inputs(model: CLIPSelf, batch: list[dict], golden: Mapping[str, Tensor]) -> Found:
    images = model.preprocess(batch)
    name = "student_images_s4"
    yield name, difference(sampled(images, golden[name]), golden[name]), PLACES
    regions = regions_of([one["instances"] for one in batch])
    slots = golden["boxes"]
    theirs = slots[slots[:, :, 4] > 0][:, :4]
    yield "boxes", difference(torch.cat([one.boxes for one in regions]), theirs), PLACES
    crops = model._normalised(torch.cat([one.crops for one in regions]))
    name = "teacher_crops_s8"
    yield name, difference(sampled(crops, golden[name]), golden[name]), PLACES


@torch.no_grad()
def _features(model: CLIPSelf, batch: list[dict], golden: Mapping[str, Tensor]) -> Found:
    regions = regions_of([one["instances"] for one in batch])
    dense = model.student(model.preprocess(batch))
    pooled = roi_features(dense, [one.boxes for one in regions], [(1.0, 1.0)] * len(regions))
    name = "student_roi_features"
    yield name, difference(pooled, golden[name]), FEATURES / 10
    crops = model._normalised(torch.cat([one.crops for one in regions]))
    ours, name = model.teacher.encode_images(crops), "teacher_crop_features"
    theirs = nn.functional.normalize(golden[name], dim=1)
    yield f"{name} (unit)", difference(ours, theirs), FEATURES


def _gradients(model: CLIPSelf, names: Mapping[str, str], golden: Mapping[str, Tensor]) -> Found:
    parameters = dict(model.named_parameters())
    grads = {name: one.grad for name, one in parameters.items() if one.grad is not None}
    ours = torch.stack([grads[names[f"visual.blocks.{one}"]].norm() for one in NORMS])
    apart = ((ours - golden["grad_norms"]).abs() / golden["grad_norms"]).max().item()
    yield "grad_norms (relative)", apart, GRADIENTS
    total = torch.stack([one.double().norm() for one in grads.values()]).norm().reshape(1)
    name = "grad_norm_total"
    yield f"{name} (relative)", relative_difference(total, golden[name]), GRADIENTS
    for name, expected in golden.items():
        if name.startswith("grad."):
            found = sampled(grads[names[name.removeprefix("grad.")]], expected)
            yield f"{name} (relative)", relative_difference(found, expected), GRADIENTS


def _weights(model: CLIPSelf, names: Mapping[str, str], golden: Mapping[str, Tensor]) -> Found:
    student = {name: one.detach() for name, one in model.named_parameters()}
    teacher = {f"student.{key}": one for key, one in model.teacher.state_dict().items()}
    found = {
        "student_after3.": student,
        "averaged_0.7.": average_weights(student, teacher, model.alpha),
    }
    for prefix, weights in found.items():
        for name, expected in golden.items():
            if name.startswith(prefix):
                ours = sampled(weights[names[name.removeprefix(prefix)]], expected)
                yield name, difference(ours, expected), WEIGHTS


def _rates(steps: Tensor) -> Tensor:
    """Learning rates x 1e6 of the recipe's schedule; the reference has 44352 steps."""
    cfg = step_config()
    cfg.merge_from_list(["SOLVER.MAX_ITER", "44352"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    multiplier = scheduler._multiplier
    rates = [cfg.SOLVER.BASE_LR * multiplier(step / cfg.SOLVER.MAX_ITER) for step in steps.tolist()]
    return torch.tensor(rates) * 1e6


PARTS = (Part("training step", ("b_train_step.safetensors", key_file(KEYS), INSTANCE), _step),)
