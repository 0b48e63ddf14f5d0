"""Parts alone: anchors, coder, assignment, losses, fusion, dynamic ReLU, post-processing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ovd_d2.golden import Found, GoldenFolder, Part, difference
from ovd_d2.projects.glip.anchors import STRIDES, grid_anchors
from ovd_d2.projects.glip.assignment import assign
from ovd_d2.projects.glip.box_coder import decode, encode
from ovd_d2.projects.glip.dyconv import DynamicReLU
from ovd_d2.projects.glip.fusion import Fusion
from ovd_d2.projects.glip.golden.forward import (
    LOSS,
    apart,
    detections_apart,
    relative,
    token_map,
)
from ovd_d2.projects.glip.head import HeadOutputs
from ovd_d2.projects.glip.losses import centerness_targets, giou_losses, token_focal_loss
from ovd_d2.projects.glip.model import LEVELS
from ovd_d2.projects.glip.official_weights import renamed_key
from ovd_d2.projects.glip.postprocess import Selection, candidates, select

CASE = "units.json"
# Options of the public config -> ours.
_OPTIONS = {
    "MODEL.DYHEAD.SCORE_AGG": "aggregation",
    "MODEL.ATSS.DETECTIONS_PER_IMG": "limit",
    "MODEL.ATSS.PRE_NMS_TOP_N": "per_level",
    "MODEL.ATSS.INFERENCE_TH": "score_threshold",
    "MODEL.ATSS.NMS_TH": "nms_threshold",
}
_CLAMPING = 400.0  # what the weights of `*_clamped` are multiplied by


def _units(folder: GoldenFolder, file: str) -> Found:
    """Every tensor of the file."""
    golden, case = folder.tensors(file), folder.json(CASE)
    sizes = grid_sizes(case["padded_hw"])
    yield from _anchors(golden, sizes)
    yield from _coder(golden)
    yield from _assignment(golden, sizes)
    yield from _losses(golden)
    yield from _dynamic_relu(golden)
    yield from _fusion(golden)
    yield from _detections(golden, case, sizes)


def grid_sizes(padded: tuple[int, int]) -> list[tuple[int, int]]:
    """(h, w) of P3 to P7."""
    return [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in STRIDES]


def _anchors(golden: Mapping[str, Tensor], sizes: list[tuple[int, int]]) -> Found:
    anchors = grid_anchors(sizes)
    for level, one in enumerate(anchors):
        name = f"cell_anchors.{level}"
        yield name, difference(one[:1], golden[name]), 0.0
    name = next(key for key in golden if key.startswith("grid_anchors"))
    yield name, difference(torch.cat(anchors), golden[name]), 0.0


def _coder(golden: Mapping[str, Tensor]) -> Found:
    anchors = golden["coder.anchors"]
    ours = encode(golden["coder.gt"], anchors)
    yield "coder.encoded", *apart(ours, golden["coder.encoded"])
    ours = decode(golden["coder.deltas"], anchors)
    yield "coder.decoded", *apart(ours, golden["coder.decoded"])


def _assignment(golden: Mapping[str, Tensor], sizes: list[tuple[int, int]]) -> Found:
    anchors = grid_anchors(sizes)
    whole = torch.cat(anchors)
    for row in (0, 1):
        boxes = golden[f"atss.gt{row}"]
        matched = assign(anchors, boxes)
        name = f"atss.matched{row}"
        yield name, difference(matched, golden[name].long()), 0.0
        positive = (matched >= 0).nonzero()[:, 0]
        name = f"atss.positive_index{row}"
        yield name, difference(positive, golden[name].long()), 0.0
        own, objects = whole[positive], boxes[matched[positive]]
        name = f"atss.reg_targets_of_positives{row}"
        yield name, *apart(encode(objects, own), golden[name])
        name = f"atss.centerness_of_positives{row}"
        yield name, *apart(centerness_targets(own, objects), golden[name])


def _losses(golden: Mapping[str, Tensor]) -> Found:
    anchors, weight = golden["coder.anchors"], golden["giou.weight"]
    found = giou_losses(
        decode(golden["giou.pred"], anchors), decode(golden["coder.encoded"], anchors)
    )
    # centerness of a positive is never 0: no fallback for weights that all are
    for name, ours in (("unweighted", found), ("weighted", found * weight), ("zero_weight", found)):
        name = f"giou.loss_{name}"
        yield f"{name} (relative)", relative(ours.sum(), golden[name].item()), LOSS
    inputs = tuple(golden[f"token_focal.{one}"] for one in ("logits", "targets", "mask"))
    for name, rows in (("sum", slice(2)), ("sum_row0", slice(1)), ("sum_row1", slice(1, 2))):
        logits, targets, mask = (one[rows] for one in inputs)
        ours = token_focal_loss(logits, targets, mask > 0)
        name = f"token_focal.{name}"
        yield f"{name} (relative)", relative(ours, golden[name].item()), LOSS


@torch.no_grad()
def _dynamic_relu(golden: Mapping[str, Tensor]) -> Found:
    part = DynamicReLU(golden["dyrelu.x"].shape[1])
    for ours, theirs in (("reduce", "fc0"), ("expand", "fc2")):
        for leaf in ("weight", "bias"):
            part.get_submodule(ours).get_parameter(leaf).copy_(golden[f"dyrelu.{theirs}_{leaf}"])
    yield "dyrelu.y", *apart(part(golden["dyrelu.x"]), golden["dyrelu.y"])


@torch.no_grad()
def _fusion(golden: Mapping[str, Tensor]) -> Found:
    prefix = "fuse.weight."
    weights = {
        str(
            renamed_key(f"rpn.head.dyhead_tower.0.b_attn.{key.removeprefix(prefix)}", fused=True)
        ).partition(".fusion.")[2]: one
        for key, one in golden.items()
        if key.startswith(prefix)
    }
    image, text, mask = golden["fuse.v"], golden["fuse.l"], golden["fuse.mask"] > 0
    width = len(weights["image_query.weight"])
    part = Fusion(image.shape[2], text.shape[2], width=width, heads=2, gain=1.0).eval()
    for ending, factor in (("", 1.0), ("_clamped", _CLAMPING)):
        sharp = {f"{name}.weight": factor for name in ("image_query", "text_key")}
        part.load_state_dict({key: one * sharp.get(key, 1.0) for key, one in weights.items()})
        for name, ours in zip(("out_v", "out_l"), part.fuse(image, text, mask), strict=True):
            yield f"fuse.{name}{ending}", *apart(ours, golden[f"fuse.{name}{ending}"])


def _detections(
    golden: Mapping[str, Tensor], case: Mapping[str, Any], sizes: list[tuple[int, int]]
) -> Found:
    outputs = HeadOutputs(
        logits=[golden[f"post.logits_tokens0_15.{level}"] for level in LEVELS],
        deltas=[golden[f"post.bbox.{level}"].flatten(2).transpose(1, 2) for level in LEVELS],
        centerness=[golden[f"post.centerness.{level}"].flatten(1) for level in LEVELS],
        sizes=sizes,
    )
    anchors = grid_anchors(sizes)
    positives = token_map(case["label_to_tokens"], outputs.logits[0].shape[2])
    labels = torch.arange(len(positives)) + 1
    for name, how in case.items():
        if not isinstance(how, dict) or "options" not in how:
            continue
        selection = _selection(how["options"])
        for row, size in enumerate(case["image_hw"]):
            part = candidates(outputs, row, anchors, positives, labels, selection)
            found = select([part], tuple(size), selection)
            yield from detections_apart(found, golden, f"post.{name}.image{row}")


def _selection(options: Mapping[str, Any]) -> Selection:
    values = {_OPTIONS[key]: value for key, value in options.items() if key in _OPTIONS}
    if "aggregation" in values:
        values["aggregation"] = values["aggregation"].lower()
    return Selection(**values)


PARTS = (Part("units", ("units.safetensors", CASE), _units),)
