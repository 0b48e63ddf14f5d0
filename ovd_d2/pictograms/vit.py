"""Image tower of the Pictogram-ViT; importing this module makes timm know it."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.eva import Eva
from torch import nn


@timm.models.register_model
def pictogram_eva(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Image tower of `Pictogram-ViT`, with the blocks of timm's eva02_base_patch16_clip_224.

    A plain ViT of this size knows half as many crops after the same number of steps. Rotations
    count patches at every image size (no `ref_feat_shape`) and are the only positions: with a
    learnt position for each patch of a crop it knows nothing of images of any other size.
    """
    kwargs = {key: kwargs[key] for key in ("num_classes", "global_pool") if key in kwargs}
    eva = Eva(
        img_size=48,
        patch_size=8,
        embed_dim=128,
        depth=6,
        num_heads=4,
        qkv_fused=False,
        mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        **kwargs,
    )
    assert eva.pos_embed is not None
    nn.init.zeros_(eva.pos_embed)
    eva.pos_embed.requires_grad_(False)
    return eva
