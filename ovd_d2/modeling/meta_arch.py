"""Meta-architectures: detections that do not depend on the batch, of any vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import Tensor

from ovd_d2.modeling.masks import postprocess
from ovd_d2.modeling.norms import set_batch_norms
from ovd_d2.modeling.roi_heads import WORDS
from ovd_d2.structures import ENCODED, FULL_MASKS, ORIGINAL_IMAGE, PerImage
from ovd_d2.vocabulary import Vocabulary


@META_ARCH_REGISTRY.register()
class BatchInvariantRCNN(GeneralizedRCNN):
    """Detectron2's R-CNN whose detections of an image are the same alone and in any batch.

    Detectron2 pads every image to the largest of its batch. Convolutions, attention and norms see
    the padding, so features near the border, and with them detections, depend on the neighbours.
    Of the two remedies, masking the padding and batching by padded size, this is the second, with
    one image per batch: every image is padded to `backbone.size_divisibility` (or
    `padding_constraints`) and no further. Larger batches of one padded size would still differ from
    the image alone by the rounding of their kernels, about 1e-6, which is enough to reorder scores
    that are close to 1 and to change what non-maximum suppression keeps. Detectron2's evaluation,
    too, gives a model one image at a time. Training is Detectron2's.

    Parameters and state dict are those of :class:`GeneralizedRCNN`.

    Attributes:
        full_masks: `pred_masks` is Detectron2's (N, height, width) bool tensor; where False, which
            evaluation sets for as long as it runs (:func:`ovd_d2.evaluation.masks_in_boxes`), it is
            :class:`ovd_d2.modeling.BoxMasks`, and no full-size mask is ever made. An input may say
            it for itself (:data:`ovd_d2.structures.FULL_MASKS`).
        channels_last: at test time on a CPU the backbone gets images in PyTorch's memory format of
            that name, in which convolutions are faster; False for one that calls `view` on them.
    """

    full_masks = True
    channels_last = True

    @configurable
    def __init__(self, *, batch_norm: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """
        Args:
            batch_norm: arguments of :func:`ovd_d2.modeling.norms.set_batch_norms`; None: PyTorch's
                own values.
            kwargs: of :class:`GeneralizedRCNN`.
        """
        super().__init__(**kwargs)
        if batch_norm is not None:
            set_batch_norms(self, **batch_norm)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        norm = cfg.MODEL.OVD.BATCH_NORM
        batch_norm = {
            "momentum": norm.MOMENTUM,
            "eps": norm.EPS,
            "biased_variance": norm.BIASED_VARIANCE,
        }
        return {**super().from_config(cfg), "batch_norm": batch_norm}

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """See :meth:`GeneralizedRCNN.inference`."""
        known = [None] * len(batched_inputs) if detected_instances is None else detected_instances
        raw = [
            self._infer(one, instances)
            for one, instances in zip(batched_inputs, known, strict=True)
        ]
        if not do_postprocess:
            return raw
        return [
            {"instances": self._postprocess_one(found, one)}
            for found, one in zip(raw, batched_inputs, strict=True)
        ]

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """See :meth:`GeneralizedRCNN.preprocess_image`."""
        images = super().preprocess_image(batched_inputs)
        if self.channels_last and not self.training and images.tensor.device.type == "cpu":
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    def _infer(self, one: dict[str, Any], known: Instances | None) -> Instances:
        """Raw detections of one image, in the coordinates of the network's input."""
        known_ones = None if known is None else [known]
        return super().inference([one], known_ones, do_postprocess=False)[0]

    def _postprocess_one(self, found: Instances, one: dict[str, Any]) -> Instances:
        """In the output size of the image, its input's where it names none."""
        height, width = found.image_size
        size = one.get("height", height), one.get("width", width)
        return postprocess(found, *size, full_masks=one.get(FULL_MASKS, self.full_masks))


@META_ARCH_REGISTRY.register()
class OpenVocabularyRCNN(BatchInvariantRCNN):
    """A two-stage detector of anything that can be named.

    Its ROI heads take a vocabulary (:class:`ovd_d2.modeling.roi_heads.OpenVocabularyROIHeads`).
    Training is Detectron2's: what else the heads learn from rides on the `instances` of an input
    (:class:`ovd_d2.structures.PerImage`). Inference is :class:`BatchInvariantRCNN`'s; an image that
    comes with its `original_image` hands it to the ROI heads, riding on the proposals.
    """

    @configurable
    def __init__(self, *, compile_backbone: bool = False, **kwargs: Any) -> None:
        """
        Args:
            compile_backbone: run the backbone through `torch.compile`; parameters and state dict
                keep their names.
            kwargs: of :class:`BatchInvariantRCNN`.
        """
        super().__init__(**kwargs)
        if compile_backbone:
            self.backbone.compile()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            **super().from_config(cfg),
            "compile_backbone": cfg.MODEL.OVD.COMPILE_BACKBONE,
        }

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What it looks for; None where none was set, or a checkpoint brought no names."""
        return self.roi_heads.vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Makes the detector look for these names from now on; no weight changes."""
        self.roi_heads.set_vocabulary(vocabulary)

    def forward(
        self, batched_inputs: list[dict[str, Any]], vocabulary: Vocabulary | None = None
    ) -> Any:
        """
        Args:
            batched_inputs: as Detectron2's.
            vocabulary: at test time, what to look for in this call; None: what the detector
                holds. Nothing in the detector changes, so several callers can share it.

        Raises:
            ValueError: a vocabulary is given in training, where the names are the annotations'.
        """
        if vocabulary is None:
            return super().forward(batched_inputs)
        if self.training:
            raise ValueError("training looks for the names of its annotations: set_vocabulary")
        words = self.roi_heads.classifier.words_of(vocabulary)
        return self.inference([{**one, WORDS: words} for one in batched_inputs])

    def _infer(self, one: dict[str, Any], known: Instances | None) -> Instances:
        if known is not None or one.keys().isdisjoint((ORIGINAL_IMAGE, WORDS, ENCODED)):
            return super()._infer(one, known)
        features, found = one[ENCODED] if ENCODED in one else self.encode(one)
        proposals = Instances(found.image_size, **found.get_fields())  # others may hold `found`
        for key in (ORIGINAL_IMAGE, WORDS):
            if key in one:
                proposals.set(key, PerImage(one[key], len(proposals)))
        (found,), _ = self.roi_heads(None, features, [proposals], None)
        return found

    def predict_proposals(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """The first stage alone, of images of any sizes.

        Returns:
            One `Instances` per image with `proposal_boxes` (in the coordinates of the network's
            input) and `objectness_logits`, sorted by falling objectness; as in
            :class:`BatchInvariantRCNN`, they do not depend on the other images.
        """
        return [self.encode(one)[1] for one in batched_inputs]

    def encode(self, one: dict[str, Any]) -> tuple[dict[str, Tensor], Instances]:
        """What no words change of an image: the maps of the backbone, and the proposals.

        An input that has it under :data:`ovd_d2.structures.ENCODED` goes through neither again.
        """
        images = self.preprocess_image([one])
        features = self.backbone(images.tensor)
        if self.proposal_generator is None:
            return features, one["proposals"].to(self.device)
        proposals, _ = self.proposal_generator(images, features, None)
        return features, proposals[0]
