"""F-ViT's box predictor: non-negative region embeddings, a learned scale of similarities."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.modeling.box_head import EmbeddingProjection, OpenVocabularyOutputLayers
from ovd_d2.modeling.classifier import CLIPClassifier


class ScaledClassifier(CLIPClassifier):
    """The classifier by words whose factor of cosine similarities is learned.

    Attributes:
        scale: the factor, (); 1 over the temperature.
    """

    def __init__(self, *, scale: float, test_scale: float | None = None, **kwargs: Any) -> None:
        """
        Args:
            scale: where it begins.
            test_scale: another factor in eval mode; None: the learned one.
            kwargs: of :class:`CLIPClassifier`, temperatures left out.
        """
        super().__init__(temperature=1 / scale, **kwargs)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.test_scale = test_scale

    @property
    def temperature(self) -> float | Tensor:
        """See :class:`CLIPClassifier`; a tensor with graph in training."""
        if self.training or self.test_scale is None:
            return 1 / self.scale
        return 1 / self.test_scale


class NonNegativeProjection(EmbeddingProjection):
    """A linear layer, a ReLU, unit length: (N, F) -> (N, D), float32.

    A region whose channels are all zero stays zero: similarity 0 to everything, and no gradient.
    """

    def __init__(self, input_shape: ShapeSpec, embedding_dim: int) -> None:
        super().__init__(input_shape, embedding_dim)
        weight_init.c2_xavier_fill(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(nn.Linear.forward(self, x.flatten(1)).relu().float(), dim=1)


class FViTOutputLayers(OpenVocabularyOutputLayers):
    """Open-vocabulary box predictor with a hidden layer per task and a weight of the background."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classifier: CLIPClassifier,
        background_weight: float,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: shape of the trunk's output.
            classifier: similarity to the vocabulary.
            background_weight: of regions without object in the classification loss, which is
                divided by the number of regions, not by the sum of their weights.
            kwargs: of :class:`OpenVocabularyOutputLayers`.
        """
        super().__init__(input_shape, classifier=classifier, **kwargs)
        self.background_weight = background_weight
        self.projection = NonNegativeProjection(input_shape, classifier.embedding_dim)
        deltas: Any = self.get_submodule("bbox_pred")
        hidden = nn.Linear(deltas.in_features, deltas.in_features)
        weight_init.c2_xavier_fill(hidden)
        layers = OrderedDict(fc=hidden, relu=nn.ReLU(), deltas=deltas)
        self.bbox_pred = nn.Sequential(layers)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        return {**ret, "background_weight": cfg.MODEL.FVIT.BACKGROUND_WEIGHT}

    @classmethod
    def _init_classifier(cls, cfg: CfgNode, **kwargs: Any) -> CLIPClassifier:
        fvit = cfg.MODEL.FVIT
        return ScaledClassifier(
            scale=fvit.LOGIT_SCALE, test_scale=fvit.TEST_LOGIT_SCALE or None, **kwargs
        )

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """See :meth:`OpenVocabularyOutputLayers.losses`."""
        losses = super().losses(predictions, proposals)
        if proposals:
            classes = torch.cat([one.gt_classes for one in proposals])
            loss = weighted_cross_entropy(predictions[0], classes, self.background_weight)
            losses["loss_cls"] = loss * self.loss_weight.get("loss_cls", 1.0)
        return losses


def weighted_cross_entropy(logits: Tensor, classes: Tensor, background_weight: float) -> Tensor:
    """Cross-entropy per region with another weight for the background, over the number of regions.

    Args:
        logits: (N, C + 1), background last.
        classes: (N,) int64.
        background_weight: of regions of class C; the others count 1.

    Returns:
        Scalar float32; for N = 0 it is 0, still connected to the graph.
    """
    if len(classes) == 0:
        return logits.float().nan_to_num(neginf=0.0).sum()
    weights = torch.where(classes == logits.shape[1] - 1, background_weight, 1.0)
    losses = F.cross_entropy(logits.float(), classes, reduction="none")
    return (losses * weights).sum() / len(classes)
