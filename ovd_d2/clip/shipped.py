"""Architectures and weights that come with this package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

# open_clip's name -> the module that adds it to open_clip when it is imported, and whose
# SHIPPED_WEIGHTS are files by architecture and tag.
MODULES = {
    "Pictogram-RN": "ovd_d2.pictograms.teacher",
    "Pictogram-ViT": "ovd_d2.pictograms.teacher",
}


def shipped_weights(architecture: str) -> Mapping[str, Path]:
    """Tag -> weights of an architecture, which open_clip knows from then on; else empty."""
    if architecture not in MODULES:
        return {}
    return import_module(MODULES[architecture]).SHIPPED_WEIGHTS[architecture]
