"""ViLD beside the public ViLD code's numbers (:mod:`ovd_d2.golden`).

The layout of a folder: image tensors NHWC, boxes [y1, x1, y2, x2], deltas [dy, dx, dh, dw], the
background is class 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.nn import functional as F

from ovd_d2 import scoring
from ovd_d2.data.augmentation import TensorFlowResizeTransform
from ovd_d2.golden import INSTANCE, Found, GoldenFolder, Part, difference, unmatched_boxes
from ovd_d2.losses import distillation_l1, level_huber_loss, suppress_novel_logits
from ovd_d2.vild.boxes import AnchorTransform, InclusiveBox2BoxTransform, clip_to_pixels
from ovd_d2.vild.mask_head import soft_mask_targets
from ovd_d2.vild.official_weights import (
    HEAD,
    TEXT_EMBEDDINGS,
    Converted,
    Place,
    convert_variables,
    places,
    variable_shape,
)
from ovd_d2.vild.pooler import BinCentrePooler
from ovd_d2.vild.rpn import OneAnchorMatcher
from ovd_d2.vocabulary import Vocabulary

CONFIGS = {"vanilla": "configs/vild_r50.yaml", "double_branch": "configs/vild_ensemble_r50.yaml"}
LEVELS = range(2, 7)
DIMS = 512
REGION_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
DETECTED = ("detection_boxes", "detection_classes", "detection_scores")
MISSED_DETECTIONS = 5  # of 300


def xy(boxes: Tensor) -> Tensor:
    """Last dimension [y, x, y, x] <-> [x, y, x, y], [dy, dx, dh, dw] <-> [dx, dy, dw, dh]."""
    return boxes[..., [1, 0, 3, 2]]


def _anchors() -> DefaultAnchorGenerator:
    strides = [2**level for level in LEVELS]
    ratios = [[1.0, 0.5, 2.0]]
    return DefaultAnchorGenerator(
        sizes=[[8 * stride] for stride in strides],
        aspect_ratios=ratios,
        strides=strides,
        offset=0.5,
    )


def _anchors_of(height: int, width: int) -> list[Boxes]:
    return _anchors()([torch.zeros(1, 1, height >> level, width >> level) for level in LEVELS])


def _parser(folder: GoldenFolder, file: str) -> Found:
    golden = folder.tensors(file)
    cases = sorted(name.split(".")[0] for name in golden if name.endswith(".image"))
    image = golden["image_rgb"].numpy()
    for case in cases:
        info = golden[f"{case}.image_info"]
        flips = [
            case in ("flip_both", "large_flip_first", "flip_first"),
            "second" in case or "both" in case,
        ]
        drawn = _jitter(image, info, flip=flips[0] != flips[1])
        side = int(info[1, 0])
        pixels = _normalised(drawn.apply_image(image), side)
        step = side // golden[f"{case}.image"].shape[0]
        apart = difference(torch.from_numpy(pixels[::step, ::step]), golden[f"{case}.image"])
        yield f"{case}.image", apart, 1e-5
        # The official training code flips twice and the stored regions the first time alone.
        regions = _jitter(image, info, flip=flips[0])
        for name, transform in (("gt_boxes", drawn), ("roi_boxes", regions)):
            if f"{case}.{name}" in golden:
                yield f"{case}.{name}", _jittered(golden, case, name, transform), 1e-3


def _jittered(golden: Mapping[str, Tensor], case: str, name: str, transform: T.Transform) -> float:
    height, width = golden["image_rgb"].shape[:2]
    given = xy(golden[f"{name}_in_yxyx_normalised"]) * torch.tensor([width, height] * 2)
    expected = xy(golden[f"{case}.{name}"])[: len(given)]
    side = int(golden[f"{case}.image_info"][1, 0])
    moved = torch.from_numpy(transform.apply_box(given.numpy())).float()
    # The official parser ends boxes at the last pixel, Detectron2's mapper at the border.
    return difference(clip_to_pixels(moved, (side, side)), expected)


def _jitter(image: np.ndarray, info: Tensor, *, flip: bool) -> T.TransformList:
    """Flip, resize, crop; `info` has rows original size, target size, scale, offset."""
    height, width = image.shape[:2]
    size = (info[0] * info[2]).round().int().tolist()
    y, x = info[3].int().tolist()
    side = int(info[1, 0])
    crop = T.CropTransform(x, y, min(side, size[1] - x), min(side, size[0] - y))
    flipped = [T.HFlipTransform(width)] if flip else []
    return T.TransformList([*flipped, TensorFlowResizeTransform(height, width, *size), crop])


def _normalised(pixels: np.ndarray, side: int) -> np.ndarray:
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32)
    height, width = pixels.shape[:2]
    padding = ((0, side - height), (0, side - width), (0, 0))
    return np.pad((pixels / 255 - mean) / std, padding)


def _boxes(folder: GoldenFolder, file: str) -> Found:
    golden = folder.tensors(file)
    for level, anchors in zip(LEVELS, _anchors_of(128, 192), strict=True):
        name = f"anchors.p{level}"
        if name in golden:
            yield name, difference(anchors.tensor, xy(golden[name])), 1e-5
    regions, boxes = xy(golden["anchors_or_rois"]), xy(golden["boxes"])
    deltas = xy(golden["deltas"])
    coder = InclusiveBox2BoxTransform(weights=REGION_WEIGHTS)
    rpn = AnchorTransform(weights=(1.0, 1.0, 1.0, 1.0))
    decoded = coder.apply_deltas(deltas, regions)
    for name, ours in (
        ("roi_encode", coder.get_deltas(regions, boxes)),
        ("roi_decode", decoded),
        ("roi_decode_clipped", clip_to_pixels(decoded, (100, 150))),
        ("rpn_encode", rpn.get_deltas(regions, boxes)),
        ("rpn_decode", rpn.apply_deltas(deltas, regions)),
    ):
        yield name, difference(ours, xy(golden[name])), 2e-4


def _proposals(folder: GoldenFolder, file: str) -> Found:
    golden = folder.tensors(file)
    height, width = folder.instance["proposals"]["image_hw"]
    scores, deltas = [], []
    for level in LEVELS:
        shape = (1, height >> level, width >> level)
        scores.append(folder.input(f"proposals.score.{level}", (*shape, 3), 2).flatten(1))
        boxes = folder.input(f"proposals.box.{level}", (*shape, 12), 0.25)
        deltas.append(xy(boxes.view(1, -1, 4)))
    rpn = _network(folder, "vanilla").model.proposal_generator
    for mode in ("train", "test"):
        if f"{mode}.rois" not in golden:
            continue
        found = rpn.train(mode == "train").predict_proposals(
            _anchors_of(height, width), scores, deltas, [(height, width)]
        )[0]
        theirs = xy(golden[f"{mode}.rois"][0])
        missed = unmatched_boxes(found.proposal_boxes.tensor, theirs, None, 1e-2)
        yield f"{mode}.rois, boxes not found", missed, 0
        ours = found.objectness_logits.sigmoid().sort().values
        yield f"{mode}.scores", difference(ours, golden[f"{mode}.scores"][0].sort().values), 2e-6


def _sampling(folder: GoldenFolder, file: str) -> Found:
    golden = folder.tensors(file)
    objects = Boxes(xy(golden["gt_boxes_yxyx"]))
    height, width = folder.instance["proposals"]["image_hw"]
    anchors = Boxes.cat(_anchors_of(height, width))
    matches, labels = OneAnchorMatcher([0.3, 0.7], [0, -1, 1])(pairwise_iou(objects, anchors))
    counts = torch.tensor([(labels == label).sum() for label in (1, 0, -1)])
    positive = (labels == 1).nonzero()[:, 0]
    targets = AnchorTransform(weights=(1.0, 1.0, 1.0, 1.0)).get_deltas(
        anchors[positive].tensor, objects[matches[positive]].tensor
    )
    yield "rpn.match_results_counts", difference(counts, golden["rpn.match_results_counts"]), 0
    yield "rpn.positive_anchor_index", difference(positive, golden["rpn.positive_anchor_index"]), 0
    yield "rpn.positive_gt", difference(matches[positive], golden["rpn.positive_gt"]), 0
    expected = xy(golden["rpn.positive_box_targets"])
    yield "rpn.positive_box_targets", difference(targets, expected), 1e-5


def _pooling(folder: GoldenFolder, file: str) -> Found:
    golden = folder.tensors(file)
    features = [
        folder.input(f"roi_align.p{level}", (1, 1024 >> level, 1024 >> level, 4))
        for level in LEVELS
    ]
    maps = [level.permute(0, 3, 1, 2) for level in features]
    boxes = xy(golden["boxes_yxyx"])
    real = (boxes >= 0).all(dim=1)  # boxes of -1 fill up lists of fixed length there
    for name, size in (("crops7", 7), ("crops14", 14)):
        if name not in golden:
            continue
        pooler = BinCentrePooler(size, [2.0**-level for level in LEVELS])
        pooled = pooler(maps, [Boxes(boxes)]).permute(0, 2, 3, 1)
        yield name, difference(pooled[real], golden[name][real]), 1e-3
    targets = soft_mask_targets(
        golden["mask_gt"].float(), xy(golden["mask_gt_boxes"]), xy(golden["mask_rois"]), 28
    )
    yield "mask_targets28", difference(targets, golden["mask_targets28"]), 1e-4


def _losses(folder: GoldenFolder, file: str) -> Found:
    golden = folder.tensors(file)
    yield from _distillation_losses(folder, golden)
    yield from _class_losses(folder, golden)
    yield from _box_losses(folder, golden)
    yield from _mask_loss(folder, golden)
    yield from _rpn_losses(folder, golden)


def _distillation_losses(folder: GoldenFolder, golden: Mapping[str, Tensor]) -> Found:
    head = folder.instance["head"]
    shape = (head["images"], head["distillation_regions"], DIMS)
    for case in sorted(name.split(".")[1] for name in golden if name.endswith(".roi_boxes")):
        student = F.normalize(folder.input("losses.student", shape), dim=-1).requires_grad_()
        teacher = folder.input("losses.teacher", shape, 2.5)
        if case == "zero_teacher":
            teacher[0, 0] = 0
        valid = golden[f"distill.{case}.roi_boxes"].amax(dim=-1) > 0
        loss = distillation_l1(student[valid], teacher[valid], 1.0)
        expected = golden[f"distill.{case}.loss"][0]
        yield f"distill.{case}.loss", _relative(loss, expected), 4e-6
        if f"distill.{case}.grad" in golden:
            loss.backward()
            theirs = golden[f"distill.{case}.grad"]
            with torch.no_grad():  # ours normalises inside: along the sphere
                theirs = theirs - (theirs * student).sum(-1, keepdim=True) * student
            yield f"distill.{case}.grad", _relative(student.grad, theirs), 3e-5


def _class_losses(folder: GoldenFolder, golden: Mapping[str, Tensor]) -> Found:
    targets = golden["class_targets"]
    categories = folder.instance["categories"]
    for case in ("class_rare_masked", "class_unmasked"):
        logits = folder.input("losses.logits", (*targets.shape, categories + 1), 5).requires_grad_()
        ours = _background_last(logits.flatten(0, 1))
        if case == "class_rare_masked":
            ours = suppress_novel_logits(ours, _novel(categories), "zero")
        loss = F.cross_entropy(ours, _as_class(targets.flatten(), categories))
        loss.backward()
        yield f"{case}.loss", _relative(loss, golden[f"{case}.loss"][0]), 4e-6
        yield f"{case}.grad", _relative(logits.grad, golden[f"{case}.grad"]), 3e-5


def _box_losses(folder: GoldenFolder, golden: Mapping[str, Tensor]) -> Found:
    targets = golden["class_targets"]
    none = torch.zeros_like(targets)
    one = none.clone()
    one[1, 5] = 7
    shape = (*targets.shape, 4)
    for case, classes in (("box", targets), ("box_one_positive", one), ("box_no_positive", none)):
        predicted = folder.input("losses.box_outputs", shape, 1.5).requires_grad_()
        wanted = folder.input("losses.box_targets", shape, 1.5)
        positive = classes > 0
        loss = level_huber_loss([predicted[positive]], [wanted[positive]], 1.0)
        loss.backward()
        yield f"{case}.loss", _relative(loss, golden[f"{case}.loss"][0]), 4e-6
        yield f"{case}.grad", _relative(predicted.grad, golden[f"{case}.grad"]), 3e-5


def _mask_loss(folder: GoldenFolder, golden: Mapping[str, Tensor]) -> Found:
    targets, positive = golden["mask_targets"].float(), golden["mask_classes"] > 0
    logits = folder.input("losses.mask_outputs", targets.shape, 2).requires_grad_()
    loss = F.binary_cross_entropy_with_logits(logits[positive], targets[positive])
    yield "mask.loss", _relative(loss, golden["mask.loss"][0]), 4e-6
    (gradient,) = torch.autograd.grad(loss, logits)
    yield "mask.grad", _relative(gradient[..., ::4, ::4], golden["mask.grad"]), 3e-5


def _rpn_losses(folder: GoldenFolder, golden: Mapping[str, Tensor]) -> Found:
    """Of 64 x 64 pixels; the deltas' targets become boxes and are coded again."""
    labels = [golden[f"rpn.label.{level}"] for level in LEVELS]
    scores = [
        folder.input(f"losses.rpn_score.{level}", label.shape, 2).requires_grad_()
        for level, label in zip(LEVELS, labels, strict=True)
    ]
    deltas = [
        folder.input(f"losses.rpn_box.{level}", golden[f"rpn.box_target.{level}"].shape, 0.3)
        for level in LEVELS
    ]
    for level in deltas:
        level.requires_grad_()
    rpn = _network(folder, "vanilla").model.proposal_generator
    anchors = _anchors_of(64, 64)
    boxes = [
        _decoded(anchors[k], golden[f"rpn.box_target.{level}"]) for k, level in enumerate(LEVELS)
    ]
    images = len(labels[0])
    with EventStorage():
        losses = rpn.losses(
            anchors,
            [score.flatten(1) for score in scores],
            list(torch.cat([label.flatten(1) for label in labels], dim=1)),
            [xy(level.reshape(images, -1, 4)) for level in deltas],
            list(torch.cat(boxes, dim=1)),
        )
    losses["loss_rpn_cls"].backward()
    losses["loss_rpn_loc"].backward()
    for name, key, ours in (("rpn_score", "cls", scores), ("rpn_box", "loc", deltas)):
        loss = losses[f"loss_rpn_{key}"]
        # The official box loss leaves out coordinates whose target is exactly 0; here is one.
        yield f"{name}.loss", _relative(loss, golden[f"{name}.loss"][0]), 2e-4
        yield f"{name}.grad", _relative(ours[1].grad, golden[f"{name}.grad"]), 3e-5


