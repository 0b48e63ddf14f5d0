"""F-ViT's backbone: a frozen dense ViT, a pyramid of its blocks, and its dense map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.dense.vit import DenseOutput
from ovd_d2.clip.loading import load_teacher
from ovd_d2.clip.untrained import untrained_model

DENSE = "dense"  # name of the map of unit vectors among the backbone's features
FIRST_LEVEL = 2  # p2, the finest


class FrozenDenseViT(DenseViT):
    """A dense ViT that nothing changes: always in eval mode, without gradients and graph."""

    def __init__(self, visual: nn.Module, *, needs_weights: bool = False, **kwargs: Any) -> None:
        """
        Args:
            visual: open_clip's module.
            needs_weights: its weights are random: a state dict must bring all of them.
            kwargs: of :class:`DenseViT`.
        """
        super().__init__(visual, **kwargs)
        self.requires_grad_(False)
        self.train(False)
        if needs_weights:
            self.register_load_state_dict_post_hook(_refuse_missing)

    def train(self, mode: bool = True) -> FrozenDenseViT:
        """It stays in eval mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def run(self, images: Tensor, **kwargs: Any) -> DenseOutput:
        """See :meth:`DenseViT.run`."""
        return super().run(images, **kwargs)


def _refuse_missing(vit: nn.Module, incompatible: Any) -> None:
    own = tuple(f".{name}" for name in vit.state_dict())
    lost = [key for key in incompatible.missing_keys if key.endswith(own)]
    if lost:
        raise ValueError(
            f"{len(lost)} weights of the frozen ViT are missing, first {lost[0]}: name a "
            "checkpoint of a detector with this ViT; or leave MODEL.WEIGHTS empty, and the ViT "
            "comes from MODEL.FVIT.VIT_WEIGHTS or MODEL.OVD.TEACHER.PRETRAINED"
        )


class SimplePyramid(nn.Module):
    """Four maps of a ViT, all of one stride, to four times, twice, once and half its resolution."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
            get_norm(norm, width) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.down2 = nn.MaxPool2d(kernel_size=2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four (B, W, h, w) -> C2 to C5: (B, W, 4h, 4w) to (B, W, h / 2, w / 2)."""
        first, second, third, fourth = maps
        return [self.up4(first), self.up2(second), third, self.down2(fourth)]


