"""GLIP's config keys, their defaults (GLIP-T) and what they do."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_glip_config(cfg: CfgNode) -> None:
    """Adds the node `MODEL.GLIP`."""
    cfg.MODEL.setdefault("GLIP", CfgNode())  # keys that are there already stay