def _decoded(anchors: Boxes, targets: Tensor) -> Tensor:
    """Targets (N, h, w, 12) of anchors -> (N, A, 4) boxes."""
    coder = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    deltas = xy(targets.reshape(len(targets), -1, 4))
    return torch.stack([coder.apply_deltas(one, anchors.tensor) for one in deltas])


def _postprocess(folder: GoldenFolder, file: str) -> Found:
    golden = folder.tensors(file)
    count, categories = folder.instance["postprocess"]["regions"], folder.instance["categories"]
    size = tuple(folder.instance["postprocess"]["image_hw"])
    logits = folder.input("post.logits", (1, count, categories + 1), 4)[0]
    image_logits = folder.input("post.distill_logits", (1, count, categories), 4)[0]
    deltas = folder.input("post.box_outputs", (1, count, 4), 0.8)[0]
    deltas[0] = torch.tensor([0.0, 0, 30, 30])
    regions = Instances(size, proposal_boxes=Boxes(xy(golden["rois_yxyx"][0])))
    text = scoring.text_probabilities(_background_last(logits))
    image = F.softmax(image_logits, dim=1)
    both = scoring.vild_ensemble(text, image, _novel(categories), 2 / 3, 1 / 3)
    predictor = _network(folder, "vanilla").model.roi_heads.box_predictor
    boxes = predictor.predict_boxes((logits, xy(deltas)), [regions])
    if "vanilla.raw_boxes" in golden:
        expected = xy(golden["vanilla.raw_boxes"][0])
        yield "vanilla.raw_boxes", difference(clip_to_pixels(boxes[0], size), expected), 2e-4
    for kind, scores in (("vanilla", text), ("double_branch", both)):
        if f"{kind}.raw_scores" not in golden:
            continue
        yield f"{kind}.raw_scores", difference(scores, golden[f"{kind}.raw_scores"][0]), 2e-6
        found = predictor.select_detections(scores, boxes, [regions])[0]
        yield from _detections(found, {k: golden[f"{kind}.{k}"][0] for k in DETECTED}, kind)


