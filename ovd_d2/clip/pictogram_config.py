"""Names of the Pictogram teacher; importing this module makes open_clip know its architecture."""

from __future__ import annotations

from pathlib import Path

import open_clip

ARCHITECTURE = "Pictogram-RN"
"""open_clip's name of the small CLIP for Pictograms (`Pictogram-RN.json` beside this file)."""

SHIPPED_TAG = "shipped"
"""What to give as `pretrained` for the weights in this package."""

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "pictogram_rn.safetensors"

open_clip.add_model_config(Path(__file__).parent / f"{ARCHITECTURE}.json")
