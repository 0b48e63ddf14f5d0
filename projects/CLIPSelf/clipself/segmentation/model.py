"""A frozen CLIP ViT as a segmentor of any vocabulary, without any training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.preprocess import normalised, padded_square
from ovd_d2.projects.clipself.region_classification.segments import SEGMENTS
from ovd_d2.projects.clipself.segmentation.masks import MASKS, classified_masks
from ovd_d2.projects.clipself.segmentation.scores import sliding_scores, whole_scores
from ovd_d2.vocabulary import Vocabulary, configured_vocabulary


@META_ARCH_REGISTRY.register()
class DenseCLIPSegmentor(nn.Module):
    """Names pixels and masks by the dense features of `MODEL.OVD.TEACHER`, e.g. a refined one.

    The vocabulary is cut to a test set's categories and put into their order by the trainer; the
    best of a category's synonyms counts. There is nothing to train and nothing in the state dict:
    `MODEL.WEIGHTS` stays empty.

    Attributes:
        vocabulary: what is looked for.
        dense: the features of every patch; no sub-module.
    """

    @configurable
    def __init__(
        self,
        *,
        teacher: CLIPTeacher,
        vocabulary: Vocabulary | None = None,
        window: int = 0,
        global_blocks: Iterable[int] = (),
        sliding_window: int = 0,
        sliding_stride: int = 0,
    ) -> None:
        """
        Args:
            teacher: a CLIP with a ViT.
            vocabulary: may be given later.
            window, global_blocks: of its attention, see :class:`DenseViT`.
            sliding_window, sliding_stride: pixels, see :func:`sliding_scores`; 0: whole images.

        Raises:
            ValueError: not a ViT of a known family; a global block that there is not.
        """
        super().__init__()
        self.vocabulary = vocabulary
        self._teacher = teacher
        self._dense = [DenseViT(teacher.visual, window=window, global_blocks=global_blocks)]
        self.sliding_window = sliding_window
        self.sliding_stride = sliding_stride

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        dense = cfg.MODEL.DENSE_CLIP
        return {
            "teacher": configured_teacher(cfg, device=cfg.MODEL.DEVICE),
            "vocabulary": configured_vocabulary(cfg),
            "window": dense.WINDOW_SIZE,
            "global_blocks": dense.GLOBAL_ATTENTION_BLOCKS,
            "sliding_window": dense.SLIDING_WINDOW,
            "sliding_stride": dense.SLIDING_STRIDE,
        }

    @property
    def dense(self) -> DenseViT:
        return self._dense[0]

    @property
    def device(self) -> torch.device:
        return self._teacher.device

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Looks for other names from now on."""
        self.vocabulary = vocabulary

    @torch.no_grad()
    def forward(
        self, batched_inputs: list[dict[str, Any]], vocabulary: Vocabulary | None = None
    ) -> list[dict[str, Any]]:
        """
        Args:
            batched_inputs: Detectron2's, with `image` (3, h, w) uint8 RGB, and `height`, `width` of
                the result where it is another size.
            vocabulary: of this call alone.

        Returns:
            Per image what its input is made for. With `segments`, those of region classification:
            `dense_features` (D, h, w) and `padded_size`, as CLIPSelf's model. With `given_masks`:
            `panoptic_seg`, the masks and their `segments_info` whose `category_id` are places in
            the vocabulary. Else `sem_seg`, (C, H, W) cosines.

        Raises:
            SetupError: no vocabulary.
        """
        return [self._one(image, vocabulary or self.vocabulary) for image in batched_inputs]

    def _one(self, record: dict[str, Any], vocabulary: Vocabulary | None) -> dict[str, Any]:
        pixels = record["image"].to(self.device)
        if SEGMENTS in record:
            return self._dense_features(pixels)
        if vocabulary is None:
            raise SetupError(["MODEL.OVD.VOCABULARY is empty: tools/build_vocabulary.py makes one"])
        words = vocabulary.word_embeddings.to(self.device), vocabulary.owners.to(self.device)
        images = normalised(pixels[None], self._teacher.mean, self._teacher.std)
        if MASKS in record:
            return self._panoptic(record[MASKS], images, *words)
        height, width = images.shape[2:]
        size = record.get("height", height), record.get("width", width)
        scores = self._scores(images, *words)[0]
        return {"sem_seg": sem_seg_postprocess(scores, (height, width), *size)}

    def _dense_features(self, pixels: Tensor) -> dict[str, Any]:
        """Of the image padded to a square with black, as in the self-distillation."""
        patch = self.dense.patch_size
        side = -(-max(pixels.shape[1:]) // patch) * patch
        square = padded_square([pixels], side)
        images = normalised(square, self._teacher.mean, self._teacher.std)
        return {"dense_features": self.dense(images)[0], "padded_size": (side, side)}

    def _scores(self, images: Tensor, embeddings: Tensor, owners: Tensor) -> Tensor:
        patch = self.dense.patch_size
        if not self.sliding_window:
            return whole_scores(images, self.dense, embeddings, owners, patch_size=patch)
        return sliding_scores(
            images,
            self.dense,
            embeddings,
            owners,
            patch_size=patch,
            window=self.sliding_window,
            stride=self.sliding_stride or self.sliding_window,
        )

    def _panoptic(
        self, id_map: Tensor, images: Tensor, embeddings: Tensor, owners: Tensor
    ) -> dict[str, Any]:
        dense = self.dense(images)[0]
        scales = (a / b for a, b in zip(id_map.shape, images.shape[2:], strict=True))
        covered = [
            cells * self.dense.patch_size * scale
            for cells, scale in zip(dense.shape[1:], scales, strict=True)
        ]
        found = classified_masks(id_map, dense, (covered[0], covered[1]), embeddings, owners)
        return {"panoptic_seg": (id_map, found)}
