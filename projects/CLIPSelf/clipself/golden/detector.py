"""F-ViT, part by part and end to end (sections 6 of the README).

Its weights are read as those of an official checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.clip.dense import roi_features
from ovd_d2.golden import (
    INSTANCE,
    Found,
    GoldenFolder,
    Part,
    difference,
    relative_difference,
    unmatched_boxes,
)
from ovd_d2.losses import suppress_novel_logits
from ovd_d2.modeling.image_branches import Regions
from ovd_d2.modeling.pooler import LevelPooler
from ovd_d2.projects.clipself.fvit.official_weights import (
    TEXT_EMBEDDINGS,
    convert_weights,
    renamed_key,
)
from ovd_d2.projects.clipself.golden.weights import (
    checkpoint,
    key_file,
    key_shapes,
    random_weights,
)
from ovd_d2.vocabulary import Vocabulary

COCO, LVIS = "e_fvit_coco_b16", "e_fvit_lvis_heads"  # files and their entries in the instance
COCO_KEYS, LVIS_KEYS = "fvit_coco_b16", "fvit_lvis_b16_heads"
CONFIGS = "projects/CLIPSelf/configs"
LEVELS = range(2, 7)
MAPS, UNIT, SCORE, GRADIENT = 2e-5, 2e-6, 1e-5, 1e-4  # tolerances
PIXELS, END_PIXELS, MISSED = 0.05, 0.1, 2
EVERYTHING = 10**9  # samples: more than there are


def official_model(folder: GoldenFolder, config: str, keys: str, golden: Any, embeds: str) -> Any:
    """A model with the random weights of `keys/KEYS.tsv`, through a file as the official ones.

    Args:
        folder: of the golden numbers.
        config: name of a config of this project.
        keys: name of the list.
        golden: the tensors; `base_mask` says which categories are base, background last.
        embeds: name of the random text embeddings.
    """
    base = golden["base_mask"][:-1].bool()
    model = folder.build(
        f"{CONFIGS}/{config}.yaml", ["MODEL.WEIGHTS", "official.pth", "MODEL.OVD.VOCABULARY", ""]
    )
    state = random_weights(folder, key_shapes(folder, keys))
    width = model.roi_heads.classifier.embedding_dim
    words = torch.from_numpy(folder.random(embeds, (len(base) + 1, width))).float()
    state[TEXT_EMBEDDINGS] = F.normalize(words, dim=1).T.contiguous()
    with checkpoint(state) as path:
        content = torch.load(path, weights_only=True)
    converted = convert_weights(content["state_dict"])
    names = [f"category {number}" for number in range(len(base))]
    vocabulary = Vocabulary(
        names, converted.text_embeddings, ~base, background=converted.background
    )
    model.set_vocabulary(vocabulary)
    load_strictly(model, converted.weights)
    return model


def load_strictly(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Loads them; a whole part of the model may be missing (`backbone.`), no single weight.

    Raises:
        ValueError: one is missing, or has no place.
    """
    for name in {key.partition(".")[0] for key in weights}:
        part = {
            key.removeprefix(f"{name}."): one
            for key, one in weights.items()
            if key.startswith(f"{name}.")
        }
        result = model.get_submodule(name).load_state_dict(part, strict=False)
        lost = [
            key
            for key in result.missing_keys
            if not key.endswith(("num_batches_tracked", "vocabulary")) and "cell_anchors" not in key
        ]
        if lost or result.unexpected_keys:
            raise ValueError(f"missing {lost[:3]}, unexpected {result.unexpected_keys[:3]}")


def _coco(folder: GoldenFolder, file: str) -> Found:
    golden, instance = folder.tensors(file), folder.instance[COCO]
    model = official_model(
        folder, "ov_coco_fvit_b16", COCO_KEYS, golden, instance["class_embeddings"]
    )
    images = _images(folder, instance)
    with torch.no_grad():
        features = model.backbone(images.tensor)
        yield from _pyramid(model, images.tensor, features, golden)
        yield from _rpn_outputs(model, features, golden)
        proposals, _ = model.proposal_generator(images, features)
        yield from _proposals(proposals, golden)
        yield from _regions(model, features, images, golden, instance["scale_factor"])
        first = {name: one[:1] for name, one in features.items()}
        found, _ = model.roi_heads(None, first, proposals[:1], None)
        yield from _end_to_end(found[0], golden, instance["scale_factor"])
    yield from _training(copy.deepcopy(model).train(), images, golden)


