"""Image tower of the Pictogram-ViT; importing this module makes timm know it."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.eva import Eva


@timm.models.register_model
def pictogram_eva(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Image tower of `Pictogram-ViT`, with the blocks of timm's eva02_base_patch16_clip_224.

    A plain ViT of this size knows half as many crops after the same number of steps. Rotations
    count patches at every image size (no `ref_feat_shape`): a glyph looks the same in a crop and
    in a scene.
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
        **kwargs,
    )
