"""What of a pretrained GLIP learns another task: everything, its last layers, or its prompt."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

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


def tuning_problem(
    model: nn.Module, mode: str, state: Mapping[str, Tensor], prefix: str = ""
) -> str:
    """What is wrong with weights for a model that is tuned in this way; empty: nothing.

    Args:
        model: they are loaded into.
        mode: one of `MODES`.
        state: tensors by name, of the shapes that the model has.
        prefix: of the model's own names in it.
    """
    offset = state.get(prefix + OFFSET)
    if mode != PROMPT and offset is not None and bool(offset.any()):
        return (
            f"the weights hold an offset of prompt tuning ({OFFSET}), which MODEL.GLIP.TUNING "
            f"{mode} would leave out: set MODEL.GLIP.TUNING {PROMPT}, or take the weights before it"
        )
    frozen = [name for name, one in model.named_parameters() if not one.requires_grad]
    absent = [name for name in frozen if prefix + name not in state]
    if mode != FULL and absent:
        return (
            f"MODEL.GLIP.TUNING {mode} keeps what it is given, but {len(absent)} of {len(frozen)} "
            f"frozen parameters are not in the weights, or of another shape (first: {absent[0]}): "
            "name in MODEL.WEIGHTS those of a trained GLIP of the same sizes"
        )
    return ""


def keep_still(model: nn.Module, mode: str) -> None:
    """Puts what is frozen into eval mode, of a model in training."""
    for name in _STILL[mode]:
        model.get_submodule(name).eval()
