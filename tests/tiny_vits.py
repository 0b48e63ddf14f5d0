"""Random CLIPs with a ViT of each family that has dense features, small enough for any test."""

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from timm.models.eva import Eva
from torch import nn

from ovd_d2.clip.teacher import CLIPTeacher

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
NATIVE, EVA = "tiny-vit", "tiny-eva"
FAMILIES = (NATIVE, EVA)
PATCH, SIDE, DIM, DEPTH = 8, 32, 12, 3


@timm.models.register_model
def tiny_eva_clip(pretrained: bool = False, **kwargs: Any) -> Eva:
    """As timm's eva02_base_patch16_clip_224, with which open_clip builds EVA02-B-16."""
    kwargs = {key: kwargs[key] for key in ("num_classes", "global_pool") if key in kwargs}
    return Eva(
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=32,
        depth=DEPTH,
        num_heads=2,
        qkv_fused=False,
        mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(3, 3),  # not its grid, as EVA's B/16: 16 where the grid is 14
        **kwargs,
    )


VISION = {
    NATIVE: {"layers": DEPTH, "width": 32, "head_width": 16, "patch_size": PATCH},
    EVA: {"timm_model_name": "tiny_eva_clip", "timm_pool": "token", "timm_proj": None},
}


def tiny_clip(family: str, seed: int = 0) -> nn.Module:
    """A model in eval mode whose norms, positions and biases are not those of an untrained one."""
    text = open_clip.CLIPTextCfg(**TEXT)
    vision = open_clip.CLIPVisionCfg(image_size=SIDE, **VISION[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = open_clip.CustomTextCLIP if family == EVA else open_clip.CLIP
        model = make(DIM, vision, text)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tiny_teacher(family: str, seed: int = 0) -> CLIPTeacher:
    """The same as a teacher."""
    model = tiny_clip(family, seed)
    preprocess = {"size": SIDE, "interpolation": "bicubic", "resize_mode": "shortest"}
    tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
    return CLIPTeacher(model, tokenizer, preprocess, architecture=family)


def eva_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's names of an EVA -> EVA-CLIP's own, as its checkpoints have them."""
    renames = (
        ("visual.trunk.", "visual."),
        (".q_proj.bias", ".q_bias"),
        (".v_proj.bias", ".v_bias"),
        (".attn.norm.", ".attn.inner_attn_ln."),
        (".mlp.norm.", ".mlp.ffn_ln."),
        (".fc1_g.", ".w1."),
        (".fc1_x.", ".w2."),
        (".fc2.", ".w3."),
    )
    found = {}
    for key, value in state.items():
        for theirs, official in renames:
            if key.startswith("visual."):
                key = key.replace(theirs, official)
        found[key] = value
    return found


def random_images(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal, as normalised pixels are."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def folder_of_architecture(folder: Path, family: str) -> None:
    """Makes open_clip know the architecture by its name."""
    config = {"embed_dim": DIM, "vision_cfg": {"image_size": SIDE, **VISION[family]}}
    config |= {"text_cfg": TEXT, "custom_text": family == EVA}
    (folder / f"{family}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