def _images(folder: GoldenFolder, instance: Mapping[str, Any]) -> ImageList:
    side, sizes = instance["size"], [tuple(one) for one in instance["content_hw"]]
    drawn = folder.random(instance["input"], (len(sizes), 3, side, side))
    images = torch.from_numpy(drawn).float()
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return ImageList(images, sizes)


def _sampled(ours: Tensor, theirs: Tensor) -> Tensor:
    """Every n-th channel, row and column, as the reference has them."""
    channels, step = ours.shape[1] // theirs.shape[1], ours.shape[2] // theirs.shape[2]
    return ours[:, ::channels, ::step, ::step]


def _maps_apart(
    named: Mapping[str, Tensor], golden: Mapping[str, Tensor], least: float = MAPS
) -> Found:
    for name, ours in named.items():
        yield name, relative_difference(_sampled(ours.detach(), golden[name]), golden[name]), least


def _pyramid(
    model: Any, images: Tensor, features: Mapping[str, Tensor], golden: Mapping[str, Tensor]
) -> Found:
    backbone = model.backbone
    taps = backbone.vit.run(images, taps=backbone.taps).taps
    stages = backbone.pyramid([taps[index] for index in backbone.taps])
    yield from _maps_apart({f"pyramid_c{k}": one for k, one in enumerate(stages, 2)}, golden)
    dense = _sampled(features["dense"], golden["dense_map"])
    yield "dense_map", difference(dense, golden["dense_map"]), UNIT
    yield from _maps_apart({f"fpn_p{k}": features[f"p{k}"] for k in LEVELS}, golden)


def _rpn_outputs(model: Any, features: Mapping[str, Tensor], golden: Mapping[str, Tensor]) -> Found:
    logits, deltas = model.proposal_generator.rpn_head([features[f"p{k}"] for k in LEVELS])
    for kind, levels in (("cls", logits), ("reg", deltas)):
        named = {f"rpn_{kind}_p{k}": one for k, one in zip(LEVELS, levels, strict=True)}
        yield from _maps_apart(named, golden)


def _proposals(found: list[Instances], golden: Mapping[str, Tensor]) -> Found:
    counts = torch.tensor([len(one) for one in found])
    yield "num_proposals", difference(counts, golden["num_proposals"]), 0.0
    theirs = golden["proposals_img0_top50"]
    best = found[0][: len(theirs)]
    yield (
        "proposals_img0_top50, boxes not found",
        unmatched_boxes(best.proposal_boxes.tensor, theirs[:, :4], None, PIXELS),
        0,
    )
    scores = best.objectness_logits.sigmoid()
    yield "proposals_img0_top50, scores", difference(scores, theirs[:, 4]), SCORE


def _on_regions(rois: Tensor, sizes: list[tuple[int, int]]) -> list[Instances]:
    """(N, 5) of image and box -> proposals of each image."""
    return [
        Instances(size, proposal_boxes=Boxes(rois[rois[:, 0] == number, 1:]))
        for number, size in enumerate(sizes)
    ]


def _regions(
    model: Any,
    features: dict[str, Tensor],
    images: ImageList,
    golden: Mapping[str, Tensor],
    scale: float,
) -> Found:
    heads, rois = model.roi_heads, golden["rois"]
    proposals = _on_regions(rois, images.image_sizes)
    levels = heads.box_pooler.levels(rois[:, 1:])
    yield "roi_level", difference(levels, golden["roi_level"]), 0.0
    yield from _head_outputs(heads, features, proposals, golden)
    probs, boxes = _scored(heads, features, proposals)
    yield "fused_scores, categories", difference(probs, golden["fused_scores"][:, :-1]), SCORE
    clipped = Boxes(boxes[0].clone())
    clipped.clip(images.image_sizes[0])
    clipped.scale(1 / scale, 1 / scale)
    name = "decoded_boxes_img0_rescaled"
    yield name, difference(clipped.tensor, golden[name]), 1e-3
    found = heads.box_predictor.select_detections(probs[: len(boxes[0])], boxes[:1], proposals[:1])
    theirs, labels = golden["detections_img0"], golden["labels_img0"]
    yield from _detections("detections_img0", found[0], theirs, labels, scale)


