"""A training step on made-up input, for counting operations."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn

from ovd_d2.modeling.open_vocabulary import open_vocabulary_part
from ovd_d2.structures import attach_cached_proposals
from ovd_d2.vocabulary import Vocabulary

OBJECTS = 8  # annotated objects in a probe image


def training_pixels(cfg: CfgNode) -> int:
    """Pixels of the largest training image."""
    if cfg.INPUT.LSJ.ENABLED:
        return cfg.INPUT.LSJ.SIZE**2
    return max(cfg.INPUT.MIN_SIZE_TRAIN) * cfg.INPUT.MAX_SIZE_TRAIN


def on_cpu(cfg: CfgNode) -> CfgNode:
    """The config for one process without a GPU: norms over several GPUs become plain ones."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    for group in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.RPN, cfg.MODEL.ROI_BOX_HEAD):
        group.NORM = group.NORM.replace("naiveSyncBN", "BN").replace("SyncBN", "BN")
    cfg.MODEL.ROI_BOX_HEAD.FC_NORM = cfg.MODEL.ROI_BOX_HEAD.FC_NORM.replace("SyncBN", "BN")
    cfg.MODEL.ROI_MASK_HEAD.NORM = cfg.MODEL.ROI_MASK_HEAD.NORM.replace("SyncBN", "BN")
    return cfg


def set_meaningless_vocabulary(model: nn.Module, cfg: CfgNode) -> None:
    """Random names, as many as the config's categories; none where none are taken."""
    part = open_vocabulary_part(model)
    if part is None:
        return
    count, dim = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.OVD.EMBEDDING_DIM
    rows = torch.randn(count + 1, dim, generator=torch.Generator().manual_seed(0))
    rows = nn.functional.normalize(rows, dim=1)
    names = [str(k) for k in range(count)]
    part.set_vocabulary(Vocabulary(names, rows[1:], background=rows[0]))


def probe_input(cfg: CfgNode, size: int) -> dict[str, Any]:
    """A training input of `size` x `size` pixels, with as many proposals as there may be."""
    generator = torch.Generator().manual_seed(0)
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(_boxes(OBJECTS, size, generator))
    instances.gt_classes = torch.zeros(OBJECTS, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.ones(OBJECTS, size, size, dtype=torch.bool))
    cached = Instances((size, size))
    count = cfg.MODEL.VILD.DISTILLATION.PROPOSALS_PER_IMAGE
    cached.proposal_boxes = Boxes(_boxes(count, size, generator))
    cached.teacher_embeddings = torch.ones(count, cfg.MODEL.OVD.EMBEDDING_DIM)
    record = {
        "image": torch.zeros(3, size, size, dtype=torch.uint8),
        "instances": instances,
        "height": size,
        "width": size,
    }
    attach_cached_proposals(record, cached)
    return record


def _boxes(count: int, size: int, generator: torch.Generator) -> Tensor:
    corners = torch.rand(count, 2, generator=generator) * size / 2
    return torch.cat([corners, corners + size / 3], dim=1)
