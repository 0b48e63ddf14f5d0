"""Names of torchvision's ResNets in Detectron2's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PREFIX = "backbone.bottom_up."  # of the ResNet under an FPN
# In this order; a part that no rule names stays.
_RENAMED = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)
_PLACE = re.compile(r"(stem|res[2-5]\.\d+)\.(conv[123]|shortcut)\.(norm\.)?\w+")
LEFT_OUT = {
    r"fc\.(weight|bias)": "the classifier of ImageNet",
    r".*\.num_batches_tracked": "a count that norms of a detector do not keep",
}


def convert_resnet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of torchvision's `resnet18` to `resnet152` (and ResNeXt) for Detectron2's ResNet.

    Args:
        state: its state dict.

    Returns:
        Detectron2's names -> tensors, and what was left out: its name -> the reason.

    Raises:
        ValueError: a weight has no place: it is no such ResNet.
    """
    weights: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    lost = []
    for name, value in state.items():
        if reason := _reason(name):
            left_out[name] = reason
            continue
        new = name
        for pattern, replacement in _RENAMED:
            new = re.sub(pattern, replacement, new)
        weights[PREFIX + new] = value
        if not _PLACE.fullmatch(new):
            lost.append(name)
    if lost or not weights:
        raise ValueError(
            f"{len(lost)} of {len(state)} weights have no place in a ResNet, first "
            f"{lost[0] if lost else '-'}: is it a state dict of torchvision's resnet?"
        )
    return weights, left_out


def _reason(name: str) -> str:
    return next((why for key, why in LEFT_OUT.items() if re.fullmatch(key, name)), "")
