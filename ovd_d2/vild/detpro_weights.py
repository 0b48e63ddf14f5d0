"""The weights of DetPro's ViLD (mmdetection 2.x, dyabel/detpro) in the names of this package.

Layouts are PyTorch's in both. Its text embeddings are in a file of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Pattern of a name there -> name here; a norm's and a layer's last part stay.
RENAMED = (
    (r"backbone\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"backbone\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.", r"backbone.bottom_up.res<\1>.\2.conv\3."),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.", r"backbone.bottom_up.res<\1>.\2.conv\3.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.", r"backbone.bottom_up.res<\1>.\2.shortcut."),
    (
        r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.",
        r"backbone.bottom_up.res<\1>.\2.shortcut.norm.",
    ),
    (r"neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn_lateral<<\1>>."),
    (r"neck\.lateral_convs\.(\d)\.bn\.", r"backbone.fpn_lateral<<\1>>.norm."),
    (r"neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn_output<<\1>>."),
    (r"neck\.fpn_convs\.(\d)\.bn\.", r"backbone.fpn_output<<\1>>.norm."),
    (r"rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
    (r"rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_head\.bbox_head\.shared_convs\.(\d)\.conv\.", r"roi_heads.box_head.conv<\1>."),
    (r"roi_head\.bbox_head\.shared_convs\.(\d)\.bn\.", r"roi_heads.box_head.conv<\1>.norm."),
    (r"roi_head\.bbox_head\.shared_fcs\.(\d)\.", r"roi_heads.box_head.fc<\1>."),
    (
        r"roi_head\.bbox_head\.shared_convs_for_image\.(\d)\.conv\.",
        r"roi_heads.image_head.trunk.conv<\1>.",
    ),
    (
        r"roi_head\.bbox_head\.shared_convs_for_image\.(\d)\.bn\.",
        r"roi_heads.image_head.trunk.conv<\1>.norm.",
    ),
    (r"roi_head\.bbox_head\.shared_fcs_for_image\.(\d)\.", r"roi_heads.image_head.trunk.fc<\1>."),
    (r"roi_head\.projection\.", "roi_heads.box_predictor.projection."),
    (r"roi_head\.projection_for_image\.", "roi_heads.image_head.projection."),
    (r"roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (r"roi_head\.mask_head\.convs\.(\d)\.conv\.", r"roi_heads.mask_head.mask_fcn<\1>."),
    (r"roi_head\.mask_head\.upsample\.", "roi_heads.mask_head.deconv."),
    (r"roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_head.predictor."),
)
BACKGROUND = "roi_head.bg_embedding"  # a linear layer that is applied to the number 1
LEFT_OUT = {"roi_head.clip_model.": "the frozen CLIP, which the vocabulary stands for"}


def convert_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames all weights of a DetPro ViLD with two branches.

    Args:
        weights: the `state_dict` of its checkpoint.

    Returns:
        The detector's state dict, without vocabulary; and name -> why, of what is left out.

    Raises:
        ValueError: there is a weight that no rule names, or the background is missing.
    """
    background = [f"{BACKGROUND}.weight", f"{BACKGROUND}.bias"]
    if missing := [name for name in background if name not in weights]:
        raise ValueError(f"{missing[0]} is missing: is it a checkpoint of DetPro's ViLD?")
    converted, left_out, unknown = {}, {}, []
    for name, value in weights.items():
        why = next((why for begin, why in LEFT_OUT.items() if name.startswith(begin)), None)
        if why is not None:
            left_out[name] = why
        elif (renamed := _renamed(name)) is not None:
            converted[renamed] = value
        elif name not in background:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} weights have no place here, first {unknown[0]}")
    weight, bias = (weights[name] for name in background)
    converted["roi_heads.box_predictor.classifier.background"] = weight[:, 0] + bias
    return converted, left_out


def _renamed(name: str) -> str | None:
    for pattern, replacement in RENAMED:
        if re.match(pattern, name):
            renamed = re.sub(pattern, replacement, name, count=1)
            renamed = re.sub(r"<<(\d)>>", lambda m: str(int(m[1]) + 2), renamed)  # level
            return re.sub(r"<(\d)>", lambda m: str(int(m[1]) + 1), renamed)  # counted from 1
    return None


def text_embeddings(embeddings: Tensor) -> Tensor:
    """(C, 512) of its prompt file, any type -> float32 unit rows."""
    return torch.nn.functional.normalize(embeddings.float(), dim=1)
