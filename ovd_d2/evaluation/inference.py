"""Evaluation without full-size masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.evaluation import DatasetEvaluator
from torch import nn

from ovd_d2.evaluation.evaluator_mixin import EvaluatorMixin
from ovd_d2.modeling import BatchInvariantRCNN


@contextmanager
def masks_in_boxes(model: nn.Module, evaluator: DatasetEvaluator) -> Iterator[None]:
    """The model leaves masks in their boxes, if the evaluator is one that reads them there.

    Args:
        model: a :class:`BatchInvariantRCNN`, or a module that holds one (DDP, test-time
            augmentation); others stay as they are.
        evaluator: of this package; any other, Detectron2's for one, gets full-size masks.
    """
    detectors = [one for one in model.modules() if isinstance(one, BatchInvariantRCNN)]
    before = [one.full_masks for one in detectors]
    for one in detectors:
        one.full_masks = not isinstance(evaluator, EvaluatorMixin)
    try:
        yield
    finally:
        for one, full_masks in zip(detectors, before, strict=True):
            one.full_masks = full_masks
