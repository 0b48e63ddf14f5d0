"""The meta-architecture that carries cached proposals to the heads."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ovd_d2.vocabulary import Vocabulary


@META_ARCH_REGISTRY.register()
class OpenVocabularyRCNN(GeneralizedRCNN):
    """A two-stage detector of anything that can be named.

    In training each input may carry `cached_proposals` (see
    :class:`ovd_d2.data.mapper.OpenVocabularyDatasetMapper`); they go to the ROI heads beside the
    RPN's own proposals. Inference is :class:`GeneralizedRCNN`'s.
    """

    @configurable
    def __init__(self, *, compile_backbone: bool = False, **kwargs: Any) -> None:
        """
        Args:
            compile_backbone: run the backbone through `torch.compile`; parameters and state dict
                keep their names.
            kwargs: of :class:`GeneralizedRCNN`.
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

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Makes the detector look for these names from now on; no weight changes."""
        self.roi_heads.set_vocabulary(vocabulary)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: one dict an image: `image` (C, H, W); in training `instances` and,
                where the heads distil, `cached_proposals`.

        Returns:
            In training a dict of scalar losses; else one `{"instances": Instances}` an image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = self._collect(batched_inputs, "instances")
        features = self.backbone(images.tensor)
        if self.proposal_generator is not None:
            proposals, losses = self.proposal_generator(images, features, targets)
        else:
            proposals, losses = self._collect(batched_inputs, "proposals"), {}
        _, head_losses = self.roi_heads(
            images,
            features,
            proposals,
            targets,
            cached_proposals=self._collect(batched_inputs, "cached_proposals"),
        )
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**head_losses, **losses}

    def _collect(self, batched_inputs: list[dict[str, Any]], key: str) -> list[Instances] | None:
        if key not in batched_inputs[0]:
            return None
        return [x[key].to(self.device) for x in batched_inputs]

    def predict_proposals(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """The first stage alone.

        Returns:
            One `Instances` an image with `proposal_boxes` (in the coordinates of the network's
            input) and `objectness_logits`, sorted by falling objectness.
        """
        return self.propose(batched_inputs)[1]

    def propose(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], list[Instances]]:
        """Feature maps, name -> (N, C, H, W), and what :meth:`predict_proposals` returns."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        return features, proposals