def _detections(found: Instances, golden: Mapping[str, Tensor], kind: str = "") -> Found:
    theirs = xy(golden["detection_boxes"])
    classes = found.pred_classes, golden["detection_classes"].long() - 1
    missed = unmatched_boxes(found.pred_boxes.tensor, theirs, classes, 1e-2)
    prefix = f"{kind}." if kind else ""
    yield f"{prefix}detection_boxes, not found", missed, MISSED_DETECTIONS
    ours = found.scores[: len(theirs)].sort().values
    apart = difference(ours, golden["detection_scores"].sort().values)
    yield f"{prefix}detection_scores", apart, 1e-4


def _head(kind: str) -> Callable[[GoldenFolder, str], Found]:
    def compare(folder: GoldenFolder, file: str) -> Found:
        golden = folder.tensors(file)
        yield from _head_at_test(folder, golden, kind)
        yield from _head_step(folder, golden, kind, file)

    return compare


def _head_at_test(folder: GoldenFolder, golden: Mapping[str, Tensor], kind: str) -> Found:
    sizes = folder.instance["head"]
    heads = _network(folder, kind).model.roi_heads.eval()
    shape = (sizes["images"], sizes["test_regions"], 7, 7, 256)
    pooled = folder.input("head.roi_features_test", shape).flatten(0, 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        yield (
            "test.class_outputs",
            _rows(_background_first(logits), golden, "test.class_outputs"),
            2e-4,
        )
        yield "test.box_outputs", _rows(xy(deltas), golden, "test.box_outputs"), 3e-6
        if kind == "double_branch":
            embeddings = heads.image_head(pooled)
            name = "test.distill_features"
            yield name, _rows(embeddings, golden, name), 2e-6
            scores = embeddings @ heads.classifier.text_embeddings.T / heads.classifier.temperature
            name = "test.distill_class_outputs"
            yield name, _rows(scores, golden, name), 2e-4


def _head_step(folder: GoldenFolder, golden: Mapping[str, Tensor], kind: str, file: str) -> Found:
    """One step's outputs, losses, gradients and moving averages."""
    step = _HeadStep(folder, golden, kind)
    yield "train.class_outputs", step.apart("train.class_outputs", step.logits), 5e-4
    yield "train.box_outputs", step.apart("train.box_outputs", step.deltas), 3e-5
    yield "train.distill_features", step.apart("train.distill_features", step.student), 2e-5
    expected = folder.json(file.replace(".safetensors", ".json"))
    for name, loss in step.losses.items():
        yield f"losses.{name}, relative", abs(loss.item() / expected["losses"][name] - 1), 4e-6
    step.losses["total_w0.5"].backward()
    for name, gradient in step.gradients().items():
        yield f"{name}, relative", _relative(gradient, golden[name]), 3e-5
    for name, average in step.averages(golden).items():
        yield name, difference(average, golden[name]), 2e-5
    norms = step.gradient_norms(expected["grad_norms"])
    worst = max(abs(ours / theirs - 1) for ours, theirs in norms)
    yield f"grad_norms of {len(norms)} variables, relative", worst, 1e-4


class _HeadStep:
    """The box heads in training, on features that are pooled already.

    In float64: in float32 a ReLU may open for the one and stay shut for the other, which moves
    single gradients by a hundredth.
    """

    def __init__(self, folder: GoldenFolder, golden: Mapping[str, Tensor], kind: str) -> None:
        sizes = folder.instance["head"]
        images, sampled = sizes["images"], sizes["detection_regions"]
        stored = sizes["distillation_regions"]
        self.official = _network(folder, kind)
        self.network = copy.deepcopy(self.official.model).double().train()
        heads = self.network.roi_heads
        shape = (images, sampled + stored, 7, 7, 256)
        features = folder.input("head.roi_features_train", shape)
        self.features = features.double().requires_grad_()
        maps = self.features.permute(0, 1, 4, 2, 3)
        detection, distillation = maps[:, :sampled].flatten(0, 1), maps[:, sampled:].flatten(0, 1)
        if kind == "vanilla":
            joint = heads.box_head(torch.cat([detection, distillation]))
            trunk, student = (
                joint[: len(detection)],
                heads.box_predictor.embed(joint[len(detection) :]),
            )
        else:
            trunk, student = heads.box_head(detection), heads.image_head(distillation)
        predictor = heads.box_predictor
        logits = predictor.classifier(predictor.embed(trunk))
        self.logits, self.deltas = _background_first(logits), xy(predictor.bbox_pred(trunk))
        self.student, self.golden = student, golden
        teacher = folder.input("head.teacher", (images, stored, DIMS), 3).flatten(0, 1)
        self.losses = self._losses(logits, student, teacher)

    def _losses(self, logits: Tensor, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        golden = self.golden
        categories = logits.shape[1] - 1
        classes = golden["target.class"].flatten()
        masked = suppress_novel_logits(logits, _novel(categories), "zero")
        positive, valid = classes > 0, golden["target.roi_boxes_valid"].flatten().bool()
        targets = golden["target.box"].flatten(0, 1)[positive]
        losses = {
            "class": F.cross_entropy(masked, _as_class(classes, categories)),
            "box": level_huber_loss([self.deltas[positive]], [targets], 1.0),
            "distill_x512": distillation_l1(student[valid], teacher[valid], 1.0),
        }
        total = losses["class"] + losses["box"] + 0.5 * losses["distill_x512"]
        return {**losses, "total_w0.5": total}

    def apart(self, name: str, ours: Tensor) -> float:
        return _rows(ours, self.golden, name)

    def gradients(self) -> dict[str, Tensor]:
        heads = self.network.roi_heads
        kernel = heads.box_head.conv1.weight.grad.permute(2, 3, 1, 0)
        gradient: Any = self.features.grad
        return {
            "grad.background": heads.classifier.background.grad,
            "grad.bn_fc7_gamma": heads.box_head.fc2.norm.weight.grad,
            "grad.box_predict_bias": xy(heads.box_predictor.bbox_pred.bias.grad),
            "grad.conv_0_kernel_first": kernel[:, :, :8, :8],
            "grad.roi_features_norm": gradient.flatten(2).norm(dim=2).flatten(),
        }

    def averages(self, golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Moving averages under the official names, where biases are no part of the means."""
        state = self.network.state_dict()
        named, variables = self.official.places, self.official.variables
        found = {}
        for name in golden:
            if not name.startswith("after_step."):
                continue
            variable = f"{HEAD}/" + name.removeprefix("after_step.").replace(".", "/")
            key = named[variable].key
            bias = [k for k, one in named.items() if one.key == key and one.is_bias_before_norm]
            shift = torch.from_numpy(variables[bias[0]]) if bias else 0
            found[name] = state[key] + shift
        return found

    def gradient_norms(self, expected: Mapping[str, float]) -> list[tuple[float, float]]:
        """Ours and theirs, of every variable that is a parameter here; biases before norms have
        no gradient."""
        parameters = dict(self.network.named_parameters())
        pairs = []
        for name, norm in expected.items():
            place = self.official.places.get(name)
            if place is not None and place.key in parameters:
                pairs.append((parameters[place.key].grad.norm().item(), norm))
        return pairs


def _network_file(kind: str) -> Callable[[GoldenFolder, str], Found]:
    def compare(folder: GoldenFolder, file: str) -> Found:
        golden = folder.tensors(file)
        height, width = folder.instance["network"]["image_hw"]
        model = _network(folder, kind).model.eval()
        image = folder.input("network.image", (1, height, width, 3)).permute(0, 3, 1, 2)
        with torch.no_grad():
            features = model.backbone(image)
            yield from _maps(model, image, features, golden)
            proposals, _ = model.proposal_generator(ImageList(image, [(height, width)]), features)
            yield from _regions(model, features, proposals[0], golden)
            found, _ = model.roi_heads(None, features, proposals, None)
        yield from _detections(found[0], golden)
        yield from _masks(found[0], golden)

    return compare


def _maps(
    model: Any, image: Tensor, features: dict[str, Tensor], golden: Mapping[str, Tensor]
) -> Found:
    """Stages, pyramid and RPN, of which the files hold every n-th row, column and channel."""
    stages = model.backbone.bottom_up(image)
    scores, deltas = model.proposal_generator.rpn_head([features[f"p{k}"] for k in LEVELS])
    maps = {f"backbone.c{k}": (stages[f"res{k}"], 16, 2e-4) for k in range(2, 6)}
    maps |= {f"fpn.p{k}": (features[f"p{k}"], 16, 2e-4) for k in LEVELS}
    maps |= {f"rpn.score.p{k}": (one, 1, 7e-5) for k, one in zip(LEVELS, scores, strict=True)}
    swapped = [
        xy(one.unflatten(1, (-1, 4)).movedim(2, -1)).movedim(-1, 2).flatten(1, 2) for one in deltas
    ]
    maps |= {f"rpn.box.p{k}": (one, 1, 7e-5) for k, one in zip(LEVELS, swapped, strict=True)}
    for name, (ours, channels, tolerance) in maps.items():
        if name in golden:
            step = ours.shape[2] // golden[name].shape[0]
            sampled = ours[0].permute(1, 2, 0)[::step, ::step, ::channels]
            yield name, difference(sampled, golden[name]), tolerance


def _regions(
    model: Any, features: dict[str, Tensor], found: Instances, golden: Mapping[str, Tensor]
) -> Found:
    """Proposals, and what the heads say of every 20th of the official ones."""
    heads = model.roi_heads
    if "rois_yxyx" not in golden:
        return
    theirs = xy(golden["rois_yxyx"])
    missed = unmatched_boxes(found.proposal_boxes.tensor, theirs, None, 1e-2)
    yield "rois_yxyx, boxes not found", missed, 5
    asked = Instances(found.image_size, proposal_boxes=Boxes(theirs[::20]))
    pooled = heads._pool(features, [asked])
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    yield "class_outputs", difference(_background_first(logits), golden["class_outputs"]), 2e-3
    yield "box_outputs", difference(xy(deltas), golden["box_outputs"]), 2e-4
    embeddings = heads.image_head(pooled)
    scores = embeddings @ heads.classifier.text_embeddings.T / heads.classifier.temperature
    yield "distill_class_outputs", difference(scores, golden["distill_class_outputs"]), 2e-3


def _masks(found: Instances, golden: Mapping[str, Tensor]) -> Found:
    name = "detection_masks_first20"
    if name not in golden:
        return
    theirs, classes = xy(golden["detection_boxes"][:20]), golden["detection_classes"][:20] - 1
    apart = torch.cdist(theirs, found.pred_boxes.tensor, p=float("inf"))
    apart[classes[:, None] != found.pred_classes[None]] = torch.inf
    near, places = apart.min(dim=1)
    ours = found.pred_masks[places, 0, ::2, ::2]
    yield name, difference(ours[near < 1e-2], golden[name][near < 1e-2]), 1e-4


def _keys(kind: str) -> Callable[[GoldenFolder, str], Found]:
    """Whether the weights were rebuilt as they were there, and have a place here."""

    def compare(folder: GoldenFolder, file: str) -> Found:
        keys = folder.json(file)
        named = set(places(50, ensemble=kind == "double_branch")) | {TEXT_EMBEDDINGS}
        yield "variables without a place", len(set(keys) ^ named), 0
        apart = [_rebuilt_apart(folder, name, entry) for name, entry in keys.items()]
        yield "first values, rebuilt", max(apart), 1e-6

    return compare


def _rebuilt_apart(folder: GoldenFolder, name: str, entry: Mapping[str, Any]) -> float:
    values = _variable(folder, name, entry["shape"]).flatten()[: len(entry["first"])]
    return float(np.abs(values - np.array(entry["first"])).max())


@dataclass(frozen=True)
class _Network:
    """A model with official weights.

    Attributes:
        model: of the official config.
        places: where each official variable is in it.
        variables: their values, as the folder's README says.
    """

    model: Any
    places: dict[str, Place]
    variables: dict[str, np.ndarray]


@lru_cache(maxsize=2)
def _network(folder: GoldenFolder, kind: str) -> _Network:
    """Its weights are read as those of an official checkpoint."""
    model = folder.build(CONFIGS[kind], ["MODEL.OVD.VOCABULARY", ""])
    state, named = model.state_dict(), places(50, ensemble=kind == "double_branch")
    categories = folder.instance["categories"]
    shapes = {name: variable_shape(name, state[place.key].shape) for name, place in named.items()}
    shapes[TEXT_EMBEDDINGS] = (DIMS, categories)
    variables = {name: _variable(folder, name, shape) for name, shape in shapes.items()}
    converted = convert_variables(variables)
    embeddings = torch.from_numpy(converted.text_embeddings)
    names = [f"category {k}" for k in range(categories)]
    model.set_vocabulary(Vocabulary(names, embeddings, _novel(categories)))
    _load_strictly(model, converted)
    return _Network(model, named, variables)


def _load_strictly(model: Any, converted: Converted) -> None:
    state = {key: torch.from_numpy(value) for key, value in converted.weights.items()}
    result = model.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        raise ValueError(f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}")


def _variable(folder: GoldenFolder, name: str, shape: Sequence[int]) -> np.ndarray:
    values = folder.random(name, shape)
    last = name.rsplit("/", 1)[-1]
    if last == "kernel":
        fan_in = shape[3] if name.endswith("conv5-mask/kernel") else np.prod(shape[:-1])
        return (values / np.sqrt(fan_in)).astype(np.float32)
    if last == "moving_variance":
        values = np.abs(values)
    offset, scale = {
        "gamma": (1, 0.1),
        "beta": (0, 0.02),
        "bias": (0, 0.02),
        "moving_mean": (0, 0.1),
        "moving_variance": (1, 0.1),
    }[last]
    return (offset + scale * values).astype(np.float32)


def _novel(categories: int) -> Tensor:
    return torch.arange(categories) % 4 == 3


def _background_last(logits: Tensor) -> Tensor:
    return logits.roll(-1, dims=-1)


def _background_first(logits: Tensor) -> Tensor:
    return logits.roll(1, dims=-1)


def _as_class(official: Tensor, categories: int) -> Tensor:
    """0 is background there, the last class here."""
    return torch.where(official > 0, official - 1, categories).long()


def _rows(ours: Tensor, golden: Mapping[str, Tensor], name: str) -> float:
    return difference(ours.detach(), golden[name].flatten(0, 1))


def _relative(ours: Any, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    scale = theirs.abs().max().item() or 1.0
    return difference(ours.detach().reshape(theirs.shape), theirs) / scale


# In the order of the network.
PARTS = (
    Part("parser", ("parser.safetensors",), _parser),
    Part("boxes", ("boxes.safetensors",), _boxes),
    Part("sampling", ("sampling.safetensors", INSTANCE), _sampling),
    Part("pooling", ("roi_align.safetensors", INSTANCE), _pooling),
    Part("proposals", ("proposals.safetensors", INSTANCE), _proposals),
    Part("losses", ("losses.safetensors", INSTANCE), _losses),
    Part("postprocess", ("postprocess.safetensors", INSTANCE), _postprocess),
    Part("keys vanilla", ("keys_resnet50_vild.json", INSTANCE), _keys("vanilla")),
    Part(
        "keys double_branch",
        ("keys_resnet50_vild_ensemble.json", INSTANCE),
        _keys("double_branch"),
    ),
    *(
        Part(
            f"head {kind}",
            (f"head_{kind}.safetensors", f"head_{kind}.json", INSTANCE),
            _head(kind),
        )
        for kind in CONFIGS
    ),
    *(
        Part(f"network {kind}", (f"network_{kind}.safetensors", INSTANCE), _network_file(kind))
        for kind in CONFIGS
    ),
)
