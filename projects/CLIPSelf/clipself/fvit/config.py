"""F-ViT's config keys, their defaults (the paper's) and what they do."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_fvit_config(cfg: CfgNode) -> None:
    """Adds the node `MODEL.FVIT`."""
    cfg.MODEL.setdefault("FVIT", CfgNode())  # keys that are there already stay