def _head_outputs(
    heads: Any,
    features: dict[str, Tensor],
    proposals: list[Instances],
    golden: Mapping[str, Tensor],
) -> Found:
    if "bbox_feats_c8" in golden:
        pooled = heads._pool(features, proposals)
        yield from _maps_apart({"bbox_feats_c8": pooled}, golden)
    dense, stride = features["dense"], heads.image_head.stride
    covered = [(dense.shape[2] * stride, dense.shape[3] * stride)] * len(proposals)
    raw = roi_features(dense, [one.proposal_boxes.tensor for one in proposals], covered)
    yield "vlm_roi_feats", difference(raw, golden["vlm_roi_feats"]), UNIT
    embeddings = heads.image_head.embed(Regions(features, proposals, torch.empty(0)))
    yield (
        "vlm_roi_feats, unit length",
        difference(embeddings, F.normalize(golden["vlm_roi_feats"])),
        UNIT,
    )
    logits, deltas = heads.box_predictor(heads.box_head(heads._pool(features, proposals)))
    for name, ours in (("cls_logits_raw", logits), ("bbox_pred", deltas)):
        yield name, relative_difference(ours, golden[name]), MAPS


def _scored(
    heads: Any, features: dict[str, Tensor], proposals: list[Instances]
) -> tuple[Tensor, Any]:
    return heads._classify_proposals(heads.image_head, features, proposals, heads.classifier.words)


def _detections(
    name: str, found: Instances, theirs: Tensor, labels: Tensor, scale: float = 1.0
) -> Found:
    """Both in the same order, best first, but for scores that are equal up to rounding."""
    yield f"{name}, count", float(abs(len(found) - len(theirs))), 0.0
    boxes = found.pred_boxes.tensor / scale
    classes = (found.pred_classes, labels)
    missed = unmatched_boxes(boxes, theirs[:, :4], classes, PIXELS)
    yield f"{name}, boxes of the label not found", missed, 0
    yield f"{name}, scores", difference(found.scores, theirs[:, 4]), SCORE


def _end_to_end(found: Instances, golden: Mapping[str, Tensor], scale: float) -> Found:
    theirs = golden["end_to_end_img0"]
    classes = (found.pred_classes, theirs[:, 5].long())
    boxes = found.pred_boxes.tensor / scale
    missed = unmatched_boxes(boxes, theirs[:, :4], classes, END_PIXELS)
    yield "end_to_end_img0, boxes of the label not found", missed, MISSED
    yield "end_to_end_img0, scores", difference(found.scores, theirs[:, 4]), GRADIENT


def _training(model: Any, images: ImageList, golden: Mapping[str, Tensor]) -> Found:
    """One step; norms take the statistics of the two images, the ViT stays as it is."""
    features = model.backbone(images.tensor)
    yield from _maps_apart({f"train_fpn_p{k}": features[f"p{k}"] for k in LEVELS}, golden)
    objects = [
        Instances(
            size, gt_boxes=Boxes(golden[f"gt_boxes_{k}"]), gt_classes=golden[f"gt_labels_{k}"]
        )
        for k, size in enumerate(images.image_sizes)
    ]
    with EventStorage():
        total = torch.zeros(())
        for name, losses in _rpn_losses(model.proposal_generator, features, objects).items():
            total = total + losses.sum()
            yield name, difference(losses.detach(), golden[name]), SCORE
        step = _RegionStep(model.roi_heads, features, objects, golden)
        yield from step.targets()
        yield from step.outputs()
        total = total + sum(step.losses.values())
    total.backward()
    parameters = dict(model.named_parameters())
    for name in (one for one in golden if one.startswith("grad_norm.")):
        key = renamed_key(name.removeprefix("grad_norm."))
        ours = parameters[str(key)].grad.norm()[None]
        yield name, relative_difference(ours, golden[name]), GRADIENT
    frozen = [one for key, one in parameters.items() if key.startswith("backbone.vit.")]
    yield "gradients of the ViT", float(sum(one.grad is not None for one in frozen)), 0.0


