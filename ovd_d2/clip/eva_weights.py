"""EVA-CLIP's own checkpoints, and those of CLIPSelf made from them, for open_clip's models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models.eva import Eva, checkpoint_filter_fn
from torch import Tensor

_MARK = "visual.blocks.0.norm1.weight"  # open_clip's own names have "visual.trunk.blocks..."
_WRAPPERS = ("state_dict", "model", "module")
_TABLES = ("freqs_cos", "freqs_sin")  # rotations, computed anew for every grid
_VISUAL = "visual."


def unwrapped_state(found: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict inside the dicts and prefixes that training scripts put around it."""
    for key in _WRAPPERS:
        if isinstance(found.get(key), Mapping):
            return unwrapped_state(found[key])
    return {key.removeprefix("module."): value for key, value in found.items()}


def is_eva_checkpoint(state: Mapping[str, Any], model: Any) -> bool:
    """Whether a state dict has EVA-CLIP's own names and the model is open_clip's of an EVA."""
    return _MARK in state and isinstance(getattr(model.visual, "trunk", None), Eva)


def eva_to_open_clip(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """EVA-CLIP's names -> open_clip's of `model`; the names of timm's trunk are timm's own map.

    Tensors keep their shapes: a position embedding of another size is for the strict load to
    refuse.
    """
    own = {key: one for key, one in state.items() if key.rpartition(".")[2] not in _TABLES}
    visual = {key: one for key, one in own.items() if key.startswith(_VISUAL)}
    trunk = checkpoint_filter_fn(visual, model.visual.trunk)
    rest = {key: one for key, one in own.items() if not key.startswith(_VISUAL)}
    return {
        **{f"visual.trunk.{key}": one for key, one in trunk.items()},
        "visual.trunk.pos_embed": visual["visual.pos_embed"],  # timm's map would resize it
        **rest,
    }
