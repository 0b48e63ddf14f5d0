"""A GLIP small enough for unit tests."""

from __future__ import annotations

import torch
from detectron2.modeling.backbone.swin import SwinTransformer
from detectron2.structures import Boxes, Instances

from ovd_d2.projects.glip.backbone import swin_fpn
from ovd_d2.projects.glip.head import GLIPHead, TowerSizes
from ovd_d2.projects.glip.model import GLIP
from ovd_d2.projects.glip.postprocess import Selection
from ovd_d2.projects.glip.prompts.tokenizer import WordPieces
from ovd_d2.projects.glip.text import BertSizes, TextEncoder

CHANNELS = 32  # with one value per group of 16, norms have nothing to norm at P7
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "red", "blue", "anchor", "cup", "dog", "bow")
SIZES = BertSizes(width=24, layers=1, heads=2, hidden=32, vocabulary=len(WORDS), positions=256)


def tiny_glip(
    *,
    seed=0,
    fused=True,
    still=True,
    checkpointing=False,
    across="resized",
    dynamic=True,
    vocabulary=None,
    tuning="full",
):
    """Random weights, the same for one seed.

    Args:
        seed: of the weights.
        fused: with fusion or without.
        still: no random layer in training.
        checkpointing: gradient checkpointing of all parts.
        across: see `DyConv`.
        dynamic: DyConv, or ConvNeXt's blocks.
        vocabulary: what to look for.
        tuning: what trains.
    """
    torch.manual_seed(seed)
    dropout = 0.0 if still else 0.1
    body = SwinTransformer(
        embed_dim=8,
        depths=(1, 2, 1, 1),
        num_heads=(1, 2, 2, 4),
        window_size=4,
        drop_path_rate=0.0 if still else 0.2,
        out_indices=(1, 2, 3),
        use_checkpoint=checkpointing,
    )
    sizes = TowerSizes(
        channels=CHANNELS,
        text_width=SIZES.width,
        blocks=2,
        fused=fused,
        fusion_width=32,
        fusion_heads=2,
        text_heads=SIZES.heads,
        text_hidden=SIZES.hidden,
        dropout=dropout,
        across_levels=across,
        dynamic=dynamic,
        gradient_checkpointing=checkpointing,
    )
    return GLIP(
        backbone=swin_fpn(body, CHANNELS, drop_probability=0.0 if still else 0.3),
        text_encoder=TextEncoder(SIZES, dropout=dropout, gradient_checkpointing=checkpointing),
        head=GLIPHead(sizes),
        pixel_mean=(100.0, 110.0, 120.0),
        pixel_std=(50.0, 50.0, 50.0),
        selection=Selection(score_threshold=0.0, limit=20),
        tokenizer=WordPieces.from_vocabulary(WORDS),
        vocabulary=vocabulary,
        tuning=tuning,
    )


def image(seed, height=64, width=96):
    """An input with random pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": pixels, "height": height, "width": width}


def training_image(seed, boxes=1, tokens=6, **size):
    """An input with boxes whose phrases are the tokens from the second on."""
    one = image(seed, **size)
    places = torch.arange(boxes)[:, None]
    corners = torch.tensor([[4.0, 6, 40, 44]]) + places * 3
    targets = torch.arange(tokens)[None] == 1 + places
    one["instances"] = Instances(
        tuple(one["image"].shape[1:]),
        gt_boxes=Boxes(corners),
        gt_classes=torch.zeros(boxes, dtype=torch.int64),
        gt_token_targets=targets,
    )
    one["tokens"] = torch.tensor([2, *(5 + k % 6 for k in range(tokens - 2)), 3])
    return one