def _rpn_losses(
    rpn: Any, features: Mapping[str, Tensor], objects: list[Instances]
) -> dict[str, Tensor]:
    """Of each level, over all anchors."""
    rpn = copy.copy(rpn)
    rpn.batch_size_per_image, rpn.positive_fraction = EVERYTHING, 1.0
    maps = [features[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator(maps)
    logits, deltas = rpn.rpn_head(maps)
    logits = [one.permute(0, 2, 3, 1).flatten(1) for one in logits]
    deltas = [one.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for one in deltas]
    labels, boxes = rpn.label_and_sample_anchors(anchors, objects)
    sampled = sum(int((one >= 0).sum()) for one in labels)
    levels = torch.arange(len(anchors)).repeat_interleave(
        torch.tensor([len(one) for one in anchors])
    )
    found: dict[str, list[Tensor]] = {"rpn_loss_cls_per_level": [], "rpn_loss_bbox_per_level": []}
    for level in range(len(anchors)):
        own = [one.where(levels == level, -1) for one in labels]
        losses = rpn.losses(anchors, logits, own, deltas, boxes)
        share = sum(int((one >= 0).sum()) for one in own) / sampled
        found["rpn_loss_cls_per_level"].append(losses["loss_rpn_cls"] * share)
        found["rpn_loss_bbox_per_level"].append(losses["loss_rpn_loc"] * share)
    return {name: torch.stack(losses) for name, losses in found.items()}


@dataclass
class _RegionStep:
    """The ROI heads in training, on the reference's proposals."""

    heads: Any
    features: dict[str, Tensor]
    objects: list[Instances]
    golden: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        proposals = []
        for number, one in enumerate(self.objects):
            boxes = self.golden[f"train_proposals_{number}"]
            fields = {"proposal_boxes": Boxes(boxes), "objectness_logits": torch.zeros(len(boxes))}
            proposals.append(Instances(one.image_size, **fields))
        self.sampled = self.heads.label_and_sample_proposals(proposals, self.objects)
        self.order = self._order()
        predictor = self.heads.box_predictor
        trunk = self.heads.box_head(self.heads._pool(self.features, self.sampled))
        self.logits = predictor.classifier(predictor.embed(trunk))
        self.predictions = predictor(trunk)
        self.losses = predictor.losses(self.predictions, self.sampled)

    def _order(self) -> Tensor:
        """The place among ours of each of the reference's regions."""
        ours = torch.cat(
            [
                F.pad(one.proposal_boxes.tensor, (1, 0), value=float(number))
                for number, one in enumerate(self.sampled)
            ]
        )
        theirs = self.golden["sampled_rois"]
        self.regions = ours
        return torch.cdist(theirs, ours, p=float("inf")).argmin(dim=1)

    def targets(self) -> Found:
        golden, order = self.golden, self.order
        yield "sampled_rois", difference(self.regions[order], golden["sampled_rois"]), UNIT
        classes = torch.cat([one.gt_classes for one in self.sampled])[order]
        yield "target_labels", difference(classes, golden["target_labels"]), 0.0
        positive = classes < self.heads.num_classes
        boxes = torch.cat([one.gt_boxes.tensor for one in self.sampled])[order]
        transform = self.heads.box_predictor.box2box_transform
        deltas = torch.zeros_like(boxes)
        deltas[positive] = transform.get_deltas(self.regions[order][positive, 1:], boxes[positive])
        yield "target_deltas", difference(deltas, golden["target_deltas"]), SCORE
        weights = positive[:, None].float().expand(-1, 4)
        yield "target_delta_weights", difference(weights, golden["target_delta_weights"]), 0.0
        counted = (classes >= 0).float()  # Detectron2 labels those left out with -1
        yield "target_label_weights", difference(counted, golden["target_label_weights"]), 0.0
        best = self.predictions[0][order].argmax(dim=1)
        accuracy = 100 * (best == classes).float().mean()[None]
        yield "roi_acc", difference(accuracy, golden["roi_acc"]), SCORE

    def outputs(self) -> Found:
        golden, order = self.golden, self.order
        logits, deltas = self.logits[order].detach(), self.predictions[1][order].detach()
        yield "train_cls_logits", relative_difference(logits, golden["train_cls_logits"]), MAPS
        yield "train_bbox_pred", relative_difference(deltas, golden["train_bbox_pred"]), MAPS
        for name, key in (("roi_loss_cls", "loss_cls"), ("roi_loss_bbox", "loss_box_reg")):
            yield name, difference(self.losses[key].detach()[None], golden[name]), SCORE


@torch.no_grad()
def _lvis(folder: GoldenFolder, file: str) -> Found:
    golden, instance = folder.tensors(file), folder.instance[LVIS]
    model = official_model(
        folder, "ov_lvis_fvit_b16", LVIS_KEYS, golden, instance["class_embeddings"]
    )
    features = _lvis_features(folder, instance)
    yield from _rpn_outputs(model, features, golden)
    heads = model.roi_heads
    proposals = _on_regions(golden["rois"], [tuple(instance["content_hw"])])
    yield from _head_outputs(heads, features, proposals, golden)
    probs, boxes = _scored(heads, features, proposals)
    yield "fused_scores, categories", difference(probs, golden["fused_scores"][:, :-1]), SCORE
    found = heads.box_predictor.select_detections(probs, boxes, proposals)
    yield from _detections("detections", found[0], golden["detections"], golden["labels"])
    yield from _lvis_losses(heads, features, proposals[0], golden)
    yield from _masks(heads, features, proposals[0], golden)
    yield from _strides(folder, golden)


def _lvis_features(folder: GoldenFolder, instance: Mapping[str, Any]) -> dict[str, Tensor]:
    side = instance["image_hw"][0]
    features = {
        f"p{k}": _drawn(folder, f"lvis_fpn:p{k}", (1, 256, side >> k, side >> k)) for k in LEVELS
    }
    dense = _drawn(folder, "lvis_dense", (1, 512, side // 16, side // 16))
    return {**features, "dense": F.normalize(dense, dim=1)}


def _drawn(folder: GoldenFolder, name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(folder.random(name, shape)).float()


def _lvis_losses(
    heads: Any, features: dict[str, Tensor], regions: Instances, golden: Mapping[str, Tensor]
) -> Found:
    predictor = heads.box_predictor
    logits, deltas = predictor(heads.box_head(heads._pool(features, [regions])))
    logits = suppress_novel_logits(logits, predictor.classifier.novel, "exclude")
    boxes = regions.proposal_boxes.tensor
    objects = predictor.box2box_transform.apply_deltas(golden["loss_delta_targets"], boxes)
    labelled = Instances(
        regions.image_size,
        proposal_boxes=regions.proposal_boxes,
        gt_boxes=Boxes(objects),
        gt_classes=golden["loss_labels"],
    )
    with EventStorage():
        losses = predictor.losses((logits, deltas), [labelled])
    for name, key in (("loss_cls", "loss_cls"), ("loss_bbox", "loss_box_reg")):
        yield name, difference(losses[key][None], golden[name]), SCORE


def _masks(
    heads: Any, features: dict[str, Tensor], regions: Instances, golden: Mapping[str, Tensor]
) -> Found:
    maps = [features[name] for name in heads.mask_in_features]
    pooled = heads.mask_pooler(maps, [regions.proposal_boxes[:4]])
    logits = heads.mask_head.layers(pooled)
    name = "mask_logits_28_first4"
    yield name, relative_difference(logits, golden[name]), MAPS
    targets = golden["mask_targets"].float()
    loss = F.binary_cross_entropy_with_logits(logits[:, 0], targets)
    yield "loss_mask", difference(loss[None], golden["loss_mask"]), SCORE


def _strides(folder: GoldenFolder, golden: Mapping[str, Tensor]) -> Found:
    """Anchors and pooling of either patch size."""
    for kind, patch, grids in (("l14", 14, (8, 4, 2, 1, 1)), ("b16", 16, (4, 2, 1, 1, 1))):
        strides = [patch * 2.0**k / 4 for k in range(5)]
        anchors = DefaultAnchorGenerator(
            sizes=[[8 * one] for one in strides],
            aspect_ratios=[[0.5, 1.0, 2.0]],
            strides=strides,
            offset=0.0,
        )([torch.zeros(1, 1, one, one) for one in grids])
        for level, one in enumerate(anchors):
            name = f"{kind}_anchors_level{level}"
            yield name, difference(one.tensor, golden[name]), 1e-5
    rois = golden["l14_rois"]
    pooler = LevelPooler(7, [3.5, 7.0, 14.0, 28.0])
    levels = pooler.levels(rois[:, 1:])
    yield "l14_roi_levels", difference(levels, golden["l14_roi_levels"]), 0.0
    maps = [_drawn(folder, f"l14_fpn:{k}", (1, 256, 64 >> k, 64 >> k)) for k in range(4)]
    pooled = pooler(maps, [Boxes(rois[:, 1:])])
    yield from _maps_apart({"l14_bbox_feats_c16": pooled}, golden)
    dense = F.normalize(_drawn(folder, "l14_dense", (1, 768, 16, 16)), dim=1)
    found = roi_features(dense, [rois[:, 1:]], [(16 * 14, 16 * 14)])
    yield "l14_vlm_feats", difference(found, golden["l14_vlm_feats"]), UNIT


PARTS = (
    Part("detector of COCO", (f"{COCO}.safetensors", key_file(COCO_KEYS), INSTANCE), _coco),
    Part("heads of LVIS", (f"{LVIS}.safetensors", key_file(LVIS_KEYS), INSTANCE), _lvis),
)
