"""An F-ViT small enough for unit tests, on a random EVA-like ViT."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from ovd_d2 import add_ovd_config
from ovd_d2.vocabulary import Vocabulary
from tests.tiny import BASE_NAMES, NOVEL_NAMES, random_units
from tests.tiny_vits import DIM, EVA, folder_of_architecture, tiny_clip

CONFIGS = Path("projects/CLIPSelf/configs")
WEIGHTS = "tiny_clip.pt"


def tiny_fvit_config(folder: Path, *, norm: str = "BN", masks: bool = False) -> CfgNode:
    """F-ViT over a ViT of 3 blocks and patches of 8 px, whose weights are a file in `folder`."""
    folder_of_architecture(folder, EVA)
    torch.save(tiny_clip(EVA).state_dict(), folder / WEIGHTS)
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "base_fvit.yaml"))
    model = cfg.MODEL
    model.DEVICE, model.MASK_ON = "cpu", masks
    model.OVD.TEACHER.ARCHITECTURE = EVA
    model.OVD.TEACHER.PRETRAINED = str(folder / WEIGHTS)
    model.OVD.EMBEDDING_DIM = DIM
    model.OVD.BASE_WEIGHT, model.OVD.NOVEL_WEIGHT = 0.9, 0.2
    model.FVIT.TAPS = (0, 1, 1, 2)
    model.FPN.OUT_CHANNELS = 16
    model.FPN.NORM = model.ROI_BOX_HEAD.NORM = model.ROI_MASK_HEAD.NORM = model.RPN.NORM = norm
    model.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 20
    model.ROI_HEADS.NUM_CLASSES = 4
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model.ROI_BOX_HEAD.CONV_DIM = model.ROI_MASK_HEAD.CONV_DIM = 16
    model.ROI_BOX_HEAD.NUM_CONV = model.ROI_MASK_HEAD.NUM_CONV = 1
    model.ROI_BOX_HEAD.FC_DIM = 32
    return cfg


def wide_vocabulary(dim: int = DIM) -> Vocabulary:
    """Three base categories, a novel one, and background."""
    names = BASE_NAMES + NOVEL_NAMES
    rows = random_units(len(names) + 1, dim=dim)
    novel = torch.tensor([name in NOVEL_NAMES for name in names])
    return Vocabulary(names, rows[:-1], novel, background=rows[-1])


def build_tiny_fvit(cfg: CfgNode) -> nn.Module:
    """In training mode, with a vocabulary."""
    torch.manual_seed(0)
    model = build_model(cfg)
    model.set_vocabulary(wide_vocabulary(cfg.MODEL.OVD.EMBEDDING_DIM))
    return model.train()
