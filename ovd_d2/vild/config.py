"""ViLD's config keys, their defaults (the paper's) and what they do."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_vild_config(cfg: CfgNode) -> None:
    """Adds the node `MODEL.VILD`."""
    vild = cfg.MODEL.setdefault("VILD", CfgNode())  # keys that are there already stay

    # Which ViLD: "vild_text" (text branch alone), "vild_image" (distillation alone), "vild" (one
    # head learns both), "vild_ensemble" (two heads, their scores mixed at test time).
    # All but vild_text need DISTILLATION.CACHE or DISTILLATION.ONLINE for training.
    vild.VARIANT = "vild_text"

    # Parts of the official code's network (docs/recipes.md), each alone or together; on in the full
    # recipes. Others have names of their own: build_vild_resnet_fpn_backbone, ViLDRPN,
    # LevelNormRPNHead, LateNormMaskHead.
    # Sides of boxes are x2 - x1 + 1 in the ROI heads, whose detections end at the last pixel.
    vild.INCLUSIVE_BOXES = False
    # The box loss of the ROI heads is a mean over positive regions, not over all sampled ones.
    vild.BOX_LOSS_OVER_POSITIVES = False
    # Regions are pooled by one sample in the middle of each bin, without a half-pixel shift, in
    # the box and the mask pooler, whatever their POOLER_TYPE.
    vild.BIN_CENTRE_POOLING = False
    # LateNormMaskHead learns from interpolated masks as they are, not rounded to 0 and 1.
    vild.SOFT_MASK_TARGETS = False
    # Initial weights of the linear layers of box trunks and projections are Glorot's.
    vild.GLOROT_LINEAR = False
    # build_vild_resnet_fpn_backbone: side in pixels of the square that images are padded to, right
    # and below; 0: as little as the pyramid needs.
    vild.SQUARE_PAD = 0

    vild.DISTILLATION = CfgNode()
    # The proposal-embedding cache of the training set: a folder made by tools/cache.py build.
    vild.DISTILLATION.CACHE = ""
    # Training sets whose images are not in the cache and bring nothing to distil from.
    vild.DISTILLATION.EXCEPT_DATASETS = ()
    # w of the paper: 0.5 for ResNet-50.
    vild.DISTILLATION.WEIGHT = 0.5
    # The first K cached proposals of an image take part (they are sorted by objectness).
    vild.DISTILLATION.PROPOSALS_PER_IMAGE = 300

    # Training without a cache, for want of disk: the teacher runs inside training, on
    # MODEL.DEVICE, and embeds each image's proposals whenever the image comes up (docs/online.md).
    online = vild.DISTILLATION.ONLINE = CfgNode()
    # The proposals of the training set: a folder made by tools/extract_proposals.py. "": off.
    online.PROPOSALS = ""
    # What the teacher looks at: "crops" of every proposal, or, "dense", the image once, for a ViT
    # alone; the cache builder's --teacher.
    online.TEACHER = "crops"
    # How a crop becomes the teacher's input; the cache builder's --resize.
    online.RESIZE = "open_clip"
    # Crops in one pass of the teacher: fewer need less memory; the result does not depend on it.
    online.BATCH_SIZE = 256
    # The cache builder's --dense-size, --dense-square, --dense-window, --dense-global-blocks.
    dense = online.DENSE = CfgNode()
    # Pixels of the longer side of an image.
    dense.SIZE = 1024
    # Pad images to squares, as CLIPSelf was trained; False: to whole patches.
    dense.SQUARE = False
    # Patches per side of the windows that attention stays within; 0: it is global.
    dense.WINDOW_SIZE = 0
    # Blocks (from 0) whose attention is global all the same.
    dense.GLOBAL_ATTENTION_BLOCKS = []


# Of version 0.1, in which ViLD's keys were among the shared ones.
RENAMED_KEYS = {
    "MODEL.OVD.VARIANT": "MODEL.VILD.VARIANT",
    "MODEL.OVD.DISTILLATION": "MODEL.VILD.DISTILLATION",
}