class LevelFPN(nn.Module):
    """A feature pyramid network over C2 to C5 of any strides, with P6.

    Detectron2's names its levels by the logarithms of their strides, which are no whole numbers
    where patches have 14 pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str, levels: int = 4) -> None:
        super().__init__()
        self.levels = range(FIRST_LEVEL, FIRST_LEVEL + levels)
        for level in self.levels:
            for name, channels, size in (("lateral", in_channels, 1), ("output", out_channels, 3)):
                conv = Conv2d(
                    channels,
                    out_channels,
                    kernel_size=size,
                    padding=size // 2,
                    bias=not norm,
                    norm=get_norm(norm, out_channels),
                )
                weight_init.c2_xavier_fill(conv)
                self.add_module(f"{name}{level}", conv)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """C2 to C5 -> "p2" to "p6", (B, C, h, w) each."""
        found: dict[str, Tensor] = {}
        above: Tensor | None = None
        for level, one in reversed(list(zip(self.levels, maps, strict=True))):
            merged = self.get_submodule(f"lateral{level}")(one)
            if above is not None:
                merged = merged + F.interpolate(above, size=merged.shape[-2:], mode="nearest")
            found[f"p{level}"] = self.get_submodule(f"output{level}")(merged)
            above = merged
        last = self.levels[-1]
        found[f"p{last + 1}"] = F.max_pool2d(found[f"p{last}"], kernel_size=1, stride=2)
        return found


class FViTBackbone(Backbone):
    """Features "p2" to "p6" of a frozen ViT, which learn, and its map of unit vectors, "dense".

    Attributes:
        vit: the frozen ViT.
        pyramid: from its blocks to C2 .. C5.
        fpn: from these to p2 .. p6.
    """

    def __init__(
        self,
        vit: FrozenDenseViT,
        *,
        taps: Sequence[int],
        out_channels: int,
        norm: str,
        square_pad: int = 0,
    ) -> None:
        """
        Args:
            vit: the frozen ViT.
            taps: the blocks (from 0) that C2 to C5 are made of.
            out_channels: of p2 to p6.
            norm: of pyramid and FPN; "" for none.
            square_pad: side of the square that images are padded to; 0: no more than needed.

        Raises:
            ValueError: not four taps, or one is no block.
        """
        super().__init__()
        unknown = sorted(set(taps) - set(range(vit.depth)))
        if len(taps) != 4 or unknown:
            raise ValueError(
                f"MODEL.FVIT.TAPS {tuple(taps)}: expected four of the blocks 0 to {vit.depth - 1}"
            )
        self.vit = vit
        self.taps = tuple(taps)
        self.pyramid = SimplePyramid(vit.width, norm)
        self.fpn = LevelFPN(vit.width, out_channels, norm)
        self.square_pad = square_pad
        self._channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> name -> (B, C, H / stride, W / stride)."""
        found = self.vit.run(images, taps=self.taps)
        assert found.dense is not None
        maps = self.pyramid([found.taps[index] for index in self.taps])
        return {**self.fpn(maps), DENSE: found.dense}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Strides are whole numbers where the patch size is a multiple of 4."""
        shapes = {}
        for number in range(5):
            stride = _whole(self.vit.patch_size * 2**number / 4)
            shapes[f"p{FIRST_LEVEL + number}"] = ShapeSpec(channels=self._channels, stride=stride)
        shapes[DENSE] = ShapeSpec(channels=self.vit.embedding_dim, stride=self.vit.patch_size)
        return shapes

    @property
    def size_divisibility(self) -> int:
        """Pixels: C5 halves the ViT's grid."""
        return 2 * self.vit.patch_size

    @property
    def padding_constraints(self) -> Mapping[str, int]:
        """See :meth:`Backbone.padding_constraints`."""
        return {"square_size": self.square_pad}


def _whole(stride: float) -> Any:
    """An int where it is one: Detectron2's type; its anchors take a float as well."""
    return int(stride) if stride.is_integer() else stride


@BACKBONE_REGISTRY.register()
def build_fvit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FViTBackbone:
    """The teacher's ViT, frozen, with pyramid and dense map, by the keys of `MODEL.FVIT`.

    Raises:
        SetupError: the weights of the ViT cannot be loaded.
    """
    fvit = cfg.MODEL.FVIT
    vit = FrozenDenseViT(
        configured_visual(cfg),
        needs_weights=bool(cfg.MODEL.WEIGHTS),
        window=fvit.WINDOW_SIZE,
        global_blocks=fvit.GLOBAL_ATTENTION_BLOCKS,
    )
    return FViTBackbone(
        vit,
        taps=fvit.TAPS,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        square_pad=fvit.SQUARE_PAD,
    )


def configured_visual(cfg: CfgNode) -> nn.Module:
    """The image tower; with random weights where a detector's checkpoint brings them."""
    teacher = cfg.MODEL.OVD.TEACHER
    if cfg.MODEL.WEIGHTS:
        device = str(torch.empty(0).device)  # also where PyTorch was told to use "meta"
        with torch.random.fork_rng(devices=[]):  # as if nothing had been drawn
            return untrained_model(teacher.ARCHITECTURE, device).visual
    weights = cfg.MODEL.FVIT.VIT_WEIGHTS
    key = "MODEL.FVIT.VIT_WEIGHTS" if weights else "MODEL.OVD.TEACHER"
    return load_teacher(teacher.ARCHITECTURE, weights or teacher.PRETRAINED, key=key).visual
