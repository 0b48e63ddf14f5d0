"""CLIPSelf's config keys, their defaults (the paper's) and what they do."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_clipself_config(cfg: CfgNode) -> None:
    """Adds the node `MODEL.CLIPSELF`."""
    clipself = cfg.MODEL.setdefault("CLIPSELF", CfgNode())  # keys that are there already stay

    # The regions of an image that student and teacher compare: "patches" (cells of a random grid,
    # no labels at all) or "proposals" (boxes of a first stage).
    clipself.REGIONS = "patches"
    # At most so many per image.
    clipself.REGIONS_PER_IMAGE = 20
    # "patches": grids have 1 to so many rows.
    clipself.MAX_ROWS = 6
    # "proposals": a folder made by tools/extract_proposals.py or tools/cache.py build, or a JSON
    # file in COCO's format, of results or of annotations.
    clipself.PROPOSALS = ""
    # "proposals": those whose area in pixels of the original image is outside are left out.
    clipself.PROPOSAL_AREA = (8**2, 1024**2)
    # "proposals": side of the teacher's crop over that of the box.
    clipself.CROP_SCALE = 1.5
    # Side in pixels of the square that the student sees; images are padded to it with black.
    clipself.IMAGE_SIZE = 1024
    # Attention within windows of this many patches a side; 0: global, as the public code's.
    clipself.WINDOW_SIZE = 0
    # Blocks (from 0) whose attention is global all the same.
    clipself.GLOBAL_ATTENTION_BLOCKS = ()
    # What is evaluated and exported: ALPHA * student + (1 - ALPHA) * teacher, tensor by tensor
    # (0.7 for B/16, 0.95 for L/14). Training goes on from the student.
    clipself.ALPHA = 0.7
    # Keep no activations of the student's blocks, compute them again in the backward pass.
    clipself.GRADIENT_CHECKPOINTING = False
    # Run student and teacher through torch.compile in training; needs a C++ compiler (on a GPU,
    # Triton, too). The first steps take minutes.
    clipself.COMPILE = False
