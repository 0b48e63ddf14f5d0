"""Image tower of the Pictogram-ViT; importing this module makes timm know it."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.eva import Eva


@timm.models.register_model
def pictogram_eva(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Image tower of `Pictogram-ViT`, as timm's eva02_base_patch16_clip_224 is that of EVA02-B-16.

    A plain ViT of this size learns half as much in the same number of steps.
    """
    kwargs = {key: kwargs[key] for key in ("num_classes", "global_pool") if key in kwargs}
    return Eva(
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
        ref_feat_shape=(6, 6),
        **kwargs,
    )
