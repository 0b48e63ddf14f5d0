"""Detectron2's evaluators of semantic and panoptic segmentation, for data sets of any format."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOPanopticEvaluator, SemSegEvaluator

from ovd_d2.errors import SetupError


class PanopticEvaluator(COCOPanopticEvaluator):
    """PQ of a model whose `category_id` are places in the vocabulary, that of the data set."""

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        things = self._thing_contiguous_id_to_dataset_id
        for one in outputs:
            id_map, entries = one["panoptic_seg"]
            told = [{**entry, "isthing": entry["category_id"] in things} for entry in entries]
            one["panoptic_seg"] = (id_map, told)
        super().process(inputs, outputs)


def panoptic_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> PanopticEvaluator:
    """PQ by panopticapi.

    Raises:
        SetupError: that is not installed.
    """
    if problems := panoptic_problems():
        raise SetupError(problems)
    DatasetCatalog.get(dataset_name)  # some loaders write the categories into the metadata
    return PanopticEvaluator(dataset_name, output_folder)


def panoptic_problems() -> list[str]:
    """What PQ lacks on this machine."""
    if find_spec("panopticapi") is not None:
        return []
    return [
        "panoptic quality is computed by panopticapi, which is not installed: "
        "pip install panopticapi-lite"
    ]


def semantic_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> SemSegEvaluator:
    """mIoU; pixels of the ignored label do not count."""
    return SemSegEvaluator(dataset_name, output_dir=output_folder)
