"""Image branches: what gives a region an embedding in the teacher's image space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor, nn

from ovd_d2 import scoring
from ovd_d2.modeling.classifier import Words
from ovd_d2.structures import ORIGINAL_IMAGE


@dataclass(frozen=True)
class Regions:
    """The N regions of a batch, as an image branch may look at them.

    Attributes:
        features: name -> (B, C, H, W) maps of the backbone.
        proposals: one `Instances` per image with `proposal_boxes`, N in all.
        pooled: (N, C, h, w), what the text branch pools for them; empty for a branch that
            `embeds_proposals`.
    """

    features: dict[str, Tensor]
    proposals: list[Instances]
    pooled: Tensor


class ImageBranch(nn.Module):
    """Base class of what :class:`ovd_d2.modeling.roi_heads.OpenVocabularyROIHeads` score with.

    Attributes:
        embeds_proposals: its embeddings are those of the proposals as they came from the first
            stage: the stages of a cascade do not refine them, and where it scores alone, boxes are
            the proposals'.
    """

    embeds_proposals = False

    def embed(self, regions: Regions) -> Tensor:
        """Region embeddings, (N, D) float32 unit rows, on the device of the features."""
        raise NotImplementedError

    def probabilities(
        self, embeddings: Tensor, words: Words, temperature: float | Tensor
    ) -> Tensor:
        """Scores of embedded proposals, of a branch that `embeds_proposals`.

        Args:
            embeddings: (N, D), what :meth:`embed` gave.
            words: C names to choose from.
            temperature: the text branch's; a branch may have one of its own.

        Returns:
            (N, C) float32.
        """
        return scoring.image_probabilities(
            embeddings, words.embeddings, temperature, best=words.best
        )


class CropBranch(ImageBranch):
    """The teacher on crops of the original image (ViLD, section 4, table 3): slow.

    The inputs must bring the image along (:class:`ovd_d2.data.passengers.OriginalImage`).
    """

    embeds_proposals = True

    def __init__(self, embed_crops: Callable[[NDArray[np.uint8], Tensor], Tensor]) -> None:
        """
        Args:
            embed_crops: (H, W, 3) uint8 RGB and (K, 4) float32 boxes in its pixels -> (K, D)
                float32 unit rows, e.g. :func:`ovd_d2.clip.crops.embed_proposals` of a teacher.
        """
        super().__init__()
        self._embed_crops = embed_crops

    def embed(self, regions: Regions) -> Tensor:
        device = next(iter(regions.features.values())).device
        return torch.cat([self._embed(one) for one in regions.proposals]).to(device)

    def _embed(self, proposals: Instances) -> Tensor:
        if not proposals.has(ORIGINAL_IMAGE):
            raise ValueError(
                "the teacher on crops needs the original image: give the test loader's mapper the "
                "passenger OriginalImage (ovd_d2.engine.build.build_test_loader does)"
            )
        image = proposals.get(ORIGINAL_IMAGE).value.cpu().numpy()
        height, width = proposals.image_size
        boxes = Boxes(proposals.proposal_boxes.tensor.clone())
        boxes.scale(image.shape[1] / width, image.shape[0] / height)
        return self._embed_crops(image, boxes.tensor.cpu())
