"""Models with the golden numbers' random weights, through the loading code of official files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd_d2.golden import GoldenFolder
from ovd_d2.projects.glip.golden.weights import is_computed, random_weights, shapes
from ovd_d2.projects.glip.official_weights import PREFIX, convert_weights, load_strictly

ROOT = Path(__file__).resolve().parents[4]
CONFIGS = "projects/GLIP/configs"
TINY = "base_glip"
# Option of the public config -> ours, of the cases that are small.
_OPTIONS = {
    "MODEL.SWINT.EMBED_DIM": "MODEL.GLIP.SWIN.EMBED_DIM",
    "MODEL.SWINT.DEPTHS": "MODEL.GLIP.SWIN.DEPTHS",
    "MODEL.SWINT.NUM_HEADS": "MODEL.GLIP.SWIN.NUM_HEADS",
    "MODEL.SWINT.WINDOW_SIZE": "MODEL.GLIP.SWIN.WINDOW_SIZE",
    "MODEL.BACKBONE.OUT_CHANNELS": "MODEL.FPN.OUT_CHANNELS",
    "MODEL.DYHEAD.NUM_CONVS": "MODEL.GLIP.BLOCKS",
}
_BERT = {
    "hidden_size": "WIDTH",
    "num_hidden_layers": "LAYERS",
    "num_attention_heads": "HEADS",
    "intermediate_size": "HIDDEN",
}
_NOT_RANDOM = ("MODEL.GLIP.DROPOUT", "MODEL.GLIP.SWIN.DROP_PATH_RATE", "MODEL.GLIP.FPN_DROP_BLOCK")


def network(folder: GoldenFolder, config: str, keys: str, salt: str, *options: Any) -> Any:
    """A model in eval mode, without any random layer in training.

    Args:
        folder: of the golden numbers.
        config: name of a config of this project.
        keys: name of the list of keys.
        salt: of the weights' names.
        options: of the config, beside it.
    """
    still: list[Any] = [item for key in _NOT_RANDOM for item in (key, 0.0)]
    model = folder.build(
        f"{CONFIGS}/{config}.yaml",
        ["MODEL.WEIGHTS", "official.pth", "MODEL.OVD.VOCABULARY", "", *still, *options],
    )
    load_strictly(model, convert_weights(official_weights(folder, keys, salt, model)))
    return model


def official_weights(folder: GoldenFolder, keys: str, salt: str, model: Any) -> dict[str, Tensor]:
    """The content of a checkpoint's `model`; what a model computes is taken from ours."""
    found = shapes(folder, keys)
    own = model.state_dict()
    computed = {
        name: own.get(name.replace("backbone.body.", "backbone.bottom_up."), torch.zeros(0))
        for name in found
        if is_computed(name)
    }
    return {f"{PREFIX}{key}": one for key, one in (random_weights(found, salt) | computed).items()}


def tiny_network(folder: GoldenFolder, case: Mapping[str, Any], fused: bool) -> Any:
    """That of `tiny_*` or `tiny_a_*`.

    Args:
        folder: of the golden numbers.
        case: its JSON, with `options`, `bert` and `salt`.
        fused: with fusion or without.
    """
    keys = "tiny" if fused else "tiny_a"
    listed = shapes(folder, keys)
    words = listed["language_backbone.body.model.embeddings.word_embeddings.weight"][0]
    options: list[Any] = ["MODEL.GLIP.FUSION", fused, "MODEL.GLIP.BERT.VOCABULARY", words]
    for theirs, ours in _OPTIONS.items():
        options += [ours, case["options"][theirs]]
    for theirs, ours in _BERT.items():
        options += [f"MODEL.GLIP.BERT.{ours}", case["bert"][theirs]]
    if fused:
        width = listed["rpn.head.dyhead_tower.0.b_attn.attn.v_proj.weight"][0]
        options += ["MODEL.GLIP.FUSION_DIM", width]
    return network(folder, TINY, keys, case["salt"], *options)
