"""The weights of the public GLIP in the names of this package; layouts are PyTorch's in both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ovd_d2.projects.glip.prompts import MAX_TOKENS
from ovd_d2.projects.glip.tuning import OFFSET

PREFIX = "module."  # of the public trainer's DistributedDataParallel

_TOWER = "rpn.head.dyhead_tower."
_FUSED_PARTS = ("fusion", "language", "dyconv")  # of a block, in the order of the public list
_ATTENTION = {
    "v_proj": "image_query",
    "l_proj": "text_key",
    "values_v_proj": "image_values",
    "values_l_proj": "text_values",
    "out_v_proj": "image_output",
    "out_l_proj": "text_output",
}
_BRANCHES = ("coarser", "same", "finer")
# Beginning of a name there -> here.
_BEGINNINGS = {
    "backbone.body.": "backbone.bottom_up.",
    "backbone.fpn.top_blocks.": "backbone.top_block.",
    **{
        f"backbone.fpn.fpn_{theirs}{stage}.": f"backbone.fpn_{ours}{stage + 1}."
        for theirs, ours in (("inner", "lateral"), ("layer", "output"))
        for stage in (2, 3, 4)
    },
    "language_backbone.body.model.": "text_encoder.bert.",
    "rpn.head.bbox_pred.": "head.bbox_pred.",
    "rpn.head.centerness.": "head.centerness.",
    "rpn.head.dot_product_projection_text.": "head.text_projection.",
}
# A part of a tower's block: beginning there -> here.
_PARTS = {
    "b_attn.layer_norm_v.": "image_norm.",
    "b_attn.layer_norm_l.": "text_norm.",
    "b_attn.gamma_v": "image_gain",
    "b_attn.gamma_l": "text_gain",
    **{f"b_attn.attn.{theirs}.": f"{ours}." for theirs, ours in _ATTENTION.items()},
    **{f"attention.self.{one}.": f"{one}." for one in ("query", "key", "value")},
    "attention.output.dense.": "attention_output.",
    "attention.output.LayerNorm.": "attention_norm.",
    "intermediate.dense.": "expand.",
    "output.dense.": "reduce.",
    "output.LayerNorm.": "norm.",
    **{f"DyConv.{place}.conv.": f"{ours}." for place, ours in enumerate(_BRANCHES)},
    **{f"DyConv.{place}.bn.": f"{ours}.norm." for place, ours in enumerate(_BRANCHES)},
    "AttnConv.1.": "attention.",
    "relu.fc.0.": "dynamic_relu.reduce.",
    "relu.fc.2.": "dynamic_relu.expand.",
    "offset.": "offsets_and_mask.",
}
_WHOLE = {
    "rpn.head.log_scale": "head.log_scale",
    "rpn.head.bias_lang": "head.text_bias",
    "rpn.head.bias0": "head.bias",
    "rpn.tunable_linear.weight": OFFSET,
}
# Parts of names -> why they are left out.
LEFT_OUT = {
    "cls_logits.": "a classifier of 80 fixed categories that the public code never uses",
    "anchor_generator.": "anchors, computed anew for every size",
    "embeddings.position_ids": "0, 1, 2, ..., computed anew",
    "embeddings.token_type_ids": "zeros, computed anew",
    "resizer.": "an unused projection of the text's width",
    "mlm_head.": "the loss of masked words, which no released config has",
}


_SWIN_PARTS = ("patch_embed.", "layers.")
_SWIN_LEFT_OUT = {
    "norm.": "the norm before ImageNet's classifier; each level has its own here",
    "head.": "the classifier of ImageNet",
}
_SWIN_MASK = "masks of shifted windows, computed anew for every size"


@dataclass
class Converted:
    """What became of an official checkpoint.

    Attributes:
        weights: the detector's state dict.
        left_out: name -> why.
    """

    weights: dict[str, Tensor]
    left_out: dict[str, str] = field(default_factory=dict)


def convert_weights(weights: Mapping[str, Tensor]) -> Converted:
    """Renames all weights of a GLIP, with or without fusion, prompt tuned or not.

    Args:
        weights: the `model` of its checkpoint.

    Raises:
        ValueError: there is a weight that no rule names.
    """
    fused = any(".b_attn." in name for name in weights)
    found = Converted({})
    unknown = []
    for name, one in weights.items():
        plain = name.removeprefix(PREFIX)
        if why := _why_left_out(plain):
            found.left_out[name] = why
        elif key := renamed_key(plain, fused=fused):
            # of the 1000 offsets of prompt tuning a caption reaches so many
            found.weights[key] = one[:MAX_TOKENS] if key == OFFSET else one
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} weights have no place here, first {unknown[0]}")
    return found


def convert_swin(weights: Mapping[str, Tensor]) -> Converted:
    """The Swin of its authors, trained on ImageNet, as the backbone of a GLIP that is to train.

    Args:
        weights: the `model` of their checkpoint.

    Raises:
        ValueError: there is a weight that no rule names: it is no such Swin.
    """
    found = Converted({})
    unknown = []
    for name, one in weights.items():
        why = next((w for part, w in _SWIN_LEFT_OUT.items() if name.startswith(part)), "")
        if why or name.endswith(".attn_mask"):
            found.left_out[name] = why or _SWIN_MASK
        elif name.startswith(_SWIN_PARTS):
            found.weights[f"backbone.bottom_up.{name}"] = one
        else:
            unknown.append(name)
    if unknown or not found.weights:
        raise ValueError(
            f"{len(unknown)} of {len(weights)} weights have no place in a Swin, first "
            f"{unknown[0] if unknown else '-'}: is it a checkpoint of Swin-Transformer's authors?"
        )
    return found


def load_strictly(model: nn.Module, converted: Converted) -> None:
    """Loads them; nothing may be missing or have no place.

    Raises:
        ValueError: a weight is missing, has no place or another shape.
    """
    try:
        model.load_state_dict(converted.weights, strict=True)
    except RuntimeError as error:  # what PyTorch raises for all of them
        raise ValueError(
            f"the weights are of another model ({error}): take the config of the checkpoint's "
            "variant"
        ) from error


def renamed_key(name: str, *, fused: bool) -> str | None:
    """Where a weight is here; None: nowhere.

    Args:
        name: without the prefix.
        fused: whether the tower has fusion, which changes how its list is counted.
    """
    if name in _WHOLE:
        return _WHOLE[name]
    if match := re.fullmatch(r"rpn\.head\.scales\.(\d)\.scale", name):
        return f"head.scales.{match[1]}"
    if match := re.fullmatch(re.escape(_TOWER) + r"(\d+)\.(.*)", name):
        return _tower_key(int(match[1]), match[2], fused)
    return _replaced(name, _BEGINNINGS)


def _tower_key(place: int, rest: str, fused: bool) -> str | None:
    parts = _FUSED_PARTS if fused else ("dyconv",)
    inner = _replaced(rest, _PARTS)
    block, part = divmod(place, len(parts))
    return f"head.tower.{block}.{parts[part]}.{inner}" if inner else None


def _replaced(name: str, beginnings: Mapping[str, str]) -> str | None:
    return next(
        (new + name.removeprefix(old) for old, new in beginnings.items() if name.startswith(old)),
        None,
    )


def _why_left_out(name: str) -> str:
    return next((why for part, why in LEFT_OUT.items() if part in name), "")
