"""The config keys of dense CLIP features, their defaults and what they do."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_dense_clip_config(cfg: CfgNode) -> None:
    """Adds the node `MODEL.DENSE_CLIP`."""
    dense = cfg.MODEL.setdefault("DENSE_CLIP", CfgNode())  # keys that are there already stay

    # Attention within windows of this many patches a side; 0: global.
    dense.WINDOW_SIZE = 0
    # Blocks (from 0) whose attention is global all the same.
    dense.GLOBAL_ATTENTION_BLOCKS = ()
    # Semantic segmentation by windows of this many pixels of the resized image; 0: all at once.
    dense.SLIDING_WINDOW = 0
    # Pixels from window to window.
    dense.SLIDING_STRIDE = 0
    # Panoptic segmentation: masks of another model, a JSON file in the format of COCO's panoptic
    # results (Detectron2's COCOPanopticEvaluator writes predictions.json), its PNGs in the folder
    # beside it. Empty: those of the ground truth.
    dense.MASKS = ""

    # Region classification, whatever the model (test sets called ..._regions).
    dense.REGIONS = CfgNode()
    # Also what the teacher's image embedding makes of crops, the ceiling; most of the time.
    dense.REGIONS.CROPS = True
    # Sides of the crop of a thing over those of its box.
    dense.REGIONS.CROP_SCALE = 1.5
    # Resize masks to patches with antialiasing: torchvision's default since 0.17. The published
    # figures of 2023 are without.
    dense.REGIONS.ANTIALIAS = False
