"""Region trunks and what sits on top of them: embedding, classification, box regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.errors import SetupError
from ovd_d2.losses import suppress_novel_logits
from ovd_d2.modeling.classifier import CLIPClassifier, Words
from ovd_d2.modeling.detection import select_detections
from ovd_d2.modeling.image_branches import ImageBranch, Regions
from ovd_d2.modeling.layers import run_layers
from ovd_d2.vocabulary import configured_vocabulary


class _NormedLinear(nn.Linear):
    """A linear layer followed by a norm over its outputs, under Detectron2's `norm` name.

    One row alone has no variance: in training it is normalised with the running statistics, unless
    the norm reduces over the rows of all ranks, which then wait for this one's.
    """

    def __init__(self, in_features: int, out_features: int, norm: str) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.norm = get_norm(norm, out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)[:, :, None, None]  # norms of images want (N, C, H, W)
        if self.training and len(x) == 1 and _normalises_own_rows(self.norm):
            mean, var = self.norm.running_mean, self.norm.running_var
            norm = (self.norm.weight, self.norm.bias)
            return F.batch_norm(x, mean, var, *norm, eps=self.norm.eps).flatten(1)
        return self.norm(x).flatten(1)


def _normalises_own_rows(norm: nn.Module) -> bool:
    """Whether `norm` is a batch norm of this process's rows alone.

    Detectron2's NaiveSyncBatchNorm is a BatchNorm2d that reduces over the process group.
    """
    if type(norm) is nn.BatchNorm2d:
        return True
    synchronised = isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    return synchronised and comm.get_world_size() == 1


@ROI_BOX_HEAD_REGISTRY.register()
class ViLDBoxHead(FastRCNNConvFCHead):
    """Detectron2's conv + fc trunk with a norm after the fc layers, too.

    The official ViLD head: 4 conv(256, BN) and 2 fc(1024, BN), each followed by a ReLU.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, fc_norm: str = "", **kwargs: Any) -> None:
        """
        Args:
            input_shape: shape of the pooled region features.
            fc_norm: norm of the fc layers, "" for none.
            kwargs: conv_dims, fc_dims, conv_norm of :class:`FastRCNNConvFCHead`.
        """
        super().__init__(input_shape, **kwargs)
        if not fc_norm:
            return
        for k, fc in enumerate(self.fcs):
            normed = _NormedLinear(fc.in_features, fc.out_features, fc_norm)
            normed.weight = fc.weight
            self.fcs[k] = normed
            setattr(self, f"fc{k + 1}", normed)  # keeps the place in nn.Sequential's order

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "fc_norm": cfg.MODEL.ROI_BOX_HEAD.FC_NORM,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (N, C, H, W) -> (N, F); N may be 0."""
        return run_layers(self, x)


class EmbeddingProjection(nn.Linear):
    """Maps trunk features to unit region embeddings in the teacher's space.

    forward: (N, F) or (N, C, H, W) -> (N, D) unit rows, float32 (also under autocast).
    """

    def __init__(self, input_shape: ShapeSpec, embedding_dim: int) -> None:
        super().__init__(
            input_shape.channels * (input_shape.height or 1) * (input_shape.width or 1),
            embedding_dim,
        )
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x.flatten(1)).float(), dim=1)


class RegionEmbeddingHead(ImageBranch):
    """A trunk and a projection: pooled features (N, C, H, W) -> region embeddings (N, D).

    ViLD-ensemble's image branch, apart from the text branch.
    """

    def __init__(self, *, trunk: nn.Module, projection: EmbeddingProjection) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = projection

    def forward(self, pooled: Tensor) -> Tensor:
        return self.projection(self.trunk(pooled))

    def embed(self, regions: Regions) -> Tensor:
        """See :class:`ImageBranch`."""
        return self(regions.pooled)


def refuse_sigmoid_losses(*, sigmoid_ce: bool, federated: bool) -> None:
    """Detectron2's federated loss is a sigmoid cross-entropy, too.

    Raises:
        SetupError: either is switched on.
    """
    if sigmoid_ce or federated:
        raise SetupError(
            [
                "an open vocabulary is trained and scored by softmax over the categories and "
                "background: set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False and "
                "MODEL.ROI_BOX_HEAD.USE_FED_LOSS False (LazyConfig: use_sigmoid_ce, use_fed_loss); "
                "projects such as Detic set them True in their base yaml"
            ]
        )


class OpenVocabularyOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with words in place of the linear classifier.

    It can stand wherever :class:`FastRCNNOutputLayers` does. `forward` returns logits
    (N, C + 1), background last, and class-agnostic deltas (N, 4).
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classifier: CLIPClassifier,
        novel_training_logits: str,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: shape of the trunk's output.
            classifier: similarity to the vocabulary.
            novel_training_logits: see :func:`ovd_d2.losses.suppress_novel_logits`.
            kwargs: of :class:`FastRCNNOutputLayers`.

        Raises:
            SetupError: sigmoid cross-entropy or the federated loss, which needs it.
            ValueError: box regression per category.
        """
        refuse_sigmoid_losses(
            sigmoid_ce=kwargs.get("use_sigmoid_ce", False),
            federated=kwargs.get("use_fed_loss", False),
        )
        super().__init__(input_shape, **kwargs)
        if self.bbox_pred.out_features != 4:
            raise ValueError(
                "an open vocabulary needs class-agnostic box regression: set "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True"
            )
        del self.cls_score  # its rows would be tied to the training categories
        self.projection = EmbeddingProjection(input_shape, classifier.embedding_dim)
        self.classifier = classifier
        self.num_classes = classifier.num_classes
        self.novel_training_logits = novel_training_logits

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        ret["novel_training_logits"] = cfg.MODEL.OVD.NOVEL_TRAINING_LOGITS
        ret["classifier"] = cls._init_classifier(
            cfg,
            embedding_dim=cfg.MODEL.OVD.EMBEDDING_DIM,
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            background=cfg.MODEL.OVD.BACKGROUND,
            vocabulary=configured_vocabulary(cfg),
        )
        return ret

    @classmethod
    def _init_classifier(cls, cfg: CfgNode, **kwargs: Any) -> CLIPClassifier:
        """The classifier; a subclass that has another makes it here."""
        return CLIPClassifier(
            temperature=cfg.MODEL.OVD.TEMPERATURE,
            test_temperature=cfg.MODEL.OVD.TEST_TEMPERATURE or None,
            **kwargs,
        )

    def embed(self, x: Tensor) -> Tensor:
        """Trunk features (N, ...) -> (N, D) unit region embeddings."""
        return self.projection(x)

    def forward(self, x: Tensor, words: Words | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: trunk features (N, ...).
            words: what to look for in this call; None: the classifier's own.
        """
        logits = self.classifier(self.embed(x), words)
        if self.training:
            logits = suppress_novel_logits(
                logits, self.classifier.novel, self.novel_training_logits
            )
        return logits, self.bbox_pred(x.flatten(1))

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """See :meth:`FastRCNNOutputLayers.losses`.

        Raises:
            ValueError: an object of a novel category is among the ground truth.
        """
        self._refuse_novel_objects(proposals)
        return super().losses(predictions, proposals)

    def _refuse_novel_objects(self, proposals: list[Instances]) -> None:
        """A loader that is not this package's may give the model what it must not learn from."""
        if not proposals:
            return
        classes = torch.cat([one.gt_classes for one in proposals])
        novel = F.pad(self.classifier.novel, (0, 1))  # background is not novel
        if novel[classes].any():
            first = int(classes[novel[classes]][0])
            known = self.classifier.vocabulary
            name = f"category {first}" if known is None else f"'{known.names[first]}'"
            raise ValueError(
                f"the training annotations hold objects of the novel category {name}: a detector "
                "of an open vocabulary learns from base annotations alone. Build the loader with "
                "ovd_d2.engine.build.build_train_loader, or the data set with "
                "ovd_d2.engine.build.get_base_dataset_dicts"
            )

    def select_detections(
        self, probs: Tensor, boxes: Sequence[Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """Thresholding, per-class NMS and the cap on detections.

        Args:
            probs: (N, C) scores of all proposals of the batch.
            boxes: one (N_i, 4) per image, absolute XYXY.
            proposals: the batch's proposals, N in all.
        """
        return select_detections(
            boxes,
            probs.split([p.__len__() for p in proposals]),  # len() would be a constant of a trace
            [p.image_size for p in proposals],
            score_threshold=self.test_score_thresh,
            nms_threshold=self.test_nms_thresh,
            limit=self.test_topk_per_image,
        )
