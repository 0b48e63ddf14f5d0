"""An RPN head with norms."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from torch import nn


@RPN_HEAD_REGISTRY.register()
class NormRPNHead(StandardRPNHead):
    """Detectron2's RPN head with a norm after each 3x3 conv (official ViLD: two convs with BN)."""

    @configurable
    def __init__(self, *, norm: str, **kwargs: Any) -> None:
        """
        Args:
            norm: e.g. "BN" or "SyncBN"; "" for none.
            kwargs: of :class:`StandardRPNHead`.
        """
        self._norm = norm  # the base class builds its convs, through the method below
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "norm": cfg.MODEL.RPN.NORM}

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> Conv2d:
        # The bias stays: the base class initialises one for every conv.
        return Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            padding=1,
            norm=get_norm(self._norm, out_channels),
            activation=nn.ReLU(),
        )
