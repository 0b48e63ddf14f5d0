"""The official ViLD code's region pooling: one sample in the middle of each bin."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torchvision.ops import roi_align


class BinCentrePooler(ROIPooler):
    """Detectron2's pooler over pyramid levels with :class:`BinCentreAlign` on each.

    Detectron2's own "ROIAlign" with one sample per bin is equal to it but for regions of less than
    one feature pixel, which it widens to one.
    """

    def __init__(self, output_size: int, scales: Sequence[float]) -> None:
        """
        Args:
            output_size: bins of a side.
            scales: of each level, 1 / stride.
        """
        super().__init__(output_size, list(scales), sampling_ratio=1, pooler_type="ROIAlignV2")
        self.level_poolers = nn.ModuleList(BinCentreAlign(output_size, scale) for scale in scales)


class BinCentreAlign(nn.Module):
    """Bilinear samples at box * scale + (i + 0.5) * side / bins, without a half-pixel shift."""

    def __init__(self, output_size: int, scale: float) -> None:
        super().__init__()
        self.output_size, self.scale = output_size, scale

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        """(B, C, H, W), (N, 5) of image number and XYXY -> (N, C, output_size, output_size)."""
        # `aligned` takes half a pixel off and widens nothing.
        shift = rois.new_tensor([0.0, 1, 1, 1, 1]) * 0.5 / self.scale
        moved = (rois + shift).to(x.dtype)
        size = self.output_size
        return roi_align(x, moved, size, self.scale, sampling_ratio=1, aligned=True)
