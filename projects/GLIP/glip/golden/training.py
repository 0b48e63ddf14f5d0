"""Assignment, losses, gradients and one step of the optimiser, of the small cases."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.engine.optimization import build_optimizer
from ovd_d2.engine.run import load_config
from ovd_d2.golden import Found, GoldenFolder, Part, difference
from ovd_d2.projects.glip.anchors import grid_anchors
from ovd_d2.projects.glip.assignment import BACKGROUND, assign
from ovd_d2.projects.glip.box_coder import encode
from ovd_d2.projects.glip.golden.forward import LOSS, TINY, relative, tiny_inputs
from ovd_d2.projects.glip.golden.networks import CONFIGS, ROOT, tiny_network
from ovd_d2.projects.glip.golden.units import grid_sizes
from ovd_d2.projects.glip.golden.weights import key_file
from ovd_d2.projects.glip.losses import centerness_targets
from ovd_d2.projects.glip.model import TOKEN_TARGETS
from ovd_d2.projects.glip.official_weights import renamed_key
from ovd_d2.projects.glip.questions import TOKENS

NORM = 1e-3  # relative
TARGETS, GRADIENT, STEP = 1e-4, 1e-3, 1e-5
LOSSES = {
    "loss_reg": "loss_box",
    "loss_centerness": "loss_centerness",
    "loss_dot_product_token": "loss_tokens",
}
RATES = {True: "glip_t", False: "glip_t_a"}  # configs with the optimiser's values


def _training(folder: GoldenFolder, file: str, *, name: str, fused: bool) -> Found:
    """Every tensor and number of the file and of its JSON."""
    case, golden = folder.json(f"{name}_train.json"), folder.tensors(file)
    forward = folder.tensors(f"{name}_forward.safetensors")
    model = tiny_network(folder, case, fused).train()
    batch = training_batch(case, forward)
    yield from _assignment(model, case, batch, golden)
    losses = model(batch)
    for theirs, ours in LOSSES.items():
        yield f"{theirs} (relative)", relative(losses[ours], case["losses"][theirs]), LOSS
    total = sum(losses.values())
    yield "total (relative)", relative(total, case["total"]), LOSS
    total.backward()
    yield from _gradients(model, case, golden, fused)
    yield from _step(model, case, fused)


def training_batch(case: Mapping[str, Any], forward: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Inputs as the loader makes them; tokens and targets are the golden ones."""
    inputs, first = tiny_inputs(case), 0
    for row, one in enumerate(inputs):
        boxes = torch.tensor(case["boxes_xyxy"][row]) + torch.tensor([0, 0, 1, 1])
        targets = forward["text.positive_map_binary"][first : first + len(boxes)] > 0
        first += len(boxes)
        valid = forward["text.attention_mask"][row] > 0
        instances = Instances(tuple(one["image"].shape[1:]), gt_boxes=Boxes(boxes))
        instances.set(TOKEN_TARGETS, targets[:, valid])
        one["instances"] = instances
        one[TOKENS] = forward["text.input_ids"][row][valid].long()
    return inputs


def _assignment(
    model: Any, case: Mapping[str, Any], batch: list[dict[str, Any]], golden: Mapping[str, Tensor]
) -> Found:
    height, width = model.preprocess(batch).tensor.shape[2:]
    anchors = grid_anchors(grid_sizes((height, width)))
    whole, centerness = torch.cat(anchors), []
    for row, one in enumerate(batch):
        boxes = torch.tensor(case["boxes_xyxy"][row])
        matched = assign(anchors, boxes)
        positive = matched != BACKGROUND
        yield f"num_positive, {row}", abs(int(positive.sum()) - case["num_positive"][row]), 0
        own, objects = whole[positive], boxes[matched[positive]]
        centerness.append(centerness_targets(own, objects))
        classes = torch.tensor(case["labels"][row])[matched].where(positive, torch.tensor(0))
        name = f"assign.matched_gt{row}"
        yield name, difference(matched, golden[name].long()), 0.0
        name = f"assign.cls_labels{row}"
        yield name, difference(classes, golden[name].long()), 0.0
        learned = {
            f"assign.reg_targets{row}": encode(objects, own),
            f"assign.token_labels{row}": one["instances"].get(TOKEN_TARGETS)[matched[positive]],
        }
        for name, ours in learned.items():
            if name in golden:  # a small copy may lack one; there are columns of padding, too
                theirs = golden[name][positive][:, : ours.shape[1]]
                apart = difference(ours[:, : theirs.shape[1]].float(), theirs)
                yield f"{name}, positives", apart, TARGETS
    name = "assign.centerness_targets"
    yield name, difference(torch.cat(centerness), golden[name]), TARGETS


def _own(name: str, fused: bool) -> str:
    key = renamed_key(name, fused=fused)
    if key is None:
        raise ValueError(f"no parameter is called {name}")
    return key


def _left_out(name: str) -> bool:
    """An unused classifier; gradients that are 0 but for rounding."""
    return "cls_logits" in name or name.endswith(".attention.self.key.bias")


def _gradients(
    model: Any, case: Mapping[str, Any], golden: Mapping[str, Tensor], fused: bool
) -> Found:
    parameters = dict(model.named_parameters())
    grads = {name: one.grad for name, one in parameters.items()}
    for name, norm in case["grad_norms"].items():
        if not _left_out(name):
            ours = grads[_own(name, fused)].norm()
            yield f"norm {name[-33:]} (relative)", relative(ours, norm), NORM
    total = torch.stack([one.double().norm() for one in grads.values()]).norm()
    yield "total_grad_norm (relative)", relative(total, case["total_grad_norm_before_clip"]), NORM
    for name, theirs in golden.items():
        if name.startswith("grad."):
            ours = grads[_own(name.removeprefix("grad."), fused)]
            yield (
                name[-44:],
                difference(ours, theirs) / max(1.0, float(theirs.abs().max())),
                GRADIENT,
            )


def _step(model: Any, case: Mapping[str, Any], fused: bool) -> Found:
    config = ROOT / CONFIGS / f"{RATES[fused]}.yaml"
    optimizer = build_optimizer(load_config(str(config), ["MODEL.DEVICE", "cpu"]), model)
    groups = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters, wrong = dict(model.named_parameters()), 0
    for name, theirs in case["adamw"]["groups_lr_wd"].items():
        if not _left_out(name):
            ours = groups[id(parameters[_own(name, fused)])]
            wrong += any(abs(a - b) > 1e-12 for a, b in zip(ours, theirs, strict=True))
    yield "adamw.groups_lr_wd, others", wrong, 0
    optimizer.step()
    for name, theirs in case["adamw"]["first_values_after_one_step"].items():
        ours = parameters[_own(name, fused)].detach().flatten()[: len(theirs)]
        yield f"step {name[-39:]}", difference(ours, torch.tensor(theirs)), STEP


PARTS = tuple(
    Part(
        f"training of {name}",
        (
            f"{name}_train.safetensors",
            f"{name}_train.json",
            f"{name}_forward.safetensors",
            key_file(name),
        ),
        partial(_training, name=name, fused=fused),
    )
    for name, fused in TINY.items()
)
