"""A detector small enough for unit tests, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.structures import BitMasks, Boxes, Instances
from torch.nn import functional as F

from ovd_d2 import add_ovd_config
from ovd_d2.structures import attach_cached_proposals
from ovd_d2.vocabulary import Vocabulary

DIM = 8
BASE_NAMES = ["anchor", "bell", "cat"]
NOVEL_NAMES = ["dog"]


def tiny_config(variant: str = "vild_text", norm: str = "") -> CfgNode:
    """The Pictograms network with small heads, 3 base and 1 novel categories, 8-wide embeddings."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file("configs/pictograms/base.yaml")
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 10
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.NORM = cfg.MODEL.ROI_BOX_HEAD.FC_NORM = norm
    cfg.MODEL.ROI_MASK_HEAD.NORM = norm
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.VILD.VARIANT = variant
    cfg.MODEL.OVD.EMBEDDING_DIM = DIM
    cfg.MODEL.OVD.VOCABULARY = ""
    return cfg


def vit_config(**changes: Any) -> CfgNode:
    """A ViT; not padded to a square (Detectron2 pads none by default)."""
    cfg = tiny_config("vild")
    cfg.MODEL.BACKBONE.NAME = "build_ovd_vit_fpn_backbone"
    cfg.MODEL.FPN.NORM = "LN"
    cfg.MODEL.OVD.VIT.update(
        {
            "IMG_SIZE": 64,
            "EMBED_DIM": 16,
            "DEPTH": 3,
            "NUM_HEADS": 2,
            "WINDOW_SIZE": 2,
            "GLOBAL_ATTENTION_BLOCKS": (1,),
            "SCALE_FACTORS": (4.0, 2.0, 1.0, 0.5),
            **changes,
        }
    )
    return cfg


def pointrend_config() -> CfgNode:
    cfg = get_cfg()
    add_pointrend_config(cfg)
    tiny = tiny_config("vild")
    for key, value in cfg.MODEL.ROI_MASK_HEAD.items():
        tiny.MODEL.ROI_MASK_HEAD.setdefault(key, value)
    tiny.MODEL.POINT_HEAD = cfg.MODEL.POINT_HEAD
    head = tiny.MODEL.ROI_MASK_HEAD
    head.NAME, head.POOLER_TYPE, head.POINT_HEAD_ON = "ClassAgnosticPointRendMaskHead", "", True
    head.IN_FEATURES = tiny.MODEL.POINT_HEAD.IN_FEATURES = ["p3"]
    head.OUTPUT_SIDE_RESOLUTION, head.FC_DIM = 5, 16
    tiny.MODEL.POINT_HEAD.FC_DIM = 16
    tiny.MODEL.POINT_HEAD.TRAIN_NUM_POINTS = 12
    tiny.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 50  # 5 x 5 is doubled no further than 5
    tiny.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 2
    return tiny


def random_units(rows: int, seed: int = 0, dim: int = DIM) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def tiny_vocabulary(names: list[str] | None = None, seed: int = 0) -> Vocabulary:
    names = BASE_NAMES + NOVEL_NAMES if names is None else names
    novel = torch.tensor([name in NOVEL_NAMES for name in names])
    return Vocabulary(names, random_units(len(names), seed), novel)


def tiny_input(
    objects: int = 2, cached: int | None = 3, size: int = 64, seed: int = 0
) -> dict[str, Any]:
    """One training input; `cached` None leaves the cached proposals out."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((size, size))
    corners = torch.rand(objects, 2, generator=generator) * size / 2
    instances.gt_boxes = Boxes(torch.cat([corners, corners + size / 3], dim=1))
    instances.gt_classes = torch.arange(objects) % len(BASE_NAMES)
    instances.gt_masks = BitMasks(torch.rand(objects, size, size, generator=generator) > 0.5)
    image = (torch.rand(3, size, size, generator=generator) * 255).byte()
    record = {"image": image, "instances": instances, "height": size, "width": size}
    if cached is not None:
        proposals = Instances((size, size))
        corners = torch.rand(cached, 2, generator=generator) * size / 2
        proposals.proposal_boxes = Boxes(torch.cat([corners, corners + size / 4], dim=1))
        proposals.teacher_embeddings = random_units(cached, seed)
        attach_cached_proposals(record, proposals)
    return record
