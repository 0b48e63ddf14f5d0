"""The official ViLD code's ResNet stem and feature pyramid, where they are not Detectron2's.

tensorflow/tpu, models/official/detection: TensorFlow's "SAME" padding puts what is odd right and
below; the pyramid's norms come after everything else.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import BasicStem
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL, STRIDE = 3, 2
TRUNCATED_DEVIATION = 0.87962566103423978  # of a standard normal variable within -2 .. 2


def pad_same(x: Tensor) -> Tensor:
    """Pads (N, C, H, W) with zeros for a kernel of 3 and stride 2, as TensorFlow's "SAME" does.

    An even side gets one row right or below, an odd one a row at either end; PyTorch's `padding=1`
    is for both the latter, which moves all windows of even sides by a pixel.
    """
    height, width = x.shape[-2:]
    return F.pad(x, (*_padding(width), *_padding(height)))


def _padding(size: int) -> tuple[int, int]:
    total = KERNEL - (STRIDE if size % STRIDE == 0 else size % STRIDE)
    return total // 2, total - total // 2


class SamePaddedStem(BasicStem):
    """Detectron2's stem with "SAME" padding of its max pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, H / 4, W / 4)."""
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(pad_same(x), KERNEL, STRIDE)  # zeros are no maximum after the ReLU


class StridedTopBlock(nn.Module):
    """P6 by a 3x3 convolution with stride 2 over P5, "SAME" padded."""

    num_levels = 1
    in_feature = "p5"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel_size=KERNEL, stride=STRIDE)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> [(N, C, H / 2, W / 2)]."""
        return [self.conv(pad_same(x))]


def scale_by_fan_in(module: nn.Module) -> None:
    """Initial weights of a convolution as TensorFlow's `variance_scaling_initializer()`.

    A normal distribution of variance 1 / fan-in, cut off at two standard deviations.
    """
    if isinstance(module, nn.Conv2d):
        fan_in = module.weight[0].numel()
        deviation = fan_in**-0.5 / TRUNCATED_DEVIATION
        cut = 2 * deviation
        nn.init.trunc_normal_(module.weight, std=deviation, a=-cut, b=cut)


class LateNormFPN(FPN):
    """Detectron2's FPN whose norms are the last thing in it: one per level, P6 included.

    Lateral and output convolutions have a bias and no norm, and P6 is made of P5 before its norm.
    Initial weights are Glorot's.
    """

    def __init__(self, *, norm: str, out_channels: int, **kwargs: Any) -> None:
        """
        Args:
            norm: of each level, e.g. "SyncBN".
            out_channels: of each level.
            kwargs: of :class:`FPN`, `top_block` left out.
        """
        top_block = StridedTopBlock(out_channels)
        super().__init__(norm="", out_channels=out_channels, top_block=top_block, **kwargs)
        for conv in (*self.lateral_convs, *self.output_convs, top_block.conv):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        names = self.output_shape()
        self.norms = nn.ModuleDict({name: get_norm(norm, out_channels) for name in names})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> "p2" .. "p6" -> (N, C, H / stride, W / stride)."""
        return {name: self.norms[name](level) for name, level in super().forward(x).items()}


@BACKBONE_REGISTRY.register()
def build_vild_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's ResNet with :class:`SamePaddedStem` and :func:`scale_by_fan_in`."""
    resnet = build_resnet_backbone(cfg, input_shape)
    resnets = cfg.MODEL.RESNETS
    resnet.stem = SamePaddedStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    resnet.apply(scale_by_fan_in)
    return resnet.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_vild_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LateNormFPN:
    """The official code's backbone; test images are padded to `MODEL.VILD.SQUARE_PAD`."""
    return LateNormFPN(
        bottom_up=build_vild_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        square_pad=cfg.MODEL.VILD.SQUARE_PAD,
    )
