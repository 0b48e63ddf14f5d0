"""What of a pretrained GLIP learns another task: everything, its last layers, or its prompt."""

from __future__ import annotations

from torch import nn

FULL, LINEAR, PROMPT = "full", "linear", "prompt"
MODES = (FULL, LINEAR, PROMPT)
OFFSET = "prompt_offset"  # parameter of the model

# Not the scales of the levels. The tower is frozen, but keeps its dropout.
_LINEAR = (
    "head.bbox_pred.",
    "head.centerness.",
    "head.text_projection.",
    "head.log_scale",
    "head.text_bias",
    "head.bias",
)
_TRAINED = {FULL: ("",), LINEAR: _LINEAR, PROMPT: (OFFSET,)}
# Modules without their random layers in training.
_STILL = {
    FULL: (),
    LINEAR: ("backbone", "text_encoder"),
    PROMPT: ("backbone", "text_encoder", "head"),
}


def freeze_for(model: nn.Module, mode: str) -> None:
    """Only what the mode trains needs a gradient, in place.

    Raises:
        ValueError: there is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"'{mode}' is none of {', '.join(MODES)}")
    for name, parameter in model.named_parameters():
        if not name.startswith(_TRAINED[mode]):
            parameter.requires_grad_(False)


def keep_still(model: nn.Module, mode: str) -> None:
    """Puts what is frozen into eval mode, of a model in training."""
    for name in _STILL[mode]:
        model.get_submodule(name).eval()
