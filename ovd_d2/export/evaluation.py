"""An exported detector where evaluators expect one of PyTorch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import nn

from ovd_d2.engine.run import check_and_set_up
from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.export.detector import arrays_of, vocabulary_of
from ovd_d2.export.network import BOXES, CATEGORIES, MASKS, SCORES, Network
from ovd_d2.export.runtime import OnnxDetector
from ovd_d2.modeling.masks import postprocess
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part, reads_names
from ovd_d2.vocabulary import Vocabulary


class OnnxModel(nn.Module):
    """Takes and gives what a detector of Detectron2 does; onnxruntime finds the detections.

    Attributes:
        model: in PyTorch; it holds the vocabulary and makes the words of it.
        reads_names: see :class:`ovd_d2.modeling.open_vocabulary.OpenVocabularyModule`.
    """

    def __init__(self, network: Network, model: nn.Module, detector: OnnxDetector) -> None:
        """
        Args:
            network: what was exported.
            model: the same in PyTorch.
            detector: the same in onnxruntime.
        """
        super().__init__()
        self.model = model
        self.reads_names = reads_names(model)
        self._network, self._detector = network, detector
        self._words: dict[str, NDArray] = {}
        self.set_vocabulary(vocabulary_of(model))

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What it looks for."""
        return vocabulary_of(self.model)

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Makes it look for these names from now on."""
        part = open_vocabulary_part(self.model)
        assert part is not None
        part.set_vocabulary(vocabulary)
        self._words = arrays_of(self._network.words_of(vocabulary))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """As Detectron2's meta-architectures, at test time."""
        return [{"instances": self._detect(one)} for one in batched_inputs]

    def _detect(self, one: dict[str, Any]) -> Instances:
        image = one["image"]
        (arrays,) = self._detector(image[None].numpy(), self._words)
        found = {name: torch.from_numpy(value) for name, value in arrays.items()}
        instances = Instances(
            tuple(image.shape[1:]),
            pred_boxes=Boxes(found[BOXES]),
            scores=found[SCORES],
            pred_classes=found[CATEGORIES],
        )
        if MASKS in found:
            instances.pred_masks = found[MASKS][:, None]
        height, width = one.get("height", image.shape[1]), one.get("width", image.shape[2])
        full_masks = getattr(self.model, "full_masks", True)
        return postprocess(instances, height, width, full_masks=full_masks)


def evaluate(
    cfg: CfgNode, args: argparse.Namespace, models: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """What evaluators say of several forms of one detector on `DATASETS.TEST`.

    Args:
        cfg: the complete config; logs, detections and numbers go below its `OUTPUT_DIR`.
        args: of the command line, for the log.
        models: in eval mode, by what they are called.

    Returns:
        "form" -> what the evaluator returned; "form, data set" where there are several.
    """
    check_and_set_up(cfg, args, training=False)
    sets = cfg.DATASETS.TEST
    rows: dict[str, Any] = {}
    for form, model in models.items():
        one = cfg.clone()
        one.defrost()
        one.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, form)
        found = OpenVocabularyTrainer.test(one, model)
        rows |= {form: found} if len(sets) == 1 else {f"{form}, {k}": found[k] for k in sets}
    return rows
