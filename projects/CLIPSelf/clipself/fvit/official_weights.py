"""The weights of the public F-ViT (mmdetection 2.x) in the names of this package.

Layouts are PyTorch's in both. The text embeddings are among its weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.clip.eva_weights import eva_to_open_clip
from ovd_d2.clip.untrained import untrained_model

VIT, VIT_HERE = "backbone.visual.", "backbone.vit.visual."
# Channels of the ViT -> open_clip's architecture.
ARCHITECTURES = {768: "EVA02-B-16", 1024: "EVA02-L-14-336"}
BOX = r"roi_head\.bbox_head\."
MASK = r"roi_head\.mask_head\."
# Pattern of a name there -> name here; <k> is counted from 1, <<k>> is a level of the pyramid.
RENAMED = (
    (r"backbone\.interpolate1\.(\d)\.", r"backbone.pyramid.up4.\1."),
    (r"backbone\.interpolate2\.0\.", "backbone.pyramid.up2."),
    (r"neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.lateral<<\1>>."),
    (r"neck\.lateral_convs\.(\d)\.bn\.", r"backbone.fpn.lateral<<\1>>.norm."),
    (r"neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.output<<\1>>."),
    (r"neck\.fpn_convs\.(\d)\.bn\.", r"backbone.fpn.output<<\1>>.norm."),
    (r"rpn_head\.rpn_conv\.(\d)\.conv\.", r"proposal_generator.rpn_head.conv.conv\1."),
    (r"rpn_head\.rpn_conv\.(\d)\.bn\.", r"proposal_generator.rpn_head.conv.conv\1.norm."),
    (r"rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (BOX + r"shared_convs\.(\d)\.conv\.", r"roi_heads.box_head.conv<\1>."),
    (BOX + r"shared_convs\.(\d)\.bn\.", r"roi_heads.box_head.conv<\1>.norm."),
    (BOX + r"shared_fcs\.(\d)\.", r"roi_heads.box_head.fc<\1>."),
    (BOX + r"cls_fcs\.0\.", "roi_heads.box_predictor.projection."),
    (BOX + r"reg_fcs\.0\.", "roi_heads.box_predictor.bbox_pred.fc."),
    (BOX + r"fc_reg\.", "roi_heads.box_predictor.bbox_pred.deltas."),
    (BOX + r"detect_temperature$", "roi_heads.box_predictor.classifier.scale"),
    (MASK + r"convs\.(\d)\.conv\.", r"roi_heads.mask_head.mask_fcn<\1>."),
    (MASK + r"convs\.(\d)\.bn\.", r"roi_heads.mask_head.mask_fcn<\1>.norm."),
    (MASK + r"upsample\.", "roi_heads.mask_head.deconv."),
    (MASK + r"conv_logits\.", "roi_heads.mask_head.predictor."),
)
TEXT_EMBEDDINGS = "roi_head.bbox_head.all_embeddings"
LEFT_OUT = {
    "roi_head.bbox_head.fc_cls.": "a classifier that the public code never uses",
    ".freqs_cos": "rotations, computed anew for every grid",
    ".freqs_sin": "rotations, computed anew for every grid",
}
RPN_CONV = re.compile(r"rpn_head\.rpn_conv\.(\d)\.conv\.weight")


@dataclass
class Converted:
    """What became of an official checkpoint.

    Attributes:
        weights: the detector's state dict, without vocabulary; without the ViT where the
            checkpoint had none.
        text_embeddings: (C, D) float32 unit rows, in the order of the data set.
        background: (D,) that of the word "background".
        left_out: name -> why.
    """

    weights: dict[str, Tensor]
    text_embeddings: Tensor
    background: Tensor
    left_out: dict[str, str] = field(default_factory=dict)


def convert_weights(weights: Mapping[str, Tensor]) -> Converted:
    """Renames all weights of an F-ViT, with or without mask head.

    Args:
        weights: the `state_dict` of its checkpoint.

    Raises:
        ValueError: there is a weight that no rule names; the text embeddings are missing; a ViT of
            an unknown width.
    """
    if TEXT_EMBEDDINGS not in weights:
        raise ValueError(f"{TEXT_EMBEDDINGS} is missing: is it a checkpoint of F-ViT?")
    left_out = {name: why for name in weights if (why := _why_left_out(name))}
    rest = {name: one for name, one in weights.items() if name not in left_out}
    embeddings = F.normalize(rest.pop(TEXT_EMBEDDINGS).float().T.contiguous(), dim=1)
    vit = {name: rest.pop(name) for name in list(rest) if name.startswith(VIT)}
    renamed = {name: renamed_key(name) for name in rest}
    if unknown := [name for name, key in renamed.items() if key is None]:
        raise ValueError(f"{len(unknown)} weights have no place here, first {unknown[0]}")
    converted = {str(renamed[name]): one for name, one in rest.items()}
    converted |= _missing_biases(rest) | _vit(vit)
    return Converted(converted, embeddings[:-1], embeddings[-1], left_out)


def renamed_key(name: str) -> str | None:
    """Where a weight outside of the ViT is here; None: nowhere."""
    for pattern, replacement in RENAMED:
        if re.match(pattern, name):
            renamed = re.sub(pattern, replacement, name, count=1)
            renamed = re.sub(r"<<(\d)>>", lambda m: str(int(m[1]) + 2), renamed)
            return re.sub(r"<(\d)>", lambda m: str(int(m[1]) + 1), renamed)
    return None


def _why_left_out(name: str) -> str:
    return next(
        (why for part, why in LEFT_OUT.items() if name.startswith(part) or name.endswith(part)), ""
    )


def _missing_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The RPN's convolutions before a norm have no bias there."""
    found = {}
    for name, value in weights.items():
        bias = name.removesuffix("weight") + "bias"
        if RPN_CONV.fullmatch(name) and bias not in weights:
            found[str(renamed_key(bias))] = torch.zeros(len(value))
    return found


def _vit(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not weights:
        return {}
    width = weights[f"{VIT}cls_token"].shape[-1] if f"{VIT}cls_token" in weights else 0
    if width not in ARCHITECTURES:
        raise ValueError(
            f"its ViT has {width} channels, known are {', '.join(map(str, ARCHITECTURES))}: is it "
            "F-ViT with EVA02-CLIP?"
        )
    model = untrained_model(ARCHITECTURES[width], "meta")
    named = {f"visual.{name.removeprefix(VIT)}": one for name, one in weights.items()}
    found = eva_to_open_clip(named, model)
    return {VIT_HERE + key.removeprefix("visual."): one for key, one in found.items()}
