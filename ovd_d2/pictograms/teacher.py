"""Names of the Pictogram teachers; importing this module makes open_clip know them."""

from __future__ import annotations

from pathlib import Path

import open_clip

from ovd_d2.pictograms import vit  # noqa: F401  (timm knows its image tower)

ARCHITECTURE = "Pictogram-RN"
"""open_clip's name of the small CLIP for Pictograms (`Pictogram-RN.json` beside this file)."""

VIT_ARCHITECTURE = "Pictogram-ViT"
"""The same with a ViT for an image tower, which has dense features."""

SHIPPED_TAG = "shipped"
"""What to give as `pretrained` for the teacher in this package."""

SHIPPED_BASE_TAG = "shipped-base"
"""The same for the CLIP that has not seen the novel glyphs: initial weights of detectors."""

_FOLDER = Path(__file__).parent / "weights"
SHIPPED_WEIGHTS: dict[str, dict[str, Path]] = {
    ARCHITECTURE: {
        SHIPPED_TAG: _FOLDER / "pictogram_rn.safetensors",
        SHIPPED_BASE_TAG: _FOLDER / "pictogram_rn_base.safetensors",
    },
    VIT_ARCHITECTURE: {SHIPPED_TAG: _FOLDER / "pictogram_vit.safetensors"},
}

for _architecture in SHIPPED_WEIGHTS:
    open_clip.add_model_config(Path(__file__).parent / f"{_architecture}.json")
