"""Names of the Pictogram teacher; importing this module makes open_clip know its architecture."""

from __future__ import annotations

from pathlib import Path

import open_clip

ARCHITECTURE = "Pictogram-RN"
"""open_clip's name of the small CLIP for Pictograms (`Pictogram-RN.json` beside this file)."""

SHIPPED_TAG = "shipped"
"""What to give as `pretrained` for the teacher in this package."""

SHIPPED_BASE_TAG = "shipped-base"
"""The same for the CLIP that has not seen the novel glyphs: initial weights of detectors."""

_FOLDER = Path(__file__).parent / "weights"
SHIPPED_WEIGHTS = {
    SHIPPED_TAG: _FOLDER / "pictogram_rn.safetensors",
    SHIPPED_BASE_TAG: _FOLDER / "pictogram_rn_base.safetensors",
}

open_clip.add_model_config(Path(__file__).parent / f"{ARCHITECTURE}.json")
